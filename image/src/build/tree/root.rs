//! A root file system that is being changed, by descriptor.
//!
//! **Invariant:** every path is resolved by the kernel within the root (`RESOLVE_IN_ROOT`): symbolic links of
//! the image lead to where they lead in a container, and nowhere else. What is made or replaced is named by
//! one component in a folder that was opened so, and never followed.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat};
use nix::unistd::{Gid, Uid, fchown};

use crate::build::error::StepError;

/// As the kernel's own path walk.
const LINKS_MAX: u32 = 40;

/// Mode, owner and group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A root file system.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
}

/// Opens `path` in the folder `root`, which is its `/`.
pub(crate) fn open_in(root: BorrowedFd<'_>, path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let path = if path.is_empty() { "." } else { path };
    // The kernel answers so when something was renamed while it looked.
    for _ in 0..8 {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::EAGAIN)
}

impl Root {
    pub(crate) fn new(fd: OwnedFd) -> Root {
        Root { fd }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What stands at `path`, links followed; `None` when nothing does.
    pub(crate) fn stat(&self, path: &str) -> Result<Option<FileStat>, StepError> {
        match open_in(self.fd(), path, OFlag::O_PATH).and_then(fstat) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(error) => Err(StepError::io("look at", path, error)),
        }
    }

    /// Where the link at `path` leads; `None` when there is no link. Links above it are followed.
    pub(crate) fn link(&self, path: &str) -> Result<Option<String>, StepError> {
        let (above, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path));
        let link = open_in(self.fd(), above, OFlag::O_PATH | OFlag::O_DIRECTORY)
            .and_then(|folder| readlinkat(&folder, name));
        match link {
            Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
            Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(error) => Err(StepError::io("look at", path, error)),
        }
    }

    /// Gives the folder at `path` mode, owner and time of another one.
    pub(crate) fn set_access(&self, path: &str, stat: &FileStat) -> Result<(), StepError> {
        let folder = open_in(self.fd(), path, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        let set = folder.and_then(|folder| {
            fchown(&folder, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
            fchmod(&folder, Mode::from_bits_truncate(stat.st_mode & 0o7777))?;
            let time = nix::sys::time::TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
            nix::sys::stat::futimens(&folder, &time, &time)
        });
        set.map_err(|error| StepError::io("change the mode of", path, error))
    }

    pub(crate) fn is_folder(&self, path: &str) -> Result<bool, StepError> {
        Ok(self.stat(path)?.is_some_and(|stat| is_folder(&stat)))
    }

    /// A file's content, at most so many bytes; `None` when it is not there. Named pipes and devices are not opened.
    pub(crate) fn read(&self, path: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, StepError> {
        use std::io::Read as _;
        let is_file = self.stat(path)?.is_some_and(|stat| kind(&stat) == SFlag::S_IFREG);
        if !is_file {
            return Ok(None);
        }
        let failed = |error: std::io::Error| StepError::io("read", path, error);
        let file = open_in(self.fd(), path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)
            .map_err(|error| failed(error.into()))?;
        let mut bytes = Vec::new();
        File::from(file).take(limit_bytes).read_to_end(&mut bytes).map_err(failed)?;
        Ok(Some(bytes))
    }

    /// The folder at `path`, made with everything above it where it is missing, and whether it was made.
    pub(crate) fn make_folder(&self, path: &str, access: Access) -> Result<(OwnedFd, bool), StepError> {
        self.make(path, access, 0)
    }

    fn make(&self, path: &str, access: Access, links: u32) -> Result<(OwnedFd, bool), StepError> {
        match open_in(self.fd(), path, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(fd) => return Ok((fd, false)),
            Err(Errno::ENOENT) => {}
            Err(Errno::ENOTDIR) => {
                return Err(StepError::Reason(format!(
                    "`{path}` can't be a folder: it, or something above it, is a file in the image"
                )));
            }
            Err(error) => return Err(StepError::io("open", path, error)),
        }
        if links > LINKS_MAX {
            return Err(StepError::Reason(format!("too many symbolic links on the way to `{path}`")));
        }
        let (above, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path));
        let (parent, _) = self.make(above, access, links + 1)?;
        match mkdirat(&parent, name, Mode::from_bits_truncate(access.mode)) {
            Ok(()) => {}
            Err(Errno::EEXIST) => {
                // A link to a folder that is not there: that one is made.
                let target = readlinkat(&parent, name).map_err(|error| StepError::io("make", path, error))?;
                let target = target.to_string_lossy().into_owned();
                let target = if target.starts_with('/') { target } else { format!("{above}/{target}") };
                return self.make(&target, access, links + 1);
            }
            Err(error) => return Err(StepError::io("make", path, error)),
        }
        let made = open_folder(parent.as_fd(), name).map_err(|error| StepError::io("open", path, error))?;
        let set = fchown(&made, Some(Uid::from_raw(access.uid)), Some(Gid::from_raw(access.gid)))
            .and_then(|()| fchmod(&made, Mode::from_bits_truncate(access.mode)));
        set.map_err(|error| StepError::io("change the mode of", path, error))?;
        Ok((made, true))
    }

    /// The folder that holds the file at `path`, and the file's name in it: where `path` is a link, of what it
    /// leads to. Folders that are missing are made.
    pub(crate) fn holder(&self, path: &str, access: Access) -> Result<(OwnedFd, String), StepError> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            let (above, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", &path));
            let (folder, _) = self.make_folder(above, access)?;
            match readlinkat(&folder, name) {
                Ok(target) => {
                    let target = target.to_string_lossy().into_owned();
                    path = if target.starts_with('/') { target } else { format!("{above}/{target}") };
                }
                Err(_) => return Ok((folder, name.to_owned())),
            }
        }
        Err(StepError::Reason(format!("too many symbolic links on the way to `{path}`")))
    }
}

/// Opens the folder `name` of `parent` for reading, which is no link.
pub(crate) fn open_folder(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(parent, name, how)
}

/// What stands under `name` in `parent`, links not followed.
pub(crate) fn stat_in(parent: BorrowedFd<'_>, name: &str) -> Result<Option<FileStat>, Errno> {
    match nix::sys::stat::fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

pub(crate) fn is_folder(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFDIR
}
