//! The calls of this crate that no library makes for it: a TUN device exists by an ioctl alone (tuntap.rst of the kernel's
//! documentation), and `nix` knows no sockets of SCTP.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::libc::{IFF_NO_PI, IFF_TUN, SOCK_CLOEXEC, TUNSETIFF, TUNSETPERSIST, c_int, ifreq};

nix::ioctl_write_ptr_bad!(tun_set_interface, TUNSETIFF, ifreq);
nix::ioctl_write_int_bad!(tun_set_persist, TUNSETPERSIST);

/// Makes an open `/dev/net/tun` the other end of the TUN device of that name in this thread's network namespace, which
/// is made where there is none. It stays when the file is closed.
pub(crate) fn attach_tun(file: &File, name: &str) -> io::Result<()> {
    // SAFETY: `ifreq` is plain data, for which all zeros are valid: an empty name and no flags.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as nix::libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (IFF_TUN | IFF_NO_PI) as nix::libc::c_short;
    // SAFETY: the descriptor is open for as long as `file` lives, the kernel reads and writes one `ifreq` through the
    // pointer, which is a whole one on this stack, and keeps nothing of it.
    unsafe { tun_set_interface(file.as_raw_fd(), &request) }?;
    // SAFETY: the argument is a number; the descriptor is open for as long as `file` lives.
    unsafe { tun_set_persist(file.as_raw_fd(), 1) }?;
    Ok(())
}

/// An IPv4 socket of a protocol that `nix` has no name for.
pub(crate) fn socket(kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: the arguments are numbers.
    let file = unsafe { nix::libc::socket(nix::libc::AF_INET, kind | SOCK_CLOEXEC, protocol) };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made the descriptor, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}
