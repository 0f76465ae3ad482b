//! What nodes are told, as they have to know it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use rorqual_proto::model::{
    EdgeSettings, GuestId, NetworkId, NodeId, PortSpec, Record, RouteSpec, ServiceId, Task, TaskId,
};

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
    /// The IPv6 ranges beside these, one for each; empty: they are parts of the cluster's.
    pub subnets6: Vec<Ipv6Net>,
    /// Its containers reach nothing outside of it.
    pub internal: bool,
    /// Its containers reach link-local addresses.
    pub metadata: bool,
    /// Its names mean IPv6 addresses as well.
    pub ipv6_names: bool,
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
    /// Names in this network that stand for the endpoints and the unready.
    pub unready_aliases: Vec<String>,
    /// Those that run and may not get traffic, where there are such names.
    pub unready: Vec<EndpointView>,
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
    /// How many new connections it gets beside the others.
    pub weight: u32,
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
    /// IPv6 addresses that it is reached at.
    pub ipv6_addresses: Vec<Ipv6Addr>,
    /// IPv4 addresses that it is reached at, besides the one in `address`.
    pub other_addresses: Vec<Ipv4Addr>,
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
