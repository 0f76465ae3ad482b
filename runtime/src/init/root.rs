//! The root file system, and what is done to parts of it once everything is mounted.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MntFlags;

use super::files;
use crate::api::Rootfs;
use crate::plan::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, RootSource};
use crate::sys;

/// Mounts the root file system on the folder kept for it; returns its root. `shared`: the host would see it, if what it
/// is mounted on were not made private first.
pub(super) fn mount_root(
    source: &RootSource,
    mountpoint: &CStr,
    shared: bool,
    prepared: &[OwnedFd],
) -> io::Result<OwnedFd> {
    if shared {
        make_parent_private(mountpoint)?;
    }
    let target = match source {
        RootSource::Prepared(_) => reachable(mountpoint)?,
        RootSource::Own(_) => sys::openat2(sys::CWD, mountpoint, libc::O_PATH | libc::O_DIRECTORY, 0, 0)?,
    };
    let mount = match source {
        RootSource::Prepared(index) => {
            let mount = prepared.get(*index).ok_or_else(|| io::Error::other("it was not prepared"))?;
            mount.try_clone()?
        }
        RootSource::Own(rootfs) => match (detached(rootfs), rootfs) {
            (Ok(mount), _) => mount,
            // Before Linux 6.5 the new interface has no way to name many layers.
            (Err(error), Rootfs::Overlay { lowers, upper, work })
                if error.raw_os_error() == Some(libc::EINVAL) =>
            {
                classic_overlay(lowers, upper, work, mountpoint)?;
                return sys::openat2(sys::CWD, mountpoint, libc::O_PATH | libc::O_DIRECTORY, 0, 0);
            }
            (Err(error), _) => return Err(error),
        },
    };
    if shared {
        sys::mount_setattr(mount.as_fd(), 0, 0, libc::MS_PRIVATE, true)?;
    }
    sys::move_mount(mount.as_fd(), target.as_fd())?;
    Ok(mount)
}

/// The folder, or the closest above it that a user namespace without the host's privileges lets us get to: what it hides
/// in our own mount namespace is of no more use.
fn reachable(folder: &CStr) -> io::Result<OwnedFd> {
    let mut folder = Path::new(OsStr::from_bytes(folder.to_bytes()));
    loop {
        let opened = sys::openat2(sys::CWD, &c_path(folder)?, libc::O_PATH | libc::O_DIRECTORY, 0, 0);
        match (opened, folder.parent()) {
            (Err(error), Some(parent))
                if error.raw_os_error() == Some(libc::EACCES) && parent.parent().is_some() =>
            {
                folder = parent;
            }
            (opened, _) => return opened,
        }
    }
}

/// The root file system as a mount that is attached nowhere yet.
pub(crate) fn detached(rootfs: &Rootfs) -> io::Result<OwnedFd> {
    match rootfs {
        Rootfs::Directory(dir) => sys::open_tree(sys::CWD, &c_path(dir)?, true),
        Rootfs::Overlay { lowers, upper, work } => overlay(lowers, upper, work),
    }
}

/// Makes the mount private that a folder is on: only its root can be changed, which is the folder or one above it.
fn make_parent_private(folder: &CStr) -> io::Result<()> {
    let mut folder = Path::new(OsStr::from_bytes(folder.to_bytes()));
    loop {
        let here = sys::openat2(sys::CWD, &c_path(folder)?, libc::O_PATH, 0, 0)?;
        match (sys::mount_setattr(here.as_fd(), 0, 0, libc::MS_PRIVATE, false), folder.parent()) {
            (Err(error), Some(parent)) if error.raw_os_error() == Some(libc::EINVAL) => folder = parent,
            (result, _) => return result,
        }
    }
}

/// What an overlay is mounted with whatever the kernel was built with. Renamed folders are copied and metadata never
/// stands alone: what a container changes is read by who makes layers and differences of it, and by other kernels.
/// `nofollow` rather than `off`: it makes no redirects either, and a user namespace may say it (overlayfs.rst).
const PLAIN: [(&CStr, &CStr); 3] =
    [(c"redirect_dir", c"nofollow"), (c"metacopy", c"off"), (c"index", c"off")];

