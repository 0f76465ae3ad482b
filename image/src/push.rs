//! Brings an image from here to a registry: every blob that it lacks, then the manifests, the topmost one last.
//!
//! An image that was chosen from an index is pushed with its index where all platforms of that are here; else its
//! own manifest alone. Start at [`push`].

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::watch;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Document, MANIFEST_MAX_BYTES, Manifest, OCI_INDEX};
use crate::reference::Reference;
use crate::registry::{Outgoing, RegistryClient, Uploaded};
use crate::store::{Pin, Store, index_too_deep};

/// Blobs that are sent at the same time.
const PARALLEL_BLOBS: usize = 4;
/// Indexes within indexes.
const INDEX_DEPTH_MAX: usize = 4;

/// What [`push`] reports while it works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushProgress {
    /// What has to be in the registry: digest and size.
    Blobs {
        /// Each once.
        blobs: Vec<(Digest, u64)>,
    },
    /// The registry has a blob already.
    Present {
        /// Which one.
        digest: Digest,
    },
    /// The registry has taken a blob from another repository of its own.
    Mounted {
        /// Which one.
        digest: Digest,
        /// The repository.
        from: String,
    },
    /// Some bytes went; at most one report per MiB.
    Bytes {
        /// Of which blob.
        digest: Digest,
        /// So far.
        done_bytes: u64,
        /// In all.
        total_bytes: u64,
    },
    /// A blob was sent.
    Sent {
        /// Which one.
        digest: Digest,
    },
}

/// What was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// What the name stands for in the registry now.
    pub digest: Digest,
    /// The image belongs to an index whose other platforms are not here, so that it was pushed without it.
    pub is_part: bool,
}

type Report = Arc<dyn Fn(PushProgress) + Send + Sync>;

/// What has to be in the registry for an image.
struct Plan {
    /// By digest, with its size.
    blobs: BTreeMap<Digest, u64>,
    /// Digest, media type and content; what others point to comes before them.
    manifests: Vec<(Digest, String, Vec<u8>)>,
    /// Everything that the image needs stays, whoever sweeps meanwhile.
    pin: Pin,
}

/// Pushes the image with that manifest (or index) under `reference`, which has a tag or the image's digest.
///
/// Blobs that are there are not sent, others are mounted where the registry has them under a name that the store
/// knows; the rest goes several at a time, and goes on where it broke off. The name changes last.
pub async fn push(
    store: &Store,
    digest: &Digest,
    reference: &Reference,
    registry: &RegistryClient,
    progress: impl Fn(PushProgress) + Send + Sync + 'static,
) -> Result<Pushed> {
    let record = store.record(digest).ok_or_else(|| Error::NoSuchImage(reference.familiar()))?;
    let planning = {
        let (store, target) = (store.clone(), reference.clone());
        tokio::task::spawn_blocking(move || {
            let whole = record.index_digest.as_ref().and_then(|index| plan(&store, index).ok());
            let is_part = record.index_digest.is_some() && whole.is_none();
            let plan = whole.map_or_else(|| plan(&store, &record.digest), Ok)?;
            let mounts = mounts(&store, &target);
            Ok::<_, Error>((plan, mounts, is_part))
        })
    };
    let (plan, mounts, is_part) =
        planning.await.unwrap_or_else(|_| Err(Error::Interrupted(digest.to_string())))?;
    let digest = carry_out(store, (plan, mounts), reference, registry, Arc::new(progress)).await?;
    Ok(Pushed { digest, is_part })
}

/// Pushes what is in the store, but in no list: an image of a build's steps. The caller keeps it from being swept.
pub async fn push_unlisted(
    store: &Store,
    digest: &Digest,
    reference: &Reference,
    registry: &RegistryClient,
) -> Result<()> {
    let (from, target, top) = (store.clone(), reference.clone(), digest.clone());
    let planning =
        tokio::task::spawn_blocking(move || Ok::<_, Error>((plan(&from, &top)?, mounts(&from, &target))));
    let planned = planning.await.unwrap_or_else(|_| Err(Error::Interrupted(digest.to_string())))?;
    carry_out(store, planned, reference, registry, Arc::new(|_| {})).await.map(drop)
}

