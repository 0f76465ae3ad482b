//! What a controller keeps on disk for Raft: the log, the hard state, and the latest snapshot.
//!
//! [`LogStore`] is all that Raft asks of a disk; [`DiskStore`] is the one that runs. Entries, hard state and
//! the record of the snapshot are keys of a sled tree; the snapshot's data is a file beside it
//! (`storage/snapshot.rs`), because a value above an eighth of a mebibyte leaves sled's log for a file that
//! sled never syncs, and because removing a file gives its space back at once.
//!
//! Durability. sled flushes with `sync_file_range`, which leaves the disk's cache and the file's metadata
//! alone. So [`Barrier`] holds a second handle on sled's file and calls `fdatasync` on it after each flush;
//! only then is a write acknowledged. Everything that one `Ready` wants goes into one sled batch, which is
//! applied whole or not at all after a crash, and shares one barrier (group commit).
//!
//! What a crash leaves behind the last barrier was never acknowledged; sled cuts it off. Where it cuts off
//! more (`storage/watermark.rs`), or something can't be read, that is [`StorageError::Corrupt`], which names
//! the way out. sled panics on some corruption:
//! [`DiskStore::open`] catches that.

mod layout;
#[cfg(test)]
pub(crate) mod memory;
mod snapshot;
#[cfg(test)]
mod tests;
mod watermark;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use raft::eraftpb::{Entry, HardState, SnapshotMetadata};

use layout::Layout;
pub(crate) use snapshot::{SavedSnapshot, SnapshotDir};
use watermark::Watermark;

/// What sled keeps of its pages in memory. The log is kept in memory by its reader anyway.
const CACHE_BYTES: u64 = 1 << 20;

/// How long a store may be in use by one that is just ending.
const LOCK_DEADLINE: Duration = Duration::from_secs(2);

/// Why the disk did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Another process has the store open.
    #[error("the Raft store in {} is in use: is another rorquald running with this data folder?", path.display())]
    InUse {
        /// The store's folder.
        path: PathBuf,
    },
    /// The store is another member's.
    #[error(
        "the Raft store in {} belongs to {found}, not to {expected}: start with the data folder of this node, \
         or delete that folder where the other is gone for good",
        path.display()
    )]
    OtherOwner {
        /// The store's folder.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who opened it.
        expected: String,
    },
    /// The store can't be read.
    #[error(
        "the Raft store in {} is corrupt ({problem}). If other controllers of the cluster run, remove this \
         node there (`rctl node rm --force`), delete the folder and join again; an only controller has to be \
         restored from a copy of the folder",
        path.display()
    )]
    Corrupt {
        /// The store's folder.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// A file operation.
    #[error("cannot {operation} {}{}", path.display(), remedy(source))]
    File {
        /// `sync`, `write`, …
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// sled's part.
    #[error("cannot {operation} the Raft store in {}", path.display())]
    Sled {
        /// `open`, `write`, …
        operation: &'static str,
        /// The store's folder.
        path: PathBuf,
        /// sled's reason.
        #[source]
        source: sled::Error,
    },
    /// Something that has no form on disk.
    #[error("a record of the Raft log can't be encoded")]
    Encode(#[source] protobuf::ProtobufError),
}

fn remedy(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::StorageFull => ": make room on the disk and start rorquald again",
        std::io::ErrorKind::ReadOnlyFilesystem => ": the file system is read-only; look at the kernel's log",
        _ => "",
    }
}

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Position {
    pub(crate) index: u64,
    pub(crate) term: u64,
}

/// Everything that changes on disk in one step, whole or not at all.
#[derive(Default)]
pub(crate) struct LogChange<'a> {
    /// Entries that go: compacted ones, and those that `entries` takes the place of.
    pub(crate) removed: Vec<&'a Entry>,
    /// Entries that come.
    pub(crate) entries: &'a [Entry],
    pub(crate) hard_state: Option<&'a HardState>,
    /// The place in front of the first entry, when that moves.
    pub(crate) base: Option<Position>,
    /// A snapshot that is on disk already and now becomes the one to start from.
    pub(crate) snapshot: Option<&'a SavedSnapshot>,
}

/// Whether a change has to survive a power cut before the call returns. One that need not is written
/// together with the next one that has to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    Now,
    WithNext,
}

/// What is on disk at the start.
#[derive(Default)]
pub(crate) struct Recovered {
    pub(crate) hard_state: HardState,
    pub(crate) base: Position,
    /// In order, without gaps, from `base.index + 1` on.
    pub(crate) entries: Vec<Entry>,
    /// The latest snapshot, and its data. None before the first one.
    pub(crate) snapshot: Option<(SavedSnapshot, Vec<u8>)>,
}

