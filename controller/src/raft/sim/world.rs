//! The members, their disks and the network between them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use raft::eraftpb::{Message, MessageType};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::oneshot::{Receiver, channel, error::TryRecvError};

use super::super::core::{Core, Start, Transport};
use super::super::handle::{Event, Refusal, View, Wish};
use super::super::node::found_group;
use super::super::testing::peer;
use super::super::{RaftPeer, Tuning};
use super::ledger::{Ledger, Pages, proposal};
use crate::storage::Recovered;
use crate::storage::memory::MemoryStore;

type Wire = Arc<Mutex<Vec<Message>>>;
type Answer<T> = Receiver<Result<T, Refusal>>;
type Jobs = Arc<Mutex<Vec<Event<u64>>>>;

/// Puts messages on the wire, and looks at each whether the disk already holds what it promises.
struct Sending {
    wire: Wire,
    store: MemoryStore,
}

impl Transport for Sending {
    fn send(&mut self, to: &RaftPeer, message: Message) {
        assert_eq!(message.to, to.raft_id);
        let (last, hard_state) = self.store.synced();
        match message.get_msg_type() {
            MessageType::MsgAppendResponse if !message.reject => {
                assert!(message.index <= last, "entry {} promised, {last} synced", message.index);
            }
            MessageType::MsgRequestVoteResponse if !message.reject => {
                let promised = (message.term, message.to);
                assert_eq!((hard_state.term, hard_state.vote), promised, "vote sent before it was synced");
            }
            MessageType::MsgRequestVote => {
                let own = (message.term, message.from);
                assert_eq!((hard_state.term, hard_state.vote), own, "candidacy sent before it was synced");
            }
            _ => {}
        }
        self.wire.lock().unwrap().push(message);
    }

    fn retain(&mut self, _: &dyn Fn(u64) -> bool) {}
}

struct Node {
    core: Option<Core<Ledger, MemoryStore, Sending>>,
    store: MemoryStore,
    ledger: Ledger,
    jobs: Jobs,
    proposer: u64,
}

pub(super) struct World {
    rng: StdRng,
    seed: u64,
    nodes: BTreeMap<u64, Node>,
    wire: Wire,
    /// The two sides of a partition; empty for none.
    side: BTreeSet<u64>,
    proposers: u64,
    sequence: u64,
    /// Proposals in flight: proposer, sequence, and where the answer comes.
    asked: Vec<(u64, u64, Answer<u64>)>,
    /// Acknowledged proposals and the index that was told.
    acknowledged: BTreeMap<(u64, u64), u64>,
    /// Barriers in flight, with the highest index that was acknowledged when they were asked.
    barriers: Vec<(u64, Answer<u64>)>,
    wishes: Vec<Answer<()>>,
    /// What stands at each index, as the first member to apply it saw it.
    history: BTreeMap<u64, (u64, u64)>,
    checked: BTreeMap<u64, u64>,
    leaders: BTreeMap<u64, u64>,
    trace: u64,
}

fn tuning(seed: u64) -> Tuning {
    Tuning { election_seed: Some(seed), snapshot_entries: 40, margin_entries: 10, ..Tuning::default() }
}

impl World {
    /// A group of one.
    pub(super) fn new(seed: u64) -> Self {
        let mut world = Self {
            rng: StdRng::seed_from_u64(seed),
            seed,
            nodes: BTreeMap::new(),
            wire: Wire::default(),
            side: BTreeSet::new(),
            proposers: 0,
            sequence: 0,
            asked: Vec::new(),
            acknowledged: BTreeMap::new(),
            barriers: Vec::new(),
            wishes: Vec::new(),
            history: BTreeMap::new(),
            checked: BTreeMap::new(),
            leaders: BTreeMap::new(),
            trace: seed,
        };
        let mut store = MemoryStore::default();
        found_group(&mut store, &peer(1), Vec::new()).unwrap();
        world.insert(1, store);
        world.start(1);
        world
    }

    fn insert(&mut self, id: u64, store: MemoryStore) {
        let node = Node { core: None, store, ledger: Ledger::default(), jobs: Jobs::default(), proposer: 0 };
        self.nodes.insert(id, node);
    }

    fn node(&self, id: u64) -> &Node {
        &self.nodes[&id]
    }

