//! The system calls that neither std nor nix offers, each as a small safe function. All `unsafe` of this crate is here
//! and in the modules below.
//!
//! The new mount interface (fsopen, open_tree, move_mount, mount_setattr) is used throughout, because it mounts on a
//! descriptor: nobody can put a link between the check of a target and its use.

mod ahead;
mod arena;
mod bpf;
mod directory;
mod mount;
mod process;
mod processors;
mod shared;
mod task;
mod terminal;

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::ptr;

pub(crate) use ahead::*;
pub use arena::Arena;
pub(crate) use arena::make_ready;
pub(crate) use bpf::*;
pub(crate) use directory::entries;
pub(crate) use mount::*;
pub(crate) use process::*;
pub(crate) use processors::{Away, Here, keep_here, may_be_everywhere};
pub(crate) use shared::SharedWord;
pub(crate) use task::*;
pub(crate) use terminal::*;

/// The current directory, for calls that take a directory descriptor.
pub(crate) const CWD: RawFd = libc::AT_FDCWD;

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
pub(crate) const CLONE_NEWTIME: i32 = 0x80;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Names a system call that an older kernel does not have, with the version that does.
fn since(call: &'static str, version: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |error| match error.raw_os_error() {
        Some(libc::ENOSYS) => {
            let text = format!("this kernel has no {call}: Linux {version} and later have it");
            io::Error::new(io::ErrorKind::Unsupported, text)
        }
        _ => error,
    }
}

fn check_fd(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel has just returned this descriptor to us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Renames a file, unless there is one of the new name.
pub(crate) fn rename_new(from: &CStr, to: &CStr) -> io::Result<()> {
    let (from, to) = (from.as_ptr(), to.as_ptr());
    // SAFETY: both paths live through the call.
    check(unsafe { libc::syscall(libc::SYS_renameat2, CWD, from, CWD, to, libc::RENAME_NOREPLACE) }).map(drop)
}

/// The absolute path without links, as [`std::fs::canonicalize`], which has libc allocate.
pub(crate) fn real_path(path: &Path) -> io::Result<PathBuf> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut found = [0; libc::PATH_MAX as usize];
    // SAFETY: the path lives through the call, and realpath writes at most PATH_MAX bytes, with the zero at the end.
    if unsafe { libc::realpath(path.as_ptr(), found.as_mut_ptr().cast()) }.is_null() {
        return Err(io::Error::last_os_error());
    }
    let found = CStr::from_bytes_until_nul(&found).map_err(io::Error::other)?;
    Ok(Path::new(OsStr::from_bytes(found.to_bytes())).to_owned())
}

/// Takes ownership of a descriptor that this process was given by number at exec.
pub(crate) fn adopt_fd(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only reads the descriptor table.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) }.into())?;
    // SAFETY: the descriptor is open, and by contract of the re-exec it was passed to this process for this one use.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets or clears close-on-exec.
pub(crate) fn set_cloexec(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let flags = if on { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: F_SETFD takes an integer and touches no memory.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, flags) }.into()).map(drop)
}

/// Makes reads and writes return at once.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take integers and touch no memory.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    check(flags.into())?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }.into()).map(drop)
}

/// A pipe, both ends close-on-exec: (read end, write end).
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two descriptors.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }.into())?;
    // SAFETY: pipe2 has just made both, nobody else owns them.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Closes every descriptor from `first` to `last`, or marks them close-on-exec.
pub(crate) fn close_range(first: u32, last: u32, only_mark: bool) -> io::Result<()> {
    let flags: libc::c_uint = if only_mark { 4 } else { 0 };
    // SAFETY: takes integers. Descriptors above `first` are not used by their owners afterwards: the monitor calls it
    // before it has opened any, and the container's process only marks them.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) })
        .map(drop)
        .map_err(since("close_range", "5.11"))
}

