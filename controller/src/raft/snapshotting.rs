//! When this member takes a snapshot of its own, and what it does with it.
//!
//! The pump freezes the state (cheap: the objects are shared), another thread encodes and writes it, and
//! the pump compacts the log when it hears that the file is durable.

use std::collections::BTreeMap;

use raft::eraftpb::SnapshotMetadata;
use raft::{ProgressState, SnapshotStatus, Storage as _};

use super::SnapshotBody;
use super::core::{Core, RaftError, Transport};
use super::handle::Event;
use super::machine::Machine;
use crate::storage::{LogStore, SavedSnapshot, StorageError};

/// Runs a job that ends in an event, where it does not stop the pump.
pub(super) type Spawn<O> = Box<dyn Fn(Box<dyn FnOnce() -> Event<O> + Send>) -> std::io::Result<()> + Send>;

pub(super) struct Snapshotting<O> {
    spawn: Spawn<O>,
    running: bool,
    /// A follower waits for the next one.
    wanted: bool,
    entries: u64,
    bytes: u64,
    /// On the leader: followers that a snapshot is on the way to, which one, and since which tick.
    sent: BTreeMap<u64, (u64, u64)>,
}

impl<O> Snapshotting<O> {
    pub(super) fn new(spawn: Spawn<O>) -> Self {
        Self { spawn, running: false, wanted: false, entries: 0, bytes: 0, sent: BTreeMap::new() }
    }

    /// An entry was applied.
    pub(super) fn count(&mut self, bytes: usize) {
        self.entries += 1;
        self.bytes += bytes as u64;
    }

    /// The log starts over from a leader's snapshot.
    pub(super) fn restarted(&mut self) {
        self.entries = 0;
        self.bytes = 0;
    }
}

impl<M: Machine, S: LogStore, T: Transport> Core<M, S, T> {
    pub(super) fn maybe_snapshot(&mut self) {
        self.snapshotting.wanted |= self.node.store().take_wanted();
        let counts = &self.snapshotting;
        let due = counts.wanted
            || counts.entries >= self.tuning.snapshot_entries
            || counts.bytes >= self.tuning.snapshot_log_bytes;
        if counts.running || !due || self.applied <= self.node.store().snapshot_index() {
            return;
        }
        let Ok(term) = self.node.store().term(self.applied) else { return };
        let mut metadata = SnapshotMetadata { index: self.applied, term, ..SnapshotMetadata::default() };
        metadata.set_conf_state(self.node.raft.prs().conf().to_conf_state());
        let mut body = SnapshotBody {
            members: self.members.records(),
            highest_raft_id: self.members.highest(),
            state: Vec::new(),
        };
        let frozen = self.machine.freeze();
        let snapshots = self.node.store().snapshots();
        let job = Box::new(move || {
            body.state = frozen();
            let data = prost::Message::encode_to_vec(&body);
            Event::SnapshotSaved(snapshots.save(metadata, &data))
        });
        match (self.snapshotting.spawn)(job) {
            Ok(()) => {
                self.snapshotting.running = true;
                self.snapshotting.wanted = false;
                self.snapshotting.entries = 0;
                self.snapshotting.bytes = 0;
            }
            Err(error) => tracing::warn!(%error, "cannot start a thread for a snapshot; later again"),
        }
    }

    /// On the leader, each tick: gives up on snapshots that nothing was heard of.
    pub(super) fn tend_sent_snapshots(&mut self) {
        let (now, patience) = (self.now, self.tuning.snapshot_patience_ticks);
        let waiting = self.node.raft.prs().iter().filter(|(_, one)| one.state == ProgressState::Snapshot);
        let waiting: BTreeMap<u64, u64> = waiting.map(|(id, one)| (*id, one.pending_snapshot)).collect();
        let sent = &mut self.snapshotting.sent;
        sent.retain(|id, (index, _)| waiting.get(id) == Some(index));
        for (id, index) in waiting {
            let (_, since) = *sent.entry(id).or_insert((index, now));
            if now - since >= patience {
                sent.remove(&id);
                self.node.report_snapshot(id, SnapshotStatus::Failure);
            }
        }
    }

    pub(super) fn snapshot_saved(
        &mut self,
        saved: Result<SavedSnapshot, StorageError>,
    ) -> Result<(), RaftError> {
        self.snapshotting.running = false;
        match saved {
            Ok(saved) => {
                tracing::debug!(index = saved.metadata.index, bytes = saved.length_bytes, "took a snapshot");
                self.node.mut_store().compact(saved, self.tuning.margin_entries)?;
                if self.is_leader() {
                    // Somebody may wait for it.
                    self.node.raft.bcast_append();
                }
            }
            // The log simply stays longer.
            Err(error) => tracing::warn!(%error, "a snapshot was not taken; later again"),
        }
        Ok(())
    }
}
