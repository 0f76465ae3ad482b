//! Gets into namespaces: those that exist, and those that have to be made by and by.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Fds, files};
use crate::plan::Join;
use crate::spawn;
use crate::sys::{self, SharedWord};

pub(super) fn open(join: &Join, fds: &Fds) -> io::Result<OwnedFd> {
    match join {
        Join::Path { path, .. } => sys::openat2(sys::CWD, path, libc::O_RDONLY, 0, 0),
        Join::Target { .. } => {
            let target = fds.target.as_ref().ok_or_else(|| io::Error::other("no process to join"))?;
            Ok(target.try_clone()?)
        }
    }
}

/// Joins a namespace that counts for this process at once.
pub(super) fn join(join: &Join, fds: &Fds) -> io::Result<()> {
    sys::setns(open(join, fds)?.as_fd(), join.kinds())
}

/// Gets into a new network namespace: one that was made for this process, or else one that it makes by itself.
pub(super) fn network(made: Option<OwnedFd>) -> io::Result<()> {
    match made {
        Some(namespace) => sys::setns(namespace.as_fd(), libc::CLONE_NEWNET)?,
        None => sys::unshare(libc::CLONE_NEWNET).map_err(|error| {
            spawn::refused::explain(libc::CLONE_NEWNET as u64, &error).map_or(error, io::Error::other)
        })?,
    }
    sys::loopback_up()
}

/// Enters namespaces that exist, those of user and pid among them.
pub(super) fn enter(joins: &[Join], fds: &Fds) -> io::Result<()> {
    // All are opened before one is entered: behind it the paths may mean something else.
    let opened = joins.iter().map(|join| Ok((open(join, fds)?, join.kinds())));
    enter_opened(&opened.collect::<io::Result<Vec<_>>>()?)?;
    // Processes of the container that may trace others see the one that is going to be made (CVE-2016-9962): what was
    // inherited from the runtime, folders of the host among it, must not come along.
    sys::close_marked(&fds.numbers())?;
    fds.second.as_ref().map_or(Ok(()), SharedWord::keep_from_children)
}

/// Makes the process that goes on, in the pid namespace that was entered and in new ones. Returns only in that one.
pub(super) fn second(new: u64, fds: &Fds) -> io::Result<()> {
    let word = fds.second.as_ref().ok_or_else(|| io::Error::other("nobody waits for another process"))?;
    // It would come along in our memory. Tests need what theirs says.
    #[cfg(not(test))]
    sys::forget_environment();
    match sys::clone_sibling(new, word)? {
        None => Ok(()),
        Some(_) => sys::exit_now(0),
    }
}

/// First with the privileges that we have, then with those of the user namespace: some of the others belong to it, some
/// to ours (a network that was made for it, say), and only the kernel knows which.
fn enter_opened(opened: &[(OwnedFd, i32)]) -> io::Result<()> {
    let user = |kind: i32| kind & libc::CLONE_NEWUSER != 0;
    let Some((namespace, kinds)) = opened.iter().find(|(_, kind)| user(*kind)) else {
        return opened.iter().try_for_each(|(namespace, kind)| sys::setns(namespace.as_fd(), *kind));
    };
    let mut later: Vec<(BorrowedFd<'_>, i32)> = Vec::new();
    for (namespace, kind) in opened.iter().filter(|(_, kind)| !user(*kind)) {
        match sys::setns(namespace.as_fd(), *kind) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                later.push((namespace.as_fd(), *kind));
            }
            other => other?,
        }
    }
    match sys::setns(namespace.as_fd(), *kinds) {
        // The kernel refuses the user namespace that one is in already.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && *kinds == libc::CLONE_NEWUSER => {}
        other => other?,
    }
    later.iter().try_for_each(|(namespace, kind)| sys::setns(*namespace, *kind))
}

/// A new time namespace is entered by children only, or by joining it: once in it, its offsets are fixed.
pub(super) fn new_time(offsets: &str) -> io::Result<()> {
    sys::unshare(sys::CLONE_NEWTIME)?;
    if !offsets.is_empty() {
        files::write(sys::CWD, c"/proc/self/timens_offsets", offsets.as_bytes())?;
    }
    let namespace = sys::openat2(sys::CWD, c"/proc/self/ns/time_for_children", libc::O_RDONLY, 0, 0)?;
    sys::setns(namespace.as_fd(), sys::CLONE_NEWTIME)
}
