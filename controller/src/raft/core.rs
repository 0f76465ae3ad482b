//! The state that the pump owns, and what it does with each event.
//!
//! [`Core`] knows no clock and no thread: [`Core::tick`] is time, [`Core::handle`] an event, and after
//! either of them [`Core::settle`] does what follows: it handles each `Ready` (`ready.rs`), asks for read
//! indices (`reads.rs`), goes on with changes of membership (`membership.rs`), takes snapshots
//! (`snapshotting.rs`), and shows who leads.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use raft::eraftpb::{Message, MessageType};
use raft::{Progress, ProgressState, RawNode, SnapshotStatus, StateRole};
use tokio::sync::oneshot;

use super::handle::{Event, Refusal, Reply, View};
use super::log::RaftLog;
use super::machine::{Machine, MachineError};
use super::members::Members;
use super::membership::Changes;
use super::reads::Reads;
use super::snapshotting::{Snapshotting, Spawn};
use super::{Leadership, MemberStatus, RaftPeer, SnapshotBody, Tuning, logging};
use crate::storage::{LogStore, Recovered, StorageError};

/// Ticks within which a member has to have answered to count as reachable.
const REACHABLE_TICKS: u64 = 15;

/// Ticks from the leader's hanging up to an election, for each member that would call one: the first has to find
/// that the others know it too.
const HUNG_UP_TICKS: usize = 2;

/// Members whose addresses are remembered from their streams.
const HEARD: usize = 64;

/// What ends a member. Nothing that it has acknowledged is lost; it can't go on safely.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RaftError {
    /// The disk.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The raw node refused what it gave itself.
    #[error("Raft can't go on")]
    Raft(#[from] raft::Error),
    /// An entry or a snapshot that this version can't read.
    #[error(
        "{what} can't be read: other controllers run a newer version, or the store is damaged; bring this \
         node to their version"
    )]
    Machine {
        /// `entry 17`, `the snapshot`.
        what: String,
        /// What is wrong with it.
        source: MachineError,
    },
    /// The same for the group's own records.
    #[error("a record of the Raft group can't be read: bring this node to the version of the others")]
    Codec(#[from] super::codec::CodecError),
}

/// Sends messages to other members. It may lose them.
pub(crate) trait Transport: Send + 'static {
    /// Never waits.
    fn send(&mut self, to: &RaftPeer, message: Message);

    /// Ends what serves others than these.
    fn retain(&mut self, keep: &dyn Fn(u64) -> bool);
}

/// What a core starts from.
pub(super) struct Start<M, S, T, O> {
    pub(super) own: RaftPeer,
    pub(super) proposer: u64,
    pub(super) machine: M,
    pub(super) store: S,
    pub(super) recovered: Recovered,
    pub(super) transport: T,
    pub(super) view: View,
    pub(super) spawn: Spawn<O>,
    pub(super) tuning: Tuning,
}

pub(super) struct Core<M: Machine, S: LogStore, T: Transport> {
    pub(super) own: RaftPeer,
    pub(super) node: RawNode<RaftLog<S>>,
    pub(super) machine: M,
    pub(super) transport: T,
    pub(super) view: View,
    pub(super) tuning: Tuning,
    pub(super) members: Members,
    /// Addresses that members were heard from; they win over the recorded ones.
    pub(super) heard: BTreeMap<u64, RaftPeer>,
    /// Proposals in flight, by sequence.
    pub(super) pending: BTreeMap<u64, Reply<M::Outcome>>,
    pub(super) reads: Reads,
    pub(super) changes: Changes,
    pub(super) snapshotting: Snapshotting<M::Outcome>,
    pub(super) proposer: u64,
    pub(super) applied: u64,
    /// Ticks since the start.
    pub(super) now: u64,
    /// On the leader: the term that it leads in, and the index of its first entry.
    leading: Option<(u64, u64)>,
    /// On the leader: when each member was last seen active.
    seen: BTreeMap<u64, u64>,
    /// On the leader: its heartbeat has gone out, or goes with what settles.
    beaten: bool,
    closing: Option<Closing>,
}

/// Shutting down, once leadership is handed over or the tick has come.
struct Closing {
    at_tick: u64,
    reply: oneshot::Sender<()>,
}

