//! Unpacked layers: `layers/<algorithm>/<hex of the diff-id>/fs`, and `layer.json` beside it.
//!
//! A layer is unpacked once, whatever images have it, and independent of what lies below: deletions
//! are overlayfs whiteouts. It gets its name after everything in it is on disk, so what is found under a
//! diff-id is whole. Start at [`Store::prepare`].

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::{Follower, Inner, Pin, Store, lock, shared};
use crate::config;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::Descriptor;
use crate::unpack::{self, Summary, UnpackError};

/// More at once only make the disk seek.
const UNPACK_THREADS_MAX: usize = 4;

/// An image that is ready to be mounted. Its layers stay on disk while this lives.
#[derive(Debug)]
pub struct Prepared {
    /// The manifest.
    pub digest: Digest,
    /// The image configuration.
    pub config: ImageConfiguration,
    /// Lower folders for overlayfs, topmost first; never empty. Many, and their names are long: mount
    /// with `fsconfig` and `lowerdir+`. The mode and owner of `/` in a container are those of the upper
    /// folder: copy them from the first of these.
    pub layers: Vec<PathBuf>,
    _pin: Pin,
}

/// What `layer.json` says.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct LayerFacts {
    pub(super) entries: u64,
    pub(super) size_bytes: u64,
    pub(super) opaque_root: bool,
    /// Folders that the layer has no entry for; base64, since names need not be UTF-8.
    pub(super) implicit: Vec<String>,
}

impl LayerFacts {
    pub(super) fn implicit(&self) -> impl Iterator<Item = Vec<u8>> {
        self.implicit.iter().filter_map(|text| BASE64_STANDARD.decode(text).ok())
    }
}

impl LayerFacts {
    /// Of a layer that was archived from a folder: nothing in it is a guess, but for `/`.
    pub(super) fn made_here(entries: u64, size_bytes: u64, has_root: bool) -> Self {
        let implicit = if has_root { Vec::new() } else { vec![String::new()] };
        LayerFacts { entries, size_bytes, opaque_root: false, implicit }
    }

    /// Whether nothing was said of `/`.
    pub(super) fn guesses_root(&self) -> bool {
        self.implicit.iter().any(String::is_empty)
    }
}

impl From<Summary> for LayerFacts {
    fn from(summary: Summary) -> Self {
        LayerFacts {
            entries: summary.entries,
            size_bytes: summary.size_bytes,
            opaque_root: summary.opaque_root,
            implicit: summary.implicit.iter().map(|path| BASE64_STANDARD.encode(path)).collect(),
        }
    }
}

impl Store {
    /// Makes the image with that manifest (or index) ready to mount: unpacks the layers that are not yet
    /// unpacked, several at a time. Who else wants the same layer meanwhile waits for it.
    pub fn prepare(&self, digest: &Digest) -> Result<Prepared> {
        let (chosen, manifest) = self.choose(digest)?;
        self.config_of(&chosen, &manifest)?;
        self.prepare_any(digest)
    }

    /// As [`prepare`](Self::prepare), whatever the image is for: to look at its files.
    pub fn prepare_any(&self, digest: &Digest) -> Result<Prepared> {
        let mut pin = self.pin([digest.clone()]);
        let (digest, manifest) = self.choose(digest)?;
        pin.join(self.pin([digest.clone(), manifest.config.digest.clone()]));
        let config = self.config_of_any(&digest, &manifest)?;
        let diff_ids = config::diff_ids(&manifest.config.digest, &config)?;
        pin.join(
            self.pin(
                manifest.layers.iter().map(|layer| layer.digest.clone()).chain(diff_ids.iter().cloned()),
            ),
        );
        let (layers, more) = self.stack_of(&manifest.layers, &diff_ids)?;
        pin.join(more);
        self.touch(&digest)?;
        Ok(Prepared { digest, config, layers, _pin: pin })
    }

    /// The folders of these layers, topmost first and never none, unpacked where they are not. They have to be pinned.
    pub(super) fn stack_of(&self, blobs: &[Descriptor], diff_ids: &[Digest]) -> Result<(Vec<PathBuf>, Pin)> {
        self.unpack_missing(blobs, diff_ids)?;
        let mut pin = self.pin([]);
        // From the top down to a layer that hides everything below.
        let mut stack = Vec::with_capacity(diff_ids.len());
        for diff_id in diff_ids.iter().rev() {
            let facts = self.inner.layer_facts(diff_id)?;
            let hides_all = facts.opaque_root;
            stack.push((self.inner.layer_path(diff_id).join("fs"), facts));
            if hides_all {
                break;
            }
        }
        let mut layers = Vec::with_capacity(stack.len() + 1);
        if let Some(key) = Self::fixes_of(diff_ids) {
            pin.join(self.pin([key.clone()]));
            layers.extend(self.ancestors_layer(&key, &stack)?);
        }
        layers.extend(stack.into_iter().map(|(path, _)| path));
        if layers.is_empty() {
            layers.push(self.inner.root.join("layers/empty"));
        }
        Ok((layers, pin))
    }

    /// Unpacks one layer whose blob is here.
    pub(crate) fn unpack(&self, blob: &Descriptor, diff_id: &Digest) -> Result<()> {
        self.inner.unpack_once(blob, diff_id)
    }

    /// Unpacks one layer while its blob arrives; `false` when the blob was given up meanwhile.
    pub(crate) fn unpack_while_arriving(
        &self,
        blob: &Digest,
        follower: Follower,
        diff_id: &Digest,
    ) -> Result<bool> {
        let _pin = self.pin([diff_id.clone()]);
        let fate = follower.fate();
        match self.inner.unpack_arriving(blob, follower, diff_id) {
            Err(_) if fate.is_lost() => Ok(false),
            unpacked => unpacked.map(|()| true),
        }
    }

