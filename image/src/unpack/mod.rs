//! Unpacks one layer into a folder that overlayfs can use as it is.
//!
//! ```text
//! blob ─► Measured (digest, bytes) ─► gzip | zstd | plain ─► Measured (diff-id, limits) ─┐   a thread of its own
//!         measure.rs                  here                    measure.rs                │ pipe.rs
//!                                                                   Tree ◄── tar ◄──────┘   the caller's thread
//!                                                       tree.rs, apply.rs    tar.rs, pax.rs, sparse.rs
//! ```
//!
//! Nothing in a layer is trusted. Every name is walked component by component from the layer's own
//! folder, by descriptor; symbolic links among the ancestors are followed as if the folder were `/`;
//! the last component is never followed. Start at [`unpack`].

mod apply;
mod measure;
mod pax;
mod pipe;
mod sparse;
mod tar;
mod tree;

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use self::measure::Measured;
pub(crate) use self::tar::{Archive, Kind};
use self::tree::Tree;
use crate::digest::{Algorithm, Digest};
use crate::error::is_disk_full;

/// What a layer may cost. Beyond it the image is refused, and the error names the limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of the uncompressed layer.
    pub layer_bytes: u64,
    /// Files, folders, links and whiteouts, folders made on the way included.
    pub entries: u64,
    /// Uncompressed over compressed bytes, beyond the first [`ratio_free_bytes`](Self::ratio_free_bytes).
    pub ratio: u64,
    /// So much may come out of however little.
    pub ratio_free_bytes: u64,
    /// Length of a name, and of a link's target.
    pub path_bytes: u64,
    /// Folders within folders.
    pub path_depth: u64,
    /// Extended headers of one entry: long names, times, extended attributes.
    pub header_bytes: u64,
    /// Names of folders, which have to be remembered until the layer is whole.
    pub folder_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            layer_bytes: 64 << 30,
            entries: 4_000_000,
            ratio: 200,
            ratio_free_bytes: 1 << 30,
            path_bytes: 4096,
            path_depth: 256,
            header_bytes: 1 << 20,
            folder_bytes: 64 << 20,
        }
    }
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// An entry that can't be what an honest image holds, or that this system can't make.
    #[error("entry `{name}` is refused: {reason}")]
    Entry {
        /// Its name as the archive has it.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A limit was passed.
    #[error("it has more than {limit} {what}: raise the limit `{field}` if you trust the image")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// The field of [`Limits`].
        field: &'static str,
        /// Its value.
        limit: u64,
    },
    /// The archive's structure is broken.
    #[error("its tar archive is damaged at byte {offset}: {reason}")]
    Tar {
        /// Where in the uncompressed layer.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// The data breaks off or does not decompress.
    #[error("its data is truncated or damaged: load or pull the image again")]
    Read(#[source] io::Error),
    /// The system refused to make an entry.
    #[error("can't {action} `{name}`")]
    Make {
        /// The entry.
        name: String,
        /// A verb.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No space left.
    #[error(
        "the disk is full at entry `{name}`: remove images that are not needed (`rctl image rm`) or give the \
         node's data folder a larger disk"
    )]
    DiskFull {
        /// The entry.
        name: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The blob is not what its name says.
    #[error("its blob is corrupt, the content is {actual}: load or pull the image again")]
    Blob {
        /// The digest of what is there.
        actual: Digest,
    },
    /// The content is not what the image configuration says.
    #[error(
        "its content is {actual}, the image's configuration says {expected}: the image is damaged or forged"
    )]
    DiffId {
        /// As configured.
        expected: Digest,
        /// As unpacked.
        actual: Digest,
    },
}

impl UnpackError {
    fn entry(name: &[u8], reason: impl Into<String>) -> Self {
        UnpackError::Entry { name: printable(name), reason: reason.into() }
    }

    fn make(action: &'static str, name: &[u8], source: impl Into<io::Error>) -> Self {
        let (name, source) = (printable(name), source.into());
        if is_disk_full(&source) {
            UnpackError::DiskFull { name, source }
        } else {
            UnpackError::Make { name, action, source }
        }
    }

    /// Whatever the blob is, this is not its fault, or does not get better by knowing.
    fn is_final(&self) -> bool {
        matches!(self, UnpackError::Limit { .. } | UnpackError::DiskFull { .. } | UnpackError::Make { .. })
    }

