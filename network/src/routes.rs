//! How this node reaches the containers of its peers, and through whom replies of the routing mesh go back.
//!
//! A peer on the same segment is the next hop itself; behind a router it is reached through a VXLAN tunnel whose
//! neighbours are written down here, never learned. Every peer has a number: it stands in the marks of connections
//! that came through this peer, and names the routing table that leads back to it.
//!
//! ```text
//!   rule 10999    unmarked packets, and at 11000 those of the tunnel ──▶ 11999
//!   rule 11000+n  mark n ──▶ table of peer n ──▶ the peer
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::encryption::{self, Seal};
use crate::error::Error;
use crate::fabric::GATEWAY;
use crate::interface::Source;
use crate::model::{Block, Peer};
use crate::netlink::link::{self, Conf, Link, Mac};
use crate::netlink::route::{self, Route, Rule, RuleAction};
use crate::netlink::{Netlink, Request};
use crate::object::Object;
use crate::ruleset::{MARK_MASK, MARK_SHIFT};
use crate::twins::{Twins, is_next_hop, next_hop};

const LOOPBACK: u32 = 1;

/// Rules stand at 10999 to 11999, before the main table (32766) and after the local one (0).
const UNMARKED: u32 = 10_999;
const RULES: u32 = 11_000;
const RULES_END: u32 = 11_999;
/// Numbers of peers, also the most peers that a node can have.
const NUMBERS: std::ops::Range<u16> = 1..999;
/// Tables of peers: this plus the peer's number.
const TABLES: u32 = 0x7271_0000;
/// UDP port and network identifier of the tunnel. Not 4789, which other programs use on the same machine.
pub(crate) const TUNNEL_PORT: u16 = 7271;
const TUNNEL_ID: u32 = 7271;
/// What the tunnel takes of a packet: IPv4, UDP, VXLAN and Ethernet headers.
pub(crate) const TUNNEL_BYTES: u32 = 50;

/// How packets get to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Segment { interface: u32 },
    Tunnel { interface: u32 },
}

#[derive(Debug)]
struct Known {
    underlay: Ipv4Addr,
    number: u16,
    way: Way,
    mac: Option<Mac>,
    /// Its containers have IPv6.
    v6: bool,
}

impl Known {
    fn interface(&self) -> u32 {
        let (Way::Segment { interface } | Way::Tunnel { interface }) = self.way;
        interface
    }

    /// The next hop of IPv6 routes, which needs no IPv6 address of the node and no neighbour discovery.
    fn next_hop(&self) -> Option<Object> {
        let address = next_hop(self.underlay).into();
        self.mac.filter(|_| self.v6).map(|mac| Object::Neighbour {
            interface: self.interface(),
            address,
            mac,
        })
    }
}

/// Routes and rules of this node.
#[derive(Debug)]
pub(crate) struct Routes {
    netlink: Netlink,
    node: String,
    tunnel: String,
    underlay: Ipv4Addr,
    pools: Vec<IpNet>,
    /// Own ranges of networks: routed as the pools are.
    subnets: BTreeSet<IpNet>,
    /// The node's addresses towards containers.
    source: Source,
    twins: Twins,
    underlay_mtu: u32,
    seal: Seal,
    numbers_file: PathBuf,
    numbers: BTreeMap<String, u16>,
    peers: BTreeMap<String, Known>,
    routes: BTreeMap<(u32, IpNet), Route>,
    rules: BTreeSet<Rule>,
}

/// What [`Routes`] depends on.
pub(crate) struct Settings<'a> {
    pub(crate) node: String,
    pub(crate) tunnel: String,
    pub(crate) underlay: Ipv4Addr,
    pub(crate) underlay_mtu: u32,
    pub(crate) source: Ipv4Addr,
    pub(crate) twins: Twins,
    pub(crate) pools: Vec<Ipv4Net>,
    pub(crate) state_dir: &'a Path,
}

