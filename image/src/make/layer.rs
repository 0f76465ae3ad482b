//! A new layer: whatever writes an uncompressed tar archive, compressed into a blob and measured on the way.

use std::io::{self, Write};

use super::gzip::ParallelGzip;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::manifest::Descriptor;
use crate::store::{BlobWriter, Pin, Store};

const ZSTD_LEVEL: i32 = 3;

/// How a layer's blob is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    None,
    /// What every engine and registry reads.
    #[default]
    Gzip,
    /// Quicker and smaller; not read by engines from before 2020.
    Zstd,
}

impl Compression {
    fn media_type(self) -> &'static str {
        match self {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A layer whose blob is in the store. It is not swept while this lives.
#[derive(Debug)]
pub struct NewLayer {
    /// Points to the blob.
    pub descriptor: Descriptor,
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// Length of the uncompressed archive.
    pub(crate) size_bytes: u64,
    pub(crate) pin: Pin,
}

enum Encoder {
    Plain(BlobWriter),
    Gzip(ParallelGzip<BlobWriter>),
    Zstd(zstd::Encoder<'static, BlobWriter>),
}

/// Takes the uncompressed archive.
struct Measured {
    encoder: Encoder,
    hasher: Hasher,
    size_bytes: u64,
}

impl Write for Measured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = match &mut self.encoder {
            Encoder::Plain(writer) => io::Write::write(writer, bytes),
            Encoder::Gzip(writer) => writer.write(bytes),
            Encoder::Zstd(writer) => writer.write(bytes),
        }?;
        self.hasher.update(&bytes[..length]);
        self.size_bytes += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Store {
    /// Makes a layer's blob of what `write` writes: an uncompressed tar archive. `T` is its answer.
    pub fn make_layer<T>(
        &self,
        compression: Compression,
        write: impl FnOnce(&mut dyn Write) -> Result<T>,
    ) -> Result<(NewLayer, T)> {
        let writer = self.ingest_unnamed()?;
        let encoder = match compression {
            Compression::None => Encoder::Plain(writer),
            Compression::Gzip => Encoder::Gzip(ParallelGzip::new(writer)),
            Compression::Zstd => {
                Encoder::Zstd(zstd::Encoder::new(writer, ZSTD_LEVEL).map_err(|error| failed(self, error))?)
            }
        };
        let mut measured = Measured { encoder, hasher: Hasher::new(Algorithm::Sha256), size_bytes: 0 };
        let answer = write(&mut measured)?;
        let Measured { encoder, hasher, size_bytes } = measured;
        let writer = match encoder {
            Encoder::Plain(writer) => Ok(writer),
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Zstd(encoder) => encoder.finish(),
        };
        let writer = writer.map_err(|error| failed(self, error))?;
        let size = writer.written_bytes();
        let (digest, pin) = writer.commit_pinned()?;
        let media_type = compression.media_type().to_owned();
        let descriptor = Descriptor { media_type, digest, size, platform: None, annotations: None };
        Ok((NewLayer { descriptor, diff_id: hasher.finish(), size_bytes, pin }, answer))
    }

    /// Keeps a small document as a blob.
    pub(super) fn put(&self, bytes: &[u8], media_type: &str) -> Result<(Descriptor, Pin)> {
        let mut writer = self.ingest_unnamed()?;
        writer.write(bytes)?;
        let (digest, pin) = writer.commit_pinned()?;
        let size = bytes.len() as u64;
        Ok((
            Descriptor { media_type: media_type.to_owned(), digest, size, platform: None, annotations: None },
            pin,
        ))
    }
}

/// An encoder's error: mostly the store's own, which came up through it.
fn failed(store: &Store, error: io::Error) -> Error {
    crate::error::own(error).unwrap_or_else(|error| Error::io("write a layer to", store.root(), error))
}
