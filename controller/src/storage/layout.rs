//! The keys of the sled tree, and what stands under them.
//!
//! | key | value |
//! |---|---|
//! | `owner` | the member whose store this is |
//! | `written` | the number of the last write |
//! | `hard` | Raft's hard state |
//! | `base` | index and term of the place in front of the first entry |
//! | `snapshot` | the record of the snapshot to start from |
//! | `e` index (u64) piece (u32), big endian | a piece of an entry |
//!
//! An entry is cut into pieces so small that a full leaf of sled's tree stays inside sled's log: a leaf
//! that outgrows an eighth of a mebibyte becomes a file of its own, which sled does not sync.

use std::path::{Path, PathBuf};

use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState};

use super::snapshot::SavedSnapshot;
use super::{LogChange, Position, StorageError, corrupt, encode};

/// sled splits a leaf above 16 values.
const PIECE_BYTES: usize = 4096;

const OWNER: &[u8] = b"owner";
const WRITTEN: &[u8] = b"written";
const HARD: &[u8] = b"hard";
const BASE: &[u8] = b"base";
const SNAPSHOT: &[u8] = b"snapshot";
const ENTRY: u8 = b'e';

pub(super) struct Layout {
    tree: sled::Db,
    dir: PathBuf,
}

/// The tree's content.
pub(super) struct Read {
    pub(super) hard_state: HardState,
    pub(super) base: Position,
    pub(super) entries: Vec<Entry>,
    pub(super) snapshot: Option<SavedSnapshot>,
    /// The number of the last write; 0 for a new store.
    pub(super) written: u64,
}

fn entry_key(index: u64, piece: u32) -> [u8; 13] {
    let mut key = [ENTRY; 13];
    key[1..9].copy_from_slice(&index.to_be_bytes());
    key[9..].copy_from_slice(&piece.to_be_bytes());
    key
}

/// Index and piece; none for a key that is not an entry's.
fn parse_key(key: &[u8]) -> Option<(u64, u32)> {
    let rest = key.strip_prefix(&[ENTRY])?;
    let (index, piece) = rest.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*index), u32::from_be_bytes(piece.try_into().ok()?)))
}

fn pieces(length: usize) -> u32 {
    u32::try_from(length.div_ceil(PIECE_BYTES).max(1)).unwrap_or(u32::MAX)
}

impl Layout {
    pub(super) fn new(tree: sled::Db, dir: &Path) -> Self {
        Self { tree, dir: dir.to_owned() }
    }

    pub(super) fn apply(&self, change: &LogChange<'_>, number: u64) -> Result<(), StorageError> {
        let mut batch = sled::Batch::default();
        batch.insert(WRITTEN, &number.to_be_bytes());
        for entry in &change.removed {
            for piece in 0..pieces(entry.compute_size() as usize) {
                batch.remove(&entry_key(entry.index, piece));
            }
        }
        for entry in change.entries {
            let bytes = encode(entry)?;
            for (piece, value) in (0..).zip(bytes.chunks(PIECE_BYTES)) {
                batch.insert(&entry_key(entry.index, piece), value);
            }
        }
        if let Some(hard_state) = change.hard_state {
            batch.insert(HARD, encode(hard_state)?);
        }
        if let Some(base) = change.base {
            let mut value = base.index.to_be_bytes().to_vec();
            value.extend(base.term.to_be_bytes());
            batch.insert(BASE, value);
        }
        if let Some(saved) = change.snapshot {
            batch.insert(SNAPSHOT, saved.encode()?);
        }
        self.tree.apply_batch(batch).map_err(|error| self.failed("write", error))
    }

