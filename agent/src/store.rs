//! What the node must not forget: its assignment set, its tasks' statuses, its plain containers.
//!
//! sled 0.34 flushes with `sync_file_range`, which is no durability barrier (spacejam/sled#1452). So its file
//! is opened a second time, and [`NodeStore::barrier`] (flush, then `fdatasync` of that handle) stands before
//! everything that is acknowledged. Calls block for as long as the disk does: a daemon calls them from
//! [`tokio::task::spawn_blocking`], where they have to be durable.
//!
//! sled cuts its log off at the first message that does not match its checksum. After a power cut that is what
//! was never acknowledged; damage in the middle would make the node forget containers that run. So every barrier
//! has a number, kept in sled and, once it has passed, in the file `acknowledged`: a store whose log ends before
//! that number is [`StoreError::Damaged`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;
use rorqual_proto::wire;

use crate::options::ClusterMembership;

/// Memory that sled may use for its pages: what lies in here is small.
const CACHE_BYTES: u64 = 4 << 20;

/// Why the store can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The folder or sled's file could not be opened.
    #[error("can't open the node's store {}", path.display())]
    Open {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: sled::Error,
    },
    /// The database is damaged.
    #[error(
        "the node's store {} is damaged ({reason}): stop rorquald and move the folder away; the next start \
         ends this node's containers, in a cluster it gets its tasks again, plain ones have to be created again",
        path.display()
    )]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A write failed.
    #[error("can't write to the node's store {}: is the disk full?", path.display())]
    Write {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: sled::Error,
    },
    /// The durability barrier failed.
    #[error("can't sync the node's store {}", path.display())]
    Sync {
        /// sled's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A task's status as it was last seen here; it outlives the daemon.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TaskRecord {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<wire::TaskStatus>,
}

/// A plain container of this node.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContainerRecord {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) spec: Option<wire::ContainerSpec>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) ports: Vec<wire::PortSpec>,
    #[prost(message, optional, tag = "5")]
    pub(crate) restart: Option<wire::RestartPolicy>,
    #[prost(bool, tag = "6")]
    pub(crate) auto_remove: bool,
    #[prost(int64, tag = "7")]
    pub(crate) created_at_ms: i64,
    /// Absent until it was started for the first time.
    #[prost(message, optional, tag = "8")]
    pub(crate) status: Option<wire::TaskStatus>,
    #[prost(int64, tag = "9")]
    pub(crate) started_at_ms: i64,
    #[prost(int64, tag = "10")]
    pub(crate) finished_at_ms: i64,
    /// It was started and not stopped by its user.
    #[prost(bool, tag = "11")]
    pub(crate) wanted: bool,
    #[prost(enumeration = "wire::NetworkMode", tag = "12")]
    pub(crate) network_mode: i32,
    /// Its networks, in the order of its interfaces; none: the one of this node's plain containers.
    #[prost(message, repeated, tag = "60")]
    pub(crate) joins: Vec<JoinRecord>,
}

/// A network that a plain container is in.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct JoinRecord {
    /// As its user named it; `local` is this node's own.
    #[prost(message, optional, tag = "1")]
    pub(crate) join: Option<wire::NetworkJoin>,
    /// What the leader gave, and nothing in this node's own network.
    #[prost(string, tag = "2")]
    pub(crate) network_id: String,
    #[prost(string, tag = "3")]
    pub(crate) address: String,
    /// The one beside it, where the network has IPv6 ranges of its own.
    #[prost(string, tag = "4")]
    pub(crate) ipv6_address: String,
}

/// The cluster that the node is a member of, as far as its network has to know.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct MembershipRecord {
    #[prost(string, tag = "1")]
    pub(crate) cluster_id: String,
    #[prost(string, tag = "2")]
    pub(crate) node_id: String,
    /// This node's address on the network between the nodes.
    #[prost(string, tag = "3")]
    pub(crate) underlay: String,
    #[prost(string, tag = "4")]
    pub(crate) container_pool: String,
    #[prost(string, tag = "5")]
    pub(crate) vip_pool: String,
    /// The port on which it talks to the other nodes.
    #[prost(uint32, tag = "6")]
    pub(crate) port: u32,
}

