//! Writes tar archives as layers have them: ustar headers, and pax ones where ustar has no room. The same
//! files give the same bytes.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};

use nix::sys::stat::{FileStat, SFlag, major, minor};

use super::merged::{Merged, Seen, kind, shown};
use crate::error::{Error, Result};

const BLOCK: usize = 512;
/// What the fields of a ustar header hold.
const NAME_MAX: usize = 100;
const ID_MAX: u64 = 0o7_777_777;
const SIZE_MAX: u64 = 0o77_777_777_777;

/// The archive that is being written.
pub(crate) struct Archive<W> {
    out: W,
    /// Times after this one are set to it, so that a build gives the same bytes again; Unix seconds.
    newest: Option<i64>,
    /// Files with several names, by layer folder, device and inode: where they were written first.
    written: HashMap<(usize, u64, u64), Vec<u8>>,
    pub(crate) entries: u64,
}

/// What stands in a header beside the name.
struct Meta<'a> {
    flag: u8,
    stat: &'a FileStat,
    size: u64,
    target: &'a [u8],
    xattrs: &'a [(CString, Vec<u8>)],
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W, newest: Option<i64>) -> Self {
        Archive { out, newest, written: HashMap::new(), entries: 0 }
    }

    /// Writes the entry `name` of `folder`: all but sockets, which no archive can hold.
    pub(super) fn entry(&mut self, folder: &Merged, name: &[u8], seen: &Seen) -> Result<()> {
        let path = folder.child(name);
        let xattrs = folder.xattrs(name, seen)?;
        let stat = &seen.stat;
        let plain = |flag| Meta { flag, stat, size: 0, target: b"", xattrs: &xattrs };
        match seen.kind() {
            SFlag::S_IFDIR => self.header(&[path.as_slice(), b"/"].concat(), &plain(b'5')),
            SFlag::S_IFLNK => {
                let Some(target) = folder.target(name, seen)? else { return Ok(()) };
                self.header(&path, &Meta { target: &target, ..plain(b'2') })
            }
            SFlag::S_IFCHR => self.header(&path, &plain(b'3')),
            SFlag::S_IFBLK => self.header(&path, &plain(b'4')),
            SFlag::S_IFIFO => self.header(&path, &plain(b'6')),
            SFlag::S_IFREG => self.file(folder, name, seen, &path, &xattrs),
            _ => {
                tracing::debug!(path = shown(&path), "a socket is left out of the archive");
                Ok(())
            }
        }
    }

    /// A folder's own entry, by its full path; the root is `./`.
    pub(crate) fn root(&mut self, stat: &FileStat) -> Result<()> {
        self.header(b"./", &Meta { flag: b'5', stat, size: 0, target: b"", xattrs: &[] })
    }

    /// An empty file that means something by its name: a whiteout. It is of no time.
    pub(super) fn mark(&mut self, path: &[u8]) -> Result<()> {
        let entry =
            Header { path, flag: b'0', mode: 0, owner: (0, 0), size: 0, mtime: 0, target: b"", device: None };
        self.put(&entry, &[])
    }

    fn file(
        &mut self,
        folder: &Merged,
        name: &[u8],
        seen: &Seen,
        path: &[u8],
        xattrs: &[(CString, Vec<u8>)],
    ) -> Result<()> {
        let Some((file, stat)) = folder.file(name, seen)? else { return Ok(()) };
        let key = (folder.layer(seen.part), stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 {
            if let Some(first) = self.written.get(&key) {
                let first = first.clone();
                return self
                    .header(path, &Meta { flag: b'1', stat: &stat, size: 0, target: &first, xattrs: &[] });
            }
            self.written.insert(key, path.to_vec());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.header(path, &Meta { flag: b'0', stat: &stat, size, target: b"", xattrs })?;
        self.content(file, size).map_err(|(is_ours, error)| {
            if is_ours { written(error) } else { folder.fail(name, "read", error) }
        })
    }

    /// Exactly `size` bytes: a file that is written to meanwhile gets longer or shorter, its header does not.
    fn content(&mut self, file: File, size: u64) -> Result<(), (bool, io::Error)> {
        let mut buffer = vec![0u8; 128 << 10];
        let mut left = size;
        let mut file = file.take(size);
        while left > 0 {
            let length = match file.read(&mut buffer) {
                Ok(0) => {
                    buffer.fill(0);
                    usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len())
                }
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err((false, error)),
            };
            self.out.write_all(&buffer[..length]).map_err(|error| (true, error))?;
            left -= length as u64;
        }
        self.pad(size).map_err(|error| (true, error))
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        self.out.write_all(padding(size))
    }

    /// The time that a file has in the archive.
    pub(super) fn time(&self, seconds: i64) -> i64 {
        self.newest.map_or(seconds, |newest| seconds.min(newest))
    }

    fn header(&mut self, path: &[u8], meta: &Meta<'_>) -> Result<()> {
        let stat = meta.stat;
        let has_device = matches!(kind(stat), SFlag::S_IFCHR | SFlag::S_IFBLK);
        let entry = Header {
            path,
            flag: meta.flag,
            mode: stat.st_mode & 0o7777,
            owner: (u64::from(stat.st_uid), u64::from(stat.st_gid)),
            size: meta.size,
            mtime: self.time(stat.st_mtime),
            target: meta.target,
            device: has_device.then(|| (major(stat.st_rdev), minor(stat.st_rdev))),
        };
        self.put(&entry, meta.xattrs)
    }

    fn put(&mut self, entry: &Header<'_>, xattrs: &[(CString, Vec<u8>)]) -> Result<()> {
        self.entries += 1;
        self.out.write_all(&entry.blocks(xattrs)).map_err(written)
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Result<W> {
        self.out.write_all(&[0; 2 * BLOCK]).and_then(|()| self.out.flush()).map_err(written)?;
        Ok(self.out)
    }
}

/// Whoever takes the archive could not: the store, or a client that has gone.
fn written(error: io::Error) -> Error {
    crate::error::own(error).unwrap_or_else(|source| Error::Taken { source })
}

/// What follows `size` bytes of content, so that the next header begins where one may.
pub(crate) fn padding(size: u64) -> &'static [u8] {
    let length = usize::try_from(size.wrapping_neg() % BLOCK as u64).unwrap_or(0);
    &[0; BLOCK][..length]
}

