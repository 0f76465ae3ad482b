//! Changes of membership, one at a time.
//!
//! ```text
//! Wish::Add ─▶ learner ──caught up──▶ voter ──Wish::Remove──▶ gone; the id is never used again
//! ```
//!
//! A new member is a learner first: a group of one whose second voter never comes up could not write any
//! more. The leader gives the vote by itself, whichever leader that is by then. It also records an address
//! that a member was heard from and that is not the recorded one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::PoisonError;

use prost::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType};

use super::codec::ChangeContext;
use super::core::{Core, RaftError, Transport};
use super::handle::{Refusal, Reply, Wish};
use super::machine::Machine;
use super::members::Members;
use super::{MemberRecord, RaftPeer};
use crate::storage::LogStore;

/// Wishes that may wait.
const WAITING: usize = 64;

/// A learner that misses no more than this many committed entries has caught up.
const CAUGHT_UP_ENTRIES: u64 = 64;

#[derive(Default)]
pub(super) struct Changes {
    waiting: VecDeque<(Wish, Reply<()>)>,
    in_flight: BTreeMap<u64, Reply<()>>,
    sequence: u64,
}

impl Changes {
    /// Leadership is gone.
    pub(super) fn lose(&mut self) {
        let waiting = self.waiting.drain(..).map(|(_, reply)| reply);
        for reply in waiting.chain(std::mem::take(&mut self.in_flight).into_values()) {
            let _ = reply.send(Err(Refusal::Lost));
        }
    }
}

impl<M: Machine, S: LogStore, T: Transport> Core<M, S, T> {
    pub(super) fn wish(&mut self, wish: Wish, reply: Reply<()>) {
        let refusal = if !self.is_leader() {
            Refusal::NotLeader { leader: self.leader() }
        } else if self.changes.waiting.len() >= WAITING {
            Refusal::Busy
        } else {
            self.changes.waiting.push_back((wish, reply));
            return;
        };
        let _ = reply.send(Err(refusal));
    }

    /// Proposes the next wish when no change is under way.
    pub(super) fn go_on_with_changes(&mut self) {
        while !self.changes.waiting.is_empty()
            && self.leads_with_full_state()
            && !self.node.raft.has_pending_conf()
        {
            let Some((wish, reply)) = self.changes.waiting.pop_front() else { return };
            let answer = match &wish {
                Wish::Add(peer) => self.may_add(peer),
                Wish::Remove(raft_id) => self.may_remove(*raft_id),
            };
            match answer {
                Ok(true) => {
                    let (kind, raft_id, member) = match wish {
                        Wish::Add(peer) => (ConfChangeType::AddLearnerNode, peer.raft_id, Some(peer)),
                        Wish::Remove(raft_id) => (ConfChangeType::RemoveNode, raft_id, None),
                    };
                    self.propose_change(kind, raft_id, member.as_ref(), Some(reply));
                }
                // It is so already.
                Ok(false) => drop(reply.send(Ok(()))),
                Err(refusal) => drop(reply.send(Err(refusal))),
            }
        }
    }

    fn may_add(&self, peer: &RaftPeer) -> Result<bool, Refusal> {
        if self.members.get(peer.raft_id).is_some_and(|known| known.node_id == peer.node_id) {
            return Ok(false);
        }
        let harmful = |problem: String| Err(Refusal::Harmful { problem });
        if peer.raft_id <= self.members.highest() {
            return harmful(format!(
                "Raft id {} was used before: give the controller an id above {}",
                peer.raft_id,
                self.members.highest()
            ));
        }
        if let Some(known) = self.members.iter().find(|known| known.node_id == peer.node_id) {
            return harmful(format!(
                "node {} is a controller already, with Raft id {}: remove that first",
                peer.node_id, known.raft_id
            ));
        }
        Ok(true)
    }

    fn may_remove(&mut self, raft_id: u64) -> Result<bool, Refusal> {
        if !self.members.contains(raft_id) {
            return Ok(false);
        }
        let harmful = |problem: &str| Err(Refusal::Harmful { problem: problem.to_owned() });
        let voters = self.node.raft.prs().conf().voters().ids();
        let remaining: Vec<u64> = voters.iter().filter(|id| *id != raft_id).collect();
        if !voters.contains(raft_id) {
            return Ok(true);
        }
        if remaining.is_empty() {
            return harmful("it is the only controller that votes: let another one join first");
        }
        let alive = remaining.iter().filter(|id| self.is_reachable(**id)).count();
        if alive < remaining.len() / 2 + 1 {
            return harmful(
                "without it the controllers that can be reached would be no majority, and nothing could be \
                 written any more: start or remove the unreachable ones first",
            );
        }
        if raft_id == self.own.raft_id {
            if let Some(to) = self.successor() {
                self.node.transfer_leader(to);
            }
            return Err(Refusal::NotLeader { leader: None });
        }
        Ok(true)
    }