    fn unpack_missing(&self, blobs: &[Descriptor], diff_ids: &[Digest]) -> Result<()> {
        let missing: Vec<(&Descriptor, &Digest)> = blobs
            .iter()
            .zip(diff_ids)
            .filter(|(_, diff_id)| !self.inner.layer_path(diff_id).exists())
            .collect();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(UNPACK_THREADS_MAX);
        if missing.len() <= 1 || threads == 1 {
            return missing.iter().try_for_each(|(blob, diff_id)| self.inner.unpack_once(blob, diff_id));
        }
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            while let Some((blob, diff_id)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.inner.unpack_once(blob, diff_id) {
                    // The others need not begin another one.
                    next.store(missing.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.min(missing.len())).map(|_| scope.spawn(work)).collect();
            let mut outcome = Ok(());
            for worker in workers {
                let ended = worker.join().unwrap_or_else(|_| Err(Error::Interrupted("a layer".to_owned())));
                outcome = outcome.and(ended);
            }
            outcome
        })
    }
}

impl Inner {
    pub(super) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.algorithm().as_str()).join(diff_id.hex())
    }

    pub(super) fn layer_facts(&self, diff_id: &Digest) -> Result<LayerFacts> {
        let path = self.layer_path(diff_id).join("layer.json");
        let bytes = fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        serde_json::from_slice(&bytes)
            .map_err(|source| Error::Json { what: path.display().to_string(), source })
    }

    /// Unpacks the layer unless it is there, or someone else is at it and brings it to an end.
    fn unpack_once(&self, blob: &Descriptor, diff_id: &Digest) -> Result<()> {
        let turn = shared(&self.unpacking, diff_id);
        let _turn = lock(&turn);
        if self.layer_path(diff_id).exists() {
            return Ok(());
        }
        self.make_layer(diff_id, |fs| self.unpack_blob(fs, blob, diff_id).map(LayerFacts::from))
    }

    /// Unpacks the layer from a blob that is still arriving. The layer appears after its blob was verified.
    ///
    /// No turn is held meanwhile: who wants the layer from elsewhere must not wait for a slow registry.
    fn unpack_arriving(&self, blob: &Digest, follower: Follower, diff_id: &Digest) -> Result<()> {
        if self.layer_path(diff_id).exists() {
            return Ok(());
        }
        let temporary = self.temporary("layers");
        let unpacked = self.fill_layer(&temporary, |fs| {
            let summary = unpack::unpack(follower, None, diff_id, open(fs)?, &self.options.limits);
            summary.map(LayerFacts::from).map_err(|source| Error::Unpack { layer: blob.clone(), source })
        });
        let turn = shared(&self.unpacking, diff_id);
        let _turn = lock(&turn);
        let is_wanted = !self.layer_path(diff_id).exists();
        let made = match unpacked {
            Ok(()) if is_wanted => self.show_layer(&temporary, diff_id),
            other => other,
        };
        if made.is_err() || !is_wanted {
            discard(&temporary);
        }
        made
    }

    /// Makes the layer `name` from what `fill` puts into its folder; all of it or nothing.
    pub(super) fn make_layer(
        &self,
        name: &Digest,
        fill: impl FnOnce(&Path) -> Result<LayerFacts>,
    ) -> Result<()> {
        let temporary = self.temporary("layers");
        let made = self.fill_layer(&temporary, fill).and_then(|()| self.show_layer(&temporary, name));
        if made.is_err() {
            discard(&temporary);
        }
        made
    }

    /// Gives a layer that is whole and on disk its name. The name itself may be lost in a crash: then the layer is
    /// made once more.
    fn show_layer(&self, temporary: &Path, name: &Digest) -> Result<()> {
        let path = self.layer_path(name);
        fs::rename(temporary, &path).map_err(|error| Error::io("create", &path, error))
    }

    fn fill_layer(&self, folder: &Path, fill: impl FnOnce(&Path) -> Result<LayerFacts>) -> Result<()> {
        let fs = folder.join("fs");
        fs::create_dir_all(&fs).map_err(|error| Error::io("create", &fs, error))?;
        fs::set_permissions(&fs, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(|error| Error::io("change the mode of", &fs, error))?;
        let facts = fill(&fs)?;
        let path = folder.join("layer.json");
        let json = serde_json::to_vec(&facts)
            .map_err(|source| Error::Json { what: path.display().to_string(), source })?;
        fs::write(&path, json).map_err(|error| Error::io("write", &path, error))?;
        // One barrier for all its files, before the name that makes them count.
        self.layers_barrier.sync().map_err(|error| Error::io("sync", folder, error))
    }

    fn unpack_blob(&self, fs: &Path, blob: &Descriptor, diff_id: &Digest) -> Result<Summary> {
        let missing = || Error::BlobMissing { digest: blob.digest.clone(), role: "layer" };
        let file = self.open_blob(&blob.digest)?.ok_or_else(missing)?.file;
        unpack::unpack(file, Some(&blob.digest), diff_id, open(fs)?, &self.options.limits).map_err(|source| {
            if matches!(source, UnpackError::Blob { .. }) {
                self.discard_corrupt(&blob.digest);
            }
            Error::Unpack { layer: blob.digest.clone(), source }
        })
    }
}

fn open(fs: &Path) -> Result<OwnedFd> {
    File::open(fs).map(OwnedFd::from).map_err(|error| Error::io("open", fs, error))
}

fn discard(temporary: &Path) {
    if temporary.exists()
        && let Err(error) = fs::remove_dir_all(temporary)
    {
        tracing::warn!(path = %temporary.display(), %error, "a half-unpacked layer can't be removed; the next start tries again");
    }
}
