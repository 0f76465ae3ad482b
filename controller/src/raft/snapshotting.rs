//! When this member takes a snapshot of its own, and what it does with it.
//!
//! The pump freezes the state (cheap: the objects are shared), another thread encodes and writes it, and
//! the pump compacts the log when it hears that the file is durable.

use raft::Storage as _;
use raft::eraftpb::SnapshotMetadata;

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
}

impl<O> Snapshotting<O> {
    pub(super) fn new(spawn: Spawn<O>) -> Self {
        Self { spawn, running: false, wanted: false, entries: 0, bytes: 0 }
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
