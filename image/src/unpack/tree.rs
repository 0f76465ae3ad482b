//! The layer's own folder, walked by descriptor.
//!
//! **Invariant:** no call in here or in `apply.rs` gives the kernel a path with more than one component
//! that came from a layer, and none follows a link in that component. Symbolic links among the ancestors
//! are read and walked here, with the layer's folder as `/`, so there is no way out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fstatat, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{Limits, Summary, UnpackError};
use crate::sys;

/// As the kernel's own path walk.
const LINKS_MAX: u32 = 40;
/// The kernel's NAME_MAX.
const NAME_MAX: usize = 255;

/// Folders that are kept open; then all are closed. Entries of an archive stand near each other.
const OPEN_MAX: usize = 64;
/// What remembering a folder takes beside its name.
const FOLDER_BYTES: u64 = 64;

/// A folder within the layer, open for reading.
#[derive(Clone)]
pub(super) struct Folder(Rc<Opened>);

struct Opened {
    fd: OwnedFd,
    /// Its real path from the layer's root, without a leading slash.
    path: Vec<u8>,
    /// `None` for the root.
    parent: Option<Folder>,
    depth: u64,
}

impl Folder {
    fn new(fd: OwnedFd, path: Vec<u8>, parent: &Folder) -> Self {
        let depth = parent.0.depth + 1;
        Folder(Rc::new(Opened { fd, path, parent: Some(parent.clone()), depth }))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }

    pub(super) fn path(&self) -> &[u8] {
        &self.0.path
    }

    pub(super) fn is_root(&self) -> bool {
        self.0.parent.is_none()
    }

    /// The real path of `name` in it.
    pub(super) fn child(&self, name: &[u8]) -> Vec<u8> {
        if self.is_root() { name.to_vec() } else { [self.path(), b"/", name].concat() }
    }
}

/// What stands under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Folder,
    /// A device 0:0, which is how overlayfs says "deleted".
    Whiteout,
    Other,
}

/// The layer while it is being unpacked.
pub(super) struct Tree {
    root: Folder,
    pub(super) limits: Limits,
    pub(super) entries: u64,
    pub(super) opaque_root: bool,
    /// By real path: the time that the folder's entry gives it, to be set when nothing is made in it any more;
    /// `None` for a folder without an entry so far.
    folders: BTreeMap<Vec<u8>, Option<(i64, i64)>>,
    /// What `folders` takes, at most.
    folders_bytes: u64,
    /// By the names that led to them. Removing something closes all: it may have been among them.
    open: HashMap<Vec<u8>, Folder>,
    /// Whether `.wh.` names mean what they mean in layers.
    pub(super) whiteouts: bool,
}

impl Tree {
    pub(super) fn new(root: OwnedFd, limits: &Limits) -> Self {
        let root = Opened { fd: root, path: Vec::new(), parent: None, depth: 0 };
        Tree {
            root: Folder(Rc::new(root)),
            limits: limits.clone(),
            entries: 0,
            opaque_root: false,
            folders: BTreeMap::from([(Vec::new(), None)]),
            folders_bytes: 0,
            open: HashMap::new(),
            whiteouts: true,
        }
    }

    pub(super) fn root(&self) -> Folder {
        self.root.clone()
    }