/// What Raft asks of a disk.
pub(crate) trait LogStore: Send + 'static {
    /// Writes the change as a whole. After an error nothing more may be written: what is on disk is unknown
    /// until it is read again.
    fn write(&mut self, change: &LogChange<'_>, durability: Durability) -> Result<(), StorageError>;

    /// Writes snapshots, on any thread.
    fn snapshots(&self) -> Box<dyn Snapshots>;

    /// The data of a snapshot that was written.
    fn read_snapshot(&self, saved: &SavedSnapshot) -> Result<Vec<u8>, StorageError>;
}

/// Where snapshots are written.
pub(crate) trait Snapshots: Send {
    /// Makes the snapshot durable. It becomes the one to start from with a [`LogChange`] that names it.
    fn save(&self, metadata: SnapshotMetadata, data: &[u8]) -> Result<SavedSnapshot, StorageError>;
}

/// Makes what sled has written durable.
struct Barrier {
    /// sled's own file, opened a second time.
    log: File,
    log_path: PathBuf,
    /// Where sled puts values that are too large for its log. Ours are not; if one ever is, it is synced.
    blobs: PathBuf,
}

impl Barrier {
    fn open(dir: &Path) -> Result<Self, StorageError> {
        let log_path = dir.join("db");
        let log = File::open(&log_path).map_err(at("open", &log_path))?;
        // sled syncs neither its configuration nor the folders that its files are made in.
        let conf = dir.join("conf");
        File::open(&conf).and_then(|file| file.sync_all()).map_err(at("sync", &conf))?;
        sync_dir(dir)?;
        if let Some(parent) = dir.parent() {
            sync_dir(parent)?;
        }
        Ok(Self { log, log_path, blobs: dir.join("blobs") })
    }

    fn pass(&self) -> Result<(), StorageError> {
        let blobs = fs::read_dir(&self.blobs).map_err(at("read", &self.blobs))?;
        let mut any = false;
        for blob in blobs {
            let path = blob.map_err(at("read", &self.blobs))?.path();
            File::open(&path).and_then(|file| file.sync_data()).map_err(at("sync", &path))?;
            any = true;
        }
        if any {
            sync_dir(&self.blobs)?;
        }
        self.log.sync_data().map_err(at("sync", &self.log_path))
    }
}

fn sync_dir(path: &Path) -> Result<(), StorageError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(at("sync", path))
}

fn at(operation: &'static str, path: &Path) -> impl Fn(std::io::Error) -> StorageError {
    move |source| StorageError::File { operation, path: path.to_owned(), source }
}

/// The store of a running controller.
pub(crate) struct DiskStore {
    layout: Layout,
    barrier: Barrier,
    watermark: Watermark,
    /// The number of the last write.
    written: u64,
    /// A write failed: what is on disk is unknown, and nothing more may be called acknowledged.
    failed: bool,
    snapshots: SnapshotDir,
    dir: PathBuf,
}

impl DiskStore {
    /// Opens or makes the store in `dir`, and reads what is in it.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Recovered), StorageError> {
        // sled's own threads hold its lock for a moment after it was closed, and so does a daemon that is
        // just ending.
        let deadline = Instant::now() + LOCK_DEADLINE;
        loop {
            match Self::open_once(dir) {
                Err(StorageError::InUse { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                opened => return opened,
            }
        }
    }

    fn open_once(dir: &Path) -> Result<(Self, Recovered), StorageError> {
        fs::create_dir_all(dir).map_err(at("create", dir))?;
        // The state holds the cluster's CA key and its join tokens.
        fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(at("protect", dir))?;
        let sled_dir = dir.join("log");

        // sled asserts its way through corrupt files. It holds nothing of ours at this point, and is
        // dropped if it panics.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let tree = sled::Config::new()
                .path(&sled_dir)
                .flush_every_ms(None)
                .cache_capacity(CACHE_BYTES)
                .mode(sled::Mode::HighThroughput)
                .open()
                .map_err(|error| opening(dir, error))?;
            let layout = Layout::new(tree, dir);
            let read = layout.read()?;
            Ok((layout, read))
        }));
        let (layout, read) = opened.unwrap_or_else(|panic| Err(corrupt(dir, panic_words(&*panic))))?;
        let watermark = Watermark::open(dir)?;
        let acknowledged = watermark.read();
        if read.written < acknowledged {
            let problem =
                format!("write {acknowledged} was acknowledged, the log ends after {}", read.written);
            return Err(corrupt(dir, problem));
        }
        let barrier = Barrier::open(&sled_dir)?;
        let snapshots = SnapshotDir::open(dir)?;
        let snapshot = match read.snapshot {
            Some(saved) => {
                let data = snapshots.read(&saved)?;
                Some((saved, data))
            }
            None => None,
        };
        snapshots.remove_others(snapshot.as_ref().map(|(saved, _)| saved))?;
        let recovered =
            Recovered { hard_state: read.hard_state, base: read.base, entries: read.entries, snapshot };
        check(dir, &recovered)?;
        let written = read.written;
        let mut store =
            Self { layout, barrier, watermark, written, failed: false, snapshots, dir: dir.to_owned() };
        // What sled cut off while it recovered stays cut off.
        store.sync()?;
        store.watermark.sync()?;
        sync_dir(dir)?;
        Ok((store, recovered))
    }

    /// Notes whose store this is when it is new, and refuses anybody else from then on.
    pub(crate) fn claim(&mut self, owner: &str) -> Result<(), StorageError> {
        match self.layout.owner()? {
            None => {
                self.written += 1;
                self.layout.set_owner(owner, self.written)?;
                self.sync()
            }
            Some(found) if found == owner => Ok(()),
            Some(found) => {
                Err(StorageError::OtherOwner { path: self.dir.clone(), found, expected: owner.to_owned() })
            }
        }
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        self.failed = true;
        self.layout.flush()?;
        self.barrier.pass()?;
        self.watermark.set(self.written)?;
        self.failed = false;
        Ok(())
    }
}

