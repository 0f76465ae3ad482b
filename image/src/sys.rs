//! Raw system calls: what std does not offer, and the only place with `unsafe`.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::error::{Error, Result};

/// On a folder, with the value `y`: overlayfs shows nothing of it from lower layers.
pub(crate) const OVERLAY_OPAQUE: &CStr = c"trusted.overlay.opaque";

/// Sets the extended attribute `name` on `entry` of the folder `parent`, never through a symbolic link.
///
/// Goes by the folder's entry in `/proc/self/fd`, because `fsetxattr` needs a descriptor that is open for
/// reading, which devices and symbolic links can't safely give.
pub(crate) fn set_xattr(
    parent: BorrowedFd<'_>,
    entry: &[u8],
    name: &CStr,
    value: &[u8],
) -> Result<(), Errno> {
    let path = proc_path(parent, entry)?;
    // SAFETY: `path` and `name` are NUL-terminated and live through the call, `value` is readable for
    // the length that is given; the call keeps none of them. nix has no binding for it.
    let result =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(result).map(drop)
}

/// Sets the extended attribute `name` of a file that is open for writing.
pub(crate) fn set_xattr_of(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: `name` is NUL-terminated, `value` readable for the length that is given, and both live through
    // the call, which keeps neither. nix has no binding for it.
    let result =
        unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(result).map(drop)
}

/// The extended attribute `name` of `entry` in the folder `parent`; `None` when it has none.
pub(crate) fn get_xattr(parent: BorrowedFd<'_>, entry: &[u8], name: &CStr) -> Result<Option<Vec<u8>>, Errno> {
    let path = proc_path(parent, entry)?;
    let value = in_room(|value| {
        // SAFETY: as above; `value` is writable for the length that is given.
        let result =
            unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        Errno::result(result)
    });
    match value {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ENODATA | Errno::ENOTSUP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a call writes into a buffer: a small one, and where it is too small the largest that there can be (xattr(7)).
fn in_room(mut call: impl FnMut(&mut [u8]) -> Result<isize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut room = vec![0u8; 256];
    let length = match call(&mut room) {
        Err(Errno::ERANGE | Errno::E2BIG) => {
            room.resize(65536, 0);
            call(&mut room)?
        }
        length => length?,
    };
    room.truncate(usize::try_from(length).unwrap_or(0));
    Ok(room)
}

/// The names of all extended attributes of `entry` in the folder `parent`.
pub(crate) fn list_xattrs(parent: BorrowedFd<'_>, entry: &[u8]) -> Result<Vec<CString>, Errno> {
    let path = proc_path(parent, entry)?;
    let names = in_room(|names| {
        // SAFETY: as above; `names` is writable for the length that is given.
        Errno::result(unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) })
    });
    match names {
        Ok(names) => {
            let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
            Ok(names.filter_map(|name| CString::new(name).ok()).collect())
        }
        Err(Errno::ENOTSUP) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Takes the extended attribute `name` from `entry` of the folder `parent`.
pub(crate) fn remove_xattr(parent: BorrowedFd<'_>, entry: &[u8], name: &CStr) -> Result<(), Errno> {
    let path = proc_path(parent, entry)?;
    // SAFETY: both strings are NUL-terminated and live through the call, which keeps neither.
    Errno::result(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}

/// A file system that is being configured (fsopen(2)).
pub(crate) fn fs_open(kind: &CStr) -> Result<OwnedFd, Errno> {
    // SAFETY: `kind` is NUL-terminated and lives through the call. nix has no binding for it.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    owned(fd)
}

/// Sets an option of it, or makes it when `option` is `None`.
pub(crate) fn fs_config(fs: BorrowedFd<'_>, option: Option<(&CStr, &CStr)>) -> Result<(), Errno> {
    let (command, key, value) = match option {
        Some((key, value)) => (FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr()),
        None => (FSCONFIG_CMD_CREATE, std::ptr::null(), std::ptr::null()),
    };
    // SAFETY: the strings are NUL-terminated and live through the call, or null where the command takes none.
    let done = unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), command, key, value, 0) };
    Errno::result(done).map(drop)
}

/// Mounts it nowhere: it is there as long as the descriptor is.
pub(crate) fn fs_mount(fs: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes nothing but numbers.
    owned(Errno::result(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })?)
}

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

fn owned(fd: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = libc::c_int::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just given it to this call, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Removes the folder `entry` of `parent` with everything in it. The standard library walks it by
/// descriptor and removes links, not what they point to.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, entry: &[u8]) -> io::Result<()> {
    fs::remove_dir_all(OsStr::from_bytes(proc_path(parent, entry)?.as_bytes()))
}

fn proc_path(parent: BorrowedFd<'_>, entry: &[u8]) -> Result<CString, Errno> {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(entry);
    CString::new(path).map_err(|_| Errno::EINVAL)
}

/// Takes the store's lock; `None` when another process has it. A record lock: it is not inherited, so
/// a child that outlives the daemon can't hold it, and it goes with the process, however that ends.
pub(crate) fn lock_file(path: &Path) -> Result<Option<File>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| Error::io("open", path, error))?;
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_SETLK(&whole)) {
        Ok(_) => Ok(Some(file)),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
        Err(error) => Err(Error::io("lock", path, error.into())),
    }
}

/// Makes the folder accessible for its owner, and passable (not listable) for nobody else.
pub(crate) fn make_private(folder: &Path) -> Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o700))
        .map_err(|error| Error::io("change the mode of", folder, error))
}

/// Makes the names in `folder` durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|opened| opened.sync_all()).map_err(|error| Error::io("sync", folder, error))
}

/// Makes the name `path` durable.
pub(crate) fn sync_folder_of(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), sync_folder)
}

/// Writes everything out that the file system of `folder` holds back.
pub(crate) fn sync_filesystem(folder: impl AsFd) -> io::Result<()> {
    nix::unistd::syncfs(folder).map_err(io::Error::from)
}
