//! Keeping house: what has expired, what no repository names any more, and what people ask about the whole.

use super::backend::{Backend, BackendError};
use super::manifests::MANIFESTS;
use super::refusal::Refusal;
use super::route::Named;
use super::spool::blocking;
use super::uploads::LEASES;
use super::{Registry, now_ms};
use crate::digest::Digest;
use crate::error::Error;

/// What a look at all of this node's holds did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Manifests that no repository names any more.
    pub manifests: u64,
    /// Blobs that are gone from this node.
    pub blobs: u64,
    /// What they took.
    pub freed_bytes: u64,
}

/// What of the registry is on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Manifests that are held.
    pub manifests: u64,
    /// What they and all that they need take; what several need is counted once.
    pub size_bytes: u64,
    /// Uploads under way.
    pub uploads: u64,
}

/// A repository for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// Its name.
    pub name: String,
    /// Tags, and the manifests that they stand for.
    pub tags: Vec<(String, Digest)>,
    /// Manifests, tagged or not.
    pub manifests: u64,
    /// What its manifests and their blobs are, as far as this node knows their lengths.
    pub size_bytes: u64,
}

/// Why something that is not a request did not work.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The table.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The store.
    #[error(transparent)]
    Store(#[from] Error),
    /// A request would have been refused with these words.
    #[error("{0}")]
    Refused(String),
}

impl From<Refusal> for KeepError {
    fn from(refusal: Refusal) -> Self {
        KeepError::Refused(refusal.message().to_owned())
    }
}

impl<B: Backend> Registry<B> {
    /// Gives up what has expired and what no repository names any more, and sweeps. To be called every now and
    /// then, and when somebody wants the space.
    pub async fn collect(&self) -> Result<Swept, KeepError> {
        let life_ms = i64::try_from(self.options.upload_life.as_millis()).unwrap_or(i64::MAX);
        let settle_ms = i64::try_from(self.options.settle.as_millis()).unwrap_or(i64::MAX);
        self.spool.expire(life_ms).await?;
        let now = now_ms();
        for (name, hold) in self.store.holds(LEASES) {
            if now.saturating_sub(hold.since_ms) >= life_ms {
                let store = self.store.clone();
                blocking(move || Ok(store.release(&name)?)).await?;
            }
        }
        let mut swept = Swept::default();
        for (name, hold) in self.store.holds(MANIFESTS) {
            let is_settled = now.saturating_sub(hold.since_ms) >= settle_ms;
            let Some(digest) = digest_of(&name).filter(|_| is_settled) else { continue };
            if !self.catalogue.is_needed(&digest).await? && self.give_up(&digest).await? {
                swept.manifests += 1;
            }
        }
        let store = self.store.clone();
        let removed = blocking(move || Ok(store.sweep()?)).await?;
        swept.blobs = removed.blobs.len() as u64;
        swept.freed_bytes = removed.freed_bytes;
        Ok(swept)
    }

    /// The manifests of the registry that are here, with all that they name.
    pub fn held(&self) -> Vec<Digest> {
        self.store.holds(MANIFESTS).iter().filter_map(|(name, _)| digest_of(name)).collect()
    }

    /// Has a manifest of the registry here that another node has, with all that it names. `false`: no repository has
    /// it (any more).
    pub async fn keep_copy(&self, digest: &Digest) -> Result<bool, KeepError> {
        for name in self.catalogue.readers(digest).await? {
            let Some(known) = self.catalogue.manifest(&name, digest).await? else { continue };
            self.bring(&name, digest, known).await?;
            // Taken away meanwhile?
            if self.catalogue.is_needed(digest).await? {
                return Ok(true);
            }
            self.give_up(digest).await?;
        }
        Ok(false)
    }

    /// What of the registry is on this node.
    pub async fn kept(&self) -> Result<Kept, KeepError> {
        let held = self.store.holds(MANIFESTS);
        let manifests = held.len() as u64;
        let mut digests: Vec<Digest> = held.into_iter().flat_map(|(_, hold)| hold.digests).collect();
        digests.sort();
        digests.dedup();
        let size_bytes = self.sizes(digests).await?;
        Ok(Kept { manifests, size_bytes, uploads: self.spool.count() as u64 })
    }

    /// All repositories, or the one of that name.
    pub async fn repositories(&self, only: Option<&str>) -> Result<Vec<Repository>, KeepError> {
        let names = match only {
            Some(name) if self.catalogue.has_repository(name).await? => vec![name.to_owned()],
            Some(name) => return Err(KeepError::Refused(format!("there is no repository `{name}`"))),
            None => self.catalogue.repositories("", usize::MAX).await?,
        };
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            let manifests = self.catalogue.manifests(&name).await?;
            let mut digests: Vec<Digest> =
                manifests.iter().flat_map(|(_, known)| known.needs.clone()).collect();
            digests.extend(manifests.iter().map(|(digest, _)| digest.clone()));
            digests.sort();
            digests.dedup();
            found.push(Repository {
                tags: self.catalogue.all_tags(&name).await?,
                manifests: manifests.len() as u64,
                size_bytes: self.sizes(digests).await?,
                name,
            });
        }
        Ok(found)
    }

    /// The manifest that a tag or digest means in a repository; `None` if there is none.
    pub async fn resolve(&self, repository: &str, named: &str) -> Result<Option<Digest>, KeepError> {
        let digest = match named.parse() {
            Ok(digest) => Some(digest),
            Err(_) => self.catalogue.tagged(repository, named).await?,
        };
        let Some(digest) = digest else { return Ok(None) };
        Ok(self.catalogue.manifest(repository, &digest).await?.map(|_| digest))
    }

    /// Takes a tag away, or a manifest with all its tags where `named` is a digest. A repository goes with its
    /// last manifest. Says whether there was one.
    pub async fn remove(&self, repository: &str, named: &str) -> Result<bool, KeepError> {
        let is_gone = match named.parse() {
            Err(_) => self.catalogue.remove_tag(repository, named).await?,
            Ok(digest) => match self.delete_manifest(repository, &Named::Digest(digest)).await {
                Ok(_) => true,
                Err(refusal) if refusal.is_missing() => false,
                Err(refusal) => return Err(refusal.into()),
            },
        };
        Ok(is_gone)
    }

    /// Takes a repository away with all that is in it; says whether there was one.
    pub async fn remove_repository(&self, repository: &str) -> Result<bool, KeepError> {
        for (digest, _) in self.catalogue.manifests(repository).await? {
            self.remove(repository, &digest.to_string()).await?;
        }
        Ok(self.catalogue.remove_empty(repository).await?)
    }

    async fn sizes(&self, digests: Vec<Digest>) -> Result<u64, KeepError> {
        let store = self.store.clone();
        let sizes = blocking(move || {
            let mut total = 0;
            for digest in digests {
                total += store.blob(&digest)?.map_or(0, |blob| blob.size_bytes);
            }
            Ok(total)
        });
        Ok(sizes.await?)
    }
}

/// The manifest that a hold of that name keeps.
fn digest_of(hold: &str) -> Option<Digest> {
    hold.strip_prefix(MANIFESTS)?.replacen('-', ":", 1).parse().ok()
}
