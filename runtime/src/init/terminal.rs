//! The container's terminal: a pair of its own devpts. The slave becomes standard input, output and error (and
//! /dev/console), and in the end the session's; the master goes out to the parent.
//!
//! The slave is never opened by its name, which belongs to whoever can mount or link something there: the kernel gives it
//! out for the master (TIOCGPTPEER), and it is looked at before it is used (CVE-2025-52565).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::files::{self, IN_ROOT, NO_SYMLINKS};
use crate::plan::Terminal;
use crate::spawn::{Ask, Channel};
use crate::sys;

const DEVPTS_MAGIC: i64 = 0x1cd1;
/// Devices of Unix 98 terminals: 136 to 143 (devices.txt of the kernel).
const SLAVES: std::ops::RangeInclusive<u32> = 136..=143;

/// Makes the terminal, and waits until the parent has taken the other end.
pub(super) fn make(wanted: &Terminal, root: BorrowedFd<'_>, channel: &Channel) -> io::Result<()> {
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let master = sys::openat2(root.as_raw_fd(), c"dev/pts/ptmx", flags, 0, IN_ROOT | NO_SYMLINKS)
        .map_err(|error| io::Error::new(error.kind(), format!("/dev/pts/ptmx of the container: {error}")))?;
    if sys::filesystem_magic(master.as_fd())? != DEVPTS_MAGIC {
        return Err(io::Error::other("/dev/pts of the container is not a devpts file system"));
    }
    sys::unlock_terminal(master.as_fd())?;
    let slave = sys::terminal_peer(master.as_fd())?;
    let stat = sys::fstat(slave.as_fd())?;
    let is_terminal =
        stat.st_mode & libc::S_IFMT == libc::S_IFCHR && SLAVES.contains(&libc::major(stat.st_rdev));
    if !is_terminal || sys::filesystem_magic(slave.as_fd())? != DEVPTS_MAGIC {
        return Err(io::Error::other("what the kernel gave out is not a terminal of the container"));
    }
    if let Some((rows, columns)) = wanted.size {
        sys::set_terminal_size(master.as_fd(), rows, columns)?;
    }
    if wanted.console {
        let target = files::make_file(root, c"dev/console", IN_ROOT | NO_SYMLINKS)?;
        let mount = sys::open_tree(slave.as_raw_fd(), c"", false)?;
        sys::move_mount(mount.as_fd(), target.as_fd())?;
    }
    channel.ask(&Ask::Terminal, Some(master.as_fd())).map_err(|failure| io::Error::other(failure.detail))?;
    (0..3).try_for_each(|number| sys::dup_to(slave.as_fd(), number))
}
