//! Turns a user's wish into the action that fulfils it, or into a refusal that says what is in the way.
//!
//! Pure functions of the state; what a spec must look like by itself is checked before, by
//! `rorqual_proto::validate`. Services stand here, networks in `network`, containers that join them in `guest`, the HTTP
//! edge in `edge`. The actions carry the versions that were seen: a [`crate::Conflict::Version`] means that the wish is
//! to be prepared again.

pub mod cluster;
pub mod edge;
pub mod guest;
pub mod network;
pub(crate) mod range;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rorqual_proto::model::{
    Meta, PortClaim, PortSpec, Protocol, Service, ServiceId, ServiceMode, ServiceSpec,
};

use crate::State;
use crate::action::{Action, ActionKind};
use crate::allocate::{self, Given, network_names};

/// Why a wish is not fulfilled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such service.
    #[error("there is no {kind} `{name}`")]
    NotFound {
        /// `service`.
        kind: &'static str,
        /// What was asked for.
        name: String,
    },
    /// Another service has the name.
    #[error("the {kind} name `{name}` is already in use: choose another name, or remove that {kind} first")]
    NameTaken {
        /// `service`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A name can't be changed: DNS and tasks are called by it.
    #[error("a service keeps its name: it is `{name}`, not `{given}`; create another service instead")]
    Renamed {
        /// What it is called.
        name: String,
        /// What it should be called.
        given: String,
    },
    /// Another service publishes the port.
    #[error(
        "port {port} is already published by service `{service}`: choose another port, publish the two on different \
         addresses of the nodes, or remove it there"
    )]
    PortTaken {
        /// The published port.
        port: PortClaim,
        /// Who has it.
        service: String,
    },
    /// A port is to be published on an address that nobody has.
    #[error(
        "port {port}/{protocol}: no node has the address {address}; name one that a node has, 127.0.0.1 or ::1 for \
         the nodes themselves alone, or leave it out"
    )]
    NoAddress {
        /// The published port.
        port: u16,
        /// Its transport.
        protocol: Protocol,
        /// What was asked for.
        address: IpAddr,
    },
    /// The HTTP edge has the port on every node.
    #[error(
        "port {0}/tcp is the HTTP edge's: choose another port, or another one for it (`rctl cluster update`)"
    )]
    EdgePort(u16),
    /// The settings of the HTTP edge make no sense.
    #[error(transparent)]
    Edge(rorqual_proto::InvalidField),
    /// Another service has the route.
    #[error("{route} already leads to service `{service}`: choose another host or path, or remove it there")]
    RouteTaken {
        /// Host and path.
        route: String,
        /// Whose it is.
        service: String,
    },
    /// A network that the spec names does not exist.
    #[error("network `{0}` does not exist: create it, or name another network")]
    NoNetwork(String),
    /// An address was chosen where none can be.
    #[error(
        "network `{0}` has no range of its own, of which an address could be chosen: leave the address out, or make a \
         network with --subnet"
    )]
    NoOwnRange(String),
    /// A chosen address needs a range of the network's own.
    #[error(
        "network `{0}` has no IPv6 range of its own, so no IPv6 address of it can be chosen: leave it out, or make a network \
         with --subnet fd00:1::/64"
    )]
    NoOwnRange6(String),
    /// A chosen address is not the network's.
    #[error("{address} is no address for a container in network `{network}`: choose one of its ranges")]
    OutOfRange {
        /// What was asked for.
        address: IpAddr,
        /// The network.
        network: String,
    },
    /// A chosen address is given already.
    #[error("address {address} is already given to {owner}: choose another one, or leave it out")]
    AddressTaken {
        /// What was asked for.
        address: Ipv4Addr,
        /// Who has it, in words.
        owner: String,
    },
    /// Nothing is left to give.
    #[error("no free address in network `{0}` and no block is left in its pool: remove what is in it")]
    Exhausted(String),
    /// Something else has a part of the range.
    #[error("subnets: {subnet} overlaps {with}: choose a range that nothing else uses")]
    SubnetTaken {
        /// What was asked for.
        subnet: IpNet,
        /// What it overlaps, in words.
        with: String,
    },
    /// IPv6 ranges stand beside IPv4 ranges.
    #[error(
        "subnets: no private IPv4 range is free that could stand beside: give one (--subnet 10.20.0.0/24)"
    )]
    NothingBeside,
    /// Two addresses that were chosen don't stand beside each other.
    #[error(
        "{address6} does not stand beside {address} in network `{network}`: choose {expected}, or one address alone"
    )]
    NotBeside {
        /// What was asked for.
        address: Ipv4Addr,
        /// The IPv6 one.
        address6: Ipv6Addr,
        /// The network.
        network: String,
        /// What stands beside the first.
        expected: Ipv6Addr,
    },
    /// A network that is used can't go.
    #[error("network `{name}` is used by {users}: remove or disconnect that first")]
    NetworkInUse {
        /// Its name.
        name: String,
        /// By whom, in words.
        users: String,
    },
    /// Every service that names no network is in this one.
    #[error("network `{0}` is where services go that name no network: it stays")]
    DefaultNetwork(String),
    /// The service is being taken away.
    #[error("service `{0}` is being removed: wait until it is gone, then create it again")]
    Removing(String),
    /// There is nothing to go back to.
    #[error("service `{0}` was not updated yet: there is no previous specification to go back to")]
    NoPrevious(String),
    /// The service changed since the caller read it.
    #[error(
        "service `{name}` has changed meanwhile (version {actual}, not {expected}): read it again and repeat"
    )]
    VersionMoved {
        /// Its name.
        name: String,
        /// What the caller saw.
        expected: u64,
        /// What it is.
        actual: u64,
    },
}

