//! One entry of a layer becomes a file, folder, link, device or whiteout.
//!
//! Order of the metadata: owner first (it clears set-uid bits and capabilities), then mode, extended
//! attributes, times.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom, Write as _};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, makedev, mkdirat, mknodat,
    utimensat,
};
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, mkfifoat, symlinkat};

use super::UnpackError;
use super::tar::{Archive, Entry, Kind};
use super::tree::{Folder, Found, Tree, open_readable, time_spec};
use crate::sys;

/// What the OCI image specification puts in front of a deleted file's name.
const WHITEOUT: &[u8] = b".wh.";
/// Hides everything that lower layers have in the folder.
const OPAQUE: &[u8] = b".wh..wh.opq";

impl Tree {
    /// Applies `entry`, whose data is next in `archive`.
    pub(super) fn apply(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<impl Read>,
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
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(parents, name, hidden, &entry.path);
        }
        let folder = self.make_folder(parents, &entry.path)?;
        match entry.kind {
            Kind::Folder => self.folder(&folder, name, entry),
            Kind::Link => self.link(&folder, name, entry),
            _ => {
                if self.look(&folder, name, &entry.path)? != Found::Nothing {
                    self.remove(&folder, name, &entry.path)?;
                }
                match entry.kind {
                    Kind::File => file(&folder, name, entry, archive),
                    Kind::Symlink => symlink(&folder, name, entry),
                    _ => node(&folder, name, entry),
                }
            }
        }
    }

    fn folder(&mut self, parent: &Folder, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let found = self.look(parent, name, &entry.path)?;
        if matches!(found, Found::Whiteout | Found::Other) {
            self.remove(parent, name, &entry.path)?;
        }
        if found != Found::Folder {
            mkdirat(parent.fd(), name, Mode::from_bits_truncate(0o700))
                .map_err(|error| UnpackError::make("make the folder", &entry.path, error))?;
        }
        let path = parent.child(name);
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let folder = self
            .find_folder(&parts, &entry.path)?
            .ok_or_else(|| UnpackError::entry(&entry.path, "the folder vanished while it was made"))?;
        if found == Found::Whiteout {
            // Deleted below and made anew: what lower layers have in it stays hidden.
            self.make_opaque(&folder, &entry.path)?;
        }
        self.folder_metadata(&folder, entry)
    }

    fn folder_metadata(&mut self, folder: &Folder, entry: &Entry) -> Result<(), UnpackError> {
        let fail = |action| move |error: Errno| UnpackError::make(action, &entry.path, error);
        let fd = open_readable(folder.fd()).map_err(fail("open the folder"))?;
        let (uid, gid) = owner(entry);
        fchown(&fd, uid, gid).map_err(fail("change the owner of"))?;
        fchmod(&fd, mode(entry)).map_err(fail("change the mode of"))?;
        set_xattrs(folder, b".", entry)?;
        self.implicit.remove(folder.path.as_slice());
        self.folder_times.insert(folder.path.to_vec(), entry.mtime);
        Ok(())
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

fn file(
    folder: &Folder,
    name: &[u8],
    entry: &Entry,
    archive: &mut Archive<impl Read>,
) -> Result<(), UnpackError> {
    let fail = |action| move |error: Errno| UnpackError::make(action, &entry.path, error);
    let how = OpenHow::new()
        .flags(OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .mode(Mode::from_bits_truncate(0o600))
        .resolve(
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
        );
    let mut file = File::from(openat2(folder.fd(), name, how).map_err(fail("make the file"))?);
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
    let (uid, gid) = owner(entry);
    fchown(&file, uid, gid).map_err(fail("change the owner of"))?;
    fchmod(&file, mode(entry)).map_err(fail("change the mode of"))?;
    set_xattrs(folder, name, entry)?;
    futimens(&file, &time_spec(entry.mtime), &time_spec(entry.mtime)).map_err(fail("set the time of"))
}

fn copy(
    file: &mut File,
    mut length: u64,
    entry: &Entry,
    archive: &mut Archive<impl Read>,
) -> Result<(), UnpackError> {
    let mut buffer = [0u8; 64 << 10];
    while length > 0 {
        let most = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
        let count = archive.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(archive.broken("a file is shorter than it says".to_owned()));
        }
        file.write_all(&buffer[..count]).map_err(|error| UnpackError::make("write", &entry.path, error))?;
        length -= count as u64;
    }
    Ok(())
}

/// The target is kept as it is: it is read inside the container, where `/` is the container's.
fn symlink(folder: &Folder, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
    if entry.target.is_empty() || entry.target.contains(&0) {
        return Err(UnpackError::entry(&entry.path, "it is a symbolic link to nothing"));
    }
    let fail = |action| move |error: Errno| UnpackError::make(action, &entry.path, error);
    symlinkat(entry.target.as_slice(), folder.fd(), name).map_err(fail("make the link"))?;
    let (uid, gid) = owner(entry);
    fchownat(folder.fd(), name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(fail("change the owner of"))?;
    set_times(folder, name, entry)
}

/// A device or a named pipe. Devices are made as Docker makes them; whether a container may open one is
/// decided by its device rules.
fn node(folder: &Folder, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
    let fail = |action| move |error: Errno| UnpackError::make(action, &entry.path, error);
    let device = makedev(u64::from(entry.device.0), u64::from(entry.device.1));
    let made = match entry.kind {
        Kind::Char => mknodat(folder.fd(), name, SFlag::S_IFCHR, Mode::empty(), device),
        Kind::Block => mknodat(folder.fd(), name, SFlag::S_IFBLK, Mode::empty(), device),
        _ => mkfifoat(folder.fd(), name, Mode::empty()),
    };
    made.map_err(fail("make the device"))?;
    let (uid, gid) = owner(entry);
    fchownat(folder.fd(), name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(fail("change the owner of"))?;
    // Just made by us, so it is no link; the call that refuses links is newer than our oldest kernel.
    fchmodat(folder.fd(), name, mode(entry), FchmodatFlags::FollowSymlink)
        .map_err(fail("change the mode of"))?;
    set_xattrs(folder, name, entry)?;
    set_times(folder, name, entry)
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
        if !is_capability && (!bytes.starts_with(b"user.") || bytes.starts_with(b"user.overlay.")) {
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