impl Routes {
    /// Takes over the routes and rules of an earlier process. They stay until the first [`Routes::update`]. What is
    /// missing is said by [`Routes::wanted`].
    pub(crate) fn start(settings: Settings<'_>) -> Result<Routes, Error> {
        let mut netlink = Netlink::route()?;
        // A tunnel begins at one address: with another it is another tunnel.
        if let Some(link) = link::find(&mut netlink, &settings.tunnel)?
            && (link.local != Some(settings.underlay)
                || link.mtu != tunnel_mtu(settings.underlay_mtu, link.lower))
        {
            netlink.run(vec![link::delete(&settings.tunnel)])?;
        }
        let numbers_file = settings.state_dir.join("peers.json");
        let numbers = match fs::read(&numbers_file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(_) => BTreeMap::new(),
        };
        let pools: Vec<IpNet> =
            settings.pools.iter().flat_map(|pool| settings.twins.both_ranges(*pool)).collect();
        let mut routes = BTreeMap::new();
        let mut subnets = BTreeSet::new();
        for route in route::list_routes(&mut netlink)? {
            // Routes to containers have no gateway: `container` looks after them.
            if route.via.is_some() {
                routes.insert((route.table, route.to), route);
            } else if route.interface == LOOPBACK && !pools.contains(&route.to) {
                subnets.insert(route.to);
            }
        }
        let rules = route::list_rules(&mut netlink)?.into_iter().collect();
        Ok(Routes {
            netlink,
            node: settings.node,
            tunnel: settings.tunnel,
            underlay: settings.underlay,
            pools,
            subnets,
            source: Source { v4: settings.source, v6: settings.twins.source(settings.source) },
            twins: settings.twins,
            underlay_mtu: settings.underlay_mtu,
            seal: Seal::Off,
            numbers_file,
            numbers,
            peers: BTreeMap::new(),
            routes,
            rules,
        })
    }

    /// What has no better route stays on this node, where the ruleset answers it.
    fn pool_routes(&self) -> Vec<Route> {
        self.pools.iter().chain(&self.subnets).map(|to| self.dead_end(*to)).collect()
    }

    fn dead_end(&self, to: IpNet) -> Route {
        let source = self.source.towards(to.addr());
        Route { to, table: route::MAIN_TABLE, interface: LOOPBACK, via: None, source }
    }

    /// Brings the networks' own ranges up to date; what is not wanted any more goes with the returned requests.
    pub(crate) fn set_subnets(&mut self, wanted: BTreeSet<Ipv4Net>) -> Result<Vec<Request>, Error> {
        let wanted: BTreeSet<IpNet> =
            wanted.into_iter().flat_map(|range| self.twins.both_ranges(range)).collect();
        let new = wanted.difference(&self.subnets).map(|to| self.dead_end(*to).replace()).collect();
        let gone = self.subnets.difference(&wanted).map(|to| self.dead_end(*to).delete()).collect();
        self.netlink.run(new)?;
        self.subnets = wanted;
        Ok(gone)
    }

    /// From now on these addresses stand beside each other.
    pub(crate) fn set_twins(&mut self, twins: Twins) {
        self.twins = twins;
    }

    /// From now on peers are reached so. All ways are found anew where that changes something.
    pub(crate) fn set_seal(&mut self, seal: Seal) {
        if self.seal != seal {
            self.seal = seal;
            self.peers.clear();
        }
    }

    /// Sets what is new. What is old goes with the returned requests, once the ruleset no longer leads there.
    pub(crate) fn update(
        &mut self,
        peers: &BTreeMap<String, Peer>,
        blocks: &BTreeMap<Ipv4Net, Block>,
    ) -> (Vec<Request>, Vec<Error>) {
        let mut errors = Vec::new();
        if let Err(error) = self.number(peers) {
            errors.push(error);
        }
        let mut requests = self.meet(peers, false, &mut errors);
        let (routes, rules) = self.desired(blocks);
        let is_new = |(key, route): &(&(u32, IpNet), &Route)| self.routes.get(*key) != Some(*route);
        requests.extend(routes.iter().filter(is_new).map(|(_, route)| route.replace()));
        let mut removals: Vec<Request> = self.rules.difference(&rules).map(Rule::delete).collect();
        requests.extend(rules.difference(&self.rules).map(Rule::add));
        let gone = self.routes.iter().filter(|(key, _)| !routes.contains_key(*key));
        removals.extend(gone.map(|(_, route)| route.delete()));
        match self.netlink.run(requests) {
            Ok(()) => (self.routes, self.rules) = (routes, rules),
            Err(error) => errors.push(error),
        }
        (removals, errors)
    }

