//! What each item has in the table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::base::MARK_SHIFT;
use super::places::{self, Round};
use super::rule::{Field, Fields, Kind, Rule, Target, Turn, Value};
use super::turns::{Weighed, places as places_of_clients, shift, turns};
use super::{Element, Parts};
use crate::model::{Block, Endpoint, HostPort, Network, Peer, Protocol, PublishedPort, ServiceView};
use crate::netlink::link::Mac;
use crate::random;
use crate::twins::Twins;

impl Parts {
    fn element(&mut self, set: &str, key: &[Field], value: Option<Value>) {
        self.elements.insert(element(set, key), value);
    }

    fn chain(&mut self, name: &str, rules: Vec<Rule>) {
        self.chains.insert(name.to_owned(), rules);
    }

    /// A port of the node that leads to what the rules say, for those who may use it. Who that is stands in a chain of
    /// its own: endpoints come and go without it.
    fn publish(&mut self, port: Published, rules: Vec<Rule>, allow: &[IpNet]) {
        let (protocol, number, address) = port;
        let mut chain = format!("port_{protocol}_{number}");
        if let Some(address) = address {
            chain.push_str(&format!("_at_{}", address.to_string().replace(['.', ':'], "_")));
        }
        self.chain(&chain, rules);
        let all_of = |v4| allow.iter().any(|range| range.prefix_len() == 0 && range.addr().is_ipv4() == v4);
        let everybody = allow.is_empty() || (all_of(true) && all_of(false));
        if !everybody {
            let gate = format!("{chain}_gate");
            let admit = allow.iter().map(|from| Rule::Admit { from: from.trunc(), chain: chain.clone() });
            self.chain(&gate, admit.chain([Rule::Reset, Rule::Refuse]).collect());
            chain = gate;
        }
        self.elements.insert(published_at(port), Some(Value::Goto(chain)));
    }
}

/// What the names of the maps of published ports on one address each begin with.
pub(crate) const PUBLISHED_AT: &str = "published_at";

/// Protocol and number of a port of the node, and the address that it is published on.
pub(crate) type Published = (Protocol, u16, Option<IpAddr>);

impl<T: Into<IpAddr>> From<T> for Field {
    fn from(address: T) -> Field {
        Field::Address(address.into())
    }
}

