//! Brings an image here: every blob from whoever has it, verified, every layer unpacked, and then the name.
//!
//! ```text
//! tag ─(registry)─► digest ─► index? ─► manifest ─► configuration ─► layers, several at a time ─► list
//!                                                                      └─► unpacking.rs, meanwhile
//! ```
//!
//! Each blob is asked for in this order: the store itself, the sources in the order given, the registry.
//! What a source sends is verified before it counts, so a source can be wrong but not harmful. The
//! platform is checked before any layer is fetched. Start at [`pull`].

mod parts;
mod unpacking;

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, FuturesUnordered};

pub use self::parts::{ForeignImage, pull_documents, pull_foreign, pull_layer};
use self::unpacking::{Job, Unpacking};
use crate::config;

use crate::digest::Digest;
use crate::error::{Error, Result, one_line};
use crate::manifest::{Descriptor, Document, MANIFEST_MAX_BYTES, Manifest};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::RegistryClient;
use crate::store::{BlobWriter, Pin, Store, index_too_deep};

/// Layers that are fetched at the same time.
const PARALLEL_LAYERS: usize = 4;
/// Indexes within indexes.
const INDEX_DEPTH_MAX: usize = 4;

/// Why a source did not deliver.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// What a [`BlobSource`] answers that knows of nobody who has the blob: no failure, the next one is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody has it")]
pub struct NobodyHasIt;

/// Someone who may have blobs: a peer of the cluster.
pub trait BlobSource: Send + Sync {
    /// A name for messages and progress, such as the node's.
    fn name(&self) -> String;

    /// Writes the blob `digest` to `to`, from its beginning; `size` is known except for the image's
    /// topmost manifest. What is written is verified afterwards by the caller. A source that does not
    /// have the blob answers with an error; the next one is asked then.
    ///
    /// An error of [`BlobWriter::write`] is to be returned as it is: a full disk ends the pull.
    fn fetch<'a>(
        &'a self,
        digest: &'a Digest,
        size: Option<u64>,
        to: &'a mut BlobWriter,
    ) -> BoxFuture<'a, Result<(), SourceError>>;
}

/// What a blob is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlobRole {
    /// A manifest or an index.
    Manifest,
    /// The image configuration.
    Config,
    /// A layer.
    Layer,
}

impl BlobRole {
    fn as_str(self) -> &'static str {
        match self {
            BlobRole::Manifest => "manifest",
            BlobRole::Config => "configuration",
            BlobRole::Layer => "layer",
        }
    }
}

/// What [`pull`] reports while it works. Byte counts of a blob may go back when another source has to
/// begin anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The tag stands for this digest.
    Resolved {
        /// Of the manifest or index.
        digest: Digest,
    },
    /// The layers are known: this is what will be fetched or is here already.
    Layers {
        /// Digest and size, lowest first.
        layers: Vec<(Digest, u64)>,
    },
    /// A blob is here already.
    Present {
        /// Which one.
        digest: Digest,
    },
    /// Some bytes came; at most one report per MiB.
    Bytes {
        /// Of which blob.
        digest: Digest,
        /// So far.
        done_bytes: u64,
        /// In all, where it is known.
        total_bytes: Option<u64>,
    },
    /// A blob is complete and verified.
    Fetched {
        /// Which one.
        digest: Digest,
        /// What it is for.
        role: BlobRole,
        /// Name of the source, or the registry's host.
        from: String,
    },
    /// A layer is unpacked.
    Unpacked {
        /// Digest of its blob.
        digest: Digest,
    },
}

type Report = Arc<dyn Fn(Progress) + Send + Sync>;

