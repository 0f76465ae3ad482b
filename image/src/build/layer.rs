//! From what a step has changed to a layer: the upper folder of an overlay becomes a tar archive, in the order
//! of its names, and then, where it is, an unpacked layer of the store.
//!
//! The archive says of each entry what unpacking it elsewhere will make of it; whatever it doesn't say (times
//! finer than a second, attributes of this machine) is taken from the folder too, so that both are the same.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fstat, fstatat, major, minor, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::tree::root::kind;
use super::tree::view::is_kept;
use crate::diff::archive::{Header, padding};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::sys;

/// What is known of a layer when its archive is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) entries: u64,
    pub(crate) size_bytes: u64,
    pub(crate) diff_id: Digest,
    /// Whether the archive says something about `/` itself.
    pub(crate) has_root: bool,
}

/// How an archive is written.
pub(crate) struct Archiving<'a> {
    /// No time is later than this.
    pub(crate) latest_s: Option<i64>,
    /// Whether an entry for `/` is written.
    pub(crate) root: bool,
    /// Asked now and then whether to go on.
    pub(crate) go_on: &'a dyn Fn() -> bool,
}

/// Writes the archive of the folder `upper` to `sink`.
pub(crate) fn archive(upper: &Path, sink: &mut dyn Write, how: &Archiving<'_>) -> Result<Written> {
    let opened = File::open(upper).map_err(|error| Error::io("open", upper, error))?;
    let mut writer = Writer {
        sink,
        hasher: Hasher::new(Algorithm::Sha256),
        size_bytes: 0,
        entries: 0,
        links: HashMap::new(),
        how,
        upper,
    };
    if how.root {
        let stat = fstat(&opened).map_err(|error| writer.failed("look at", b"/", error))?;
        let entry = Head { name: b"./", kind: b'5', stat: &stat, size: 0, target: b"", device: None };
        writer.head(&entry, &[])?;
    }
    writer.folder(opened.as_fd(), &[])?;
    // The end of an archive: two empty records.
    writer.write(&[0; 1024])?;
    Ok(Written {
        entries: writer.entries,
        size_bytes: writer.size_bytes,
        diff_id: writer.hasher.finish(),
        has_root: how.root,
    })
}

struct Writer<'a> {
    sink: &'a mut dyn Write,
    hasher: Hasher,
    size_bytes: u64,
    entries: u64,
    /// Files with several names: the first one, by device and number.
    links: HashMap<(u64, u64), Vec<u8>>,
    how: &'a Archiving<'a>,
    upper: &'a Path,
}

/// What one header says.
struct Head<'a> {
    name: &'a [u8],
    kind: u8,
    stat: &'a FileStat,
    size: u64,
    target: &'a [u8],
    device: Option<(u64, u64)>,
}

/// Extended attributes by name.
type Attributes = Vec<(CString, Vec<u8>)>;