    fn propose_change(
        &mut self,
        kind: ConfChangeType,
        raft_id: u64,
        member: Option<&RaftPeer>,
        reply: Option<Reply<()>>,
    ) {
        self.changes.sequence += 1;
        let context = ChangeContext {
            member: member.map(MemberRecord::from),
            proposer: self.proposer,
            sequence: self.changes.sequence,
        };
        let mut change = ConfChange::default();
        change.set_change_type(kind);
        change.node_id = raft_id;
        match (self.node.propose_conf_change(context.encode_to_vec(), change), reply) {
            (Ok(()), Some(reply)) => {
                self.changes.in_flight.insert(context.sequence, reply);
            }
            (Ok(()), None) => {}
            (Err(_), Some(reply)) => drop(reply.send(Err(Refusal::Busy))),
            (Err(error), None) => tracing::debug!(%error, "a change of membership waits"),
        }
    }

    /// On the leader, each tick: votes for learners that have caught up, and addresses that moved.
    pub(super) fn tend_members(&mut self) {
        if !self.leads_with_full_state()
            || self.node.raft.has_pending_conf()
            || self.node.raft.lead_transferee.is_some()
        {
            return;
        }
        if let Some(peer) = self.ready_learner() {
            tracing::info!(raft_id = peer.raft_id, node = %peer.node_id, "a controller has caught up and votes");
            self.propose_change(ConfChangeType::AddNode, peer.raft_id, Some(&peer), None);
        } else if let Some(peer) = self.moved_member() {
            let voter = self.node.raft.prs().conf().voters().contains(peer.raft_id);
            let kind = if voter { ConfChangeType::AddNode } else { ConfChangeType::AddLearnerNode };
            tracing::info!(raft_id = peer.raft_id, address = peer.address, "a controller's address changed");
            self.propose_change(kind, peer.raft_id, Some(&peer), None);
        }
    }

    fn ready_learner(&self) -> Option<RaftPeer> {
        let raft = &self.node.raft;
        let ready = |id: &u64| {
            raft.prs().get(*id).is_some_and(|progress| {
                self.is_reachable(*id)
                    && progress.matched > 0
                    && progress.matched + CAUGHT_UP_ENTRIES >= raft.raft_log.committed
            })
        };
        let mut learners: Vec<u64> = raft.prs().conf().learners().iter().copied().filter(ready).collect();
        learners.sort_unstable();
        self.peer(*learners.first()?).cloned()
    }

    fn moved_member(&self) -> Option<RaftPeer> {
        let moved = |recorded: &RaftPeer| {
            let present = self.peer(recorded.raft_id)?;
            (present.node_id == recorded.node_id && present.address != recorded.address)
                .then(|| present.clone())
        };
        self.members.iter().find_map(moved)
    }

    /// Applies a committed change.
    pub(super) fn apply_change(&mut self, change: &ConfChange, context: &[u8]) -> Result<(), RaftError> {
        let context = ChangeContext::decode(context).map_err(super::codec::CodecError::Record)?;
        // Every member comes to the same verdict, as their configurations are the same here.
        let result = self.node.apply_conf_change(change);
        let answer = match &result {
            Ok(_) => Ok(()),
            Err(error) => Err(Refusal::Harmful { problem: format!("the controllers refused it: {error}") }),
        };
        if result.is_ok() {
            let mut members = self.members.clone();
            match (change.get_change_type(), &context.member) {
                (ConfChangeType::RemoveNode, _) => members.remove(change.node_id),
                (_, Some(record)) => members.put(record.try_into()?),
                (_, None) => {}
            }
            self.replace_members(members);
            if self.is_leader() && self.node.raft.prs().get(self.own.raft_id).is_none() {
                self.step_down_removed();
            }
        }
        if context.proposer == self.proposer
            && let Some(reply) = self.changes.in_flight.remove(&context.sequence)
        {
            let _ = reply.send(answer);
        }
        Ok(())
    }

    /// This leader was removed by a change that an earlier leader had proposed. The raw node would look for
    /// its own progress with the next answer of a follower, and panic. What it has to send is sent before it
    /// follows: a follower has nothing to send at this point of a `Ready`.
    fn step_down_removed(&mut self) {
        if let Some(to) = self.successor() {
            self.node.raft.send_timeout_now(to);
        }
        let messages = std::mem::take(&mut self.node.raft.msgs);
        self.send(messages);
        let term = self.node.raft.term;
        self.node.raft.become_follower(term, raft::INVALID_ID);
    }

    /// The group is now this.
    pub(super) fn replace_members(&mut self, members: Members) {
        let was_member = self.members.contains(self.own.raft_id);
        self.members = members;
        let members = &self.members;
        self.heard.retain(|id, peer| members.admits(*id, &peer.node_id));
        let heard = &self.heard;
        self.transport.retain(&|id| members.contains(id) || heard.contains_key(&id));
        *self.view.members.write().unwrap_or_else(PoisonError::into_inner) = members.clone();
        if was_member && !members.contains(self.own.raft_id) {
            tracing::warn!("this controller was removed from the group");
        }
    }
}
