//! [`model::Node`] and the write of its observed side.

use super::{InvalidField, id, optional, required};
use crate::{model, wire};

impl From<&model::NodeSpec> for wire::NodeSpec {
    fn from(spec: &model::NodeSpec) -> Self {
        Self {
            role: wire::Role::from(spec.role).into(),
            availability: wire::Availability::from(spec.availability).into(),
            labels: spec.labels.clone(),
        }
    }
}

impl TryFrom<wire::NodeSpec> for model::NodeSpec {
    type Error = InvalidField;

    fn try_from(spec: wire::NodeSpec) -> Result<Self, InvalidField> {
        Ok(Self {
            role: super::role(spec.role, "role")?.ok_or_else(|| InvalidField::missing("role"))?,
            availability: super::availability(spec.availability, "availability")?
                .unwrap_or(model::Availability::Active),
            labels: spec.labels,
        })
    }
}

impl From<&model::NodeDescription> for wire::NodeDescription {
    fn from(description: &model::NodeDescription) -> Self {
        Self {
            hostname: description.hostname.clone(),
            nano_cpus: description.nano_cpus,
            memory_bytes: description.memory_bytes,
            kernel: description.kernel.clone(),
            arch: description.arch.clone(),
            os: description.os.clone(),
            engine_version: description.engine_version.clone(),
            cgroup_version: description.cgroup_version.clone(),
            labels: description.labels.clone(),
            held_ports: description.held_ports.iter().map(Into::into).collect(),
            routes: description.routes.iter().map(ToString::to_string).collect(),
            addresses: description.addresses.iter().map(ToString::to_string).collect(),
            encryption: Some((&description.encryption).into()),
            ipv6_addresses: description.ipv6_addresses.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<wire::NodeDescription> for model::NodeDescription {
    fn from(description: wire::NodeDescription) -> Self {
        Self {
            hostname: description.hostname,
            nano_cpus: description.nano_cpus,
            memory_bytes: description.memory_bytes,
            kernel: description.kernel,
            arch: description.arch,
            os: description.os,
            engine_version: description.engine_version,
            cgroup_version: description.cgroup_version,
            labels: description.labels,
            held_ports: description.held_ports.into_iter().filter_map(held_port).collect(),
            // As with held ports: a range that can't be read is one that is not checked.
            routes: description.routes.iter().filter_map(|net| net.parse().ok()).collect(),
            addresses: description.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
            encryption: description.encryption.map(Into::into).unwrap_or_default(),
            ipv6_addresses: description.ipv6_addresses.iter().filter_map(|one| one.parse().ok()).collect(),
        }
    }
}

impl From<&model::NodeEncryption> for wire::NodeEncryption {
    fn from(encryption: &model::NodeEncryption) -> Self {
        Self {
            public_key: encryption.public_key.clone(),
            kind: encryption.kind.clone(),
            problem: encryption.problem.clone(),
        }
    }
}

impl From<wire::NodeEncryption> for model::NodeEncryption {
    fn from(encryption: wire::NodeEncryption) -> Self {
        Self { public_key: encryption.public_key, kind: encryption.kind, problem: encryption.problem }
    }
}

impl From<&model::HeldPort> for wire::HeldPort {
    fn from(held: &model::HeldPort) -> Self {
        Self {
            port: held.port.into(),
            protocol: wire::Protocol::from(held.protocol).into(),
            holder: held.holder.clone(),
            address: held.address.map(|address| address.to_string()).unwrap_or_default(),
            lacking: held.lacking,
        }
    }
}

/// It only explains: one that can't be read is left out.
fn held_port(held: wire::HeldPort) -> Option<model::HeldPort> {
    Some(model::HeldPort {
        port: u16::try_from(held.port).ok()?,
        protocol: super::protocol(held.protocol, "protocol").ok()??,
        holder: held.holder,
        address: if held.address.is_empty() { None } else { Some(held.address.parse().ok()?) },
        lacking: held.lacking,
    })
}

impl From<&model::NodeStatus> for wire::NodeStatus {
    fn from(status: &model::NodeStatus) -> Self {
        Self {
            state: wire::NodeState::from(status.state).into(),
            message: status.message.clone(),
            since_ms: status.since_ms,
        }
    }
}

impl TryFrom<wire::NodeStatus> for model::NodeStatus {
    type Error = InvalidField;

    fn try_from(status: wire::NodeStatus) -> Result<Self, InvalidField> {
        Ok(Self {
            state: super::node_state(status.state, "state")?.ok_or_else(|| InvalidField::missing("state"))?,
            message: status.message,
            since_ms: status.since_ms,
        })
    }
}

impl From<&model::Node> for wire::Node {
    fn from(node: &model::Node) -> Self {
        Self {
            id: node.id.to_string(),
            meta: Some((&node.meta).into()),
            spec: Some((&node.spec).into()),
            description: Some((&node.description).into()),
            status: Some((&node.status).into()),
            address: node.address.clone(),
            raft_id: node.raft_id.unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::Node> for model::Node {
    type Error = InvalidField;

    fn try_from(node: wire::Node) -> Result<Self, InvalidField> {
        Ok(Self {
            id: id(&node.id, "id")?,
            meta: node.meta.map(Into::into).unwrap_or_default(),
            spec: required(node.spec, "spec")?,
            description: node.description.map(Into::into).unwrap_or_default(),
            status: required(node.status, "status")?,
            address: node.address,
            raft_id: (node.raft_id != 0).then_some(node.raft_id),
        })
    }
}

/// A write of a node's observed side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatusChange {
    /// Whose.
    pub node_id: model::NodeId,
    /// How it is now; `None` leaves it unchanged.
    pub status: Option<model::NodeStatus>,
    /// What its agent told; `None` leaves it unchanged.
    pub description: Option<model::NodeDescription>,
    /// `host:port`; `None` leaves it unchanged.
    pub address: Option<String>,
}

/// The parts of a write of a node's observed side.
pub fn node_status_update(update: wire::NodeStatusUpdate) -> Result<NodeStatusChange, InvalidField> {
    Ok(NodeStatusChange {
        node_id: id(&update.node_id, "node_id")?,
        status: update
            .status
            .map(model::NodeStatus::try_from)
            .transpose()
            .map_err(|error| error.within("status"))?,
        description: update.description.map(Into::into),
        address: optional(update.address),
    })
}
