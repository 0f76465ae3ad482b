//! Removing images, and sweeping away what no image needs any more.
//!
//! Garbage is first renamed into `tmp` under the pins' lock, which is quick and makes it invisible at
//! once, then deleted at leisure. A crash in between is finished by the next open.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::content::digests_in;
use super::{ImageRecord, Store, lock};
use crate::config;
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};
use crate::manifest::Document;
use crate::reference::Reference;

/// What to remove.
#[derive(Clone, Debug)]
pub enum Target {
    /// One name; the image goes with its last name.
    Name(Reference),
    /// An image, by its manifest or index.
    Image(Digest),
}

impl From<Reference> for Target {
    fn from(reference: Reference) -> Self {
        Target::Name(reference)
    }
}

impl From<&Reference> for Target {
    fn from(reference: &Reference) -> Self {
        Target::Name(reference.clone())
    }
}

impl From<Digest> for Target {
    fn from(digest: Digest) -> Self {
        Target::Image(digest)
    }
}

impl From<&Digest> for Target {
    fn from(digest: &Digest) -> Self {
        Target::Image(digest.clone())
    }
}

/// What a removal did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<Reference>,
    /// Manifests that are gone with their last name.
    pub images: Vec<Digest>,
    /// Blobs that no other image needed.
    pub blobs: Vec<Digest>,
    /// Unpacked layers (diff-ids) that no other image needed.
    pub layers: Vec<Digest>,
    /// What the blobs took. Unpacked layers are not counted.
    pub freed_bytes: u64,
}

impl Store {
    /// Removes a name, and with the last one the image and what only it needed. `in_use` are the
    /// manifests of this node's containers: an image among them keeps its last name.
    pub fn remove(&self, target: impl Into<Target>, in_use: &HashSet<Digest>) -> Result<Removed> {
        let mut removed = Removed::default();
        {
            let mut index = lock(&self.inner.index);
            let (named, records) = pick(index.images(), target.into())?;
            for record in &records {
                let is_last = !index
                    .images()
                    .iter()
                    .any(|other| other.digest == record.digest && !records.contains(other));
                if is_last {
                    if in_use.contains(&record.digest) {
                        return Err(Error::InUse { image: named, digest: record.digest.clone() });
                    }
                    removed.images.push(record.digest.clone());
                }
            }
            removed.untagged = records.iter().filter_map(|record| record.reference.clone()).collect();
            removed.images.dedup();
            index.remove(|record| records.contains(record))?;
        }
        if !removed.images.is_empty() {
            let swept = self.sweep()?;
            removed.blobs = swept.blobs;
            removed.layers = swept.layers;
            removed.freed_bytes = swept.freed_bytes;
        }
        Ok(removed)
    }