    /// Finds out how peers are reached. Those that are known are asked about `again` only where that is said.
    fn meet(&mut self, peers: &BTreeMap<String, Peer>, again: bool, errors: &mut Vec<Error>) -> Vec<Request> {
        let seal = self.seal;
        // What can't be encrypted goes nowhere.
        let open = |peer: &&Peer| seal.lets_through(peer);
        let mut requests = Vec::new();
        self.peers.retain(|node, known| {
            let stays = peers.get(node).filter(open).is_some_and(|peer| peer.underlay == known.underlay);
            if !stays && known.v6 {
                requests.push(route::delete_neighbour(known.interface(), next_hop(known.underlay).into()));
            }
            stays
        });
        for peer in peers.values().filter(open) {
            if peer.node == self.node {
                continue;
            }
            let known = self.peers.get(&peer.node).map(|known| known.way);
            if known.is_some() && !again {
                continue;
            }
            match self.reach(peer) {
                Ok((found, _)) if Some(found.way) == known => {}
                Ok((found, setup)) => {
                    self.peers.insert(peer.node.clone(), found);
                    requests.extend(setup);
                }
                Err(error) => errors.push(error),
            }
        }
        for (node, known) in &mut self.peers {
            let twin = self.twins.of(known.underlay);
            let before = std::mem::replace(
                &mut known.v6,
                twin.is_some_and(|twin| peers.get(node).is_some_and(|peer| peer.ipv6.contains(&twin))),
            );
            requests.extend(known.next_hop().filter(|_| !before).map(|object| object.put()));
        }
        requests
    }

    /// Finds out anew how peers are reached: interfaces and routes of the node may have changed. [`Routes::wanted`]
    /// then says what the kernel needs for that.
    pub(crate) fn find_ways(
        &mut self,
        peers: &BTreeMap<String, Peer>,
        blocks: &BTreeMap<Ipv4Net, Block>,
    ) -> Vec<Error> {
        let mut errors = Vec::new();
        let requests = self.meet(peers, true, &mut errors);
        errors.extend(self.netlink.run(requests).err());
        (self.routes, self.rules) = self.desired(blocks);
        errors
    }

    /// What the kernel has to have.
    pub(crate) fn wanted(&self, links: &BTreeMap<String, Link>) -> Vec<Object> {
        let routes = self.routes.values().cloned().chain(self.pool_routes());
        let mut wanted: Vec<Object> = routes.map(Object::Route).collect();
        wanted.extend(self.rules.iter().copied().map(Object::Rule));
        wanted.extend(self.peers.values().filter_map(Known::next_hop));
        let Some(link) = links.get(&self.tunnel) else { return wanted };
        let (interface, name) = (link.index, &link.name);
        wanted.push(Object::Up { interface, name: name.clone() });
        wanted.push(Object::Address { interface, address: GATEWAY.into() });
        if self.twins.on() {
            wanted.push(Object::Route(Route::loopback_answers(interface)));
        }
        let settings = [
            (Conf::Forwarding, 1),
            (Conf::SendRedirects, 0),
            (Conf::RpFilter, link::RP_FILTER_LOOSE),
            (Conf::RouteLocalnet, 1),
        ];
        let object = |(setting, value)| Object::Setting { interface, name: name.clone(), setting, value };
        wanted.extend(settings.map(object));
        for known in self.peers.values().filter(|known| known.way == Way::Tunnel { interface }) {
            let (node, mac) = (known.underlay, tunnel_mac(known.underlay));
            wanted.push(Object::Neighbour { interface, address: node.into(), mac });
            let through = self.seal.device();
            wanted.push(Object::Forwarding { tunnel: interface, mac, node, through });
        }
        wanted
    }

