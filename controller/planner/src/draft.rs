//! The plan while it is being made: its actions, and what they take on top of the state.
//!
//! The stages see the state as it is and, through the draft, what this plan has already given away, so
//! that one plan can carry many tasks from nothing to ASSIGNED. What a plan frees is given only by a later
//! plan, from the state that has it applied.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rorqual_proto::model::{BlockLease, Network, NetworkId, NodeId, ServiceId, Task, TaskId};

use crate::State;
use crate::action::{Action, ActionKind};
use crate::allocate::Given;
use crate::planner::Look;
use crate::state::index::Usage;

/// The most actions of one plan (only a single slot that needs more makes a longer one).
pub const MAX_ACTIONS: usize = 256;

/// Kept free for what the last stages add: networks with new blocks.
const RESERVED_ACTIONS: usize = 32;

/// A slot that is to get a new task.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) slot: u32,
    /// How often tasks of this slot failed on a node.
    pub(crate) avoid: BTreeMap<NodeId, u32>,
}

/// See the module.
pub(crate) struct Draft<'a> {
    pub(crate) state: &'a State,
    pub(crate) now_ms: i64,
    pub(crate) given: Given,
    pub(crate) requests: BTreeMap<ServiceId, Vec<Request>>,
    /// When to look again at what.
    pub(crate) timers: Vec<(i64, Look)>,
    /// Slots whose task would be better off on another node, and none takes it.
    pub(crate) stuck: Vec<(ServiceId, u32)>,
    actions: Vec<Action>,
    requested: usize,
    handled: BTreeSet<(ServiceId, u32)>,
    usage: BTreeMap<NodeId, Usage>,
    replicas: BTreeMap<(ServiceId, NodeId), u32>,
    addresses: BTreeSet<Ipv4Addr>,
    last_addresses: BTreeMap<Ipv4Addr, Ipv4Addr>,
    networks: BTreeMap<NetworkId, Network>,
    leased: BTreeSet<Ipv4Net>,
    ids: Ids,
}

/// What a draft becomes.
pub(crate) struct Finished {
    pub(crate) actions: Vec<Action>,
    pub(crate) timers: Vec<(i64, Look)>,
    pub(crate) stuck: Vec<(ServiceId, u32)>,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(state: &'a State, now_ms: i64, seed: u64) -> Self {
        Self {
            state,
            now_ms,
            given: Given::default(),
            requests: BTreeMap::new(),
            timers: Vec::new(),
            stuck: Vec::new(),
            actions: Vec::new(),
            requested: 0,
            handled: BTreeSet::new(),
            usage: BTreeMap::new(),
            replicas: BTreeMap::new(),
            addresses: BTreeSet::new(),
            last_addresses: BTreeMap::new(),
            networks: BTreeMap::new(),
            leased: BTreeSet::new(),
            ids: Ids { seed, count: 0 },
        }
    }

    /// How many more actions this plan takes.
    pub(crate) fn room(&self) -> usize {
        (MAX_ACTIONS - RESERVED_ACTIONS).saturating_sub(self.actions.len() + self.requested)
    }

    /// Whether so many actions fit. A slot is never decided on in parts: into an empty plan any fits.
    pub(crate) fn fits(&self, count: usize) -> bool {
        self.room() >= count || (self.actions.is_empty() && self.requested == 0)
    }

    pub(crate) fn push(&mut self, kind: ActionKind) {
        self.actions.push(Action::new(kind));
    }

    pub(crate) fn push_expecting(&mut self, kind: ActionKind, version: u64) {
        self.actions.push(Action::expecting(kind, version));
    }

    pub(crate) fn request(&mut self, service_id: &ServiceId, request: Request) {
        self.requested += 1;
        self.requests.entry(service_id.clone()).or_default().push(request);
    }

    /// The requests of a service; from here on their actions count instead of them.
    pub(crate) fn take_requests(&mut self, service_id: &ServiceId) -> Vec<Request> {
        let requests = self.requests.remove(service_id).unwrap_or_default();
        self.requested -= requests.len();
        requests
    }

    /// Notes that the slot has been decided on: later stages of this plan leave it alone.
    pub(crate) fn handle(&mut self, service_id: &ServiceId, slot: u32) {
        self.handled.insert((service_id.clone(), slot));
    }