impl Writer<'_> {
    fn failed(&self, action: &'static str, name: &[u8], error: impl Into<io::Error>) -> Error {
        let name = String::from_utf8_lossy(name).into_owned();
        Error::io(action, &self.upper.join(name.trim_start_matches('/')), error.into())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.size_bytes += bytes.len() as u64;
        self.sink.write_all(bytes).map_err(|error| Error::io("write the layer of", self.upper, error))
    }

    fn folder(&mut self, folder: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
        for name in self.names(folder, path)? {
            if !(self.how.go_on)() {
                return Err(Error::Interrupted("a layer".to_owned()));
            }
            let path = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
            self.entry(folder, &name, &path)?;
        }
        Ok(())
    }

    fn names(&self, folder: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut dir =
            Dir::openat(folder, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|error| self.failed("list", path, error))?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(|error| self.failed("list", path, error))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort();
        Ok(names)
    }

    fn entry(&mut self, folder: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
        let stat = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|error| self.failed("look at", path, error))?;
        match kind(&stat) {
            SFlag::S_IFCHR if stat.st_rdev == 0 => return self.whiteout(&stat, path),
            // It means nothing without the process that listened on it.
            SFlag::S_IFSOCK => {
                return unlinkat(folder, name, UnlinkatFlags::NoRemoveDir)
                    .map_err(|error| self.failed("remove the socket", path, error));
            }
            _ => {}
        }
        let (attributes, is_opaque) = self.attributes(folder, name, path)?;
        match kind(&stat) {
            SFlag::S_IFDIR => {
                let slashed = [path, b"/"].concat();
                let head =
                    Head { name: &slashed, kind: b'5', stat: &stat, size: 0, target: b"", device: None };
                self.head(&head, &attributes)?;
                if is_opaque {
                    let mark = [path, b"/.wh..wh..opq"].concat();
                    self.marker(&stat, &mark)?;
                }
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let inner = openat(folder, name, flags, Mode::empty())
                    .map_err(|error| self.failed("open", path, error))?;
                self.folder(inner.as_fd(), path)?;
            }
            SFlag::S_IFREG => self.file(folder, name, path, &stat, &attributes)?,
            SFlag::S_IFLNK => {
                let target = readlinkat(folder, name).map_err(|error| self.failed("read", path, error))?;
                let target = target.into_encoded_bytes();
                let head =
                    Head { name: path, kind: b'2', stat: &stat, size: 0, target: &target, device: None };
                self.head(&head, &attributes)?;
            }
            other => {
                let kind = if other == SFlag::S_IFCHR {
                    b'3'
                } else if other == SFlag::S_IFBLK {
                    b'4'
                } else {
                    b'6'
                };
                let device = Some((major(stat.st_rdev), minor(stat.st_rdev)));
                let head = Head { name: path, kind, stat: &stat, size: 0, target: b"", device };
                self.head(&head, &attributes)?;
            }
        }
        self.set_time(folder, name, path, &stat)
    }

    /// The folder gets the time that the archive has.
    fn set_time(&self, folder: BorrowedFd<'_>, name: &[u8], path: &[u8], stat: &FileStat) -> Result<()> {
        let time_s = self.time(stat);
        if stat.st_mtime == time_s && stat.st_mtime_nsec == 0 {
            return Ok(());
        }
        let time = TimeSpec::new(time_s, 0);
        utimensat(folder, name, &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(|error| self.failed("set the time of", path, error))
    }

    fn time(&self, stat: &FileStat) -> i64 {
        self.how.latest_s.map_or(stat.st_mtime, |latest| latest.min(stat.st_mtime)).max(0)
    }

    /// What is kept of the attributes, and whether overlayfs has marked the folder as opaque. What is not kept
    /// is taken away, but for that mark.
    fn attributes(&self, folder: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(Attributes, bool)> {
        let failed = |error: Errno| self.failed("read the attributes of", path, error);
        let mut kept = Vec::new();
        let mut is_opaque = false;
        let mut names = sys::list_xattrs(folder, name).map_err(failed)?;
        names.sort();
        for attribute in names {
            let text = attribute.to_string_lossy();
            if attribute.as_c_str() == sys::OVERLAY_OPAQUE {
                let value = sys::get_xattr(folder, name, &attribute).map_err(failed)?;
                is_opaque |= value.as_deref() == Some(b"y");
            } else if text == "trusted.overlay.redirect" || text == "trusted.overlay.metacopy" {
                return Err(Error::document(
                    format!("the change of {}", String::from_utf8_lossy(path)),
                    "this kernel's overlayfs keeps moved folders as references, which can't become a layer: load the \
                     module with redirect_dir=off and metacopy=off",
                ));
            } else if is_kept(&text) {
                if let Some(value) = sys::get_xattr(folder, name, &attribute).map_err(failed)? {
                    kept.push((attribute, value));
                }
            } else {
                match sys::remove_xattr(folder, name, &attribute) {
                    // The machine's own labels can't always be taken away, and mean nothing elsewhere.
                    Ok(()) | Err(Errno::ENODATA | Errno::EPERM | Errno::EACCES | Errno::ENOTSUP) => {}
                    Err(error) => return Err(failed(error)),
                }
            }
        }
        Ok((kept, is_opaque))
    }

    fn whiteout(&mut self, stat: &FileStat, path: &[u8]) -> Result<()> {
        let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        let name = [&path[..at], b".wh.", &path[at..]].concat();
        self.marker(stat, &name)
    }

    /// A file without content or owner, at no time: what it is called is all that it says.
    fn marker(&mut self, stat: &FileStat, name: &[u8]) -> Result<()> {
        let mut stat = *stat;
        (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime) = (0, 0, 0, 0);
        self.head(&Head { name, kind: b'0', stat: &stat, size: 0, target: b"", device: None }, &[])
    }

    fn file(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &FileStat,
        attributes: &Attributes,
    ) -> Result<()> {
        if stat.st_nlink > 1 {
            let number = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&number).cloned() {
                return self.head(
                    &Head { name: path, kind: b'1', stat, size: 0, target: &first, device: None },
                    &[],
                );
            }
            self.links.insert(number, path.to_vec());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.head(&Head { name: path, kind: b'0', stat, size, target: b"", device: None }, attributes)?;
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd =
            openat(folder, name, flags, Mode::empty()).map_err(|error| self.failed("open", path, error))?;
        let mut file = File::from(fd).take(size);
        let mut buffer = vec![0; 128 << 10];
        let mut copied = 0;
        while copied < size {
            let count = file.read(&mut buffer).map_err(|error| self.failed("read", path, error))?;
            if count == 0 {
                let error = io::Error::other("it became shorter while it was read");
                return Err(self.failed("read", path, error));
            }
            self.write(&buffer[..count])?;
            copied += count as u64;
        }
        self.write(padding(size))
    }

    fn head(&mut self, head: &Head<'_>, attributes: &[(CString, Vec<u8>)]) -> Result<()> {
        self.entries += 1;
        let header = Header {
            path: head.name,
            flag: head.kind,
            mode: head.stat.st_mode & 0o7777,
            owner: (u64::from(head.stat.st_uid), u64::from(head.stat.st_gid)),
            size: head.size,
            mtime: self.time(head.stat),
            target: head.target,
            device: head.device,
        };
        self.write(&header.blocks(attributes))
    }
}
