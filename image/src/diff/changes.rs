//! What is added, changed and deleted in a container: its upper folder held against what lies below.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt as _;

use nix::sys::stat::SFlag;

use super::merged::{Merged, Seen};
use super::{DEPTH_MAX, Folders};
use crate::error::{Error, Result};

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It was not there.
    Added,
    /// It was there, and is otherwise now; a folder also where something in it changed.
    Changed,
    /// It is not there any more.
    Deleted,
}

impl ChangeKind {
    /// `A`, `C` or `D`.
    pub fn letter(self) -> char {
        match self {
            ChangeKind::Added => 'A',
            ChangeKind::Changed => 'C',
            ChangeKind::Deleted => 'D',
        }
    }
}

/// One path that is not as the image has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// From the root, with a leading slash; need not be UTF-8.
    pub path: Vec<u8>,
    /// What became of it.
    pub kind: ChangeKind,
}

/// Every change, in the order of the paths; folders before what is in them.
pub fn changes(folders: &Folders) -> Result<Vec<Change>> {
    let upper = Merged::root([folders.upper.as_path()])?;
    let lower = Merged::root(folders.lowers.iter().map(std::path::PathBuf::as_path))?;
    let points = folders.mount_points.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect();
    let mut search = Search { mount_points: points, found: Vec::new() };
    search.folder(&upper, Some(&lower), 0)?;
    Ok(search.found)
}

struct Search {
    mount_points: HashSet<Vec<u8>>,
    found: Vec<Change>,
}

impl Search {
    /// Looks through one folder of the upper; `below` is what it lies upon, if it lies upon one.
    fn folder(&mut self, upper: &Merged, below: Option<&Merged>, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(too_deep(upper));
        }
        for (name, seen) in upper.list()? {
            let before = below.map(|below| below.look(&name)).transpose()?.flatten();
            if seen.is_whiteout() {
                if before.is_some() {
                    self.note(upper, &name, ChangeKind::Deleted);
                }
            } else if seen.is_folder() {
                self.subfolder(upper, below, &name, &seen, before.as_ref(), depth)?;
            } else if before.is_some() {
                self.note(upper, &name, ChangeKind::Changed);
            } else if !self.is_mount_point(upper, &name) || seen.stat.st_size > 0 {
                self.note(upper, &name, ChangeKind::Added);
            }
        }
        Ok(())
    }

    fn subfolder(
        &mut self,
        upper: &Merged,
        below: Option<&Merged>,
        name: &[u8],
        seen: &Seen,
        before: Option<&Seen>,
        depth: usize,
    ) -> Result<()> {
        // Noted before what is in it; taken back if it turns out to be as it was.
        let kind = if before.is_some() { ChangeKind::Changed } else { ChangeKind::Added };
        let place = self.found.len();
        self.note(upper, name, kind);
        let Some(inner) = upper.enter(name)? else { return Ok(()) };
        let was_folder = before.is_some_and(Seen::is_folder);
        let underneath = match below {
            Some(below) if was_folder => below.enter(name)?,
            _ => None,
        };
        let is_opaque = upper.hides_below(name, seen)?;
        if is_opaque && let Some(underneath) = &underneath {
            for (hidden, old) in underneath.list()? {
                if !old.is_whiteout() && inner.look(&hidden)?.is_none() {
                    self.note(&inner, &hidden, ChangeKind::Deleted);
                }
            }
        }
        self.folder(&inner, underneath.as_ref(), depth + 1)?;
        let is_quiet = self.found.len() == place + 1;
        let is_as_it_was = match (before, below) {
            (Some(before), Some(below)) if was_folder && !is_opaque => {
                let is_same =
                    same_folder(seen, before) && upper.xattrs(name, seen)? == below.xattrs(name, before)?;
                // A mount point that was made in it has touched its time.
                is_same && (seen.stat.st_mtime == before.stat.st_mtime || self.has_mount_point(&inner))
            }
            (None, _) => self.is_mount_point(upper, name) || self.has_mount_point(&inner),
            _ => false,
        };
        if is_quiet && is_as_it_was {
            self.found.truncate(place);
        } else if is_opaque {
            self.found[place + 1..].sort();
        }
        Ok(())
    }

    fn note(&mut self, folder: &Merged, name: &[u8], kind: ChangeKind) {
        let path = [b"/", folder.child(name).as_slice()].concat();
        self.found.push(Change { path, kind });
    }

    fn is_mount_point(&self, folder: &Merged, name: &[u8]) -> bool {
        self.mount_points.contains(&folder.child(name))
    }

    fn has_mount_point(&self, folder: &Merged) -> bool {
        let is_within = |point: &Vec<u8>| {
            point.strip_prefix(folder.path.as_slice()).is_some_and(|rest| rest.starts_with(b"/"))
        };
        self.mount_points.iter().any(is_within)
    }
}

fn same_folder(one: &Seen, other: &Seen) -> bool {
    let facts = |seen: &Seen| (seen.stat.st_mode & !SFlag::S_IFMT.bits(), seen.stat.st_uid, seen.stat.st_gid);
    facts(one) == facts(other)
}

pub(super) fn too_deep(folder: &Merged) -> Error {
    let reason = std::io::Error::other(format!("more than {DEPTH_MAX} folders are nested"));
    folder.fail(b"", "read", reason)
}
