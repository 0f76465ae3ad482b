//! Which published ports of services may take effect on this node: a port has one holder, and a port on which a
//! process of the node listens is left to it.

use std::collections::BTreeMap;

use crate::container::Containers;
use crate::desired::Desired;
use crate::error::Error;
use crate::host;
use crate::model::{PublishedPort, ServiceView};
use crate::netlink::diag::Listeners;
use crate::ruleset::{Element, Item, Ruleset, parts};

/// The ports of the services that were looked at, and what is wrong with the others.
#[derive(Debug, Default)]
pub(crate) struct Admitted {
    pub(crate) ports: BTreeMap<String, Vec<PublishedPort>>,
    pub(crate) errors: BTreeMap<String, Vec<Error>>,
}

/// Looks at the ports of these services. One that has a port keeps it.
pub(crate) fn admit<'a>(
    ids: impl Iterator<Item = &'a String> + Clone,
    desired: &Desired,
    ruleset: &Ruleset,
    containers: &Containers,
    node: &str,
) -> Admitted {
    let mut claims: BTreeMap<Element, &str> = BTreeMap::new();
    let services = || ids.clone().filter_map(|id| desired.services.get(id));
    for service in services() {
        let item = Item::Service(service.id.clone());
        for element in service.ports.iter().map(parts::published) {
            if ruleset.has(&item, &element) {
                claims.insert(element, &service.id);
            }
        }
    }
    let mut admitted = Admitted::default();
    let mut listeners = Listeners::default();
    for service in services() {
        let mut ports = Vec::new();
        let lives_here = service.endpoints.iter().any(|endpoint| endpoint.node == node);
        for port in &service.ports {
            let element = parts::published(port);
            if claims.get(&element).is_some_and(|holder| *holder == service.id) {
                ports.push(port.clone());
                continue;
            }
            let key = (port.protocol, port.published, port.address);
            // Without a replica here nothing is published, and nothing is in the way. What would be is told all the same, so
            // that none is sent here.
            let idle = port.local && !lives_here;
            let mut others = claims.iter().filter(|(_, holder)| !idle && **holder != service.id);
            let claimed = others.find(|(element, _)| parts::meets(element, key));
            let claimed = claimed.map(|(_, holder)| format!("service {holder}"));
            let other = || other_service(key, &service.id, desired, ruleset).filter(|_| !idle);
            let conflict = claimed.or_else(other).or_else(|| {
                let id = containers.with_port(port.published, port.protocol, port.address)?;
                Some(format!("container {id}"))
            });
            let checked = check(&mut listeners, port, conflict);
            if checked.is_ok() && !idle {
                claims.insert(element, &service.id);
            }
            if checked.is_ok() || (idle && host::has_protocol(port.protocol)) {
                ports.push(port.clone());
            }
            if let Err(error) = checked {
                admitted.errors.entry(service.id.clone()).or_default().push(error);
            }
        }
        admitted.ports.insert(service.id.clone(), ports);
    }
    admitted
}

fn check(listeners: &mut Listeners, port: &PublishedPort, conflict: Option<String>) -> Result<(), Error> {
    let PublishedPort { published: port, protocol, address, .. } = *port;
    // Nothing of this node can be in the way of an address that it has not got.
    if let Some(address) = address
        && !host::has_address(address)?
    {
        return Ok(());
    }
    if let Some(holder) = conflict {
        return Err(Error::PortConflict { port, protocol, address, holder });
    }
    if !host::has_protocol(protocol) {
        return Err(Error::ProtocolMissing { port, protocol, address });
    }
    match host::port_taken_of(listeners, port, protocol, address)? {
        None => Ok(()),
        Some(holder) => Err(Error::PortTaken { port, protocol, address, holder }),
    }
}

/// A service that has a part of the port in the kernel and still wants it.
fn other_service(port: parts::Published, id: &str, desired: &Desired, ruleset: &Ruleset) -> Option<String> {
    let still_wants = |holder: &Item, element: &Element| {
        let Item::Service(other) = holder else { return false };
        let wants =
            |service: &ServiceView| service.ports.iter().any(|port| parts::published(port) == *element);
        desired.services.get(other).is_some_and(wants)
    };
    match ruleset.publisher(port, &Item::Service(id.to_owned()), still_wants)? {
        Item::Service(other) => Some(format!("service {other}")),
        _ => None,
    }
}