/// The set or map that is for addresses of that family.
fn of_family(set: &'static str, address: impl Into<IpAddr>) -> &'static str {
    if address.into().is_ipv4() {
        return set;
    }
    match set {
        "vips" => "vips6",
        "targets" => "targets6",
        "hairpin" => "hairpin6",
        "alone" => "alone6",
        "hostports" => "hostports6",
        "hostports_at" => "hostports_at6",
        "published_at" => "published_at6",
        "open_at" => "open_at6",
        "peer_addresses" => "peer_addresses6",
        "peer_marks" => "peer_marks6",
        "pools" => "pools6",
        "networks" => "networks6",
        "closed" => "closed6",
        "metadata" => "metadata6",
        "freed" => "freed6",
        "several" => "several6",
        "poses" => "poses6",
        "own_blocks" => "own_blocks6",
        other => other,
    }
}

fn element(set: &str, key: &[Field]) -> Element {
    Element { set: set.to_owned(), key: Fields(key.to_vec()) }
}

/// What balancing leads to, by family.
#[derive(Default)]
struct Backends {
    v4: Option<Target>,
    v6: Option<Target>,
}

impl Backends {
    /// Every address in turn, or each client its own. A service without endpoints refuses at once, by the same rules:
    /// they are not touched when endpoints come and go.
    fn balance(&self, port: Option<(Protocol, u16)>) -> Vec<Rule> {
        let rules = self.v6.iter().chain(&self.v4).flat_map(tries);
        let rules = rules.map(|to| Rule::Balance { to, port });
        rules.chain([Rule::Reset, Rule::Refuse]).collect()
    }
}

/// A place may have nobody: whoever meets one goes on to the next rule, which counts for itself and so spreads evenly what
/// comes to it. The last one counts only to where somebody stands always ([`Round`]). So do they if a packet meets the
/// rules of before a change and the map of after it.
fn tries(to: &Target) -> Vec<Target> {
    /// With a fifth of the places free, one of 600 connections gets to the last rule.
    const TRIES: usize = 4;
    let Target::Places { map, count: size, by: Turn::Next, v6 } = to else { return vec![to.clone()] };
    let times = if *size > 2 { TRIES } else { 1 };
    let last = Target::Places { map: map.clone(), count: size / 2, by: Turn::Next, v6: *v6 };
    std::iter::repeat_n(to.clone(), times).chain((*size > 1).then_some(last)).collect()
}

/// Endpoints, and the IPv6 address beside those that have one.
type Addresses = (Vec<Weighed>, BTreeMap<Ipv4Addr, Ipv6Addr>);

/// What of a service is the same in all of its chains: who is where. `before` tells what stands in a map.
fn backends(
    parts: &mut Parts,
    service: &ServiceView,
    word: &str,
    (v4, twins): Addresses,
    node: &str,
    before: &impl Fn(&str) -> Round,
) -> Backends {
    let with_twin: Vec<Weighed> = v4.iter().filter(|(v4, _)| twins.contains_key(v4)).copied().collect();
    let mut target = |addresses: &[Weighed], v6: bool| {
        let (kind, six) = if v6 { (Kind::Places6, "6") } else { (Kind::Places, "") };
        let map = format!("{word}{six}_{}", identifier(&service.id));
        let known = before(&map);
        if addresses.is_empty() && known.size == 0 {
            return None;
        }
        let of = |address: &Ipv4Addr| match twins.get(address).filter(|_| v6) {
            Some(twin) => IpAddr::V6(*twin),
            None => IpAddr::V4(*address),
        };
        let even = addresses.windows(2).all(|two| two[0].1 == two[1].1);
        let by = if service.sticky { Turn::Client } else { Turn::Next };
        let round = match by {
            Turn::Client => {
                let places: Vec<IpAddr> = places_of_clients(addresses).iter().map(of).collect();
                let size = if places.is_empty() { known.size } else { places.len() as u32 };
                Round { places, size }
            }
            Turn::Next if even => {
                let wanted: BTreeSet<IpAddr> = addresses.iter().map(|(address, _)| of(address)).collect();
                places::in_turn(&known, &wanted, node)
            }
            Turn::Next => {
                let mut weighed = addresses.to_vec();
                shift(&mut weighed, node);
                let turns: Vec<IpAddr> = turns(&weighed).iter().map(of).collect();
                places::laid_out(&known, &turns)
            }
        };
        let count = round.size;
        parts.sets.insert(map.clone(), kind);
        parts.places.insert(map.clone(), round);
        Some(Target::Places { map, count, by, v6 })
    };
    Backends { v4: target(&v4, false), v6: target(&with_twin, true) }
}

/// A service: its virtual addresses and those of its ports that are published here. `twin` tells the IPv6 address of an
/// endpoint, `before` what stands in a map now.
pub(crate) fn service(
    service: &ServiceView,
    ports: &[PublishedPort],
    node: &str,
    twins: &Twins,
    twin: impl Fn(&Endpoint) -> Option<Ipv6Addr>,
    before: impl Fn(&str) -> Round,
) -> Parts {
    let mut parts = Parts::default();
    let to = |endpoints: &[&Endpoint]| {
        let mut v4: Vec<Weighed> = endpoints.iter().map(|e| (e.address, e.weight.max(1))).collect();
        v4.sort_unstable();
        v4.dedup_by_key(|(address, _)| *address);
        let v6 = endpoints.iter().filter_map(|e| Some((e.address, twin(e)?))).collect();
        (v4, v6)
    };
    let all: Vec<&Endpoint> = service.endpoints.iter().collect();
    let own: Vec<&Endpoint> = all.iter().filter(|endpoint| endpoint.node == node).copied().collect();
    let backends = backends(&mut parts, service, "to", to(&all), node, &before);
    let own_backends = match ports.iter().any(|port| port.local) {
        true => self::backends(&mut parts, service, "here", to(&own), node, &before),
        false => Backends::default(),
    };
    if let Some(vip) = service.vip {
        let chain = format!("vip_{}", identifier(&service.id));
        parts.chain(&chain, backends.balance(None));
        for vip in twins.both(vip) {
            parts.element(of_family("vips", vip), &[vip.into()], Some(Value::Goto(chain.clone())));
        }
    }
    let here: Vec<IpAddr> = own.iter().flat_map(|endpoint| twins.both(endpoint.address)).collect();
    for port in ports {
        let PublishedPort { address, published, protocol, local, .. } = *port;
        let backends = if local { &own_backends } else { &backends };
        if !local || !own.is_empty() {
            let balance = backends.balance(Some((protocol, port.target)));
            parts.publish((protocol, published, address), balance, &port.allow);
        }
        for address in &here {
            let target = [(*address).into(), Field::Protocol(protocol), Field::Port(port.target)];
            parts.element(of_family("targets", *address), &target, None);
        }
        match address {
            None => {
                parts.element("open_ports", &[Field::Protocol(protocol), Field::Port(published)], None);
            }
            Some(address) => {
                let key = [address.into(), Field::Protocol(protocol), Field::Port(published)];
                parts.element(of_family("open_at", address), &key, None);
            }
        }
    }
    if let [only] = all[..] {
        for address in twins.both(only.address) {
            parts.element(of_family("alone", address), &[address.into()], None);
        }
    }
    for address in here {
        parts.element(of_family("hairpin", address), &[Field::Address(address); 2], None);
    }
    parts
}

/// The element that stands for a service's published port.
pub(crate) fn published(port: &PublishedPort) -> Element {
    published_at((port.protocol, port.published, port.address))
}

/// The same by its key.
pub(crate) fn published_at((protocol, port, address): Published) -> Element {
    let [protocol, port] = [Field::Protocol(protocol), Field::Port(port)];
    match address {
        None => element("published", &[protocol, port]),
        Some(address) => element(of_family("published_at", address), &[address.into(), protocol, port]),
    }
}

/// Whether an element stands for a published port that meets this one: the same, on an address of both.
pub(crate) fn meets(element: &Element, (protocol, port, address): Published) -> bool {
    match (element.set.as_str(), element.key.0.as_slice()) {
        ("published", key) => *key == [Field::Protocol(protocol), Field::Port(port)],
        ("published_at" | "published_at6", [Field::Address(at), key @ ..]) => {
            *key == [Field::Protocol(protocol), Field::Port(port)] && address.is_none_or(|own| own == *at)
        }
        _ => false,
    }
}

/// The published ports of one container.
pub(crate) fn host_ports(addresses: &[IpAddr], ports: &[HostPort]) -> Parts {
    let mut parts = Parts::default();
    for port in ports {
        let HostPort { published, protocol, target, address: at, .. } = *port;
        for address in addresses {
            parts.element(of_family("hairpin", *address), &[Field::Address(*address); 2], None);
            parts.element(of_family("alone", *address), &[(*address).into()], None);
        }
        if !port.allow.is_empty() {
            let balance = |address: &IpAddr| Rule::Balance {
                to: Target::One(*address),
                port: Some((protocol, target)),
            };
            let (v6, v4): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|a| a.is_ipv6());
            let rules = v6.iter().chain(&v4).map(balance).collect();
            parts.publish((protocol, published, at), rules, &port.allow);
            continue;
        }
        for address in addresses {
            let target = Some(Value::Fields(Fields(vec![Field::Address(*address), Field::Port(target)])));
            let key = [Field::Protocol(protocol), Field::Port(published)];
            match at {
                None => parts.element(of_family("hostports", *address), &key, target),
                Some(at) if address.is_ipv4() == at.is_ipv4() => {
                    parts.element(of_family("hostports_at", at), &[at.into(), key[0], key[1]], target);
                }
                Some(_) => {}
            }
        }
    }
    parts
}

