//! The image store of one node: blobs by digest, unpacked layers by diff-id, and the list of names.
//!
//! ```text
//! <root>/content/{sha256,sha512}/<hex>    blobs: manifests, configurations, layers   (content.rs)
//! <root>/content/tmp/                     being written
//! <root>/layers/{sha256,sha512}/<hex>/fs  unpacked layers, named by diff-id          (layers.rs)
//! <root>/layers/tmp/                      being unpacked, or on their way out
//! <root>/build/                           steps that builds can use again        (build/cache.rs)
//! <root>/images.json                      names → manifests                          (index.rs)
//! <root>/holds/                           what stays without a name                  (holds.rs)
//! <root>/lock                             held while the store is open
//! ```
//!
//! A blob is *reachable* when an image in the list needs it, and *pinned* while an operation in this
//! process works with it, and *held* for the registry. Sweeping takes away what is neither. Start at [`Store::open`].

mod along;
mod ancestors;
mod arrival;
mod barrier;
mod built;
mod content;
mod holds;
mod index;
mod layers;
mod sweep;
mod usage;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use oci_spec::image::ImageConfiguration;

pub use self::along::{Along, Arrived};
pub(crate) use self::arrival::{Follower, Interest};
use self::barrier::Barrier;
pub(crate) use self::built::{Layer, Scratch};
pub use self::content::{Blob, BlobWriter};
pub(crate) use self::holds::Hold;
use self::holds::Holds;
pub use self::index::ImageRecord;
use self::index::Index;
pub use self::layers::Prepared;
pub use self::sweep::{Removed, Target};
pub use self::usage::{ImageUsage, Usage};
use crate::build::cache::Steps;
use crate::config;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{CONFIG_MAX_BYTES, Document, MANIFEST_MAX_BYTES, Manifest};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::sys;
use crate::unpack::Limits;

/// Indexes within indexes: more is a mistake or an attack.
const INDEX_DEPTH_MAX: usize = 4;

/// What a store is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// What a layer may cost while it is unpacked.
    pub limits: Limits,
    /// Which image of an index is taken.
    pub platform: Platform,
    /// The largest blob that is accepted.
    pub blob_max_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { limits: Limits::default(), platform: Platform::host(), blob_max_bytes: 64 << 30 }
    }
}

/// The image store; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    root: PathBuf,
    options: Options,
    index: Mutex<Index>,
    /// What stays without a name.
    holds: Mutex<Holds>,
    /// How many operations work with a digest just now.
    pins: Mutex<HashMap<Digest, usize>>,
    /// Held by whoever unpacks the layer of that diff-id.
    unpacking: Mutex<HashMap<Digest, Weak<Mutex<()>>>>,
    /// Held by whoever fetches that blob.
    fetching: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    /// What builds can use again.
    pub(crate) steps: Steps,
    /// Blobs that are being written, for peers that want them too.
    coming: Mutex<HashMap<Digest, Weak<along::Coming>>>,
    sequence: AtomicU64,
    /// The same one, where both lie on the same file system.
    content_barrier: Arc<Barrier>,
    layers_barrier: Arc<Barrier>,
    /// The record lock goes with the descriptor.
    _lock: File,
}

/// Keeps blobs and layers from being swept while it lives.
#[derive(Debug)]
pub(crate) struct Pin {
    store: Arc<Inner>,
    digests: Vec<Digest>,
}

impl Pin {
    pub(crate) fn new(store: &Arc<Inner>, digests: impl IntoIterator<Item = Digest>) -> Pin {
        let digests: Vec<Digest> = digests.into_iter().collect();
        let mut pins = lock(&store.pins);
        for digest in &digests {
            *pins.entry(digest.clone()).or_default() += 1;
        }
        drop(pins);
        Pin { store: Arc::clone(store), digests }
    }

