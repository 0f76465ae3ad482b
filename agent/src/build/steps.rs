//! Where a build's steps come from and go to: images of steps in registries and the cluster, and at the client.

use std::sync::{Arc, Mutex, PoisonError};

use rorqual_image::build::{StepDocuments, StepSource, StepTarget};
use rorqual_image::manifest::Descriptor;
use rorqual_image::{Credentials, Digest, Error, Result, SaveFormat, Saved, Store};
use tokio::runtime::Handle;

use super::{Pieces, Sender};
use crate::error::one_line;
use crate::images::{Found, ImageError, Images};

/// An image of steps by its name. Used from threads of a build, none of which is tokio's.
pub(super) struct Remote {
    pub(super) images: Images,
    pub(super) runtime: Handle,
    pub(super) reference: String,
    pub(super) credentials: Option<Credentials>,
    /// What messages call it.
    pub(super) name: String,
    /// Once it was looked for.
    pub(super) found: Mutex<Option<Arc<Found>>>,
}

impl Remote {
    fn failed(&self, error: ImageError) -> Error {
        match error {
            ImageError::Store(error) => error,
            error => Error::Source { what: format!("`{}`", self.reference), reason: one_line(&error) },
        }
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Option<Arc<Found>>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StepSource for Remote {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn documents(&self) -> Result<Option<StepDocuments>> {
        let found = self.runtime.block_on(self.images.find(&self.reference, self.credentials.clone()));
        let Some(found) = found.map_err(|error| self.failed(error))? else { return Ok(None) };
        let documents = self.runtime.block_on(self.images.documents(&found))?;
        *self.found() = Some(Arc::new(found));
        Ok(Some(documents))
    }

    fn layer(&self, blob: &Descriptor) -> Result<()> {
        let found = self.found().clone();
        let missing = || Error::BlobMissing { digest: blob.digest.clone(), role: "layer" };
        self.runtime.block_on(self.images.layer(&*found.ok_or_else(missing)?, blob))
    }
}

impl StepTarget for Remote {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn put(&self, manifest: &Digest) -> Result<()> {
        let pushed = self.images.push_unlisted(&self.reference, manifest, self.credentials.clone());
        self.runtime.block_on(pushed).map_err(|error| self.failed(error))
    }
}

/// The client, which gets an archive.
pub(super) struct Client {
    pub(super) store: Store,
    pub(super) sender: Sender,
    pub(super) name: String,
}

impl StepTarget for Client {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn put(&self, manifest: &Digest) -> Result<()> {
        let mut archive = Pieces::of_steps(&self.sender);
        let saved = Saved { digest: manifest.clone(), names: Vec::new() };
        self.store.save(&[saved], SaveFormat::Oci, &mut archive)
    }
}
