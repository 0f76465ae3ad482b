//! What the planner's stages ask for, kept up to date with every write: O(log n) each.
//!
//! All of it is derived from the objects (and rebuilt from them by [`super::State::restore`]), except for
//! the two cursors that say which address was given last: they only make an address rest before it is
//! given again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use rorqual_proto::model::{
    DesiredState, Guest, GuestId, Network, NetworkId, Node, NodeId, PortClaim, RestartCondition, Service,
    ServiceId, Task, TaskId, TaskState,
};

/// In-place restarts from which on a task counts as failing for the update that made it.
const RESTARTS_THAT_COUNT_AS_FAILURE: u32 = 3;

/// Everything that is derived.
#[derive(Debug, Clone, Default)]
pub(crate) struct Indices {
    pub(crate) service_names: BTreeMap<String, ServiceId>,
    pub(crate) network_names: BTreeMap<String, NetworkId>,
    pub(crate) hostnames: BTreeMap<String, BTreeSet<NodeId>>,
    pub(crate) services: BTreeMap<ServiceId, ServiceIndex>,
    pub(crate) nodes: BTreeMap<NodeId, NodeIndex>,
    /// Services with a holder that waits for a node.
    pub(crate) waiting: BTreeSet<ServiceId>,
    /// Services with a `problem`.
    pub(crate) problems: BTreeSet<ServiceId>,
    pub(crate) ports: BTreeMap<PortClaim, ServiceId>,
    /// Routes by host and path.
    pub(crate) routes: BTreeMap<(String, String), ServiceId>,
    pub(crate) vips: BTreeMap<Ipv4Addr, ServiceId>,
    pub(crate) last_vip: Option<Ipv4Addr>,
    /// Addresses of tasks that are not terminal, and of guests.
    pub(crate) addresses: BTreeMap<Ipv4Addr, Owner>,
    /// The address given last, by the base of its 64-address group.
    pub(crate) last_addresses: BTreeMap<Ipv4Addr, Ipv4Addr>,
    pub(crate) leases: BTreeMap<(NodeId, NetworkId), BTreeSet<Ipv4Net>>,
    pub(crate) leased: BTreeMap<Ipv4Net, NetworkId>,
}

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    Task(TaskId),
    Guest(GuestId),
}

/// The tasks of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServiceIndex {
    pub(crate) slots: BTreeMap<u32, Slot>,
    /// Slots with a task whose desired state is not REMOVE.
    pub(crate) wanted: BTreeSet<u32>,
    /// Slots by the spec version and the condition of their holder.
    pub(crate) holders: BTreeMap<u64, Holders>,
    /// Live tasks that are meant to run, by node.
    pub(crate) nodes: BTreeMap<NodeId, u32>,
    /// Tasks that failed, were rejected or restart again and again, by spec version.
    pub(crate) failures: BTreeMap<u64, u32>,
    pub(crate) endpoints: BTreeSet<TaskId>,
}

/// One slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) tasks: BTreeSet<TaskId>,
    summary: Summary,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Summary {
    wanted: bool,
    holder: Option<Holder>,
}

/// The task that stands for a slot: the one whose desired state is READY or RUNNING.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holder {
    spec_version: u64,
    condition: Condition,
    since_ms: i64,
}

/// How a holder is, as an update sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It has no node.
    Waiting,
    /// It is on its way, or it ended and is to be replaced.
    Moving,
    /// It runs and gets no traffic.
    Shaky,
    /// It runs and gets traffic, or it did its work and stays ended.
    Settled,
}

/// Slots whose holder has one spec version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holders {
    pub(crate) waiting: BTreeSet<u32>,
    pub(crate) moving: BTreeSet<u32>,
    pub(crate) shaky: BTreeSet<u32>,
    /// By the time of the last write to the task, milliseconds since the Unix epoch.
    pub(crate) settled: BTreeSet<(i64, u32)>,
}

impl Holders {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len() + self.moving.len() + self.shaky.len() + self.settled.len()
    }
}

/// The tasks of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NodeIndex {
    pub(crate) tasks: BTreeSet<TaskId>,
    pub(crate) used: Usage,
    /// Live tasks and guests by network.
    pub(crate) networks: BTreeMap<NetworkId, u32>,
    pub(crate) guests: BTreeSet<GuestId>,
}

/// What live tasks reserve on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) nano_cpus: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) pids: u64,
    pub(crate) tasks: u32,
}

/// The condition of a task that is a holder.
pub(crate) fn condition_of(task: &Task) -> Condition {
    match task.status.state {
        TaskState::Complete if task.restart.condition != RestartCondition::Any => Condition::Settled,
        state if state.is_terminal() => Condition::Moving,
        _ if task.node_id.is_none() => Condition::Waiting,
        TaskState::Running if task.status.healthy => Condition::Settled,
        TaskState::Running => Condition::Shaky,
        _ => Condition::Moving,
    }
}

/// It stands for its slot.
pub(crate) fn is_holder(task: &Task) -> bool {
    task.desired_state <= DesiredState::Running
}

