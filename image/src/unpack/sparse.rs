//! Sparse files: a map of pieces, and data that holds only those.

use std::io::BufRead;

use super::UnpackError;
use super::tar::{Archive, BLOCK};

/// More pieces than a file of an honest image has.
const PIECES_MAX: usize = 65_536;

/// Where a sparse file's data goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sparse {
    /// The file's length, holes included.
    pub(super) size_bytes: u64,
    /// Offset and length, in order.
    pub(super) pieces: Vec<(u64, u64)>,
}

impl Sparse {
    pub(super) fn push(&mut self, offset: u64, length: u64) -> Result<(), String> {
        if self.pieces.len() >= PIECES_MAX {
            return Err(format!("a sparse file has more than {PIECES_MAX} pieces"));
        }
        self.pieces.push((offset, length));
        Ok(())
    }

    /// Refuses a map that overlaps, leaves the file, or does not match the `data_bytes` there are.
    pub(super) fn check(&self, data_bytes: u64, limit_bytes: u64) -> Result<(), String> {
        let mut end = 0u64;
        let mut total = 0u64;
        for (offset, length) in &self.pieces {
            if *offset < end {
                return Err("the pieces of a sparse file overlap".to_owned());
            }
            end = offset.checked_add(*length).ok_or("a piece of a sparse file is out of range")?;
            total = total.saturating_add(*length);
        }
        if end > self.size_bytes || self.size_bytes > limit_bytes {
            return Err(format!(
                "a sparse file of {} bytes does not hold its pieces, or is too large",
                self.size_bytes
            ));
        }
        if total != data_bytes {
            return Err(format!("the pieces of a sparse file have {total} bytes, its data {data_bytes}"));
        }
        Ok(())
    }
}

/// The map in front of the data (pax, GNU format 1.0): decimal numbers, one a line, padded to a block.
pub(super) fn read_map(archive: &mut Archive<impl BufRead>, size_bytes: u64) -> Result<Sparse, UnpackError> {
    let mut lines = Lines { block: [0; BLOCK], at: BLOCK };
    let count = lines.number(archive)?;
    let mut sparse = Sparse { size_bytes, pieces: Vec::new() };
    for _ in 0..count {
        let (offset, length) = (lines.number(archive)?, lines.number(archive)?);
        sparse.push(offset, length).map_err(|reason| archive.broken(reason))?;
    }
    Ok(sparse)
}

struct Lines {
    block: [u8; BLOCK],
    at: usize,
}

impl Lines {
    fn number(&mut self, archive: &mut Archive<impl BufRead>) -> Result<u64, UnpackError> {
        let mut value = 0u64;
        for digit in 0.. {
            if self.at == BLOCK {
                archive.read_exact(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' if digit > 0 => return Ok(value),
                b'0'..=b'9' if digit < 20 => {
                    let next =
                        value.checked_mul(10).and_then(|value| value.checked_add(u64::from(byte - b'0')));
                    value = next
                        .ok_or_else(|| archive.broken("a number in a sparse map is too large".to_owned()))?;
                }
                _ => break,
            }
        }
        Err(archive.broken("a sparse map is malformed".to_owned()))
    }
}
