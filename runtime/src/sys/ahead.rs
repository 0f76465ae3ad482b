//! A network namespace that is made while the rest of a container is still being thought about.
//!
//! It takes the kernel as long as all else of a process, and whether there is to be one is known early. So a thread makes
//! it, and sends it to the process that is going to live in it. The thread is no thread of std's: this program forks while
//! it runs, and may then have no lock of an allocator in its hands. It does nothing but seven system calls, made without
//! libc, whose `errno` belongs to the thread that made this one.

use std::os::fd::BorrowedFd;

/// What a message begins with that brings a network namespace. Without a descriptor beside it: there is none.
pub(crate) const NETWORK: u8 = b'N';

/// Has a network namespace made, with its loopback device up, and sent over a socket to whoever has the other end; in any
/// case a message that begins with [`NETWORK`]. Once in a process; `false`: nothing will be sent.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn send_new_network(socket: BorrowedFd<'_>) -> bool {
    thread::start(socket)
}

/// Waits until the socket that was given to [`send_new_network`] is used no more.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn wait_until_network_is_sent() {
    thread::wait();
}

/// There is nothing to wait for.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(crate) fn wait_until_network_is_sent() {}

/// Elsewhere the process makes its network namespace by itself.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(crate) fn send_new_network(_socket: BorrowedFd<'_>) -> bool {
    false
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod thread {
    use std::arch::asm;
    use std::cell::UnsafeCell;
    use std::mem;
    use std::os::fd::{AsRawFd, BorrowedFd};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::NETWORK;

    const STACK_BYTES: usize = 16 * 1024;

    #[repr(C, align(16))]
    struct Stack(UnsafeCell<[u8; STACK_BYTES]>);

    // SAFETY: only the one thread that `start` makes uses it, and nobody ever looks at it as what it is declared as.
    unsafe impl Sync for Stack {}

    static STACK: Stack = Stack(UnsafeCell::new([0; STACK_BYTES]));
    static USED: AtomicBool = AtomicBool::new(false);
    static SENDS: AtomicBool = AtomicBool::new(false);

    pub(super) fn start(socket: BorrowedFd<'_>) -> bool {
        if USED.swap(true, Ordering::Relaxed) {
            return false;
        }
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM;
        let socket = socket.as_raw_fd() as usize as *mut libc::c_void;
        SENDS.store(true, Ordering::Relaxed);
        // SAFETY: one past the end of the stack, which grows downwards; nobody else has it, as `USED` was not set.
        // The thread uses no memory but its stack, no thread-local variable and no lock, so it may share our memory and
        // our thread's pointer to such variables.
        let made =
            unsafe { libc::clone(run, STACK.0.get().cast::<u8>().add(STACK_BYTES).cast(), flags, socket) };
        if made < 0 {
            SENDS.store(false, Ordering::Relaxed);
        }
        made > 0
    }

    /// Mostly it has been sent long ago.
    pub(super) fn wait() {
        while SENDS.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    extern "C" fn run(socket: *mut libc::c_void) -> libc::c_int {
        send(socket as usize, new_network());
        SENDS.store(false, Ordering::Release);
        0
    }

    fn new_network() -> Option<usize> {
        call(libc::SYS_unshare, [libc::CLONE_NEWNET as usize, 0, 0, 0])?;
        let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as usize;
        let socket = call(libc::SYS_socket, [libc::AF_INET as usize, kind, 0, 0])?;
        // SAFETY: an ifreq of zeros is valid.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        let up = call(libc::SYS_ioctl, [socket, libc::SIOCSIFFLAGS as usize, &raw const request as usize, 0]);
        /// The network namespace of a socket (ioctl_ns and include/uapi/linux/sockios.h).
        const SIOCGSKNS: usize = 0x894c;
        let network = up.and_then(|_| call(libc::SYS_ioctl, [socket, SIOCGSKNS, 0, 0]));
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
            message.msg_controllen = mem::size_of::<Rights>();
        }
        let flags = libc::MSG_NOSIGNAL as usize;
        call(libc::SYS_sendmsg, [socket, &raw const message as usize, flags, 0]);
        if let Some(network) = network {
            call(libc::SYS_close, [network, 0, 0, 0]);
        }
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