fn is_failing(task: &Task) -> bool {
    match task.status.state {
        TaskState::Failed | TaskState::Rejected => true,
        state => !state.is_terminal() && task.status.restarts >= RESTARTS_THAT_COUNT_AS_FAILURE,
    }
}

/// The base of an address's 64-address group.
pub(crate) fn group_of(address: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(address.to_bits() & !63)
}

impl Indices {
    pub(crate) fn unlink_node(&mut self, node: &Node) {
        remove_from_set(&mut self.hostnames, &node.description.hostname, &node.id);
    }

    pub(crate) fn link_node(&mut self, node: &Node) {
        self.hostnames.entry(node.description.hostname.clone()).or_default().insert(node.id.clone());
    }

    pub(crate) fn unlink_service(&mut self, service: &Service) {
        remove_owned(&mut self.service_names, &service.spec.name, &service.id);
        self.problems.remove(&service.id);
        for port in &service.ports {
            remove_owned(&mut self.ports, &port.claim(), &service.id);
        }
        for route in &service.spec.routes {
            remove_owned(&mut self.routes, &(route.host.clone(), route.path.clone()), &service.id);
        }
        for vip in &service.vips {
            remove_owned(&mut self.vips, &vip.address, &service.id);
        }
    }

    pub(crate) fn link_service(&mut self, service: &Service) {
        self.service_names.insert(service.spec.name.clone(), service.id.clone());
        if service.problem.is_some() {
            self.problems.insert(service.id.clone());
        }
        for port in &service.ports {
            self.ports.insert(port.claim(), service.id.clone());
        }
        for route in &service.spec.routes {
            self.routes.insert((route.host.clone(), route.path.clone()), service.id.clone());
        }
        for vip in &service.vips {
            self.vips.insert(vip.address, service.id.clone());
        }
    }

    pub(crate) fn unlink_network(&mut self, network: &Network) {
        remove_owned(&mut self.network_names, &network.spec.name, &network.id);
        for lease in &network.blocks {
            remove_owned(&mut self.leased, &lease.block, &network.id);
            remove_from_set(&mut self.leases, &(lease.node_id.clone(), network.id.clone()), &lease.block);
        }
    }

    pub(crate) fn link_network(&mut self, network: &Network) {
        self.network_names.insert(network.spec.name.clone(), network.id.clone());
        for lease in &network.blocks {
            self.leased.insert(lease.block, network.id.clone());
            let key = (lease.node_id.clone(), network.id.clone());
            self.leases.entry(key).or_default().insert(lease.block);
        }
    }

    /// Takes a task out. `tasks` no longer holds it.
    pub(crate) fn unlink_task(&mut self, task: &Task, tasks: &BTreeMap<TaskId, Arc<Task>>) {
        let service = self.services.entry(task.service_id.clone()).or_default();
        service.count_task(task, false);
        if let Some(slot) = service.slots.get_mut(&task.slot) {
            slot.tasks.remove(&task.id);
        }
        self.summarize(&task.service_id, task.slot, tasks);
        let Some(node_id) = &task.node_id else { return };
        let node = self.nodes.entry(node_id.clone()).or_default();
        node.tasks.remove(&task.id);
        if !task.status.state.is_terminal() {
            node.used.take(task);
            for address in &task.addresses {
                count(&mut node.networks, &address.network_id, false);
                remove_owned(&mut self.addresses, &address.address, &Owner::Task(task.id.clone()));
            }
        }
        if node.is_unused() {
            self.nodes.remove(node_id);
        }
    }

    pub(crate) fn unlink_guest(&mut self, guest: &Guest) {
        let node = self.nodes.entry(guest.node_id.clone()).or_default();
        node.guests.remove(&guest.id);
        for address in &guest.addresses {
            count(&mut node.networks, &address.network_id, false);
            remove_owned(&mut self.addresses, &address.address, &Owner::Guest(guest.id.clone()));
        }
        if node.is_unused() {
            self.nodes.remove(&guest.node_id);
        }
    }

    pub(crate) fn link_guest(&mut self, guest: &Guest, old: Option<&Guest>) {
        let node = self.nodes.entry(guest.node_id.clone()).or_default();
        node.guests.insert(guest.id.clone());
        for address in &guest.addresses {
            count(&mut node.networks, &address.network_id, true);
            self.addresses.insert(address.address, Owner::Guest(guest.id.clone()));
            if !old.is_some_and(|old| old.addresses.contains(address)) {
                self.last_addresses.insert(group_of(address.address), address.address);
            }
        }
    }

    /// Takes a task in. `tasks` holds it already; `is_new` where its addresses were given just now.
    pub(crate) fn link_task(&mut self, task: &Task, is_new: bool, tasks: &BTreeMap<TaskId, Arc<Task>>) {
        let service = self.services.entry(task.service_id.clone()).or_default();
        service.count_task(task, true);
        service.slots.entry(task.slot).or_default().tasks.insert(task.id.clone());
        self.summarize(&task.service_id, task.slot, tasks);
        let Some(node_id) = &task.node_id else { return };
        let node = self.nodes.entry(node_id.clone()).or_default();
        node.tasks.insert(task.id.clone());
        if !task.status.state.is_terminal() {
            node.used.add(task);
            for address in &task.addresses {
                count(&mut node.networks, &address.network_id, true);
                self.addresses.insert(address.address, Owner::Task(task.id.clone()));
            }
        }
        if is_new {
            for address in &task.addresses {
                self.last_addresses.insert(group_of(address.address), address.address);
            }
        }
    }