/// Closes every descriptor beyond standard error that would not outlive an exec, but for those in `keep`.
pub(crate) fn close_marked(keep: &[RawFd]) -> io::Result<()> {
    // Numbers are given from below, so a long gap is the end.
    let (mut number, mut gap) = (3, 0);
    while gap < 128 {
        // SAFETY: F_GETFD only reads the descriptor table.
        match unsafe { libc::fcntl(number, libc::F_GETFD) } {
            flags if flags < 0 => gap += 1,
            flags => {
                gap = 0;
                if flags & libc::FD_CLOEXEC != 0 && !keep.contains(&number) {
                    // SAFETY: takes integers. Its owner belongs to the program before the clone, of which nothing runs
                    // any more in this process, not even its destructors.
                    check(unsafe { libc::syscall(libc::SYS_close_range, number, number, 0) })?;
                }
            }
        }
        number += 1;
    }
    Ok(())
}

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// `openat2` with the given resolve flags; the descriptor is close-on-exec.
pub(crate) fn openat2(dir: RawFd, path: &CStr, flags: i32, mode: u32, resolve: u64) -> io::Result<OwnedFd> {
    let flags = (flags | libc::O_CLOEXEC) as u64;
    let how = OpenHow { flags, mode: mode.into(), resolve };
    loop {
        // SAFETY: path and how live through the call, and the size given is how's.
        let result = unsafe {
            libc::syscall(libc::SYS_openat2, dir, path.as_ptr(), &raw const how, mem::size_of::<OpenHow>())
        };
        // EAGAIN: a rename ran beside us and the kernel could not tell whether `..` left the root; look again.
        match check_fd(result) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
            other => return other.map_err(since("openat2", "5.6")),
        }
    }
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Makes a child process with the new namespaces of `flags`, in `cgroup` (a cgroup2 directory) if one is given. Returns
/// the child's pid, and `None` in the child. The caller has to be single-threaded, but for a thread of
/// [`begin_ahead`].
///
/// With CLONE_PARENT in `flags` the new process is a child of our parent, which is told of its end as of ours.
pub(crate) fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<i32>> {
    let exit_signal = if flags & libc::CLONE_PARENT as u64 == 0 { libc::SIGCHLD as u64 } else { 0 };
    let mut args = CloneArgs { flags, exit_signal, ..CloneArgs::default() };
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and a stack this is a fork: the child goes on with a copy of our memory. No lock is held by
    // a thread that the copy does not have: the only other thread there may be takes none.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, mem::size_of::<CloneArgs>()) })
        .map_err(since("clone3", "5.7"))?;
    Ok(if pid == 0 { None } else { Some(pid as i32) })
}

/// Makes a process as [`clone3`] does, but one that is a child of our parent, which finds its pid in the word: before it
/// does anything, and beyond its reach, since it does not have that memory. A single system call, and one that filters
/// know for long.
pub(crate) fn clone_sibling(flags: u64, word: &SharedWord) -> io::Result<Option<i32>> {
    let flags = flags | (libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID) as u64;
    // SAFETY: as in clone3. The word lives through the call, and the pid is written to it as a whole.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, flags, 0_u64, word.as_ptr(), 0_u64, 0_u64) })?;
    Ok(if pid == 0 { None } else { Some(pid as i32) })
}

/// Ends this process at once, without running destructors or flushing anything that belongs to the parent.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Joins a namespace of the kind given.
pub(crate) fn setns(namespace: BorrowedFd<'_>, kind: i32) -> io::Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { libc::setns(namespace.as_raw_fd(), kind) }.into()).map(drop)
}

/// Leaves shared state behind, such as the cgroup namespace.
pub(crate) fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: takes an integer only.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// Makes a device node or FIFO below `dir`.
pub(crate) fn mknodat(dir: BorrowedFd<'_>, name: &CStr, mode: u32, major: u32, minor: u32) -> io::Result<()> {
    // SAFETY: the name lives through the call.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, libc::makedev(major, minor)) }.into())
        .map(drop)
}

/// What a descriptor refers to.
pub(crate) fn fstat(fd: BorrowedFd<'_>) -> io::Result<libc::stat> {
    // SAFETY: a stat of zeros is a valid value, and the kernel fills it.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: stat has the kernel's layout.
    check(unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) }.into())?;
    Ok(stat)
}

/// The magic number of the file system that a descriptor is on.
pub(crate) fn filesystem_magic(fd: BorrowedFd<'_>) -> io::Result<i64> {
    // SAFETY: a statfs of zeros is a valid value, and the kernel fills it.
    let mut statfs: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: statfs has the kernel's layout.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut statfs) }.into())?;
    Ok(statfs.f_type as i64)
}

/// The user id of the process at the other end of a Unix socket.
pub(crate) fn peer_uid(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut size = mem::size_of::<libc::ucred>() as libc::socklen_t;
    let (socket, level, option) = (socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: the buffer and its size describe `credentials`.
    let result =
        unsafe { libc::getsockopt(socket, level, option, (&raw mut credentials).cast(), &raw mut size) };
    check(result.into())?;
    Ok(credentials.uid)
}

/// This process' effective user id.
pub(crate) fn euid() -> u32 {
    // SAFETY: cannot fail.
    unsafe { libc::geteuid() }
}

/// This process' effective group id.
pub(crate) fn egid() -> u32 {
    // SAFETY: cannot fail.
    unsafe { libc::getegid() }
}

/// Brings the loopback device of this network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    // SAFETY: takes integers only.
    let socket =
        check_fd(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into())?;
    // SAFETY: an ifreq of zeros is valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) }.into())
        .map(drop)
}

/// Sets the host name, or the domain name, of this UTS namespace.
pub(crate) fn set_name(domain: bool, name: &[u8]) -> io::Result<()> {
    let pointer = name.as_ptr().cast();
    let set = if domain { libc::setdomainname } else { libc::sethostname };
    // SAFETY: pointer and length describe `name`.
    let result = unsafe { set(pointer, name.len()) };
    check(result.into()).map(drop)
}

/// Changes owner and group of what a descriptor refers to.
pub(crate) fn fchown(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { libc::fchown(fd.as_raw_fd(), uid, gid) }.into()).map(drop)
}

