//! What the engine knows of the node's network, for those who look for what is wrong with it.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The node's network as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// How every other node is reached.
    pub ways: Vec<Way>,
    /// What the fabric routes, with what it is in words.
    pub ranges: Vec<(String, IpNet)>,
    /// What is not as it should be just now.
    pub wrong: Vec<String>,
    /// What others change again and again, and how often it was put back lately.
    pub disputed: Vec<(String, u32)>,
    /// Why nothing gets to other nodes though it should be encrypted.
    pub encryption_problem: String,
    /// Why connections to what is gone are still in the kernel's table.
    pub forget_problem: String,
    /// The nftables table of this node.
    pub table: String,
}

/// How another node is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The node.
    pub node: String,
    /// This node's address, and the other's.
    pub own: Ipv4Addr,
    /// Where the other is.
    pub peer: Ipv4Addr,
    /// Where it is by IPv6, if containers have that at both ends.
    pub peer6: Option<Ipv6Addr>,
    /// The interface that leads there, and the largest packet that it takes.
    pub interface: String,
    /// Bytes.
    pub mtu: u32,
    /// Through the tunnel, which takes this many bytes of a packet; `None`: they are on one segment.
    pub tunnel_mtu: Option<u32>,
    /// What goes through the tunnel is encrypted.
    pub encrypted: bool,
    /// Packets with this mark go the way of containers' packets.
    pub mark: u32,
}
