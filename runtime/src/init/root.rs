//! The mounts, made inside the container's own mount namespace. Every one is prepared detached and then moved onto a
//! descriptor of its target, so what was checked is what is mounted on.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::files::{self, IN_ROOT, NO_MAGICLINKS, NO_SYMLINKS};
use crate::api::Rootfs;
use crate::plan::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, MountPlan, Source};
use crate::sys;

/// Mounts the root file system on the empty folder kept for it; returns its root.
pub(super) fn mount_root(rootfs: &Rootfs, mountpoint: &CStr) -> io::Result<OwnedFd> {
    let target = sys::openat2(sys::CWD, mountpoint, libc::O_PATH | libc::O_DIRECTORY, 0, 0)?;
    match rootfs {
        Rootfs::Directory(dir) => {
            let tree = sys::open_tree(sys::CWD, &c_path(dir)?, true)?;
            sys::move_mount(tree.as_fd(), target.as_fd())?;
        }
        Rootfs::Overlay { lowers, upper, work } => match overlay(lowers, upper, work) {
            Ok(mount) => sys::move_mount(mount.as_fd(), target.as_fd())?,
            // Before Linux 6.5 the new interface has no way to name many layers.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
                classic_overlay(lowers, upper, work, mountpoint)?;
            }
            Err(error) => return Err(error),
        },
    }
    // Opened anew: the descriptor from above refers to the folder below the mount.
    sys::openat2(sys::CWD, mountpoint, libc::O_PATH | libc::O_DIRECTORY, 0, 0)
}

fn overlay(lowers: &[PathBuf], upper: &Path, work: &Path) -> io::Result<OwnedFd> {
    let fs = sys::fsopen(c"overlay")?;
    sys::fsconfig(fs.as_fd(), c"source", Some(c"overlay"))?;
    for lower in lowers {
        sys::fsconfig(fs.as_fd(), c"lowerdir+", Some(&c_path(lower)?))?;
    }
    sys::fsconfig(fs.as_fd(), c"upperdir", Some(&c_path(upper)?))?;
    sys::fsconfig(fs.as_fd(), c"workdir", Some(&c_path(work)?))?;
    sys::fsconfig_create(fs.as_fd())?;
    sys::fsmount(fs.as_fd(), 0)
}

/// The classic call takes one page of options: layers are named by descriptors to make them short.
fn classic_overlay(lowers: &[PathBuf], upper: &Path, work: &Path, mountpoint: &CStr) -> io::Result<()> {
    let open = |path: &Path| sys::openat2(sys::CWD, &c_path(path)?, libc::O_PATH | libc::O_DIRECTORY, 0, 0);
    let layers = lowers.iter().map(|lower| open(lower)).collect::<io::Result<Vec<OwnedFd>>>()?;
    let (upper, work) = (open(upper)?, open(work)?);
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let lowers: Vec<String> = layers.iter().map(name).collect();
    let data = format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), name(&upper), name(&work));
    sys::mount(c"overlay", mountpoint, c"overlay", 0, &CString::new(data)?)
}

/// Mounts one thing; returns the mount.
pub(super) fn mount(root: BorrowedFd<'_>, plan: &MountPlan) -> io::Result<OwnedFd> {
    let attributes = &plan.attributes;
    let (mount, folder) = match &plan.source {
        Source::Filesystem { fstype, options } => {
            let fs = sys::fsopen(fstype)?;
            for (key, value) in options {
                sys::fsconfig(fs.as_fd(), key, value.as_deref())
                    .map_err(|error| in_option(&error, key, value.as_deref()))?;
            }
            sys::fsconfig_create(fs.as_fd())?;
            (sys::fsmount(fs.as_fd(), attributes.set)?, true)
        }
        Source::Bind { path, recursive } => {
            let mount = sys::open_tree(sys::CWD, path, *recursive)?;
            sys::mount_setattr(
                mount.as_fd(),
                0,
                0,
                attributes.propagation,
                attributes.propagation_recursive,
            )?;
            if attributes.set | attributes.clear != 0 {
                sys::mount_setattr(mount.as_fd(), attributes.set, attributes.clear, 0, false)?;
            }
            if attributes.recursive_set != 0 {
                sys::mount_setattr(mount.as_fd(), attributes.recursive_set, 0, 0, true)?;
            }
            let folder = sys::fstat(mount.as_fd())?.st_mode & libc::S_IFMT == libc::S_IFDIR;
            (mount, folder)
        }
    };
    let resolve = IN_ROOT | NO_MAGICLINKS | if plan.strict { NO_SYMLINKS } else { 0 };
    let target = if folder {
        files::make_dirs(root, &plan.target, resolve)
    } else {
        files::make_file(root, &plan.target, resolve)
    };
    let target = target.map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => {
            io::Error::other("the place is a link in the root file system, which could lead anywhere")
        }
        _ => error,
    })?;
    sys::move_mount(mount.as_fd(), target.as_fd())?;
    Ok(mount)
}

fn in_option(error: &io::Error, key: &CStr, value: Option<&CStr>) -> io::Error {
    let value = value.map(|value| format!("={}", value.to_string_lossy())).unwrap_or_default();
    io::Error::new(error.kind(), format!("option {}{value}: {error}", key.to_string_lossy()))
}

/// Makes the mounted root the root of the namespace, and the old one go.
pub(super) fn pivot(root: BorrowedFd<'_>) -> io::Result<()> {
    nix::unistd::fchdir(root)?;
    sys::pivot_root_here()?;
    sys::detach_here()?;
    nix::unistd::chdir(c"/")?;
    Ok(())
}

/// Makes a part of the container's file system read-only, by a mount of itself on itself.
pub(super) fn make_read_only(root: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    let Some(target) = files::open_fixed(root, path)? else { return Ok(()) };
    let copy = sys::open_tree(target.as_raw_fd(), c"", true)?;
    sys::mount_setattr(copy.as_fd(), ATTR_RDONLY, 0, 0, true)?;
    sys::move_mount(copy.as_fd(), target.as_fd())
}

/// Only the root itself: what is mounted in it has been decided mount by mount.
pub(super) fn read_only_root(root: BorrowedFd<'_>) -> io::Result<()> {
    sys::mount_setattr(root, ATTR_RDONLY, 0, 0, false)
}

/// An empty folder that stays so.
pub(super) fn empty_folder() -> io::Result<OwnedFd> {
    let fs = sys::fsopen(c"tmpfs")?;
    sys::fsconfig(fs.as_fd(), c"nr_inodes", Some(c"1"))?;
    sys::fsconfig(fs.as_fd(), c"mode", Some(c"755"))?;
    sys::fsconfig_create(fs.as_fd())?;
    sys::fsmount(fs.as_fd(), ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}
