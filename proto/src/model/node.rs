//! A node: a machine of the cluster, as asked for and as seen.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{ClusterId, Meta, NodeId, PortSpec, Protocol};

/// The label of a node that says how many new connections its replicas get beside those of other nodes.
pub const WEIGHT_LABEL: &str = "rorqual.weight";

/// What a node without it has.
pub const DEFAULT_WEIGHT: u32 = 100;

/// No node has more than ten times what is usual.
pub const MAX_WEIGHT: u32 = 1000;

/// The value of a [`WEIGHT_LABEL`], where it is one.
pub fn parse_weight(text: &str) -> Option<u32> {
    text.parse().ok().filter(|weight| (1..=MAX_WEIGHT).contains(weight))
}

/// What a node does. Every node runs the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Runs containers.
    Worker,
    /// Also keeps the cluster's state.
    Controller,
}

/// Whether a node gets tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// It gets tasks.
    Active,
    /// It keeps its tasks and gets no new ones.
    Pause,
    /// Its tasks go elsewhere.
    Drain,
}

/// The desired side of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// What it does.
    pub role: Role,
    /// Whether it gets tasks.
    pub availability: Availability,
    /// Labels set by the operator.
    pub labels: BTreeMap<String, String>,
}

/// What the node's agent says about its machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeDescription {
    /// Its host name.
    pub hostname: String,
    /// Billionths of a core.
    pub nano_cpus: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// `amd64`, `arm64`, as images name it.
    pub arch: String,
    /// `linux`.
    pub os: String,
    /// Version of `rorquald`.
    pub engine_version: String,
    /// `v1`, `v2` or `hybrid`.
    pub cgroup_version: String,
    /// Labels from the daemon's configuration.
    pub labels: BTreeMap<String, String>,
    /// Published ports of services that lead nowhere on this node.
    pub held_ports: Vec<HeldPort>,
    /// Ranges that the node reaches by its own routes.
    pub routes: Vec<ipnet::IpNet>,
    /// The addresses that others reach it at.
    pub addresses: Vec<Ipv4Addr>,
    /// The same for IPv6, with the one that its fabric has given it, where it has IPv6.
    pub ipv6_addresses: Vec<Ipv6Addr>,
    /// How it encrypts what goes to other nodes.
    pub encryption: NodeEncryption,
}

/// How a node encrypts what goes to other nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeEncryption {
    /// Its Curve25519 key; empty: it has told none yet.
    pub public_key: Vec<u8>,
    /// `kernel`, `userspace`; empty: it does not.
    pub kind: String,
    /// Why nothing gets to other nodes though it should be encrypted.
    pub problem: String,
}

/// A published port that something else has on a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldPort {
    /// The published port.
    pub port: u16,
    /// Its transport.
    pub protocol: Protocol,
    /// Who has it, for people: `process 77 (python3)`.
    pub holder: String,
    /// The one address on which it was to be published; absent: all.
    pub address: Option<IpAddr>,
    /// Nobody has it: the node's kernel lacks the protocol.
    pub lacking: bool,
}

/// What the leader sees of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeState {
    /// Joined and not heard of yet.
    Unknown,
    /// Its session is alive.
    Ready,
    /// Silent for a moment: it gets no new tasks, and nothing of it is replaced.
    Suspect,
    /// Silent for so long that its tasks are replaced.
    Down,
    /// It left the cluster.
    Left,
}

/// Observed side of a node, written by the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// How it is.
    pub state: NodeState,
    /// Why, in words.
    pub message: String,
    /// Since when, milliseconds since the Unix epoch.
    pub since_ms: i64,
}

/// A node as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its id, the same as in its certificate.
    pub id: NodeId,
    /// Version and times.
    pub meta: Meta,
    /// What the operator asked for.
    pub spec: NodeSpec,
    /// What its agent told.
    pub description: NodeDescription,
    /// What the leader sees.
    pub status: NodeStatus,
    /// `host:port` of its TLS port.
    pub address: String,
    /// Its Raft member id where it is a controller.
    pub raft_id: Option<u64>,
}

impl Node {
    /// How many new connections its replicas get beside those of other nodes: the operator's label goes before the
    /// daemon's own, and one that can't be read counts for nothing.
    pub fn weight(&self) -> u32 {
        let labels = [&self.spec.labels, &self.description.labels];
        let given = labels.iter().find_map(|labels| labels.get(WEIGHT_LABEL));
        given.and_then(|text| parse_weight(text)).unwrap_or(DEFAULT_WEIGHT)
    }

    /// The address at which the other nodes reach it.
    pub fn underlay(&self) -> Option<Ipv4Addr> {
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        host.parse().ok()
    }

    /// Whether its containers have IPv6 addresses beside the others.
    pub fn has_ipv6(&self, cluster: &ClusterId) -> bool {
        let twin = self.underlay().map(|underlay| cluster.ipv6_of(underlay));
        twin.is_some_and(|twin| self.description.ipv6_addresses.contains(&twin))
    }

    /// Whether it has said that its kernel lacks a protocol. It says so once a service publishes a port of it.
    pub fn lacks(&self, protocol: Protocol) -> bool {
        self.description.held_ports.iter().any(|held| held.lacking && held.protocol == protocol)
    }

    /// What it has said of a published port that leads nowhere on it.
    pub fn held(&self, port: &PortSpec) -> Option<&HeldPort> {
        let claim = port.claim();
        self.description.held_ports.iter().find(|held| {
            held.port == claim.published && held.protocol == claim.protocol && held.address == claim.address
        })
    }

    /// Whether replicas of a service would be of no use on it: it has said that something else has a port that leads to its
    /// own replicas alone.
    pub fn is_barred(&self, port: &PortSpec) -> bool {
        port.local && self.held(port).is_some_and(|held| !held.lacking)
    }

    /// Whether it has said to have an address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                self.underlay() == Some(address) || self.description.addresses.contains(&address)
            }
            IpAddr::V6(address) => self.description.ipv6_addresses.contains(&address),
        }
    }
}
