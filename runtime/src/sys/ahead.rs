//! What is done for a container while the rest of it is still being thought about: on another processor, by a thread.
//!
//! A network namespace takes the kernel as long as all else of a process, and whether there is to be one is known early.
//! So the thread makes it ([`begin_new_network`]), and sends it to the process that is going to live in it. Before that it
//! reads what is slow to read and always needed ([`mounts`]). In the end it closes what takes long to close ([`close`]).
//!
//! The thread is no thread of std's: this program forks while it runs, and may then have no lock of an allocator in its
//! hands. It does nothing but a few system calls, made without libc, whose `errno` belongs to the thread that made it.

use std::os::fd::{BorrowedFd, OwnedFd};

/// What a message begins with that brings a network namespace. Without a descriptor beside it: there is none.
pub(crate) const NETWORK: u8 = b'N';

/// Begins, where there is a thread; once in a process. To be called when all descriptors are where they are to be: those
/// of the thread come between.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn begin_ahead() {
    thread::start(thread::UNKNOWN);
}

/// Has a network namespace made, and sent over a socket to whoever has the other end; in any case a message that begins with
/// [`NETWORK`]. Its loopback device is down: who gets it has more time for that than this process, which waits for the thread.
/// Once in a process; `false`: nothing will be sent.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn send_new_network(socket: BorrowedFd<'_>) -> bool {
    use std::os::fd::AsRawFd as _;

    let word = thread::SOCKET + socket.as_raw_fd() as u32;
    thread::start(word) || thread::order(word)
}

/// Has a network namespace made, if there is a thread. [`send_new_network`] or [`no_new_network`] say later whether it is
/// wanted.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn begin_new_network() {
    thread::order(thread::MAKE);
}

/// There is nothing more to do for the thread.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn no_new_network() {
    thread::order(thread::NOTHING);
}

/// Waits until the socket that was given to [`send_new_network`] is used no more.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn wait_until_network_is_sent() {
    thread::wait();
}

/// The network namespace that was made, after [`wait_until_network_is_sent`]. Until it is taken it stays open in this
/// process.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn take_network() -> Option<OwnedFd> {
    thread::take_network()
}

/// /proc/self/mountinfo, if it has been read already, or is just being read.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn mounts() -> Option<&'static [u8]> {
    thread::mounts()
}

/// Has the thread do what is left on another processor than ours. Which one it began on was that: but a process that was made
/// [may have ours](super::keep_here).
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn keep_away() {
    thread::keep_away();
}

/// Closes a descriptor beside whatever else is done; the process does not end before that is through.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn close(fd: OwnedFd) {
    use std::os::fd::IntoRawFd as _;

    if thread::close(&fd) {
        let _ = fd.into_raw_fd();
    }
}

