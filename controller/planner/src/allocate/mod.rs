//! Gives what must not be given twice: virtual addresses and published ports of services here, addresses
//! of tasks in `address.rs`.

pub(crate) mod address;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rorqual_proto::model::network::DEFAULT_NETWORK;
use rorqual_proto::model::{NetworkJoin, PortClaim, PortSpec, Service, ServiceSpec, Vip};

use crate::State;

/// Ports that are given where a spec leaves the published port open.
pub const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// What the plan in the making has given on top of the state.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// With the name of the service that has it.
    ports: BTreeMap<PortClaim, String>,
    vips: BTreeSet<Ipv4Addr>,
    last_vip: Option<Ipv4Addr>,
}

/// What a service has, and why it lacks the rest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Allocation {
    pub(crate) vips: Vec<Vip>,
    pub(crate) ports: Vec<PortSpec>,
    pub(crate) problems: Vec<String>,
}

/// The networks that a spec names.
pub(crate) fn network_names(spec: &ServiceSpec) -> Vec<&str> {
    names_or_default(&spec.networks)
}

/// The named networks, or the default one.
pub(crate) fn names_or_default(joins: &[NetworkJoin]) -> Vec<&str> {
    if joins.is_empty() {
        return vec![DEFAULT_NETWORK];
    }
    joins.iter().map(|join| join.network.as_str()).collect()
}

/// Gives a service its ports and virtual addresses; what it has it keeps.
pub(crate) fn service(state: &State, given: &mut Given, service: &Service) -> Allocation {
    let mut problems = Vec::new();
    let ports = ports(state, given, service, &mut problems);
    let vips = vips(state, given, service, &mut problems);
    Allocation { vips, ports, problems }
}

fn ports(state: &State, given: &mut Given, service: &Service, problems: &mut Vec<String>) -> Vec<PortSpec> {
    let fixed: BTreeMap<PortClaim, ()> = service.spec.ports.iter().map(|port| (port.claim(), ())).collect();
    let mut ports: Vec<PortSpec> = Vec::new();
    for wanted in &service.spec.ports {
        let key = |published| PortClaim { published, ..wanted.claim() };
        let own = |published| ports.iter().any(|port| port.claim().meets(&key(published)));
        let owner = |published| {
            let edge = state.has_edge_port(wanted.protocol, published).then(|| "the HTTP edge".to_owned());
            edge.or_else(|| port_owner(state, given, service, key(published)))
        };
        let published = if wanted.published != 0 {
            if let Some(name) = owner(wanted.published) {
                problems.push(taken(wanted, &name));
                continue;
            }
            Some(wanted.published)
        } else {
            let kept = service.ports.iter().filter(|had| {
                had.target == wanted.target
                    && had.claim() == key(had.published)
                    && DYNAMIC_PORTS.contains(&had.published)
            });
            // A port that the service had for another target rests, or is claimed by that one.
            let had = |port: &u16| service.ports.iter().any(|had| had.claim().meets(&key(*port)));
            kept.map(|had| had.published).chain(DYNAMIC_PORTS.filter(|port| !had(port))).find(|port| {
                !own(*port) && key(*port).holders(&fixed).next().is_none() && owner(*port).is_none()
            })
        };
        match published {
            Some(published) => ports.push(PortSpec { published, ..wanted.clone() }),
            None => problems.push(format!(
                "no port is left in {}–{} for target {}/{}: name a published port",
                DYNAMIC_PORTS.start(),
                DYNAMIC_PORTS.end(),
                wanted.target,
                wanted.protocol
            )),
        }
    }
    for port in &ports {
        given.ports.insert(port.claim(), service.spec.name.clone());
    }
    ports
}

fn taken(port: &PortSpec, by: &str) -> String {
    format!(
        "port {} is already published by service `{by}`: choose another port or remove it there",
        port.claim()
    )
}

/// The name of the other service that has a port.
pub(crate) fn port_owner(state: &State, given: &Given, service: &Service, port: PortClaim) -> Option<String> {
    if let Some(owner) = port.holders(&state.index.ports).find(|owner| **owner != service.id) {
        return Some(state.service(owner).map_or_else(|| owner.to_string(), |other| other.spec.name.clone()));
    }
    port.holders(&given.ports).find(|name| **name != service.spec.name).cloned()
}

fn vips(state: &State, given: &mut Given, service: &Service, problems: &mut Vec<String>) -> Vec<Vip> {
    let mut vips = Vec::new();
    for name in network_names(&service.spec) {
        let Some(network) = state.network_by_name(name) else {
            problems.push(format!("network `{name}` does not exist: create it, or name another network"));
            continue;
        };
        let kept = service.vips.iter().find(|vip| vip.network_id == network.id).map(|vip| vip.address);
        let Some(address) = kept.or_else(|| next_vip(state, given)) else {
            let pool = state.cluster().map_or_else(String::new, |cluster| format!(" {}", cluster.vip_pool));
            problems.push(format!("no virtual address is left in the pool{pool}: remove services"));
            continue;
        };
        vips.push(Vip { network_id: network.id.clone(), address });
    }
    vips
}

fn next_vip(state: &State, given: &mut Given) -> Option<Ipv4Addr> {
    let pool = state.cluster()?.vip_pool;
    let last = given.last_vip.or(state.index.last_vip);
    let is_taken =
        |address: &Ipv4Addr| state.index.vips.contains_key(address) || given.vips.contains(address);
    let address = behind(pool, last).find(|address| !is_taken(address) && !is_edge(pool, *address))?;
    given.vips.insert(address);
    given.last_vip = Some(address);
    Some(address)
}

/// The first and the last address of a pool are never given: they mean the network and everybody in it.
pub(crate) fn is_edge(pool: Ipv4Net, address: Ipv4Addr) -> bool {
    address == pool.network() || address == pool.broadcast()
}

/// All addresses of a net, from the one behind `last` on and around.
pub(crate) fn behind(net: Ipv4Net, last: Option<Ipv4Addr>) -> impl Iterator<Item = Ipv4Addr> {
    let first = net.network().to_bits();
    let size = u64::from(net.broadcast().to_bits() - first) + 1;
    let start =
        last.filter(|last| net.contains(last)).map_or(0, |last| u64::from(last.to_bits() - first) + 1);
    (0..size).filter_map(move |step| {
        let offset = u32::try_from((start + step) % size).ok()?;
        Some(Ipv4Addr::from_bits(first + offset))
    })
}
