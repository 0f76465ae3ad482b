//! What the fabric was told last, and what of an assignment set it has to be told next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::IpNet;
use rorqual_edge::Edge;
use rorqual_network::{
    Block, Change, Endpoint, Error, Fabric, Peer, Protocol, PublishedPort, ServiceView, Unready,
};
use rorqual_proto::model::NodeEncryption;
use rorqual_proto::model::node::DEFAULT_WEIGHT;
use rorqual_proto::wire::{self, NetworkBlock, NodeNetwork, NodePeer, ServiceEndpoints};
use tokio::sync::{RwLock, oneshot};

use super::settling::{Settled, Settling};
use super::{Event, OwnName};
use crate::edge;
use crate::held::{self, HeldPorts};
use crate::set::{SetChange, view_key};

/// What the fabric was told last.
pub(super) struct Feeder {
    fabric: Arc<RwLock<Option<Fabric>>>,
    own: OwnName,
    /// By [`view_key`].
    services: BTreeMap<String, ServiceEndpoints>,
    networks: BTreeMap<String, NodeNetwork>,
    blocks: BTreeMap<String, NetworkBlock>,
    peers: BTreeMap<String, NodePeer>,
    /// Tasks of this node that must get no traffic, although the set names them.
    down: BTreeSet<String>,
    /// Tasks that must get no traffic by the leader's word, until the next set that names their services.
    withdrawn: BTreeSet<String>,
    /// Which views of services name a task as their endpoint.
    endpoint_of: BTreeMap<String, BTreeSet<String>>,
    /// The number of the last set that was taken.
    set: u64,
    /// Who waits until a task is nobody's endpoint any more, here at first.
    waiting: Vec<(String, oneshot::Sender<u64>)>,
    pub(super) settling: Settling,
    pub(super) held: HeldPorts,
    edge: Edge,
}

/// What has to be applied next.
#[derive(Default)]
pub(super) struct Dirty {
    full: bool,
    services: BTreeSet<String>,
    removed_services: BTreeSet<String>,
    networks: BTreeSet<String>,
    removed_networks: BTreeSet<String>,
    blocks: BTreeSet<String>,
    removed_blocks: BTreeSet<String>,
    peers: BTreeSet<String>,
    removed_peers: BTreeSet<String>,
}

impl Dirty {
    /// Whatever was told before, everything is to be told again.
    pub(super) fn everything() -> Self {
        Self { full: true, ..Self::default() }
    }

    pub(super) fn is_clean(&self) -> bool {
        !self.full
            && [
                &self.services,
                &self.removed_services,
                &self.networks,
                &self.removed_networks,
                &self.blocks,
                &self.removed_blocks,
                &self.peers,
                &self.removed_peers,
            ]
            .iter()
            .all(|set| set.is_empty())
    }
}

/// Takes over what of one kind is gone and what is new, and marks both.
fn replace<T>(
    (known, dirty, removed): (&mut BTreeMap<String, T>, &mut BTreeSet<String>, &mut BTreeSet<String>),
    gone: Vec<String>,
    new: Vec<T>,
    key: impl Fn(&T) -> &String,
) {
    for key in gone {
        known.remove(&key);
        dirty.remove(&key);
        removed.insert(key);
    }
    for value in new {
        let key = key(&value).clone();
        removed.remove(&key);
        dirty.insert(key.clone());
        known.insert(key, value);
    }
}

impl Feeder {
    pub(super) fn new(fabric: Arc<RwLock<Option<Fabric>>>, own: OwnName, edge: Edge) -> Self {
        Self {
            settling: Settling::new(fabric.clone()),
            fabric,
            edge,
            own,
            services: BTreeMap::new(),
            networks: BTreeMap::new(),
            blocks: BTreeMap::new(),
            peers: BTreeMap::new(),
            down: BTreeSet::new(),
            withdrawn: BTreeSet::new(),
            endpoint_of: BTreeMap::new(),
            set: 0,
            waiting: Vec::new(),
            held: HeldPorts::default(),
        }
    }