/// Elsewhere everything is done when it is needed.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod none {
    pub(crate) fn begin_ahead() {}

    pub(crate) fn send_new_network(_socket: super::BorrowedFd<'_>) -> bool {
        false
    }

    pub(crate) fn begin_new_network() {}

    pub(crate) fn no_new_network() {}

    pub(crate) fn wait_until_network_is_sent() {}

    pub(crate) fn take_network() -> Option<super::OwnedFd> {
        None
    }

    pub(crate) fn mounts() -> Option<&'static [u8]> {
        None
    }

    pub(crate) fn keep_away() {}

    pub(crate) fn close(_fd: super::OwnedFd) {}
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(crate) use none::*;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod thread {
    use std::arch::asm;
    use std::cell::UnsafeCell;
    use std::mem;
    use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
    use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::NETWORK;
    use crate::sys::processors;

    const STACK_BYTES: usize = 16 * 1024;
    /// A longer mountinfo is read when it is needed.
    const MOUNTS_BYTES: usize = 128 * 1024;

    #[repr(C, align(16))]
    struct Memory<const BYTES: usize>(UnsafeCell<[u8; BYTES]>);

    // SAFETY: only the one thread that `start` makes uses it. The stack nobody else ever looks at as what it is declared as;
    // the text others read once `MOUNTS_READ` says that it is not written to any more.
    unsafe impl<const BYTES: usize> Sync for Memory<BYTES> {}

    static STACK: Memory<STACK_BYTES> = Memory(UnsafeCell::new([0; STACK_BYTES]));
    static MOUNTS: Memory<MOUNTS_BYTES> = Memory(UnsafeCell::new([0; MOUNTS_BYTES]));
    /// How much of it there is; 0: nothing, and nothing will be; [`READING`]: that is not known yet.
    static MOUNTS_READ: AtomicUsize = AtomicUsize::new(0);
    const READING: usize = usize::MAX;
    /// Whoever has waited so long for the thread reads by himself.
    const READING_TIME: Duration = Duration::from_millis(1);

    static USED: AtomicBool = AtomicBool::new(false);
    /// The thread's number; 0: there is none.
    static TASK: AtomicI32 = AtomicI32::new(0);
    /// What the thread waits for, as a futex: one of these, in this order, with the number of the socket added to the last.
    static ORDER: AtomicU32 = AtomicU32::new(UNKNOWN);
    pub(super) const UNKNOWN: u32 = 0;
    pub(super) const MAKE: u32 = 1;
    pub(super) const NOTHING: u32 = 2;
    pub(super) const SOCKET: u32 = 3;
    /// The namespace that was made.
    static NETWORK_FD: AtomicI32 = AtomicI32::new(NO_FD);
    const NO_FD: RawFd = -1;
    /// Whether it is going to send something, as a futex.
    static SENDS: AtomicU32 = AtomicU32::new(0);
    /// The thread stays to the end of the process: begun before anything was known, not for a network alone.
    static STAYS: AtomicBool = AtomicBool::new(false);
    /// It has done its work with networks, and waits for [`CLOSE`], as a futex: a descriptor and 1.
    static IDLE: AtomicBool = AtomicBool::new(false);
    static CLOSE: AtomicU32 = AtomicU32::new(0);

    /// Makes the thread, with its first order; `false` if that had been done, or it cannot be.
    pub(super) fn start(word: u32) -> bool {
        if USED.swap(true, Ordering::Relaxed) {
            return false;
        }
        SENDS.store((word >= SOCKET).into(), Ordering::Relaxed);
        ORDER.store(word, Ordering::Relaxed);
        STAYS.store(word == UNKNOWN, Ordering::Relaxed);
        MOUNTS_READ.store(if word == UNKNOWN { READING } else { 0 }, Ordering::Relaxed);
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM;
        // Not through libc: musl's clone makes no threads.
        let made: i64;
        // SAFETY: one past the end of the stack, which grows downwards; nobody else has it, as `USED` was not set.
        // The thread uses no memory but its stack and the statics above, no thread-local variable and no lock, so it may
        // share our memory and our thread's pointer to such variables. It never comes out of here.
        unsafe {
            asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "xor ebp, ebp",
                "call {run}",
                "xor edi, edi",
                "mov eax, {exit}",
                "syscall",
                "2:",
                run = sym run,
                exit = const libc::SYS_exit,
                inlateout("rax") libc::SYS_clone => made,
                in("rdi") u64::from(flags as u32),
                in("rsi") STACK.0.get().cast::<u8>().add(STACK_BYTES),
                in("rdx") 0_u64,
                in("r10") 0_u64,
                in("r8") 0_u64,
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        if let Ok(made @ 1..) = i32::try_from(made) {
            TASK.store(made, Ordering::Relaxed);
            processors::begin_elsewhere(made);
            return true;
        }
        SENDS.store(0, Ordering::Relaxed);
        MOUNTS_READ.store(0, Ordering::Relaxed);
        ORDER.store(NOTHING, Ordering::Relaxed);
        false
    }

    /// Tells the thread what to do; `false` if it is gone.
    pub(super) fn order(word: u32) -> bool {
        let before = ORDER.load(Ordering::Relaxed);
        if !USED.load(Ordering::Relaxed) || before >= NOTHING || before == word {
            return false;
        }
        SENDS.store((word >= SOCKET).into(), Ordering::Relaxed);
        ORDER.store(word, Ordering::Release);
        futex(&ORDER, libc::FUTEX_WAKE, 1);
        true
    }

    /// Mostly it has been sent long ago.
    pub(super) fn wait() {
        while SENDS.load(Ordering::Acquire) != 0 {
            futex(&SENDS, libc::FUTEX_WAIT, 1);
        }
    }

    pub(super) fn take_network() -> Option<OwnedFd> {
        let fd = NETWORK_FD.swap(NO_FD, Ordering::Relaxed);
        // SAFETY: the thread has got this descriptor from the kernel, and has left it to whoever takes it from here.
        (fd != NO_FD).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
    }

    pub(super) fn mounts() -> Option<&'static [u8]> {
        let begun = Instant::now();
        let length = loop {
            match MOUNTS_READ.load(Ordering::Acquire) {
                READING if begun.elapsed() < READING_TIME => std::thread::yield_now(),
                READING => return None,
                length => break length,
            }
        };
        // SAFETY: so much has been written, and is not written to again.
        (length > 0).then(|| unsafe { std::slice::from_raw_parts(MOUNTS.0.get().cast::<u8>(), length) })
    }

    pub(super) fn keep_away() {
        let task = TASK.load(Ordering::Relaxed);
        if task > 0 && STAYS.load(Ordering::Relaxed) {
            processors::begin_elsewhere(task);
        }
    }

    /// `false` if there is no thread that could.
    pub(super) fn close(fd: &OwnedFd) -> bool {
        if !IDLE.swap(false, Ordering::Acquire) {
            return false;
        }
        CLOSE.store(fd.as_raw_fd() as u32 + 1, Ordering::Release);
        futex(&CLOSE, libc::FUTEX_WAKE, 1);
        true
    }

    extern "C" fn run() {
        take_no_signals();
        let stays = STAYS.load(Ordering::Relaxed);
        if stays {
            MOUNTS_READ.store(read_mounts(), Ordering::Release);
        }
        if wait_for_more_than(UNKNOWN) != NOTHING {
            let network = new_network();
            let word = wait_for_more_than(MAKE);
            if word >= SOCKET {
                send((word - SOCKET) as usize, network);
                NETWORK_FD.store(network.map_or(NO_FD, |fd| fd as RawFd), Ordering::Relaxed);
                SENDS.store(0, Ordering::Release);
                futex(&SENDS, libc::FUTEX_WAKE, 1);
            } else if let Some(network) = network {
                call(libc::SYS_close, [network, 0, 0, 0]);
            }
        }
        IDLE.store(stays, Ordering::Release);
        if stays {
            let fd = wait_for_descriptor();
            call(libc::SYS_close, [fd as usize, 0, 0, 0]);
        }
    }

    /// They are for the thread that knows what is to be done with them, also if it does not yet.
    fn take_no_signals() {
        let all = u64::MAX;
        let set = [libc::SIG_SETMASK as usize, &raw const all as usize, 0, mem::size_of_val(&all)];
        call(libc::SYS_rt_sigprocmask, set);
    }

    fn wait_for_descriptor() -> u32 {
        loop {
            match CLOSE.load(Ordering::Acquire) {
                0 => futex(&CLOSE, libc::FUTEX_WAIT, 0),
                fd => return fd - 1,
            }
        }
    }

    fn wait_for_more_than(before: u32) -> u32 {
        loop {
            match ORDER.load(Ordering::Acquire) {
                word if word > before => return word,
                word => futex(&ORDER, libc::FUTEX_WAIT, word),
            }
        }
    }

    fn futex(word: &AtomicU32, operation: libc::c_int, value: u32) {
        let operation = operation | libc::FUTEX_PRIVATE_FLAG;
        call(libc::SYS_futex, [word.as_ptr() as usize, operation as usize, value as usize, 0]);
    }

    /// How much there is; 0: it does not fit, or cannot be read.
    fn read_mounts() -> usize {
        let path = c"/proc/self/mountinfo".as_ptr() as usize;
        let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as usize;
        let Some(file) = call(libc::SYS_openat, [libc::AT_FDCWD as usize, path, flags, 0]) else { return 0 };
        let mut length = 0;
        let whole = loop {
            let rest = [file, MOUNTS.0.get() as usize + length, MOUNTS_BYTES - length, 0];
            match call(libc::SYS_read, rest) {
                // Of a full room it says the same.
                Some(0) => break length < MOUNTS_BYTES,
                Some(more) => length += more,
                None => break false,
            }
        };
        call(libc::SYS_close, [file, 0, 0, 0]);
        if whole { length } else { 0 }
    }

    fn new_network() -> Option<usize> {
        call(libc::SYS_unshare, [libc::CLONE_NEWNET as usize, 0, 0, 0])?;
        let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as usize;
        let socket = call(libc::SYS_socket, [libc::AF_INET as usize, kind, 0, 0])?;
        /// The network namespace of a socket (ioctl_ns and include/uapi/linux/sockios.h).
        const SIOCGSKNS: usize = 0x894c;
        let network = call(libc::SYS_ioctl, [socket, SIOCGSKNS, 0, 0]);
        call(libc::SYS_close, [socket, 0, 0, 0]);
        network
    }

    /// A control message with one descriptor, as sendmsg(2) wants it.
    #[repr(C)]
    struct Rights {
        length: usize,
        level: libc::c_int,
        kind: libc::c_int,
        fd: libc::c_int,
    }

    fn send(socket: usize, network: Option<usize>) {
        let tag = NETWORK;
        let bytes = libc::iovec { iov_base: (&raw const tag).cast_mut().cast(), iov_len: 1 };
        let fd = network.map_or(-1, |network| network as libc::c_int);
        let length = mem::offset_of!(Rights, fd) + mem::size_of::<libc::c_int>();
        let rights = Rights { length, level: libc::SOL_SOCKET, kind: libc::SCM_RIGHTS, fd };
        // SAFETY: a msghdr of zeros is valid: no address, nothing to send.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = (&raw const bytes).cast_mut();
        message.msg_iovlen = 1;
        if network.is_some() {
            message.msg_control = (&raw const rights).cast_mut().cast();
            message.msg_controllen = mem::size_of::<Rights>() as _;
        }
        let flags = libc::MSG_NOSIGNAL as usize;
        call(libc::SYS_sendmsg, [socket, &raw const message as usize, flags, 0]);
    }

    fn call(number: libc::c_long, arguments: [usize; 4]) -> Option<usize> {
        let result: isize;
        // SAFETY: the callers above pass what the call takes, and what it reads lives until it is through. The kernel
        // leaves all registers as they are, but for the three that are named.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") number as isize => result,
                in("rdi") arguments[0],
                in("rsi") arguments[1],
                in("rdx") arguments[2],
                in("r10") arguments[3],
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        usize::try_from(result).ok()
    }
}
