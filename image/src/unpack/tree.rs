//! The layer's own folder, walked by descriptor.
//!
//! **Invariant:** no call in here or in `apply.rs` gives the kernel a path with more than one component
//! that came from a layer, and none follows a link in that component. Symbolic links among the ancestors
//! are read and walked here, with the layer's folder as `/`, so there is no way out.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{Limits, Summary, UnpackError};
use crate::sys;

/// As the kernel's own path walk.
const LINKS_MAX: u32 = 40;
/// The kernel's NAME_MAX.
const NAME_MAX: usize = 255;

/// A folder within the layer.
#[derive(Clone)]
pub(super) struct Folder {
    fd: Rc<OwnedFd>,
    /// Its real path from the layer's root, without a leading slash.
    pub(super) path: Rc<Vec<u8>>,
}

impl Folder {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn is_root(&self) -> bool {
        self.path.is_empty()
    }

    /// The real path of `name` in it.
    pub(super) fn child(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [self.path.as_slice(), b"/", name].concat() }
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
    /// Folders without an entry of their own so far.
    pub(super) implicit: BTreeSet<Vec<u8>>,
    /// Modification times of folders, set when nothing is made in them any more.
    pub(super) folder_times: HashMap<Vec<u8>, (i64, i64)>,
    /// The folder of the entry before: archives are sorted, so it is mostly the next one's too.
    recent: Option<(Vec<u8>, Folder)>,
}

impl Tree {
    pub(super) fn new(root: OwnedFd, limits: &Limits) -> Self {
        Tree {
            root: Folder { fd: Rc::new(root), path: Rc::default() },
            limits: limits.clone(),
            entries: 0,
            opaque_root: false,
            implicit: BTreeSet::from([Vec::new()]),
            folder_times: HashMap::new(),
            recent: None,
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
        let key = parts.join(&b'/');
        if let Some((path, folder)) = &self.recent
            && *path == key
        {
            return Ok(folder.clone());
        }
        let folder =
            self.walk(parts, name, true)?.ok_or_else(|| UnpackError::entry(name, "its folder vanished"))?;
        self.recent = Some((key, folder.clone()));
        Ok(folder)
    }

    /// The folder that `parts` lead to; `None` when it isn't there.
    pub(super) fn find_folder(
        &mut self,
        parts: &[&[u8]],
        name: &[u8],
    ) -> Result<Option<Folder>, UnpackError> {
        self.walk(parts, name, false)
    }

    fn walk(&mut self, parts: &[&[u8]], name: &[u8], create: bool) -> Result<Option<Folder>, UnpackError> {
        let mut stack = vec![self.root()];
        let mut ahead: VecDeque<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        let mut links = 0;
        while let Some(part) = ahead.pop_front() {
            let here = stack.last().cloned().unwrap_or_else(|| self.root());
            if part == b".." {
                // Only from a link's target. Above the root is the root.
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            if stack.len() as u64 > self.limits.path_depth {
                let limit = self.limits.path_depth;
                return Err(UnpackError::Limit {
                    what: "folders within folders",
                    field: "path_depth",
                    limit,
                });
            }
            match open_folder(here.fd(), part.as_slice()) {
                Ok(fd) => stack.push(Folder { fd: Rc::new(fd), path: Rc::new(here.child(&part)) }),
                Err(Errno::ENOENT) if !create => return Ok(None),
                Err(Errno::ENOENT) => stack.push(self.make_implicit(&here, &part, false, name)?),
                Err(Errno::ENOTDIR | Errno::ELOOP) => {
                    if self.look(&here, &part, name)? == Found::Whiteout && create {
                        self.remove(&here, &part, name)?;
                        stack.push(self.make_implicit(&here, &part, true, name)?);
                        continue;
                    }
                    let target = match readlinkat(here.fd(), part.as_slice()) {
                        Ok(target) => target.into_encoded_bytes(),
                        Err(Errno::EINVAL) if !create => return Ok(None),
                        Err(Errno::EINVAL) => {
                            let ancestor = String::from_utf8_lossy(&here.child(&part)).into_owned();
                            return Err(UnpackError::entry(
                                name,
                                format!("its ancestor `{ancestor}` is not a folder"),
                            ));
                        }
                        Err(error) => return Err(UnpackError::make("read the link above", name, error)),
                    };
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(UnpackError::entry(name, "too many symbolic links among its ancestors"));
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
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
        Ok(stack.pop())
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
        let path = here.child(part);
        let folder = Folder { fd: Rc::new(fd), path: Rc::new(path.clone()) };
        if is_opaque {
            self.make_opaque(&folder, name)?;
        }
        self.implicit.insert(path);
        Ok(folder)
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
        // The descriptor kept from before may lie within.
        self.recent = None;
        match unlinkat(folder.fd(), part, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Err(error) => return Err(UnpackError::make("replace", name, error)),
        }
        let gone = folder.child(part);
        let is_within = |path: &Vec<u8>| {
            path.strip_prefix(gone.as_slice()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        self.implicit.retain(|path| !is_within(path));
        self.folder_times.retain(|path, _| !is_within(path));
        sys::remove_tree(folder.fd(), part).map_err(|error| UnpackError::make("replace", name, error))
    }

    /// Sets the times of the folders: after this nothing may be made.
    pub(super) fn finish(mut self) -> Result<Summary, UnpackError> {
        let times: Vec<_> = std::mem::take(&mut self.folder_times).into_iter().collect();
        for (path, mtime) in times {
            let parts: Vec<&[u8]> =
                path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
            if let Some(folder) = self.find_folder(&parts, &path)? {
                let set = open_readable(folder.fd())
                    .and_then(|fd| futimens(fd, &time_spec(mtime), &time_spec(mtime)));
                set.map_err(|error| UnpackError::make("set the time of", &path, error))?;
            }
        }
        Ok(Summary {
            entries: self.entries,
            size_bytes: 0,
            opaque_root: self.opaque_root,
            implicit: self.implicit.into_iter().collect(),
        })
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
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
        );
    openat2(parent, part, how)
}

/// The same folder with a descriptor that takes times and modes.
pub(super) fn open_readable(folder: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    nix::fcntl::openat(folder, c".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

pub(super) fn time_spec((seconds, nanoseconds): (i64, i64)) -> TimeSpec {
    TimeSpec::new(seconds, nanoseconds)
}
