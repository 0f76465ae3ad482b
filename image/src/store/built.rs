//! Layers that are made here: a folder that a build has filled becomes an archive and, as it is, an unpacked layer.

use std::fs;
use std::path::{Path, PathBuf};

use super::layers::LayerFacts;
use super::{Inner, Pin, Store, lock, shared};
use crate::build::layer::{Archiving, archive};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::make::{Compression, NewLayer};
use crate::manifest::Descriptor;

/// A layer: its archive, and the digest of that when it is not compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) blob: Descriptor,
    pub(crate) diff_id: Digest,
}

/// A folder of a step that is going on; goes away with this.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Where changes go: an overlay's upper folder.
    pub(crate) fn upper(&self) -> PathBuf {
        self.path.join("fs")
    }

    /// Overlayfs' own.
    pub(crate) fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Further folders of the step, such as what is mounted.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(|error| Error::io("create", &path, error))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a step's folder can't be removed; the next start tries again");
        }
    }
}

impl Store {
    /// An empty folder for a step.
    pub(crate) fn scratch(&self) -> Result<Scratch> {
        let scratch = Scratch { path: self.inner.temporary("layers") };
        for path in [scratch.upper(), scratch.work()] {
            fs::create_dir_all(&path).map_err(|error| Error::io("create", &path, error))?;
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .map_err(|error| Error::io("change the mode of", &path, error))?;
        }
        Ok(scratch)
    }

    /// Makes a layer of what is in the scratch's upper folder; `None` when that is empty. The layer is kept
    /// from being swept while the pin lives.
    pub(crate) fn keep_changes(
        &self,
        scratch: &Scratch,
        how: &Archiving<'_>,
    ) -> Result<Option<(Layer, Pin)>> {
        let upper = scratch.upper();
        let mut entries = fs::read_dir(&upper).map_err(|error| Error::io("list", &upper, error))?;
        if entries.next().is_none() && !how.root {
            return Ok(None);
        }
        let (new, entries) = self.make_layer(Compression::Gzip, |out| archive(&upper, out, how))?;
        let NewLayer { descriptor, diff_id, size_bytes, mut pin } = new;
        pin.join(self.pin([diff_id.clone()]));
        self.inner.adopt(&upper, &diff_id, LayerFacts::made_here(entries, size_bytes, how.root))?;
        Ok(Some((Layer { blob: descriptor, diff_id }, pin)))
    }

    /// The folders of a stack of layers, topmost first, unpacked where they are not.
    pub(crate) fn stack(&self, layers: &[Layer]) -> Result<(Vec<PathBuf>, Pin)> {
        let all = layers.iter().flat_map(|layer| [layer.blob.digest.clone(), layer.diff_id.clone()]);
        let pin = self.pin(all);
        let blobs: Vec<Descriptor> = layers.iter().map(|layer| layer.blob.clone()).collect();
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let (folders, more) = self.stack_of(&blobs, &diff_ids)?;
        let mut pin = pin;
        pin.join(more);
        Ok((folders, pin))
    }

    /// Stores a small document under its digest.
    pub(crate) fn keep_document(&self, bytes: &[u8]) -> Result<(Digest, Pin)> {
        let digest = Digest::of(bytes);
        let pin = self.pin([digest.clone()]);
        if !self.has(&digest) {
            let mut writer = self.ingest(&digest, Some(bytes.len() as u64))?;
            writer.write(bytes)?;
            writer.commit()?;
        }
        Ok((digest, pin))
    }
}

impl Inner {
    /// The folder becomes the unpacked layer, unless that is there already.
    fn adopt(&self, upper: &Path, diff_id: &Digest, facts: LayerFacts) -> Result<()> {
        let turn = shared(&self.unpacking, diff_id);
        let _turn = lock(&turn);
        if self.layer_path(diff_id).exists() {
            return Ok(());
        }
        self.make_layer(diff_id, |fs_folder| {
            // It is empty, so the rename replaces it.
            fs::rename(upper, fs_folder).map_err(|error| Error::io("move", upper, error))?;
            if facts.guesses_root() {
                // As unpacking leaves it when the archive says nothing about `/`.
                fs::set_permissions(fs_folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                    .and_then(|()| std::os::unix::fs::chown(fs_folder, Some(0), Some(0)))
                    .map_err(|error| Error::io("change the mode of", fs_folder, error))?;
            }
            Ok(facts)
        })
    }
}
