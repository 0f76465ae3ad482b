//! Why a node can't take a task, in words that a user understands.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rorqual_proto::model::{
    Availability, Constraint, ConstraintKey, NetworkId, Node, NodeId, NodeState, PortClaim, PortSpec,
    Protocol, Resources, Service, ServiceId, Task,
};

use crate::State;
use crate::allocate::network_names;
use crate::draft::Draft;

/// What a task of a service asks of a node.
pub(crate) struct Needs {
    service_id: ServiceId,
    constraints: Vec<(String, Option<Constraint>)>,
    max_replicas_per_node: u32,
    reservations: Resources,
    /// Of its published ports.
    protocols: BTreeSet<Protocol>,
    /// Those that lead to a node's own replicas alone.
    host_ports: Vec<PortSpec>,
    pub(crate) networks: Vec<NetworkId>,
    /// A network that is named and does not exist: then no node will do.
    pub(crate) missing_network: Option<String>,
}

impl Needs {
    pub(crate) fn new(state: &State, service: &Service) -> Self {
        let placement = &service.spec.placement;
        let names = network_names(&service.spec);
        let missing = names.iter().find(|name| state.network_by_name(name).is_none());
        Self {
            service_id: service.id.clone(),
            constraints: placement
                .constraints
                .iter()
                .map(|text| (text.clone(), text.parse::<Constraint>().ok()))
                .collect(),
            max_replicas_per_node: placement.max_replicas_per_node,
            reservations: service.spec.container.reservations,
            protocols: service.ports.iter().map(|port| port.protocol).collect(),
            host_ports: service.ports.iter().filter(|port| port.local).cloned().collect(),
            missing_network: missing.map(|name| (*name).to_owned()),
            networks: names
                .into_iter()
                .filter_map(|name| state.network_by_name(name))
                .map(|network| network.id.clone())
                .collect(),
        }
    }
}

/// Why a node can't take a task. The order is that of equally frequent reasons in an explanation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refusal {
    Memory(u64),
    Cpus(u64),
    Address(String),
    Constraint(String),
    Protocol(Protocol),
    Port(PortClaim),
    Replicas(u32),
    Drained,
    Paused,
    Down,
    Silent,
    Unknown,
    Left,
}

/// The first reason for which a node can't take a task; `leaving` is a task that makes room on it. Whether
/// there are addresses shows when they are given.
pub(crate) fn refuse(
    draft: &Draft<'_>,
    needs: &Needs,
    node: &Node,
    leaving: Option<&Task>,
) -> Option<Refusal> {
    match node.status.state {
        NodeState::Ready => {}
        NodeState::Suspect => return Some(Refusal::Silent),
        NodeState::Unknown => return Some(Refusal::Unknown),
        NodeState::Down => return Some(Refusal::Down),
        NodeState::Left => return Some(Refusal::Left),
    }
    match node.spec.availability {
        Availability::Active => {}
        Availability::Pause => return Some(Refusal::Paused),
        Availability::Drain => return Some(Refusal::Drained),
    }
    for (text, constraint) in &needs.constraints {
        if !constraint.as_ref().is_some_and(|constraint| holds(constraint, node)) {
            return Some(Refusal::Constraint(text.clone()));
        }
    }
    if let Some(protocol) = needs.protocols.iter().find(|protocol| node.lacks(**protocol)) {
        return Some(Refusal::Protocol(*protocol));
    }
    if let Some(port) = needs.host_ports.iter().find(|port| node.is_barred(port)) {
        return Some(Refusal::Port(port.claim()));
    }
    let leaves = u32::from(leaving.is_some());
    let replicas = draft.replicas(&needs.service_id, &node.id).saturating_sub(leaves);
    if needs.max_replicas_per_node != 0 && replicas >= needs.max_replicas_per_node {
        return Some(Refusal::Replicas(needs.max_replicas_per_node));
    }
    let mut used = draft.usage(&node.id);
    if let Some(task) = leaving {
        used.take(task);
    }
    let lacks = |reserved: u64, used: u64, capacity: u64| {
        reserved > 0 && used.checked_add(reserved).is_none_or(|sum| sum > capacity)
    };
    let (reserved, machine) = (&needs.reservations, &node.description);
    if lacks(reserved.memory_bytes, used.memory_bytes, machine.memory_bytes) {
        return Some(Refusal::Memory(reserved.memory_bytes));
    }
    if lacks(reserved.nano_cpus, used.nano_cpus, machine.nano_cpus) {
        return Some(Refusal::Cpus(reserved.nano_cpus));
    }
    None
}

