//! What images take on the disk, and when each was last used.
//!
//! The time of last use is the modification time of the manifest's blob: set when the image comes, when it is
//! made ready for a container, and when somebody says so. It needs no list of its own, and a crash loses at most
//! the last change of it.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::time::SystemTime;

use super::content::digests_in;
use super::{ImageRecord, Store};
use crate::config;
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};

/// What one image takes.
#[derive(Clone, Debug)]
pub struct ImageUsage {
    /// One of its records; the others have the same manifest.
    pub record: ImageRecord,
    /// Blobs and unpacked layers.
    pub size_bytes: u64,
    /// Of it what other images need as well.
    pub shared_bytes: u64,
    /// What it needs, for sums over several images.
    pieces: HashSet<Piece>,
}

/// A blob, or an unpacked layer.
type Piece = (bool, Digest);

/// What all images take.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Each image once.
    pub images: Vec<ImageUsage>,
    /// All blobs and unpacked layers, those that no image needs too.
    pub total_bytes: u64,
    sizes: HashMap<Piece, u64>,
}

impl Usage {
    /// What would be freed if all images went but those with these manifests.
    pub fn reclaimable_bytes(&self, in_use: &HashSet<Digest>) -> u64 {
        let kept = self.images.iter().filter(|image| in_use.contains(&image.record.digest));
        let kept: HashSet<&Piece> = kept.flat_map(|image| &image.pieces).collect();
        let going = self.images.iter().filter(|image| !in_use.contains(&image.record.digest));
        let going: HashSet<&Piece> = going.flat_map(|image| &image.pieces).collect();
        going.difference(&kept).filter_map(|piece| self.sizes.get(*piece)).sum()
    }
}

impl Store {
    /// Measures everything. An image that can't be read counts nothing.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage { sizes: self.sizes()?, ..Usage::default() };
        usage.total_bytes = usage.sizes.values().sum();
        let mut seen = HashSet::new();
        let mut users: HashMap<Piece, u32> = HashMap::new();
        for record in self.list() {
            if !seen.insert(record.digest.clone()) {
                continue;
            }
            let pieces = self.pieces(&record).unwrap_or_default();
            for piece in &pieces {
                *users.entry(piece.clone()).or_default() += 1;
            }
            usage.images.push(ImageUsage { record, size_bytes: 0, shared_bytes: 0, pieces });
        }
        let sizes = &usage.sizes;
        for image in &mut usage.images {
            for piece in &image.pieces {
                let size_bytes = sizes.get(piece).copied().unwrap_or(0);
                image.size_bytes += size_bytes;
                if users.get(piece).is_some_and(|users| *users > 1) {
                    image.shared_bytes += size_bytes;
                }
            }
        }
        Ok(usage)
    }

    /// What every blob and unpacked layer takes.
    fn sizes(&self) -> Result<HashMap<Piece, u64>> {
        let mut sizes = HashMap::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for digest in digests_in(&self.inner.root.join("content").join(algorithm.as_str()), algorithm)? {
                // One that goes away meanwhile takes nothing.
                let size_bytes = fs::metadata(self.inner.blob_path(&digest)).map_or(0, |facts| facts.len());
                sizes.insert((false, digest), size_bytes);
            }
            for digest in digests_in(&self.inner.root.join("layers").join(algorithm.as_str()), algorithm)? {
                let size_bytes = self.inner.layer_facts(&digest).map_or(0, |facts| facts.size_bytes);
                sizes.insert((true, digest), size_bytes);
            }
        }
        Ok(sizes)
    }

    fn pieces(&self, record: &ImageRecord) -> Result<HashSet<Piece>> {
        let manifest = self.manifest(&record.digest)?;
        let config = self.config_of_any(&record.digest, &manifest)?;
        let layers = config::diff_ids(&manifest.config.digest, &config)?;
        let blobs = [record.digest.clone(), manifest.config.digest.clone()];
        let blobs = blobs.into_iter().chain(record.index_digest.clone());
        let blobs = blobs.chain(manifest.layers.iter().map(|layer| layer.digest.clone()));
        let fixes = Self::fixes_of(&layers);
        let layers = layers.into_iter().chain(fixes);
        Ok(blobs.map(|digest| (false, digest)).chain(layers.map(|digest| (true, digest))).collect())
    }

    /// Notes that the image with that manifest is used just now.
    pub fn touch(&self, digest: &Digest) -> Result<()> {
        let path = self.inner.blob_path(digest);
        File::open(&path)
            .and_then(|blob| blob.set_modified(SystemTime::now()))
            .map_err(|error| Error::io("set the time of", &path, error))
    }

    /// When the image with that manifest was last used; `None` where it is not here.
    pub fn last_used(&self, digest: &Digest) -> Option<SystemTime> {
        fs::metadata(self.inner.blob_path(digest)).and_then(|facts| facts.modified()).ok()
    }
}
