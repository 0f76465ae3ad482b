//! Rules, keys and values of the parts that belong to items, with the words that `nft` has for them.
//!
//! They are types and not text because a change may reach the kernel on two ways: as text through `nft` (`script`)
//! or as netlink messages of our own (`native`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::model::Protocol;
use crate::netlink::link::Mac;

/// One field of a key or a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Field {
    Address(IpAddr),
    /// Only in sets with `flags interval`.
    Range(IpNet),
    Protocol(Protocol),
    Port(u16),
    Mac(Mac),
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Address(address) => address.fmt(f),
            Field::Range(range) => range.fmt(f),
            Field::Protocol(protocol) => protocol.fmt(f),
            Field::Port(port) => port.fmt(f),
            Field::Mac([a, b, c, d, e, g]) => {
                write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
            }
        }
    }
}

/// Fields that stand together, as `ipv4_addr . inet_service`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fields(pub(crate) Vec<Field>);

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, field) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(" . ")?;
            }
            field.fmt(f)?;
        }
        Ok(())
    }
}

/// Where a map leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// To a chain.
    Goto(String),
    /// To a chain and back.
    Jump(String),
    Fields(Fields),
    Mark(u32),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Goto(chain) => write!(f, "goto {chain}"),
            Value::Jump(chain) => write!(f, "jump {chain}"),
            Value::Fields(fields) => fields.fmt(f),
            Value::Mark(mark) => write!(f, "{mark:#010x}"),
        }
    }
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// One after the other's.
    Next,
    /// That of the address at the place that the client's address is hashed to.
    Client,
}

/// The same on all nodes, so that a client meets the same address whichever node it calls.
pub(crate) const SEED: u32 = 0x5271_7271;

/// A rule of an item's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A new connection of the addresses' family, which is one, goes to each in turn; never without an address. With
    /// a protocol and a port only that protocol's, and to that port.
    Balance { addresses: Vec<IpAddr>, by: Turn, port: Option<(Protocol, u16)> },
    /// A connection from the range goes on in the chain.
    Admit { from: IpNet, chain: String },
    /// TCP is refused.
    Reset,
    /// Everything is refused.
    Refuse,
    /// Traffic to an address of the set passes.
    Reach { set: String },
    /// The same for IPv6.
    Reach6 { set: String },
    /// Traffic to other addresses of the cluster is refused.
    Fence,
    /// The same for IPv6.
    Fence6,
    /// All traffic is refused.
    Shut,
    /// Traffic to what is not the cluster's passes.
    Leave,
    /// The same for IPv6.
    Leave6,
    /// Traffic to an address of the set gets this source address.
    Pose { set: String, address: Ipv4Addr },
    /// The same for IPv6.
    Pose6 { set: String, address: Ipv6Addr },
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::Balance { addresses, by, port } => {
                let family = if is_v6(addresses) { "ip6" } else { "ip" };
                if is_v6(addresses) {
                    f.write_str("meta nfproto ipv6 ")?;
                }
                if let Some((protocol, _)) = port {
                    write!(f, "meta l4proto {protocol} ")?;
                }
                write!(f, "dnat {family} to {}", choice(addresses, *by, family))?;
                port.map_or(Ok(()), |(_, port)| write!(f, " : {port}"))
            }
            Rule::Admit { from, chain } => {
                let family = if from.addr().is_ipv4() { "ip" } else { "ip6" };
                write!(f, "{family} saddr {from} goto {chain}")
            }
            Rule::Reset => f.write_str("meta l4proto tcp reject with tcp reset"),
            Rule::Refuse => f.write_str("reject"),
            Rule::Reach { set } => write!(f, "ip daddr @{set} accept"),
            Rule::Reach6 { set } => write!(f, "ip6 daddr @{set} accept"),
            Rule::Fence6 => f.write_str("ip6 daddr @pools6 goto barred"),
            Rule::Leave6 => f.write_str("ip6 daddr != @pools6 accept"),
            Rule::Pose6 { set, address } => write!(f, "ip6 daddr @{set} snat ip6 to {address}"),
            Rule::Fence => f.write_str("ip daddr @pools goto barred"),
            Rule::Shut => f.write_str("goto barred"),
            Rule::Leave => f.write_str("ip daddr != @pools accept"),
            Rule::Pose { set, address } => write!(f, "ip daddr @{set} snat ip to {address}"),
        }
    }
}

/// Whether a rule that balances among these is for IPv6.
pub(crate) fn is_v6(addresses: &[IpAddr]) -> bool {
    addresses.first().is_some_and(IpAddr::is_ipv6)
}

fn choice(addresses: &[IpAddr], by: Turn, family: &str) -> String {
    match addresses {
        [one] => one.to_string(),
        many => {
            let map = many.iter().enumerate().map(|(at, address)| format!("{at} : {address}"));
            let (count, map) = (many.len(), joined(map));
            match by {
                Turn::Next => format!("numgen inc mod {count} map {{ {map} }}"),
                Turn::Client => format!("jhash {family} saddr mod {count} seed {SEED:#x} map {{ {map} }}"),
            }
        }
    }
}

/// Items with a comma between them.
pub(crate) fn joined<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}
