//! Folders that a layer implies but has no entry for.
//!
//! A layer may hold `tmp/x` without `tmp`. Unpacked on its own, its `tmp` gets a guessed mode and owner,
//! and stacked on top that guess would hide the true ones of a lower layer: `/tmp` would lose its 1777.
//! Where that happens one small layer is put on top of the stack that has these folders, and nothing
//! else, with the mode and owner of the highest layer that really says them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::layers::LayerFacts;
use super::{Store, lock, shared};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::sys;

/// A layer's folder and facts; stacks are topmost first.
type Layer = (PathBuf, LayerFacts);

/// Mode, owner and group.
type Access = (u32, u32, u32);

impl Store {
    /// The name of the image's layer of ancestors; `None` for an image with fewer than two layers, which
    /// can't need one.
    pub(super) fn fixes_of(diff_ids: &[Digest]) -> Option<Digest> {
        if diff_ids.len() < 2 {
            return None;
        }
        let chain: Vec<String> = diff_ids.iter().map(Digest::to_string).collect();
        Some(Digest::of(format!("rorqual ancestors 1\n{}", chain.join("\n")).as_bytes()))
    }

    /// The folder of the layer of ancestors, made when it isn't there; `None` when none is needed.
    pub(super) fn ancestors_layer(&self, key: &Digest, stack: &[Layer]) -> Result<Option<PathBuf>> {
        let turn = shared(&self.inner.unpacking, key);
        let _turn = lock(&turn);
        let path = self.inner.layer_path(key);
        if !path.exists() {
            let wrong = wrong_folders(stack)?;
            // An empty one is kept as well: it says that there is nothing to look for.
            self.inner.make_layer(key, |fs| {
                for (folder, access) in &wrong {
                    make(&fs.join(folder), *access)?;
                }
                Ok(LayerFacts { entries: wrong.len() as u64, ..LayerFacts::default() })
            })?;
        }
        let is_needed = self.inner.layer_facts(key)?.entries > 0;
        Ok(is_needed.then(|| path.join("fs")))
    }
}

/// The folders whose guessed access hides a true one, and everything above them, parents first.
fn wrong_folders(stack: &[Layer]) -> Result<BTreeMap<PathBuf, Access>> {
    let mut view = View::new(stack);
    let mut wrong = BTreeMap::new();
    for at in 0..stack.len() {
        for folder in view.implicit[at].clone() {
            let (shown, said) = view.access_of(&folder)?;
            if said.is_some() && said != shown {
                // The new layer has the folders above it too, and must say the truth about them.
                for above in folder.ancestors() {
                    let (shown, said) = view.access_of(above)?;
                    if let Some(access) = said.or(shown) {
                        wrong.insert(above.to_owned(), access);
                    }
                }
            }
        }
    }
    Ok(wrong)
}

/// What one layer says about a folder: nothing, so that lower ones count; or that it hides what lower ones say, and
/// its own version, unless it has none.
#[derive(Clone, Copy)]
enum Word {
    Nothing,
    Has { access: Access, hides_lower: bool },
    Hides,
}

/// The stack, and what was looked up in it: an image may have many folders without entries, all under the same few.
struct View<'a> {
    stack: &'a [Layer],
    implicit: Vec<BTreeSet<PathBuf>>,
    known: Vec<HashMap<PathBuf, Word>>,
}

impl<'a> View<'a> {
    fn new(stack: &'a [Layer]) -> Self {
        let implicit = stack.iter().map(|(_, facts)| {
            facts.implicit().map(|path| PathBuf::from(std::ffi::OsStr::from_bytes(&path))).collect()
        });
        View { stack, implicit: implicit.collect(), known: vec![HashMap::new(); stack.len()] }
    }

    /// What the stack shows for `folder`, and what the highest layer says that has an entry for it.
    fn access_of(&mut self, folder: &Path) -> Result<(Option<Access>, Option<Access>)> {
        let mut shown = None;
        for at in 0..self.stack.len() {
            match self.look(at, folder)? {
                Word::Nothing => {}
                Word::Hides => break,
                Word::Has { access, hides_lower } => {
                    shown = shown.or(Some(access));
                    if !self.implicit[at].contains(folder) {
                        return Ok((shown, Some(access)));
                    }
                    if hides_lower {
                        break;
                    }
                }
            }
        }
        Ok((shown, None))
    }

    /// What layer `at` says about `folder`, by way of what it says about the folder above.
    fn look(&mut self, at: usize, folder: &Path) -> Result<Word> {
        if let Some(word) = self.known[at].get(folder) {
            return Ok(*word);
        }
        let word = match folder.parent() {
            None => self.look_there(at, folder, false)?,
            Some(parent) => match self.look(at, parent)? {
                Word::Has { hides_lower, .. } => self.look_there(at, folder, hides_lower)?,
                other => other,
            },
        };
        self.known[at].insert(folder.to_owned(), word);
        Ok(word)
    }

    fn look_there(&self, at: usize, folder: &Path, hides_lower: bool) -> Result<Word> {
        let path = self.stack[at].0.join(folder);
        Ok(match stat(&path)? {
            None if hides_lower => Word::Hides,
            None => Word::Nothing,
            Some(found) if !found.is_dir() => Word::Hides,
            Some(found) => {
                let access = (found.mode() & 0o7777, found.uid(), found.gid());
                let is_root = folder.as_os_str().is_empty();
                Word::Has { access, hides_lower: hides_lower || (!is_root && is_opaque(&path)?) }
            }
        })
    }
}

fn is_opaque(folder: &Path) -> Result<bool> {
    let opened = fs::File::open(folder).map_err(|error| Error::io("open", folder, error))?;
    let mark = sys::get_xattr(std::os::fd::AsFd::as_fd(&opened), b".", sys::OVERLAY_OPAQUE)
        .map_err(|error| Error::io("read the attributes of", folder, error.into()))?;
    Ok(mark.is_some())
}

fn stat(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("look at", path, error)),
    }
}

fn make(path: &Path, (mode, uid, gid): Access) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| Error::io("create", path, error))?;
    std::os::unix::fs::chown(path, Some(uid), Some(gid))
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(|error| Error::io("change the owner of", path, error))
}