    /// The tunnel's interface, where there is one.
    pub(crate) fn tunnel(&self, links: &BTreeMap<String, Link>) -> Option<u32> {
        links.get(&self.tunnel).map(|link| link.index)
    }

    /// The peers that are known.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &String> {
        self.peers.keys()
    }

    /// Node, address, mark, and the tunnel where it leads there, of every peer.
    pub(crate) fn peers(&self) -> Vec<(String, Ipv4Addr, u32, Option<u32>)> {
        let tell = |(node, known): (&String, &Known)| {
            let tunnel = match known.way {
                Way::Segment { .. } => None,
                Way::Tunnel { interface } => Some(interface),
            };
            (node.clone(), known.underlay, u32::from(known.number) << MARK_SHIFT, tunnel)
        };
        self.peers.iter().map(tell).collect()
    }

    /// The interface by which an address is reached.
    pub(crate) fn interface_to(&mut self, address: Ipv4Addr) -> Result<Option<u32>, Error> {
        Ok(route::lookup(&mut self.netlink, address)?.map(|(interface, _)| interface))
    }

    /// Of the socket through which routes are changed.
    pub(crate) fn port(&self) -> Result<u32, Error> {
        self.netlink.port()
    }

    /// Runs the removals of [`Routes::update`].
    pub(crate) fn remove(&mut self, removals: Vec<Request>) -> Result<(), Error> {
        self.netlink.run(removals)
    }

    fn desired(&self, blocks: &BTreeMap<Ipv4Net, Block>) -> (BTreeMap<(u32, IpNet), Route>, BTreeSet<Rule>) {
        let mut routes = BTreeMap::new();
        let mut rules = BTreeSet::new();
        let mut add = |to: IpNet, table, known: &Known, source: Option<Source>| {
            let v4 = to.addr().is_ipv4();
            let via = if v4 { known.underlay.into() } else { IpAddr::from(next_hop(known.underlay)) };
            let source = source.and_then(|source| source.towards(to.addr()));
            let route = Route { to, table, interface: known.interface(), via: Some(via), source };
            if v4 || known.v6 {
                routes.insert((table, to), route);
            }
        };
        for block in blocks.values() {
            if let Some(known) = self.peers.get(&block.node) {
                for range in self.twins.both_ranges(block.block.trunc()) {
                    add(range, route::MAIN_TABLE, known, Some(self.source));
                }
            }
        }
        for known in self.peers.values() {
            let (number, table) = (u32::from(known.number), TABLES + u32::from(known.number));
            add(Ipv4Net::default().into(), table, known, None);
            add(Ipv6Net::default().into(), table, known, None);
            if let Some(twin) = self.twins.of(known.underlay) {
                add(IpAddr::from(twin).into(), route::MAIN_TABLE, known, Some(self.source));
            }
            let (mark, action) = (number << MARK_SHIFT, RuleAction::Table(table));
            rules.extend(self.for_families(Rule {
                priority: RULES + number,
                v6: false,
                from: None,
                sent_to: None,
                mark,
                mask: MARK_MASK,
                action,
            }));
        }
        if !self.peers.is_empty() {
            let action = RuleAction::SkipTo(RULES_END);
            let skip = Rule {
                priority: UNMARKED,
                v6: false,
                from: None,
                sent_to: None,
                mark: 0,
                mask: MARK_MASK,
                action,
            };
            let end = Rule { priority: RULES_END, mask: 0, action: RuleAction::Nothing, ..skip };
            rules.extend([skip, end].into_iter().flat_map(|rule| self.for_families(rule)));
            // They inherit the mark, and would be led into the tunnel again.
            rules.insert(Rule { priority: RULES, sent_to: Some(TUNNEL_PORT), mask: 0, ..skip });
        }
        (routes, rules)
    }

    fn for_families(&self, rule: Rule) -> impl Iterator<Item = Rule> + use<> {
        std::iter::once(rule).chain(self.twins.on().then_some(Rule { v6: true, ..rule }))
    }

    /// Gives new peers a number and frees those of peers that are gone. Kept on disk: connections carry them.
    fn number(&mut self, peers: &BTreeMap<String, Peer>) -> Result<(), Error> {
        let before = self.numbers.clone();
        self.numbers.retain(|node, _| peers.contains_key(node));
        let mut used: BTreeSet<u16> = self.numbers.values().copied().collect();
        for node in peers.keys().filter(|node| **node != self.node) {
            if self.numbers.contains_key(node) {
                continue;
            }
            let Some(free) = NUMBERS.into_iter().find(|n| !used.contains(n)) else {
                return Err(Error::Invalid {
                    field: "change.peers",
                    value: peers.len().to_string(),
                    expected: "expected at most 998 other nodes",
                });
            };
            used.insert(free);
            self.numbers.insert(node.clone(), free);
        }
        if self.numbers == before {
            return Ok(());
        }
        let path = self.numbers_file.clone();
        let write = || -> std::io::Result<()> {
            let fresh = path.with_extension("new");
            fs::write(&fresh, serde_json::to_vec(&self.numbers)?)?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|source| Error::State { path: path.clone(), operation: "write", source })
    }

    fn reach(&mut self, peer: &Peer) -> Result<(Known, Vec<Request>), Error> {
        let number = self.numbers.get(&peer.node).copied().unwrap_or(NUMBERS.end);
        let underlay = peer.underlay;
        let unreachable = || Error::Netlink {
            operation: format!("find a route to node {} at {underlay}", peer.node),
            source: std::io::ErrorKind::NetworkUnreachable.into(),
        };
        let (interface, router) = route::lookup(&mut self.netlink, underlay)?.ok_or_else(unreachable)?;
        if router.is_none() && self.seal == Seal::Off {
            let way = Way::Segment { interface };
            let resolve = route::resolve_neighbour(interface, underlay);
            return Ok((Known { underlay, number, way, mac: None, v6: false }, vec![resolve]));
        }
        let tunnel = self.open_tunnel()?;
        let mac = tunnel_mac(underlay);
        let setup = vec![
            route::add_neighbour(tunnel, underlay.into(), mac),
            route::add_forwarding(tunnel, mac, underlay, self.seal.device()),
        ];
        Ok((
            Known { underlay, number, way: Way::Tunnel { interface: tunnel }, mac: Some(mac), v6: false },
            setup,
        ))
    }

    fn open_tunnel(&mut self) -> Result<u32, Error> {
        let lower = self.seal.device();
        let mtu = tunnel_mtu(self.underlay_mtu, lower);
        if let Some(link) = link::find(&mut self.netlink, &self.tunnel)? {
            if link.lower == lower && link.mtu == mtu {
                return Ok(link.index);
            }
            self.netlink.run(vec![link::delete(&self.tunnel)])?;
        }
        let tunnel = link::Tunnel {
            name: &self.tunnel,
            mac: tunnel_mac(self.underlay),
            local: self.underlay,
            lower,
            id: TUNNEL_ID,
            port: TUNNEL_PORT,
            mtu,
        };
        self.netlink.run(vec![link::add_tunnel(&tunnel)])?;
        let link = link::find(&mut self.netlink, &self.tunnel)?.ok_or_else(|| Error::Netlink {
            operation: format!("find the new tunnel {}", self.tunnel),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        // The kernel drops clients of the routing mesh on an interface that has no address at all
        // (fib_validate_source), whatever its rp_filter says.
        let mut setup =
            vec![route::add_address(link.index, GATEWAY.into(), true), link::up_tunnel(link.index)];
        setup.extend(self.twins.on().then(|| Route::loopback_answers(link.index).replace()));
        self.netlink.run(setup)?;
        Ok(link.index)
    }

    /// Looks which Ethernet addresses the peers of the segment have.
    pub(crate) fn look(&mut self) -> Result<(), Error> {
        let interfaces: BTreeSet<u32> = self.segment_peers().map(|(interface, _)| interface).collect();
        let mut macs = BTreeMap::new();
        for interface in interfaces {
            for (address, mac) in route::list_neighbours(&mut self.netlink, interface)? {
                macs.insert((interface, address), mac);
            }
        }
        let mut resolve = Vec::new();
        for known in self.peers.values_mut() {
            let Way::Segment { interface } = known.way else { continue };
            match macs.get(&(interface, known.underlay)) {
                Some(mac) if known.mac == Some(*mac) => {}
                Some(mac) => {
                    known.mac = Some(*mac);
                    resolve.extend(known.next_hop().map(|object| object.put()));
                }
                // An address that was found once stays until another is found.
                None => resolve.push(route::resolve_neighbour(interface, known.underlay)),
            }
        }
        self.netlink.run(resolve)
    }

    fn segment_peers(&self) -> impl Iterator<Item = (u32, &Known)> {
        self.peers.values().filter_map(|known| match known.way {
            Way::Segment { interface } => Some((interface, known)),
            Way::Tunnel { .. } => None,
        })
    }

    /// Whether the Ethernet address of a peer is still unknown; `None` without peers on the segment.
    pub(crate) fn unresolved(&self) -> Option<bool> {
        let mut peers = self.segment_peers().peekable();
        peers.peek()?;
        Some(peers.any(|(_, known)| known.mac.is_none()))
    }

    /// Address and Ethernet address of a peer that is reached.
    pub(crate) fn peer(&self, node: &str) -> Option<(Ipv4Addr, Option<Mac>)> {
        self.peers.get(node).map(|known| (known.underlay, known.mac))
    }

    /// The number of any other node.
    pub(crate) fn number_of(&self, node: &str) -> Option<u16> {
        self.numbers.get(node).copied()
    }

    /// Removes the routes and rules that the kernel has of ours, whichever process set them, the tunnel, and the file with
    /// the numbers.
    pub(crate) fn teardown(&mut self) -> Result<(), Error> {
        let mut errors = Vec::new();
        let mut requests = Vec::new();
        match route::list_rules(&mut self.netlink) {
            Ok(rules) => requests.extend(rules.iter().map(Rule::delete)),
            Err(error) => errors.push(error),
        }
        // By their names, and not by the routes through them: those may be gone already.
        match route::list_permanent(&mut self.netlink) {
            Ok(neighbours) => {
                let ours = neighbours.into_iter().filter(|(_, address, _)| is_next_hop(*address));
                requests
                    .extend(ours.map(|(interface, address, _)| route::delete_neighbour(interface, address)));
            }
            Err(error) => errors.push(error),
        }
        match route::list_routes(&mut self.netlink) {
            Ok(routes) => requests.extend(routes.iter().map(Route::delete)),
            Err(error) => errors.push(error),
        }
        requests.push(link::delete(&self.tunnel));
        (self.rules, self.routes, self.peers) = Default::default();
        errors.extend(self.netlink.run(requests).err());
        if let Err(source) = fs::remove_file(&self.numbers_file)
            && source.kind() != std::io::ErrorKind::NotFound
        {
            errors.push(Error::State { path: self.numbers_file.clone(), operation: "remove", source });
        }
        Error::all(errors)
    }
}

/// What encrypts takes its part as well.
fn tunnel_mtu(underlay_mtu: u32, lower: Option<u32>) -> u32 {
    underlay_mtu.saturating_sub(TUNNEL_BYTES + lower.map_or(0, |_| encryption::BYTES))
}

/// The tunnel's Ethernet address of a node follows from its underlay address, so nobody has to be asked.
fn tunnel_mac(underlay: Ipv4Addr) -> Mac {
    let [a, b, c, d] = underlay.octets();
    [0x02, 0x72, a, b, c, d]
}
