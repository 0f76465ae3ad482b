//! What is written to the state, what a write changed, and why a write is refused.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::IpNet;
use rorqual_proto::model::{
    Cluster, DesiredState, Guest, GuestId, Network, NetworkId, Node, NodeDescription, NodeId, NodeStatus,
    PortClaim, Record, Service, ServiceId, Task, TaskId, TaskStatus,
};

/// One write to the replicated state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// What is written.
    pub kind: ActionKind,
    /// The `meta.version` that the writer saw of the object it writes: 0 says that the object must not
    /// exist yet, none skips the check.
    pub expected_version: Option<u64>,
}

impl Action {
    /// A write that depends on no version.
    pub fn new(kind: ActionKind) -> Self {
        Self { kind, expected_version: None }
    }

    /// A write that is refused when the object moved on from `version`.
    pub fn expecting(kind: ActionKind, version: u64) -> Self {
        Self { kind, expected_version: Some(version) }
    }
}

/// The writes that there are. `meta` of a given object is ignored: [`crate::State::apply`] stamps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActionKind {
    /// The cluster object, whole.
    PutCluster(Box<Cluster>),
    /// A new node, whole. Of a node that exists only the operator's side is written: `spec` and `raft_id`.
    PutNode(Box<Node>),
    /// A service, whole.
    PutService(Box<Service>),
    /// A task. Of a task that exists the node, the addresses and both states never go back.
    PutTask(Box<Task>),
    /// A network, whole.
    PutNetwork(Box<Network>),
    /// The node's record goes; its tasks become orphans.
    RemoveNode(NodeId),
    /// The service's record goes.
    RemoveService(ServiceId),
    /// The task's record goes.
    RemoveTask(TaskId),
    /// The network's record goes.
    RemoveNetwork(NetworkId),
    /// A container in networks of the cluster, whole.
    PutGuest(Box<Guest>),
    /// It is in none any more.
    RemoveGuest(GuestId),
    /// A record, whole.
    PutRecord(Box<Record>),
    /// The record of that key goes.
    RemoveRecord(String),
    /// Writes nothing: with an expected version, the batch stands or falls with that record.
    ExpectRecord(String),
    /// The observed side of a task. An older or later-than-terminal status changes nothing.
    TaskStatus {
        /// Whose.
        task_id: TaskId,
        /// What was seen.
        status: TaskStatus,
    },
    /// The desired side of a task. It only moves forward.
    TaskDesired {
        /// Whose.
        task_id: TaskId,
        /// What is wanted.
        desired_state: DesiredState,
    },
    /// The observed side of a node.
    NodeStatus {
        /// Whose.
        node_id: NodeId,
        /// What the leader saw; none leaves it as it is.
        status: Option<NodeStatus>,
        /// What the agent tells of its machine; none leaves it as it is.
        description: Option<Box<NodeDescription>>,
        /// `host:port` of its TLS port; none leaves it as it is.
        address: Option<String>,
    },
}

/// What one action changed: it feeds watchers and the planner's dirty sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The cluster object.
    Cluster,
    /// A node was written or removed.
    Node(NodeId),
    /// A service was written or removed.
    Service {
        /// Its id.
        id: ServiceId,
        /// Nodes may see it otherwise than before: under another name, in another network, at another
        /// address or port. Another number of replicas is nothing that they see.
        seen: bool,
        /// What its nodes show to registries is another.
        auths: bool,
    },
    /// A task was made, written or removed.
    Task {
        /// Its id.
        id: TaskId,
        /// Its service.
        service_id: ServiceId,
        /// Its node, where it has or had one.
        node_id: Option<NodeId>,
        /// As it was; none for a new one.
        before: Option<Arc<Task>>,
        /// As it is; none for one that was removed.
        after: Option<Arc<Task>>,
    },
    /// A network was written or removed.
    Network(NetworkId),
    /// A plain container came into networks, is in others, runs or not, or left.
    Guest {
        /// Its id.
        id: GuestId,
        /// As it was; none for a new one.
        before: Option<Arc<Guest>>,
        /// As it is; none for one that is gone.
        after: Option<Arc<Guest>>,
    },
    /// A record of the HTTP edge was written or removed.
    Edge,
    /// The action changed nothing: a late status, an object that is already gone.
    Nothing,
}

/// Why a write is refused. The writer looks again at the state and decides anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The object moved on.
    #[error("{object} has changed meanwhile (version {actual}, not {expected}): read it again and repeat")]
    Version {
        /// `service web`, `task web.3`.
        object: String,
        /// What the writer saw.
        expected: u64,
        /// What it is; 0 where the object does not exist.
        actual: u64,
    },
    /// Another object of the kind has the name.
    #[error("the {kind} name `{name}` is already in use: choose another name")]
    NameTaken {
        /// `service` or `network`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// Another service publishes the port.
    #[error(
        "port {port} is already published by service `{service}`: choose another port or remove it there"
    )]
    PortTaken {
        /// The published port.
        port: PortClaim,
        /// The other service's name.
        service: String,
    },
    /// Another service has the route.
    #[error("{route} already leads to service `{service}`: choose another host or path, or remove it there")]
    RouteTaken {
        /// Host and path.
        route: String,
        /// The other service's name.
        service: String,
    },
    /// The HTTP edge has the port on every node.
    #[error("port {port}/tcp is the HTTP edge's: choose another port")]
    EdgePort {
        /// The published port.
        port: u16,
    },
    /// The slot has a task that is meant to run, and the batch does not stop it.
    #[error("{task} has another task that is meant to run")]
    SlotTaken {
        /// `web.3`.
        task: String,
    },
    /// The address is given to something else.
    #[error("address {address} is already given to {owner}")]
    AddressTaken {
        /// The address.
        address: Ipv4Addr,
        /// `task web.3`, `service web`.
        owner: String,
    },
    /// Something has an address of the network that is to go.
    #[error("network `{network}` is used: look at it again")]
    NetworkInUse {
        /// Its name.
        network: String,
    },
    /// The block is leased to another network or node.
    #[error("block {block} is already leased in network `{network}`")]
    BlockTaken {
        /// The block.
        block: IpNet,
        /// The network that has it.
        network: String,
    },
}