    /// Counts an entry against the limit.
    pub(super) fn count(&mut self) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(UnpackError::Limit { what: "entries", field: "entries", limit: self.limits.entries });
        }
        Ok(())
    }

    /// Splits an entry's name; `..`, over-long and over-deep names are refused. A leading slash means
    /// the layer's root.
    pub(super) fn components<'a>(&self, name: &'a [u8]) -> Result<Vec<&'a [u8]>, UnpackError> {
        if name.len() as u64 > self.limits.path_bytes {
            let limit = self.limits.path_bytes;
            return Err(UnpackError::Limit { what: "bytes in a name", field: "path_bytes", limit });
        }
        let parts: Vec<&[u8]> =
            name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
        if parts.contains(&&b".."[..]) {
            return Err(UnpackError::entry(name, "`..` leads out of the layer"));
        }
        if parts.iter().any(|part| part.len() > NAME_MAX) {
            return Err(UnpackError::entry(
                name,
                format!("a part of its name is longer than {NAME_MAX} bytes"),
            ));
        }
        if parts.len() as u64 > self.limits.path_depth {
            let limit = self.limits.path_depth;
            return Err(UnpackError::Limit { what: "folders within folders", field: "path_depth", limit });
        }
        Ok(parts)
    }

    /// The folder that `parts` lead to, made where it is missing. `name` is for messages.
    pub(super) fn make_folder(&mut self, parts: &[&[u8]], name: &[u8]) -> Result<Folder, UnpackError> {
        self.walk(parts, name, true)?.ok_or_else(|| UnpackError::entry(name, "its folder vanished"))
    }

    /// The folder that `parts` lead to; `None` when it isn't there.
    pub(super) fn find_folder(
        &mut self,
        parts: &[&[u8]],
        name: &[u8],
    ) -> Result<Option<Folder>, UnpackError> {
        self.walk(parts, name, false)
    }

    /// The nearest open folder on the way, and how many of the parts lead to it.
    fn nearest(&self, key: &[u8], parts: usize) -> (Folder, usize) {
        let mut key = key;
        for count in (1..=parts).rev() {
            if let Some(folder) = self.open.get(key) {
                return (folder.clone(), count);
            }
            key = &key[..key.iter().rposition(|byte| *byte == b'/').unwrap_or(0)];
        }
        (self.root(), 0)
    }

    fn keep_open(&mut self, key: Vec<u8>, folder: &Folder) {
        if self.open.len() >= OPEN_MAX {
            self.open.clear();
        }
        self.open.insert(key, folder.clone());
    }

    fn walk(&mut self, parts: &[&[u8]], name: &[u8], create: bool) -> Result<Option<Folder>, UnpackError> {
        let key = parts.join(&b'/');
        let (mut here, done) = self.nearest(&key, parts.len());
        if done == parts.len() {
            return Ok(Some(here));
        }
        let mut ahead: VecDeque<Vec<u8>> = parts[done..].iter().map(|part| part.to_vec()).collect();
        let mut links = 0;
        while let Some(part) = ahead.pop_front() {
            if part == b".." {
                // Only from a link's target. Above the root is the root.
                here = here.0.parent.clone().unwrap_or(here);
                continue;
            }
            if here.0.depth >= self.limits.path_depth {
                let limit = self.limits.path_depth;
                return Err(UnpackError::Limit {
                    what: "folders within folders",
                    field: "path_depth",
                    limit,
                });
            }
            match open_folder(here.fd(), part.as_slice()) {
                Ok(fd) => here = Folder::new(fd, here.child(&part), &here),
                Err(Errno::ENOENT) if !create => return Ok(None),
                Err(Errno::ENOENT) => here = self.make_implicit(&here, &part, false, name)?,
                Err(Errno::ENOTDIR | Errno::ELOOP) => {
                    if create && self.look(&here, &part, name)? == Found::Whiteout {
                        self.remove(&here, &part, name)?;
                        here = self.make_implicit(&here, &part, true, name)?;
                        continue;
                    }
                    let Some(target) = link_target(&here, &part, name, create)? else { return Ok(None) };
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(UnpackError::entry(name, "too many symbolic links among its ancestors"));
                    }
                    if target.starts_with(b"/") {
                        here = self.root();
                    }
                    let steps =
                        target.split(|byte| *byte == b'/').filter(|step| !step.is_empty() && *step != b".");
                    for step in steps.rev() {
                        ahead.push_front(step.to_vec());
                    }
                }
                Err(error) => return Err(UnpackError::make("open the folder of", name, error)),
            }
        }
        self.keep_open(key, &here);
        Ok(Some(here))
    }

    /// Makes a folder that has no entry (yet): mode and owner are Docker's for that case.
    fn make_implicit(
        &mut self,
        here: &Folder,
        part: &[u8],
        is_opaque: bool,
        name: &[u8],
    ) -> Result<Folder, UnpackError> {
        self.count()?;
        let make = |error: Errno| UnpackError::make("make the folder of", name, error);
        mkdirat(here.fd(), part, Mode::from_bits_truncate(0o755)).map_err(make)?;
        let fd = open_folder(here.fd(), part).map_err(make)?;
        let folder = Folder::new(fd, here.child(part), here);
        if is_opaque {
            self.make_opaque(&folder, name)?;
        }
        self.remember(&folder, None)?;
        Ok(folder)
    }

    /// Opens the folder `part`, which was just made or found in `parent`; `key` are the names that lead to it.
    pub(super) fn enter(&mut self, parent: &Folder, part: &[u8], key: Vec<u8>) -> Result<Folder, Errno> {
        let folder = Folder::new(open_folder(parent.fd(), part)?, parent.child(part), parent);
        self.keep_open(key, &folder);
        Ok(folder)
    }

    /// Notes a folder, with the time that its entry gives it.
    pub(super) fn remember(&mut self, folder: &Folder, mtime: Option<(i64, i64)>) -> Result<(), UnpackError> {
        if self.folders.insert(folder.path().to_vec(), mtime).is_none() {
            self.folders_bytes += folder.path().len() as u64 + FOLDER_BYTES;
        }
        let limit = self.limits.folder_bytes;
        if self.folders_bytes > limit {
            let what = "bytes of folders' names";
            return Err(UnpackError::Limit { what, field: "folder_bytes", limit });
        }
        Ok(())
    }

    /// Hides what lower layers have in `folder`.
    pub(super) fn make_opaque(&mut self, folder: &Folder, name: &[u8]) -> Result<(), UnpackError> {
        if folder.is_root() {
            // overlayfs does not look at the mark on the root: whoever stacks the layers stops here.
            self.opaque_root = true;
            return Ok(());
        }
        sys::set_xattr(folder.fd(), b".", sys::OVERLAY_OPAQUE, b"y")
            .map_err(|error| UnpackError::make("mark as opaque the folder of", name, error))
    }

    /// What stands under `part` in `folder`. Links are not followed.
    pub(super) fn look(&self, folder: &Folder, part: &[u8], name: &[u8]) -> Result<Found, UnpackError> {
        match fstatat(folder.fd(), part, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(classify(&stat)),
            Err(Errno::ENOENT) => Ok(Found::Nothing),
            Err(error) => Err(UnpackError::make("look at", name, error)),
        }
    }

    /// Takes away whatever stands under `part`, with everything in it.
    pub(super) fn remove(&mut self, folder: &Folder, part: &[u8], name: &[u8]) -> Result<(), UnpackError> {
        self.open.clear();
        match unlinkat(folder.fd(), part, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Err(error) => return Err(UnpackError::make("replace", name, error)),
        }
        let gone = folder.child(part);
        self.folders.remove(&gone);
        // All that begins with `gone/`: `0` is the byte behind the slash.
        let (first, end) = ([&gone[..], b"/"].concat(), [&gone[..], b"0"].concat());
        let within: Vec<Vec<u8>> = self.folders.range(first..end).map(|(path, _)| path.clone()).collect();
        for path in within {
            self.folders.remove(&path);
        }
        sys::remove_tree(folder.fd(), part).map_err(|error| UnpackError::make("replace", name, error))
    }

    /// Sets the times of the folders: after this nothing may be made.
    pub(super) fn finish(mut self) -> Result<Summary, UnpackError> {
        let mut implicit = Vec::new();
        for (path, mtime) in std::mem::take(&mut self.folders) {
            let Some(mtime) = mtime else {
                implicit.push(path);
                continue;
            };
            let time = time_spec(mtime);
            let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
            let set = match parts.split_last() {
                Some((name, parents)) if !name.is_empty() => match self.find_folder(parents, &path)? {
                    Some(parent) => {
                        utimensat(parent.fd(), *name, &time, &time, UtimensatFlags::NoFollowSymlink)
                    }
                    None => Ok(()),
                },
                _ => futimens(self.root.fd(), &time, &time),
            };
            set.map_err(|error| UnpackError::make("set the time of", &path, error))?;
        }
        let (entries, opaque_root) = (self.entries, self.opaque_root);
        Ok(Summary { entries, size_bytes: 0, opaque_root, implicit })
    }
}

