//! Copies what the image has at a place into a new file system that covers it (tmpcopyup). The image is not trusted:
//! everything is found by descriptors of folders and names in them, and no link is followed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{FchmodatFlags, UtimensatFlags};
use nix::sys::stat::{FileStat, Mode, fchmodat, fstat, fstatat, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

use super::files::{BENEATH, NO_SYMLINKS};
use crate::sys;

/// Folders in folders; each level keeps three descriptors open.
const DEPTH: usize = 256;

/// Copies all that is in a folder, and the folder's owner.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let stat = fstat(from)?;
    sys::fchownat(to, c".", stat.st_uid, stat.st_gid)?;
    folder(&open_folder(from, c".")?, to, 0)
}

fn open_folder(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    sys::openat2(dir.as_raw_fd(), name, flags, 0, BENEATH | NO_SYMLINKS)
}

fn folder(from: &OwnedFd, to: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth > DEPTH {
        return Err(io::Error::other(format!("folders are nested more than {DEPTH} deep")));
    }
    let mut entries = Dir::from_fd(from.try_clone()?)?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => {
                mkdirat(to, name, Mode::S_IRWXU)?;
                let (from, to) = (open_folder(from.as_fd(), name)?, open_folder(to, name)?);
                folder(&from, to.as_fd(), depth + 1)?;
            }
            libc::S_IFREG => {
                let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
                let resolve = BENEATH | NO_SYMLINKS;
                let mut source = File::from(sys::openat2(from.as_raw_fd(), name, flags, 0, resolve)?);
                let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
                let mut copy = File::from(sys::openat2(to.as_raw_fd(), name, flags, 0o600, resolve)?);
                io::copy(&mut source, &mut copy)?;
            }
            libc::S_IFLNK => symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?,
            _ => {
                let (major, minor) = (libc::major(stat.st_rdev), libc::minor(stat.st_rdev));
                sys::mknodat(to, name, stat.st_mode, major, minor)?;
            }
        }
        attributes(to, name, &stat)?;
    }
    Ok(())
}

/// Owner first: a change of it takes the set-user-id bit away.
fn attributes(dir: BorrowedFd<'_>, name: &std::ffi::CStr, stat: &FileStat) -> io::Result<()> {
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    fchownat(dir, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFLNK {
        let mode = Mode::from_bits_truncate(stat.st_mode);
        fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    let times = [(stat.st_atime, stat.st_atime_nsec), (stat.st_mtime, stat.st_mtime_nsec)];
    let [accessed, modified] = times.map(|(seconds, nanos)| TimeSpec::new(seconds, nanos));
    utimensat(dir, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}
