//! The registry's contents as records of the [`Backend`]: one place for their keys and for what belongs
//! together.
//!
//! ```text
//! repository/<name>                        there is such a repository
//! tag/<name>:<tag>                         the manifest that the tag stands for
//! manifest/<name>@<digest>                 what the manifest is and needs
//! blob/<digest>@<name>@<manifest>          the repository may read the blob, because of the manifest
//! referrer/<name>@<subject>@<manifest>     the manifest is about the subject
//! ```
//! A manifest is a blob of itself, so that one look tells whether any repository still needs a digest.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::backend::{Backend, BackendError, Change, Entry};
use crate::digest::Digest;

/// How often a batch is tried again that another writer came before.
const TRIES: usize = 20;
/// Records that are read at a time.
const PAGE: usize = 1000;
/// Manifests because of which a blob is there that are asked for, when it has to be fetched.
const REASONS: usize = 4;

/// What the table knows of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) media_type: String,
    pub(super) size: u64,
    /// Blobs and manifests that it names and that have to be there.
    pub(super) needs: Vec<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) artifact_type: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Tag {
    digest: Digest,
}

/// The contents of all repositories.
pub(super) struct Catalogue<B> {
    backend: Arc<B>,
}

impl<B> Clone for Catalogue<B> {
    fn clone(&self) -> Self {
        Catalogue { backend: Arc::clone(&self.backend) }
    }
}

type Result<T> = std::result::Result<T, BackendError>;

impl<B: Backend> Catalogue<B> {
    pub(super) fn new(backend: Arc<B>) -> Self {
        Catalogue { backend }
    }

    pub(super) async fn has_repository(&self, name: &str) -> Result<bool> {
        Ok(self.backend.get(repository_key(name)).await?.is_some())
    }

    /// Names of repositories behind `after`, in order.
    pub(super) async fn repositories(&self, after: &str, limit: usize) -> Result<Vec<String>> {
        let found = if limit == usize::MAX {
            self.all("repository/".to_owned()).await?
        } else {
            self.backend.list("repository/".to_owned(), after.to_owned(), limit).await?
        };
        Ok(found.iter().map(|entry| rest(entry, "repository/")).collect())
    }

    /// Tags of a repository behind `after`, in order.
    pub(super) async fn tags(&self, name: &str, after: &str, limit: usize) -> Result<Vec<String>> {
        let prefix = tag_key(name, "");
        let found = self.backend.list(prefix.clone(), after.to_owned(), limit).await?;
        Ok(found.iter().map(|entry| rest(entry, &prefix)).collect())
    }

    /// All tags of a repository and what they stand for, in order.
    pub(super) async fn all_tags(&self, name: &str) -> Result<Vec<(String, Digest)>> {
        let prefix = tag_key(name, "");
        let found = self.all(prefix.clone()).await?;
        found.iter().map(|entry| Ok((rest(entry, &prefix), read::<Tag>(entry)?.digest))).collect()
    }

    /// The manifest that a tag stands for.
    pub(super) async fn tagged(&self, name: &str, tag: &str) -> Result<Option<Digest>> {
        let entry = self.backend.get(tag_key(name, tag)).await?;
        Ok(entry.map(|entry| read::<Tag>(&entry)).transpose()?.map(|tag| tag.digest))
    }

    pub(super) async fn manifest(&self, name: &str, digest: &Digest) -> Result<Option<Known>> {
        let entry = self.backend.get(manifest_key(name, digest)).await?;
        entry.map(|entry| read(&entry)).transpose()
    }

    /// Whether a repository may read a blob, and because of which manifests (some of them).
    pub(super) async fn reasons(&self, name: &str, blob: &Digest) -> Result<Vec<Digest>> {
        let prefix = format!("blob/{blob}@{name}@");
        let found = self.backend.list(prefix.clone(), String::new(), REASONS).await?;
        Ok(found.iter().filter_map(|entry| rest(entry, &prefix).parse().ok()).collect())
    }

    /// Repositories that may read a blob, some of them.
    pub(super) async fn readers(&self, blob: &Digest) -> Result<Vec<String>> {
        let prefix = format!("blob/{blob}@");
        let found = self.backend.list(prefix.clone(), String::new(), PAGE).await?;
        let mut names: Vec<String> = found
            .iter()
            .filter_map(|entry| rest(entry, &prefix).split_once('@').map(|(name, _)| name.to_owned()))
            .collect();
        names.dedup();
        Ok(names)
    }

    /// Whether any repository needs a blob or manifest.
    pub(super) async fn is_needed(&self, digest: &Digest) -> Result<bool> {
        Ok(!self.backend.list(format!("blob/{digest}@"), String::new(), 1).await?.is_empty())
    }