impl LogStore for DiskStore {
    fn write(&mut self, change: &LogChange<'_>, durability: Durability) -> Result<(), StorageError> {
        self.written += 1;
        if let Err(error) = self.layout.apply(change, self.written) {
            self.failed = true;
            return Err(error);
        }
        if durability == Durability::Now {
            self.sync()?;
        }
        if let Some(saved) = change.snapshot {
            if durability == Durability::WithNext {
                self.sync()?;
            }
            self.snapshots.remove_others(Some(saved))?;
        }
        Ok(())
    }

    fn snapshots(&self) -> Box<dyn Snapshots> {
        Box::new(self.snapshots.clone())
    }

    fn read_snapshot(&self, saved: &SavedSnapshot) -> Result<Vec<u8>, StorageError> {
        self.snapshots.read(saved)
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        if self.failed {
            return;
        }
        if let Err(error) = self.sync().and_then(|()| self.watermark.sync()) {
            tracing::error!(%error, dir = %self.dir.display(), "the Raft store was not synced at the end");
        }
    }
}

/// What must hold of anything that Raft starts from; the raw node would panic otherwise.
fn check(dir: &Path, recovered: &Recovered) -> Result<(), StorageError> {
    let Recovered { hard_state, base, entries, snapshot } = recovered;
    let fail = |problem: String| Err(corrupt(dir, problem));
    let mut last = *base;
    for entry in entries {
        if entry.index != last.index + 1 {
            return fail(format!("entry {} of the log is missing", last.index + 1));
        }
        if entry.term < last.term {
            return fail(format!("the term of entry {} is lower than that in front of it", entry.index));
        }
        last = Position { index: entry.index, term: entry.term };
    }
    let snapshot_index = snapshot.as_ref().map_or(0, |(saved, _)| saved.metadata.index);
    if base.index > snapshot_index {
        return fail(format!("entries up to {} are gone, the snapshot ends at {snapshot_index}", base.index));
    }
    if snapshot_index > last.index {
        return fail(format!("the snapshot ends at {snapshot_index}, the log at {}", last.index));
    }
    if hard_state.commit > last.index {
        return fail(format!("{} entries were committed, the log ends at {}", hard_state.commit, last.index));
    }
    if hard_state.term < last.term {
        return fail(format!("the term is {}, that of the last entry {}", hard_state.term, last.term));
    }
    Ok(())
}

fn corrupt(dir: &Path, problem: impl Into<String>) -> StorageError {
    StorageError::Corrupt { path: dir.to_owned(), problem: problem.into() }
}

fn opening(dir: &Path, error: sled::Error) -> StorageError {
    match error {
        sled::Error::Corruption { .. } => corrupt(dir, "sled's file does not match its checksums"),
        sled::Error::ReportableBug(problem) | sled::Error::Unsupported(problem) => corrupt(dir, problem),
        sled::Error::Io(source) if source.to_string().contains("could not acquire lock") => {
            StorageError::InUse { path: dir.to_owned() }
        }
        sled::Error::Io(source) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
            corrupt(dir, "sled's file ends too early")
        }
        sled::Error::Io(source) => StorageError::File { operation: "open", path: dir.to_owned(), source },
        source => StorageError::Sled { operation: "open", path: dir.to_owned(), source },
    }
}

fn panic_words(panic: &(dyn std::any::Any + Send)) -> String {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("sled can't read it");
    words.lines().next().unwrap_or_default().to_owned()
}

fn encode(message: &impl protobuf::Message) -> Result<Vec<u8>, StorageError> {
    message.write_to_bytes().map_err(StorageError::Encode)
}
