//! `images.json`: which names the store knows, and which manifest each stands for.
//!
//! The file is replaced as a whole (temporary name, fsync, rename, fsync of the folder), so a crash
//! leaves the old list or the new one. The list in memory changes only after the file did.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::sys;

/// The format that is written.
const VERSION: u32 = 1;

/// One line of `image ls`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its name; `None` when another image took the name over.
    pub reference: Option<Reference>,
    /// Digest of the manifest for this node's platform: what [`prepare`](crate::Store::prepare) takes.
    pub digest: Digest,
    /// Digest of the index that the manifest was chosen from, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_digest: Option<Digest>,
    /// What the image takes in the content store: configuration and layers, as they were transferred.
    pub size_bytes: u64,
    /// When it was built, RFC 3339, as its configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// It came from a registry or a peer, so it can be fetched again, and nobody has named it since: it may be
    /// removed when nothing uses it. What was loaded, built or tagged here stays until somebody removes it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fetched: bool,
}

impl ImageRecord {
    /// Whether `digest` means this image: its manifest, or the index it came from.
    pub fn is(&self, digest: &Digest) -> bool {
        self.digest == *digest || self.index_digest.as_ref() == Some(digest)
    }
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    version: u32,
    images: Vec<ImageRecord>,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// The list, in memory and on disk.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    images: Vec<ImageRecord>,
}

impl Index {
    pub(super) fn open(path: PathBuf) -> Result<Index> {
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Index { path, images: Vec::new() });
            }
            Err(error) => return Err(Error::io("read", &path, error)),
        };
        let torn = |source| Error::Index { path: path.clone(), source };
        let VersionOnly { version } = serde_json::from_slice(&bytes).map_err(torn)?;
        if version > VERSION {
            return Err(Error::IndexVersion { path, version, known: VERSION });
        }
        let OnDisk { images, .. } = serde_json::from_slice(&bytes).map_err(torn)?;
        Ok(Index { path, images })
    }

    pub(super) fn images(&self) -> &[ImageRecord] {
        &self.images
    }

    /// Adds `record`. An image that had its name before stays, without a name.
    pub(super) fn put(&mut self, record: ImageRecord) -> Result<()> {
        let mut images = self.images.clone();
        if let Some(reference) = &record.reference {
            for old in images.iter_mut().filter(|old| old.reference.as_ref() == Some(reference)) {
                old.reference = None;
            }
        } else if let Some(same) = images.iter_mut().find(|old| old.digest == record.digest) {
            same.index_digest = same.index_digest.take().or(record.index_digest);
            return self.replace(images);
        }
        images.push(record);
        self.replace(images)
    }

    /// Drops the records that `gone` picks.
    pub(super) fn remove(&mut self, gone: impl Fn(&ImageRecord) -> bool) -> Result<()> {
        let images = self.images.iter().filter(|record| !gone(record)).cloned().collect();
        self.replace(images)
    }

    fn replace(&mut self, mut images: Vec<ImageRecord>) -> Result<()> {
        tidy(&mut images);
        if images != self.images {
            write_durably(&self.path, &OnDisk { version: VERSION, images: images.clone() })?;
            self.images = images;
        }
        Ok(())
    }
}

/// A record without name is kept only while no other record has the manifest.
fn tidy(images: &mut Vec<ImageRecord>) {
    images.sort_by(|a, b| {
        (&a.digest, a.reference.is_none(), &a.reference).cmp(&(
            &b.digest,
            b.reference.is_none(),
            &b.reference,
        ))
    });
    images.dedup_by(|next, kept| next.digest == kept.digest && next.reference.is_none());
    images.sort_by(|a, b| {
        (a.reference.is_none(), &a.reference, &a.digest).cmp(&(
            b.reference.is_none(),
            &b.reference,
            &b.digest,
        ))
    });
}

fn write_durably(path: &Path, list: &OnDisk) -> Result<()> {
    let temporary = path.with_extension("json.tmp");
    let bytes = serde_json::to_vec_pretty(list)
        .map_err(|source| Error::Json { what: "the list of images".to_owned(), source })?;
    let written = fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // Best effort: the next write truncates it anyway.
        let _ = fs::remove_file(&temporary);
        return Err(Error::io("write", path, error));
    }
    sys::sync_folder_of(path)
}
