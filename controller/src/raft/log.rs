//! The log as the raw node reads it: in memory, over a store that keeps it.
//!
//! ```text
//!  base          snapshot            last
//!   │ entries … … … │ … entries … … … │
//!   └── margin ─────┘
//! ```
//!
//! The base is the place in front of the first entry; it lies at or in front of the snapshot's end, so that
//! a follower either finds its next entry here or gets the snapshot.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::util::limit_size;
use raft::{GetEntriesContext, RaftState, Storage, StorageError as RaftStorageError};

use crate::storage::{
    Durability, LogChange, LogStore, Position, Recovered, SavedSnapshot, Snapshots, StorageError,
};

pub(super) struct RaftLog<S> {
    store: S,
    hard_state: HardState,
    base: Position,
    entries: VecDeque<Entry>,
    snapshot: Option<SavedSnapshot>,
    /// A follower needs a newer snapshot than there is.
    wanted: Cell<bool>,
}

impl<S: LogStore> RaftLog<S> {
    pub(super) fn new(store: S, recovered: &mut Recovered) -> Self {
        let snapshot = recovered.snapshot.as_ref().map(|(saved, _)| saved.clone());
        let mut hard_state = std::mem::take(&mut recovered.hard_state);
        // A commit that was not on disk yet is at least as far as what the snapshot holds.
        hard_state.commit = hard_state.commit.max(snapshot.as_ref().map_or(0, |saved| saved.metadata.index));
        let entries = std::mem::take(&mut recovered.entries).into();
        Self { store, hard_state, base: recovered.base, entries, snapshot, wanted: Cell::new(false) }
    }

    /// Where the latest snapshot ends; 0 before the first.
    pub(super) fn snapshot_index(&self) -> u64 {
        self.snapshot.as_ref().map_or(0, |saved| saved.metadata.index)
    }

    /// A follower has asked for a newer snapshot since the last call.
    pub(super) fn take_wanted(&self) -> bool {
        self.wanted.replace(false)
    }

    pub(super) fn snapshots(&self) -> Box<dyn Snapshots> {
        self.store.snapshots()
    }

    fn last(&self) -> Position {
        self.entries.back().map_or(self.base, |entry| Position { index: entry.index, term: entry.term })
    }

    fn place(&self, index: u64) -> usize {
        usize::try_from(index.saturating_sub(self.base.index + 1)).unwrap_or(usize::MAX)
    }

    /// The commit index, to be written with the next change that has to be on disk.
    pub(super) fn commit_to(&mut self, index: u64) {
        self.hard_state.commit = index;
    }

    /// Appends entries in the place of any that stood there, and sets the hard state.
    pub(super) fn append(
        &mut self,
        entries: Vec<Entry>,
        hard_state: Option<&HardState>,
        durability: Durability,
    ) -> Result<(), StorageError> {
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
        }
        let kept = entries.first().map_or(self.entries.len(), |first| self.place(first.index));
        let kept = kept.min(self.entries.len());
        let change = LogChange {
            removed: self.entries.range(kept..).collect(),
            entries: &entries,
            hard_state: Some(&self.hard_state),
            ..LogChange::default()
        };
        self.store.write(&change, durability)?;
        self.entries.truncate(kept);
        self.entries.extend(entries);
        Ok(())
    }

    /// Starts over from a snapshot that a leader sent.
    pub(super) fn install(
        &mut self,
        saved: SavedSnapshot,
        hard_state: Option<&HardState>,
    ) -> Result<(), StorageError> {
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
        }
        let base = Position { index: saved.metadata.index, term: saved.metadata.term };
        self.hard_state.commit = self.hard_state.commit.max(base.index);
        let change = LogChange {
            removed: self.entries.iter().collect(),
            hard_state: Some(&self.hard_state),
            base: Some(base),
            snapshot: Some(&saved),
            ..LogChange::default()
        };
        self.store.write(&change, Durability::Now)?;
        self.entries.clear();
        self.base = base;
        self.snapshot = Some(saved);
        Ok(())
    }

    /// Starts from this member's own snapshot from now on, and drops what is more than `margin` entries
    /// behind its end.
    pub(super) fn compact(&mut self, saved: SavedSnapshot, margin: u64) -> Result<(), StorageError> {
        let index = saved.metadata.index;
        if index <= self.snapshot_index() || index > self.last().index {
            // One from a leader came first.
            return Ok(());
        }
        let base_index = index.saturating_sub(margin).max(self.base.index);
        let gone = usize::try_from(base_index - self.base.index).unwrap_or(usize::MAX);
        let base = match gone.checked_sub(1).and_then(|last| self.entries.get(last)) {
            Some(entry) => Position { index: entry.index, term: entry.term },
            None => self.base,
        };
        let change = LogChange {
            removed: self.entries.range(..gone).collect(),
            hard_state: Some(&self.hard_state),
            base: Some(base),
            snapshot: Some(&saved),
            ..LogChange::default()
        };
        self.store.write(&change, Durability::Now)?;
        self.entries.drain(..gone);
        if self.entries.capacity() > 4 * self.entries.len() {
            self.entries.shrink_to_fit();
        }
        self.base = base;
        self.snapshot = Some(saved);
        Ok(())
    }

    /// Writes what was left to the next change, at the end.
    pub(super) fn finish(&mut self) -> Result<(), StorageError> {
        self.append(Vec::new(), None, Durability::Now)
    }
}

impl<S: LogStore> Storage for RaftLog<S> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf_state = self
            .snapshot
            .as_ref()
            .map_or_else(ConfState::default, |saved| saved.metadata.get_conf_state().clone());
        Ok(RaftState { hard_state: self.hard_state.clone(), conf_state })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.index {
            return Err(RaftStorageError::Compacted.into());
        }
        if high > self.last().index + 1 {
            return Err(RaftStorageError::Unavailable.into());
        }
        let mut entries: Vec<Entry> =
            self.entries.range(self.place(low)..self.place(high)).cloned().collect();
        limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.index {
            return Ok(self.base.term);
        }
        if index < self.base.index {
            return Err(RaftStorageError::Compacted.into());
        }
        match self.entries.get(self.place(index)) {
            Some(entry) => Ok(entry.term),
            None => Err(RaftStorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().index)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let unavailable = || raft::Error::from(RaftStorageError::SnapshotTemporarilyUnavailable);
        let saved = self.snapshot.as_ref().ok_or_else(unavailable)?;
        // A member takes no snapshot of a group that it does not belong to: one that has just been added
        // needs one that is made after that.
        let conf_state = saved.metadata.get_conf_state();
        let knows = conf_state.voters.contains(&to) || conf_state.learners.contains(&to);
        if saved.metadata.index < request_index || !knows {
            self.wanted.set(true);
            return Err(unavailable());
        }
        let data = self.store.read_snapshot(saved).map_err(|error| {
            tracing::error!(%error, "the snapshot that a follower needs can't be read");
            unavailable()
        })?;
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(saved.metadata.clone());
        snapshot.data = data.into();
        Ok(snapshot)
    }
}
