//! What must hold in every state, and between one state and the next. Shared by all tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rorqual_proto::model::{BlockLease, DesiredState, NetworkId, NodeId, TaskAddress, TaskState};

use crate::State;
use crate::allocate::is_edge;
use crate::orchestrate::is_gone;

/// A rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule, as a sentence.
    pub rule: &'static str,
    /// What breaks it.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.rule, self.detail)
    }
}

/// What is wrong in a state; empty where all is well. Looks at everything: for tests and for diagnosis.
pub fn check(state: &State) -> Vec<Violation> {
    let mut found = Vec::new();
    tasks(state, &mut found);
    slots(state, &mut found);
    services(state, &mut found);
    blocks(state, &mut found);
    reservations(state, &mut found);
    if !State::restore(state.objects()).index.same_as(&state.index) {
        add(&mut found, "indices say what the objects say", "they differ from rebuilt ones".to_owned());
    }
    found
}

/// What went backwards from one state to a later one.
pub fn check_step(before: &State, after: &State) -> Vec<Violation> {
    let mut found = Vec::new();
    for new in after.tasks() {
        let Some(old) = before.task(&new.id) else { continue };
        let name = new.name();
        if new.status.state < old.status.state {
            let detail = format!("{name} went from {:?} to {:?}", old.status.state, new.status.state);
            add(&mut found, "observed state only moves forward", detail);
        }
        if old.status.state.is_terminal() && new.status != old.status {
            add(&mut found, "what has ended stays as it ended", format!("{name}: {:?}", new.status));
        }
        if new.desired_state < old.desired_state {
            let detail = format!("{name} went from {:?} to {:?}", old.desired_state, new.desired_state);
            add(&mut found, "desired state only moves forward", detail);
        }
        if old.node_id.is_some() && (new.node_id != old.node_id || new.addresses != old.addresses) {
            add(&mut found, "a task keeps its node and addresses for life", name.clone());
        }
        if (&new.service_id, new.slot, new.spec_version) != (&old.service_id, old.slot, old.spec_version) {
            add(&mut found, "a task keeps its slot and spec for life", name);
        }
    }
    for new in after.services() {
        let Some(old) = before.service(&new.id) else { continue };
        if new.spec_version < old.spec_version || (old.removing && !new.removing) {
            add(&mut found, "a service only moves forward", new.spec.name.clone());
        }
    }
    found
}

fn add(found: &mut Vec<Violation>, rule: &'static str, detail: String) {
    found.push(Violation { rule, detail });
}

fn tasks(state: &State, found: &mut Vec<Violation>) {
    let mut addresses = BTreeMap::new();
    for guest in state.guests() {
        for given in &guest.addresses {
            let name = format!("container {}", guest.name);
            address(state, &mut addresses, found, (&name, &guest.node_id, given));
        }
    }
    for task in state.tasks() {
        let name = task.name();
        let placed = task.node_id.is_some();
        let on_its_way = (TaskState::Assigned..=TaskState::Failed).contains(&task.status.state);
        if on_its_way && !placed {
            add(found, "from ASSIGNED on a task has a node", format!("{name} is {:?}", task.status.state));
        }
        if placed && task.addresses.is_empty() {
            add(found, "a task gets its addresses with its node", name.clone());
        }
        if task.status.state.is_terminal() {
            continue;
        }
        for given in &task.addresses {
            if let Some(node_id) = &task.node_id {
                address(state, &mut addresses, found, (&name, node_id, given));
            }
        }
    }
}

/// Given once, from inside the pool, out of a block of its network and node.
fn address(
    state: &State,
    addresses: &mut BTreeMap<Ipv4Addr, String>,
    found: &mut Vec<Violation>,
    (name, node_id, given): (&str, &NodeId, &TaskAddress),
) {
    if let Some(other) = addresses.insert(given.address, name.to_owned()) {
        add(found, "no address is given twice", format!("{} to {other} and {name}", given.address));
    }
    let pools = pools_of(state, &given.network_id);
    if pools.iter().any(|pool| is_edge(*pool, given.address))
        || (!pools.is_empty() && !pools.iter().any(|pool| pool.contains(&given.address)))
    {
        add(found, "addresses come from inside the pool", format!("{name} has {}", given.address));
    }
    if is_gone(state, node_id) {
        return;
    }
    let leased = state.network(&given.network_id).is_none_or(|network| {
        let own = |lease: &&BlockLease| lease.node_id == *node_id;
        network.blocks.iter().filter(own).any(|lease| lease.block.contains(&given.address))
    });
    if !leased {
        let detail = format!("{name} has {}", given.address);
        add(found, "an address stands in a block of its network and node", detail);
    }
}