    pub(super) fn owner(&self) -> Result<Option<String>, StorageError> {
        Ok(self.get(OWNER)?.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    pub(super) fn set_owner(&self, owner: &str, number: u64) -> Result<(), StorageError> {
        let mut batch = sled::Batch::default();
        batch.insert(WRITTEN, &number.to_be_bytes());
        batch.insert(OWNER, owner);
        self.tree.apply_batch(batch).map_err(|error| self.failed("write", error))
    }

    pub(super) fn flush(&self) -> Result<(), StorageError> {
        self.tree.flush().map(drop).map_err(|error| self.failed("flush", error))
    }

    pub(super) fn read(&self) -> Result<Read, StorageError> {
        let mut read = Read {
            hard_state: HardState::default(),
            base: Position::default(),
            entries: Vec::new(),
            snapshot: None,
            written: 0,
        };
        if let Some(value) = self.get(WRITTEN)? {
            let number = value.as_ref().try_into().map(u64::from_be_bytes);
            read.written = number.map_err(|_| corrupt(&self.dir, "the number of writes is unreadable"))?;
        }
        if let Some(value) = self.get(HARD)? {
            let problem = |error| corrupt(&self.dir, format!("hard state: {error}"));
            read.hard_state.merge_from_bytes(&value).map_err(problem)?;
        }
        if let Some(value) = self.get(BASE)? {
            read.base =
                parse_base(&value).ok_or_else(|| corrupt(&self.dir, "the log's beginning is unreadable"))?;
        }
        if let Some(value) = self.get(SNAPSHOT)? {
            let problem = |problem| corrupt(&self.dir, format!("record of the snapshot: {problem}"));
            read.snapshot = Some(SavedSnapshot::decode(&value).map_err(problem)?);
        }
        read.entries = self.read_entries()?;
        Ok(read)
    }

    fn read_entries(&self) -> Result<Vec<Entry>, StorageError> {
        let mut entries = Vec::new();
        let mut partial: Option<(u64, Vec<u8>, u32)> = None;
        for item in self.tree.scan_prefix([ENTRY]) {
            let (key, value) = item.map_err(|error| self.failed("read", error))?;
            let (index, piece) =
                parse_key(&key).ok_or_else(|| corrupt(&self.dir, "a key of the log is unreadable"))?;
            if piece == 0 {
                if let Some((index, bytes, _)) = partial.replace((index, value.to_vec(), 1)) {
                    entries.push(self.entry(index, &bytes)?);
                }
                continue;
            }
            match &mut partial {
                Some((at, bytes, next)) if *at == index && *next == piece => {
                    bytes.extend_from_slice(&value);
                    *next += 1;
                }
                _ => return Err(corrupt(&self.dir, format!("a piece of entry {index} is missing"))),
            }
        }
        if let Some((index, bytes, _)) = partial {
            entries.push(self.entry(index, &bytes)?);
        }
        Ok(entries)
    }

    fn entry(&self, index: u64, bytes: &[u8]) -> Result<Entry, StorageError> {
        let mut entry = Entry::default();
        let problem = |error| corrupt(&self.dir, format!("entry {index}: {error}"));
        entry.merge_from_bytes(bytes).map_err(problem)?;
        if entry.index != index {
            return Err(corrupt(&self.dir, format!("entry {index} calls itself {}", entry.index)));
        }
        Ok(entry)
    }

    fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, StorageError> {
        self.tree.get(key).map_err(|error| self.failed("read", error))
    }

    fn failed(&self, operation: &'static str, error: sled::Error) -> StorageError {
        match error {
            sled::Error::Corruption { .. } => corrupt(&self.dir, "sled's file does not match its checksums"),
            sled::Error::ReportableBug(problem) => corrupt(&self.dir, problem),
            sled::Error::Io(source) => StorageError::File { operation, path: self.dir.clone(), source },
            source => StorageError::Sled { operation, path: self.dir.clone(), source },
        }
    }
}

fn parse_base(value: &[u8]) -> Option<Position> {
    let (index, term) = value.split_first_chunk::<8>()?;
    Some(Position { index: u64::from_be_bytes(*index), term: u64::from_be_bytes(term.try_into().ok()?) })
}
