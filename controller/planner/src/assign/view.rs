//! What nodes are told, as they have to know it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use rorqual_proto::model::{
    EdgeSettings, GuestId, Network, NetworkId, NodeId, PortSpec, Record, RouteSpec, Service, ServiceId, Task,
    TaskId,
};

use super::{Parts, concerns};
use crate::State;
use crate::orchestrate::is_lost;

/// Everything that a node has to do and to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeAssignment {
    /// Bound to the node, by id.
    pub tasks: Vec<Arc<Task>>,
    /// By service and network.
    pub services: Vec<ServiceView>,
    /// By container and network.
    pub guests: Vec<GuestView>,
    /// Of services with a live task on the node.
    pub auths: Vec<AuthsView>,
    /// All networks.
    pub networks: Vec<NetworkView>,
    /// All leased blocks of all networks.
    pub blocks: Vec<BlockView>,
    /// All other nodes that are members.
    pub peers: Vec<PeerView>,
    /// Nodes that are Raft members.
    pub controllers: Vec<ControllerView>,
    /// None before the cluster exists.
    pub pools: Option<Pools>,
    /// The HTTP edge.
    pub edge: EdgeView,
}

/// What stands before the keys of the HTTP edge's records.
pub const EDGE_RECORDS: &str = "edge/";

/// How the HTTP edge of every node has to be, besides the routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EdgeView {
    /// Its ports.
    pub settings: EdgeSettings,
    /// Its records, as the store has them.
    pub records: Vec<Arc<Record>>,
}

/// The address pools of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pools {
    /// Container addresses.
    pub container_pool: Ipv4Net,
    /// Virtual addresses of services.
    pub vip_pool: Ipv4Net,
}

/// A network, as far as nodes have to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkView {
    /// Which network.
    pub network_id: NetworkId,
    /// Its name.
    pub name: String,
    /// Its own ranges; empty: its blocks are the cluster pool's.
    pub subnets: Vec<Ipv4Net>,
    /// Its containers reach nothing outside of it.
    pub internal: bool,
    /// Its containers reach link-local addresses.
    pub metadata: bool,
}

/// A service as seen in one of its networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    /// Which service.
    pub service_id: ServiceId,
    /// Its name.
    pub name: String,
    /// Further names in this network.
    pub aliases: Vec<String>,
    /// In which network.
    pub network_id: NetworkId,
    /// The network's name.
    pub network_name: String,
    /// None where the pool was exhausted, or where the service wants none.
    pub vip: Option<Ipv4Addr>,
    /// Each client has an endpoint of its own.
    pub client_affinity: bool,
    /// Published ports as given. They stand in the view of the first network only, so that they lead to
    /// one address of each task.
    pub ports: Vec<PortSpec>,
    /// Its routes, each with its port; as ports in one view only.
    pub routes: Vec<RouteSpec>,
    /// Who may get traffic, by task id.
    pub endpoints: Vec<EndpointView>,
}

/// A task that may get traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointView {
    /// Which task.
    pub task_id: TaskId,
    /// `web.3`
    pub name: String,
    /// In the view's network.
    pub address: Ipv4Addr,
    /// Where it runs.
    pub node_id: NodeId,
}

/// What came to a view and what left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointsChange {
    /// Which service.
    pub service_id: ServiceId,
    /// In which network.
    pub network_id: NetworkId,
    /// New ones, by task id.
    pub added: Vec<EndpointView>,
    /// Gone, or never been there.
    pub removed: Vec<TaskId>,
}

/// Of services whose endpoints were touched, those that the node has to be told whole, or has to forget: it knows them
/// and they don't concern it any more, or the other way round.
pub fn tell_whole(state: &State, node_id: &NodeId, parts: &mut Parts, known: &BTreeSet<ServiceId>) {
    for id in parts.endpoints.keys() {
        let concerned = state.service(id).is_some_and(|service| concerns(state, service, node_id));
        if concerned != known.contains(id) {
            parts.services.insert(id.clone());
        }
    }
}

/// The networks of a service, in their order.
pub(super) fn networks<'a>(
    state: &'a State,
    service: &'a Service,
) -> impl Iterator<Item = &'a Arc<Network>> + use<'a> {
    let names = crate::allocate::network_names(&service.spec);
    names.into_iter().filter_map(|name| state.network_by_name(name))
}

/// A task as an endpoint in a network; none where its node is lost or it has no address there.
pub(super) fn endpoint(state: &State, task: &Task, network: &Network) -> Option<EndpointView> {
    let node_id = task.node_id.clone().filter(|id| !is_lost(state, id))?;
    let given = task.addresses.iter().find(|given| given.network_id == network.id)?;
    Some(EndpointView { task_id: task.id.clone(), name: task.name(), address: given.address, node_id })
}

/// Of these tasks, which are endpoints of the service now and which are not, in each of its networks.
pub(super) fn endpoint_changes(
    state: &State,
    service: &Service,
    tasks: &BTreeSet<TaskId>,
) -> Vec<EndpointsChange> {
    let change = |network: &Arc<Network>| {
        let mut change = EndpointsChange {
            service_id: service.id.clone(),
            network_id: network.id.clone(),
            added: Vec::new(),
            removed: Vec::new(),
        };
        for id in tasks {
            let task = state.task(id).filter(|task| task.is_endpoint());
            match task.and_then(|task| endpoint(state, task, network)) {
                Some(endpoint) => change.added.push(endpoint),
                None => change.removed.push(id.clone()),
            }
        }
        change
    };
    networks(state, service).map(change).collect()
}

/// A plain container as seen in one of its networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestView {
    /// Which container.
    pub guest_id: GuestId,
    /// Its name.
    pub name: String,
    /// Further names in this network.
    pub aliases: Vec<String>,
    /// In which network.
    pub network_id: NetworkId,
    /// The network's name.
    pub network_name: String,
    /// Where it is.
    pub node_id: NodeId,
    /// Its address, while it runs on a node that is there.
    pub address: Option<Ipv4Addr>,
}

/// What registries want to see before they give a service's images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthsView {
    /// Whose.
    pub service_id: ServiceId,
    /// As the service has it.
    pub sealed: Vec<u8>,
}

/// A block and who has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockView {
    /// A net of the container pool.
    pub block: Ipv4Net,
    /// The network.
    pub network_id: NetworkId,
    /// The node.
    pub node_id: NodeId,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerView {
    /// Which node.
    pub node_id: NodeId,
    /// Its host name.
    pub hostname: String,
    /// `host:port` of its TLS port.
    pub address: String,
    /// What goes to it has to be encrypted.
    pub encrypted: bool,
    /// For that; empty: it has told none yet.
    pub public_key: Vec<u8>,
}

/// A node that is a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerView {
    /// Which node.
    pub node_id: NodeId,
    /// `host:port` of its TLS port.
    pub address: String,
    /// Its Raft member id.
    pub raft_id: u64,
}
