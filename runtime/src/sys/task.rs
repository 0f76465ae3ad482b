//! What a process has beside its memory and files: its scheduling, its memory policy, its personality, its keys.

use std::ffi::{CStr, CString};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::check;

const IOPRIO_WHO_PROCESS: i32 = 1;
const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
const KEYCTL_SETPERM: i32 = 5;

/// What sched_setattr(2) takes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SchedAttr {
    /// Filled in when it is set.
    pub(crate) size: u32,
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

/// Sets the scheduling of a process; 0: of this one.
pub(crate) fn sched_setattr(pid: i32, attr: &SchedAttr) -> io::Result<()> {
    let attr = SchedAttr { size: mem::size_of::<SchedAttr>() as u32, ..*attr };
    // SAFETY: attr lives through the call and says its size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attr, 0) }).map(drop)
}

/// Sets the CPUs that this process may run on, as a mask of machine words.
pub(crate) fn sched_setaffinity(mask: &[u64]) -> io::Result<()> {
    let size = mem::size_of_val(mask);
    // SAFETY: pointer and size describe `mask`.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size, mask.as_ptr()) }).map(drop)
}

/// Sets this process' priority for disks: class and level as ioprio_set(2) packs them.
pub(crate) fn ioprio_set(priority: i32) -> io::Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) }).map(drop)
}

/// Sets where this process' memory comes from: MPOL_* with its flags, and a mask of nodes.
pub(crate) fn set_mempolicy(mode: i32, nodes: &[u64]) -> io::Result<()> {
    // The kernel takes one bit less than it is told.
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * 64 + 1 };
    let nodes = if nodes.is_empty() { ptr::null() } else { nodes.as_ptr() };
    // SAFETY: the pointer is null, or to as many bits as are given.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, nodes, bits) }).map(drop)
}

/// Sets this process' execution domain.
pub(crate) fn personality(persona: u32) -> io::Result<()> {
    // SAFETY: takes an integer only.
    check(unsafe { libc::personality(persona.into()) }.into()).map(drop)
}

/// Gives this process a session keyring of its own. It has no name, by which others could join it, and is for those alone
/// whose session keyring it is: its user may be that of every container.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    // All for its possessor, nothing for its user, its group and others.
    const PERMISSIONS: u32 = 0x3f00_0000;
    // SAFETY: without a name the kernel makes a new keyring.
    let ring =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, ptr::null::<libc::c_char>()) };
    let ring = check(ring)?;
    // SAFETY: takes integers only.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, ring, PERMISSIONS) }).map(drop)
}

/// The name by which the kernel executed this program: `/dev/fd/<number>` if it was that of a descriptor.
pub(crate) fn executed_as() -> Option<&'static str> {
    // SAFETY: takes an integer.
    let name = unsafe { libc::getauxval(libc::AT_EXECFN) } as *const libc::c_char;
    if name.is_null() {
        return None;
    }
    // SAFETY: the kernel has put a string there, at the end of the stack, where it stays as long as the process.
    unsafe { CStr::from_ptr(name) }.to_str().ok()
}

/// Replaces this process' program by that of a descriptor. Returns only to say why not.
pub(crate) fn execute_file(file: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> io::Error {
    let (args, env) = (super::process::pointers(args), super::process::pointers(env));
    // SAFETY: both lists end with a null, and their strings outlive the call; the path is static.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}