    pub(crate) fn is_handled(&self, service_id: &ServiceId, slot: u32) -> bool {
        self.handled.contains(&(service_id.clone(), slot))
    }

    pub(crate) fn new_task_id(&mut self) -> TaskId {
        TaskId::from_bits(self.ids.next())
    }

    /// What live tasks reserve on a node, this plan's included.
    pub(crate) fn usage(&self, node_id: &NodeId) -> Usage {
        let stored = || self.state.index.nodes.get(node_id).map(|node| node.used);
        self.usage.get(node_id).copied().or_else(stored).unwrap_or_default()
    }

    /// Live replicas of a service on a node, this plan's included.
    pub(crate) fn replicas(&self, service_id: &ServiceId, node_id: &NodeId) -> u32 {
        let index = self.state.index.services.get(service_id);
        let stored = index.and_then(|index| index.nodes.get(node_id)).copied().unwrap_or_default();
        let planned = self.replicas.get(&(service_id.clone(), node_id.clone())).copied().unwrap_or_default();
        stored + planned
    }

    /// Notes that a task of this plan is placed.
    pub(crate) fn place(&mut self, task: &Task) {
        let Some(node_id) = &task.node_id else { return };
        let mut usage = self.usage(node_id);
        usage.add(task);
        self.usage.insert(node_id.clone(), usage);
        *self.replicas.entry((task.service_id.clone(), node_id.clone())).or_default() += 1;
    }

    pub(crate) fn is_address_taken(&self, address: Ipv4Addr) -> bool {
        self.addresses.contains(&address) || self.state.index.addresses.contains_key(&address)
    }

    pub(crate) fn take_address(&mut self, group: Ipv4Addr, address: Ipv4Addr) {
        self.addresses.insert(address);
        self.last_addresses.insert(group, address);
    }

    pub(crate) fn give_back_address(&mut self, address: Ipv4Addr) {
        self.addresses.remove(&address);
    }

    pub(crate) fn last_address(&self, group: Ipv4Addr) -> Option<Ipv4Addr> {
        self.last_addresses.get(&group).or_else(|| self.state.index.last_addresses.get(&group)).copied()
    }

    /// The blocks of a node in a network, this plan's included.
    pub(crate) fn blocks(&self, node_id: &NodeId, network_id: &NetworkId) -> Vec<Ipv4Net> {
        let key = (node_id.clone(), network_id.clone());
        let stored = self.state.index.leases.get(&key).into_iter().flatten().copied();
        let planned = self.networks.get(network_id).into_iter().flat_map(|network| &network.blocks);
        let planned = planned.filter(|lease| lease.node_id == *node_id).map(|lease| lease.block);
        // One that this plan has moved to another node is not this node's any more.
        let stored = stored.filter(|block| !self.leased.contains(block));
        let mut blocks: Vec<Ipv4Net> = stored.chain(planned).collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    }

    /// A block of the pool that nobody has: the one behind the last that is leased, so that nothing is searched for
    /// until the pool has been given once around.
    pub(crate) fn free_block(&self, pool: Ipv4Net, prefix: u8) -> Option<Ipv4Net> {
        let ends = Ipv4Net::new(pool.network(), 0).ok()?..=Ipv4Net::new(pool.broadcast(), 32).ok()?;
        let stored = self.state.index.leased.range(ends.clone()).next_back().map(|(block, _)| *block);
        let last = stored.max(self.leased.range(ends).next_back().copied());
        let next = match last {
            None => Some(pool.network()),
            // It may be a piece of a block that was cut.
            Some(last) => {
                let whole = Ipv4Net::new(last.network(), prefix.min(last.prefix_len())).ok()?;
                whole.broadcast().to_bits().checked_add(1).map(Ipv4Addr::from_bits)
            }
        };
        if let Some(next) = next.filter(|next| pool.contains(next)) {
            return Ipv4Net::new(next, prefix).ok();
        }
        pool.subnets(prefix).ok()?.find(|block| !self.has_leases(*block))
    }

    /// Whether any part of a block, which is no part of a leased one, is leased.
    pub(crate) fn has_leases(&self, block: Ipv4Net) -> bool {
        let Ok(first) = Ipv4Net::new(block.network(), 0) else { return true };
        let Ok(last) = Ipv4Net::new(block.broadcast(), 32) else { return true };
        self.leased.range(first..=last).next().is_some()
            || self.state.index.leased.range(first..=last).next().is_some()
    }

