//! The one place where a `Ready` is handled.
//!
//! The order is the one that tikv's `raft` documents (crate documentation, "Processing the Ready State"):
//! messages of a leader go out at once and travel while the disk works; committed entries were made durable
//! by a majority, this member included, with earlier `Ready`s; entries and hard state are made durable
//! behind one barrier; only then go the messages that promise them (`persisted_messages`), and only then is
//! the raw node told.

use protobuf::Message as _;
use raft::eraftpb::{ConfChange, Entry, EntryType, HardState, Message, Snapshot};

use super::SnapshotBody;
use super::core::{Core, RaftError, Transport};
use super::machine::Machine;
use super::members::Members;
use crate::storage::{Durability, LogStore};

impl<M: Machine, S: LogStore, T: Transport> Core<M, S, T> {
    pub(super) fn handle_ready(&mut self) -> Result<(), RaftError> {
        let mut ready = self.node.ready();
        self.send(ready.take_messages());
        let hard_state = ready.hs().cloned();
        if !ready.snapshot().is_empty() {
            let snapshot = ready.snapshot().clone();
            self.install(&snapshot, hard_state.as_ref())?;
        }
        self.apply(ready.take_committed_entries())?;
        let durability = if ready.must_sync() { Durability::Now } else { Durability::WithNext };
        let entries = ready.take_entries();
        if !entries.is_empty() || hard_state.is_some() {
            self.node.mut_store().append(entries, hard_state.as_ref(), durability)?;
        }
        self.send(ready.take_persisted_messages());
        self.take_read_states(ready.take_read_states());

        let mut light = self.node.advance_append(ready);
        if let Some(commit) = light.commit_index() {
            self.node.mut_store().commit_to(commit);
        }
        self.send(light.take_messages());
        self.apply(light.take_committed_entries())?;
        self.node.advance_apply();
        Ok(())
    }

    pub(super) fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            let to = message.to;
            match self.heard.get(&to).or_else(|| self.members.get(to)) {
                Some(peer) => self.transport.send(peer, message),
                None => tracing::debug!(to, "no address for a Raft message"),
            }
        }
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), RaftError> {
        for entry in entries {
            match entry.get_entry_type() {
                // A new leader begins its term with an empty entry.
                EntryType::EntryNormal if entry.data.is_empty() => {}
                EntryType::EntryNormal => {
                    let answer = self.machine.apply(entry.index, &entry.data).map_err(|source| {
                        RaftError::Machine { what: format!("entry {}", entry.index), source }
                    })?;
                    if answer.proposer == self.proposer
                        && let Some(reply) = self.pending.remove(&answer.sequence)
                    {
                        // The proposer may have gone.
                        let _ = reply.send(Ok(answer.outcome));
                    }
                }
                EntryType::EntryConfChange => {
                    let mut change = ConfChange::default();
                    change.merge_from_bytes(&entry.data).map_err(super::codec::CodecError::Decode)?;
                    self.apply_change(&change, &entry.context)?;
                }
                // Nobody proposes one: members change one at a time.
                EntryType::EntryConfChangeV2 => {
                    let source = super::MachineError { problem: "joint configuration change".to_owned() };
                    return Err(RaftError::Machine { what: format!("entry {}", entry.index), source });
                }
            }
            self.applied = entry.index;
            self.snapshotting.count(entry.data.len());
        }
        self.answer_reads();
        Ok(())
    }

    /// Takes a leader's snapshot in the place of log and state.
    fn install(&mut self, snapshot: &Snapshot, hard_state: Option<&HardState>) -> Result<(), RaftError> {
        let metadata = snapshot.get_metadata().clone();
        let index = metadata.index;
        let body = SnapshotBody::from_bytes(&snapshot.data)?;
        let members = Members::from_snapshot(&body)?;
        let saved = self.node.store().snapshots().save(metadata, &snapshot.data)?;
        self.node.mut_store().install(saved, hard_state)?;
        self.machine
            .restore(&body.state)
            .map_err(|source| RaftError::Machine { what: "the leader's snapshot".to_owned(), source })?;
        self.applied = index;
        self.snapshotting.restarted();
        self.replace_members(members);
        tracing::info!(index, "took the leader's snapshot");
        Ok(())
    }
}