/// A new service. It has its ports and virtual addresses from the start. `sealed_auths` is kept as it is.
pub fn create_service(
    state: &State,
    spec: ServiceSpec,
    id: ServiceId,
    sealed_auths: Vec<u8>,
) -> Result<Action, Refusal> {
    if let Some(other) = state.service_by_name(&spec.name) {
        return Err(if other.removing {
            Refusal::Removing(spec.name)
        } else {
            Refusal::NameTaken { kind: "service", name: spec.name }
        });
    }
    let service = Service {
        id,
        meta: Meta::default(),
        spec,
        spec_version: 1,
        vips: Vec::new(),
        ports: Vec::new(),
        removing: false,
        problem: None,
        previous_spec: None,
        sealed_auths,
    };
    put(state, service, 0)
}

/// A service with another spec. `version` is the one that the caller read, where that matters. Tasks are
/// replaced where what they run has changed; a change of labels, ports or the number of replicas alone
/// replaces none, and neither do other `sealed_auths`. What is replaced stays as the previous spec; an update that
/// changes nothing leaves that alone.
pub fn update_service(
    state: &State,
    id: &ServiceId,
    spec: ServiceSpec,
    version: Option<u64>,
    sealed_auths: Vec<u8>,
) -> Result<Action, Refusal> {
    let old = present(state, id)?;
    if let Some(expected) = version
        && expected != old.meta.version
    {
        let name = old.spec.name.clone();
        return Err(Refusal::VersionMoved { name, expected, actual: old.meta.version });
    }
    if spec.name != old.spec.name {
        return Err(Refusal::Renamed { name: old.spec.name.clone(), given: spec.name });
    }
    put(state, Service { sealed_auths, ..replaced(old, spec) }, old.meta.version)
}

/// A service with its previous spec, and that one with the present: a second rollback undoes the first.
pub fn rollback(state: &State, id: &ServiceId) -> Result<Action, Refusal> {
    let old = present(state, id)?;
    let previous = old.previous_spec.as_deref().cloned();
    let spec = previous.ok_or_else(|| Refusal::NoPrevious(old.spec.name.clone()))?;
    put(state, replaced(old, spec), old.meta.version)
}