/// Whether a node satisfies a constraint. A label that it lacks has the value "".
pub(crate) fn holds(constraint: &Constraint, node: &Node) -> bool {
    let label = |labels: &BTreeMap<String, String>, name: &str| {
        labels.get(name).map_or("", String::as_str) == constraint.value
    };
    let same = match &constraint.key {
        ConstraintKey::NodeId => node.id.as_str() == constraint.value,
        ConstraintKey::Hostname => node.description.hostname == constraint.value,
        ConstraintKey::Role => constraint.role() == Some(node.spec.role),
        ConstraintKey::Os => node.description.os == constraint.value,
        ConstraintKey::Arch => node.description.arch == constraint.value,
        ConstraintKey::NodeLabel(name) => label(&node.spec.labels, name),
        ConstraintKey::EngineLabel(name) => label(&node.description.labels, name),
    };
    same == constraint.equal
}

impl Refusal {
    fn describe(&self, nodes: u32) -> String {
        let one = nodes == 1;
        let verb = |singular: &'static str, plural: &'static str| if one { singular } else { plural };
        match self {
            Self::Memory(bytes) => {
                format!("{} {} of free memory for the reservation", verb("lacks", "lack"), size(*bytes))
            }
            Self::Cpus(nano) => {
                format!("{} {} free cpus for the reservation", verb("lacks", "lack"), cpus(*nano))
            }
            Self::Address(networks) => format!(
                "{} no free address in network `{networks}` and no block is left in its pool",
                verb("has", "have")
            ),
            Self::Constraint(text) => format!("{} not satisfy {text}", verb("does", "do")),
            Self::Protocol(protocol) => {
                format!("{} a kernel without {protocol}, of which a port is published", verb("has", "have"))
            }
            Self::Port(claim) => format!(
                "{} port {claim} taken by something else (`rctl node inspect` says what has it)",
                verb("has", "have")
            ),
            Self::Replicas(1) => {
                format!("already {} a replica, and one per node is the bound", verb("runs", "run"))
            }
            Self::Replicas(most) => {
                format!("already {} {most} replicas, the bound per node", verb("runs", "run"))
            }
            Self::Drained => format!("{} drained", verb("is", "are")),
            Self::Paused => format!("{} paused", verb("is", "are")),
            Self::Down => format!("{} down", verb("is", "are")),
            Self::Silent => format!("{} silent for the moment", verb("is", "are")),
            Self::Unknown => format!("{} not reported yet", verb("has", "have")),
            Self::Left => format!("{} left the cluster", verb("has", "have")),
        }
    }
}

/// The refusals of all nodes: its text is the explanation of a task that has no node.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    by_node: BTreeMap<NodeId, Refusal>,
}

impl Refusals {
    pub(crate) fn add(&mut self, node_id: &NodeId, refusal: Refusal) {
        self.by_node.insert(node_id.clone(), refusal);
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts: BTreeMap<&Refusal, u32> = BTreeMap::new();
        for refusal in self.by_node.values() {
            *counts.entry(refusal).or_default() += 1;
        }
        if counts.is_empty() {
            return out.write_str("no suitable node: the cluster has no node");
        }
        let mut reasons: Vec<(&Refusal, u32)> = counts.into_iter().collect();
        reasons.sort_by_key(|(refusal, count)| (std::cmp::Reverse(*count), *refusal));
        let reasons = reasons.into_iter().map(|(refusal, count)| {
            format!("{count} {} {}", if count == 1 { "node" } else { "nodes" }, refusal.describe(count))
        });
        write!(out, "no suitable node: {}", reasons.collect::<Vec<_>>().join(", "))
    }
}

/// Bytes as people write them: the largest unit that loses at most a tenth.
fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (unit, name) in UNITS {
        if bytes >= unit {
            let tenths = (u128::from(bytes) * 10).div_ceil(u128::from(unit));
            let (whole, tenth) = (tenths / 10, tenths % 10);
            return if tenth == 0 { format!("{whole} {name}") } else { format!("{whole}.{tenth} {name}") };
        }
    }
    format!("{bytes} bytes")
}

/// Cores with up to three decimals.
fn cpus(nano: u64) -> String {
    let text = format!("{}.{:03}", nano / 1_000_000_000, nano % 1_000_000_000 / 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        assert_eq!(size(4 << 30), "4 GiB");
        assert_eq!(size(1536 << 20), "1.5 GiB");
        assert_eq!(size(100), "100 bytes");
        assert_eq!(cpus(2_000_000_000), "2");
        assert_eq!(cpus(250_000_000), "0.25");
    }

    #[test]
    fn explanation_counts_nodes_most_frequent_reason_first() {
        let mut refusals = Refusals::default();
        refusals.add(&NodeId::from_bits(1), Refusal::Drained);
        refusals.add(&NodeId::from_bits(2), Refusal::Memory(4 << 30));
        refusals.add(&NodeId::from_bits(3), Refusal::Memory(4 << 30));
        assert_eq!(
            refusals.to_string(),
            "no suitable node: 2 nodes lack 4 GiB of free memory for the reservation, 1 node is drained"
        );
    }
}
