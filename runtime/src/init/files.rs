//! Files of the container, touched by the first process while it can still do everything: so each is found by a
//! descriptor of the root, never followed out of it, and checked to be what it should be.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::stat::Mode;

use crate::sys;

pub(super) const NO_XDEV: u64 = 0x01;
pub(super) const NO_MAGICLINKS: u64 = 0x02;
pub(super) const NO_SYMLINKS: u64 = 0x04;
pub(super) const BENEATH: u64 = 0x08;
pub(super) const IN_ROOT: u64 = 0x10;

pub(super) const PROC_MAGIC: i64 = 0x9fa0;
const SYSFS_MAGIC: i64 = 0x6265_6572;

/// Writes to a file that exists.
pub(super) fn write(dir: RawFd, path: &CStr, value: &[u8]) -> io::Result<()> {
    let file = sys::openat2(dir, path, libc::O_WRONLY | libc::O_NOFOLLOW, 0, 0)?;
    File::from(file).write_all(value)
}

/// Writes to a file of one file system, wherever links and other mounts may have been put.
pub(super) fn write_below(mount: BorrowedFd<'_>, path: &CStr, value: &[u8]) -> io::Result<()> {
    if sys::filesystem_magic(mount)? != PROC_MAGIC {
        return Err(io::Error::other("/proc is not a proc file system"));
    }
    let resolve = NO_XDEV | NO_SYMLINKS | BENEATH;
    let file = sys::openat2(mount.as_raw_fd(), path, libc::O_WRONLY, 0, resolve)?;
    File::from(file).write_all(value)
}

/// Opens what is to be masked or made read-only; `None` if it is not there. No link is followed, and what is below
/// /proc and /sys has to be there for real: a mask on something else would hide nothing.
pub(super) fn open_fixed(root: BorrowedFd<'_>, path: &CStr) -> io::Result<Option<OwnedFd>> {
    let opened =
        match sys::openat2(root.as_raw_fd(), path, libc::O_PATH | libc::O_NOFOLLOW, 0, NO_SYMLINKS | IN_ROOT)
        {
            Ok(opened) => opened,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
    let expected = match path.to_bytes() {
        bytes if bytes.starts_with(b"proc/") => Some((PROC_MAGIC, "proc")),
        // Mounts of their own lie below it, and those are not masked.
        bytes if bytes == b"sys/firmware" || bytes.starts_with(b"sys/devices/") => {
            Some((SYSFS_MAGIC, "sysfs"))
        }
        _ => None,
    };
    if let Some((magic, name)) = expected
        && sys::filesystem_magic(opened.as_fd())? != magic
    {
        return Err(io::Error::other(format!("it is not on a {name} file system")));
    }
    Ok(Some(opened))
}

/// Opens (O_PATH) a folder below the root, made with all above it if it is missing. `resolve`: whether links may be
/// followed inside the root (IN_ROOT) or not at all (IN_ROOT | NO_SYMLINKS).
pub(super) fn make_dirs(root: BorrowedFd<'_>, path: &CStr, resolve: u64) -> io::Result<OwnedFd> {
    match sys::openat2(root.as_raw_fd(), path, libc::O_PATH | libc::O_DIRECTORY, 0, resolve) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => make_absent(root, path, resolve),
        other => other,
    }
}

/// The same for a folder of which it is known that it is not there. Mostly all above it is.
pub(super) fn make_absent(root: BorrowedFd<'_>, path: &CStr, resolve: u64) -> io::Result<OwnedFd> {
    let (parent, name) = split(path)?;
    let above = sys::openat2(root.as_raw_fd(), &parent, libc::O_PATH | libc::O_DIRECTORY, 0, resolve);
    if let Ok(above) = above
        && nix::sys::stat::mkdirat(&above, name.as_c_str(), Mode::from_bits_truncate(0o755)).is_ok()
    {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        return sys::openat2(above.as_raw_fd(), &name, flags, 0, BENEATH | NO_SYMLINKS);
    }
    make_missing(root, path.to_bytes(), resolve, LINKS)
}

/// As many links as the kernel follows in one path.
const LINKS: usize = 40;

