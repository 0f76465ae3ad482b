//! Labels of security modules, which count from the execution of the program on. Written while /proc is still the host's,
//! and only if it is a proc file system: one that a container has made could take the write and do nothing
//! (CVE-2019-16884, CVE-2025-52881).

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;

use super::files::{NO_XDEV, PROC_MAGIC};
use crate::sys;

pub(super) fn apparmor(text: &str) -> io::Result<()> {
    match write(c"/proc/thread-self/attr/apparmor/exec", text) {
        // Before Linux 5.8 there is one place for all modules.
        Err(error) if error.kind() == io::ErrorKind::NotFound => write(c"/proc/thread-self/attr/exec", text),
        other => other,
    }
}

pub(super) fn selinux(label: &str, keyring: bool) -> io::Result<()> {
    if keyring {
        write(c"/proc/thread-self/attr/keycreate", label)?;
    }
    write(c"/proc/thread-self/attr/exec", label)
}

fn write(path: &CStr, text: &str) -> io::Result<()> {
    let root = sys::openat2(sys::CWD, c"/proc", libc::O_PATH | libc::O_DIRECTORY, 0, 0)?;
    if sys::filesystem_magic(root.as_fd())? != PROC_MAGIC {
        return Err(io::Error::other("/proc is not a proc file system"));
    }
    use std::os::fd::AsRawFd;
    let below = CStr::from_bytes_with_nul(&path.to_bytes_with_nul()[b"/proc/".len()..]);
    let below = below.map_err(io::Error::other)?;
    let file = sys::openat2(root.as_raw_fd(), below, libc::O_WRONLY, 0, NO_XDEV)?;
    File::from(file).write_all(text.as_bytes())
}
