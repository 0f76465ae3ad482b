//! A service: what the user wants to run, how often, and how it is reached.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{ContainerSpec, Meta, NetworkId, NetworkJoin, Placement, RouteSpec, ServiceId, UpdateOrder};

/// What the user asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// A DNS label: 1 to 63 of a–z, 0–9 and `-`, with a letter or digit at both ends.
    pub name: String,
    /// Labels of the service.
    pub labels: BTreeMap<String, String>,
    /// What each task runs.
    pub container: ContainerSpec,
    /// How many tasks there are.
    pub mode: ServiceMode,
    /// Ports on every node.
    pub ports: Vec<PortSpec>,
    /// Networks that its tasks join; empty means `default`.
    pub networks: Vec<NetworkJoin>,
    /// What happens when a container ends.
    pub restart: RestartPolicy,
    /// Where tasks may run.
    pub placement: Placement,
    /// Raised to replace every task although nothing else changed.
    pub force_update: u64,
    /// Whether a replica is stopped before its replacement starts; absent: as [`ServiceSpec::starts_first`] says.
    pub update_order: Option<UpdateOrder>,
    /// No virtual address: the name stands for the addresses of all replicas.
    pub dnsrr: bool,
    /// Each client (an address) has a replica of its own for as long as that serves.
    pub client_affinity: bool,
    /// Ways to it through the HTTP edge.
    pub routes: Vec<RouteSpec>,
}

impl ServiceSpec {
    /// The containers' port behind a route: its own, else the only one of TCP that is published, else 80. None where
    /// several are published and the route says nothing.
    pub fn port_of(&self, route: &RouteSpec) -> Option<u16> {
        if route.port != 0 {
            return Some(route.port);
        }
        let mut published: Vec<u16> =
            self.ports.iter().filter(|port| port.protocol == Protocol::Tcp).map(|port| port.target).collect();
        published.dedup();
        match published.as_slice() {
            [] => Some(80),
            [port] => Some(*port),
            _ => None,
        }
    }
}

/// How many tasks a service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceMode {
    /// One task in each of so many slots.
    Replicated {
        /// The number of slots.
        replicas: u32,
    },
}

/// The transport of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// One port of every node that leads to the service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortSpec {
    /// On every node; 0 lets the allocator choose one of 30000–32767.
    pub published: u16,
    /// Inside the container.
    pub target: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The one address of the nodes on which it is published; a node that has not got it does not publish the port.
    pub address: Option<IpAddr>,
    /// Clients that may use it; empty: all. Of the family that none is of, nobody may.
    pub allow: Vec<IpNet>,
    /// Each node leads to its own replicas alone; one without any does not publish it.
    pub local: bool,
}

impl PortSpec {
    /// What of it nothing else may have.
    pub fn claim(&self) -> PortClaim {
        PortClaim { protocol: self.protocol, published: self.published, address: self.address }
    }

    /// Meets another on a node: the same port and transport, on an address of both.
    pub fn meets(&self, other: &Self) -> bool {
        self.claim().meets(&other.claim())
    }
}

/// A port of the nodes, on one of their addresses or on all. Of one port, that on all comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortClaim {
    /// Its transport.
    pub protocol: Protocol,
    /// Its number.
    pub published: u16,
    /// The one address; absent: all.
    pub address: Option<IpAddr>,
}

impl PortClaim {
    /// The same port, on an address of both.
    pub fn meets(&self, other: &Self) -> bool {
        let apart = self.address.is_some() && other.address.is_some() && self.address != other.address;
        self.published == other.published && self.protocol == other.protocol && !apart
    }

    /// Who of these has a part of it.
    pub fn holders<T>(self, claims: &BTreeMap<Self, T>) -> impl Iterator<Item = &T> {
        let one = |address| Self { address, ..self };
        let same_port = claims.range(one(None)..=one(Some(Ipv6Addr::from_bits(u128::MAX).into())));
        same_port.filter(move |(claim, _)| claim.meets(&self)).map(|(_, holder)| holder)
    }
}

impl std::fmt::Display for PortClaim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.address {
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            None => {}
        }
        write!(f, "{}/{}", self.published, self.protocol)
    }
}

/// Which ends of a container are followed by a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartCondition {
    /// Never.
    None,
    /// When it failed.
    OnFailure,
    /// Always.
    Any,
}

/// How the agent restarts a container in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Which ends count.
    pub condition: RestartCondition,
    /// The first wait; it doubles with each failure in a row. The first restart after a healthy run is
    /// immediate.
    pub delay_ms: u64,
    /// The longest wait.
    pub max_delay_ms: u64,
    /// 0 means without end.
    pub max_attempts: u32,
    /// Attempts older than this do not count; 0 means that all count.
    pub window_ms: u64,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            condition: RestartCondition::Any,
            delay_ms: 100,
            max_delay_ms: 60_000,
            max_attempts: 0,
            window_ms: 0,
        }
    }
}

/// A virtual address of a service in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vip {
    /// The network.
    pub network_id: NetworkId,
    /// The address, from the cluster's VIP pool.
    pub address: Ipv4Addr,
}

/// A service as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its id.
    pub id: ServiceId,
    /// Version and times.
    pub meta: Meta,
    /// What the user asked for.
    pub spec: ServiceSpec,
    /// Counts the changes of what a task runs; a task says which one it runs.
    pub spec_version: u64,
    /// Written by the allocator.
    pub vips: Vec<Vip>,
    /// Written by the allocator: the ports as given, none of them 0.
    pub ports: Vec<PortSpec>,
    /// The service is being taken away: its tasks go first.
    pub removing: bool,
    /// Written by the allocator: why it can't be served as asked.
    pub problem: Option<String>,
    /// What the last update replaced: what a rollback brings back.
    pub previous_spec: Option<Box<ServiceSpec>>,
    /// What registries want to see before they give the images of this and the previous spec; sealed, so that only
    /// a controller can read it. Empty for nothing.
    pub sealed_auths: Vec<u8>,
}