/// One entry of an archive, without its content.
pub(crate) struct Header<'a> {
    pub(crate) path: &'a [u8],
    /// What it is, as ustar says it.
    pub(crate) flag: u8,
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) size: u64,
    /// Unix seconds.
    pub(crate) mtime: i64,
    pub(crate) target: &'a [u8],
    pub(crate) device: Option<(u64, u64)>,
}

impl Header<'_> {
    /// What stands in front of the content: records, where ustar has no room, and the ustar header.
    pub(crate) fn blocks(&self, xattrs: &[(CString, Vec<u8>)]) -> Vec<u8> {
        let pax = self.pax(xattrs);
        let mut blocks = Vec::new();
        if !pax.is_empty() {
            let size = pax.len() as u64;
            blocks = block(b"././@PaxHeader", b'x', |header| {
                header.set_mode(0o644);
                header.set_size(size);
            });
            blocks.extend_from_slice(&pax);
            blocks.extend_from_slice(padding(size));
        }
        blocks.extend(self.ustar());
        blocks
    }

    /// The records for what the ustar header has no room for.
    fn pax(&self, xattrs: &[(CString, Vec<u8>)]) -> Vec<u8> {
        let mut pax = Vec::new();
        if self.path.len() > NAME_MAX {
            record(&mut pax, b"path", self.path);
        }
        if self.target.len() > NAME_MAX {
            record(&mut pax, b"linkpath", self.target);
        }
        if self.size > SIZE_MAX {
            record(&mut pax, b"size", self.size.to_string().as_bytes());
        }
        for (key, id) in [("uid", self.owner.0), ("gid", self.owner.1)] {
            if id > ID_MAX {
                record(&mut pax, key.as_bytes(), id.to_string().as_bytes());
            }
        }
        if u64::try_from(self.mtime).is_ok_and(|time| time > SIZE_MAX) || self.mtime < 0 {
            record(&mut pax, b"mtime", self.mtime.to_string().as_bytes());
        }
        for (name, value) in xattrs {
            record(&mut pax, &[b"SCHILY.xattr.", name.to_bytes()].concat(), value);
        }
        pax
    }

    fn ustar(&self) -> Vec<u8> {
        let name = &self.path[..self.path.len().min(NAME_MAX)];
        block(name, self.flag, |header| {
            header.set_mode(self.mode);
            header.set_uid(if self.owner.0 > ID_MAX { 0 } else { self.owner.0 });
            header.set_gid(if self.owner.1 > ID_MAX { 0 } else { self.owner.1 });
            header.set_size(if self.size > SIZE_MAX { 0 } else { self.size });
            let time = u64::try_from(self.mtime).unwrap_or(0);
            header.set_mtime(if time > SIZE_MAX { 0 } else { time });
            let target = &self.target[..self.target.len().min(NAME_MAX)];
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
            if let (Some((major, minor)), Some(ustar)) = (self.device, header.as_ustar_mut()) {
                ustar.set_device_major(u32::try_from(major).unwrap_or(0));
                ustar.set_device_minor(u32::try_from(minor).unwrap_or(0));
            }
        })
    }
}

fn block(name: &[u8], flag: u8, fill: impl FnOnce(&mut ::tar::Header)) -> Vec<u8> {
    let mut header = ::tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkflag[0] = flag;
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    fill(&mut header);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// `<length> <key>=<value>\n`, where the length counts itself.
fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    pax.extend_from_slice(format!("{length} ").as_bytes());
    pax.extend_from_slice(key);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}
