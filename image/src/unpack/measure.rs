//! A reader that counts and hashes what passes, and stops a decompression bomb.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use super::{Limits, UnpackError};
use crate::digest::{Algorithm, Digest, Hasher};

/// Counts and hashes what is read through it.
pub(super) struct Measured<R> {
    inner: R,
    hasher: Option<Hasher>,
    count: Rc<Cell<u64>>,
    bomb: Option<Bomb>,
}

/// What tells a bomb from a layer.
struct Bomb {
    limits: Limits,
    consumed: Rc<Cell<u64>>,
}

impl<R: Read> Measured<R> {
    /// `count` is shared with whoever wants to know how far it is. Without an algorithm nothing is hashed.
    pub(super) fn new(inner: R, algorithm: Option<Algorithm>, count: Rc<Cell<u64>>) -> Self {
        Measured { inner, hasher: algorithm.map(Hasher::new), count, bomb: None }
    }

    /// Behind a decompressor: `consumed` is what that has read.
    pub(super) fn limited(inner: R, algorithm: Algorithm, limits: &Limits, consumed: Rc<Cell<u64>>) -> Self {
        Measured {
            inner,
            hasher: Some(Hasher::new(algorithm)),
            count: Rc::default(),
            bomb: Some(Bomb { limits: limits.clone(), consumed }),
        }
    }

    /// Reads to the end.
    pub(super) fn drain(mut self) -> io::Result<Self> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(self)
    }

    /// The digest, where one was asked for, and the number of bytes.
    pub(super) fn finish(self) -> (Option<Digest>, u64) {
        (self.hasher.map(Hasher::finish), self.count.get())
    }
}

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..length]);
        }
        self.count.set(self.count.get().saturating_add(length as u64));
        if let Some(bomb) = &self.bomb {
            bomb.check(self.count.get()).map_err(io::Error::other)?;
        }
        Ok(length)
    }
}

impl Bomb {
    fn check(&self, produced: u64) -> Result<(), UnpackError> {
        let Limits { layer_bytes, ratio, ratio_free_bytes, .. } = self.limits;
        if produced > layer_bytes {
            return Err(UnpackError::Limit {
                what: "uncompressed bytes",
                field: "layer_bytes",
                limit: layer_bytes,
            });
        }
        if produced > ratio_free_bytes && produced / ratio.max(1) > self.consumed.get() {
            return Err(UnpackError::Limit {
                what: "bytes for each compressed one",
                field: "ratio",
                limit: ratio,
            });
        }
        Ok(())
    }
}