/// Changes owner and group of a device node by its name.
pub(crate) fn fchownat(dir: BorrowedFd<'_>, name: &CStr, uid: u32, gid: u32) -> io::Result<()> {
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the name lives through the call.
    check(unsafe { libc::fchownat(dir.as_raw_fd(), name.as_ptr(), uid, gid, flags) }.into()).map(drop)
}

/// Puts a descriptor at a number of its own (standard input, output, error), open across exec.
pub(crate) fn dup_to(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: takes integers only; 0 to 2 are not owned by any OwnedFd in this crate.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }.into()).map(drop)
}

/// Whether a wait on these descriptors found something: fills `revents`. -1: wait for ever.
pub(crate) fn poll(fds: &mut [libc::pollfd], timeout_ms: i32) -> io::Result<usize> {
    // SAFETY: pointer and length describe `fds`.
    let count = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
    match check(count.into()) {
        Ok(count) => Ok(count as usize),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        Err(error) => Err(error),
    }
}

/// Has standard input, output and error open: the null device in place of what is not.
pub(crate) fn open_standard() -> io::Result<()> {
    let mut fds = [0, 1, 2].map(|fd| libc::pollfd { fd, events: 0, revents: 0 });
    poll(&mut fds, 0)?;
    for _ in fds.iter().filter(|fd| fd.revents & libc::POLLNVAL != 0) {
        // The lowest number that is free is the next one of those.
        // SAFETY: the path lives through the call.
        check(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) }.into())?;
    }
    Ok(())
}

/// Starts this process' own program anew, with no environment: what the old one had in memory is gone.
pub(crate) fn exec_self(args: &[CString]) -> io::Error {
    let paths = [c"/proc/self/exe".to_owned()];
    let mut errors = execve(&paths, args, &[]);
    errors.pop().unwrap_or_else(io::Error::last_os_error)
}

/// Gives a descriptor up to its number, for a program that is about to be executed.
pub(crate) fn into_number(fd: OwnedFd) -> io::Result<RawFd> {
    use std::os::fd::AsFd;
    set_cloexec(fd.as_fd(), false)?;
    Ok(fd.into_raw_fd())
}

/// A write lock on a part of a file: from a byte on so many, 0 for all.
fn write_lock(start: i64, length: i64) -> libc::flock {
    // SAFETY: a flock of zeros is valid: from the start, without end.
    let mut lock: libc::flock = unsafe { mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    (lock.l_start, lock.l_len) = (start, length);
    lock
}

/// Locks a file, by the open file description: those who inherit the descriptor hold the lock, too. Fails at once if it is
/// locked.
pub(crate) fn lock_file(file: BorrowedFd<'_>) -> io::Result<()> {
    let lock = write_lock(0, 0);
    // SAFETY: the lock lives through the call.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }.into()).map(drop)
}

/// Whether another one holds the lock of a file. Only asks, so that askers do not get into each other's way.
pub(crate) fn is_locked(file: BorrowedFd<'_>) -> io::Result<bool> {
    is_held(file, write_lock(0, 1))
}

/// Whether another one has marked a file.
pub(crate) fn is_marked(file: BorrowedFd<'_>) -> io::Result<bool> {
    is_held(file, write_lock(1, 1))
}

fn is_held(file: BorrowedFd<'_>, mut lock: libc::flock) -> io::Result<bool> {
    // SAFETY: the lock lives through the call, and the kernel fills it.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) }.into())?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// Takes the next connection of a listening socket.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    loop {
        // SAFETY: no address is asked for.
        let result = unsafe {
            libc::accept4(listener.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), libc::SOCK_CLOEXEC)
        };
        match check_fd(result.into()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Marks a file for as long as this process lives, or takes the mark away. It is a lock of another byte than that of
/// [`wait_for_lock`].
pub(crate) fn mark(file: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let mut lock = write_lock(1, 1);
    if !on {
        lock.l_type = libc::F_UNLCK as libc::c_short;
    }
    // SAFETY: the lock lives through the call.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const lock) }.into()).map(drop)
}

/// Locks a file for this process and no child of it, however long another one holds the lock. It is lost when the file is
/// closed, or opened again and closed.
pub(crate) fn wait_for_lock(file: BorrowedFd<'_>) -> io::Result<()> {
    let lock = write_lock(0, 1);
    loop {
        // SAFETY: the lock lives through the call.
        match check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLKW, &raw const lock) }.into()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(drop),
        }
    }
}

/// Whether a descriptor is open.
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD only reads the descriptor table.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_system_call_is_named_with_the_kernel_that_has_it() {
        let named = |errno| since("openat2", "5.6")(io::Error::from_raw_os_error(errno));
        assert_eq!(
            named(libc::ENOSYS).to_string(),
            "this kernel has no openat2: Linux 5.6 and later have it"
        );
        assert_eq!(named(libc::ENOENT).raw_os_error(), Some(libc::ENOENT));
    }
}
