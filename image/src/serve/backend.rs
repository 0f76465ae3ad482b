//! What the registry needs of whoever keeps it: an ordered table of small records, the users, and who has
//! which content. The daemon's is the cluster; tests have one in memory.

use std::future::Future;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::pull::BlobSource;

/// One record of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub key: String,
    /// Grows with every write of it; never 0.
    pub version: u64,
    /// A document of a few hundred bytes.
    pub value: Vec<u8>,
}

/// One write. A batch of them is done whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes a record.
    Put {
        /// Which.
        key: String,
        /// What.
        value: Vec<u8>,
        /// The version that it must have, 0 for none such; absent for whatever there is.
        expected: Option<u64>,
    },
    /// Takes a record away; fine if there is none, unless a version is expected.
    Remove {
        /// Which.
        key: String,
        /// As above.
        expected: Option<u64>,
    },
    /// Writes nothing, and refuses the batch if the record has another version.
    Expect {
        /// Which.
        key: String,
        /// As above.
        version: u64,
    },
}

/// Why the table does not answer or is not written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BackendError {
    /// A record has another version than was expected: read again, decide again.
    #[error("another writer was there first")]
    Conflict,
    /// It takes no more.
    #[error("{0}")]
    Full(String),
    /// Not now.
    #[error("{0}")]
    Unavailable(String),
}

/// Who keeps the registry.
pub trait Backend: Send + Sync + 'static {
    /// One record.
    fn get(&self, key: String) -> impl Future<Output = Result<Option<Entry>, BackendError>> + Send;

    /// Records whose keys begin with `prefix` and lie behind `prefix` + `after`, in order, at most `limit`.
    fn list(
        &self,
        prefix: String,
        after: String,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Entry>, BackendError>> + Send;

    /// Writes a batch.
    fn write(&self, changes: Vec<Change>) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// What a user may do; `None` if there is no such user or the password is wrong. An empty name (and
    /// password) asks what everybody may do.
    fn authenticate(
        &self,
        user: &str,
        password: &str,
    ) -> impl Future<Output = Result<Option<Rights>, BackendError>> + Send;

    /// Whoever has the manifest, and with it all that it names; the node itself aside.
    fn holders(&self, manifest: &Digest) -> impl Future<Output = Vec<Arc<dyn BlobSource>>> + Send;

    /// What this node holds has changed.
    fn held_changed(&self);
}

/// What can be done with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Read all of it.
    Pull,
    /// Put blobs and manifests into it.
    Push,
    /// Take blobs, manifests and tags out of it.
    Delete,
}

impl Right {
    /// Every right.
    pub const ALL: [Right; 3] = [Right::Pull, Right::Push, Right::Delete];

    /// The word in scopes and commands.
    pub fn as_str(self) -> &'static str {
        match self {
            Right::Pull => "pull",
            Right::Push => "push",
            Right::Delete => "delete",
        }
    }
}

/// Rights on some repositories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// A repository's name, or the beginning of names and a `*`: `team/*`.
    pub repositories: String,
    /// What may be done with them.
    pub rights: Vec<Right>,
}

/// All that somebody may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights(pub Vec<Grant>);

impl Rights {
    /// May do anything.
    pub fn everything() -> Rights {
        Rights(vec![Grant { repositories: "*".to_owned(), rights: Right::ALL.to_vec() }])
    }

    /// Whether that may be done with that repository.
    pub fn allow(&self, repository: &str, right: Right) -> bool {
        self.0.iter().any(|grant| grant.rights.contains(&right) && grant.covers(repository))
    }
}

impl Grant {
    /// Whether it is about that repository.
    pub fn covers(&self, repository: &str) -> bool {
        match self.repositories.strip_suffix('*') {
            Some(beginning) => repository.starts_with(beginning),
            None => self.repositories == repository,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_covers_a_name_or_all_that_begin_so() {
        let rights = Rights(vec![
            Grant { repositories: "team/*".to_owned(), rights: vec![Right::Pull, Right::Push] },
            Grant { repositories: "app".to_owned(), rights: vec![Right::Delete] },
        ]);
        for (repository, right, allowed) in [
            ("team/app", Right::Push, true),
            ("team/app", Right::Delete, false),
            ("teams", Right::Pull, false),
            ("team", Right::Pull, false),
            ("app", Right::Delete, true),
            ("app2", Right::Delete, false),
            ("app", Right::Pull, false),
        ] {
            assert_eq!(rights.allow(repository, right), allowed, "{repository} {right:?}");
        }
        assert!(Rights::everything().allow("any/thing", Right::Delete));
    }
}