    pub(crate) fn join(&mut self, mut other: Pin) {
        self.digests.append(&mut other.digests);
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = lock(&self.store.pins);
        for digest in &self.digests {
            if let Some(count) = pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(digest);
                }
            }
        }
    }
}

impl Store {
    /// Opens the store at `root`, and makes it when it isn't there. Leftovers of a crash are removed.
    pub fn open(root: impl AsRef<Path>) -> Result<Store> {
        Self::open_with(root, Options::default())
    }

    /// As [`open`](Self::open), with other limits or another platform.
    pub fn open_with(root: impl AsRef<Path>, options: Options) -> Result<Store> {
        let root = root.as_ref();
        fs::create_dir_all(root).map_err(|error| Error::io("create", root, error))?;
        let root = root.canonicalize().map_err(|error| Error::io("open", root, error))?;
        let lock =
            sys::lock_file(&root.join("lock"))?.ok_or_else(|| Error::StoreBusy { path: root.clone() })?;
        for kind in ["content", "layers"] {
            let temporary = root.join(kind).join("tmp");
            if temporary.exists() {
                fs::remove_dir_all(&temporary).map_err(|error| Error::io("remove", &temporary, error))?;
            }
            for name in ["sha256", "sha512", "tmp"] {
                let folder = root.join(kind).join(name);
                fs::create_dir_all(&folder).map_err(|error| Error::io("create", &folder, error))?;
            }
        }
        // Layers hold set-uid programs, blobs whatever images hold: for root only, up here.
        sys::make_private(&root)?;
        let empty = root.join("layers/empty");
        fs::create_dir_all(&empty).map_err(|error| Error::io("create", &empty, error))?;
        let index = Index::open(root.join("images.json"))?;
        let holds = holds::open(&root.join("holds"))?;
        let (content_barrier, layers_barrier) = barriers(&root)?;
        let steps = Steps::open(&root.join("build"))?;
        sys::sync_folder(&root)?;
        Ok(Store {
            inner: Arc::new(Inner {
                root,
                options,
                index: Mutex::new(index),
                holds: Mutex::new(holds),
                pins: Mutex::default(),
                unpacking: Mutex::default(),
                fetching: Mutex::default(),
                steps,
                coming: Mutex::default(),
                sequence: AtomicU64::new(0),
                content_barrier,
                layers_barrier,
                _lock: lock,
            }),
        })
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The platform that images are chosen for.
    pub fn platform(&self) -> &Platform {
        &self.inner.options.platform
    }

    /// Every image, named ones first and in order.
    pub fn list(&self) -> Vec<ImageRecord> {
        lock(&self.inner.index).images().to_vec()
    }

    /// The manifest that `reference` stands for here; `None` when the image is not on this node. A
    /// reference with a digest is found by the digest, of the manifest or of the index it came from.
    pub fn resolve(&self, reference: &Reference) -> Option<Digest> {
        let index = lock(&self.inner.index);
        let record = match reference.digest() {
            Some(digest) => index.images().iter().find(|record| record.is(digest)),
            None => index.images().iter().find(|record| record.reference.as_ref() == Some(reference)),
        };
        record.map(|record| record.digest.clone())
    }

    /// The record of the image with that manifest or index.
    pub fn record(&self, digest: &Digest) -> Option<ImageRecord> {
        lock(&self.inner.index).images().iter().find(|record| record.is(digest)).cloned()
    }

    /// Gives an image that is here one more name. An image that had the name keeps its content.
    pub fn tag(&self, digest: &Digest, reference: Reference) -> Result<()> {
        let mut index = lock(&self.inner.index);
        let record = index.images().iter().find(|record| record.is(digest)).cloned();
        let record = record.ok_or_else(|| Error::NoSuchImage(digest.to_string()))?;
        index.put(ImageRecord { reference: Some(reference), fetched: false, ..record })
    }

    /// Gives an image that was fetched under a name with its digest the name that people look for, in its place.
    pub fn rename_fetched(&self, digest: &Digest, from: &Reference, to: Reference) -> Result<()> {
        let mut index = lock(&self.inner.index);
        let record = index.images().iter().find(|record| record.reference.as_ref() == Some(from)).cloned();
        let record = record.ok_or_else(|| Error::NoSuchImage(from.familiar()))?;
        // A name that a user has given to the same image stays the user's.
        let is_users = index
            .images()
            .iter()
            .any(|other| other.reference.as_ref() == Some(&to) && other.digest == *digest && !other.fetched);
        if !is_users {
            index.put(ImageRecord { reference: Some(to), ..record })?;
        }
        index.remove(|record| record.reference.as_ref() == Some(from))
    }

    /// Notes that the image came from elsewhere and can be fetched again.
    pub fn mark_fetched(&self, digest: &Digest, reference: &Reference) -> Result<()> {
        let mut index = lock(&self.inner.index);
        let of_it =
            |record: &&ImageRecord| record.digest == *digest && record.reference.as_ref() == Some(reference);
        match index.images().iter().find(of_it).cloned() {
            Some(record) => index.put(ImageRecord { fetched: true, ..record }),
            None => Ok(()),
        }
    }

    /// A manifest, by its digest or by that of an index that lists it for this platform.
    pub fn manifest(&self, digest: &Digest) -> Result<Manifest> {
        self.choose(digest).map(|(_, manifest)| manifest)
    }

    /// The image configuration of the manifest (or index) `digest`.
    pub fn config(&self, digest: &Digest) -> Result<ImageConfiguration> {
        let (digest, manifest) = self.choose(digest)?;
        self.config_of(&digest, &manifest)
    }

    /// The configuration as the JSON that it is, with what OCI doesn't name (`Healthcheck`, `Shell`).
    pub fn config_json(&self, digest: &Digest) -> Result<serde_json::Value> {
        let manifest = self.manifest(digest)?;
        let bytes = self.inner.read_document(&manifest.config.digest, "configuration", CONFIG_MAX_BYTES)?;
        serde_json::from_slice(&bytes).map_err(|source| Error::Json {
            what: format!("configuration {}", manifest.config.digest),
            source,
        })
    }

    /// Opens a blob, for serving it to a peer; `None` when it is not here.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Blob>> {
        self.inner.open_blob(digest)
    }