fn make_missing(root: BorrowedFd<'_>, bytes: &[u8], resolve: u64, links: usize) -> io::Result<OwnedFd> {
    let missing = |error: &io::Error| error.raw_os_error() == Some(libc::ENOENT);
    let mut parent = root.try_clone_to_owned()?;
    let mut end = 0;
    for name in bytes.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        let start = bytes[end..].iter().position(|byte| *byte != b'/').map_or(end, |skip| end + skip);
        end = start + name.len();
        let prefix = CString::new(&bytes[..end])?;
        let open = || sys::openat2(root.as_raw_fd(), &prefix, libc::O_PATH | libc::O_DIRECTORY, 0, resolve);
        let opened = match open() {
            Err(error) if missing(&error) => {
                let name = CString::new(name)?;
                match nix::sys::stat::mkdirat(&parent, name.as_c_str(), Mode::from_bits_truncate(0o755)) {
                    Ok(()) => open(),
                    Err(nix::errno::Errno::EEXIST) => match open() {
                        // A link to something that is not there: that is made (`/var/run` of an image without `/run`).
                        Err(error) if missing(&error) && links > 0 => {
                            let target = nix::fcntl::readlinkat(&parent, name.as_c_str())?;
                            let target = target.as_encoded_bytes();
                            let above: &[u8] = if target.starts_with(b"/") { b"" } else { &bytes[..start] };
                            let whole = [above, target, &bytes[end..]].concat();
                            return make_missing(root, &whole, resolve, links - 1);
                        }
                        other => other,
                    },
                    Err(errno) => Err(errno.into()),
                }
            }
            other => other,
        };
        parent = opened?;
    }
    Ok(parent)
}

/// Opens (O_PATH) a place to mount a file on, made empty if it is missing.
pub(super) fn make_file(root: BorrowedFd<'_>, path: &CStr, resolve: u64) -> io::Result<OwnedFd> {
    let open = || sys::openat2(root.as_raw_fd(), path, libc::O_PATH, 0, resolve);
    match open() {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        other => return other,
    }
    let (parent, name) = split(path)?;
    let parent = make_dirs(root, &parent, resolve)?;
    let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_NOFOLLOW;
    drop(sys::openat2(parent.as_raw_fd(), &name, flags, 0o644, BENEATH | NO_SYMLINKS)?);
    open()
}

/// Makes a link in a folder that is there.
pub(super) fn make_link(root: BorrowedFd<'_>, path: &CStr, target: &CStr) -> io::Result<()> {
    let (parent, name) = split(path)?;
    let parent = make_dirs(root, &parent, IN_ROOT | NO_SYMLINKS)?;
    match nix::unistd::symlinkat(target, &parent, name.as_c_str()) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

pub(super) fn split(path: &CStr) -> io::Result<(CString, CString)> {
    let bytes = path.to_bytes();
    let (parent, name) = match bytes.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&bytes[..slash], &bytes[slash + 1..]),
        None => (&b"."[..], bytes),
    };
    Ok((CString::new(parent)?, CString::new(name)?))
}

/// Whether this is the null device and no link to something else (CVE-2025-31133).
pub(super) fn check_null(file: BorrowedFd<'_>) -> io::Result<()> {
    let stat = sys::fstat(file)?;
    if stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == libc::makedev(1, 3) {
        return Ok(());
    }
    Err(io::Error::other("/dev/null of the container is not the null device"))
}

/// Makes the working directory, or goes there. Its path is resolved without magic links, so that it cannot be a
/// descriptor of the host (CVE-2024-21626), and it has to be inside the root afterwards.
pub(super) fn working_directory(root: BorrowedFd<'_>, path: &CStr, making: bool) -> io::Result<()> {
    let resolve = IN_ROOT | NO_MAGICLINKS;
    if making {
        return make_dirs(root, path, resolve).map(drop);
    }
    let dir = sys::openat2(root.as_raw_fd(), path, libc::O_PATH | libc::O_DIRECTORY, 0, resolve)?;
    nix::unistd::fchdir(&dir)?;
    let here = nix::unistd::getcwd()?;
    if !here.is_absolute() {
        return Err(io::Error::other("it is outside the container"));
    }
    Ok(())
}
