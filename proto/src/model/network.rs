//! A network: containers in it reach each other; blocks of the pool are leased to nodes as they fill.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::{GuestId, Meta, NetworkId, NodeId, TaskAddress};

/// The network that every service joins unless it names others.
pub const DEFAULT_NETWORK: &str = "default";

/// Names that mean something else wherever a network is named: no network has them.
pub const RESERVED_NAMES: [&str; 4] = ["host", "none", "local", "bridge"];

/// The option with which a network's containers reach link-local addresses, as clouds serve metadata there.
pub const METADATA_OPTION: &str = "metadata";

/// The option with which names in a network mean IPv6 addresses as well (`network create --ipv6`).
pub const IPV6_OPTION: &str = "ipv6";

/// The desired side of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkSpec {
    /// A DNS label.
    pub name: String,
    /// Labels of the network.
    pub labels: BTreeMap<String, String>,
    /// Its own ranges; empty: its blocks are leased out of the cluster's pool.
    pub subnets: Vec<Ipv4Net>,
    /// The IPv6 ranges beside these, one for each; empty: they are parts of the cluster's.
    pub subnets6: Vec<Ipv6Net>,
    /// Its containers reach nothing outside of it.
    pub internal: bool,
    /// [`METADATA_OPTION`] and [`IPV6_OPTION`].
    pub options: BTreeMap<String, String>,
}

impl NetworkSpec {
    /// Its names mean IPv6 addresses as well.
    pub fn has_ipv6_names(&self) -> bool {
        self.options.get(IPV6_OPTION).map_or(!self.subnets6.is_empty(), |value| value == "on")
    }

    /// The IPv6 address beside one of its own subnets, where it has IPv6 ranges of its own: the one at the same place.
    pub fn own_ipv6_of(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let (four, six) = self.pairs().find(|(four, _)| four.contains(&address))?;
        let place = address.to_bits() - four.network().to_bits();
        Some(Ipv6Addr::from_bits(six.network().to_bits() | u128::from(place)))
    }

    /// The address that one of its own IPv6 ranges stands beside.
    pub fn own_ipv4_of(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let (four, six) = self.pairs().find(|(_, six)| six.contains(&address))?;
        let place = u32::try_from(address.to_bits() - six.network().to_bits()).ok()?;
        let beside = Ipv4Addr::from_bits(four.network().to_bits().checked_add(place)?);
        Some(beside).filter(|beside| four.contains(beside))
    }

    fn pairs(&self) -> impl Iterator<Item = (&Ipv4Net, &Ipv6Net)> {
        self.subnets.iter().zip(&self.subnets6)
    }

    /// Its containers reach link-local addresses.
    pub fn allows_metadata(&self) -> bool {
        self.options.get(METADATA_OPTION).is_some_and(|value| value == "allow")
    }
}

/// A network that containers join, and what they are called there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkJoin {
    /// Its name.
    pub network: String,
    /// Names in it besides the own one, each a DNS label.
    pub aliases: Vec<String>,
    /// The address that a container which is no task asks for, of the network's own subnets.
    pub address: Option<Ipv4Addr>,
    /// The same by the address beside it, of the network's own IPv6 ranges.
    pub address6: Option<Ipv6Addr>,
    /// Names in it that stand for all replicas of a service that run, healthy or not, each a DNS label.
    pub unready_aliases: Vec<String>,
}

impl NetworkJoin {
    /// A network without further names.
    pub fn plain(network: &str) -> Self {
        Self { network: network.to_owned(), ..Self::default() }
    }
}

/// A block of a pool, leased to one node for one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockLease {
    /// A part of the cluster's pool, or of one of the network's own subnets.
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

/// A container that is no task and is in networks of the cluster. Its node's agent asks for it, and gives it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// The container's id.
    pub id: GuestId,
    /// Version and times.
    pub meta: Meta,
    /// The container's name: what it is called in each of its networks.
    pub name: String,
    /// Where the container is.
    pub node_id: NodeId,
    /// The networks that it is in.
    pub joins: Vec<NetworkJoin>,
    /// One for each of them, in their order, from blocks leased to the node. Written by the allocator.
    pub addresses: Vec<TaskAddress>,
    /// It runs: its names have addresses.
    pub up: bool,
}
