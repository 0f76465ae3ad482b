//! One interface of a container: a veth pair into its namespace, with the address of one network.
//!
//! The first network's interface has the default route. Each further one has a routing table of its own, for packets
//! that carry its address: replies leave where the request came in, and the node never sees an address at a veth that
//! is not its own.
//!
//! ```text
//!  inside   eth0 a1   main table ──▶ default via eth0
//!           eth1 a2   rule 101: from a2 ──▶ table 101 ──▶ default via eth1
//!  outside  a1 ──▶ veth of eth0      a2 ──▶ veth of eth1
//! ```

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::fabric::GATEWAY;
use crate::netlink::link::{self, Mac, VethEnd};
use crate::netlink::route::{self, Route, Rule, RuleAction};
use crate::netlink::{Netlink, Request};
use crate::pool::GATEWAY_MAC;
use crate::random;

/// Routing tables and rules of further interfaces, inside: this plus the interface's number.
const TABLES: u32 = 100;

/// What is kept of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Interface {
    pub(crate) network: String,
    pub(crate) address: Ipv4Addr,
    /// `eth` and this inside.
    pub(crate) number: u32,
    /// The node's end.
    pub(crate) outside: String,
    /// Ethernet address of the container's end.
    pub(crate) mac: Mac,
}

impl Interface {
    /// Its name inside.
    pub(crate) fn name(&self) -> String {
        format!("eth{}", self.number)
    }

    /// Route and neighbour on the node's side; `index` is that of the node's end.
    pub(crate) fn node_side(&self, index: u32, source: Ipv4Addr) -> Vec<Request> {
        vec![route::add_neighbour(index, self.address, self.mac), self.route(index, source).replace()]
    }

    /// The node's route to it.
    pub(crate) fn route(&self, index: u32, source: Ipv4Addr) -> Route {
        Route {
            to: self.address.into(),
            table: route::MAIN_TABLE,
            interface: index,
            via: None,
            source: Some(source),
        }
    }
}

/// A namespace that is open to be changed.
#[derive(Debug)]
pub(crate) struct Inside {
    pub(crate) netns: File,
    pub(crate) netlink: Netlink,
}

impl Inside {
    /// Opens a kept namespace. A socket belongs to the namespace in which it was opened, so a thread goes there for
    /// it, and ends with that.
    pub(crate) fn open(path: &Path) -> Result<Inside, Error> {
        let failed = |source| Error::Namespace { operation: format!("enter {}", path.display()), source };
        let netns = File::open(path).map_err(failed)?;
        let file = netns.try_clone().map_err(failed)?;
        let enter = move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|e| Error::Namespace {
                operation: "enter a container's namespace".to_owned(),
                source: e.into(),
            })?;
            Netlink::route()
        };
        let thread = std::thread::Builder::new().name("rorqual-enter".to_owned()).spawn(enter);
        let joined = thread.map_err(failed)?.join();
        let netlink = joined.unwrap_or(Err(Error::Stopped))?;
        Ok(Inside { netns, netlink })
    }

    /// Makes the pair; it has no address yet.
    pub(crate) fn add_pair(
        &mut self,
        node: &mut Netlink,
        interface: &Interface,
        settings: Pair,
    ) -> Result<(), Error> {
        let here = VethEnd { name: &interface.outside, mac: GATEWAY_MAC };
        let there = VethEnd { name: &interface.name(), mac: interface.mac };
        node.run(vec![link::add_veth(&here, &there, self.netns.as_fd(), settings.mtu)])?;
        let outer = find(node, &interface.outside)?;
        node.run(vec![link::up_veth(outer, true, settings.ipv6)])?;
        let inner = find(&mut self.netlink, &interface.name())?;
        self.netlink.run(vec![
            link::up_veth(inner, false, settings.ipv6),
            route::add_neighbour(inner, GATEWAY, GATEWAY_MAC),
        ])
    }

    /// Gives an interface its address, and a table of its own to answer by.
    pub(crate) fn set_address(&mut self, interface: &Interface, own_table: bool) -> Result<(), Error> {
        let index = find(&mut self.netlink, &interface.name())?;
        let mut requests = vec![route::add_address(index, interface.address, false)];
        if own_table {
            let table = TABLES + interface.number;
            requests.extend(to_gateway(index, table).iter().map(Route::replace));
            let rule = Rule {
                priority: table,
                from: Some(interface.address),
                mark: 0,
                mask: 0,
                action: RuleAction::Table(table),
            };
            requests.push(rule.add());
        }
        self.netlink.run(requests)
    }

    /// Forgets the table of an interface that is gone. Its routes went with it.
    pub(crate) fn drop_table(&mut self, interface: &Interface) -> Result<(), Error> {
        let table = TABLES + interface.number;
        let rule = Rule {
            priority: table,
            from: Some(interface.address),
            mark: 0,
            mask: 0,
            action: RuleAction::Table(table),
        };
        self.netlink.run(vec![rule.delete()])
    }

    /// Everything that has no better way leaves here from now on.
    pub(crate) fn set_default(&mut self, interface: &Interface) -> Result<(), Error> {
        let index = find(&mut self.netlink, &interface.name())?;
        self.netlink.run(to_gateway(index, route::MAIN_TABLE).iter().map(Route::replace).collect())
    }
}

/// How interfaces are made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) mtu: u32,
    pub(crate) ipv6: bool,
}

/// The routes by which an interface reaches everything.
pub(crate) fn to_gateway(index: u32, table: u32) -> [Route; 2] {
    let gateway = Route { to: GATEWAY.into(), table, interface: index, via: None, source: None };
    let default = Route { to: ipnet::Ipv4Net::default(), via: Some(GATEWAY), ..gateway.clone() };
    [gateway, default]
}

/// A name for the node's end of a new pair.
pub(crate) fn outside_name(prefix: &str) -> String {
    format!("{prefix}{}", random::name(7))
}

fn find(netlink: &mut Netlink, name: &str) -> Result<u32, Error> {
    let found = link::find(netlink, name)?;
    found.map(|link| link.index).ok_or_else(|| Error::Namespace {
        operation: format!("find the interface {name}"),
        source: std::io::ErrorKind::NotFound.into(),
    })
}