impl<M: Machine, S: LogStore, T: Transport> Core<M, S, T> {
    pub(super) fn new(start: Start<M, S, T, M::Outcome>) -> Result<Self, RaftError> {
        let Start { own, proposer, mut machine, store, mut recovered, transport, view, spawn, tuning } =
            start;
        let mut members = Members::default();
        let mut applied = 0;
        if let Some((saved, data)) = recovered.snapshot.as_ref() {
            let body = SnapshotBody::from_bytes(data)?;
            members = Members::from_snapshot(&body)?;
            machine
                .restore(&body.state)
                .map_err(|source| RaftError::Machine { what: "the snapshot".to_owned(), source })?;
            applied = saved.metadata.index;
        }
        let log = RaftLog::new(store, &mut recovered);
        let config = tuning.config(own.raft_id, applied);
        let node = RawNode::new(&config, log, &logging::logger())?;
        *view.members.write().unwrap_or_else(PoisonError::into_inner) = members.clone();
        Ok(Self {
            node,
            machine,
            transport,
            view,
            members,
            heard: BTreeMap::new(),
            pending: BTreeMap::new(),
            reads: Reads::default(),
            changes: Changes::default(),
            snapshotting: Snapshotting::new(spawn),
            proposer,
            applied,
            now: 0,
            leading: None,
            seen: BTreeMap::new(),
            beaten: false,
            closing: None,
            own,
            tuning,
        })
    }

    /// Applies what was committed before the start, and leads at once where nobody else could.
    pub(super) fn begin(&mut self) -> Result<(), RaftError> {
        self.after_step();
        self.settle()?;
        let voters = self.node.raft.prs().conf().voters().ids();
        if voters.len() == 1 && voters.contains(self.own.raft_id) {
            self.node.campaign()?;
            self.settle()?;
        }
        Ok(())
    }

    pub(super) fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// How many ticks from now on do nothing but count, so that nobody has to wake up for each of them. Never
    /// more than lie between two heartbeats: after a longer sleep than was meant, a follower still has time to
    /// hear its leader before it calls an election.
    pub(super) fn quiet_ticks(&self) -> u32 {
        let raft = &self.node.raft;
        let busy = self.closing.is_some()
            || self.reads.are_asked()
            || raft.lead_transferee.is_some()
            || !raft.prs().conf().learners().is_empty()
            || raft.has_pending_conf();
        if busy {
            return 0;
        }
        let heartbeat = raft.heartbeat_timeout();
        let until_due = if self.is_leader() {
            let quorum = raft.election_timeout().saturating_sub(raft.election_elapsed);
            heartbeat.saturating_sub(raft.heartbeat_elapsed()).min(quorum)
        } else {
            raft.randomized_election_timeout().saturating_sub(raft.election_elapsed)
        };
        u32::try_from(until_due.saturating_sub(1).min(heartbeat)).unwrap_or(0)
    }

    /// The term in which answers to heartbeats change nothing: this member leads, and everybody has everything.
    fn idle_term(&self) -> Option<u64> {
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        let has_everything = |progress: &Progress| {
            progress.matched == last
                && progress.state == ProgressState::Replicate
                && progress.pending_request_snapshot == 0
        };
        let idle = self.is_leader() && raft.prs().iter().all(|(_, progress)| has_everything(progress));
        idle.then_some(raft.term)
    }

    /// Takes the answers that waited for the pump to wake.
    pub(super) fn take_answers(&mut self) {
        for answer in self.view.answers.take() {
            self.step(answer);
        }
    }

    /// One unit of time has passed.
    pub(super) fn tick(&mut self) {
        self.now += 1;
        self.node.tick();
        self.after_step();
        if self.is_leader() {
            self.beaten |= self.node.raft.heartbeat_elapsed() == 0;
            let seen = self.node.raft.prs().iter().filter(|(_, progress)| progress.recent_active);
            let now = self.now;
            let seen: Vec<u64> = seen.map(|(id, _)| *id).collect();
            self.seen.extend(seen.into_iter().map(|id| (id, now)));
            self.reads.ask_again(now);
            self.tend_members();
            self.tend_sent_snapshots();
        }
    }

    pub(super) fn handle(&mut self, event: Event<M::Outcome>) -> Result<(), RaftError> {
        match event {
            Event::Propose { sequence, data, reply } => self.propose(sequence, data, reply),
            Event::Barrier { reply } => self.ask_read(reply),
            Event::Member { wish, reply } => self.wish(wish, reply),
            Event::Transfer { reply } => self.transfer(reply),
            Event::Message(message) => self.step(*message),
            Event::Heard(peer) => self.hear(peer),
            Event::Unreachable(id) => self.node.report_unreachable(id),
            Event::HungUp(id) => self.hung_up(id),
            Event::SnapshotSent { to, delivered } => {
                let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
                self.node.report_snapshot(to, status);
            }
            Event::SnapshotSaved(saved) => self.snapshot_saved(saved)?,
            Event::Shutdown { reply } => self.close(reply),
        }
        Ok(())
    }