    pub(super) fn start(&mut self, id: u64) {
        self.proposers += 1;
        let (wire, seed, proposer) = (self.wire.clone(), self.seed, self.proposers);
        let node = self.nodes.get_mut(&id).unwrap();
        let recovered: Recovered = node.store.crash_and_recover();
        node.ledger = Ledger::default();
        node.jobs = Jobs::default();
        node.proposer = proposer;
        let jobs = node.jobs.clone();
        let mut core = Core::new(Start {
            own: peer(id),
            proposer,
            machine: node.ledger.clone(),
            store: node.store.clone(),
            recovered,
            transport: Sending { wire, store: node.store.clone() },
            view: View::new(),
            spawn: Box::new(move |job| {
                jobs.lock().unwrap().push(job());
                Ok(())
            }),
            tuning: tuning(seed),
        })
        .unwrap();
        core.begin().unwrap();
        node.core = Some(core);
        self.checked.insert(id, 0);
        self.check(id);
    }

    pub(super) fn crash(&mut self, id: u64) {
        self.nodes.get_mut(&id).unwrap().core = None;
        self.nodes[&id].store.crash_and_recover();
    }

    /// The others notice that a member's streams have ended.
    pub(super) fn hang_up(&mut self, id: u64) {
        let others: Vec<u64> = self.nodes.keys().copied().filter(|other| *other != id).collect();
        for other in others {
            if self.side.is_empty() || self.side.contains(&id) == self.side.contains(&other) {
                self.notice_end(other, id);
            }
        }
    }

    /// One member notices that another's stream has ended.
    pub(super) fn notice_end(&mut self, at: u64, of: u64) {
        self.give(at, Event::HungUp(of));
        self.settle(at);
    }

    fn core(&mut self, id: u64) -> Option<&mut Core<Ledger, MemoryStore, Sending>> {
        self.nodes.get_mut(&id)?.core.as_mut()
    }

    fn give(&mut self, id: u64, event: Event<u64>) {
        if let Some(core) = self.core(id) {
            core.handle(event).unwrap();
        }
    }

    pub(super) fn settle(&mut self, id: u64) {
        if let Some(core) = self.core(id) {
            core.settle().unwrap();
            self.check(id);
        }
    }

    fn tick(&mut self, id: u64) {
        if let Some(core) = self.core(id) {
            // The pump sleeps through these.
            let quiet = core.quiet_ticks() > 0 && !core.node.has_ready();
            let before = (core.node.raft.state, core.node.raft.term);
            core.tick();
            let after = (core.node.raft.state, core.node.raft.term);
            assert!(!quiet || (before == after && !core.node.has_ready()), "a quiet tick did something");
        }
        let jobs = std::mem::take(&mut *self.nodes[&id].jobs.lock().unwrap());
        for saved in jobs {
            self.give(id, saved);
        }
        self.settle(id);
    }

    /// What must always hold.
    fn check(&mut self, id: u64) {
        let node = &self.nodes[&id];
        let Some(core) = node.core.as_ref() else { return };
        if core.is_leader() {
            let term = core.node.raft.term;
            assert_eq!(*self.leaders.entry(term).or_insert(id), id, "two leaders in term {term}");
        }
        let pages = node.ledger.pages.lock().unwrap();
        let checked = self.checked.entry(id).or_default();
        for (index, proposer, sequence) in pages.iter().filter(|page| page.0 > *checked) {
            let first = self.history.entry(*index).or_insert((*proposer, *sequence));
            assert_eq!(*first, (*proposer, *sequence), "two entries at index {index}");
            for part in [*index, *proposer, *sequence, id] {
                self.trace = (self.trace ^ part).wrapping_mul(0x0100_0000_01b3);
            }
        }
        *checked = pages.last().map_or(*checked, |page| page.0.max(*checked));
    }

    pub(super) fn propose(&mut self, id: u64) {
        self.sequence += 1;
        let (sequence, proposer) = (self.sequence, self.node(id).proposer);
        let (reply, answer) = channel();
        self.give(id, Event::Propose { sequence, data: proposal(proposer, sequence), reply });
        self.asked.push((proposer, sequence, answer));
    }

    pub(super) fn propose_and_take(&mut self, id: u64) -> Result<u64, Refusal> {
        self.propose(id);
        self.asked.pop().unwrap().2.try_recv().unwrap()
    }