/// Sends everything, the topmost manifest last; answers with its digest.
async fn carry_out(
    store: &Store,
    (plan, mounts): (Plan, BTreeMap<Digest, String>),
    reference: &Reference,
    registry: &RegistryClient,
    report: Report,
) -> Result<Digest> {
    report(PushProgress::Blobs {
        blobs: plan.blobs.iter().map(|(digest, size)| (digest.clone(), *size)).collect(),
    });
    let blobs: Vec<_> = plan
        .blobs
        .iter()
        .map(|(digest, size)| (digest.clone(), *size, mounts.get(digest).cloned()))
        .collect();
    let report = &report;
    let (give_up, in_vain) = watch::channel(false);
    let in_vain = &in_vain;
    let mut sending = stream::iter(blobs)
        .map(|(digest, size, from)| async move {
            send(store, registry, reference, (&digest, size, from.as_deref()), in_vain, report).await
        })
        .buffer_unordered(PARALLEL_BLOBS);
    let mut all = Ok(());
    while let Some(sent) = sending.next().await {
        // The others give up by themselves, so that nothing of them is left in the registry.
        if sent.is_err() && all.is_ok() {
            all = sent;
            give_up.send_replace(true);
        }
    }
    drop(sending);
    all?;
    let top = plan.manifests.last().map(|(digest, ..)| digest.clone());
    let top = top.ok_or_else(|| Error::NoSuchImage(reference.familiar()))?;
    for (digest, media_type, bytes) in &plan.manifests {
        // Parts go by their digest, the whole gets the name.
        let name = match reference.tag() {
            Some(tag) if *digest == top => tag.to_owned(),
            None if *digest == top && reference.digest().is_none() => "latest".to_owned(),
            _ => digest.to_string(),
        };
        registry.put_manifest(reference, &name, (media_type, bytes.clone())).await?;
    }
    Ok(top)
}

async fn send(
    store: &Store,
    registry: &RegistryClient,
    reference: &Reference,
    (digest, size_bytes, mount_from): (&Digest, u64, Option<&str>),
    in_vain: &watch::Receiver<bool>,
    report: &Report,
) -> Result<()> {
    const STEP: u64 = 1 << 20;
    if *in_vain.borrow() {
        return Ok(());
    }
    let (told, named, observed) = (std::sync::atomic::AtomicU64::new(0), digest.clone(), Arc::clone(report));
    let observer = Arc::new(move |done_bytes: u64| {
        use std::sync::atomic::Ordering::Relaxed;
        let before = told.load(Relaxed);
        if done_bytes < before || done_bytes - before >= STEP || done_bytes == size_bytes {
            told.store(done_bytes, Relaxed);
            observed(PushProgress::Bytes { digest: named.clone(), done_bytes, total_bytes: size_bytes });
        }
    });
    let path = store.path_of(digest);
    let blob = Outgoing { digest, path: &path, size_bytes, mount_from, observer, in_vain: in_vain.clone() };
    let digest = digest.clone();
    let Some(uploaded) = registry.upload(reference, &blob).await? else { return Ok(()) };
    report(match uploaded {
        Uploaded::Present => PushProgress::Present { digest },
        Uploaded::Mounted(from) => PushProgress::Mounted { digest, from },
        Uploaded::Sent => PushProgress::Sent { digest },
    });
    Ok(())
}

/// Everything below `top`; an error when some of it is not here.
fn plan(store: &Store, top: &Digest) -> Result<Plan> {
    let mut plan = Plan { blobs: BTreeMap::new(), manifests: Vec::new(), pin: store.pin([top.clone()]) };
    add(store, top, None, 0, &mut plan)?;
    Ok(plan)
}

fn add(store: &Store, digest: &Digest, announced: Option<&str>, depth: usize, plan: &mut Plan) -> Result<()> {
    if depth > INDEX_DEPTH_MAX {
        return Err(index_too_deep(digest));
    }
    if plan.manifests.iter().any(|(known, ..)| known == digest) {
        return Ok(());
    }
    plan.pin.join(store.pin([digest.clone()]));
    let media_type = match store.document(digest, announced)? {
        Document::Manifest(manifest) => {
            add_blobs(store, &manifest, plan)?;
            manifest.media_type().to_owned()
        }
        Document::Index(index) => {
            for entry in &index.manifests {
                add(store, &entry.digest, Some(&entry.media_type), depth + 1, plan)?;
            }
            index.media_type.unwrap_or_else(|| OCI_INDEX.to_owned())
        }
    };
    plan.manifests.push((digest.clone(), media_type, store.read(digest, MANIFEST_MAX_BYTES)?));
    Ok(())
}

fn add_blobs(store: &Store, manifest: &Manifest, plan: &mut Plan) -> Result<()> {
    for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
        plan.pin.join(store.pin([blob.digest.clone()]));
        let role = if blob.digest == manifest.config.digest { "configuration" } else { "layer" };
        let missing = || Error::BlobMissing { digest: blob.digest.clone(), role };
        let found = store.blob(&blob.digest)?.ok_or_else(missing)?;
        plan.blobs.insert(blob.digest.clone(), found.size_bytes);
    }
    Ok(())
}

/// In which other repository of the same registry a blob may be: of every image here that has a name there.
fn mounts(store: &Store, target: &Reference) -> BTreeMap<Digest, String> {
    let mut mounts = BTreeMap::new();
    for record in store.list() {
        let Some(name) = record
            .reference
            .filter(|name| name.registry() == target.registry() && name.repository() != target.repository())
        else {
            continue;
        };
        // An image that can't be read is no help, and no harm.
        let Ok(manifest) = store.manifest(&record.digest) else { continue };
        for blob in std::iter::once(manifest.config).chain(manifest.layers) {
            mounts.entry(blob.digest).or_insert_with(|| name.repository().to_owned());
        }
    }
    mounts
}
