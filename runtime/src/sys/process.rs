//! Processes: what they may do, what they execute, their signals and their ends.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use super::{check, check_fd, since};

/// A prctl with integer arguments.
pub(crate) fn prctl(option: i32, a: u64, b: u64) -> io::Result<i64> {
    let zero: libc::c_ulong = 0;
    // SAFETY: only options with integer arguments are passed by the callers in this crate.
    let result = unsafe { libc::prctl(option, a as libc::c_ulong, b as libc::c_ulong, zero, zero) };
    check(result.into())
}

/// Sets the file mode creation mask.
pub(crate) fn umask(mask: u32) {
    // SAFETY: umask cannot fail and touches no memory.
    unsafe { libc::umask(mask) };
}

/// Sets a resource limit of this process.
pub(crate) fn setrlimit(resource: i64, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the limit lives through the call; no old value is asked for.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, ptr::null::<u8>()) })
        .map(drop)
}

/// Becomes another user; groups are left alone if there are none given. Raw calls, since glibc's would look for other
/// threads.
pub(crate) fn become_user(uid: u32, gid: u32, groups: Option<&[u32]>) -> io::Result<()> {
    if let Some(groups) = groups {
        // SAFETY: the pointer and the count describe `groups`.
        check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    }
    // SAFETY: takes integers only.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: takes integers only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

/// This process' effective capabilities, as a bit set.
pub(crate) fn effective_capabilities() -> io::Result<u64> {
    let header = CapHeader { version: 0x2008_0522, pid: 0 };
    let mut data = [[0_u32; 3]; 2];
    // SAFETY: header and data have the layout of version 3: two times (effective, permitted, inheritable).
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    Ok(u64::from(data[1][0]) << 32 | u64::from(data[0][0]))
}

/// Whether the kernel knows this capability, and none behind it.
pub(crate) fn is_last_capability(capability: u32) -> bool {
    let known = |capability: u32| prctl(libc::PR_CAPBSET_READ, capability.into(), 0).is_ok();
    known(capability) && !known(capability + 1)
}

/// Sets this process' capabilities, as bit sets.
pub(crate) fn capset(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let header = CapHeader { version: 0x2008_0522, pid: 0 };
    let word = |half: u32| [effective, permitted, inheritable].map(|set| (set >> (32 * half)) as u32);
    let data = [word(0), word(1)];
    // SAFETY: header and data have the layout of version 3: two times (effective, permitted, inheritable).
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// One instruction of a classic BPF program.
pub(crate) type Instruction = libc::sock_filter;

/// Loads a seccomp filter into this process. Returns the number of the descriptor that tells of filtered calls, if the
/// flags ask for one.
pub(crate) fn load_seccomp(program: &[Instruction], flags: u64) -> io::Result<Option<RawFd>> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let filter = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program lives through the call, and the kernel only reads it.
    let result = check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter)
    })?;
    Ok((flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0).then_some(result as RawFd))
}

/// A list of strings as execve wants it: pointers that end with a null.
pub(super) fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Replaces this process' program, trying each path in turn as execvp(3) does. Returns the error of every try.
pub(crate) fn execve(paths: &[CString], args: &[CString], env: &[CString]) -> Vec<io::Error> {
    let (args, env) = (pointers(args), pointers(env));
    let mut errors = Vec::new();
    for path in paths {
        // SAFETY: both lists end with a null, and their strings outlive the call.
        unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
        let error = io::Error::last_os_error();
        let go_on = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::EACCES));
        errors.push(error);
        if !go_on {
            break;
        }
    }
    errors
}

/// Blocks the signals given in this process and makes a descriptor that reads them.
pub(crate) fn signalfd(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = signal_set(signals);
    // SAFETY: the set is initialised and lives through the calls.
    unsafe {
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()).into())?;
        check_fd(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())
    }
}

fn signal_set(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: a sigset of zeros is valid memory, sigemptyset makes it the empty set, and sigaddset only sets bits.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}

/// Overwrites the environment that this process was given: what is in it is not for everybody who may look into its memory,
/// or into that of a process which it makes.
pub(crate) fn forget_environment() {
    unsafe extern "C" {
        static mut environ: *mut *mut libc::c_char;
    }
    // SAFETY: the list of libc ends with a null, each of its entries is a string in our own writable memory that ends with
    // a NUL, which stays; and there is one thread, so nobody reads them meanwhile.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            ptr::write_bytes(*entry, 0, libc::strlen(*entry));
            entry = entry.add(1);
        }
    }
}

/// Gives every signal its default meaning and blocks none: what a new program expects.
pub(crate) fn reset_signals() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is always a valid disposition. SIGKILL and SIGSTOP refuse, which is as well.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let none = signal_set(&[]);
    // SAFETY: the set is initialised and lives through the call.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) }.into()).map(drop)
}

/// Ignores a signal in this process.
pub(crate) fn ignore_signal(signal: i32) {
    // SAFETY: SIG_IGN is always a valid disposition.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Reaps one child that has ended, if there is one: (pid, wait status).
pub(crate) fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: status is ours to write to.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Waits for one child: its wait status.
pub(crate) fn wait_for(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: status is ours to write to.
        match check(unsafe { libc::waitpid(pid, &raw mut status, 0) }.into()) {
            Ok(_) => return Ok(status),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A descriptor of a process, which no other process can come to stand for.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    check_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).map_err(since("pidfd_open", "5.3"))
}

/// A copy of a descriptor that the process of a pidfd has.
pub(crate) fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    check_fd(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

/// Sends a signal to the process of a pidfd.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo means the one that kill(2) would send.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) }).map(drop)
}

/// Sends a signal to a child that has not been reaped, or to a process of a group that is being killed.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}
