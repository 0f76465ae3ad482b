//! Puts files into a root file system: COPY and ADD's second half.
//!
//! Order of the metadata as for layers: owner first (it clears set-uid bits and capabilities), then mode,
//! attributes, times; those of folders when nothing is put into them any more.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, makedev, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, mkfifoat, symlinkat, unlinkat};

use super::files::{Entry, EntryKind, Files};
use super::root::{Access, Root, is_folder, open_folder, open_in, stat_in};
use super::select::{Item, NO_TIME, Picked};
use crate::build::chmod::Chmod;
use crate::build::error::StepError;
use crate::sys;

/// What files get instead of what they have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changed {
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) mode: Option<Chmod>,
    /// No time is later than this.
    pub(crate) latest_s: Option<i64>,
}

impl Changed {
    fn access(&self, entry: &Entry) -> Access {
        let (uid, gid) = self.owner.unwrap_or((entry.uid, entry.gid));
        let is_folder = entry.kind == EntryKind::Folder;
        let mode = self.mode.as_ref().map_or(entry.mode, |mode| mode.apply(entry.mode, is_folder));
        Access { mode, uid, gid }
    }

    /// Of folders that are made on the way.
    pub(crate) fn parents(&self) -> Access {
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        Access { mode: 0o755, uid, gid }
    }

    fn time(&self, entry: &Entry) -> TimeSpec {
        TimeSpec::new(self.latest_s.map_or(entry.mtime_s, |latest| latest.min(entry.mtime_s)), 0)
    }
}

/// Puts what was picked at `destination`, an absolute path. One that ends in `/` is a folder.
pub(crate) fn place(
    root: &Root,
    files: &dyn Files,
    picked: &[Picked],
    destination: &str,
    changed: &Changed,
) -> Result<(), StepError> {
    let base = destination.trim_end_matches('/');
    let mut placing = Placing { root, files, changed, folder_times: Vec::new(), contents: Vec::new() };
    for one in picked {
        match (&one.name, &one.folder) {
            (Some(name), _) => {
                let into = destination.ends_with('/') || root.is_folder(base)?;
                let path = if into { format!("{base}/{name}") } else { base.to_owned() };
                for item in &one.items {
                    let (folder, name) = root.holder(&path, changed.parents())?;
                    placing.entry(folder, &name, item, &path)?;
                }
            }
            (None, folder) => placing.tree(base, folder.as_ref(), &one.items)?,
        }
    }
    placing.contents()?;
    placing.finish()
}

struct Placing<'a> {
    root: &'a Root,
    files: &'a dyn Files,
    changed: &'a Changed,
    folder_times: Vec<(String, TimeSpec)>,
    /// Files that were made and have no content yet.
    contents: Vec<(OwnedFd, String, Item)>,
}

/// So many descriptors are kept open at once.
const OPEN_MAX: usize = 256;