    fn barrier(&mut self, id: u64) {
        let (reply, answer) = channel();
        let known = self.acknowledged.values().max().copied().unwrap_or_default();
        self.give(id, Event::Barrier { reply });
        self.barriers.push((known, answer));
    }

    fn wish(&mut self, id: u64, wish: Wish) {
        let (reply, answer) = channel();
        self.give(id, Event::Member { wish, reply });
        self.wishes.push(answer);
    }

    /// Takes the answers that are there.
    pub(super) fn collect(&mut self) {
        let acknowledged = &mut self.acknowledged;
        self.asked.retain_mut(|(proposer, sequence, answer)| match answer.try_recv() {
            Ok(Ok(index)) => {
                acknowledged.insert((*proposer, *sequence), index);
                false
            }
            Err(TryRecvError::Empty) => true,
            Ok(Err(_)) | Err(TryRecvError::Closed) => false,
        });
        self.barriers.retain_mut(|(known, answer)| match answer.try_recv() {
            Ok(Ok(index)) => {
                assert!(index >= *known, "a barrier at {index} passed by what was acknowledged at {known}");
                false
            }
            Err(TryRecvError::Empty) => true,
            Ok(Err(_)) | Err(TryRecvError::Closed) => false,
        });
        self.wishes.retain_mut(|answer| matches!(answer.try_recv(), Err(TryRecvError::Empty)));
    }

