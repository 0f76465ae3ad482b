//! The new mount interface: a file system is configured, a mount made, changed and attached, each by descriptors.

use std::ffi::CStr;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use super::{check, check_fd, since};

const AT_RECURSIVE: u32 = 0x8000;
const OPEN_TREE_CLONE: u32 = 1;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSCONFIG_CMD_RECONFIGURE: u32 = 7;
const FSPICK_CLOEXEC: u32 = 1;
const FSPICK_EMPTY_PATH: u32 = 8;
const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;

/// Opens a file system for mounting.
pub(crate) fn fsopen(fstype: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the name lives through the call.
    check_fd(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), 1) }).map_err(since("fsopen", "5.2"))
}

/// Sets an extended attribute of what a descriptor refers to, also of one that is open as a mere path.
pub(crate) fn setxattr(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = std::ffi::CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let (data, size) = (value.as_ptr().cast(), value.len());
    // SAFETY: path, name and value live through the call, and the size is the value's.
    check(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), data, size, 0) }.into()).map(drop)
}

/// Opens the file system of a mount for being configured anew.
pub(crate) fn fspick(mount: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = FSPICK_CLOEXEC | FSPICK_EMPTY_PATH;
    // SAFETY: the empty path is static.
    check_fd(unsafe { libc::syscall(libc::SYS_fspick, mount.as_raw_fd(), c"".as_ptr(), flags) })
        .map_err(since("fspick", "5.2"))
}

/// Sets an option of a file system that is being made: a flag, or a key with a value.
pub(crate) fn fsconfig(fs: BorrowedFd<'_>, key: &CStr, value: Option<&CStr>) -> io::Result<()> {
    let command = if value.is_some() { FSCONFIG_SET_STRING } else { FSCONFIG_SET_FLAG };
    let value = value.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: key and value live through the call.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), command, key.as_ptr(), value, 0) })
        .map(drop)
}

/// Makes the configured file system.
pub(crate) fn fsconfig_create(fs: BorrowedFd<'_>) -> io::Result<()> {
    fsconfig_command(fs, FSCONFIG_CMD_CREATE)
}

/// Gives a file system that exists its new options.
pub(crate) fn fsconfig_reconfigure(fs: BorrowedFd<'_>) -> io::Result<()> {
    fsconfig_command(fs, FSCONFIG_CMD_RECONFIGURE)
}

fn fsconfig_command(fs: BorrowedFd<'_>, command: u32) -> io::Result<()> {
    let null = ptr::null::<libc::c_char>();
    // SAFETY: the commands take neither key nor value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), command, null, null, 0) }).map(drop)
}

/// What the kernel has to say about a file system that it did not make or change, if it says anything.
pub(crate) fn fs_message(fs: BorrowedFd<'_>) -> Option<String> {
    let mut buffer = [0; 512];
    let count = nix::unistd::read(fs, &mut buffer).ok()?;
    // `e `, `w ` or `i ` stand in front.
    let text = String::from_utf8_lossy(&buffer[..count]);
    Some(text.get(2..)?.trim_end().to_owned()).filter(|text| !text.is_empty())
}

/// A mount of the file system, attached nowhere yet. `attributes`: MOUNT_ATTR_*.
pub(crate) fn fsmount(fs: BorrowedFd<'_>, attributes: u64) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    check_fd(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), 1, attributes) })
}

/// A copy of the mount (tree) at a path, attached nowhere yet: what a bind mount is made of. With an empty path, of
/// what `dir` refers to.
pub(crate) fn open_tree(dir: RawFd, path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH as u32;
    }
    if recursive {
        flags |= AT_RECURSIVE;
    }
    // SAFETY: the path lives through the call.
    check_fd(unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) })
        .map_err(since("open_tree", "5.2"))
}

/// Attaches a mount on the file or folder that `target` refers to.
pub(crate) fn move_mount(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    let empty = c"".as_ptr();
    // SAFETY: the empty path is static.
    check(unsafe {
        libc::syscall(libc::SYS_move_mount, mount.as_raw_fd(), empty, target.as_raw_fd(), empty, flags)
    })
    .map(drop)
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// Changes a mount (tree): attributes to set and to clear, and the propagation (MS_PRIVATE and its like, 0: as it is).
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    propagation: u64,
    recursive: bool,
) -> io::Result<()> {
    setattr(mount, &MountAttr { set, clear, propagation, userns: 0 }, recursive)
}

/// Shows the files of a mount (tree) that is attached nowhere yet with the owners that a user namespace maps them to.
pub(crate) fn mount_idmap(
    mount: BorrowedFd<'_>,
    user_namespace: BorrowedFd<'_>,
    recursive: bool,
) -> io::Result<()> {
    let userns = user_namespace.as_raw_fd() as u64;
    let attr = MountAttr { set: MOUNT_ATTR_IDMAP, clear: 0, propagation: 0, userns };
    setattr(mount, &attr, recursive)
}

fn setattr(mount: BorrowedFd<'_>, attr: &MountAttr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH as u32 | if recursive { AT_RECURSIVE } else { 0 };
    let (fd, size) = (mount.as_raw_fd(), mem::size_of::<MountAttr>());
    let attr = ptr::from_ref(attr);
    // SAFETY: attr lives through the call, and the size given is its.
    check(unsafe { libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, attr, size) })
        .map(drop)
        .map_err(since("mount_setattr", "5.12"))
}

/// The classic mount call.
pub(crate) fn mount(source: &CStr, target: &CStr, fstype: &CStr, flags: u64, data: &CStr) -> io::Result<()> {
    // SAFETY: all strings live through the call.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            fstype.as_ptr(),
            flags as libc::c_ulong,
            data.as_ptr().cast(),
        )
    };
    check(result.into()).map(drop)
}

/// Makes the current directory the root of the mount namespace; the old root lies on top of it.
pub(crate) fn pivot_root_here() -> io::Result<()> {
    let here = c".".as_ptr();
    // SAFETY: both paths are static. pivot_root(".", ".") stacks the old root on the new one (pivot_root(2)).
    check(unsafe { libc::syscall(libc::SYS_pivot_root, here, here) }).map(drop)
}

/// Takes the mount on top of the current directory away, with all below it.
pub(crate) fn detach_here() -> io::Result<()> {
    // SAFETY: the path is static.
    check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) }.into()).map(drop)
}
