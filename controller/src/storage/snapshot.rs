//! Snapshots as files: `snapshots/<index>-<term>`, written under another name, synced, renamed.
//!
//! A file counts only when the log's tree has its record, with length and SHA-256: that is how a crash
//! between the two is told from a snapshot. Files without a record are removed.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::SnapshotMetadata;
use sha2::{Digest as _, Sha256};

use super::{Snapshots, StorageError, at, corrupt, encode, sync_dir};

/// A snapshot that is on disk.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SavedSnapshot {
    /// Index, term and configuration.
    pub(crate) metadata: SnapshotMetadata,
    pub(crate) length_bytes: u64,
    pub(crate) sha256: [u8; 32],
}

#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(bytes = "vec", tag = "1")]
    metadata: Vec<u8>,
    #[prost(uint64, tag = "2")]
    length_bytes: u64,
    #[prost(bytes = "vec", tag = "3")]
    sha256: Vec<u8>,
}

impl SavedSnapshot {
    pub(crate) fn describing(metadata: SnapshotMetadata, data: &[u8]) -> Self {
        Self { metadata, length_bytes: data.len() as u64, sha256: Sha256::digest(data).into() }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, StorageError> {
        let record = Record {
            metadata: encode(&self.metadata)?,
            length_bytes: self.length_bytes,
            sha256: self.sha256.to_vec(),
        };
        Ok(record.encode_to_vec())
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let record = Record::decode(bytes).map_err(|error| error.to_string())?;
        let mut metadata = SnapshotMetadata::default();
        metadata.merge_from_bytes(&record.metadata).map_err(|error| error.to_string())?;
        let sha256 = record.sha256.try_into().map_err(|_| "its checksum is not one".to_owned())?;
        Ok(Self { metadata, length_bytes: record.length_bytes, sha256 })
    }

    fn file_name(&self) -> String {
        format!("{:020}-{:020}", self.metadata.index, self.metadata.term)
    }
}

/// The folder of snapshots.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotDir {
    path: PathBuf,
    /// The store's folder, for errors.
    store: PathBuf,
}

impl SnapshotDir {
    pub(super) fn open(store: &Path) -> Result<Self, StorageError> {
        let path = store.join("snapshots");
        fs::create_dir_all(&path).map_err(at("create", &path))?;
        sync_dir(store)?;
        Ok(Self { path, store: store.to_owned() })
    }

    pub(super) fn read(&self, saved: &SavedSnapshot) -> Result<Vec<u8>, StorageError> {
        let path = self.path.join(saved.file_name());
        let data = match fs::read(&path) {
            Ok(data) => data,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(corrupt(&self.store, format!("the snapshot {} is missing", path.display())));
            }
            Err(error) => return Err(at("read", &path)(error)),
        };
        if SavedSnapshot::describing(saved.metadata.clone(), &data) != *saved {
            let problem = format!("the snapshot {} does not match its checksum", path.display());
            return Err(corrupt(&self.store, problem));
        }
        Ok(data)
    }

    /// Removes every file but the snapshot's.
    pub(super) fn remove_others(&self, kept: Option<&SavedSnapshot>) -> Result<(), StorageError> {
        let kept = kept.map(SavedSnapshot::file_name);
        for file in fs::read_dir(&self.path).map_err(at("read", &self.path))? {
            let file = file.map_err(at("read", &self.path))?;
            if kept.as_deref().is_none_or(|kept| file.file_name() != kept) {
                fs::remove_file(file.path()).map_err(at("remove", &file.path()))?;
            }
        }
        Ok(())
    }
}

impl Snapshots for SnapshotDir {
    fn save(&self, metadata: SnapshotMetadata, data: &[u8]) -> Result<SavedSnapshot, StorageError> {
        let saved = SavedSnapshot::describing(metadata, data);
        let path = self.path.join(saved.file_name());
        let unfinished = path.with_extension("unfinished");
        let write = || {
            let mut file = File::create(&unfinished)?;
            file.write_all(data)?;
            file.sync_all()
        };
        write().map_err(at("write", &unfinished))?;
        fs::rename(&unfinished, &path).map_err(at("rename", &unfinished))?;
        sync_dir(&self.path)?;
        Ok(saved)
    }
}
