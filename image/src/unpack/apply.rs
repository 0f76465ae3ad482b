//! One entry of a layer becomes a file, folder, link, device or whiteout.
//!
//! Order of the metadata: owner first (it clears set-uid bits and capabilities), then mode, extended
//! attributes, times.

use std::ffi::CStr;
use std::fs::File;
use std::io::{BufRead, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, futimens, makedev, mkdirat, mknodat,
    utimensat,
};
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, mkfifoat, symlinkat};

use super::UnpackError;
use super::tar::{Archive, Entry, Kind};
use super::tree::{Folder, Found, Tree, time_spec};
use crate::diff::merged::is_kept;
use crate::sys;

/// What the OCI image specification puts in front of a deleted file's name.
const WHITEOUT: &[u8] = b".wh.";
/// Hides everything that lower layers have in the folder.
const OPAQUE: &[u8] = b".wh..wh..opq";

impl Tree {
    /// Applies `entry`, whose data is next in `archive`.
    pub(super) fn apply(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<impl BufRead>,
    ) -> Result<(), UnpackError> {
        self.count()?;
        let parts = self.components(&entry.path)?;
        let Some((name, parents)) = parts.split_last() else {
            if entry.kind != Kind::Folder {
                return Err(UnpackError::entry(&entry.path, "the layer's root can only be a folder"));
            }
            let root = self.root();
            return self.folder_metadata(&root, entry);
        };
        if let Some(hidden) = name.strip_prefix(WHITEOUT).filter(|_| self.whiteouts) {
            return self.whiteout(parents, name, hidden, &entry.path);
        }
        let folder = self.make_folder(parents, &entry.path)?;
        match entry.kind {
            Kind::Folder => self.folder(&folder, name, entry, parts.join(&b'/')),
            Kind::Link => self.link(&folder, name, entry),
            Kind::File => {
                let file =
                    self.in_place(&folder, name, (entry, "make the file"), || create(&folder, name, entry))?;
                fill(file, &folder, name, entry, archive)
            }
            Kind::Symlink => {
                if entry.target.is_empty() || entry.target.contains(&0) {
                    return Err(UnpackError::entry(&entry.path, "it is a symbolic link to nothing"));
                }
                self.in_place(&folder, name, (entry, "make the link"), || symlink(&folder, name, entry))?;
                set_owner(&folder, name, entry)?;
                set_times(&folder, name, entry)
            }
            _ => {
                self.in_place(&folder, name, (entry, "make the device"), || node(&folder, name, entry))?;
                set_node_access(&folder, name, entry)
            }
        }
    }

