//! What this node knows of its own membership, on disk: `node.json` beside the certificates.
//!
//! The record is written last when a node joins and removed first when it leaves: a node without a record
//! is in no cluster, whatever else lies about, and takes the leftovers away at start.

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use anyhow::Context;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// This node's place in its cluster.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) cluster_id: String,
    pub(crate) node_id: String,
    /// Set where the node is a controller.
    pub(crate) raft_id: Option<u64>,
    pub(crate) address: SocketAddrV4,
    pub(crate) container_pool: Ipv4Net,
    pub(crate) vip_pool: Ipv4Net,
    /// `host:port` of the controllers that were known when the node joined.
    pub(crate) controllers: Vec<KnownController>,
}

/// A controller as the joiner was told.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct KnownController {
    pub(crate) node_id: String,
    pub(crate) address: String,
}

/// The files of membership under the data folder.
#[derive(Debug, Clone)]
pub(crate) struct MembershipFiles {
    root: PathBuf,
}

impl MembershipFiles {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self { root: data_dir.to_path_buf() }
    }

    fn record(&self) -> PathBuf {
        self.root.join("node.json")
    }

    /// Certificates and the node's key.
    pub(crate) fn certs(&self) -> PathBuf {
        self.root.join("certs")
    }

    /// The controller's log and snapshots.
    pub(crate) fn raft(&self) -> PathBuf {
        self.root.join("raft")
    }

    /// The record, if the node is in a cluster.
    pub(crate) fn load(&self) -> anyhow::Result<Option<Record>> {
        let path = self.record();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let record = serde_json::from_str(&text).with_context(|| {
            format!(
                "{} is damaged: restore it from a backup, or remove it to take this node out of its cluster \
                 and join again",
                path.display()
            )
        })?;
        Ok(Some(record))
    }

    /// Makes the membership last: from here on the node is in the cluster.
    pub(crate) fn save(&self, record: &Record) -> anyhow::Result<()> {
        let path = self.record();
        let context = || format!("cannot write {}", path.display());
        let text = serde_json::to_vec_pretty(record).with_context(context)?;
        let new = path.with_extension("json.new");
        let mut file = File::create(&new).with_context(context)?;
        file.write_all(&text).and_then(|()| file.sync_all()).with_context(context)?;
        fs::rename(&new, &path).with_context(context)?;
        File::open(&self.root).and_then(|folder| folder.sync_all()).with_context(context)
    }

    /// Takes everything of the membership away, the record first.
    pub(crate) fn forget(&self) -> anyhow::Result<()> {
        let path = self.record();
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot remove {}", path.display())),
        }
        for folder in [self.certs(), self.raft()] {
            match fs::remove_dir_all(&folder) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            cluster_id: "c".into(),
            node_id: "n".into(),
            raft_id: Some(1),
            address: "10.0.0.1:4780".parse().unwrap(),
            container_pool: "10.213.0.0/16".parse().unwrap(),
            vip_pool: "10.214.0.0/16".parse().unwrap(),
            controllers: Vec::new(),
        }
    }

    #[test]
    fn a_record_is_kept_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let files = MembershipFiles::new(folder.path());
        assert_eq!(files.load().unwrap(), None);
        files.save(&record()).unwrap();
        assert_eq!(files.load().unwrap(), Some(record()));
        fs::create_dir_all(files.raft()).unwrap();
        files.forget().unwrap();
        assert_eq!(files.load().unwrap(), None);
        assert!(!files.raft().exists());
        files.forget().unwrap();
    }

    #[test]
    fn a_damaged_record_names_the_file_and_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let files = MembershipFiles::new(folder.path());
        fs::write(folder.path().join("node.json"), "{\"cluster_id\":").unwrap();
        let error = files.load().unwrap_err().to_string();
        assert!(error.contains("node.json is damaged") && error.contains("join again"), "{error}");
    }
}