    /// Begins to write a blob. `size` is checked if it is known.
    pub fn ingest(&self, digest: &Digest, size: Option<u64>) -> Result<BlobWriter> {
        self.writer(Some(digest.clone()), size)
    }

    /// Begins to write a blob whose digest is known only at its end; it will be a SHA-256 one.
    pub fn ingest_unnamed(&self) -> Result<BlobWriter> {
        self.writer(None, None)
    }

    fn writer(&self, digest: Option<Digest>, size: Option<u64>) -> Result<BlobWriter> {
        let most = self.inner.options.blob_max_bytes;
        if let (Some(digest), Some(size)) = (&digest, size)
            && size > most
        {
            return Err(Error::document(
                format!("blob {digest}"),
                format!("it has {size} bytes, at most {most} are accepted"),
            ));
        }
        BlobWriter::new(Arc::clone(&self.inner), digest, size, most)
    }

    /// As [`ingest`](Self::ingest), with an upper limit of its own.
    pub(crate) fn ingest_at_most(
        &self,
        digest: &Digest,
        size: Option<u64>,
        limit: Option<u64>,
    ) -> Result<BlobWriter> {
        let mut writer = self.writer(Some(digest.clone()), size)?;
        if let Some(limit) = limit {
            writer.limit(limit);
        }
        Ok(writer)
    }

    /// What unpacking may cost.
    pub(crate) fn limits(&self) -> Limits {
        self.inner.options.limits.clone()
    }

    /// What builds can use again.
    pub(crate) fn steps(&self) -> &Steps {
        &self.inner.steps
    }