    /// Takes away every blob and layer that no image needs and no operation works with: what an
    /// interrupted pull or load left.
    pub fn sweep(&self) -> Result<Removed> {
        let mut removed = Removed::default();
        let mut doomed = Vec::new();
        {
            // In this order everywhere: list, holds, pins. Nothing can be pinned while the garbage moves, and
            // what is pinned until it is held is found as the one or the other.
            let index = lock(&self.inner.index);
            let Some(mut needed) = self.reachable(index.images()) else { return Ok(removed) };
            let holds = lock(&self.inner.holds);
            needed.extend(holds.values().flat_map(|hold| hold.digests.iter().cloned()));
            needed.extend(self.inner.steps.digests());
            let pins = lock(&self.inner.pins);
            needed.extend(pins.keys().cloned());
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let folder = self.inner.root.join("content").join(algorithm.as_str());
                for digest in
                    digests_in(&folder, algorithm)?.into_iter().filter(|digest| !needed.contains(digest))
                {
                    let path = self.inner.blob_path(&digest);
                    let size_bytes = fs::metadata(&path).map(|metadata| metadata.len()).unwrap_or(0);
                    doomed.push(self.move_away("content", &path)?);
                    removed.freed_bytes += size_bytes;
                    removed.blobs.push(digest);
                }
                let folder = self.inner.root.join("layers").join(algorithm.as_str());
                for digest in
                    digests_in(&folder, algorithm)?.into_iter().filter(|digest| !needed.contains(digest))
                {
                    doomed.push(self.move_away("layers", &self.inner.layer_path(&digest))?);
                    removed.layers.push(digest);
                }
            }
        }
        for path in doomed {
            let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            gone.map_err(|error| Error::io("remove", &path, error))?;
        }
        Ok(removed)
    }

    fn move_away(&self, kind: &str, path: &Path) -> Result<PathBuf> {
        let away = self.inner.temporary(kind);
        fs::rename(path, &away).map_err(|error| Error::io("remove", path, error))?;
        Ok(away)
    }

    /// Everything that the listed images need; `None` when an image can't be read, so that it isn't
    /// known and nothing may be taken away.
    fn reachable(&self, images: &[ImageRecord]) -> Option<HashSet<Digest>> {
        let mut needed = HashSet::new();
        for record in images {
            if let Err(error) = self.mark(record, &mut needed) {
                tracing::warn!(image = %record.digest, error = %crate::error::one_line(&error),
                    "an image in the list can't be read; nothing is swept until it is pulled again or removed");
                return None;
            }
        }
        Some(needed)
    }

    fn mark(&self, record: &ImageRecord, needed: &mut HashSet<Digest>) -> Result<()> {
        // An index within an index is kept by walking from the top again. What is here of other platforms belongs to
        // the image as well: it is saved and pushed with it.
        if let Some(top) = &record.index_digest {
            needed.extend(self.path_to_manifest(top)?.0);
            self.mark_parts(top, 0, needed);
        }
        let manifest = self.manifest(&record.digest)?;
        let config = self.config_of_any(&record.digest, &manifest)?;
        needed.insert(record.digest.clone());
        let diff_ids = config::diff_ids(&manifest.config.digest, &config)?;
        needed.extend(Self::fixes_of(&diff_ids));
        needed.extend(diff_ids);
        needed.insert(manifest.config.digest);
        needed.extend(manifest.layers.into_iter().map(|layer| layer.digest));
        Ok(())
    }
}

impl Store {
    /// What of an index is here. What can't be read needs nothing else.
    fn mark_parts(&self, digest: &Digest, depth: usize, needed: &mut HashSet<Digest>) {
        if depth > super::INDEX_DEPTH_MAX || !self.has(digest) {
            return;
        }
        needed.insert(digest.clone());
        match self.document(digest, None) {
            Ok(Document::Index(index)) => {
                for entry in &index.manifests {
                    self.mark_parts(&entry.digest, depth + 1, needed);
                }
            }
            Ok(Document::Manifest(manifest)) => {
                needed.insert(manifest.config.digest);
                needed.extend(manifest.layers.into_iter().map(|layer| layer.digest));
            }
            Err(_) => {}
        }
    }
}

/// The records that `target` means, and how the user named them.
fn pick(images: &[ImageRecord], target: Target) -> Result<(String, Vec<ImageRecord>)> {
    let by_digest =
        |digest: &Digest| images.iter().filter(|record| record.is(digest)).cloned().collect::<Vec<_>>();
    let (named, records) = match &target {
        Target::Name(reference) => {
            let exact: Vec<_> = images
                .iter()
                .filter(|record| record.reference.as_ref() == Some(reference))
                .cloned()
                .collect();
            let records = match reference.digest() {
                Some(digest) if exact.is_empty() => by_digest(digest),
                _ => exact,
            };
            (reference.familiar(), records)
        }
        Target::Image(digest) => (digest.to_string(), by_digest(digest)),
    };
    match records.as_slice() {
        [] => Err(Error::NoSuchImage(named)),
        [_] => Ok((named, records)),
        [first, ..] => Err(Error::SeveralNames {
            digest: first.digest.clone(),
            names: records
                .iter()
                .filter_map(|record| record.reference.as_ref().map(Reference::familiar))
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}