/// A peer: packets from its Ethernet address are its.
pub(crate) fn peer(peer: &Peer, mac: Option<Mac>, number: u16) -> Parts {
    let mut parts = Parts::default();
    let mark = || Some(Value::Mark(u32::from(number) << MARK_SHIFT));
    // What containers send there comes as this node's, and has no mark.
    for other in peer.others.iter().filter(|other| **other != peer.underlay) {
        parts.element("peer_others", &[(*other).into()], None);
    }
    for address in std::iter::once(peer.underlay.into()).chain(peer.ipv6.iter().copied().map(IpAddr::from)) {
        parts.element(of_family("peer_addresses", address), &[Field::Address(address)], None);
        parts.element(of_family("peer_marks", address), &[Field::Address(address)], mark());
    }
    if let Some(mac) = mac {
        parts.element("peers", &[Field::Mac(mac)], mark());
    }
    parts
}

/// A network: its containers reach its blocks and nothing else of the cluster; of an internal one, nothing else at
/// all.
pub(crate) fn network(name: &str, known: Option<&Network>, twins: &Twins) -> Parts {
    let mut parts = Parts::default();
    let (set, set6) = (network_set(name), network_set6(name));
    let mut rules = vec![Rule::Reach { set: set.clone() }, Rule::Reach6 { set: set6.clone() }];
    if known.is_some_and(|network| network.internal) {
        rules.push(Rule::Shut);
    } else {
        rules.extend([Rule::Fence, Rule::Fence6]);
    }
    parts.chain(&network_chain(name), rules);
    parts.sets.insert(set, Kind::Ranges);
    parts.sets.insert(set6, Kind::Ranges6);
    for subnet in known.into_iter().flat_map(|network| &network.subnets) {
        for range in twins.both_ranges(*subnet) {
            parts.element(of_family("pools", range.addr()), &[Field::Range(range)], None);
        }
    }
    parts
}