    /// Does everything that follows from what came in.
    pub(super) fn settle(&mut self) -> Result<(), RaftError> {
        loop {
            self.follow_leadership();
            self.ask_reads();
            self.go_on_with_changes();
            if !self.node.has_ready() {
                break;
            }
            self.handle_ready()?;
        }
        self.maybe_snapshot();
        self.publish();
        if std::mem::take(&mut self.beaten) {
            self.view.pulse.send_modify(|beats| *beats = beats.wrapping_add(1));
        }
        self.view.answers.may_wait(self.idle_term());
        Ok(())
    }

    /// Shutting down is done.
    pub(super) fn is_closed(&self) -> bool {
        self.closing.as_ref().is_some_and(|closing| !self.is_leader() || self.now >= closing.at_tick)
    }

    /// Makes everything durable and lets go.
    pub(super) fn finish(mut self) -> Result<Option<oneshot::Sender<()>>, RaftError> {
        self.node.mut_store().finish()?;
        Ok(self.closing.take().map(|closing| closing.reply))
    }

    fn propose(&mut self, sequence: u64, data: Vec<u8>, reply: Reply<M::Outcome>) {
        let refusal = if !self.is_leader() {
            Refusal::NotLeader { leader: self.leader() }
        } else if self.node.raft.lead_transferee.is_some() || self.closing.is_some() {
            Refusal::NotLeader { leader: None }
        } else if data.len() > self.tuning.entry_bytes {
            Refusal::TooLarge { size_bytes: data.len(), limit_bytes: self.tuning.entry_bytes }
        } else if self.pending.len() >= self.tuning.in_flight {
            Refusal::Busy
        } else if self.node.propose(Vec::new(), data).is_err() {
            // Dropped: too many bytes are in flight.
            Refusal::Busy
        } else {
            self.pending.insert(sequence, reply);
            return;
        };
        // The proposer may have gone.
        let _ = reply.send(Err(refusal));
    }

    fn step(&mut self, message: Message) {
        if message.to != self.own.raft_id {
            return;
        }
        let from = message.from;
        if message.get_msg_type() == MessageType::MsgPropose {
            // Proposals are forwarded as calls of the control API, where the caller is checked.
            return;
        }
        if let Err(error) = self.node.step(message) {
            tracing::debug!(from, %error, "dropped a Raft message");
        }
        self.after_step();
    }

    /// Replaces the election timeout that chance chose, where it has to be repeatable.
    fn after_step(&mut self) {
        // It is drawn when the time begins to count anew.
        if let Some(seed) = self.tuning.election_seed
            && self.node.raft.election_elapsed == 0
        {
            let mixed = (seed ^ self.own.raft_id.rotate_left(17) ^ self.node.raft.term.rotate_left(41))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let range = &self.tuning.election_ticks;
            let width = (range.end - range.start) as u64;
            let timeout = range.start + ((mixed >> 32) % width) as usize;
            self.node.raft.set_randomized_election_timeout(timeout);
        }
    }

    fn hear(&mut self, peer: RaftPeer) {
        let room = self.heard.len() < HEARD || self.heard.contains_key(&peer.raft_id);
        if room && peer.raft_id != self.own.raft_id && self.members.admits(peer.raft_id, &peer.node_id) {
            self.heard.insert(peer.raft_id, peer);
        }
    }

    /// The leader's stream has ended, as the kernel ends it when a process dies. So its silence needs not be waited
    /// for: an election comes in a few ticks, unless the leader is heard before, and others get this vote at once.
    /// A leader that lives is not disturbed: it and whoever hears it refuse the pre-vote.
    fn hung_up(&mut self, from: u64) {
        let raft = &mut self.node.raft;
        if raft.state != StateRole::Follower || raft.leader_id != from || self.closing.is_some() {
            return;
        }
        // One after the other, so that they don't split the votes.
        let voters = raft.prs().conf().voters().ids();
        let before = voters.iter().filter(|id| *id != from && *id < self.own.raft_id).count();
        let latest = self.tuning.election_ticks.end - 1;
        let wait = (HUNG_UP_TICKS * (before + 1)).min(latest - self.tuning.loyalty_ticks);
        raft.set_randomized_election_timeout(latest);
        raft.election_elapsed = raft.election_elapsed.max(latest - wait);
        tracing::debug!(leader = from, ticks = wait, "the leader hung up");
    }

    /// Where a member is reached: where it was heard from, or else where the group's record says.
    pub(super) fn peer(&self, raft_id: u64) -> Option<&RaftPeer> {
        if raft_id == self.own.raft_id {
            return Some(&self.own);
        }
        self.heard.get(&raft_id).or_else(|| self.members.get(raft_id))
    }

