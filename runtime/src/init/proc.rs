//! What a proc file system of another pid namespace is made of, without getting into that.
//!
//! The kernel takes the namespace from the process that opens the file system. So a process has to be in there for that
//! moment, where whoever may trace everything sees it and can make it do what it likes (CVE-2016-9962). This one can do
//! nothing: its filter, which it is born with, allows it to open file systems and to hand them out; its root is an empty
//! folder, and its memory has no secrets of ours. What it hands out counts as said by the container, and is looked at
//! when it has become a mount.
//!
//! ```text
//! first process ── clone ──> helper: pid namespace for its children, empty root, filter ── clone ──> in there: fsopen
//!      <─────────────────────────────────── the file system ───────────────────────────────────────────
//! ```

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::{Fds, namespace, root};
use crate::plan::Join;
use crate::spawn::{self, Channel};
use crate::sys::{self, Instruction};

const CAP_SYS_ADMIN: u32 = 21;

/// Opens so many proc file systems of a pid namespace, each good for one mount.
pub(super) fn open(join: &Join, count: usize, filter: &[Instruction], fds: &Fds) -> io::Result<Vec<OwnedFd>> {
    let pid_namespace = namespace::open(join, fds)?;
    let (ours, theirs) = spawn::channel()?;
    let Some(helper) = sys::clone3(0, None)? else {
        let ended = help(&pid_namespace, count, filter, &theirs);
        sys::exit_now(ended.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO)))
    };
    drop(theirs);
    let mut opened = Vec::with_capacity(count);
    while opened.len() < count {
        match ours.take() {
            Ok(Some(fs)) => opened.push(fs),
            Ok(None) | Err(_) => break,
        }
    }
    // Whoever has it in hand can let us wait, as with every process that they see, but not for more than was planned.
    drop(ours);
    if opened.len() < count {
        // Unless it is ending already, and says why.
        let _ = sys::kill(helper, libc::SIGKILL);
    }
    let status = sys::wait_for(helper)?;
    if opened.len() < count {
        return Err(match libc::WEXITSTATUS(status) {
            code if libc::WIFEXITED(status) && code != 0 => io::Error::from_raw_os_error(code),
            _ => io::Error::other("the process that opens it in there was ended"),
        });
    }
    // Entering the namespace closes what is ours alone; these are used up behind it.
    opened.iter().try_for_each(|fs| sys::set_cloexec(fs.as_fd(), false))?;
    Ok(opened)
}

fn help(pid_namespace: &OwnedFd, count: usize, filter: &[Instruction], channel: &Channel) -> io::Result<()> {
    sys::setns(pid_namespace.as_fd(), libc::CLONE_NEWPID)?;
    root::change_root(root::empty_folder()?.as_fd())?;
    let kept = channel.number() as u32;
    sys::close_range(0, kept.saturating_sub(1), false)?;
    sys::close_range(kept + 1, u32::MAX, false)?;
    sys::forget_environment();
    let all = 1 << CAP_SYS_ADMIN;
    sys::capset(all, all, 0)?;
    sys::load_seccomp(filter, 0)?;
    match sys::clone3(0, None)? {
        None => {
            let given = (0..count).try_for_each(|_| {
                let fs = sys::fsopen(c"proc")?;
                let given = channel.give(fs.as_fd());
                // The kernel closes it.
                std::mem::forget(fs);
                given
            });
            sys::exit_now(given.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO)))
        }
        Some(inside) => {
            let status = sys::wait_for(inside)?;
            let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { libc::EIO };
            if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
        }
    }
}