    pub(super) fn take(&mut self, event: Event, dirty: &mut Dirty) {
        match event {
            Event::Set(change) => self.take_set(*change, dirty),
            Event::Withdraw(tasks) => {
                for task in tasks {
                    // Who is nobody's endpoint is withdrawn already.
                    if let Some(services) = self.endpoint_of.get(&task) {
                        dirty.services.extend(services.iter().cloned());
                        self.withdrawn.insert(task);
                    }
                }
            }
            Event::Withdrawn { task, reply } => self.waiting.push((task, reply)),
            Event::Reset(own) => {
                self.edge.set(&rorqual_edge::Settings::default());
                self.edge.set_certificates(Vec::new());
                self.edge.set_challenges(BTreeMap::new());
                *self = Self::new(self.fabric.clone(), own, self.edge.clone());
                *dirty = Dirty::everything();
            }
            Event::Health { task, up } => {
                let changed = if up { self.down.remove(&task) } else { self.down.insert(task.clone()) };
                if let Some(services) = self.endpoint_of.get(&task).filter(|_| changed) {
                    dirty.services.extend(services.iter().cloned());
                }
            }
        }
    }

    fn take_set(&mut self, change: SetChange, dirty: &mut Dirty) {
        self.set = change.number;
        dirty.full |= change.full;
        if change.full {
            self.withdrawn.clear();
        }
        if let Some(edge) = &change.edge {
            self.edge.set(&edge::settings(edge));
        }
        for id in change.removed_tasks {
            self.down.remove(&id);
        }
        self.forget_withdrawn(change.named_services.iter().chain(&change.removed_services), dirty);
        for id in change.removed_services {
            self.forget_endpoints(&id);
            self.services.remove(&id);
            dirty.services.remove(&id);
            dirty.removed_services.insert(id);
        }
        for service in change.services {
            let id = view_key(&service);
            self.forget_endpoints(&id);
            for endpoint in &service.endpoints {
                self.endpoint_of.entry(endpoint.task_id.clone()).or_default().insert(id.clone());
            }
            self.services.insert(id.clone(), service);
            dirty.removed_services.remove(&id);
            dirty.services.insert(id);
        }
        let places = (&mut self.networks, &mut dirty.networks, &mut dirty.removed_networks);
        replace(places, change.removed_networks, change.networks, |network| &network.network_id);
        let places = (&mut self.blocks, &mut dirty.blocks, &mut dirty.removed_blocks);
        replace(places, change.removed_blocks, change.blocks, |block| &block.block);
        let places = (&mut self.peers, &mut dirty.peers, &mut dirty.removed_peers);
        replace(places, change.removed_peers, change.peers, |peer| &peer.node_id);
    }

    /// All that was taken is applied: what is to be told of that.
    pub(super) fn settled(&mut self) -> Settled {
        let mut replies = Vec::new();
        for (task, reply) in std::mem::take(&mut self.waiting) {
            if self.endpoint_of.contains_key(&task) {
                self.waiting.push((task, reply));
            } else {
                replies.push(reply);
            }
        }
        self.waiting.retain(|(_, reply)| !reply.is_closed());
        Settled { set: self.set, replies }
    }