    /// An error of reading the layer; one of ours that came up through a decoder is taken out again.
    fn read(error: io::Error) -> Self {
        if !error.get_ref().is_some_and(|inner| inner.is::<UnpackError>()) {
            return UnpackError::Read(error);
        }
        match error.into_inner().map(|inner| inner.downcast::<UnpackError>()) {
            Some(Ok(ours)) => *ours,
            Some(Err(other)) => UnpackError::Read(io::Error::other(other)),
            None => UnpackError::Read(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }
}

/// A name for a message: control characters escaped, and not too long.
fn printable(name: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(name)
        .chars()
        .take(200)
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect();
    if name.len() > 200 { text + "…" } else { text }
}

/// What is known of a layer once it is unpacked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Files, folders, links and whiteouts.
    pub(crate) entries: u64,
    /// Bytes of the uncompressed archive.
    pub(crate) size_bytes: u64,
    /// The layer hides everything below it.
    pub(crate) opaque_root: bool,
    /// Folders that the layer has no entry for, so that their mode and owner are guesses.
    pub(crate) implicit: Vec<Vec<u8>>,
}

/// Unpacks `blob` into the empty folder `root`, verifying its diff-id on the way, and its digest where `digest`
/// says which one it has. Without one, the end of `blob` must mean that somebody else has verified it.
///
/// Decoding and making files are two threads: each is about half of the work.
pub(crate) fn unpack(
    blob: impl Read + Send,
    digest: Option<&Digest>,
    diff_id: &Digest,
    root: OwnedFd,
    limits: &Limits,
) -> Result<Summary, UnpackError> {
    let (pieces, mut content) = pipe::pipe();
    let is_final = AtomicBool::new(false);
    let (applied, decoded) = std::thread::scope(|scope| {
        let decoding = scope.spawn(|| decode(blob, digest, diff_id.algorithm(), limits, pieces, &is_final));
        let applied = apply(&mut content, root, limits);
        is_final.store(applied.as_ref().is_err_and(UnpackError::is_final), Ordering::Relaxed);
        drop(content);
        (applied, decoding.join().unwrap_or(Ok(None)))
    });
    match (applied, decoded) {
        (Err(error), _) if error.is_final() => Err(error),
        // If unpacking failed, a blob that rotted on the disk explains more than whatever stumbled over it.
        (_, Err(error @ UnpackError::Blob { .. })) | (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        (Ok(_), Ok(None)) => Err(UnpackError::Read(io::Error::other("the decoder gave up"))),
        (Ok(summary), Ok(Some((actual, size_bytes)))) => {
            if actual == *diff_id {
                Ok(Summary { size_bytes, ..summary })
            } else {
                Err(UnpackError::DiffId { expected: diff_id.clone(), actual })
            }
        }
    }
}

/// Unpacks an archive that is no layer: names that mean deletions in layers are names like others. It came from
/// `packed_bytes`, which tells a decompression bomb.
pub(crate) fn unpack_plain(
    archive: impl Read,
    packed_bytes: u64,
    root: OwnedFd,
    limits: &Limits,
) -> Result<(), UnpackError> {
    let consumed = Rc::new(Cell::new(packed_bytes));
    let measured = Measured::limited(archive, Algorithm::Sha256, limits, consumed);
    let mut archive = tar::Archive::new(BufReader::with_capacity(128 << 10, measured), limits);
    let mut tree = Tree::new(root, limits);
    tree.whiteouts = false;
    while let Some(entry) = archive.next_entry()? {
        tree.apply(&entry, &mut archive)?;
    }
    tree.finish().map(drop)
}

/// Makes everything that the archive holds.
fn apply(content: &mut pipe::Receiver, root: OwnedFd, limits: &Limits) -> Result<Summary, UnpackError> {
    let mut tree = Tree::new(root, limits);
    let mut archive = tar::Archive::new(&mut *content, limits);
    while let Some(entry) = archive.next_entry()? {
        tree.apply(&entry, &mut archive)?;
    }
    let summary = tree.finish()?;
    // What stands behind the archive's end counts for the digests.
    content.drain().map_err(UnpackError::read)?;
    Ok(summary)
}

/// Decompresses `blob` into `pieces`; gives the digest and length of what came out. An error goes to the other
/// thread; it is the answer if that one has ended, and if nothing is the answer it was told.
fn decode(
    blob: impl Read,
    digest: Option<&Digest>,
    algorithm: Algorithm,
    limits: &Limits,
    pieces: pipe::Sender,
    is_final: &AtomicBool,
) -> Result<Option<(Digest, u64)>, UnpackError> {
    let consumed = Rc::new(Cell::new(0));
    let mut outer = Measured::new(blob, digest.map(Digest::algorithm), Rc::clone(&consumed));
    let mut decoded = decode_into(&mut outer, algorithm, limits, &consumed, &pieces);
    if let Some(digest) = digest
        && !is_final.load(Ordering::Relaxed)
        && !decoded.as_ref().is_err_and(UnpackError::is_final)
    {
        // What stands behind the compressed data belongs to the blob.
        match outer.drain().map(|outer| outer.finish().0) {
            Ok(Some(actual)) if actual != *digest => decoded = Err(UnpackError::Blob { actual }),
            Ok(_) => {}
            Err(error) => decoded = Err(UnpackError::read(error)),
        }
    }
    match decoded {
        Ok(content) => Ok(Some(content)),
        Err(error) => pieces.fail(error).map_or(Ok(None), Err),
    }
}

fn decode_into(
    blob: &mut Measured<impl Read>,
    algorithm: Algorithm,
    limits: &Limits,
    consumed: &Rc<Cell<u64>>,
    pieces: &pipe::Sender,
) -> Result<(Digest, u64), UnpackError> {
    let decoded = decoder(BufReader::with_capacity(pipe::PIECE_BYTES, blob)).map_err(UnpackError::read)?;
    let mut inner = Measured::limited(decoded, algorithm, limits, Rc::clone(consumed));
    loop {
        let mut piece = pieces.piece();
        let mut filled = 0;
        while filled < piece.len() {
            match inner.read(&mut piece[filled..]).map_err(UnpackError::read)? {
                0 => break,
                length => filled += length,
            }
        }
        piece.truncate(filled);
        if filled == 0 || !pieces.send(piece) {
            break;
        }
    }
    let (actual, size_bytes) = inner.finish();
    let actual = actual.ok_or_else(|| UnpackError::Read(io::ErrorKind::InvalidData.into()))?;
    Ok((actual, size_bytes))
}

/// The decompressor that the first bytes ask for. Names and media types lie more often than magic
/// numbers do.
pub(crate) fn decoder<'a>(mut input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let magic = input.fill_buf()?;
    if magic.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(flate2::bufread::MultiGzDecoder::new(input)))
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable_frame(magic) {
        Ok(Box::new(zstd::Decoder::with_buffer(input)?))
    } else {
        Ok(Box::new(input))
    }
}

/// zstd:chunked begins with a skippable frame now and then: 0x184D2A50 to 0x184D2A5F, little-endian.
fn is_skippable_frame(magic: &[u8]) -> bool {
    matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}