/// A network that a container is in, and its addresses there.
pub(crate) type Place<'a> = (&'a str, Ipv4Addr, Option<Ipv6Addr>);

/// A container in several networks. Its own connections have its first address, which reaches what is in the others
/// as well, and comes there as its address of that network. A way out of one of them is a way out.
pub(crate) fn several(id: &str, networks: &[Place<'_>], internal: impl Fn(&str) -> bool) -> Parts {
    let mut parts = Parts::default();
    let [(first, address, address6), others @ ..] = networks else { return parts };
    if others.is_empty() {
        return parts;
    }
    let (reach, pose) = (format!("also_{}", identifier(id)), format!("as_{}", identifier(id)));
    let mut reaches = Vec::new();
    let mut poses = Vec::new();
    for (network, own, own6) in others {
        let (set, set6) = (network_set(network), network_set6(network));
        reaches.extend([Rule::Reach { set: set.clone() }, Rule::Reach6 { set: set6.clone() }]);
        poses.push(Rule::Pose { set, address: *own });
        parts.element("hairpin", &[(*address).into(), (*own).into()], None);
        if let (Some(address), Some(own)) = (address6, own6) {
            poses.push(Rule::Pose6 { set: set6, address: *own });
            parts.element("hairpin6", &[(*address).into(), (*own).into()], None);
        }
    }
    let freed = internal(first) && !others.iter().all(|(network, ..)| internal(network));
    if freed {
        reaches.extend([Rule::Leave, Rule::Leave6]);
    }
    parts.chain(&reach, reaches);
    parts.chain(&pose, poses);
    for address in std::iter::once((*address).into()).chain(address6.map(IpAddr::from)) {
        let key = [Field::Address(address)];
        parts.element(of_family("several", address), &key, Some(Value::Jump(reach.clone())));
        parts.element(of_family("poses", address), &key, Some(Value::Jump(pose.clone())));
        if freed {
            parts.element(of_family("freed", address), &key, None);
        }
    }
    parts
}

/// A block: part of its network, and known to be its node's, which has these addresses.
pub(crate) fn block(block: &Block, node: &[IpAddr], known: Option<&Network>, twins: &Twins) -> Parts {
    let mut parts = Parts::default();
    let chain = network_chain(&block.network);
    for range in twins.both_ranges(block.block.trunc()) {
        let v4 = range.addr().is_ipv4();
        let set = if v4 { network_set(&block.network) } else { network_set6(&block.network) };
        let mut add = |set: &str, key: &[Field], value| parts.element(set, key, value);
        add(&set, &[Field::Range(range)], None);
        let named = |set| of_family(set, range.addr());
        add(named("networks"), &[Field::Range(range)], Some(Value::Goto(chain.clone())));
        if known.is_some_and(|network| network.internal) {
            add(named("closed"), &[Field::Range(range)], None);
        }
        if known.is_some_and(|network| network.link_local) {
            add(named("metadata"), &[Field::Range(range)], None);
        }
        for address in node.iter().filter(|address| address.is_ipv4() == v4) {
            add(named("own_blocks"), &[Field::Address(*address), Field::Range(range)], None);
        }
    }
    parts
}

pub(crate) fn network_chain(name: &str) -> String {
    format!("from_{}", identifier(name))
}

pub(crate) fn network_set(name: &str) -> String {
    format!("net_{}", identifier(name))
}

pub(crate) fn network_set6(name: &str) -> String {
    format!("net6_{}", identifier(name))
}

/// A name of nftables: the id where it is one, else one made from it.
fn identifier(id: &str) -> String {
    let plain = id.len() <= 64 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if plain {
        return id.to_owned();
    }
    let letters: String = id.chars().filter(char::is_ascii_alphanumeric).take(20).collect();
    format!("{letters}_{}", random::digest(id, 12))
}