    fn deliver(&mut self, message: Message) {
        let (from, to) = (message.from, message.to);
        if self.side.contains(&from) != self.side.contains(&to) && !self.side.is_empty() {
            return;
        }
        // As the service does it.
        if self.core(to).is_some_and(|core| core.members.admits(from, &peer(from).node_id)) {
            let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            self.give(to, Event::Heard(peer(from)));
            self.give(to, Event::Message(Box::new(message)));
            self.settle(to);
            if snapshot {
                self.give(from, Event::SnapshotSent { to, delivered: true });
                self.settle(from);
            }
        } else {
            self.give(from, Event::Unreachable(to));
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.give(from, Event::SnapshotSent { to, delivered: false });
            }
            self.settle(from);
        }
    }

    /// One thing happens.
    pub(super) fn random_step(&mut self, size: u64) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        let id = ids[self.rng.random_range(0..ids.len())];
        match self.rng.random_range(0..1000) {
            0..200 => ids.iter().for_each(|id| self.tick(*id)),
            200..300 => self.tick(id),
            300..700 => self.random_delivery(),
            700..900 => {
                let at = self.leader().unwrap_or(id);
                for _ in 0..self.rng.random_range(1..4) {
                    self.propose(at);
                }
                self.settle(at);
            }
            // Of a process that died, or by mistake.
            900..903 => self.hang_up(id),
            903..940 => {
                self.barrier(id);
                self.settle(id);
            }
            940..955 => {
                self.crash(id);
                if self.rng.random_bool(0.5) {
                    self.hang_up(id);
                }
            }
            955..985 => {
                if self.node(id).core.is_none() {
                    self.start(id);
                }
            }
            985..990 => self.side = ids.into_iter().filter(|_| self.rng.random_bool(0.4)).collect(),
            990..997 => self.side.clear(),
            _ => self.random_change(size),
        }
        self.collect();
    }

    fn random_delivery(&mut self) {
        for _ in 0..self.rng.random_range(1..8) {
            let waiting = self.wire.lock().unwrap().len();
            if waiting == 0 {
                return;
            }
            // Mostly in order.
            let at = if self.rng.random_bool(0.8) { 0 } else { self.rng.random_range(0..waiting) };
            let message = self.wire.lock().unwrap().remove(at);
            match self.rng.random_range(0..100) {
                0..5 => {}
                5..8 => {
                    self.wire.lock().unwrap().push(message.clone());
                    self.deliver(message);
                }
                _ => self.deliver(message),
            }
        }
    }

    fn random_change(&mut self, size: u64) {
        let Some(leader) = self.leader() else { return };
        let voters = self.voters(leader);
        let members = self.members(leader);
        if voters.len() as u64 >= size {
            let gone = *voters.iter().nth(self.rng.random_range(0..voters.len())).unwrap();
            self.wish(leader, Wish::Remove(gone));
        } else if (members.len() as u64) < size {
            let id = self.nodes.keys().max().unwrap() + 1;
            self.insert(id, MemoryStore::default());
            self.start(id);
            self.wish(leader, Wish::Add(peer(id)));
        }
        self.settle(leader);
    }

    pub(super) fn add_without_starting(&mut self, id: u64) {
        self.insert(id, MemoryStore::default());
        let leader = self.leader().unwrap();
        self.wish(leader, Wish::Add(peer(id)));
        self.settle(leader);
    }

    /// Time passes for everybody, and everything that is sent arrives.
    pub(super) fn calm_round(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        ids.iter().for_each(|id| self.tick(*id));
        for _ in 0..1000 {
            let messages = std::mem::take(&mut *self.wire.lock().unwrap());
            if messages.is_empty() {
                break;
            }
            messages.into_iter().for_each(|message| self.deliver(message));
        }
        self.collect();
    }

    pub(super) fn grow_to(&mut self, size: u64) {
        for id in 2..=size {
            self.insert(id, MemoryStore::default());
            self.start(id);
            let leader = self.leader().unwrap();
            self.wish(leader, Wish::Add(peer(id)));
            self.settle(leader);
            for _ in 0..100 {
                self.calm_round();
                if self.leader().is_some_and(|leader| self.voters(leader).contains(&id)) {
                    break;
                }
            }
        }
        let leader = self.leader().unwrap();
        assert_eq!(self.voters(leader).len() as u64, size);
    }

    pub(super) fn heal(&mut self) {
        self.side.clear();
        let down: Vec<u64> =
            self.nodes.iter().filter(|(_, node)| node.core.is_none()).map(|(id, _)| *id).collect();
        down.into_iter().for_each(|id| self.start(id));
    }

    /// The leader of the highest term.
    pub(super) fn leader(&self) -> Option<u64> {
        let leaders = self.nodes.iter().filter_map(|(id, node)| {
            let core = node.core.as_ref()?;
            core.leads_with_full_state().then_some((core.node.raft.term, *id))
        });
        leaders.max().map(|(_, id)| id)
    }

    pub(super) fn term(&self, id: u64) -> u64 {
        self.node(id).core.as_ref().unwrap().node.raft.term
    }

    pub(super) fn voters(&self, id: u64) -> BTreeSet<u64> {
        let core = self.node(id).core.as_ref().unwrap();
        core.node.raft.prs().conf().voters().ids().iter().collect()
    }

    fn members(&self, id: u64) -> BTreeSet<u64> {
        let core = self.node(id).core.as_ref().unwrap();
        core.members.iter().map(|peer| peer.raft_id).collect()
    }

    fn pages(&self, id: u64) -> Pages {
        self.node(id).ledger.pages.lock().unwrap().clone()
    }

    /// The present members, all at the same place.
    fn is_level(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let members = self.members(leader);
        let applied = self.node(leader).core.as_ref().unwrap().applied;
        self.asked.is_empty()
            && self.wishes.is_empty()
            && self.voters(leader) == members
            && members
                .iter()
                .all(|id| self.node(*id).core.as_ref().is_some_and(|core| core.applied == applied))
    }

    /// What must hold once everything is whole again.
    pub(super) fn check_end(&self) {
        let leader = self.leader().expect("somebody leads");
        let pages = self.pages(leader);
        for id in self.members(leader) {
            assert_eq!(self.pages(id), pages, "members {leader} and {id} agree");
        }
        let mut applied = BTreeMap::new();
        for (index, proposer, sequence) in pages {
            assert!(applied.insert((proposer, sequence), index).is_none(), "applied twice");
        }
        for (proposal, index) in &self.acknowledged {
            assert_eq!(applied.get(proposal), Some(index), "acknowledged at {index} and lost");
        }
    }

    pub(super) fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    pub(super) fn trace(&self) -> u64 {
        self.trace
    }

    pub(super) fn syncs(&self, id: u64) -> u64 {
        self.node(id).store.syncs()
    }

    pub(super) fn entries(&self, id: u64) -> usize {
        self.node(id).store.entries()
    }

    pub(super) fn restored_from_leader(&self, id: u64) -> bool {
        // Once at the start, if it had a snapshot of its own then.
        *self.node(id).ledger.restored.lock().unwrap() > 1
    }
}

/// Lets time pass until a leader leads and everybody has what it has.
pub(super) fn until_stable(world: &mut World) {
    for round in 0..600 {
        world.calm_round();
        if round > 3 && world.is_level() {
            return;
        }
    }
    panic!("no leader, or no agreement, after 600 calm rounds");
}
