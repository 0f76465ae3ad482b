//! What each item has in the table.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::base::MARK_SHIFT;
use super::rule::{Field, Fields, Rule, Turn, Value};
use super::{Element, Parts};
use crate::model::{Block, HostPort, Network, Protocol, PublishedPort, ServiceView};
use crate::netlink::link::Mac;
use crate::random;

impl Parts {
    fn element(&mut self, set: &str, key: &[Field], value: Option<Value>) {
        self.elements.insert(element(set, key), value);
    }

    fn chain(&mut self, name: &str, rules: Vec<Rule>) {
        self.chains.insert(name.to_owned(), rules);
    }

    /// A port of the node that leads to what the rules say, for those who may use it. Who that is stands in a chain of
    /// its own: endpoints come and go without it.
    fn publish(&mut self, port: Published, rules: Vec<Rule>, allow: &[Ipv4Net]) {
        let (protocol, number, address) = port;
        let mut chain = format!("port_{protocol}_{number}");
        if let Some(address) = address {
            chain.push_str(&format!("_at_{}", address.to_string().replace('.', "_")));
        }
        self.chain(&chain, rules);
        let everybody = allow.is_empty() || allow.iter().any(|range| range.prefix_len() == 0);
        if !everybody {
            let gate = format!("{chain}_gate");
            let admit = allow.iter().map(|from| Rule::Admit { from: from.trunc(), chain: chain.clone() });
            self.chain(&gate, admit.chain([Rule::Reset, Rule::Refuse]).collect());
            chain = gate;
        }
        self.elements.insert(published_at(port), Some(Value::Goto(chain)));
    }
}

/// What the names of the maps of published ports begin with.
pub(crate) const PUBLISHED: &str = "published";

/// Protocol and number of a port of the node, and the address that it is published on.
pub(crate) type Published = (Protocol, u16, Option<Ipv4Addr>);

fn element(set: &str, key: &[Field]) -> Element {
    Element { set: set.to_owned(), key: Fields(key.to_vec()) }
}