    /// What the leader says of services takes the place of what it said of their endpoints before.
    fn forget_withdrawn<'a>(&mut self, services: impl Iterator<Item = &'a String>, dirty: &mut Dirty) {
        if self.withdrawn.is_empty() {
            return;
        }
        let endpoints = services.filter_map(|id| self.services.get(id)).flat_map(|view| &view.endpoints);
        for endpoint in endpoints.filter(|endpoint| self.withdrawn.remove(&endpoint.task_id)) {
            let views = self.endpoint_of.get(&endpoint.task_id);
            dirty.services.extend(views.into_iter().flatten().cloned());
        }
    }

    fn forget_endpoints(&mut self, service: &str) {
        for endpoint in self.services.get(service).into_iter().flat_map(|service| &service.endpoints) {
            if let Some(views) = self.endpoint_of.get_mut(&endpoint.task_id) {
                views.remove(service);
                if views.is_empty() {
                    self.endpoint_of.remove(&endpoint.task_id);
                }
            }
        }
    }

    pub(super) async fn apply(&mut self, dirty: &Dirty) -> Result<(), Error> {
        let change = self.change(dirty);
        let services = change.services.clone();
        let fabric = self.fabric.read().await.clone().ok_or(Error::Stopped)?;
        let applied = fabric.apply(change).await;
        // After the routes to the replicas, and whatever became of those.
        self.edge.apply(self.edge_change(dirty));
        // Ports of services that are refused: the rest is in effect.
        let refused = match applied {
            Ok(()) => Vec::new(),
            Err(error) => held::refusals(error)?,
        };
        let given: BTreeSet<held::Port> = if self.held.is_empty() && refused.is_empty() {
            BTreeSet::new()
        } else {
            let ports = self.services.values().flat_map(|service| &service.ports).filter_map(published_port);
            ports.map(|port| (port.published, port.protocol, port.address)).collect()
        };
        let mut news = self.held.take(&services, refused);
        news |= self.held.retain(|port| given.contains(port));
        if news {
            tracing::warn!(held = ?self.held.list(), "published ports that something else has on this node");
        }
        Ok(())
    }

    pub(super) async fn encryption(&self) -> NodeEncryption {
        self.fabric.read().await.as_ref().map(super::encryption).unwrap_or_default()
    }

    /// Services whose ports were held when they were last looked at.
    pub(super) fn try_held_ports(&self, dirty: &mut Dirty) {
        for (id, service) in &self.services {
            if self.service_view(service).is_some_and(|service| self.held.concern(&service)) {
                dirty.services.insert(id.clone());
            }
        }
    }

    fn change(&self, dirty: &Dirty) -> Change {
        let wanted = |set: &BTreeSet<String>, key: &String| dirty.full || set.contains(key);
        let services = self.services.iter().filter(|(id, _)| wanted(&dirty.services, id));
        let networks = self.networks.iter().filter(|(id, _)| wanted(&dirty.networks, id));
        let blocks = self.blocks.iter().filter(|(key, _)| wanted(&dirty.blocks, key));
        let peers = self.peers.iter().filter(|(id, _)| wanted(&dirty.peers, id) && **id != self.own.node_id);
        let removed =
            |set: &BTreeSet<String>| if dirty.full { Vec::new() } else { set.iter().cloned().collect() };
        Change {
            full: dirty.full,
            services: services.filter_map(|(_, service)| self.service_view(service)).collect(),
            removed_services: removed(&dirty.removed_services).iter().map(|key| fabric_id(key)).collect(),
            networks: networks.filter_map(|(_, network)| network_of(network)).collect(),
            removed_networks: removed(&dirty.removed_networks),
            blocks: blocks.filter_map(|(_, block)| self.block(block)).collect(),
            removed_blocks: removed(&dirty.removed_blocks)
                .iter()
                .filter_map(|text| readable(text, "block"))
                .collect(),
            peers: peers.filter_map(|(_, given)| peer(given)).collect(),
            removed_peers: removed(&dirty.removed_peers),
        }
    }

    fn edge_change(&self, dirty: &Dirty) -> rorqual_edge::Change {
        let wanted = |id: &String| dirty.full || dirty.services.contains(id);
        let services = self.services.iter().filter(|(id, _)| wanted(id));
        let up = |endpoint: &&wire::ServiceEndpoint| !self.is_down(endpoint);
        let service = |(id, view): (&String, &ServiceEndpoints)| {
            edge::service(id.clone(), view, view.endpoints.iter().filter(up))
        };
        rorqual_edge::Change {
            full: dirty.full,
            services: services.map(service).collect(),
            removed_services: dirty.removed_services.iter().cloned().collect(),
        }
    }

    fn is_down(&self, endpoint: &wire::ServiceEndpoint) -> bool {
        self.down.contains(&endpoint.task_id) || self.withdrawn.contains(&endpoint.task_id)
    }

    fn service_view(&self, service: &ServiceEndpoints) -> Option<ServiceView> {
        let (down, up): (Vec<_>, Vec<_>) =
            service.endpoints.iter().partition(|endpoint| self.is_down(endpoint));
        // Until the leader has taken note of it, one that is down here has its names among the unready.
        let unready = service.unready.iter().chain(down).filter_map(|given| self.endpoint(given));
        let vip = match service.vip.as_str() {
            "" => None,
            text => Some(readable(text, "virtual address")?),
        };
        Some(ServiceView {
            id: fabric_id(&view_key(service)),
            name: service.name.clone(),
            aliases: service.aliases.clone(),
            network: service.network_id.clone(),
            vip,
            sticky: service.client_affinity,
            ports: service.ports.iter().filter_map(published_port).collect(),
            endpoints: up.into_iter().filter_map(|given| self.endpoint(given)).collect(),
            unready: Unready { aliases: service.unready_aliases.clone(), tasks: unready.collect() },
            guest: !service.guest_node_id.is_empty(),
        })
    }

    fn endpoint(&self, given: &wire::ServiceEndpoint) -> Option<Endpoint> {
        Some(Endpoint {
            id: given.task_id.clone(),
            name: given.name.clone(),
            address: readable(&given.address, "endpoint")?,
            node: self.own.translate(&given.node_id),
            weight: if given.weight == 0 { DEFAULT_WEIGHT } else { given.weight },
        })
    }

    fn block(&self, given: &NetworkBlock) -> Option<Block> {
        Some(Block {
            block: readable(&given.block, "block")?,
            network: given.network_id.clone(),
            node: self.own.translate(&given.node_id),
        })
    }
}

