//! The node's images: what is here, and how the rest comes here — from peers that have it, else from its registry.
//!
//! [`Images::ensure`] is the one way in. A name that means the cluster's own registry is looked up in its table, and
//! its content comes from the nodes that hold it. Who has an image is asked of the leader ([`ClusterLink`]); without a
//! cluster, or while no controller answers, the registry is asked at once.

mod asker;
mod error;
mod steps;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use oci_spec::image::ImageConfiguration;
use rorqual_image::{
    BlobSource, Credentials, Digest, Prepared, Progress, PushProgress, Pushed, Reference, RegistryClient,
    RegistryOptions, RegistrySettings, Store, pull, push,
};
use rorqual_proto::wire;
use tokio::sync::watch;

pub(crate) use self::asker::{Asker, read as read_credentials};
pub(crate) use self::error::ImageError;

use self::asker::ServiceAuths;
use self::error::nowhere;
use crate::error::one_line;
use crate::gc::ServiceImage;
use crate::peer::{ClusterLink, Swarm};
use crate::registry::{Own, Registry};

pub(crate) use self::steps::Found;

/// What was pushed just now may take a moment until the leader knows who has it.
const HELD_SOON: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long the leader may take to say what a name stands for in the cluster's registry: one that must be there,
/// and one that may be.
const TABLE: Duration = Duration::from_secs(30);
const TABLE_AT_MOST: Duration = Duration::from_secs(3);

/// The node's images. Clones share them.
#[derive(Clone)]
pub(crate) struct Images {
    store: Store,
    registry: RegistryClient,
    cluster: Arc<RwLock<Option<ClusterLink>>>,
    /// The cluster's own.
    own: Arc<OnceLock<Registry>>,
    /// What the services that run here show to registries.
    auths: ServiceAuths,
    /// Counts the changes of what is here.
    changed: watch::Sender<u64>,
    /// What is in use just now, so that ten replicas of an image read its documents once.
    prepared: Arc<Mutex<HashMap<Digest, Weak<Prepared>>>>,
    /// Held by whoever makes an image ready; the others wait without taking a thread.
    preparing: Arc<Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>>,
}

impl Images {
    pub(crate) fn new(
        store: Store,
        insecure: Vec<String>,
        registries: HashMap<String, RegistrySettings>,
    ) -> Self {
        let options = RegistryOptions { insecure, registries, ..RegistryOptions::default() };
        let registry = RegistryClient::new(options);
        let (changed, _) = watch::channel(0);
        Self {
            store,
            registry,
            cluster: Arc::default(),
            own: Arc::default(),
            auths: ServiceAuths::default(),
            changed,
            prepared: Arc::default(),
            preparing: Arc::default(),
        }
    }

    /// The content store, for what only reads it.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The client that asks registries.
    pub(crate) fn registry(&self) -> &RegistryClient {
        &self.registry
    }

    /// What the services that run here show to registries.
    pub(crate) fn auths(&self) -> &ServiceAuths {
        &self.auths
    }

    /// Says who can be asked for images from now on.
    pub(crate) fn link(&self, cluster: Option<ClusterLink>) {
        *self.cluster.write().unwrap_or_else(PoisonError::into_inner) = cluster;
    }

    /// Says which registry is the cluster's own; once.
    pub(crate) fn set_registry(&self, registry: Registry) {
        // A second one would be the same.
        let _ = self.own.set(registry);
    }

