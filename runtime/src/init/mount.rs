//! The mounts of a specification, made inside the container's own mount namespace. Every one is prepared detached and
//! then moved onto a descriptor of its target, so what was checked is what is mounted on.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::copyup;
use super::files::{self, IN_ROOT, NO_MAGICLINKS, NO_SYMLINKS, PROC_MAGIC};
use super::label;
use crate::plan::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, Change, Filesystem, MountPlan, Source};
use crate::sys;

const NEEDS_SELINUX: &str = " (linux.mountLabel needs SELinux in the kernel)";

/// Mounts one thing; returns the mount.
/// `proc`: file systems that were opened before, for those of this kind.
pub(super) fn mount(
    root: BorrowedFd<'_>,
    plan: &MountPlan,
    prepared: &[OwnedFd],
    proc: &mut Vec<OwnedFd>,
) -> io::Result<OwnedFd> {
    let resolve = IN_ROOT | NO_MAGICLINKS | if plan.strict { NO_SYMLINKS } else { 0 };
    let (mount, target) = match &plan.source {
        Source::Filesystem(new) => {
            let there = open(root, &plan.target, resolve)?;
            let mount = filesystem(new, there.as_ref().map(AsFd::as_fd), proc)?;
            let target = match there {
                Some(there) => there,
                None => files::make_absent(root, &plan.target, resolve).map_err(linked)?,
            };
            (mount, target)
        }
        Source::Bind { path, recursive } => {
            let mount = sys::open_tree(sys::CWD, path, *recursive)?;
            let target = place(root, plan, mount.as_fd(), resolve)?;
            (mount, target)
        }
        Source::Prepared { index, .. } => {
            let mount = prepared.get(*index).ok_or_else(|| io::Error::other("it was not prepared"))?;
            (mount.try_clone()?, place(root, plan, mount.as_fd(), resolve)?)
        }
        Source::Remount { options } => return remount(root, plan, options, resolve),
    };
    for change in &plan.changes {
        apply(mount.as_fd(), change)?;
    }
    if let Some(expected) = plan.expected
        && sys::filesystem_magic(mount.as_fd())? != expected
    {
        return Err(io::Error::other("only a proc file system may be mounted there"));
    }
    if !plan.strict {
        not_by_a_link_into_proc(root, &plan.target, target.as_fd())?;
    }
    sys::move_mount(mount.as_fd(), target.as_fd())?;
    Ok(mount)
}

/// What lies in /proc tells programs about themselves. By its name nothing may be mounted there, so by a link of the
/// image neither (CVE-2025-52881).
fn not_by_a_link_into_proc(root: BorrowedFd<'_>, path: &CStr, target: BorrowedFd<'_>) -> io::Result<()> {
    if sys::filesystem_magic(target)? != PROC_MAGIC {
        return Ok(());
    }
    sys::openat2(root.as_raw_fd(), path, libc::O_PATH, 0, IN_ROOT | NO_SYMLINKS).map(drop).map_err(linked)
}

/// Where to mount a folder, or a file, made if it is missing.
fn place(root: BorrowedFd<'_>, plan: &MountPlan, mount: BorrowedFd<'_>, resolve: u64) -> io::Result<OwnedFd> {
    let made = if sys::fstat(mount)?.st_mode & libc::S_IFMT == libc::S_IFDIR {
        files::make_dirs(root, &plan.target, resolve)
    } else {
        files::make_file(root, &plan.target, resolve)
    };
    made.map_err(linked)
}

fn linked(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ELOOP) => io::Error::other(
            "the place is a link in the root file system, which could lead anywhere: it must be mounted on \
                 ordinary directory",
        ),
        _ => error,
    }
}