fn overlay(lowers: &[PathBuf], upper: &Path, work: &Path) -> io::Result<OwnedFd> {
    let fs = sys::fsopen(c"overlay")?;
    sys::fsconfig(fs.as_fd(), c"source", Some(c"overlay"))?;
    for (name, value) in PLAIN {
        sys::fsconfig(fs.as_fd(), name, Some(value))?;
    }
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
    let plain: Vec<String> = PLAIN
        .iter()
        .map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.to_string_lossy()))
        .collect();
    let (plain, lowers) = (plain.join(","), lowers.join(":"));
    let data = format!("{plain},lowerdir={lowers},upperdir={},workdir={}", name(&upper), name(&work));
    sys::mount(c"overlay", mountpoint, c"overlay", 0, &CString::new(data)?)
}

/// Makes the mounted root the root of the namespace, and the old one go.
pub(super) fn pivot(root: BorrowedFd<'_>, shared: bool) -> io::Result<()> {
    let old =
        shared.then(|| sys::openat2(sys::CWD, c"/", libc::O_PATH | libc::O_DIRECTORY, 0, 0)).transpose()?;
    nix::unistd::fchdir(root)?;
    sys::pivot_root_here()?;
    if let Some(old) = old {
        // What is unmounted in it would be unmounted on the host.
        sys::mount_setattr(old.as_fd(), 0, 0, libc::MS_SLAVE, true)?;
    }
    sys::detach_here()?;
    nix::unistd::chdir(c"/")?;
    Ok(())
}

/// Moves the mounted root over the old one. What it covers stays mounted, which is why a pivot is better.
///
/// Who gets privileges in a user namespace inside may mount a proc or sysfs file system if one is to be seen as a whole,
/// also below the root; so those of the host go (user_namespaces(7), and the kernel's mount_too_revealing).
pub(super) fn move_root(root: BorrowedFd<'_>) -> io::Result<()> {
    let ours = fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd()))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    nix::unistd::fchdir(root)?;
    // The last ones first: they may lie in or on others.
    for line in mounts.lines().rev() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let Some(place) = front.split(' ').nth(4) else { continue };
        let revealing = back.starts_with("proc ") || back.starts_with("sysfs ");
        let place = unescaped(place);
        if revealing && !Path::new(&place).starts_with(&ours) {
            take_away(&place)?;
        }
    }
    sys::mount(c".", c"/", c"", libc::MS_MOVE, c"")?;
    change_root(root)
}

/// A path as mountinfo writes it: three octal digits behind a backslash for what would not be one word.
pub(crate) fn unescaped(text: &str) -> OsString {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code.filter(|_| *first == b'\\') {
            Some(code) => {
                bytes.push(code);
                rest = &behind[3..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// Takes a mount of the host out of our namespace; what cannot be taken away is covered.
fn take_away(place: &OsStr) -> io::Result<()> {
    // The host is not to see it go.
    match sys::mount(c"", &c_path(Path::new(place))?, c"", libc::MS_SLAVE | libc::MS_REC, c"") {
        // Not a mount (any more): covered, or gone with one that it lay in.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => return Ok(()),
        other => other?,
    }
    match nix::mount::umount2(place, MntFlags::MNT_DETACH) {
        Err(Errno::EINVAL | Errno::EPERM) => {
            let target = sys::openat2(sys::CWD, &c_path(Path::new(place))?, libc::O_PATH, 0, 0)?;
            sys::move_mount(empty_folder()?.as_fd(), target.as_fd())
        }
        // In something that has been taken away already.
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Changes the root directory, and goes there.
pub(super) fn change_root(root: BorrowedFd<'_>) -> io::Result<()> {
    nix::unistd::fchdir(root)?;
    nix::unistd::chroot(c".")?;
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

/// Only this mount: what is mounted in it has been decided mount by mount.
pub(super) fn read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    sys::mount_setattr(mount, ATTR_RDONLY, 0, 0, false)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_mountinfo_are_read_back() {
        assert_eq!(unescaped("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescaped("/plain\\04"), "/plain\\04");
    }
}