    /// The manifests about `subject` behind `after`, in order of their digests.
    pub(super) async fn referrers(
        &self,
        name: &str,
        subject: &Digest,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Digest>> {
        let prefix = format!("referrer/{name}@{subject}@");
        let found = self.backend.list(prefix.clone(), after.to_owned(), limit).await?;
        Ok(found.iter().filter_map(|entry| rest(entry, &prefix).parse().ok()).collect())
    }

    /// Puts a manifest into a repository, and a tag on it; makes the repository if it isn't there.
    pub(super) async fn put(
        &self,
        name: &str,
        digest: &Digest,
        known: &Known,
        tag: Option<&str>,
    ) -> Result<()> {
        self.repeat(|| async {
            let mut changes = Vec::with_capacity(known.needs.len() + 5);
            let key = repository_key(name);
            changes.push(match self.backend.get(key.clone()).await? {
                Some(entry) => Change::Expect { key, version: entry.version },
                None => Change::Put { key, value: b"{}".to_vec(), expected: Some(0) },
            });
            changes.push(put(manifest_key(name, digest), known)?);
            for blob in known.needs.iter().chain([digest]) {
                changes.push(put(format!("blob/{blob}@{name}@{digest}"), &())?);
            }
            if let Some(subject) = &known.subject {
                changes.push(put(format!("referrer/{name}@{subject}@{digest}"), &())?);
            }
            if let Some(tag) = tag {
                changes.push(put(tag_key(name, tag), &Tag { digest: digest.clone() })?);
            }
            Ok(changes)
        })
        .await
        .map(drop)
    }

    /// Takes a tag away; says whether there was one.
    pub(super) async fn remove_tag(&self, name: &str, tag: &str) -> Result<bool> {
        self.repeat(|| async {
            let key = tag_key(name, tag);
            let entry = self.backend.get(key.clone()).await?;
            let gone = entry.map(|entry| Change::Remove { key, expected: Some(entry.version) });
            Ok(gone.into_iter().collect())
        })
        .await
    }

    /// Takes a manifest away and every tag on it; says whether there was one.
    pub(super) async fn remove(&self, name: &str, digest: &Digest) -> Result<bool> {
        self.repeat(|| async {
            let key = manifest_key(name, digest);
            let Some(entry) = self.backend.get(key.clone()).await? else { return Ok(Vec::new()) };
            let known: Known = read(&entry)?;
            // Whoever puts it again meanwhile, or a tag on it, writes the record too.
            let mut changes = vec![Change::Remove { key, expected: Some(entry.version) }];
            let remove = |key| Change::Remove { key, expected: None };
            for blob in known.needs.iter().chain([digest]) {
                changes.push(remove(format!("blob/{blob}@{name}@{digest}")));
            }
            if let Some(subject) = &known.subject {
                changes.push(remove(format!("referrer/{name}@{subject}@{digest}")));
            }
            for entry in self.all(tag_key(name, "")).await? {
                if read::<Tag>(&entry)?.digest == *digest {
                    changes.push(Change::Remove { key: entry.key, expected: Some(entry.version) });
                }
            }
            Ok(changes)
        })
        .await
    }

    /// Takes a repository away that has no manifests (any more); says whether it is gone.
    pub(super) async fn remove_empty(&self, name: &str) -> Result<bool> {
        self.repeat(|| async {
            let key = repository_key(name);
            let Some(entry) = self.backend.get(key.clone()).await? else { return Ok(Vec::new()) };
            let manifests = self.backend.list(format!("manifest/{name}@"), String::new(), 1).await?;
            // Whoever puts the first manifest meanwhile expects the record as it was.
            let gone = Change::Remove { key, expected: Some(entry.version) };
            Ok(if manifests.is_empty() { vec![gone] } else { Vec::new() })
        })
        .await
    }

    /// The manifests of a repository, all of them.
    pub(super) async fn manifests(&self, name: &str) -> Result<Vec<(Digest, Known)>> {
        let prefix = format!("manifest/{name}@");
        let mut found = Vec::new();
        for entry in self.all(prefix.clone()).await? {
            if let Ok(digest) = rest(&entry, &prefix).parse() {
                found.push((digest, read(&entry)?));
            }
        }
        Ok(found)
    }

    async fn all(&self, prefix: String) -> Result<Vec<Entry>> {
        let mut found: Vec<Entry> = Vec::new();
        loop {
            let after = found.last().map(|entry| rest(entry, &prefix)).unwrap_or_default();
            let page = self.backend.list(prefix.clone(), after, PAGE).await?;
            let is_last = page.len() < PAGE;
            found.extend(page);
            if is_last {
                return Ok(found);
            }
        }
    }

    /// Decides what to write and writes it, again where another writer came before. Says whether there
    /// was anything to write.
    async fn repeat<F: Future<Output = Result<Vec<Change>>>>(&self, decide: impl Fn() -> F) -> Result<bool> {
        for _ in 0..TRIES {
            let changes = decide().await?;
            if changes.is_empty() {
                return Ok(false);
            }
            match self.backend.write(changes).await {
                Err(BackendError::Conflict) => {}
                written => return written.map(|()| true),
            }
        }
        Err(BackendError::Conflict)
    }
}

fn repository_key(name: &str) -> String {
    format!("repository/{name}")
}

fn tag_key(name: &str, tag: &str) -> String {
    format!("tag/{name}:{tag}")
}

fn manifest_key(name: &str, digest: &Digest) -> String {
    format!("manifest/{name}@{digest}")
}

fn rest(entry: &Entry, prefix: &str) -> String {
    entry.key.strip_prefix(prefix).unwrap_or_default().to_owned()
}

fn put<T: Serialize>(key: String, value: &T) -> Result<Change> {
    let value = serde_json::to_vec(value)
        .map_err(|error| BackendError::Unavailable(format!("record {key}: {error}")))?;
    Ok(Change::Put { key, value, expected: None })
}

fn read<T: DeserializeOwned>(entry: &Entry) -> Result<T> {
    serde_json::from_slice(&entry.value).map_err(|error| {
        BackendError::Unavailable(format!("record {} can't be read ({error}): push it again", entry.key))
    })
}