/// Brings the image here and lists it under `reference`. Answers with the digest of the manifest for
/// this node's platform.
///
/// With `sources` and a reference that has a digest, no registry is needed. Blobs that are here are not
/// fetched again, and several pulls at the same time fetch a blob once. Layers are unpacked while they come, so that
/// [`Store::prepare`] has nothing left to do.
///
/// After an error the store is as it was; but what is complete when a registry or the network fails stays, so that
/// the next attempt goes on there, until the next [`Store::sweep`]. So it is when the future is dropped.
pub async fn pull(
    store: &Store,
    reference: &Reference,
    sources: &[Arc<dyn BlobSource>],
    registry: Option<&RegistryClient>,
    progress: impl Fn(Progress) + Send + Sync + 'static,
) -> Result<Digest> {
    let puller = Puller::new(store, reference, sources, registry, Arc::new(progress));
    let pulled = puller.run().await;
    let Err(error) = &pulled else { return pulled };
    let Puller { pin, unpacking, .. } = puller;
    unpacking.give_up().await;
    drop(pin);
    if !matches!(error, Error::Registry { .. } | Error::Fetch { .. } | Error::NeedsRegistry(_)) {
        let store = store.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || store.sweep()).await {
            tracing::warn!(error = %one_line(&error), "leftovers of a pull could not be swept");
        }
    }
    pulled
}

struct Puller<'a> {
    store: Store,
    /// Which image of an index is wanted.
    platform: Platform,
    reference: &'a Reference,
    sources: &'a [Arc<dyn BlobSource>],
    registry: Option<&'a RegistryClient>,
    report: Report,
    /// Everything that the image needs stays, whoever sweeps meanwhile.
    pin: Mutex<Pin>,
    unpacking: Unpacking,
}

/// A layer's descriptor and diff-id.
type Layer = (Descriptor, Digest);

impl<'a> Puller<'a> {
    fn new(
        store: &Store,
        reference: &'a Reference,
        sources: &'a [Arc<dyn BlobSource>],
        registry: Option<&'a RegistryClient>,
        report: Report,
    ) -> Self {
        Puller {
            store: store.clone(),
            platform: store.platform().clone(),
            reference,
            sources,
            registry,
            report,
            pin: Mutex::new(store.pin([])),
            unpacking: Unpacking::new(store),
        }
    }

    async fn run(&self) -> Result<Digest> {
        let top = match (self.reference.digest(), self.registry) {
            (Some(digest), _) => digest.clone(),
            (None, Some(registry)) => self.by_tag(registry).await?,
            (None, None) => return Err(Error::NeedsRegistry(self.reference.familiar())),
        };
        (self.report)(Progress::Resolved { digest: top.clone() });
        let (digest, manifest) = self.manifest(&top).await?;
        self.content(&digest, &manifest).await?;
        let name = self.reference.clone();
        self.blocking(&top, move |store, top| store.enlist(top, Some(name))).await
    }

    fn keep(&self, digests: impl IntoIterator<Item = Digest>) {
        let pin = self.store.pin(digests);
        self.pin.lock().unwrap_or_else(PoisonError::into_inner).join(pin);
    }

    /// Asks the registry what the tag stands for, and keeps the answer.
    async fn by_tag(&self, registry: &RegistryClient) -> Result<Digest> {
        let fetched = registry.manifest(self.reference, None).await?;
        // Before it is kept: a document of a wrong kind must not take the name of a right one.
        Document::parse(
            &format!("manifest `{}`", self.reference.familiar()),
            &fetched.bytes,
            fetched.media_type.as_deref(),
        )?;
        self.keep([fetched.digest.clone()]);
        if !self.store.has(&fetched.digest) {
            let mut writer = self.store.ingest(&fetched.digest, Some(fetched.bytes.len() as u64))?;
            writer.write(&fetched.bytes)?;
            self.blocking(&fetched.digest, move |_, _| writer.commit()).await?;
        }
        Ok(fetched.digest)
    }

