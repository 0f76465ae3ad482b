//! A store in memory for simulations: what was not synced is gone after a crash.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use raft::eraftpb::{Entry, HardState, SnapshotMetadata};

use super::{Durability, LogChange, LogStore, Position, Recovered, SavedSnapshot, Snapshots, StorageError};

#[derive(Clone, Default)]
struct Content {
    hard_state: HardState,
    base: Position,
    entries: BTreeMap<u64, Entry>,
    snapshot: Option<SavedSnapshot>,
}

#[derive(Default)]
struct Disk {
    written: Content,
    synced: Content,
    snapshots: Vec<(SavedSnapshot, Vec<u8>)>,
    syncs: u64,
}

/// A disk; clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct MemoryStore {
    disk: Arc<Mutex<Disk>>,
}

impl MemoryStore {
    /// What a start finds after the power was cut.
    pub(crate) fn crash_and_recover(&self) -> Recovered {
        let mut disk = self.disk.lock().unwrap();
        disk.written = disk.synced.clone();
        let content = disk.written.clone();
        let snapshot = content.snapshot.map(|saved| {
            let data = disk.snapshots.iter().find(|(known, _)| *known == saved).unwrap().1.clone();
            (saved, data)
        });
        let recovered = Recovered {
            hard_state: content.hard_state,
            base: content.base,
            entries: content.entries.into_values().collect(),
            snapshot,
        };
        super::check(std::path::Path::new("memory"), &recovered).unwrap();
        recovered
    }

    /// The last index and the hard state that would survive a power cut.
    pub(crate) fn synced(&self) -> (u64, HardState) {
        let disk = self.disk.lock().unwrap();
        let last = disk.synced.entries.last_key_value().map_or(disk.synced.base.index, |(index, _)| *index);
        (last, disk.synced.hard_state.clone())
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.disk.lock().unwrap().syncs
    }

    pub(crate) fn entries(&self) -> usize {
        self.disk.lock().unwrap().written.entries.len()
    }
}

impl LogStore for MemoryStore {
    fn write(&mut self, change: &LogChange<'_>, durability: Durability) -> Result<(), StorageError> {
        let mut disk = self.disk.lock().unwrap();
        let content = &mut disk.written;
        for entry in &change.removed {
            assert!(content.entries.remove(&entry.index).is_some(), "entry {} was not there", entry.index);
        }
        for entry in change.entries {
            content.entries.insert(entry.index, entry.clone());
        }
        if let Some(hard_state) = change.hard_state {
            content.hard_state = hard_state.clone();
        }
        if let Some(base) = change.base {
            content.base = base;
        }
        if let Some(saved) = change.snapshot {
            content.snapshot = Some(saved.clone());
        }
        if durability == Durability::Now {
            disk.synced = disk.written.clone();
            disk.syncs += 1;
        }
        Ok(())
    }

    fn snapshots(&self) -> Box<dyn Snapshots> {
        Box::new(self.clone())
    }

    fn read_snapshot(&self, saved: &SavedSnapshot) -> Result<Vec<u8>, StorageError> {
        let disk = self.disk.lock().unwrap();
        Ok(disk.snapshots.iter().find(|(known, _)| known == saved).unwrap().1.clone())
    }
}

impl Snapshots for MemoryStore {
    fn save(&self, metadata: SnapshotMetadata, data: &[u8]) -> Result<SavedSnapshot, StorageError> {
        let saved = SavedSnapshot::describing(metadata, data);
        self.disk.lock().unwrap().snapshots.push((saved.clone(), data.to_vec()));
        Ok(saved)
    }
}
