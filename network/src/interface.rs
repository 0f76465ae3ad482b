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
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;

use ipnet::{Ipv4Net, Ipv6Net};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::fabric::GATEWAY;
use crate::host;
use crate::netlink::link::{self, Mac, VethEnd};
use crate::netlink::route::{self, Route, Rule, RuleAction};
use crate::netlink::{Netlink, Request};
use crate::pool::GATEWAY_MAC;
use crate::random;
use crate::twins::GATEWAY_LINK;

/// Routing tables and rules of further interfaces, inside: this plus the interface's number.
const TABLES: u32 = 100;

/// What is kept of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Interface {
    pub(crate) network: String,
    pub(crate) address: Ipv4Addr,
    /// The one beside it, where there is IPv6.
    pub(crate) address6: Option<Ipv6Addr>,
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

    /// Its addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        std::iter::once(self.address.into()).chain(self.address6.map(IpAddr::from))
    }

    /// Routes and neighbours on the node's side; `index` is that of the node's end.
    pub(crate) fn node_side(&self, index: u32, source: Source) -> Vec<Request> {
        let neighbours = self.addresses().map(|address| route::add_neighbour(index, address, self.mac));
        neighbours.chain(self.routes(index, source).iter().map(Route::replace)).collect()
    }

    /// The node's routes to it.
    pub(crate) fn routes(&self, index: u32, source: Source) -> Vec<Route> {
        let route = |address: IpAddr| Route {
            to: address.into(),
            table: route::MAIN_TABLE,
            interface: index,
            via: None,
            source: source.towards(address),
        };
        let answers = self.address6.map(|_| Route::loopback_answers(index));
        self.addresses().map(route).chain(answers).collect()
    }

    /// Inside: what carries its addresses is answered by its own table.
    fn rules(&self) -> Vec<Rule> {
        let table = TABLES + self.number;
        let action = RuleAction::Table(table);
        let rule = |from: IpAddr| Rule {
            priority: table,
            v6: from.is_ipv6(),
            from: Some(from),
            sent_to: None,
            mark: 0,
            mask: 0,
            action,
        };
        self.addresses().map(rule).collect()
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
        node.run(vec![link::up_veth(outer, true, host::has_ipv6())])?;
        let inner = find(&mut self.netlink, &interface.name())?;
        let up = std::iter::once(link::up_veth(inner, false, host::has_ipv6()));
        self.netlink.run(up.chain(meet_gateway(inner, settings.ipv6)).collect())
    }

    /// Gives an interface its address, and a table of its own to answer by.
    pub(crate) fn set_address(&mut self, interface: &Interface, own_table: bool) -> Result<(), Error> {
        let index = find(&mut self.netlink, &interface.name())?;
        let address = |address| route::add_address(index, address, false);
        let mut requests: Vec<Request> = interface.addresses().map(address).collect();
        if own_table {
            let routes = to_gateway(index, TABLES + interface.number, interface.address6.is_some());
            requests.extend(routes.iter().map(Route::replace));
            requests.extend(interface.rules().iter().map(Rule::add));
        }
        self.netlink.run(requests)
    }

    /// Forgets the table of an interface that is gone. Its routes went with it.
    pub(crate) fn drop_table(&mut self, interface: &Interface) -> Result<(), Error> {
        self.netlink.run(interface.rules().iter().map(Rule::delete).collect())
    }

    /// Everything that has no better way leaves here from now on.
    pub(crate) fn set_default(&mut self, interface: &Interface) -> Result<(), Error> {
        let index = find(&mut self.netlink, &interface.name())?;
        let routes = to_gateway(index, route::MAIN_TABLE, interface.address6.is_some());
        self.netlink.run(routes.iter().map(Route::replace).collect())
    }
}

/// How interfaces are made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) mtu: u32,
    pub(crate) ipv6: bool,
}

/// What the node is called towards its containers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Option<Ipv6Addr>,
}

impl Source {
    /// The one of the family of `address`.
    pub(crate) fn towards(&self, address: IpAddr) -> Option<IpAddr> {
        if address.is_ipv4() { Some(self.v4.into()) } else { self.v6.map(IpAddr::from) }
    }
}

/// The routes by which an interface reaches everything.
pub(crate) fn to_gateway(index: u32, table: u32, ipv6: bool) -> Vec<Route> {
    let gateway =
        Route { to: IpAddr::from(GATEWAY).into(), table, interface: index, via: None, source: None };
    let default = Route { to: Ipv4Net::default().into(), via: Some(GATEWAY.into()), ..gateway.clone() };
    let default6 = Route { to: Ipv6Net::default().into(), via: Some(GATEWAY_LINK.into()), ..gateway.clone() };
    [gateway, default].into_iter().chain(ipv6.then_some(default6)).collect()
}

/// The gateway's Ethernet address, under its addresses.
pub(crate) fn meet_gateway(index: u32, ipv6: bool) -> Vec<Request> {
    let v6 = ipv6.then(|| route::add_neighbour(index, GATEWAY_LINK.into(), GATEWAY_MAC));
    std::iter::once(route::add_neighbour(index, GATEWAY.into(), GATEWAY_MAC)).chain(v6).collect()
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