    /// Follows indexes down to the manifest for this platform.
    async fn manifest(&self, top: &Digest) -> Result<(Digest, Manifest)> {
        let mut digest = top.clone();
        let (mut announced, mut size) = (None, None);
        for _ in 0..=INDEX_DEPTH_MAX {
            self.fetch(&digest, size, BlobRole::Manifest).await?;
            let kind: Option<String> = announced.take();
            let document =
                self.blocking(&digest, move |store, digest| store.document(digest, kind.as_deref())).await?;
            match document {
                Document::Manifest(manifest) => return Ok((digest, manifest)),
                Document::Index(index) => {
                    let entry = self.platform.choose(&format!("`{}`", self.reference.familiar()), &index)?;
                    if entry.size > MANIFEST_MAX_BYTES {
                        return Err(Error::document(
                            format!("manifest {}", entry.digest),
                            format!("it has {} bytes, at most {MANIFEST_MAX_BYTES} are accepted", entry.size),
                        ));
                    }
                    announced = Some(entry.media_type.clone());
                    size = Some(entry.size);
                    digest = entry.digest.clone();
                }
            }
        }
        Err(index_too_deep(&digest))
    }

    /// The configuration, which says whether the image is for us at all, then the layers.
    async fn content(&self, digest: &Digest, manifest: &Manifest) -> Result<()> {
        self.keep(manifest.layers.iter().map(|layer| layer.digest.clone()));
        self.fetch(&manifest.config.digest, Some(manifest.config.size), BlobRole::Config).await?;
        let wanted = manifest.clone();
        let config = self.blocking(digest, move |store, digest| store.config_of(digest, &wanted)).await?;
        let diff_ids = config::diff_ids(&manifest.config.digest, &config)?;
        self.keep(diff_ids.iter().cloned());
        (self.report)(Progress::Layers {
            layers: manifest.layers.iter().map(|layer| (layer.digest.clone(), layer.size)).collect(),
        });
        // Each future is owned by the stream: an error drops the others, and with them their writers.
        let layers: Vec<Layer> = manifest.layers.iter().cloned().zip(diff_ids).collect();
        let mut fetching = stream::iter(layers)
            .map(|layer| async move {
                self.bring(&layer.0.digest, Some(layer.0.size), BlobRole::Layer, Some(&layer)).await
            })
            .buffer_unordered(PARALLEL_LAYERS);
        let mut unpacking = FuturesUnordered::new();
        loop {
            // Both are cancel-safe: streams that keep their futures.
            tokio::select! {
                Some(fetched) = fetching.next() => {
                    if let Some(job) = fetched? {
                        unpacking.push(self.unpacked(job));
                    }
                }
                Some(unpacked) = unpacking.next() => unpacked?,
                else => return Ok(()),
            }
        }
    }

    async fn unpacked(&self, job: Job) -> Result<()> {
        let digest = job.layer().clone();
        self.unpacking.finish(job).await?;
        (self.report)(Progress::Unpacked { digest });
        Ok(())
    }

    async fn fetch(&self, digest: &Digest, size: Option<u64>, role: BlobRole) -> Result<()> {
        self.keep([digest.clone()]);
        self.bring(digest, size, role, None).await.map(drop)
    }