    fn summarize(&mut self, service_id: &ServiceId, number: u32, tasks: &BTreeMap<TaskId, Arc<Task>>) {
        let Some(service) = self.services.get_mut(service_id) else { return };
        let Some(slot) = service.slots.get_mut(&number) else { return };
        let mut summary = Summary::default();
        for task in slot.tasks.iter().filter_map(|id| tasks.get(id)) {
            summary.wanted |= task.desired_state < DesiredState::Remove;
            if is_holder(task) {
                summary.holder = Some(Holder {
                    spec_version: task.spec_version,
                    condition: condition_of(task),
                    since_ms: task.meta.updated_at_ms,
                });
            }
        }
        let before = std::mem::replace(&mut slot.summary, summary.clone());
        if slot.tasks.is_empty() {
            service.slots.remove(&number);
        }
        if before != summary {
            service.count_slot(number, &before, false);
            service.count_slot(number, &summary, true);
        }
        let waits = service.holders.values().any(|holders| !holders.waiting.is_empty());
        if service.slots.is_empty() {
            self.services.remove(service_id);
        }
        if waits {
            self.waiting.insert(service_id.clone());
        } else {
            self.waiting.remove(service_id);
        }
    }

    /// The parts that are wholly derived from the objects are the same.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.service_names == other.service_names
            && self.network_names == other.network_names
            && self.hostnames == other.hostnames
            && self.services == other.services
            && self.nodes == other.nodes
            && self.waiting == other.waiting
            && self.problems == other.problems
            && self.ports == other.ports
            && self.vips == other.vips
            && self.addresses == other.addresses
            && self.leases == other.leases
            && self.leased == other.leased
    }
}

impl ServiceIndex {
    /// A task's own share, apart from its slot's.
    fn count_task(&mut self, task: &Task, up: bool) {
        if is_failing(task) {
            count(&mut self.failures, &task.spec_version, up);
        }
        if let Some(node_id) = &task.node_id
            && is_holder(task)
            && !task.status.state.is_terminal()
        {
            count(&mut self.nodes, node_id, up);
        }
        if task.is_endpoint() {
            if up {
                self.endpoints.insert(task.id.clone());
            } else {
                self.endpoints.remove(&task.id);
            }
        }
    }

    fn count_slot(&mut self, number: u32, summary: &Summary, up: bool) {
        set(&mut self.wanted, number, up && summary.wanted);
        let Some(holder) = &summary.holder else { return };
        let holders = self.holders.entry(holder.spec_version).or_default();
        match holder.condition {
            Condition::Waiting => set(&mut holders.waiting, number, up),
            Condition::Moving => set(&mut holders.moving, number, up),
            Condition::Shaky => set(&mut holders.shaky, number, up),
            Condition::Settled => set(&mut holders.settled, (holder.since_ms, number), up),
        }
        if holders.len() == 0 {
            self.holders.remove(&holder.spec_version);
        }
    }
}

impl NodeIndex {
    fn is_unused(&self) -> bool {
        self.tasks.is_empty() && self.guests.is_empty()
    }
}

impl Usage {
    pub(crate) fn add(&mut self, task: &Task) {
        let reserved = &task.container.reservations;
        self.nano_cpus = self.nano_cpus.saturating_add(reserved.nano_cpus);
        self.memory_bytes = self.memory_bytes.saturating_add(reserved.memory_bytes);
        self.pids = self.pids.saturating_add(reserved.pids);
        self.tasks = self.tasks.saturating_add(1);
    }

    pub(crate) fn take(&mut self, task: &Task) {
        let reserved = &task.container.reservations;
        self.nano_cpus = self.nano_cpus.saturating_sub(reserved.nano_cpus);
        self.memory_bytes = self.memory_bytes.saturating_sub(reserved.memory_bytes);
        self.pids = self.pids.saturating_sub(reserved.pids);
        self.tasks = self.tasks.saturating_sub(1);
    }
}

fn set<T: Ord>(set: &mut BTreeSet<T>, item: T, present: bool) {
    if present {
        set.insert(item);
    } else {
        set.remove(&item);
    }
}

fn count<K: Ord + Clone>(counts: &mut BTreeMap<K, u32>, key: &K, up: bool) {
    let number = counts.entry(key.clone()).or_default();
    *number = if up { *number + 1 } else { number.saturating_sub(1) };
    if *number == 0 {
        counts.remove(key);
    }
}

fn remove_owned<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: &K, owner: &V) {
    if map.get(key) == Some(owner) {
        map.remove(key);
    }
}

fn remove_from_set<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = map.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            map.remove(key);
        }
    }
}
