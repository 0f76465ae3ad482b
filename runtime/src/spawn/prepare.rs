//! Mounts that are made before the first process, since in its user namespace it may not: sources that only we can
//! reach, and owners that are mapped.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::maps;
use crate::init::{self, Failure};
use crate::plan::{IdMaps, Idmap, Owners, Prepared, Tree};
use crate::sys;

/// Makes the mounts, attached nowhere yet.
pub(super) fn prepare(mounts: &[Prepared]) -> Result<Vec<OwnedFd>, Failure> {
    mounts.iter().map(|mount| one(mount).map_err(|error| Failure::step(mount, &error))).collect()
}

fn one(mount: &Prepared) -> io::Result<OwnedFd> {
    let tree = match &mount.tree {
        Tree::Root(rootfs) => init::detached_root(rootfs)?,
        Tree::Bind { path, recursive, idmap } => {
            let tree = sys::open_tree(sys::CWD, path, *recursive)?;
            if let Some(Idmap { recursive, maps }) = idmap {
                let namespace = match maps {
                    Owners::Namespace(path) => sys::openat2(sys::CWD, path, libc::O_RDONLY, 0, 0)?,
                    Owners::Maps(maps) => user_namespace(maps)?,
                };
                sys::mount_idmap(tree.as_fd(), namespace.as_fd(), *recursive)?;
            }
            tree
        }
    };
    sys::mount_setattr(tree.as_fd(), 0, 0, mount.propagation, true)?;
    Ok(tree)
}

/// A user namespace with these mappings, which nobody is in: made by a process that has ended by then.
fn user_namespace(maps: &IdMaps) -> io::Result<OwnedFd> {
    let (read, write) = sys::pipe()?;
    let Some(pid) = sys::clone3(libc::CLONE_NEWUSER as u64, None)? else {
        // Until the parent closes its end.
        drop(write);
        let _ = io::copy(&mut File::from(read), &mut io::sink());
        sys::exit_now(0)
    };
    drop(read);
    let mapped = maps::write(pid, maps, true).map_err(|failure| failure.error());
    let opened = mapped.and_then(|()| File::open(format!("/proc/{pid}/ns/user")));
    drop(write);
    sys::wait_for(pid)?;
    opened.map(OwnedFd::from)
}