    /// Makes the store have the blob, which is pinned; that of a layer is unpacked meanwhile.
    async fn bring(
        &self,
        digest: &Digest,
        size: Option<u64>,
        role: BlobRole,
        layer: Option<&Layer>,
    ) -> Result<Option<Job>> {
        let turn = self.store.fetch_lock(digest);
        let _turn = turn.lock().await;
        if self.store.has(digest) {
            (self.report)(Progress::Present { digest: digest.clone() });
            return Ok(layer.map(|(blob, diff_id)| Unpacking::later(blob, diff_id)));
        }
        let begin = |writer: &mut BlobWriter| {
            layer.map(|(blob, diff_id)| self.unpacking.begin(writer, blob, diff_id)).transpose()
        };
        let limit = size.or((role == BlobRole::Manifest).then_some(MANIFEST_MAX_BYTES));
        let mut writer = self.store.ingest_at_most(digest, size, limit)?;
        self.watch(&mut writer, digest, size);
        let mut tried = Vec::new();
        for source in self.sources {
            writer.reset()?;
            let job = begin(&mut writer)?;
            match source.fetch(digest, size, &mut writer).await {
                Ok(()) => match writer.verify() {
                    Ok(_) => {
                        self.complete(writer, digest, role, source.name()).await?;
                        return Ok(job);
                    }
                    Err(error) => tried.push(format!("{}: {}", source.name(), one_line(&error))),
                },
                Err(error) if error.is::<NobodyHasIt>() => {}
                Err(error) => match error.downcast::<Error>() {
                    // Our own disk's fault: no other source can help.
                    Ok(error) if matches!(*error, Error::DiskFull { .. } | Error::Io { .. }) => {
                        return Err(*error);
                    }
                    Ok(error) => tried.push(format!("{}: {}", source.name(), one_line(&*error))),
                    Err(error) => tried.push(format!("{}: {}", source.name(), one_line(&*error))),
                },
            }
        }
        let Some(registry) = self.registry else {
            if tried.is_empty() {
                tried.push("there is neither a peer nor a registry to ask".to_owned());
            }
            return Err(Error::Fetch { digest: digest.clone(), role: role.as_str(), tried });
        };
        writer.reset()?;
        let job = begin(&mut writer)?;
        if let Err(error) = self.ask_registry(registry, digest, role, &mut writer).await {
            if tried.is_empty() || matches!(error, Error::DiskFull { .. } | Error::Io { .. }) {
                return Err(error);
            }
            tried.push(format!("{}: {}", self.reference.registry(), one_line(&error)));
            return Err(Error::Fetch { digest: digest.clone(), role: role.as_str(), tried });
        }
        self.complete(writer, digest, role, self.reference.registry().to_owned()).await?;
        Ok(job)
    }

    async fn ask_registry(
        &self,
        registry: &RegistryClient,
        digest: &Digest,
        role: BlobRole,
        writer: &mut BlobWriter,
    ) -> Result<()> {
        if role == BlobRole::Manifest {
            let fetched = registry.manifest(self.reference, Some(digest)).await?;
            writer.write(&fetched.bytes)?;
        } else {
            registry.blob(self.reference, digest, writer).await?;
        }
        writer.verify().map(drop)
    }

    fn watch(&self, writer: &mut BlobWriter, digest: &Digest, total_bytes: Option<u64>) {
        const STEP: u64 = 1 << 20;
        let (report, digest) = (Arc::clone(&self.report), digest.clone());
        let reported = std::sync::atomic::AtomicU64::new(0);
        writer.observe(move |done_bytes| {
            use std::sync::atomic::Ordering::Relaxed;
            let before = reported.load(Relaxed);
            if done_bytes < before || done_bytes - before >= STEP || Some(done_bytes) == total_bytes {
                reported.store(done_bytes, Relaxed);
                report(Progress::Bytes { digest: digest.clone(), done_bytes, total_bytes });
            }
        });
    }

    async fn complete(
        &self,
        writer: BlobWriter,
        digest: &Digest,
        role: BlobRole,
        from: String,
    ) -> Result<()> {
        self.blocking(digest, move |_, _| match role {
            BlobRole::Layer => writer.commit_with_layers(),
            BlobRole::Manifest | BlobRole::Config => writer.commit().map(drop),
        })
        .await?;
        (self.report)(Progress::Fetched { digest: digest.clone(), role, from });
        Ok(())
    }

    /// Runs what waits for the disk where that disturbs nobody.
    async fn blocking<T: Send + 'static>(
        &self,
        digest: &Digest,
        work: impl FnOnce(&Store, &Digest) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (store, owned) = (self.store.clone(), digest.clone());
        tokio::task::spawn_blocking(move || work(&store, &owned))
            .await
            .unwrap_or_else(|_| Err(Error::Interrupted(digest.to_string())))
    }
}
