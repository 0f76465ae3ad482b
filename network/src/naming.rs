//! Which names services and containers have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::container::Record;
use crate::dns::names::{Entry, Names, Owner};
use crate::dns::ports::{Offer, Replica};
use crate::model::{Attach, Endpoint, ServiceView};
use crate::twins::Twins;

/// The names of a service in its network: its own and its aliases mean its virtual address (all endpoints where it
/// has none), `tasks.<name>` all endpoints, and each endpoint has one. Those come first: an address is called after
/// them. Names that stand for unready ones as well mean all that run, and these have a name each then, too. A guest has
/// its name and its aliases.
///
/// `twin` tells the IPv6 address of an endpoint.
pub(crate) fn of_service(
    service: &ServiceView,
    twins: &Twins,
    twin: impl Fn(&Endpoint) -> Option<Ipv6Addr>,
) -> (Owner, Vec<Entry>) {
    let entry =
        |name: String, addresses: Vec<IpAddr>| Entry { network: service.network.clone(), name, addresses };
    let both = |endpoint: &Endpoint| -> Vec<IpAddr> {
        std::iter::once(endpoint.address.into()).chain(twin(endpoint).map(IpAddr::from)).collect()
    };
    let all: Vec<IpAddr> = service.endpoints.iter().flat_map(both).collect();
    if service.guest {
        let names = std::iter::once(&service.name).chain(&service.aliases);
        let entries = names.map(|name| entry(name.clone(), all.clone()));
        return (Owner::Guest(service.id.clone()), entries.collect());
    }
    let named: &[Endpoint] = if service.unready.aliases.is_empty() { &[] } else { &service.unready.tasks };
    let running = || service.endpoints.iter().chain(named);
    let mut entries: Vec<Entry> = running().map(|e| entry(e.name.clone(), both(e))).collect();
    let addresses = service.vip.map_or_else(|| all.clone(), |vip| twins.both(vip).collect());
    for name in std::iter::once(&service.name).chain(&service.aliases) {
        entries.push(entry(name.clone(), addresses.clone()));
    }
    entries.push(entry(format!("tasks.{}", service.name), all));
    for name in &service.unready.aliases {
        entries.push(entry(name.clone(), running().flat_map(both).collect()));
    }
    (Owner::Service(service.id.clone()), entries)
}

/// What a service offers to those who ask for its ports, and under which names. A guest has said nothing of ports.
pub(crate) fn offer_of(service: &ServiceView) -> Option<(Vec<&str>, Offer)> {
    if service.guest {
        return None;
    }
    let called = std::iter::once(&service.name).chain(&service.aliases).map(String::as_str).collect();
    let ports = service.ports.iter().map(|port| (port.protocol, port.target)).collect();
    let replica = |endpoint: &Endpoint| Replica {
        name: endpoint.name.clone(),
        address: endpoint.address,
        weight: u16::try_from(endpoint.weight).unwrap_or(u16::MAX),
    };
    Some((called, Offer { ports, replicas: service.endpoints.iter().map(replica).collect() }))
}

/// Makes a container known to the resolver: its name and aliases, and in which networks it asks.
pub(crate) fn announce(names: &Names, record: &Record) {
    let Attach { id, name, networks, .. } = &record.attach;
    let mut entries = Vec::new();
    for (join, interface) in networks.iter().zip(&record.interfaces) {
        for name in std::iter::once(name).chain(&join.aliases) {
            let (network, name) = (join.network.clone(), name.clone());
            entries.push(Entry { network, name, addresses: interface.addresses().collect() });
        }
    }
    names.set(Owner::Container(id.clone()), entries);
    let addresses: Vec<Ipv4Addr> = record.interfaces.iter().map(|i| i.address).collect();
    let networks: Vec<String> = networks.iter().map(|join| join.network.clone()).collect();
    names.set_client(&addresses, &networks);
    names.set_resolvers(&addresses, &record.attach.resolvers);
}