/// The folder that is to be mounted on, if it is there.
fn open(root: BorrowedFd<'_>, path: &CStr, resolve: u64) -> io::Result<Option<OwnedFd>> {
    match sys::openat2(root.as_raw_fd(), path, libc::O_PATH | libc::O_DIRECTORY, 0, resolve) {
        Ok(opened) => Ok(Some(opened)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(linked(error)),
    }
}

fn filesystem(
    new: &Filesystem,
    there: Option<BorrowedFd<'_>>,
    proc: &mut Vec<OwnedFd>,
) -> io::Result<OwnedFd> {
    let opened = if new.fstype.as_c_str() == c"proc" { proc.pop() } else { None };
    let mount = match (make(new, there, opened), &new.or_bind) {
        (Err(error), Some(host)) if error.kind() == io::ErrorKind::PermissionDenied => {
            let mount = sys::open_tree(sys::CWD, host, true)?;
            apply(mount.as_fd(), &Change { set: new.attributes, recursive: true, ..Change::default() })?;
            mount
        }
        (made, _) => made?,
    };
    if let (true, Some(there)) = (new.copy_up, there) {
        copyup::copy(there, mount.as_fd())?;
    }
    Ok(mount)
}

fn make(new: &Filesystem, there: Option<BorrowedFd<'_>>, opened: Option<OwnedFd>) -> io::Result<OwnedFd> {
    let foreign = opened.is_some();
    let fs =
        opened.map_or_else(|| sys::fsopen(&new.fstype), Ok).map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV) => {
                io::Error::other(format!("this kernel has no file system {}", new.fstype.to_string_lossy()))
            }
            _ => error,
        })?;
    for (key, value) in &new.options {
        set(fs.as_fd(), key, value.as_deref())?;
    }
    if let (true, Some(there)) = (new.keep_mode, there) {
        let mode = sys::fstat(there)?.st_mode & 0o7777;
        set(fs.as_fd(), c"mode", Some(&CString::new(format!("{mode:o}"))?))?;
    }
    sys::fsconfig_create(fs.as_fd()).map_err(|error| told(fs.as_fd(), error))?;
    let mount = sys::fsmount(fs.as_fd(), new.attributes)?;
    if foreign && sys::filesystem_magic(mount.as_fd())? != PROC_MAGIC {
        return Err(io::Error::other(
            "somebody in the pid namespace that is joined gave out another file system",
        ));
    }
    if let Some(label) = &new.label {
        label::selinux_file(mount.as_fd(), label).map_err(|error| {
            io::Error::new(error.kind(), format!("label {label:?}: {error}{NEEDS_SELINUX}"))
        })?;
    }
    Ok(mount)
}

fn set(fs: BorrowedFd<'_>, key: &CStr, value: Option<&CStr>) -> io::Result<()> {
    sys::fsconfig(fs, key, value).map_err(|error| {
        let error = told(fs, error);
        let value = value.map(|value| format!("={}", value.to_string_lossy())).unwrap_or_default();
        let why = if key == c"context" { NEEDS_SELINUX } else { "" };
        io::Error::new(error.kind(), format!("option {}{value}: {error}{why}", key.to_string_lossy()))
    })
}

/// An error with what the kernel says about it, if it does.
fn told(fs: BorrowedFd<'_>, error: io::Error) -> io::Error {
    match sys::fs_message(fs) {
        Some(message) => io::Error::new(error.kind(), format!("{error}: {message}")),
        None => error,
    }
}

/// Changes what is mounted already.
fn remount(
    root: BorrowedFd<'_>,
    plan: &MountPlan,
    options: &[(CString, Option<CString>)],
    resolve: u64,
) -> io::Result<OwnedFd> {
    let mount = sys::openat2(root.as_raw_fd(), &plan.target, libc::O_PATH, 0, resolve).map_err(linked)?;
    if !options.is_empty() {
        let fs = sys::fspick(mount.as_fd())?;
        for (key, value) in options {
            set(fs.as_fd(), key, value.as_deref())?;
        }
        sys::fsconfig_reconfigure(fs.as_fd()).map_err(|error| told(fs.as_fd(), error))?;
    }
    for change in &plan.changes {
        apply(mount.as_fd(), change)?;
    }
    Ok(mount)
}

/// Changes a mount. What a user namespace got from one with more privileges it may not take off; such flags stay.
fn apply(mount: BorrowedFd<'_>, change: &Change) -> io::Result<()> {
    let Change { set, clear, propagation, recursive } = *change;
    match sys::mount_setattr(mount, set, clear, propagation, recursive) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && clear != 0 => {
            let kept = clear & !(ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC);
            if (set | kept) == 0 && propagation == 0 {
                return Ok(());
            }
            sys::mount_setattr(mount, set, kept, propagation, recursive)
        }
        other => other,
    }
}
