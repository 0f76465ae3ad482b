//! Loads images from files: OCI image layouts (a folder or a tar) and `docker save` archives, each also
//! compressed.
//!
//! An archive is read once, from front to back, and never held in memory: every file in it that can be a
//! blob goes to the store as it comes, named by its own digest; the few small documents that say what
//! belongs together are kept aside. Then the images are put together from what is there. If anything is
//! wrong the store is swept, so it is as it was. Start at [`Store::load`].

mod archive;
mod docker;
mod layout;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::store::{Pin, Store};

/// The largest `index.json` or `manifest.json` of an archive.
const DOCUMENT_MAX_BYTES: u64 = 16 << 20;
/// Files in one archive.
const FILES_MAX: usize = 100_000;

/// One image that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its name, if the archive has one for it.
    pub reference: Option<Reference>,
    /// Its manifest.
    pub digest: Digest,
}

/// What was found in an archive or a layout's folder.
#[derive(Debug)]
struct Found {
    /// For messages.
    name: String,
    /// `index.json`, `manifest.json`, `oci-layout`.
    documents: HashMap<String, Vec<u8>>,
    /// Files that went to the store, by their name in the archive.
    blobs: HashMap<String, (Digest, u64)>,
    /// Symbolic and hard links, by name; the targets are resolved names.
    links: HashMap<String, String>,
    /// All of the blobs are kept until the images are listed.
    pin: RefCell<Pin>,
}

impl Found {
    fn new(store: &Store, name: &str) -> Found {
        Found {
            name: name.to_owned(),
            documents: HashMap::new(),
            blobs: HashMap::new(),
            links: HashMap::new(),
            pin: RefCell::new(store.pin([])),
        }
    }

    fn keep(&self, pin: Pin) {
        self.pin.borrow_mut().join(pin);
    }

    fn refuse(&self, reason: impl Into<String>) -> Error {
        Error::Archive { name: self.name.clone(), reason: reason.into() }
    }

    /// The blob behind a name, links followed.
    fn blob(&self, name: &str) -> Option<&(Digest, u64)> {
        let mut name = name;
        for _ in 0..8 {
            if let Some(blob) = self.blobs.get(name) {
                return Some(blob);
            }
            name = self.links.get(name)?;
        }
        None
    }
}

impl Store {
    /// Loads every image of the archive or layout at `path`.
    pub fn load(&self, path: impl AsRef<Path>) -> Result<Vec<Loaded>> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let file = std::fs::File::open(path).map_err(|error| Error::io("open", path, error))?;
        let metadata = file.metadata().map_err(|error| Error::io("open", path, error))?;
        if metadata.is_dir() {
            return self.finish_load(layout::read_folder(self, path, &name));
        }
        self.load_stream(file, &name)
    }

    /// Loads every image of the archive that `archive` delivers. `name` is for messages.
    pub fn load_stream(&self, archive: impl Read, name: &str) -> Result<Vec<Loaded>> {
        self.finish_load(archive::read(self, archive, name))
    }

    fn finish_load(&self, found: Result<Found>) -> Result<Vec<Loaded>> {
        let loaded = found.and_then(|found| self.enlist_found(&found));
        // Whatever belongs to no image: files beside the images, or all of a load that failed.
        if let Err(error) = self.sweep() {
            tracing::warn!(error = %crate::error::one_line(&error), "leftovers of a load could not be swept");
        }
        loaded
    }

    fn enlist_found(&self, found: &Found) -> Result<Vec<Loaded>> {
        let images = if found.documents.contains_key("index.json") {
            layout::images(self, found)?
        } else if found.documents.contains_key("manifest.json") {
            docker::images(self, found)?
        } else {
            return Err(found.refuse(
                "it has neither `index.json` (OCI layout) nor `manifest.json` (docker save); an exported container \
                 (`docker export`) is not an image",
            ));
        };
        if images.is_empty() {
            return Err(found.refuse("it holds no image"));
        }
        // All of them are checked before the first is listed.
        for (top, _) in &images {
            self.examine_runnable(top).map_err(|error| match error {
                Error::BlobMissing { digest, role } => {
                    found.refuse(format!("its {role} {digest} is missing; the archive may be truncated"))
                }
                other => other,
            })?;
        }
        let enlist = |(top, reference): (Digest, Option<Reference>)| {
            let digest = self.enlist(&top, reference.clone())?;
            Ok(Loaded { reference, digest })
        };
        images.into_iter().map(enlist).collect()
    }
}