    /// Makes something, in place of whatever has its name. That there is nothing is by far the most frequent case,
    /// so nobody looks first.
    fn in_place<T>(
        &mut self,
        folder: &Folder,
        name: &[u8],
        (entry, what): (&Entry, &'static str),
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        match make() {
            Err(Errno::EEXIST) => {
                self.remove(folder, name, &entry.path)?;
                make()
            }
            made => made,
        }
        .map_err(|error| UnpackError::make(what, &entry.path, error))
    }

    fn folder(
        &mut self,
        parent: &Folder,
        name: &[u8],
        entry: &Entry,
        key: Vec<u8>,
    ) -> Result<(), UnpackError> {
        let make = || {
            mkdirat(parent.fd(), name, Mode::from_bits_truncate(0o700))
                .map_err(|error| UnpackError::make("make the folder", &entry.path, error))
        };
        let found = self.look(parent, name, &entry.path)?;
        if matches!(found, Found::Whiteout | Found::Other) {
            self.remove(parent, name, &entry.path)?;
        }
        if found != Found::Folder {
            make()?;
        }
        let folder = self
            .enter(parent, name, key)
            .map_err(|error| UnpackError::make("open the folder", &entry.path, error))?;
        if found == Found::Whiteout {
            // Deleted below and made anew: what lower layers have in it stays hidden.
            self.make_opaque(&folder, &entry.path)?;
        }
        self.folder_metadata(&folder, entry)
    }

    fn folder_metadata(&mut self, folder: &Folder, entry: &Entry) -> Result<(), UnpackError> {
        set_access(folder.fd(), entry)?;
        set_xattrs(folder, b".", entry)?;
        self.remember(folder, Some(entry.mtime))
    }

    /// A hard link: the target must be in this layer, and neither a folder nor a whiteout.
    fn link(&mut self, folder: &Folder, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let shown = String::from_utf8_lossy(&entry.target).into_owned();
        let parts = self.components(&entry.target).map_err(|error| match error {
            UnpackError::Entry { reason, .. } => UnpackError::entry(
                &entry.path,
                format!("its hard link to `{shown}` is not allowed: {reason}"),
            ),
            other => other,
        })?;
        let missing = || {
            UnpackError::entry(
                &entry.path,
                format!("it is a hard link to `{shown}`, which this layer does not have"),
            )
        };
        let Some((target, parents)) = parts.split_last() else { return Err(missing()) };
        let holder = self.find_folder(parents, &entry.path)?.ok_or_else(missing)?;
        match self.look(&holder, target, &entry.path)? {
            Found::Nothing | Found::Whiteout => return Err(missing()),
            Found::Folder => {
                return Err(UnpackError::entry(
                    &entry.path,
                    format!("it is a hard link to the folder `{shown}`"),
                ));
            }
            Found::Other => {}
        }
        if holder.child(target) == folder.child(name) {
            return Ok(());
        }
        if self.look(folder, name, &entry.path)? != Found::Nothing {
            self.remove(folder, name, &entry.path)?;
        }
        linkat(holder.fd(), *target, folder.fd(), name, AtFlags::empty())
            .map_err(|error| UnpackError::make("make the hard link", &entry.path, error))
    }

    /// `.wh.name` hides `name` of the layers below, never of this one (image-spec, layer.md).
    fn whiteout(
        &mut self,
        parents: &[&[u8]],
        name: &[u8],
        hidden: &[u8],
        path: &[u8],
    ) -> Result<(), UnpackError> {
        if name == OPAQUE {
            let folder = self.make_folder(parents, path)?;
            return self.make_opaque(&folder, path);
        }
        if hidden.starts_with(WHITEOUT) {
            // Bookkeeping of AUFS, which other engines pass over as well.
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(UnpackError::entry(path, "it is a whiteout of no name"));
        }
        let folder = self.make_folder(parents, path)?;
        match self.look(&folder, hidden, path)? {
            Found::Nothing => mknodat(folder.fd(), hidden, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))
                .map_err(|error| UnpackError::make("make the whiteout", path, error)),
            Found::Folder => {
                let own = folder.child(hidden);
                let parts: Vec<&[u8]> = own.split(|byte| *byte == b'/').collect();
                match self.find_folder(&parts, path)? {
                    Some(folder) => self.make_opaque(&folder, path),
                    None => Ok(()),
                }
            }
            Found::Whiteout | Found::Other => Ok(()),
        }
    }
}

/// Makes the file, which must not be there. The mode says only who may read it: set-uid comes after the owner.
fn create(folder: &Folder, name: &[u8], entry: &Entry) -> Result<File, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .mode(mode(entry) & Mode::from_bits_truncate(0o777))
        .resolve(
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
        );
    openat2(folder.fd(), name, how).map(File::from)
}

fn fill(
    mut file: File,
    folder: &Folder,
    name: &[u8],
    entry: &Entry,
    archive: &mut Archive<impl BufRead>,
) -> Result<(), UnpackError> {
    match &entry.sparse {
        None => copy(&mut file, archive.remaining(), entry, archive)?,
        Some(sparse) => {
            file.set_len(sparse.size_bytes)
                .map_err(|error| UnpackError::make("extend", &entry.path, error))?;
            for (offset, length) in &sparse.pieces {
                file.seek(SeekFrom::Start(*offset))
                    .map_err(|error| UnpackError::make("write", &entry.path, error))?;
                copy(&mut file, *length, entry, archive)?;
            }
        }
    }
    set_access(file.as_fd(), entry)?;
    set_xattrs(folder, name, entry)?;
    futimens(&file, &time_spec(entry.mtime), &time_spec(entry.mtime))
        .map_err(|error| UnpackError::make("set the time of", &entry.path, error))
}