    pub(super) fn leader(&self) -> Option<RaftPeer> {
        self.peer(self.node.raft.leader_id).cloned()
    }

    /// Notices that leadership came or went, and ends what can't be answered any more.
    fn follow_leadership(&mut self) {
        let raft = &self.node.raft;
        let leads = (self.is_leader()).then_some(raft.term);
        if leads == self.leading.map(|(term, _)| term) {
            return;
        }
        if self.leading.take().is_some() {
            self.seen.clear();
            for reply in std::mem::take(&mut self.pending).into_values() {
                let _ = reply.send(Err(Refusal::Lost));
            }
            self.changes.lose();
            self.reads.refuse(&Refusal::NotLeader { leader: self.leader() });
            tracing::info!(term = self.node.raft.term, "no longer leads the controllers");
        }
        if let Some(term) = leads {
            self.leading = Some((term, self.node.raft.raft_log.last_index()));
            tracing::info!(term, "leads the controllers");
        }
    }

    /// This member leads, and has applied everything that was committed before it did.
    pub(super) fn leads_with_full_state(&self) -> bool {
        self.leading.is_some_and(|(term, first)| {
            self.is_leader() && term == self.node.raft.term && self.applied >= first
        })
    }

    fn transfer(&mut self, reply: Reply<()>) {
        let answer = if self.is_leader() {
            match self.successor() {
                Some(to) => {
                    self.node.transfer_leader(to);
                    Ok(())
                }
                None => {
                    let problem = "no other controller is up to date and reachable".to_owned();
                    Err(Refusal::Harmful { problem })
                }
            }
        } else {
            Err(Refusal::NotLeader { leader: self.leader() })
        };
        let _ = reply.send(answer);
    }

    /// The voter that is furthest and reachable.
    pub(super) fn successor(&self) -> Option<u64> {
        let tracker = self.node.raft.prs();
        let voters = tracker.conf().voters();
        let others = tracker.iter().filter(|(id, _)| **id != self.own.raft_id && voters.contains(**id));
        let reachable = others.filter(|(id, _)| self.is_reachable(**id));
        reachable.max_by_key(|(id, progress)| (progress.matched, **id)).map(|(id, _)| *id)
    }

    pub(super) fn is_reachable(&self, raft_id: u64) -> bool {
        raft_id == self.own.raft_id
            || self.node.raft.prs().get(raft_id).is_some_and(|progress| progress.recent_active)
            || self.seen.get(&raft_id).is_some_and(|at| self.now.saturating_sub(*at) < REACHABLE_TICKS)
    }

    fn close(&mut self, reply: oneshot::Sender<()>) {
        if self.is_leader()
            && let Some(to) = self.successor()
        {
            self.node.transfer_leader(to);
        }
        let tick = self.tuning.tick.max(std::time::Duration::from_millis(1));
        let ticks = self.tuning.handover_deadline.as_millis() / tick.as_millis();
        let wait = if self.node.raft.lead_transferee.is_some() { ticks as u64 } else { 0 };
        self.closing = Some(Closing { at_tick: self.now + wait, reply });
    }

    fn publish(&self) {
        let raft = &self.node.raft;
        let is_leader = self.leads_with_full_state();
        let leader = if self.is_leader() && !is_leader { None } else { self.leader() };
        let shown = Leadership {
            leader,
            term: raft.term,
            is_leader,
            is_member: self.members.contains(self.own.raft_id),
            applied_index: self.applied,
            stopped: None,
        };
        self.view.leadership.send_if_modified(|present| {
            // What each entry changes wakes nobody.
            present.applied_index = shown.applied_index;
            let news = *present != shown;
            *present = shown;
            news
        });
        let statuses: Vec<MemberStatus> = self.statuses();
        let mut known = self.view.statuses.write().unwrap_or_else(PoisonError::into_inner);
        if *known != statuses {
            *known = statuses;
        }
    }

    fn statuses(&self) -> Vec<MemberStatus> {
        let raft = &self.node.raft;
        let voters = raft.prs().conf().voters();
        let status = |peer: &RaftPeer| {
            let known = if self.is_leader() {
                self.is_reachable(peer.raft_id)
            } else {
                peer.raft_id == self.own.raft_id || peer.raft_id == raft.leader_id
            };
            let peer = self.peer(peer.raft_id).unwrap_or(peer).clone();
            MemberStatus { voter: voters.contains(peer.raft_id), reachable: known, peer }
        };
        self.members.iter().map(status).collect()
    }
}
