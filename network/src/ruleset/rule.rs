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
    /// In maps of places.
    Place(u32),
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Address(address) => address.fmt(f),
            Field::Range(range) => range.fmt(f),
            Field::Protocol(protocol) => protocol.fmt(f),
            Field::Port(port) => port.fmt(f),
            Field::Place(place) => place.fmt(f),
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

/// Where a rule that balances leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    One(IpAddr),
    /// To the addresses at the places 0, 1, … of a map. `v6`: which are IPv6 addresses, all of them.
    Places {
        map: String,
        count: u32,
        by: Turn,
        v6: bool,
    },
}

impl Target {
    pub(crate) fn is_v6(&self) -> bool {
        match self {
            Target::One(address) => address.is_ipv6(),
            Target::Places { v6, .. } => *v6,
        }
    }
}

/// What a set or map of an item is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ranges of addresses.
    Ranges,
    Ranges6,
    /// Which address is at which place.
    Places,
    Places6,
}

impl Kind {
    /// The word for it and the declaration.
    pub(crate) fn words(self) -> (&'static str, &'static str) {
        match self {
            Kind::Ranges => ("set", "type ipv4_addr; flags interval;"),
            Kind::Ranges6 => ("set", "type ipv6_addr; flags interval;"),
            Kind::Places => ("map", "typeof numgen inc mod 2 : ip daddr;"),
            Kind::Places6 => ("map", "typeof numgen inc mod 2 : ip6 daddr;"),
        }
    }
}

/// A rule of an item's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A new connection of the target's family goes there. With a protocol and a port only that protocol's, and to
    /// that port.
    Balance { to: Target, port: Option<(Protocol, u16)> },
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
            Rule::Balance { to, port } => {
                let family = if to.is_v6() { "ip6" } else { "ip" };
                if to.is_v6() {
                    f.write_str("meta nfproto ipv6 ")?;
                }
                if let Some((protocol, _)) = port {
                    write!(f, "meta l4proto {protocol} ")?;
                }
                write!(f, "dnat {family} to ")?;
                match to {
                    Target::One(address) => address.fmt(f)?,
                    Target::Places { map, count, by: Turn::Next, .. } => {
                        write!(f, "numgen inc mod {count} map @{map}")?;
                    }
                    Target::Places { map, count, by: Turn::Client, .. } => {
                        write!(f, "jhash {family} saddr mod {count} seed {SEED:#x} map @{map}")?;
                    }
                }
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

/// Items with a comma between them.
pub(crate) fn joined<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}