    pub(crate) fn pin(&self, digests: impl IntoIterator<Item = Digest>) -> Pin {
        Pin::new(&self.inner, digests)
    }

    /// Where a blob is, or would be.
    pub(crate) fn path_of(&self, digest: &Digest) -> PathBuf {
        self.inner.blob_path(digest)
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.inner.blob_path(digest).exists()
    }

    pub(crate) fn document(&self, digest: &Digest, announced: Option<&str>) -> Result<Document> {
        let bytes = self.inner.read_document(digest, "manifest", MANIFEST_MAX_BYTES)?;
        Document::parse(&format!("manifest {digest}"), &bytes, announced)
    }

    /// A small blob, checked once more.
    pub(crate) fn read(&self, digest: &Digest, limit_bytes: u64) -> Result<Vec<u8>> {
        self.inner.read_document(digest, "document", limit_bytes)
    }

    /// The first bytes of a blob.
    pub(crate) fn head(&self, digest: &Digest, length: u64) -> Result<Vec<u8>> {
        let blob =
            self.blob(digest)?.ok_or_else(|| Error::BlobMissing { digest: digest.clone(), role: "layer" })?;
        let mut bytes = Vec::new();
        let path = self.inner.blob_path(digest);
        blob.file.take(length).read_to_end(&mut bytes).map_err(|error| Error::io("read", &path, error))?;
        Ok(bytes)
    }

    pub(crate) fn blob_max_bytes(&self) -> u64 {
        self.inner.options.blob_max_bytes
    }

    /// Follows indexes down to the manifest for this platform.
    fn choose(&self, digest: &Digest) -> Result<(Digest, Manifest)> {
        self.path_to_manifest(digest).map(|(_, chosen, manifest)| (chosen, manifest))
    }

    /// The indexes on the way, the manifest's digest, and the manifest.
    fn path_to_manifest(&self, digest: &Digest) -> Result<(Vec<Digest>, Digest, Manifest)> {
        let mut digest = digest.clone();
        let mut announced = None;
        let mut passed = Vec::new();
        for _ in 0..=INDEX_DEPTH_MAX {
            match self.document(&digest, announced.as_deref())? {
                Document::Manifest(manifest) => return Ok((passed, digest, manifest)),
                Document::Index(index) => {
                    let entry = self.inner.options.platform.choose(&format!("image {digest}"), &index)?;
                    announced = Some(entry.media_type.clone());
                    passed.push(std::mem::replace(&mut digest, entry.digest.clone()));
                }
            }
        }
        Err(index_too_deep(&digest))
    }

    /// The configuration of an image that can run here.
    pub(crate) fn config_of(&self, digest: &Digest, manifest: &Manifest) -> Result<ImageConfiguration> {
        let config = self.config_of_any(digest, manifest)?;
        self.platform().check(digest, &config::platform_of(&config))?;
        Ok(config)
    }

    /// As [`config_of`](Self::config_of), whatever the image is for.
    pub(crate) fn config_of_any(&self, digest: &Digest, manifest: &Manifest) -> Result<ImageConfiguration> {
        let bytes = self.inner.read_document(&manifest.config.digest, "configuration", CONFIG_MAX_BYTES)?;
        let config = config::parse(&manifest.config.digest, &bytes)?;
        if config.rootfs().diff_ids().len() != manifest.layers.len() {
            return Err(Error::document(
                format!("image {digest}"),
                format!(
                    "its configuration names {} layers, its manifest {}",
                    config.rootfs().diff_ids().len(),
                    manifest.layers.len()
                ),
            ));
        }
        Ok(config)
    }

    /// Checks that the image at `top` is complete and puts it into the list. Its blobs must be pinned.
    pub(crate) fn enlist(&self, top: &Digest, reference: Option<Reference>) -> Result<Digest> {
        self.examine_runnable(top)?;
        self.enlist_any(top, reference)
    }