    pub(crate) fn cluster(&self) -> Option<ClusterLink> {
        self.cluster.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Wakes with every change of what is here.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The images that the cluster's services name; `None` when nobody can say it just now.
    pub(crate) async fn of_services(&self, is_member: bool) -> Option<Vec<ServiceImage>> {
        match self.cluster() {
            Some(cluster) => cluster.service_images().await.ok(),
            None if is_member => None,
            None => Some(Vec::new()),
        }
    }

    /// To be called after every change of the store.
    pub(crate) fn note_change(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// The whole list, as the leader is told it: every name, and the index that an image came from.
    pub(crate) fn report(&self) -> wire::Images {
        let mut images = Vec::new();
        for record in self.store.list() {
            images.push(wire::ImageHave {
                reference: record.reference.map(|reference| reference.to_string()).unwrap_or_default(),
                digest: record.digest.to_string(),
                size_bytes: record.size_bytes,
                created: record.created.unwrap_or_default(),
                index_digest: record.index_digest.as_ref().map(ToString::to_string).unwrap_or_default(),
                is_part: false,
                pushed: false,
            });
            images.extend(record.index_digest.as_ref().map(part));
        }
        let held = self.own.get().map(Registry::held).unwrap_or_default();
        images.extend(held.iter().map(|digest| wire::ImageHave { pushed: true, ..part(digest) }));
        wire::Images { images }
    }

    /// The image, ready to be mounted; fetched if it is not here, for a service with what that shows to registries.
    pub(crate) async fn prepare(
        &self,
        reference: &str,
        digest: Option<&str>,
        service: Option<&str>,
    ) -> Result<Arc<Prepared>, ImageError> {
        let asker = match service {
            Some(service) => self.auths.asker(service, parse(reference, digest)?.registry()),
            None => Asker::caller(None),
        };
        let digest = self.ensure(reference, digest, &asker, |_| {}).await?;
        let turn = self.turn(&digest);
        let _held = turn.lock().await;
        if let Some(prepared) = self.lock_prepared().get(&digest).and_then(Weak::upgrade) {
            return Ok(prepared);
        }
        let (store, wanted) = (self.store.clone(), digest.clone());
        let prepared = tokio::task::spawn_blocking(move || store.prepare(&wanted)).await;
        let prepared = Arc::new(prepared.map_err(|_| ImageError::Interrupted)??);
        let mut known = self.lock_prepared();
        known.retain(|_, prepared| prepared.strong_count() > 0);
        known.insert(digest, Arc::downgrade(&prepared));
        Ok(prepared)
    }

    fn turn(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(digest).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.retain(|_, turn| turn.strong_count() > 0);
        turns.insert(digest.clone(), Arc::downgrade(&turn));
        turn
    }

    fn lock_prepared(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Weak<Prepared>>> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration of an image that is here.
    pub(crate) async fn config(&self, reference: &str, digest: Option<&str>) -> Option<ImageConfiguration> {
        let reference = parse(reference, digest).ok()?;
        let store = self.store.clone();
        let config = tokio::task::spawn_blocking(move || {
            let digest = store.resolve(&reference)?;
            store.config(&digest).ok()
        });
        config.await.ok()?
    }

    /// The same as the JSON that it is, with what OCI doesn't name.
    pub(crate) async fn config_json(
        &self,
        reference: &str,
        digest: Option<&str>,
    ) -> Option<serde_json::Value> {
        let reference = parse(reference, digest).ok()?;
        let store = self.store.clone();
        let config = tokio::task::spawn_blocking(move || {
            let digest = store.resolve(&reference)?;
            store.config_json(&digest).ok()
        });
        config.await.ok()?
    }

    /// The manifest that the reference stands for on this node; `None` if the image is not here.
    pub(crate) fn local(&self, reference: &str, digest: Option<&str>) -> Option<Digest> {
        self.store.resolve(&parse(reference, digest).ok()?)
    }

    /// Has the image here, from this node, from a peer, or from its registry, in this order.
    pub(crate) async fn ensure(
        &self,
        reference: &str,
        digest: Option<&str>,
        asker: &Asker,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Digest, ImageError> {
        let reference = parse(reference, digest)?;
        if let Some(digest) = self.store.resolve(&reference) {
            return Ok(digest);
        }
        let (located, sources) = self.locate(&reference).await;
        if located.is_none()
            && let Some(digest) = self.published(&reference).await?
        {
            let wanted = reference.with_digest(digest);
            let sources = self.holders(&wanted).await;
            return self.fetch(&reference, &wanted, &sources, asker, progress).await;
        }
        let wanted = located.map_or_else(|| reference.clone(), |digest| reference.with_digest(digest));
        self.fetch(&reference, &wanted, &sources, asker, progress).await
    }

    /// Gets a copy of what another node has of the cluster's registry.
    pub(crate) fn keep_copy(&self, digest: &str) {
        match (self.own.get(), digest.parse()) {
            (Some(registry), Ok(digest)) => registry.keep_copy(digest),
            _ => tracing::warn!(digest, "the leader asks for a copy that can't be got"),
        }
    }

    /// The client for one who has `credentials` for `registry`, or for anybody.
    pub(crate) fn client_for(&self, registry: &str, credentials: Option<Credentials>) -> RegistryClient {
        match credentials {
            Some(credentials) => self.registry.with_credentials(registry, credentials),
            None => self.registry.clone(),
        }
    }

    /// The manifest that the cluster's own registry has under that name. An error where the name says that it is
    /// there, and it isn't, or can't be looked up.
    async fn published(&self, reference: &Reference) -> Result<Option<Digest>, ImageError> {
        let Some(registry) = self.own.get() else { return Ok(None) };
        let Some(own) = registry.own(reference) else { return Ok(None) };
        let resolved = registry.server().resolve(&own.repository, &own.named);
        // What may as well be somewhere else is not waited for through an election.
        let patience = if own.is_explicit { TABLE } else { TABLE_AT_MOST };
        let (reason, is_permanent) = match tokio::time::timeout(patience, resolved).await {
            Ok(Ok(Some(digest))) => return Ok(Some(digest)),
            Ok(Ok(None)) => (
                format!("the cluster's registry has no `{}` in repository `{}`", own.named, own.repository),
                true,
            ),
            Ok(Err(error)) => (one_line(&error), false),
            Err(_) => ("the leader did not say in time what the cluster's registry has".to_owned(), false),
        };
        if own.is_explicit {
            return Err(ImageError::Nowhere { reason, is_permanent });
        }
        tracing::debug!(%reference, reason, "not in the cluster's registry");
        Ok(None)
    }

    /// The nodes that have what was pushed to the cluster's registry.
    async fn holders(&self, wanted: &Reference) -> Vec<Arc<dyn BlobSource>> {
        let until = tokio::time::Instant::now() + HELD_SOON;
        loop {
            let (known, holders) = self.locate(wanted).await;
            let is_here = wanted.digest().is_some_and(|digest| self.has(digest));
            if known.is_some() || is_here || tokio::time::Instant::now() >= until {
                return holders;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn has(&self, digest: &Digest) -> bool {
        self.own.get().is_some_and(|registry| registry.held().contains(digest))
    }

    /// Where an image goes in the cluster's registry, in a cluster.
    fn own_place(&self, reference: &Reference) -> Option<(&Registry, Own)> {
        let registry = self.own.get().filter(|_| self.cluster().is_some())?;
        Some((registry, registry.own(reference).filter(|_| reference.digest().is_none())?))
    }

    fn is_explicit(&self, reference: &Reference) -> bool {
        let own = self.own.get().and_then(|registry| registry.own(reference));
        own.is_some_and(|own| own.is_explicit)
    }

    /// Fetches the image as its registry has it now, whatever is here; a peer may have parts of it.
    pub(crate) async fn pull(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Digest, ImageError> {
        let reference = parse(reference, None)?;
        let asker = Asker::caller(credentials.clone());
        if let Some(digest) = self.published(&reference).await? {
            let wanted = reference.with_digest(digest);
            let sources = self.holders(&wanted).await;
            return self.fetch(&reference, &wanted, &sources, &asker, progress).await;
        }
        let registry = self.client_for(reference.registry(), credentials);
        let digest = registry.resolve(&reference).await?;
        let wanted = reference.with_digest(digest);
        let (_, sources) = self.locate(&wanted).await;
        self.fetch(&reference, &wanted, &sources, &asker, progress).await
    }

    /// Pushes an image of this node to the registry that its name says; one that says none goes to the cluster's
    /// own, unless there are credentials for Docker Hub.
    pub(crate) async fn push(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
        progress: impl Fn(PushProgress) + Send + Sync + 'static,
    ) -> Result<Pushed, ImageError> {
        let reference = parse(reference, None)?;
        let missing = || rorqual_image::Error::NoSuchImage(reference.familiar());
        let digest = self.store.resolve(&reference).ok_or_else(missing)?;
        if let Some((registry, own)) = self.own_place(&reference).filter(|_| credentials.is_none()) {
            let published = registry.publish(self, &own, digest).await;
            let (digest, is_part) = published.map_err(|error| ImageError::Own(Box::new(error)))?;
            return Ok(Pushed { digest, is_part });
        }
        let registry = self.client_for(reference.registry(), credentials);
        Ok(push(&self.store, &digest, &reference, &registry, progress).await?)
    }

    /// The tags that a repository has in its registry.
    pub(crate) async fn tags(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
    ) -> Result<Vec<String>, ImageError> {
        let reference = parse(reference, None)?;
        Ok(self.client_for(reference.registry(), credentials).tags(&reference).await?)
    }

    /// A reference's digest: of this node, else of the cluster, else of the registry.
    pub(crate) async fn resolve(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
    ) -> Result<(Reference, Digest), ImageError> {
        let reference = parse(reference, None)?;
        // What was pushed last counts, whatever this node has under the name.
        if self.is_explicit(&reference)
            && let Some(digest) = self.published(&reference).await?
        {
            return Ok((reference, digest));
        }
        if let Some(digest) = self.store.resolve(&reference) {
            return Ok((reference, digest));
        }
        let (located, _) = self.locate(&reference).await;
        if let Some(digest) = located.or_else(|| reference.digest().cloned()) {
            return Ok((reference, digest));
        }
        if let Some(digest) = self.published(&reference).await? {
            return Ok((reference, digest));
        }
        let asker = Asker::caller(credentials.clone());
        match self.client_for(reference.registry(), credentials).resolve(&reference).await {
            Ok(digest) => Ok((reference, digest)),
            Err(error) => Err(nowhere(&error, &asker)),
        }
    }

    /// What the leader says: the digest that a tag stands for, and the cluster as a source of its blobs.
    pub(crate) async fn locate(&self, reference: &Reference) -> (Option<Digest>, Vec<Arc<dyn BlobSource>>) {
        let Some(cluster) = self.cluster() else { return (None, Vec::new()) };
        match cluster.locate(reference).await {
            Ok(digest) => {
                let image = digest.as_ref().or_else(|| reference.digest());
                let swarm: Arc<dyn BlobSource> = Arc::new(Swarm::new(cluster, self.store.clone(), image));
                (digest, vec![swarm])
            }
            Err(status) => {
                tracing::debug!(%reference, %status, "nobody could say who has the image");
                (None, Vec::new())
            }
        }
    }

    async fn fetch(
        &self,
        reference: &Reference,
        wanted: &Reference,
        sources: &[Arc<dyn BlobSource>],
        asker: &Asker,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Digest, ImageError> {
        let client = self.client_for(wanted.registry(), asker.credentials.clone());
        // The cluster's own registry has nothing that its nodes don't have.
        let registry = (!self.is_explicit(wanted)).then_some(&client);
        let pulled = pull(&self.store, wanted, sources, registry, progress).await;
        self.auths.note_renewed(asker, wanted.registry(), &client, self.cluster());
        let digest = pulled.map_err(|error| match error {
            rorqual_image::Error::Registry { .. } | rorqual_image::Error::Fetch { .. } => {
                nowhere(&error, asker)
            }
            error => error.into(),
        })?;
        if let Err(error) = self.store.mark_fetched(&digest, wanted) {
            tracing::warn!(%reference, error = %one_line(&error), "can't note that the image was fetched");
        }
        self.name(reference, wanted, &digest);
        self.note_change();
        Ok(digest)
    }

    /// A pull by digest lists the image as `name:tag@digest`; people look for `name:tag`.
    fn name(&self, reference: &Reference, wanted: &Reference, digest: &Digest) {
        let Some(plain) = reference.without_digest().filter(|plain| plain != wanted) else { return };
        let holder = self.store.resolve(&plain);
        if holder.as_ref().is_some_and(|holder| holder != digest) && reference.digest().is_some() {
            // The tag stands for another image by now: this one keeps its full name.
            return;
        }
        let renamed = self.store.rename_fetched(digest, wanted, plain);
        if let Err(error) = renamed {
            tracing::warn!(%reference, error = %one_line(&error), "can't give the image its short name");
        }
    }
}

/// What others may fetch from this node although it is no image of it.
fn part(digest: &Digest) -> wire::ImageHave {
    wire::ImageHave { digest: digest.to_string(), is_part: true, ..wire::ImageHave::default() }
}

fn parse(reference: &str, digest: Option<&str>) -> Result<Reference, ImageError> {
    let name = |field, text: &str, source: Box<dyn std::error::Error + Send + Sync>| ImageError::Name {
        field,
        text: text.to_owned(),
        source,
    };
    let parsed: Reference =
        reference.parse().map_err(|error| name("image reference", reference, Box::new(error)))?;
    match digest {
        Some(text) => {
            let digest = text.parse().map_err(|error| name("image digest", text, Box::new(error)))?;
            Ok(parsed.with_digest(digest))
        }
        None => Ok(parsed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_malformed_name_is_refused_with_its_text() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(Store::open(folder.path()).unwrap(), Vec::new(), HashMap::new());
        let error = images.prepare("http://x/y", None, None).await.unwrap_err();
        assert!(error.to_string().contains("http://x/y"), "{error}");
        let error = images.prepare("web", Some("sha256:short"), None).await.unwrap_err();
        assert!(error.to_string().contains("sha256:short"), "{error}");
        assert!(images.report().images.is_empty());
        assert!(error.is_permanent());
    }

    /// A registry that answers every request with this status.
    async fn registry(status: &'static str) -> std::net::SocketAddr {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn only_what_can_not_change_is_permanent() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(Store::open(folder.path()).unwrap(), Vec::new(), HashMap::new());
        for (status, expected) in
            [("404 Not Found", true), ("403 Forbidden", true), ("400 Bad Request", true)]
        {
            let name = format!("{}/app:1", registry(status).await);
            let error = images.prepare(&name, None, None).await.unwrap_err();
            assert_eq!(error.is_permanent(), expected, "{status}: {error}");
        }
        // Nobody listens there: it may be there later.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = images.prepare(&format!("{closed}/app:1"), None, None).await.unwrap_err();
        assert!(!error.is_permanent(), "{error}");
    }
}
