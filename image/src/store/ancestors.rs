//! Folders that a layer implies but has no entry for.
//!
//! A layer may hold `tmp/x` without `tmp`. Unpacked on its own, its `tmp` gets a guessed mode and owner,
//! and stacked on top that guess would hide the true ones of a lower layer: `/tmp` would lose its 1777.
//! Where that happens one small layer is put on top of the stack that has these folders, and nothing
//! else, with the mode and owner of the highest layer that really says them.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

use super::layers::LayerFacts;
use super::{Store, lock, shared};
use crate::config;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::sys;

/// A layer's folder and facts; stacks are topmost first.
type Layer = (PathBuf, LayerFacts);

/// Mode, owner and group.
type Access = (u32, u32, u32);

impl Store {
    /// The name of the image's layer of ancestors; `None` for an image with fewer than two layers, which
    /// can't need one.
    pub(super) fn fixes_of(
        &self,
        manifest: &Manifest,
        config: &ImageConfiguration,
    ) -> Result<Option<Digest>> {
        let diff_ids = config::diff_ids(&manifest.config.digest, config)?;
        if diff_ids.len() < 2 {
            return Ok(None);
        }
        let chain: Vec<String> = diff_ids.iter().map(Digest::to_string).collect();
        Ok(Some(Digest::of(format!("rorqual ancestors 1\n{}", chain.join("\n")).as_bytes())))
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
    let implicit: Vec<HashSet<PathBuf>> = stack
        .iter()
        .map(|(_, facts)| {
            facts.implicit().map(|path| PathBuf::from(std::ffi::OsStr::from_bytes(&path))).collect()
        })
        .collect();
    let mut wrong = BTreeMap::new();
    for folder in implicit.iter().flatten() {
        let (shown, said) = access_of(stack, &implicit, folder)?;
        if said.is_some() && said != shown {
            // The new layer has the folders above it too, and must say the truth about them.
            for above in folder.ancestors() {
                let (shown, said) = access_of(stack, &implicit, above)?;
                if let Some(access) = said.or(shown) {
                    wrong.insert(above.to_owned(), access);
                }
            }
        }
    }
    Ok(wrong)
}

/// What the stack shows for `folder`, and what the highest layer says that has an entry for it.
fn access_of(
    stack: &[Layer],
    implicit: &[HashSet<PathBuf>],
    folder: &Path,
) -> Result<(Option<Access>, Option<Access>)> {
    let mut shown = None;
    for ((root, _), guesses) in stack.iter().zip(implicit) {
        let Some((metadata, hides_lower)) = look(root, folder)? else {
            continue;
        };
        let Some(metadata) = metadata else { break };
        let access = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
        shown = shown.or(Some(access));
        if !guesses.contains(folder) {
            return Ok((shown, Some(access)));
        }
        if hides_lower {
            break;
        }
    }
    Ok((shown, None))
}

/// `folder` in one layer: `None` when the layer doesn't have it and lower ones count; no metadata when
/// the layer hides it; and whether the layer hides what lower ones say about it.
fn look(root: &Path, folder: &Path) -> Result<Option<(Option<Metadata>, bool)>> {
    let mut path = root.to_owned();
    let mut hides_lower = false;
    let mut metadata = stat(&path)?;
    for part in folder.components() {
        path.push(part);
        metadata = stat(&path)?;
        match &metadata {
            None if hides_lower => return Ok(Some((None, true))),
            None => return Ok(None),
            Some(found) if !found.is_dir() => return Ok(Some((None, true))),
            Some(_) => {
                let opened = fs::File::open(&path).map_err(|error| Error::io("open", &path, error))?;
                let mark = sys::get_xattr(std::os::fd::AsFd::as_fd(&opened), b".", sys::OVERLAY_OPAQUE)
                    .map_err(|error| Error::io("read the attributes of", &path, error.into()))?;
                hides_lower |= mark.is_some();
            }
        }
    }
    Ok(Some((metadata, hides_lower)))
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
