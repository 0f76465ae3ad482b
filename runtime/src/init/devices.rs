//! Makes /dev: the nodes, and the links that every container has.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::files::{self, BENEATH, IN_ROOT, NO_SYMLINKS, check_null, make_dirs, split};
use crate::plan::{DEV_LINKS, Device};
use crate::sys;

/// Makes the devices, and the links of /dev. Returns the null device.
pub(super) fn make(root: BorrowedFd<'_>, devices: &[Device], bind: bool) -> io::Result<OwnedFd> {
    sys::umask(0);
    // Most lie in one folder, so the last one is kept.
    let mut folder: Option<(CString, OwnedFd)> = None;
    for device in devices {
        let made = if bind { bind_host(root, device) } else { make_node(root, device, &mut folder) };
        made.map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", device.path.to_string_lossy()))
        })?;
    }
    let dev = make_dirs(root, c"dev", IN_ROOT | NO_SYMLINKS)?;
    for (name, target) in DEV_LINKS {
        match nix::unistd::symlinkat(target, &dev, name) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    null_in(dev.as_fd())
}

/// The null device of a /dev that was brought along, if it has one.
pub(super) fn null(root: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let dev = sys::openat2(root.as_raw_fd(), c"dev", flags, 0, IN_ROOT | NO_SYMLINKS)?;
    match null_in(dev.as_fd()) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        found => found.map(Some),
    }
}

fn null_in(dev: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let null = sys::openat2(dev.as_raw_fd(), c"null", flags, 0, NO_SYMLINKS | BENEATH)?;
    check_null(null.as_fd())?;
    Ok(null)
}

fn make_node(
    root: BorrowedFd<'_>,
    device: &Device,
    folder: &mut Option<(CString, OwnedFd)>,
) -> io::Result<()> {
    let (path, name) = split(&device.path)?;
    let kept = folder.take().filter(|(kept, _)| *kept == path);
    let (_, parent) = match kept {
        Some(kept) => folder.insert(kept),
        None => {
            let opened = make_dirs(root, &path, IN_ROOT | NO_SYMLINKS)?;
            folder.insert((path, opened))
        }
    };
    match sys::mknodat(parent.as_fd(), &name, device.mode, device.major, device.minor) {
        Ok(()) if device.uid == 0 && device.gid == 0 => Ok(()),
        Ok(()) => sys::fchownat(parent.as_fd(), &name, device.uid, device.gid),
        // A /dev that was brought along, in which they are already; null is looked at below.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if device.default {
                Ok(())
            } else {
                is_the_one(parent.as_fd(), &name, device)
            }
        }
        Err(error) => Err(error),
    }
}

/// What is there already may be the device, as in a root file system that is used for the second time.
fn is_the_one(parent: BorrowedFd<'_>, name: &CStr, device: &Device) -> io::Result<()> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let there = sys::openat2(parent.as_raw_fd(), name, flags, 0, NO_SYMLINKS | BENEATH)?;
    let stat = sys::fstat(there.as_fd())?;
    let (kind, number) = (device.mode & libc::S_IFMT, libc::makedev(device.major, device.minor));
    if stat.st_mode & libc::S_IFMT == kind && (kind == libc::S_IFIFO || stat.st_rdev == number) {
        return Ok(());
    }
    Err(io::Error::other("is there already, and is something else than the device: take it out of the root"))
}

/// A FIFO is no device, and can be made. Else the host's node, which has to be the one that is asked for.
fn bind_host(root: BorrowedFd<'_>, device: &Device) -> io::Result<()> {
    if device.mode & libc::S_IFMT == libc::S_IFIFO {
        return make_node(root, device, &mut None);
    }
    let host = [c"/".to_bytes(), device.path.to_bytes(), b"\0"].concat();
    let host = CStr::from_bytes_with_nul(&host).map_err(io::Error::other)?;
    let node = sys::open_tree(sys::CWD, host, false)?;
    let stat = sys::fstat(node.as_fd())?;
    let number = libc::makedev(device.major, device.minor);
    if stat.st_mode & libc::S_IFMT != device.mode & libc::S_IFMT || stat.st_rdev != number {
        return Err(io::Error::other(format!(
            "the host's is another device than {}:{}, and a user namespace can have no other",
            device.major, device.minor
        )));
    }
    let target = files::make_file(root, &device.path, IN_ROOT | NO_SYMLINKS)?;
    let there = sys::fstat(target.as_fd())?;
    // A /dev that was brought along has it already.
    if there.st_mode & libc::S_IFMT == device.mode & libc::S_IFMT && there.st_rdev == number {
        return Ok(());
    }
    sys::move_mount(node.as_fd(), target.as_fd())
}
