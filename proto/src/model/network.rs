//! A network: containers in it reach each other; blocks of the pool are leased to nodes as they fill.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;

use super::{Meta, NetworkId, NodeId};

/// The network that every service joins unless it names others.
pub const DEFAULT_NETWORK: &str = "default";

/// The desired side of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    /// A DNS label.
    pub name: String,
    /// Labels of the network.
    pub labels: BTreeMap<String, String>,
}

/// A block of the container pool, leased to one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockLease {
    /// A /26 of the pool.
    pub block: Ipv4Net,
    /// Who gives its addresses to containers.
    pub node_id: NodeId,
}

/// A network as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// Version and times.
    pub meta: Meta,
    /// What was asked for.
    pub spec: NetworkSpec,
    /// Written by the allocator, ordered by block.
    pub blocks: Vec<BlockLease>,
}