impl MembershipRecord {
    pub(crate) fn of(membership: &ClusterMembership) -> Self {
        Self {
            cluster_id: membership.cluster_id.to_string(),
            node_id: membership.node_id.to_string(),
            underlay: membership.address.ip().to_string(),
            container_pool: membership.container_pool.to_string(),
            vip_pool: membership.vip_pool.to_string(),
            port: membership.address.port().into(),
        }
    }

    /// The same member of the same cluster, perhaps at another address.
    pub(crate) fn is_same_node(&self, other: &Self) -> bool {
        self.cluster_id == other.cluster_id && self.node_id == other.node_id
    }
}

/// Key of the [`MembershipRecord`].
const MEMBERSHIP: &str = "membership";

/// One change of the kept assignment set: a key, and its value or its removal.
pub(crate) type SetWrite = (String, Option<Vec<u8>>);

/// The node's store. Clones share it.
#[derive(Clone)]
pub(crate) struct NodeStore {
    db: sled::Db,
    set: sled::Tree,
    tasks: sled::Tree,
    containers: sled::Tree,
    barrier: Arc<Mutex<Barrier>>,
    path: PathBuf,
}

/// Key of the number of the last barrier.
const BARRIERS: &str = "barriers";

/// What a barrier needs beside sled.
struct Barrier {
    /// sled's file, for the `fdatasync`.
    file: File,
    /// The number of the last barrier that has passed: the number, and its complement as a check. It is written
    /// without a sync of its own: after a power cut it may be old, and is never ahead.
    acknowledged: File,
    passed: u64,
}

impl Barrier {
    /// 0 for a new store, and where the file itself is damaged: it is a second pair of eyes, no more.
    fn read(acknowledged: &File) -> u64 {
        let mut bytes = [0; 16];
        if acknowledged.read_exact_at(&mut bytes, 0).is_err() {
            return 0;
        }
        let (number, check) = bytes.split_at(8);
        let value = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).unwrap_or_default();
        if value(number) == !value(check) { value(number) } else { 0 }
    }

    fn acknowledge(&mut self, number: u64) -> io::Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        bytes[8..].copy_from_slice(&(!number).to_be_bytes());
        self.acknowledged.write_all_at(&bytes, 0)?;
        self.passed = number;
        Ok(())
    }
}