impl Placing<'_> {
    fn tree(&mut self, base: &str, folder: Option<&Entry>, items: &[Item]) -> Result<(), StepError> {
        let (top, made) = self.root.make_folder(base, self.changed.parents())?;
        if let Some(entry) = folder.filter(|_| made) {
            self.folder_metadata(top, entry, base)?;
        }
        for item in items {
            let path = format!("{base}/{}", item.to);
            let (above, name) = path.rsplit_once('/').unwrap_or(("", &path));
            let (holder, _) = self.root.make_folder(above, self.changed.parents())?;
            self.entry(holder, name, item, &path)?;
        }
        Ok(())
    }

    /// Makes what `item` says under `name` in `folder`.
    fn entry(&mut self, folder: OwnedFd, name: &str, item: &Item, path: &str) -> Result<(), StepError> {
        let fail = |action: &'static str| move |error: Errno| StepError::io(action, path, error);
        let found = stat_in(folder.as_fd(), name).map_err(fail("look at"))?;
        if item.entry.kind == EntryKind::Folder {
            return self.make_folder(folder, name, item, path, found.as_ref());
        }
        if let Some(found) = found {
            if is_folder(&found) {
                return Err(StepError::Reason(format!(
                    "`{path}` is a folder in the image, and can't become a file"
                )));
            }
            unlinkat(&folder, name, UnlinkatFlags::NoRemoveDir).map_err(fail("replace"))?;
        }
        match item.entry.kind {
            EntryKind::File => {
                let flags =
                    OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file =
                    openat(&folder, name, flags, Mode::from_bits_truncate(0o600)).map_err(fail("make"))?;
                self.contents.push((file, path.to_owned(), item.clone()));
                if self.contents.len() >= OPEN_MAX { self.contents() } else { Ok(()) }
            }
            EntryKind::Symlink => {
                symlinkat(item.entry.target.as_str(), &folder, name).map_err(fail("make"))?;
                self.metadata_of_other(folder.as_fd(), name, &item.entry, path, true)
            }
            EntryKind::Pipe => {
                mkfifoat(&folder, name, Mode::empty()).map_err(fail("make"))?;
                self.metadata_of_other(folder.as_fd(), name, &item.entry, path, false)
            }
            EntryKind::Char(major, minor) | EntryKind::Block(major, minor) => {
                let is_char = matches!(item.entry.kind, EntryKind::Char(..));
                let kind = if is_char { SFlag::S_IFCHR } else { SFlag::S_IFBLK };
                mknodat(&folder, name, kind, Mode::empty(), makedev(major, minor)).map_err(fail("make"))?;
                self.metadata_of_other(folder.as_fd(), name, &item.entry, path, false)
            }
            EntryKind::Folder | EntryKind::Other => Ok(()),
        }
    }

    fn make_folder(
        &mut self,
        holder: OwnedFd,
        name: &str,
        item: &Item,
        path: &str,
        found: Option<&nix::sys::stat::FileStat>,
    ) -> Result<(), StepError> {
        let folder = match found {
            None => mkdirat(&holder, name, Mode::from_bits_truncate(0o700))
                .and_then(|()| open_folder(holder.as_fd(), name))
                .map_err(|error| StepError::io("make", path, error))?,
            Some(found) if is_folder(found) => {
                open_folder(holder.as_fd(), name).map_err(|error| StepError::io("open", path, error))?
            }
            // A link to a folder is a folder; everything else is in the way.
            Some(_) if self.root.is_folder(path)? => return Ok(()),
            Some(_) => {
                return Err(StepError::Reason(format!(
                    "`{path}` is a file in the image, and can't become a folder"
                )));
            }
        };
        self.folder_metadata(folder, &item.entry, path)
    }

    fn folder_metadata(&mut self, folder: OwnedFd, entry: &Entry, path: &str) -> Result<(), StepError> {
        let fail = |action: &'static str| move |error: Errno| StepError::io(action, path, error);
        // One that was only looked up takes no mode.
        let folder =
            openat(&folder, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(fail("open"))?;
        let access = self.changed.access(entry);
        fchown(&folder, Some(Uid::from_raw(access.uid)), Some(Gid::from_raw(access.gid)))
            .map_err(fail("change the owner of"))?;
        fchmod(&folder, Mode::from_bits_truncate(access.mode)).map_err(fail("change the mode of"))?;
        if entry.mtime_s != NO_TIME {
            self.folder_times.push((path.to_owned(), self.changed.time(entry)));
        }
        Ok(())
    }

    fn metadata_of_other(
        &self,
        folder: BorrowedFd<'_>,
        name: &str,
        entry: &Entry,
        path: &str,
        is_link: bool,
    ) -> Result<(), StepError> {
        let fail = |action: &'static str| move |error: Errno| StepError::io(action, path, error);
        let access = self.changed.access(entry);
        let (uid, gid) = (Some(Uid::from_raw(access.uid)), Some(Gid::from_raw(access.gid)));
        fchownat(folder, name, uid, gid, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(fail("change the owner of"))?;
        if !is_link {
            // Just made by us, so it is no link.
            fchmodat(folder, name, Mode::from_bits_truncate(access.mode), FchmodatFlags::FollowSymlink)
                .map_err(fail("change the mode of"))?;
        }
        let time = self.changed.time(entry);
        utimensat(folder, name, &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(fail("set the time of"))
    }

    /// Fills the files that were made.
    fn contents(&mut self) -> Result<(), StepError> {
        let made: Vec<(File, String, Item)> = std::mem::take(&mut self.contents)
            .into_iter()
            .map(|(fd, path, item)| (File::from(fd), path, item))
            .collect();
        let wanted: Vec<String> = made.iter().map(|(_, _, item)| item.from.clone()).collect();
        if !wanted.is_empty() {
            self.files.read(&wanted, &mut |index, bytes| {
                let Some((file, path, _)) = made.get(index) else { return Ok(()) };
                let mut file: &File = file;
                file.write_all(bytes).map_err(|error| crate::error::Error::io("write", path.as_ref(), error))
            })?;
        }
        for (file, path, item) in made {
            self.file_metadata(&file, &item, &path)?;
        }
        Ok(())
    }

    fn file_metadata(&self, file: &File, item: &Item, path: &str) -> Result<(), StepError> {
        let fail = |action: &'static str| move |error: Errno| StepError::io(action, path, error);
        let access = self.changed.access(&item.entry);
        fchown(file, Some(Uid::from_raw(access.uid)), Some(Gid::from_raw(access.gid)))
            .map_err(fail("change the owner of"))?;
        fchmod(file, Mode::from_bits_truncate(access.mode)).map_err(fail("change the mode of"))?;
        for (name, value) in self.files.attributes(&item.from)? {
            let name = std::ffi::CString::new(name).map_err(|_| "an extended attribute has no name")?;
            match sys::set_xattr_of(file.as_fd(), &name, &value) {
                Err(Errno::ENOTSUP | Errno::EPERM) if name.to_bytes() != b"security.capability" => {}
                set => set.map_err(fail("set an extended attribute of"))?,
            }
        }
        let time = self.changed.time(&item.entry);
        futimens(file, &time, &time).map_err(fail("set the time of"))
    }

    fn finish(self) -> Result<(), StepError> {
        for (path, time) in self.folder_times.iter().rev() {
            let set = open_in(self.root.fd(), path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
                .and_then(|folder| futimens(&folder, time, time));
            set.map_err(|error| StepError::io("set the time of", path, error))?;
        }
        Ok(())
    }
}