fn replaced(old: &Service, spec: ServiceSpec) -> Service {
    let spec_version = old.spec_version + u64::from(replaces_tasks(&old.spec, &spec));
    let previous_spec = match old.spec == spec {
        true => old.previous_spec.clone(),
        false => Some(Box::new(old.spec.clone())),
    };
    Service { spec, spec_version, previous_spec, ..old.clone() }
}

/// A service with another number of replicas, which a rollback leaves as it is.
pub fn scale(state: &State, id: &ServiceId, replicas: u32) -> Result<Action, Refusal> {
    let old = present(state, id)?;
    let mut service = old.clone();
    service.spec.mode = ServiceMode::Replicated { replicas };
    if let Some(previous) = &mut service.previous_spec {
        previous.mode = service.spec.mode;
    }
    Ok(Action::expecting(ActionKind::PutService(Box::new(service)), old.meta.version))
}

/// Takes a service away: its tasks go first, then its record. Doing it twice is fine.
pub fn remove(state: &State, id: &ServiceId) -> Result<Action, Refusal> {
    let old = state.service(id).ok_or_else(|| Refusal::NotFound { kind: "service", name: id.to_string() })?;
    let service = Service { removing: true, ..Service::clone(old) };
    Ok(Action::expecting(ActionKind::PutService(Box::new(service)), old.meta.version))
}

fn present<'a>(state: &'a State, id: &ServiceId) -> Result<&'a Service, Refusal> {
    let service =
        state.service(id).ok_or_else(|| Refusal::NotFound { kind: "service", name: id.to_string() })?;
    if service.removing {
        return Err(Refusal::Removing(service.spec.name.clone()));
    }
    Ok(service)
}

/// What a task runs, or where it may run, is different.
fn replaces_tasks(old: &ServiceSpec, new: &ServiceSpec) -> bool {
    old.container != new.container
        // Further names in a network are the service's: its tasks stay as they are.
        || network_names(old) != network_names(new)
        || old.restart != new.restart
        || old.placement != new.placement
        || old.force_update != new.force_update
}

/// A port on an address that no node has said to have. What was there before may stay: addresses move.
fn unknown_address<'a>(state: &State, service: &'a Service) -> Option<(&'a PortSpec, IpAddr)> {
    let before = state.service(&service.id).map(|old| old.spec.ports.as_slice()).unwrap_or_default();
    let bound = service.spec.ports.iter().filter_map(|port| Some((port, port.address?)));
    let mut foreign = bound.filter(|(_, address)| {
        !address.is_loopback()
            && !before.iter().any(|had| had.address == Some(*address))
            && !state.nodes().any(|node| node.has_address(*address))
    });
    foreign.next()
}

fn put(state: &State, mut service: Service, version: u64) -> Result<Action, Refusal> {
    let mut given = Given::default();
    for route in &service.spec.routes {
        if let Some(owner) = edge::route_owner(state, &service.id, route) {
            return Err(Refusal::RouteTaken { route: route.address(), service: owner });
        }
    }
    for port in service.spec.ports.iter().filter(|port| port.published != 0) {
        let (published, protocol) = (port.published, port.protocol);
        if state.has_edge_port(protocol, published) {
            return Err(Refusal::EdgePort(published));
        }
        if let Some(owner) = allocate::port_owner(state, &given, &service, port.claim()) {
            return Err(Refusal::PortTaken { port: port.claim(), service: owner });
        }
    }
    if let Some((port, address)) = unknown_address(state, &service) {
        let (port, protocol) = (port.published, port.protocol);
        return Err(Refusal::NoAddress { port, protocol, address });
    }
    if let Some(name) = network_names(&service.spec).iter().find(|name| state.network_by_name(name).is_none())
    {
        return Err(Refusal::NoNetwork((*name).to_owned()));
    }
    // What is left (a pool that is exhausted) may pass: it is written down and tried again.
    let allocation = allocate::service(state, &mut given, &service);
    service.vips = allocation.vips;
    service.ports = allocation.ports;
    service.problem = (!allocation.problems.is_empty()).then(|| allocation.problems.join("; "));
    Ok(Action::expecting(ActionKind::PutService(Box::new(service)), version))
}
