//! The system calls that neither std nor nix offers, each as a small safe function. All `unsafe` of this crate is here
//! and in the modules below.
//!
//! The new mount interface (fsopen, open_tree, move_mount, mount_setattr) is used throughout, because it mounts on a
//! descriptor: nobody can put a link between the check of a target and its use.

mod mount;
mod shared;
mod task;
mod terminal;

use std::ffi::{CStr, CString};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;

pub(crate) use mount::*;
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

/// Closes every descriptor from `first` on, or marks them close-on-exec.
pub(crate) fn close_range(first: u32, only_mark: bool) -> io::Result<()> {
    let flags: libc::c_uint = if only_mark { 4 } else { 0 };
    // SAFETY: takes integers. Descriptors above `first` are not used by their owners afterwards: the monitor calls it
    // before it has opened any, and the container's process only marks them.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) })
        .map(drop)
        .map_err(since("close_range", "5.11"))
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
/// the child's pid, and `None` in the child. The caller has to be single-threaded.
///
/// With CLONE_PARENT in `flags` the new process is a child of our parent, which is told of its end as of ours.
pub(crate) fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<i32>> {
    let exit_signal = if flags & libc::CLONE_PARENT as u64 == 0 { libc::SIGCHLD as u64 } else { 0 };
    let mut args = CloneArgs { flags, exit_signal, ..CloneArgs::default() };
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and a stack this is a fork: the child goes on with a copy of our memory. We are
    // single-threaded, so no lock is held by a thread that the copy does not have.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, mem::size_of::<CloneArgs>()) })
        .map_err(since("clone3", "5.7"))?;
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
pub(crate) fn setrlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
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
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
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

/// Loads an eBPF program of the kind that decides on devices; see bpf(2).
pub(crate) fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
    }
    let license = c"Apache-2.0";
    let load = Load {
        prog_type: 15, // BPF_PROG_TYPE_CGROUP_DEVICE
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: all that the attributes point to lives through the call.
    check_fd(unsafe { libc::syscall(libc::SYS_bpf, 5, &raw const load, mem::size_of::<Load>()) })
}

/// A counter that the kernel adds to; reading it never waits.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    check_fd(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }.into())
}

/// What has been added to an eventfd since the last call.
pub(crate) fn take_events(eventfd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut count = 0u64;
    // SAFETY: an eventfd writes eight bytes, for which there is room.
    match check(unsafe { libc::read(eventfd.as_raw_fd(), (&raw mut count).cast(), 8) } as libc::c_long) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other.map(|_| count),
    }
}

const BPF_CGROUP_DEVICE: u32 = 6;

/// Attaches a device program to a cgroup2 directory; it goes when the directory goes. `old`, if given, is replaced at
/// the same moment.
pub(crate) fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    old: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let attach: [u32; 5] = [
        cgroup.as_raw_fd() as u32,
        program.as_raw_fd() as u32,
        BPF_CGROUP_DEVICE,
        // BPF_F_ALLOW_MULTI: groups below may narrow it; BPF_F_REPLACE.
        2 | if old.is_some() { 4 } else { 0 },
        old.map_or(0, |old| old.as_raw_fd() as u32),
    ];
    // SAFETY: the attributes live through the call.
    check(unsafe { libc::syscall(libc::SYS_bpf, 8, attach.as_ptr(), mem::size_of_val(&attach)) }).map(drop)
}

/// The device programs that are attached to a cgroup2 directory itself.
pub(crate) fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    #[repr(C)]
    struct Query {
        target: u32,
        kind: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        pad: u32,
    }
    // The kernel takes 64 programs a group.
    let mut ids = [0u32; 64];
    let mut query = Query {
        target: cgroup.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        pad: 0,
    };
    // SAFETY: the kernel writes at most `count` ids, and the attributes live through the call.
    check(unsafe { libc::syscall(libc::SYS_bpf, 16, &raw mut query, mem::size_of::<Query>()) })?;
    ids[..(query.count as usize).min(ids.len())]
        .iter()
        .map(|id| {
            let attributes: [u32; 3] = [*id, 0, 0];
            // SAFETY: BPF_PROG_GET_FD_BY_ID reads the id only.
            check_fd(unsafe {
                libc::syscall(libc::SYS_bpf, 13, attributes.as_ptr(), mem::size_of_val(&attributes))
            })
        })
        .collect()
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

/// A write lock on a whole file, of the open file description: those who inherit the descriptor hold it, too.
fn whole_file() -> libc::flock {
    // SAFETY: a flock of zeros is valid: from the start, without end.
    let mut lock: libc::flock = unsafe { mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock
}

/// Locks a file; fails at once if it is locked.
pub(crate) fn lock_file(file: BorrowedFd<'_>) -> io::Result<()> {
    let lock = whole_file();
    // SAFETY: the lock lives through the call.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }.into()).map(drop)
}

/// Whether another one holds the lock of a file. Only asks, so that askers do not get into each other's way.
pub(crate) fn is_locked(file: BorrowedFd<'_>) -> io::Result<bool> {
    let mut lock = whole_file();
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

/// Locks a file for this process and no child of it, however long another one holds the lock. It is lost when the file is
/// closed, or opened again and closed.
pub(crate) fn wait_for_lock(file: BorrowedFd<'_>) -> io::Result<()> {
    let lock = whole_file();
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