    /// As [`enlist`](Self::enlist), whatever the image is for.
    pub(crate) fn enlist_any(&self, top: &Digest, reference: Option<Reference>) -> Result<Digest> {
        let record = ImageRecord { reference, ..self.examine(top)? };
        let digest = record.digest.clone();
        for algorithm in ["sha256", "sha512"] {
            sys::sync_folder(&self.inner.root.join("content").join(algorithm))?;
        }
        lock(&self.inner.index).put(record)?;
        Ok(digest)
    }

    /// Checks that the image at `top` is complete and can run here, and says what the list would hold.
    pub(crate) fn examine_runnable(&self, top: &Digest) -> Result<ImageRecord> {
        let record = self.examine(top)?;
        let manifest = self.manifest(&record.digest)?;
        self.config_of(&record.digest, &manifest).map(|_| record)
    }

    /// The same, whatever the image is for.
    pub(crate) fn examine(&self, top: &Digest) -> Result<ImageRecord> {
        let (digest, manifest) = self.choose(top)?;
        let config = self.config_of_any(&digest, &manifest)?;
        let mut size_bytes = 0u64;
        for (descriptor, role) in std::iter::once((&manifest.config, "configuration"))
            .chain(manifest.layers.iter().map(|layer| (layer, "layer")))
        {
            let blob = self.blob(&descriptor.digest)?;
            let blob = blob.ok_or_else(|| Error::BlobMissing { digest: descriptor.digest.clone(), role })?;
            if blob.size_bytes != descriptor.size {
                return Err(Error::SizeMismatch {
                    what: format!("{role} {}", descriptor.digest),
                    expected_bytes: descriptor.size,
                    actual_bytes: blob.size_bytes,
                });
            }
            size_bytes = size_bytes.saturating_add(descriptor.size);
        }
        Ok(ImageRecord {
            reference: None,
            index_digest: (digest != *top).then(|| top.clone()),
            digest,
            size_bytes,
            created: config.created().clone(),
            fetched: false,
        })
    }

    /// The lock to hold while `digest` is fetched, so that it is fetched once.
    pub(crate) fn fetch_lock(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        shared(&self.inner.fetching, digest)
    }
}

fn barriers(root: &Path) -> Result<(Arc<Barrier>, Arc<Barrier>)> {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| {
        fs::metadata(path).map(|metadata| metadata.dev()).map_err(|error| Error::io("look at", path, error))
    };
    let (content, layers) = (root.join("content"), root.join("layers"));
    let content_barrier = Arc::new(Barrier::new(&content)?);
    let is_same = device(&content)? == device(&layers)?;
    let layers_barrier =
        if is_same { Arc::clone(&content_barrier) } else { Arc::new(Barrier::new(&layers)?) };
    Ok((content_barrier, layers_barrier))
}

pub(crate) fn index_too_deep(digest: &Digest) -> Error {
    Error::document(format!("index {digest}"), format!("more than {INDEX_DEPTH_MAX} indexes are nested"))
}

impl Inner {
    /// A new name in `content/tmp` or `layers/tmp`.
    fn temporary(&self, kind: &str) -> PathBuf {
        self.root.join(kind).join("tmp").join(self.next_number().to_string())
    }

    /// A number that this process has not used yet.
    fn next_number(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }
}

/// The value that everyone who asks for `digest` at the same time shares.
fn shared<T: Default>(map: &Mutex<HashMap<Digest, Weak<T>>>, digest: &Digest) -> Arc<T> {
    let mut map = lock(map);
    if let Some(found) = map.get(digest).and_then(Weak::upgrade) {
        return found;
    }
    map.retain(|_, value| value.strong_count() > 0);
    let value = Arc::new(T::default());
    map.insert(digest.clone(), Arc::downgrade(&value));
    value
}

/// Locks; a panic elsewhere has left the value as it was, since each change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