    /// Blocks of the network that other nodes have, and no address of them. Looked for only once a pool is exhausted.
    pub(crate) fn idle_blocks(&self, network_id: &NetworkId, node_id: &NodeId) -> Vec<Ipv4Net> {
        let leases = self.network(network_id).into_iter().flat_map(|network| &network.blocks);
        let others = leases.filter(|lease| lease.node_id != *node_id).map(|lease| lease.block);
        others.filter(|block| !self.leased.contains(block) && self.is_idle(*block)).collect()
    }

    /// Nobody has an address of a block.
    pub(crate) fn is_idle(&self, block: Ipv4Net) -> bool {
        let all = block.network()..=block.broadcast();
        self.addresses.range(all.clone()).next().is_none()
            && self.state.index.addresses.range(all).next().is_none()
    }

    /// A network as this plan leaves it.
    pub(crate) fn network(&self, network_id: &NetworkId) -> Option<&Network> {
        let stored = self.state.networks.get(network_id).map(|network| &**network);
        self.networks.get(network_id).or(stored)
    }

    /// Takes one address out of a block and leases it to another node; what is left stays where it is, in pieces.
    pub(crate) fn cut(&mut self, network_id: &NetworkId, lease: &BlockLease, address: Ipv4Addr, to: &NodeId) {
        let Some(network) = self.network(network_id) else { return };
        let mut network = network.clone();
        network.blocks.retain(|other| other.block != lease.block);
        let mut rest = lease.block;
        while rest.prefix_len() < 32
            && let Ok(halves) = rest.subnets(rest.prefix_len() + 1)
        {
            for half in halves {
                if half.contains(&address) {
                    rest = half;
                } else {
                    network.blocks.push(BlockLease { block: half, node_id: lease.node_id.clone() });
                }
            }
        }
        network.blocks.push(BlockLease { block: rest, node_id: to.clone() });
        network.blocks.sort_by_key(|lease| lease.block);
        self.networks.insert(network_id.clone(), network);
        self.leased.insert(rest);
    }

    /// Leases a block, taking it from the node that had it; false where the plan already writes as many networks as
    /// it may.
    pub(crate) fn lease(&mut self, network_id: &NetworkId, node_id: &NodeId, block: Ipv4Net) -> bool {
        if self.networks.len() >= RESERVED_ACTIONS && !self.networks.contains_key(network_id) {
            return false;
        }
        let Some(stored) = self.state.networks.get(network_id) else { return false };
        let network = self.networks.entry(network_id.clone()).or_insert_with(|| Network::clone(stored));
        network.blocks.retain(|lease| lease.block != block);
        let place = network.blocks.partition_point(|lease| lease.block < block);
        network.blocks.insert(place, BlockLease { block, node_id: node_id.clone() });
        self.leased.insert(block);
        true
    }

    /// Takes all blocks of a node back.
    pub(crate) fn release(&mut self, network_id: &NetworkId, node_id: &NodeId) {
        if self.networks.len() >= RESERVED_ACTIONS && !self.networks.contains_key(network_id) {
            return;
        }
        let Some(stored) = self.state.networks.get(network_id) else { return };
        let network = self.networks.entry(network_id.clone()).or_insert_with(|| Network::clone(stored));
        network.blocks.retain(|lease| lease.node_id != *node_id);
    }

    /// All actions: networks first, so that blocks stand before the addresses in them.
    pub(crate) fn finish(self) -> Finished {
        let networks = self.networks.into_values().map(|network| {
            let version = network.meta.version;
            Action::expecting(ActionKind::PutNetwork(Box::new(network)), version)
        });
        let actions = networks.chain(self.actions).collect();
        Finished { actions, timers: self.timers, stuck: self.stuck }
    }
}

/// Ids from a seed: splitmix64 (Steele, Lea, Flood 2014), two words an id.
struct Ids {
    seed: u64,
    count: u64,
}

impl Ids {
    fn next(&mut self) -> u128 {
        let mut word = || {
            self.count += 1;
            mix(self.seed.wrapping_add(self.count.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        };
        (u128::from(word()) << 64) | u128::from(word())
    }
}

/// The finalizer of splitmix64: spreads the bits of a word over all of its bits.
pub(crate) fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
