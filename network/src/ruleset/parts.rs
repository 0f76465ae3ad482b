//! What each item has in the table.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::base::MARK_SHIFT;
use super::{Element, Parts};
use crate::model::{Block, HostPort, Protocol, PublishedPort, ServiceView};
use crate::netlink::link::Mac;
use crate::random;

impl Parts {
    fn element(&mut self, set: &str, key: String, value: Option<String>) {
        self.elements.insert(Element { set: set.to_owned(), key }, value);
    }

    fn chain(&mut self, name: &str, rules: Vec<String>) {
        self.chains.insert(name.to_owned(), rules);
    }
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
        let rules = match choice(&addresses) {
            Some(choice) => vec![format!("dnat ip to {choice}")],
            None => nobody(),
        };
        parts.chain(&chain, rules);
        parts.element("vips", vip.to_string(), Some(format!("goto {chain}")));
    }
    for port in ports {
        let chain = format!("port_{}_{}", port.protocol, port.published);
        let rules = match choice(&addresses) {
            Some(choice) => {
                vec![format!("meta l4proto {} dnat ip to {choice} : {}", port.protocol, port.target)]
            }
            None => nobody(),
        };
        parts.chain(&chain, rules);
        let Element { set, key } = published(port);
        parts.element(&set, key, Some(format!("goto {chain}")));
    }
    for endpoint in service.endpoints.iter().filter(|e| e.node == node) {
        parts.element("hairpin", format!("{0} . {0}", endpoint.address), None);
    }
    parts
}

/// The element that stands for a service's published port.
pub(crate) fn published(port: &PublishedPort) -> Element {
    published_at(port.published, port.protocol)
}

/// The same, by number.
pub(crate) fn published_at(port: u16, protocol: Protocol) -> Element {
    Element { set: "published".to_owned(), key: format!("{protocol} . {port}") }
}

/// The element that stands for a container's published port.
fn host_port(port: &HostPort) -> Element {
    match port.address {
        None => {
            Element { set: "hostports".to_owned(), key: format!("{} . {}", port.protocol, port.published) }
        }
        Some(address) => Element {
            set: "hostports_at".to_owned(),
            key: format!("{address} . {} . {}", port.protocol, port.published),
        },
    }
}

/// The published ports of one container.
pub(crate) fn host_ports(address: Ipv4Addr, ports: &[HostPort]) -> Parts {
    let mut parts = Parts::default();
    for port in ports {
        parts.elements.insert(host_port(port), Some(format!("{address} . {}", port.target)));
        parts.element("hairpin", format!("{address} . {address}"), None);
    }
    parts
}

/// A peer: packets from its Ethernet address are its.
pub(crate) fn peer(underlay: Ipv4Addr, mac: Option<Mac>, number: u16) -> Parts {
    let mut parts = Parts::default();
    parts.element("peer_addresses", underlay.to_string(), None);
    if let Some(mac) = mac {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        parts.element("peers", mac, Some(format!("{:#010x}", u32::from(number) << MARK_SHIFT)));
    }
    parts
}

/// A network: its containers reach its blocks and nothing else of the cluster.
pub(crate) fn network(name: &str, cluster_pool: Ipv4Net, vip_pool: Ipv4Net, local_pool: Ipv4Net) -> Parts {
    let mut parts = Parts::default();
    let set = network_set(name);
    parts.chain(
        &network_chain(name),
        vec![
            format!("ip daddr @{set} accept"),
            format!(
                "ip daddr {{ {cluster_pool}, {vip_pool}, {local_pool} }} reject with icmpx admin-prohibited"
            ),
        ],
    );
    parts.sets.insert(set, "type ipv4_addr; flags interval;");
    parts
}

/// A block: part of its network, and known to be its node's.
pub(crate) fn block(block: &Block, underlay: Option<Ipv4Addr>) -> Parts {
    let mut parts = Parts::default();
    let range = block.block.trunc();
    parts.element(&network_set(&block.network), range.to_string(), None);
    parts.element("networks", range.to_string(), Some(format!("goto {}", network_chain(&block.network))));
    if let Some(underlay) = underlay {
        parts.element("own_blocks", format!("{underlay} . {range}"), None);
    }
    parts
}

pub(crate) fn network_chain(name: &str) -> String {
    format!("from_{}", identifier(name))
}

fn network_set(name: &str) -> String {
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

/// The choice of an address for a new connection: each in turn.
fn choice(addresses: &[Ipv4Addr]) -> Option<String> {
    match addresses {
        [] => None,
        [one] => Some(one.to_string()),
        many => {
            let map: Vec<String> = many.iter().enumerate().map(|(i, a)| format!("{i} : {a}")).collect();
            Some(format!("numgen inc mod {} map {{ {} }}", many.len(), map.join(", ")))
        }
    }
}

/// A service without endpoints refuses at once.
fn nobody() -> Vec<String> {
    vec!["meta l4proto tcp reject with tcp reset".to_owned(), "reject".to_owned()]
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