impl NodeStore {
    /// Opens `<data>/node`, or makes it. A damaged store is an error, never a panic.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::LowSpace)
            .flush_every_ms(None);
        let open = || {
            let db = config.open()?;
            let trees = (db.open_tree("set")?, db.open_tree("tasks")?, db.open_tree("containers")?);
            Ok((db, trees))
        };
        let path = path.to_owned();
        // sled panics on some kinds of damage; nothing of ours is left half-changed by that.
        let opened = catch_unwind(AssertUnwindSafe(open)).map_err(|panic| StoreError::Damaged {
            path: path.clone(),
            reason: panic_text(panic.as_ref()),
        })?;
        let (db, (set, tasks, containers)) = opened.map_err(|source| match source {
            sled::Error::Corruption { .. } | sled::Error::Unsupported(_) => {
                StoreError::Damaged { path: path.clone(), reason: source.to_string() }
            }
            source => StoreError::Open { path: path.clone(), source },
        })?;
        let barrier = Mutex::new(open_barrier(&db, &path)?);
        Ok(Self { db, set, tasks, containers, barrier: Arc::new(barrier), path })
    }

    /// Returns when everything written so far survives a power cut.
    pub(crate) fn barrier(&self) -> Result<(), StoreError> {
        let mut barrier = self.barrier.lock().unwrap_or_else(PoisonError::into_inner);
        let number = barrier.passed + 1;
        let noted = self.db.insert(BARRIERS, &number.to_be_bytes()).and_then(|_| self.db.flush());
        noted.map_err(|source| self.write_error(source))?;
        let failed = |source| StoreError::Sync { path: self.path.clone(), source };
        barrier.file.sync_data().map_err(failed)?;
        barrier.acknowledge(number).map_err(failed)
    }

    /// Applies one change of the assignment set, whole or not at all, durably.
    pub(crate) fn write_set(&self, writes: Vec<SetWrite>) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, value) in writes {
            match value {
                Some(value) => batch.insert(key.as_bytes(), value),
                None => batch.remove(key.as_bytes()),
            }
        }
        self.set.apply_batch(batch).map_err(|source| self.write_error(source))?;
        self.barrier()
    }

    /// Everything of the assignment set.
    pub(crate) fn read_set(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let mut entries = Vec::new();
        for entry in self.set.iter() {
            let (key, value) = entry.map_err(|source| self.read_error(&source))?;
            entries.push((String::from_utf8_lossy(&key).into_owned(), value.to_vec()));
        }
        Ok(entries)
    }

    /// Forgets the set and every task: the node has left its cluster.
    pub(crate) fn forget_cluster(&self) -> Result<(), StoreError> {
        self.set.clear().map_err(|source| self.write_error(source))?;
        self.tasks.clear().map_err(|source| self.write_error(source))?;
        self.db.remove(MEMBERSHIP).map_err(|source| self.write_error(source))?;
        self.barrier()
    }

    /// The membership that was remembered last.
    pub(crate) fn membership(&self) -> Result<Option<MembershipRecord>, StoreError> {
        match self.db.get(MEMBERSHIP).map_err(|source| self.read_error(&source))? {
            Some(bytes) => self.decode("record", MEMBERSHIP, &bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Remembers a membership, durably.
    pub(crate) fn put_membership(&self, record: &MembershipRecord) -> Result<(), StoreError> {
        self.put(&self.db, MEMBERSHIP, record)?;
        self.barrier()
    }

    /// Keeps a task's status; durable after the next [`Self::barrier`].
    pub(crate) fn put_task(&self, id: &str, record: &TaskRecord) -> Result<(), StoreError> {
        self.put(&self.tasks, id, record)
    }

    /// Forgets a task.
    pub(crate) fn remove_task(&self, id: &str) -> Result<(), StoreError> {
        self.tasks.remove(id).map(|_| ()).map_err(|source| self.write_error(source))
    }

    /// A task's last status, if it was ever seen here.
    pub(crate) fn task(&self, id: &str) -> Result<Option<TaskRecord>, StoreError> {
        match self.tasks.get(id).map_err(|source| self.read_error(&source))? {
            Some(bytes) => self.decode("task", id, &bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Ids of all tasks that have a status here.
    pub(crate) fn task_ids(&self) -> Result<Vec<String>, StoreError> {
        let key = |entry: sled::Result<sled::IVec>| {
            let key = entry.map_err(|source| self.read_error(&source))?;
            Ok(String::from_utf8_lossy(&key).into_owned())
        };
        self.tasks.iter().keys().map(key).collect()
    }

    /// Keeps a plain container; durable after the next [`Self::barrier`].
    pub(crate) fn put_container(&self, record: &ContainerRecord) -> Result<(), StoreError> {
        self.put(&self.containers, &record.id, record)
    }

    /// Forgets a plain container.
    pub(crate) fn remove_container(&self, id: &str) -> Result<(), StoreError> {
        self.containers.remove(id).map(|_| ()).map_err(|source| self.write_error(source))
    }

    /// All plain containers.
    pub(crate) fn containers(&self) -> Result<Vec<ContainerRecord>, StoreError> {
        let mut records = Vec::new();
        for entry in self.containers.iter() {
            let (key, value) = entry.map_err(|source| self.read_error(&source))?;
            records.push(self.decode("container", &String::from_utf8_lossy(&key), &value)?);
        }
        Ok(records)
    }

    fn put(&self, tree: &sled::Tree, key: &str, record: &impl Message) -> Result<(), StoreError> {
        tree.insert(key, record.encode_to_vec()).map(|_| ()).map_err(|source| self.write_error(source))
    }

    fn decode<M: Message + Default>(&self, what: &str, key: &str, bytes: &[u8]) -> Result<M, StoreError> {
        M::decode(bytes).map_err(|error| StoreError::Damaged {
            path: self.path.clone(),
            reason: format!("{what} {key}: {error}"),
        })
    }

    fn write_error(&self, source: sled::Error) -> StoreError {
        StoreError::Write { path: self.path.clone(), source }
    }

    fn read_error(&self, source: &sled::Error) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), reason: source.to_string() }
    }
}

fn open_barrier(db: &sled::Db, path: &Path) -> Result<Barrier, StoreError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Sync { path, source }
    };
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    let (log, mark) = (path.join("db"), path.join("acknowledged"));
    let file = File::open(&log).map_err(failed(&log))?;
    let options = File::options().read(true).write(true).create(true).truncate(false).open(&mark);
    let acknowledged = options.map_err(failed(&mark))?;
    let passed = match db.get(BARRIERS).map_err(|source| damaged(source.to_string()))? {
        Some(bytes) => bytes.as_ref().try_into().map(u64::from_be_bytes).unwrap_or_default(),
        None => 0,
    };
    let known = Barrier::read(&acknowledged);
    if passed < known {
        return Err(damaged(format!("write {known} was acknowledged, its log ends after {passed}")));
    }
    Ok(Barrier { file, acknowledged, passed })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it can't be read").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_there_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node");
        let record = ContainerRecord { id: "c1".into(), name: "calm_whale".into(), ..Default::default() };
        {
            let store = NodeStore::open(&path).unwrap();
            store
                .write_set(vec![("number".into(), Some(vec![7])), ("task/a".into(), Some(vec![1]))])
                .unwrap();
            store.write_set(vec![("number".into(), Some(vec![8])), ("task/a".into(), None)]).unwrap();
            store.put_container(&record).unwrap();
            store.put_task("t", &TaskRecord::default()).unwrap();
            store.barrier().unwrap();
        }
        let store = NodeStore::open(&path).unwrap();
        assert_eq!(store.read_set().unwrap(), [("number".to_owned(), vec![8])]);
        assert_eq!(store.containers().unwrap(), [record]);
        assert_eq!(store.task_ids().unwrap(), ["t"]);
        store.forget_cluster().unwrap();
        assert!(store.task("t").unwrap().is_none());
        assert_eq!(store.containers().unwrap().len(), 1);
    }

    #[test]
    fn damage_is_a_clear_error_and_never_a_panic_or_a_loss() {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole");
        {
            let store = NodeStore::open(&whole).unwrap();
            for round in 0..100_u8 {
                store.write_set(vec![(format!("task/{round}"), Some(vec![round; 300]))]).unwrap();
            }
        }
        let content = std::fs::read(whole.join("db")).unwrap();
        let mut refused = 0;
        for round in 0..24_usize {
            let path = folder.path().join(round.to_string());
            std::fs::create_dir(&path).unwrap();
            for name in ["conf", "acknowledged"] {
                std::fs::copy(whole.join(name), path.join(name)).unwrap();
            }
            let mut damaged = content.clone();
            let at = round * 0x9e37_79b9 % content.len();
            if round % 2 == 0 {
                damaged.truncate(at);
            } else {
                let end = content.len().min(at + 500);
                damaged[at..end].fill(0x5a);
            }
            std::fs::write(path.join("db"), damaged).unwrap();
            match NodeStore::open(&path).and_then(|store| store.read_set()) {
                Ok(entries) => assert_eq!(entries.len(), 100, "damage at {at} of {}", content.len()),
                Err(error) => {
                    refused += 1;
                    let text = crate::error::one_line(&error);
                    assert!(text.contains(&path.display().to_string()), "{text}");
                }
            }
        }
        assert!(refused > 12, "{refused} of 24");
    }
}