fn copy(
    file: &mut File,
    mut length: u64,
    entry: &Entry,
    archive: &mut Archive<impl BufRead>,
) -> Result<(), UnpackError> {
    while length > 0 {
        let piece = archive.piece(length)?;
        let count = piece.len();
        if count == 0 {
            return Err(archive.broken("a file is shorter than it says".to_owned()));
        }
        file.write_all(piece).map_err(|error| UnpackError::make("write", &entry.path, error))?;
        archive.consume(count);
        length -= count as u64;
    }
    Ok(())
}

/// Owner and mode, where they are not so already: changing them costs much more than looking.
fn set_access(fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), UnpackError> {
    let fail = |action| move |error: Errno| UnpackError::make(action, &entry.path, error);
    let stat = fstat(fd).map_err(fail("look at"))?;
    let mut is_mode_right = stat.st_mode & 0o7777 == entry.mode;
    if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
        let (uid, gid) = owner(entry);
        fchown(fd, uid, gid).map_err(fail("change the owner of"))?;
        // That has cleared set-uid bits.
        is_mode_right &= entry.mode & 0o7000 == 0;
    }
    if !is_mode_right {
        fchmod(fd, mode(entry)).map_err(fail("change the mode of"))?;
    }
    Ok(())
}

/// The target is kept as it is: it is read inside the container, where `/` is the container's.
fn symlink(folder: &Folder, name: &[u8], entry: &Entry) -> Result<(), Errno> {
    symlinkat(entry.target.as_slice(), folder.fd(), name)
}

/// A device or a named pipe. Devices are made as Docker makes them; whether a container may open one is
/// decided by its device rules.
fn node(folder: &Folder, name: &[u8], entry: &Entry) -> Result<(), Errno> {
    let device = makedev(u64::from(entry.device.0), u64::from(entry.device.1));
    match entry.kind {
        Kind::Char => mknodat(folder.fd(), name, SFlag::S_IFCHR, Mode::empty(), device),
        Kind::Block => mknodat(folder.fd(), name, SFlag::S_IFBLK, Mode::empty(), device),
        _ => mkfifoat(folder.fd(), name, Mode::empty()),
    }
}

fn set_node_access(folder: &Folder, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
    let fail = |action| move |error: Errno| UnpackError::make(action, &entry.path, error);
    set_owner(folder, name, entry)?;
    // Just made by us, so it is no link; the call that refuses links is newer than our oldest kernel.
    fchmodat(folder.fd(), name, mode(entry), FchmodatFlags::FollowSymlink)
        .map_err(fail("change the mode of"))?;
    set_xattrs(folder, name, entry)?;
    set_times(folder, name, entry)
}

fn set_owner(folder: &Folder, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
    let (uid, gid) = owner(entry);
    fchownat(folder.fd(), name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(|error| UnpackError::make("change the owner of", &entry.path, error))
}

fn set_times(folder: &Folder, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
    let time = time_spec(entry.mtime);
    utimensat(folder.fd(), name, &time, &time, UtimensatFlags::NoFollowSymlink)
        .map_err(|error| UnpackError::make("set the time of", &entry.path, error))
}

/// Keeps `user.*` and file capabilities. Everything else would speak to the host: `trusted.overlay.*`
/// above all, with which a layer could redirect a lookup.
fn set_xattrs(folder: &Folder, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
    for (attribute, value) in &entry.xattrs {
        let attribute: &CStr = attribute;
        let bytes = attribute.to_bytes();
        let is_capability = bytes == b"security.capability";
        if !is_kept(bytes) {
            tracing::debug!(name = %super::printable(bytes), "an extended attribute of a layer is left out");
            continue;
        }
        match sys::set_xattr(folder.fd(), name, attribute, value) {
            Ok(()) => {}
            // Not on this file system, or not on a device: no program can rely on those.
            Err(Errno::ENOTSUP | Errno::EPERM) if !is_capability => {}
            Err(error) => {
                return Err(UnpackError::make("set an extended attribute of", &entry.path, error));
            }
        }
    }
    Ok(())
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_bits_truncate(entry.mode)
}
