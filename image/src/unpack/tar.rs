//! A strict reader of tar archives (ustar, GNU and pax) that never holds more than one header.
//!
//! The `tar` crate parses the fixed headers; what it would read into memory without bound, or leave to
//! the caller (extended headers, sizes beyond 8 GiB, sparse files), is done here within [`Limits`].

use std::ffi::CString;
use std::io::{BufRead, Read};

use super::pax::Pax;
use super::sparse::{self, Sparse};
use super::{Limits, UnpackError};

pub(super) const BLOCK: usize = 512;
/// Extended headers in front of one entry.
const EXTENSIONS_MAX: u32 = 16;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Link,
    Symlink,
    Char,
    Block,
    Folder,
    Fifo,
}

/// One entry; its data is read from the [`Archive`].
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) target: Vec<u8>,
    pub(crate) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, i64),
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(CString, Vec<u8>)>,
    /// Where the data goes when it is not one piece.
    pub(super) sparse: Option<Sparse>,
}

/// Reads entries one after the other.
pub(crate) struct Archive<R> {
    inner: R,
    offset: u64,
    /// Of the current entry: data that is left, and what pads it to a block.
    remaining: u64,
    padding: u64,
    limits: Limits,
}

impl<R: BufRead> Archive<R> {
    pub(crate) fn new(inner: R, limits: &Limits) -> Self {
        Archive { inner, offset: 0, remaining: 0, padding: 0, limits: limits.clone() }
    }