/// A service: its VIP and those of its ports that are published here.
pub(crate) fn service(service: &ServiceView, ports: &[PublishedPort], node: &str) -> Parts {
    let mut parts = Parts::default();
    let mut addresses: Vec<Ipv4Addr> = service.endpoints.iter().map(|e| e.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    shift(&mut addresses, node);
    if let Some(vip) = service.vip {
        let chain = format!("vip_{}", identifier(&service.id));
        parts.chain(&chain, balance(&addresses, service.sticky, None));
        parts.element("vips", &[Field::Address(vip)], Some(Value::Goto(chain)));
    }
    for port in ports {
        let PublishedPort { address, published, protocol, .. } = *port;
        let balance = balance(&addresses, service.sticky, Some((protocol, port.target)));
        parts.publish((protocol, published, address), balance, &port.allow);
        for endpoint in service.endpoints.iter().filter(|e| e.node == node) {
            let target =
                [Field::Address(endpoint.address), Field::Protocol(protocol), Field::Port(port.target)];
            parts.element("targets", &target, None);
        }
        match address {
            None => {
                parts.element("open_ports", &[Field::Protocol(protocol), Field::Port(published)], None);
            }
            Some(address) => {
                let key = [Field::Address(address), Field::Protocol(protocol), Field::Port(published)];
                parts.element("open_at", &key, None);
            }
        }
    }
    for endpoint in service.endpoints.iter().filter(|e| e.node == node) {
        parts.element("hairpin", &[Field::Address(endpoint.address); 2], None);
    }
    parts
}

/// The element that stands for a service's published port.
pub(crate) fn published(port: &PublishedPort) -> Element {
    published_at((port.protocol, port.published, port.address))
}

fn published_at((protocol, port, address): Published) -> Element {
    let [protocol, port] = [Field::Protocol(protocol), Field::Port(port)];
    match address {
        None => element("published", &[protocol, port]),
        Some(address) => element("published_at", &[Field::Address(address), protocol, port]),
    }
}

/// Whether an element stands for a published port that meets this one: the same, on an address of both.
pub(crate) fn meets(element: &Element, (protocol, port, address): Published) -> bool {
    match (element.set.as_str(), element.key.0.as_slice()) {
        ("published", key) => *key == [Field::Protocol(protocol), Field::Port(port)],
        ("published_at", [Field::Address(at), key @ ..]) => {
            *key == [Field::Protocol(protocol), Field::Port(port)] && address.is_none_or(|own| own == *at)
        }
        _ => false,
    }
}

/// The element that stands for a container's published port.
fn host_port(port: &HostPort) -> Element {
    let HostPort { protocol, published, .. } = *port;
    match port.address {
        None => element("hostports", &[Field::Protocol(protocol), Field::Port(published)]),
        Some(address) => {
            let key = [Field::Address(address), Field::Protocol(protocol), Field::Port(published)];
            element("hostports_at", &key)
        }
    }
}

/// The published ports of one container.
pub(crate) fn host_ports(address: Ipv4Addr, ports: &[HostPort]) -> Parts {
    let mut parts = Parts::default();
    for port in ports {
        parts.element("hairpin", &[Field::Address(address); 2], None);
        if !port.allow.is_empty() {
            let rule = Rule::Balance {
                addresses: vec![address],
                by: Turn::Next,
                port: Some((port.protocol, port.target)),
            };
            parts.publish((port.protocol, port.published, port.address), vec![rule], &port.allow);
            continue;
        }
        let target = Fields(vec![Field::Address(address), Field::Port(port.target)]);
        parts.elements.insert(host_port(port), Some(Value::Fields(target)));
    }
    parts
}

/// A peer: packets from its Ethernet address are its.
pub(crate) fn peer(underlay: Ipv4Addr, mac: Option<Mac>, number: u16) -> Parts {
    let mut parts = Parts::default();
    let mark = || Some(Value::Mark(u32::from(number) << MARK_SHIFT));
    parts.element("peer_addresses", &[Field::Address(underlay)], None);
    parts.element("peer_marks", &[Field::Address(underlay)], mark());
    if let Some(mac) = mac {
        parts.element("peers", &[Field::Mac(mac)], mark());
    }
    parts
}

/// A network: its containers reach its blocks and nothing else of the cluster; of an internal one, nothing else at
/// all.
pub(crate) fn network(name: &str, known: Option<&Network>) -> Parts {
    let mut parts = Parts::default();
    let set = network_set(name);
    let end = if known.is_some_and(|network| network.internal) { Rule::Shut } else { Rule::Fence };
    parts.chain(&network_chain(name), vec![Rule::Reach { set: set.clone() }, end]);
    parts.sets.insert(set, "type ipv4_addr; flags interval;");
    for subnet in known.into_iter().flat_map(|network| &network.subnets) {
        parts.element("pools", &[Field::Range(subnet.trunc())], None);
    }
    parts
}

/// A container in several networks. Its own connections have its first address, which reaches what is in the others
/// as well, and comes there as its address of that network. A way out of one of them is a way out.
pub(crate) fn several(id: &str, networks: &[(&str, Ipv4Addr)], internal: impl Fn(&str) -> bool) -> Parts {
    let mut parts = Parts::default();
    let [(first, address), others @ ..] = networks else { return parts };
    if others.is_empty() {
        return parts;
    }
    let (reach, pose) = (format!("also_{}", identifier(id)), format!("as_{}", identifier(id)));
    let mut reaches = Vec::new();
    let mut poses = Vec::new();
    for (network, own) in others {
        let set = network_set(network);
        reaches.push(Rule::Reach { set: set.clone() });
        poses.push(Rule::Pose { set, address: *own });
        parts.element("hairpin", &[Field::Address(*address), Field::Address(*own)], None);
    }
    if internal(first) && !others.iter().all(|(network, _)| internal(network)) {
        reaches.push(Rule::Leave);
    }
    parts.chain(&reach, reaches);
    parts.chain(&pose, poses);
    parts.element("several", &[Field::Address(*address)], Some(Value::Jump(reach)));
    parts.element("poses", &[Field::Address(*address)], Some(Value::Jump(pose)));
    parts
}

/// A block: part of its network, and known to be its node's.
pub(crate) fn block(block: &Block, underlay: Option<Ipv4Addr>, known: Option<&Network>) -> Parts {
    let mut parts = Parts::default();
    let range = block.block.trunc();
    let chain = network_chain(&block.network);
    parts.element(&network_set(&block.network), &[Field::Range(range)], None);
    parts.element("networks", &[Field::Range(range)], Some(Value::Goto(chain)));
    if known.is_some_and(|network| network.internal) {
        parts.element("closed", &[Field::Range(range)], None);
    }
    if known.is_some_and(|network| network.link_local) {
        parts.element("metadata", &[Field::Range(range)], None);
    }
    if let Some(underlay) = underlay {
        parts.element("own_blocks", &[Field::Address(underlay), Field::Range(range)], None);
    }
    parts
}

pub(crate) fn network_chain(name: &str) -> String {
    format!("from_{}", identifier(name))
}

pub(crate) fn network_set(name: &str) -> String {
    format!("net_{}", identifier(name))
}

/// Who comes first. The kernel begins to count anew with every change, on every node: if it always began with the
/// lowest address, that one would get more than its share. The same endpoints give the same order.
fn shift(addresses: &mut [Ipv4Addr], node: &str) {
    if addresses.is_empty() {
        return;
    }
    let by = random::hash(&format!("{node} {addresses:?}")) % addresses.len() as u64;
    addresses.rotate_left(by as usize);
}

/// How many places a service has over which its clients are spread where each has its own endpoint.
const PLACES: u32 = 512;

/// Every address in turn, or each client its own. A service without endpoints refuses at once.
fn balance(addresses: &[Ipv4Addr], sticky: bool, port: Option<(Protocol, u16)>) -> Vec<Rule> {
    if addresses.is_empty() {
        return vec![Rule::Reset, Rule::Refuse];
    }
    if sticky && addresses.len() > 1 {
        return vec![Rule::Balance { addresses: places(addresses), by: Turn::Client, port }];
    }
    vec![Rule::Balance { addresses: addresses.to_vec(), by: Turn::Next, port }]
}

/// Who has each place: the address that draws the highest number for it. So one that goes leaves its own places to the
/// others, one that comes takes its share from all, and everything else stays as it was.
fn places(addresses: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
    let draw =
        |place: u32, address: Ipv4Addr| random::mixed(u64::from(place) << 32 | u64::from(address.to_bits()));
    let best = |place: u32| addresses.iter().copied().max_by_key(|address| (draw(place, *address), *address));
    (0..PLACES).filter_map(best).collect()
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