/// Where the link `part` leads; `None` when it is no link and need not be one.
fn link_target(
    here: &Folder,
    part: &[u8],
    name: &[u8],
    is_needed: bool,
) -> Result<Option<Vec<u8>>, UnpackError> {
    match readlinkat(here.fd(), part) {
        Ok(target) => Ok(Some(target.into_encoded_bytes())),
        Err(Errno::EINVAL) if !is_needed => Ok(None),
        Err(Errno::EINVAL) => {
            let ancestor = String::from_utf8_lossy(&here.child(part)).into_owned();
            Err(UnpackError::entry(name, format!("its ancestor `{ancestor}` is not a folder")))
        }
        Err(error) => Err(UnpackError::make("read the link above", name, error)),
    }
}

fn classify(stat: &FileStat) -> Found {
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => Found::Folder,
        SFlag::S_IFCHR if stat.st_rdev == 0 => Found::Whiteout,
        _ => Found::Other,
    }
}

/// Opens a folder by one component, never a link, never another file system.
fn open_folder(parent: BorrowedFd<'_>, part: &[u8]) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
        );
    openat2(parent, part, how)
}

pub(super) fn time_spec((seconds, nanoseconds): (i64, i64)) -> TimeSpec {
    TimeSpec::new(seconds, nanoseconds)
}
