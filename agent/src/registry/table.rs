//! The registry's table as this node sees it: every question and every write goes to the leader.

use std::sync::Arc;
use std::time::Duration;

use rorqual_image::serve::{Backend, BackendError, Change, Entry, Grant, Right, Rights};
use rorqual_image::{BlobSource, Digest, Reference};
use rorqual_proto::tls::REGISTRY_NAME;
use rorqual_proto::wire;
use rorqual_proto::wire::registry_table_client::RegistryTableClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::images::Images;

/// How long the leader may take to answer. Checking a password takes most of it, where many are checked.
const ANSWER: Duration = Duration::from_secs(15);
/// What an old leader that is gone may leave behind: the next try finds the new one.
const TRIES: usize = 3;
const PAUSE: Duration = Duration::from_millis(300);
/// Records that are asked for at a time.
const PAGE: usize = 1000;

/// The user that programs of this node log in as.
pub(super) const LOCAL_USER: &str = "local";

/// The cluster, as the registry needs it.
pub(crate) struct ClusterTable {
    images: Images,
    /// The hash of what the local user's password is.
    local: Digest,
}

impl ClusterTable {
    pub(super) fn new(images: Images, local_password: &str) -> Self {
        Self { images, local: Digest::of(local_password.as_bytes()) }
    }

    /// Asks the leader, or any controller, until one answers.
    async fn ask<T, F>(&self, call: impl Fn(RegistryTableClient<Channel>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut last = Status::unavailable("no controller is known");
        for attempt in 0..TRIES {
            let Some(cluster) = self.images.cluster() else {
                return Err(Status::unavailable(
                    "this node is in no cluster, and the registry is the cluster's: `rctl cluster init` founds one",
                ));
            };
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            for client in cluster.tables() {
                match tokio::time::timeout(ANSWER, call(client)).await {
                    Ok(Ok(answer)) => return Ok(answer.into_inner()),
                    Ok(Err(status)) if status.code() == Code::Unavailable => last = status,
                    Ok(Err(status)) => return Err(status),
                    Err(_) => last = Status::unavailable("the leader did not answer in time"),
                }
            }
        }
        Err(last)
    }
}

impl Backend for ClusterTable {
    async fn get(&self, key: String) -> Result<Option<Entry>, BackendError> {
        let request = wire::ReadRecordsRequest { key, ..Default::default() };
        let answer = self.ask(async |mut client| client.read_records(request.clone()).await).await;
        Ok(answer.map_err(failed)?.records.into_iter().next().map(entry))
    }

    async fn list(&self, prefix: String, after: String, limit: usize) -> Result<Vec<Entry>, BackendError> {
        let mut found: Vec<Entry> = Vec::new();
        let mut after = after;
        loop {
            let wanted = (limit - found.len()).min(PAGE);
            let request = wire::ReadRecordsRequest {
                prefix: prefix.clone(),
                after,
                limit: u32::try_from(wanted).unwrap_or(u32::MAX),
                ..Default::default()
            };
            let answer = self.ask(async |mut client| client.read_records(request.clone()).await).await;
            let wire::ReadRecordsResponse { records, more } = answer.map_err(failed)?;
            let is_full = records.len() == wanted;
            found.extend(records.into_iter().map(entry));
            let last = found.last().and_then(|entry| entry.key.strip_prefix(&prefix));
            after = last.unwrap_or_default().to_owned();
            if found.len() >= limit || !(more || is_full) {
                return Ok(found);
            }
        }
    }

    async fn write(&self, changes: Vec<Change>) -> Result<(), BackendError> {
        let request = wire::WriteRecordsRequest { changes: changes.into_iter().map(change).collect() };
        let answer = self.ask(async |mut client| client.write_records(request.clone()).await).await;
        answer.map(drop).map_err(failed)
    }

    async fn authenticate(&self, user: &str, password: &str) -> Result<Option<Rights>, BackendError> {
        if user == LOCAL_USER {
            // Of hashes that are compared, time tells nothing of use.
            let is_right = Digest::of(password.as_bytes()) == self.local;
            return Ok(is_right.then(Rights::everything));
        }
        let request = wire::AuthenticateRequest { user: user.to_owned(), password: password.to_owned() };
        let answer = self.ask(async |mut client| client.authenticate(request.clone()).await).await;
        match answer {
            Ok(answer) => Ok(Some(Rights(answer.grants.into_iter().map(grant).collect()))),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failed(status)),
        }
    }

    async fn holders(&self, manifest: &Digest) -> Vec<Arc<dyn BlobSource>> {
        // The leader looks for the digest alone; a reference has to have a name.
        let named = format!("{REGISTRY_NAME}/any@{manifest}").parse::<Reference>();
        match named {
            Ok(reference) => self.images.locate(&reference).await.1,
            Err(_) => Vec::new(),
        }
    }

    fn held_changed(&self) {
        self.images.note_change();
    }
}

fn failed(status: Status) -> BackendError {
    let message = status.message().to_owned();
    match status.code() {
        Code::Aborted => BackendError::Conflict,
        Code::ResourceExhausted | Code::InvalidArgument => BackendError::Full(message),
        _ => BackendError::Unavailable(message),
    }
}

fn entry(record: wire::Record) -> Entry {
    Entry { key: record.key, version: record.version, value: record.value }
}

fn change(change: Change) -> wire::RecordChange {
    use wire::record_change::Change as Kind;
    let (kind, expected_version) = match change {
        Change::Put { key, value, expected } => {
            (Kind::Put(wire::Record { key, version: 0, value }), expected)
        }
        Change::Remove { key, expected } => (Kind::Remove(key), expected),
        Change::Expect { key, version } => (Kind::Expect(key), Some(version)),
    };
    wire::RecordChange { change: Some(kind), expected_version }
}

fn grant(given: wire::RegistryGrant) -> Grant {
    let wire::RegistryGrant { repositories, pull, push, delete } = given;
    let rights = [(pull, Right::Pull), (push, Right::Push), (delete, Right::Delete)];
    Grant {
        repositories,
        rights: rights.into_iter().filter(|(has, _)| *has).map(|(_, right)| right).collect(),
    }
}
