//! What the fabric keeps in the kernel outside of nftables, as values: what is wanted and what is there can be
//! compared, and each knows the request that sets it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use crate::error::Error;
use crate::netlink::link::{self, Conf, Link, Mac};
use crate::netlink::route::{self, Route, Rule};
use crate::netlink::{Netlink, Request};

/// One thing in the kernel. Their order is the one in which they can be set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Object {
    /// The interface is up.
    Up { interface: u32, name: String },
    /// A kernel setting of one interface.
    Setting { interface: u32, name: String, setting: Conf, value: u32 },
    /// An address of the node's own.
    Address { interface: u32, address: IpAddr },
    /// A neighbour that needs no ARP.
    Neighbour { interface: u32, address: IpAddr, mac: Mac },
    /// Which node has an Ethernet address of the tunnel.
    Forwarding { tunnel: u32, mac: Mac, node: Ipv4Addr, through: Option<u32> },
    /// A route with our protocol number.
    Route(Route),
    /// A routing rule with our protocol number.
    Rule(Rule),
}

impl Object {
    /// Sets it, whatever is there in its place.
    pub(crate) fn put(&self) -> Request {
        match self {
            Object::Up { interface, .. } => link::up(*interface),
            Object::Setting { interface, setting, value, .. } => link::set_conf(*interface, *setting, *value),
            Object::Address { interface, address } => route::add_address(*interface, *address, true),
            Object::Neighbour { interface, address, mac } => route::add_neighbour(*interface, *address, *mac),
            Object::Forwarding { tunnel, mac, node, through } => {
                route::add_forwarding(*tunnel, *mac, *node, *through)
            }
            Object::Route(route) => route.replace(),
            Object::Rule(rule) => rule.add(),
        }
    }

    /// Takes it away. `None`: what is not wanted of this kind is not known to be ours.
    pub(crate) fn remove(&self) -> Option<Request> {
        match self {
            Object::Route(route) => Some(route.delete()),
            Object::Rule(rule) => Some(rule.delete()),
            _ => None,
        }
    }

    /// Whether setting this one takes the other's place.
    pub(crate) fn replaces(&self, other: &Object) -> bool {
        match (self, other) {
            (Object::Route(one), Object::Route(other)) => {
                (one.table, one.to) == (other.table, other.to) && !one.is_loopback_answer()
            }
            _ => false,
        }
    }
}

/// Without the numbers of interfaces, which change when one is made anew.
impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Up { name, .. } => write!(f, "interface {name} up"),
            Object::Setting { name, setting, value, .. } => write!(f, "{setting} = {value} of {name}"),
            Object::Address { address, .. } => write!(f, "address {address}"),
            Object::Neighbour { address, .. } => write!(f, "neighbour {address}"),
            Object::Forwarding { node, .. } => write!(f, "tunnel to {node}"),
            Object::Route(Route { to, via: Some(via), .. }) => write!(f, "route {to} via {via}"),
            Object::Route(Route { to, .. }) => write!(f, "route {to}"),
            Object::Rule(rule) => write!(f, "routing rule {}", rule.priority),
        }
    }
}

/// What is there, of the kinds that can be wanted.
pub(crate) fn seen(
    netlink: &mut Netlink,
    links: &BTreeMap<String, Link>,
    tunnel: Option<u32>,
) -> Result<BTreeSet<Object>, Error> {
    let mut seen = BTreeSet::new();
    for link in links.values() {
        let (interface, name) = (link.index, link.name.clone());
        if link.up {
            seen.insert(Object::Up { interface, name: name.clone() });
        }
        for setting in Conf::ALL {
            if let Some(value) = link.conf(setting) {
                seen.insert(Object::Setting { interface, name: name.clone(), setting, value });
            }
        }
    }
    let addresses = route::list_addresses(netlink)?.into_iter();
    seen.extend(addresses.map(|(interface, address)| Object::Address { interface, address }));
    let neighbours = route::list_permanent(netlink)?.into_iter();
    seen.extend(neighbours.map(|(interface, address, mac)| Object::Neighbour { interface, address, mac }));
    if let Some(tunnel) = tunnel {
        let known = route::list_forwardings(netlink, tunnel)?.into_iter();
        seen.extend(known.map(|(mac, node, through)| Object::Forwarding { tunnel, mac, node, through }));
    }
    seen.extend(route::list_routes(netlink)?.into_iter().map(Object::Route));
    seen.extend(route::list_rules(netlink)?.into_iter().map(Object::Rule));
    Ok(seen)
}