fn slots(state: &State, found: &mut Vec<Violation>) {
    let mut holders = BTreeSet::new();
    for task in state.tasks().filter(|task| task.desired_state <= DesiredState::Running) {
        if !holders.insert((task.service_id.clone(), task.slot)) {
            add(found, "one task at most is meant to run in a slot", task.name());
        }
    }
}

fn services(state: &State, found: &mut Vec<Violation>) {
    let mut names = BTreeSet::new();
    let mut ports = BTreeMap::new();
    let mut vips = BTreeMap::new();
    let pool = state.cluster().map(|cluster| cluster.vip_pool);
    for service in state.services() {
        let name = &service.spec.name;
        if !names.insert(name.clone()) {
            add(found, "no name is given twice", name.clone());
        }
        for port in &service.ports {
            if port.published == 0 {
                add(found, "published ports are given", format!("{name} has port 0"));
            }
            let claim = port.claim();
            if let Some(other) = claim.holders(&ports).next() {
                add(found, "no port is given twice", format!("{claim} to {other} and {name}"));
            }
            ports.insert(claim, name.clone());
        }
        for vip in &service.vips {
            if let Some(other) = vips.insert(vip.address, name.clone()) {
                add(
                    found,
                    "no virtual address is given twice",
                    format!("{} to {other} and {name}", vip.address),
                );
            }
            if pool.is_some_and(|pool| !pool.contains(&vip.address) || is_edge(pool, vip.address)) {
                add(
                    found,
                    "virtual addresses come from inside the pool",
                    format!("{name} has {}", vip.address),
                );
            }
        }
    }
}

/// Where the addresses of a network come from; empty where there is neither a network nor a cluster.
fn pools_of(state: &State, network_id: &NetworkId) -> Vec<Ipv4Net> {
    let Some(network) = state.network(network_id) else { return Vec::new() };
    if !network.spec.subnets.is_empty() {
        return network.spec.subnets.clone();
    }
    state.cluster().map(|cluster| cluster.container_pool).into_iter().collect()
}

fn blocks(state: &State, found: &mut Vec<Violation>) {
    let mut leased = BTreeMap::new();
    for network in state.networks() {
        for lease in &network.blocks {
            let name = &network.spec.name;
            let overlaps = |other: &Ipv4Net| other.contains(&lease.block) || lease.block.contains(other);
            if let Some(other) = leased.keys().find(|other| *other != &lease.block && overlaps(other)) {
                add(found, "leased blocks don't overlap", format!("{} and {other}", lease.block));
            }
            if let Some(other) = leased.insert(lease.block, name.clone()) {
                add(found, "no block is leased twice", format!("{} in {other} and {name}", lease.block));
            }
            let pools = pools_of(state, &network.id);
            if !pools.is_empty() && !pools.iter().any(|pool| pool.contains(&lease.block)) {
                add(found, "blocks come from the pool", format!("{} in {name}", lease.block));
            }
        }
    }
}

/// The scheduler may not promise more than a node said it has; a node that shrank is not its fault, so
/// this looks at nodes whose description never changes, as in tests.
fn reservations(state: &State, found: &mut Vec<Violation>) {
    for node in state.nodes() {
        let live = state.tasks_on_node(&node.id).filter(|task| !task.status.state.is_terminal());
        let mut memory_bytes = 0_u64;
        let mut nano_cpus = 0_u64;
        for task in live {
            memory_bytes = memory_bytes.saturating_add(task.container.reservations.memory_bytes);
            nano_cpus = nano_cpus.saturating_add(task.container.reservations.nano_cpus);
        }
        let machine = &node.description;
        if memory_bytes > machine.memory_bytes || nano_cpus > machine.nano_cpus {
            let detail = format!("{} promises {memory_bytes} bytes, {nano_cpus} nano cpus", machine.hostname);
            add(found, "no node promises more than it has", detail);
        }
    }
}
