//! Several layer folders read as the one file system that overlayfs makes of them, folder by folder.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use crate::error::{Error, Result};
use crate::sys;

/// The marks of overlayfs features that the runtime does not use: a folder that has them shows more than
/// what lies in it.
const UNREADABLE: [&std::ffi::CStr; 2] = [c"trusted.overlay.redirect", c"trusted.overlay.metacopy"];

/// What a name is in the topmost layer folder that has it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Which part of the [`Merged`] has it.
    pub(super) part: usize,
    pub(crate) stat: FileStat,
}

impl Seen {
    pub(crate) fn kind(&self) -> SFlag {
        kind(&self.stat)
    }

    pub(crate) fn is_folder(&self) -> bool {
        self.kind() == SFlag::S_IFDIR
    }

    pub(crate) fn is_whiteout(&self) -> bool {
        is_whiteout(&self.stat)
    }
}

/// One folder: its versions in the layer folders that contribute to it, topmost first.
#[derive(Debug)]
pub(crate) struct Merged {
    /// With the number of the layer folder that it is of.
    parts: Vec<(usize, OwnedFd)>,
    /// From the root, for messages and for the archive; without a leading slash.
    pub(super) path: Vec<u8>,
}

impl Merged {
    /// The roots of the layer folders.
    pub(crate) fn root<'a>(folders: impl IntoIterator<Item = &'a Path>) -> Result<Merged> {
        let open = |(number, folder): (usize, &Path)| {
            let file = File::open(folder).map_err(|error| Error::io("open", folder, error))?;
            Ok((number, OwnedFd::from(file)))
        };
        let parts = folders.into_iter().enumerate().map(open).collect::<Result<_>>()?;
        Ok(Merged { parts, path: Vec::new() })
    }

    /// The real path of `name` in it.
    pub(crate) fn child(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [self.path.as_slice(), b"/", name].concat() }
    }

    /// Which layer folder a part is of.
    pub(super) fn layer(&self, part: usize) -> usize {
        self.parts.get(part).map_or(0, |(number, _)| *number)
    }

    /// Every name with its topmost version, whiteouts too.
    pub(crate) fn list(&self) -> Result<BTreeMap<Vec<u8>, Seen>> {
        let mut seen = BTreeMap::new();
        for (part, (_, fd)) in self.parts.iter().enumerate() {
            let fail = |error: Errno| self.fail(b"", "list", error);
            let mut folder = Dir::from_fd(reopen(fd.as_fd()).map_err(fail)?).map_err(fail)?;
            for entry in folder.iter() {
                let entry = entry.map_err(fail)?;
                let name = entry.file_name().to_bytes();
                if matches!(name, b"." | b"..") || seen.contains_key(name) {
                    continue;
                }
                match fstatat(fd, entry.file_name(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                    Ok(stat) => drop(seen.insert(name.to_vec(), Seen { part, stat })),
                    // The container has just removed it.
                    Err(Errno::ENOENT) => {}
                    Err(error) => return Err(self.fail(name, "look at", error)),
                }
            }
        }
        Ok(seen)
    }

    /// One name, where it is not hidden; `None` where nothing shows.
    pub(super) fn look(&self, name: &[u8]) -> Result<Option<Seen>> {
        for (part, (_, fd)) in self.parts.iter().enumerate() {
            match fstatat(fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) if is_whiteout(&stat) => return Ok(None),
                Ok(stat) => return Ok(Some(Seen { part, stat })),
                Err(Errno::ENOENT) => {}
                Err(error) => return Err(self.fail(name, "look at", error)),
            }
        }
        Ok(None)
    }

    /// The folder `name` in it; `None` where it is none (any more).
    pub(crate) fn enter(&self, name: &[u8]) -> Result<Option<Merged>> {
        let path = self.child(name);
        let mut parts = Vec::new();
        for (number, fd) in &self.parts {
            match open_folder(fd.as_fd(), name) {
                Ok(opened) => {
                    self.check_readable(fd.as_fd(), name)?;
                    let is_opaque = is_opaque(fd.as_fd(), name)
                        .map_err(|error| self.fail(name, "read the attributes of", error))?;
                    parts.push((*number, opened));
                    if is_opaque {
                        break;
                    }
                }
                Err(Errno::ENOENT) => {}
                // A whiteout, or something else in its place: what lies below does not show.
                Err(Errno::ENOTDIR | Errno::ELOOP) => break,
                Err(error) => return Err(self.fail(name, "open", error)),
            }
        }
        Ok((!parts.is_empty()).then_some(Merged { parts, path }))
    }

    /// Whether the topmost version of the folder `name` hides what lies below it.
    pub(crate) fn hides_below(&self, name: &[u8], seen: &Seen) -> Result<bool> {
        is_opaque(self.fd(seen), name).map_err(|error| self.fail(name, "read the attributes of", error))
    }

    /// The target of a link; `None` where it is none any more.
    pub(super) fn target(&self, name: &[u8], seen: &Seen) -> Result<Option<Vec<u8>>> {
        match readlinkat(self.fd(seen), name) {
            Ok(target) => Ok(Some(target.into_encoded_bytes())),
            Err(Errno::EINVAL | Errno::ENOENT) => Ok(None),
            Err(error) => Err(self.fail(name, "read the link", error)),
        }
    }

    /// Opens a regular file and gives its length; `None` where it is none any more. That its content is all here
    /// [`xattrs`](Self::xattrs) has told.
    pub(super) fn file(&self, name: &[u8], seen: &Seen) -> Result<Option<(File, FileStat)>> {
        // Without O_NONBLOCK a pipe that has just taken the file's place would make us wait.
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
            .resolve(beneath());
        let opened = match openat2(self.fd(seen), name, how) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO) => return Ok(None),
            Err(error) => return Err(self.fail(name, "open", error)),
        };
        let stat = fstat(&opened).map_err(|error| self.fail(name, "look at", error))?;
        Ok((kind(&stat) == SFlag::S_IFREG).then(|| (File::from(opened), stat)))
    }

    /// The extended attributes that an image carries; an error where overlayfs' own say that there is more than this.
    pub(super) fn xattrs(&self, name: &[u8], seen: &Seen) -> Result<Vec<(CString, Vec<u8>)>> {
        let fail = |error| self.fail(name, "read the attributes of", error);
        let mut kept = Vec::new();
        let names = match sys::list_xattrs(self.fd(seen), name) {
            Ok(names) => names,
            Err(Errno::ENOENT) => return Ok(kept),
            Err(error) => return Err(fail(error)),
        };
        if names.iter().any(|attribute| UNREADABLE.contains(&attribute.as_c_str())) {
            return Err(self.unreadable(name));
        }
        for attribute in names.into_iter().filter(|attribute| is_kept(attribute.to_bytes())) {
            if let Some(value) = sys::get_xattr(self.fd(seen), name, &attribute).map_err(fail)? {
                kept.push((attribute, value));
            }
        }
        kept.sort();
        Ok(kept)
    }

    /// The root's own state.
    pub(crate) fn own_stat(&self) -> Result<FileStat> {
        let Some((_, fd)) = self.parts.first() else {
            return Err(self.fail(b"", "look at", Errno::ENOENT));
        };
        fstat(fd).map_err(|error| self.fail(b"", "look at", error))
    }

    fn fd(&self, seen: &Seen) -> BorrowedFd<'_> {
        // `seen` is of this folder, so its part is there; the first one is a harmless stand-in.
        let part = self.parts.get(seen.part).unwrap_or(&self.parts[0]);
        part.1.as_fd()
    }

    /// The folder in the topmost layer folder that has it.
    pub(crate) fn upper(&self) -> BorrowedFd<'_> {
        self.parts[0].1.as_fd()
    }

    fn check_readable(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        for mark in UNREADABLE {
            let found = sys::get_xattr(parent, name, mark);
            if found.map_err(|error| self.fail(name, "read the attributes of", error))?.is_some() {
                return Err(self.unreadable(name));
            }
        }
        Ok(())
    }

    fn unreadable(&self, name: &[u8]) -> Error {
        let reason = io::Error::other(
            "overlayfs wrote it with redirect_dir or metacopy, which this version can't read: switch them off \
             (/sys/module/overlay/parameters) and make the container anew",
        );
        Error::Changes { path: shown(&self.child(name)), action: "read", source: reason }
    }

    pub(crate) fn fail(&self, name: &[u8], action: &'static str, source: impl Into<io::Error>) -> Error {
        let path = if name.is_empty() { self.path.clone() } else { self.child(name) };
        Error::Changes { path: shown(&path), action, source: source.into() }
    }
}

/// Whether an extended attribute belongs to the file rather than to the machine: `user.*` and file capabilities.
pub(crate) fn is_kept(attribute: &[u8]) -> bool {
    attribute == b"security.capability"
        || (attribute.starts_with(b"user.") && !attribute.starts_with(b"user.overlay."))
}

/// A path as messages have it.
pub(super) fn shown(path: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(path).chars().take(200).collect();
    format!("/{}", text.escape_default())
}

pub(super) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn is_whiteout(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

fn is_opaque(parent: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    match sys::get_xattr(parent, name, sys::OVERLAY_OPAQUE) {
        Ok(value) => Ok(value.is_some_and(|value| value == b"y")),
        Err(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn beneath() -> ResolveFlag {
    ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV
}

fn open_folder(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(beneath());
    openat2(parent, name, how)
}

/// A descriptor with a position of its own, for listing.
fn reopen(folder: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    nix::fcntl::openat(folder, c".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}
