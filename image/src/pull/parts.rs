//! Parts of an image alone: what it says, and one layer at a time.

use std::sync::Arc;

use super::{BlobRole, BlobSource, Puller};
use crate::build::StepDocuments;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{CONFIG_MAX_BYTES, Descriptor};
use crate::reference::Reference;
use crate::registry::RegistryClient;
use crate::store::Store;

/// Manifest and configuration of an image, whose reference has a digest. Nothing of it is listed.
pub async fn pull_documents(
    store: &Store,
    reference: &Reference,
    sources: &[Arc<dyn BlobSource>],
    registry: Option<&RegistryClient>,
) -> Result<StepDocuments> {
    let top: &Digest = reference.digest().ok_or_else(|| Error::NeedsRegistry(reference.familiar()))?;
    let puller = Puller::new(store, reference, sources, registry, Arc::new(|_| {}));
    let (_, manifest) = puller.manifest(top).await?;
    if manifest.config.size > CONFIG_MAX_BYTES {
        let reason = format!("it has {} bytes, at most {CONFIG_MAX_BYTES} are read", manifest.config.size);
        return Err(Error::document(format!("configuration {}", manifest.config.digest), reason));
    }
    puller.fetch(&manifest.config.digest, Some(manifest.config.size), BlobRole::Config).await?;
    let config = puller
        .blocking(&manifest.config.digest, |store, digest| store.read(digest, CONFIG_MAX_BYTES))
        .await?;
    Ok(StepDocuments { manifest, config })
}

/// Has the store have one layer of an image; the caller keeps it from being swept.
pub async fn pull_layer(
    store: &Store,
    reference: &Reference,
    sources: &[Arc<dyn BlobSource>],
    registry: Option<&RegistryClient>,
    blob: &Descriptor,
) -> Result<()> {
    let puller = Puller::new(store, reference, sources, registry, Arc::new(|_| {}));
    puller.fetch(&blob.digest, Some(blob.size), BlobRole::Layer).await
}
