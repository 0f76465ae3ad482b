//! Images of a build's steps: found wherever they are, fetched in parts, and pushed without being listed.

use std::sync::Arc;

use rorqual_image::build::StepDocuments;
use rorqual_image::manifest::Descriptor;
use rorqual_image::{
    BlobSource, Credentials, Digest, Error, ForeignImage, Platform, Reference, RegistryClient, RegistryError,
    pull_documents, pull_foreign, pull_layer, push_unlisted,
};

use super::{ImageError, Images, parse};

/// An image of which parts are wanted, and who may have them.
pub(crate) struct Found {
    /// With its digest.
    wanted: Reference,
    sources: Vec<Arc<dyn BlobSource>>,
    registry: Option<RegistryClient>,
}

impl Images {
    /// The image of that name, on this node, on others, in the cluster's registry, or in the one that the name says;
    /// `None` where it is nowhere.
    pub(crate) async fn find(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
    ) -> Result<Option<Found>, ImageError> {
        let reference = parse(reference, None)?;
        if self.is_explicit(&reference) {
            return match self.published(&reference).await {
                Ok(digest) => Ok(self.held_by_nodes(&reference, digest).await),
                Err(ImageError::Nowhere { is_permanent: true, .. }) => Ok(None),
                Err(error) => Err(error),
            };
        }
        if let Some(digest) = self.store.resolve(&reference) {
            let wanted = reference.with_digest(digest);
            return Ok(Some(Found { wanted, sources: Vec::new(), registry: None }));
        }
        let registry = self.client_for(reference.registry(), credentials);
        let (located, sources) = self.locate(&reference).await;
        if let Some(digest) = located {
            let wanted = reference.with_digest(digest);
            return Ok(Some(Found { wanted, sources, registry: Some(registry) }));
        }
        if let Some(digest) = self.published(&reference).await? {
            return Ok(self.held_by_nodes(&reference, Some(digest)).await);
        }
        match registry.resolve(&reference).await {
            Ok(digest) => {
                let wanted = reference.with_digest(digest);
                let (_, sources) = self.locate(&wanted).await;
                Ok(Some(Found { wanted, sources, registry: Some(registry) }))
            }
            Err(Error::Registry { source: RegistryError::NotFound { .. }, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The image for another platform than this node's: of an index that is here, of the cluster's registry, or of the
    /// one that the name says.
    pub(crate) async fn foreign(
        &self,
        reference: &str,
        platform: &Platform,
        credentials: Option<Credentials>,
    ) -> Result<ForeignImage, ImageError> {
        let reference = parse(reference, None)?;
        let client = self.client_for(reference.registry(), credentials);
        let own = self.published(&reference).await?;
        let index =
            self.store.resolve(&reference).and_then(|digest| self.store.record(&digest)?.index_digest);
        let registry = Some(client.clone());
        let found = match (own, index) {
            (Some(digest), _) => self.held_by_nodes(&reference, Some(digest)).await,
            (None, Some(index)) => {
                Some(Found { wanted: reference.with_digest(index), sources: Vec::new(), registry })
            }
            (None, None) => {
                let wanted = reference.with_digest(client.resolve(&reference).await?);
                let (_, sources) = self.locate(&wanted).await;
                Some(Found { wanted, sources, registry })
            }
        };
        let missing = || Error::NoSuchImage(reference.familiar());
        let Found { wanted, sources, registry } = found.ok_or_else(missing)?;
        Ok(pull_foreign(&self.store, &wanted, &sources, registry.as_ref(), platform).await?)
    }

    async fn held_by_nodes(&self, reference: &Reference, digest: Option<Digest>) -> Option<Found> {
        let wanted = reference.with_digest(digest?);
        let sources = self.holders(&wanted).await;
        Some(Found { wanted, sources, registry: None })
    }

    /// What it says.
    pub(crate) async fn documents(&self, found: &Found) -> rorqual_image::Result<StepDocuments> {
        pull_documents(&self.store, &found.wanted, &found.sources, found.registry.as_ref()).await
    }

    /// Has one of its layers here.
    pub(crate) async fn layer(&self, found: &Found, blob: &Descriptor) -> rorqual_image::Result<()> {
        pull_layer(&self.store, &found.wanted, &found.sources, found.registry.as_ref(), blob).await
    }

    /// Pushes what is in no list: to the cluster's registry, or to the one that the name says.
    pub(crate) async fn push_unlisted(
        &self,
        reference: &str,
        digest: &Digest,
        credentials: Option<Credentials>,
    ) -> Result<(), ImageError> {
        let reference = parse(reference, None)?;
        if let Some((registry, own)) = self.own_place(&reference).filter(|_| credentials.is_none()) {
            let published = registry.server().publish(&own.repository, &own.named, digest).await;
            return published.map_err(|error| ImageError::Own(Box::new(error)));
        }
        let registry = self.client_for(reference.registry(), credentials);
        Ok(push_unlisted(&self.store, digest, &reference, &registry).await?)
    }
}
