//! Parts of an image alone: what it says, one layer at a time, or what it is for another platform.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use oci_spec::image::ImageConfiguration;

use super::{BlobRole, BlobSource, PARALLEL_LAYERS, Puller};
use crate::build::StepDocuments;
use crate::config;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{CONFIG_MAX_BYTES, Descriptor, Manifest};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::RegistryClient;
use crate::store::{Pin, Store};

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

/// An image for a platform that is not the node's: its content is in the store while this is kept, in no list.
pub struct ForeignImage {
    pub(crate) manifest: Manifest,
    /// The configuration, as it is.
    pub(crate) config: Vec<u8>,
    pub(crate) checked: ImageConfiguration,
    pub(crate) pin: Pin,
}

/// The image for `platform`, whose reference has a digest; nothing is unpacked or listed.
pub async fn pull_foreign(
    store: &Store,
    reference: &Reference,
    sources: &[Arc<dyn BlobSource>],
    registry: Option<&RegistryClient>,
    platform: &Platform,
) -> Result<ForeignImage> {
    let top: &Digest = reference.digest().ok_or_else(|| Error::NeedsRegistry(reference.familiar()))?;
    let mut puller = Puller::new(store, reference, sources, registry, Arc::new(|_| {}));
    puller.platform = platform.clone();
    let (digest, manifest) = puller.manifest(top).await?;
    puller.fetch(&manifest.config.digest, Some(manifest.config.size), BlobRole::Config).await?;
    let config = puller
        .blocking(&manifest.config.digest, |store, digest| store.read(digest, CONFIG_MAX_BYTES))
        .await?;
    let checked = config::parse(&manifest.config.digest, &config)?;
    // What is no index says only there what it is for.
    platform.check(&digest, &config::platform_of(&checked))?;
    let one = &puller;
    let mut fetching = stream::iter(manifest.layers.clone())
        .map(|layer| async move { one.fetch(&layer.digest, Some(layer.size), BlobRole::Layer).await })
        .buffer_unordered(PARALLEL_LAYERS);
    while let Some(fetched) = fetching.next().await {
        fetched?;
    }
    drop(fetching);
    let pin = std::mem::replace(
        &mut *puller.pin.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
        store.pin([]),
    );
    Ok(ForeignImage { manifest, config, checked, pin })
}