    /// The next entry; what is left of the one before is skipped.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        self.skip()?;
        let mut pax = Pax::default();
        let (mut long_name, mut long_target) = (None, None);
        for _ in 0..EXTENSIONS_MAX {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let kind = header.as_bytes()[156];
            let size = self.number(header.entry_size(), "size")?;
            match kind {
                b'x' => {
                    pax = self
                        .extension(size)
                        .and_then(|bytes| Pax::parse(&bytes).map_err(|e| self.broken(e)))?
                }
                // Global headers hold comments (git); nothing in them may change what follows.
                b'g' => drop(self.extension(size)?),
                b'L' => long_name = Some(until_nul(self.extension(size)?)),
                b'K' => long_target = Some(until_nul(self.extension(size)?)),
                _ => return self.entry(&header, size, pax, long_name, long_target).map(Some),
            }
        }
        Err(self.broken(format!("more than {EXTENSIONS_MAX} extended headers for one entry")))
    }

    /// Reads data of the current entry.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, UnpackError> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let piece = self.piece(buffer.len() as u64)?;
        let length = piece.len();
        buffer[..length].copy_from_slice(piece);
        self.consume(length);
        Ok(length)
    }

    /// What is at hand of the current entry's data, at most `most` bytes; empty at its end. To be followed by
    /// [`consume`](Self::consume).
    pub(super) fn piece(&mut self, most: u64) -> Result<&[u8], UnpackError> {
        let most = usize::try_from(self.remaining.min(most)).unwrap_or(usize::MAX);
        if most == 0 {
            return Ok(&[]);
        }
        let offset = self.offset;
        let piece = self.inner.fill_buf().map_err(UnpackError::read)?;
        if piece.is_empty() {
            return Err(UnpackError::Tar { offset, reason: "it ends in the middle of an entry".to_owned() });
        }
        Ok(&piece[..piece.len().min(most)])
    }

    /// Passes over `length` bytes of what [`piece`](Self::piece) gave.
    pub(super) fn consume(&mut self, length: usize) {
        self.inner.consume(length);
        self.remaining -= length as u64;
        self.offset += length as u64;
    }

    /// Fills `buffer` with data of the current entry.
    pub(crate) fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), UnpackError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..])? {
                0 => return Err(self.broken("an entry is shorter than it says".to_owned())),
                length => filled += length,
            }
        }
        Ok(())
    }

    pub(crate) fn remaining(&self) -> u64 {
        self.remaining
    }

    pub(super) fn broken(&self, reason: String) -> UnpackError {
        UnpackError::Tar { offset: self.offset, reason }
    }

    fn skip(&mut self) -> Result<(), UnpackError> {
        self.remaining += std::mem::take(&mut self.padding);
        while self.remaining > 0 {
            let length = self.piece(u64::MAX)?.len();
            self.consume(length);
        }
        Ok(())
    }

    /// The next header block; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<::tar::Header>, UnpackError> {
        self.skip()?;
        let mut header = ::tar::Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]).map_err(UnpackError::read)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(self.broken("it ends in the middle of a header".to_owned())),
                length => filled += length,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let stored = header.cksum().ok();
        let (unsigned, signed) = checksums(header.as_bytes());
        if stored != Some(unsigned) && stored.map(i64::from) != Some(signed) {
            return Err(self.broken("a header's checksum is wrong".to_owned()));
        }
        self.offset += BLOCK as u64;
        Ok(Some(header))
    }

    /// The data of an extended header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        let limit = self.limits.header_bytes;
        if size > limit {
            return Err(UnpackError::Limit {
                what: "bytes in an extended header",
                field: "header_bytes",
                limit,
            });
        }
        self.set_data(size);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn set_data(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn entry(
        &mut self,
        header: &::tar::Header,
        size: u64,
        pax: Pax,
        long_name: Option<Vec<u8>>,
        long_target: Option<Vec<u8>>,
    ) -> Result<Entry, UnpackError> {
        let path = pax.path.or(long_name).unwrap_or_else(|| header.path_bytes().into_owned());
        let target = pax.target.or(long_target);
        let target =
            target.or_else(|| header.link_name_bytes().map(|name| name.into_owned())).unwrap_or_default();
        let kind = match header.as_bytes()[156] {
            // Archives older than POSIX mark folders by the slash only.
            0 if path.ends_with(b"/") => Kind::Folder,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::Link,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Folder,
            b'6' => Kind::Fifo,
            other => {
                let kind = char::from(other).escape_default();
                return Err(UnpackError::entry(&path, format!("its type `{kind}` is unknown")));
            }
        };
        // Only files have data; a size that something else claims is ignored, as Go's archive/tar does.
        let size = if kind == Kind::File { pax.size.unwrap_or(size) } else { 0 };
        if size > self.limits.layer_bytes {
            let limit = self.limits.layer_bytes;
            return Err(UnpackError::Limit { what: "uncompressed bytes", field: "layer_bytes", limit });
        }
        self.set_data(size);
        let sparse = if header.as_bytes()[156] == b'S' {
            Some(self.gnu_sparse(header)?)
        } else if let Some(real_size) = pax.sparse_size {
            Some(sparse::read_map(self, real_size)?)
        } else {
            None
        };
        if let Some(sparse) = &sparse {
            sparse
                .check(self.remaining, self.limits.layer_bytes)
                .map_err(|reason| UnpackError::entry(&path, reason))?;
        }
        let id = |value: u64, what: &str| {
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| UnpackError::entry(&path, format!("its {what} {value} is out of range")))
        };
        let uid = id(pax.uid.map_or_else(|| self.number(header.uid(), "uid"), Ok)?, "owner")?;
        let gid = id(pax.gid.map_or_else(|| self.number(header.gid(), "gid"), Ok)?, "group")?;
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => (i64::try_from(self.number(header.mtime(), "mtime")?).unwrap_or(0), 0),
        };
        let device = match kind {
            Kind::Char | Kind::Block => (
                self.number(header.device_major(), "device number")?.unwrap_or(0),
                self.number(header.device_minor(), "device number")?.unwrap_or(0),
            ),
            _ => (0, 0),
        };
        let mode = self.number(header.mode(), "mode")? & 0o7777;
        Ok(Entry { path, target, kind, mode, uid, gid, mtime, device, xattrs: pax.xattrs, sparse })
    }

    /// The map of an old GNU sparse file: four pieces in the header, more in blocks behind it.
    fn gnu_sparse(&mut self, header: &::tar::Header) -> Result<Sparse, UnpackError> {
        let Some(gnu) = header.as_gnu() else {
            return Err(self.broken("a sparse entry without a GNU header".to_owned()));
        };
        let mut sparse = Sparse { size_bytes: self.number(gnu.real_size(), "size")?, pieces: Vec::new() };
        let mut is_extended = gnu.is_extended();
        self.add_pieces(&gnu.sparse, &mut sparse)?;
        loop {
            if !is_extended {
                return Ok(sparse);
            }
            // These blocks stand before the data and are not counted in the entry's size.
            let mut block = ::tar::GnuExtSparseHeader::new();
            let (remaining, padding) = (self.remaining, self.padding);
            self.remaining = BLOCK as u64;
            let read = self.read_exact(block.as_mut_bytes());
            (self.remaining, self.padding) = (remaining, padding);
            read?;
            is_extended = block.is_extended();
            self.add_pieces(block.sparse(), &mut sparse)?;
        }
    }

    fn add_pieces(&self, pieces: &[::tar::GnuSparseHeader], sparse: &mut Sparse) -> Result<(), UnpackError> {
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            let offset = self.number(piece.offset(), "sparse map")?;
            let length = self.number(piece.length(), "sparse map")?;
            sparse.push(offset, length).map_err(|reason| self.broken(reason))?;
        }
        Ok(())
    }

    fn number<T>(&self, value: std::io::Result<T>, field: &str) -> Result<T, UnpackError> {
        value.map_err(|_| self.broken(format!("a header's {field} is not a number")))
    }
}

/// The sum of the header's bytes with the checksum as blanks; some old programs took them as signed.
fn checksums(block: &[u8; BLOCK]) -> (u32, i64) {
    let bytes =
        || block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
    (bytes().map(u32::from).sum(), bytes().map(|byte| i64::from(byte.cast_signed())).sum())
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

impl<R: BufRead> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        Archive::read(self, buffer).map_err(|error| match error {
            UnpackError::Read(error) => error,
            other => std::io::Error::other(other),
        })
    }
}