/// A view's key as the fabric takes ids.
fn fabric_id(view_key: &str) -> String {
    view_key.replace('/', ".")
}

/// A network without one of its ranges would be open where it should be closed: it is left out as a whole.
fn network_of(given: &NodeNetwork) -> Option<rorqual_network::Network> {
    let (mut subnets, mut subnets6) = (Vec::new(), Vec::new());
    for text in &given.subnets {
        match readable(text, "subnet")? {
            IpNet::V4(range) => subnets.push(range),
            IpNet::V6(range) => subnets6.push(range),
        }
    }
    Some(rorqual_network::Network {
        id: given.network_id.clone(),
        subnets,
        subnets6,
        internal: given.internal,
        link_local: given.metadata,
        ipv6_names: given.ipv6_names,
    })
}

fn peer(given: &NodePeer) -> Option<Peer> {
    let host = given.address.rsplit_once(':').map_or(given.address.as_str(), |(host, _)| host);
    let ipv6 =
        given.ipv6_addresses.iter().filter_map(|text| readable(text, "IPv6 address of a peer")).collect();
    let others =
        given.other_addresses.iter().filter_map(|text| readable(text, "address of a peer")).collect();
    Some(Peer {
        node: given.node_id.clone(),
        others,
        underlay: readable::<Ipv4Addr>(host, "peer")?,
        ipv6,
        encrypted: given.encrypted,
        key: given.public_key.as_slice().try_into().ok(),
    })
}

/// One item that can't be read is left out, so that the others work.
fn readable<T: std::str::FromStr>(text: &str, what: &str) -> Option<T> {
    let parsed = text.parse().ok();
    if parsed.is_none() {
        tracing::warn!(text, what, "the leader sent an address that can't be read; left out");
    }
    parsed
}

/// None for one that this version does not know: as another one it would lead where it was not meant to.
fn protocol(number: i32) -> Option<Protocol> {
    match wire::Protocol::try_from(number).ok()? {
        wire::Protocol::Udp => Some(Protocol::Udp),
        wire::Protocol::Sctp => Some(Protocol::Sctp),
        wire::Protocol::Tcp | wire::Protocol::Unspecified => Some(Protocol::Tcp),
    }
}

/// One whose address or whose clients can't be read would be open to more than was asked: it is left out.
pub(super) fn published_port(port: &wire::PortSpec) -> Option<PublishedPort> {
    let address = match port.address.as_str() {
        "" => None,
        text => Some(readable(text, "address of a port")?),
    };
    let allow: Option<Vec<_>> = port.allow.iter().map(|text| readable(text, "clients of a port")).collect();
    Some(PublishedPort {
        address,
        allow: allow?,
        published: u16::try_from(port.published).ok().filter(|port| *port > 0)?,
        target: u16::try_from(port.target).ok().filter(|port| *port > 0)?,
        protocol: protocol(port.protocol)?,
        local: port.local,
    })
}

#[cfg(test)]
#[path = "feeder_tests.rs"]
mod tests;
