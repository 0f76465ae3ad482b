//! What a node has to do and to know, and which part of that a change touches.
//!
//! A node gets: the tasks bound to it (dead ones too, until their record goes: their logs stay readable);
//! the endpoints of the services that it may reach (those with published ports or routes, and those in a network
//! in which it has a live task); what registries want to see for the services of which it has a live task; every
//! network and every leased block; every other node's address; the controllers.
//!
//! A dispatcher sends [`assignment_for`] once, then for each applied batch asks [`touched`] what was
//! touched and sends each node [`delta_for`] of that. Both look at the state as it is *now*, so batches may
//! be merged, and sending a delta again does no harm. What a delta calls removed may never have been sent.
//!
//! Architecture invariant: a delta costs the size of what was touched. A service's endpoints are the same
//! for all nodes: [`service_views`] is computed once and shared.

mod guest;

mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rorqual_proto::model::{
    DesiredState, GuestId, Network, NetworkId, Node, NodeId, NodeState, RouteSpec, Service, ServiceId, Task,
    TaskAddress, TaskId, TaskState,
};

use crate::State;
use crate::action::Change;
use crate::orchestrate::{is_gone, is_lost};
pub use view::*;

/// What changes touched, by whom it has to be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// For every node.
    pub everywhere: Parts,
    /// For single nodes, on top of that.
    pub nodes: BTreeMap<NodeId, Parts>,
}

/// Parts of an assignment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    /// Tasks that were written or removed.
    pub tasks: BTreeSet<TaskId>,
    /// Services whose views may differ.
    pub services: BTreeSet<ServiceId>,
    /// Guests whose views may differ.
    pub guests: BTreeSet<GuestId>,
    /// Services whose sealed auths may differ, or be needed or not any more.
    pub auths: BTreeSet<ServiceId>,
    /// Networks that were written or removed.
    pub networks: BTreeSet<NetworkId>,
    /// Networks in which tasks or guests of the node came or went.
    pub moved_in: BTreeSet<NetworkId>,
    /// Blocks may differ.
    pub blocks: bool,
    /// Nodes whose name or address may differ, or who came or went.
    pub peers: BTreeSet<NodeId>,
    /// The controllers or the pools may differ.
    pub controllers: bool,
    /// How the HTTP edge is set may differ.
    pub edge: bool,
}

/// What to tell a node. Objects are whole: they are added, or replace the one with that id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeDelta {
    /// Written, bound to the node.
    pub tasks: Vec<Arc<Task>>,
    /// Gone.
    pub removed_tasks: Vec<TaskId>,
    /// Every view of each service that was touched and concerns the node: they take the place of all
    /// views of that service that the node had.
    pub services: Vec<ServiceView>,
    /// Gone, or of no concern to the node any more.
    pub removed_services: Vec<ServiceId>,
    /// As with services.
    pub guests: Vec<GuestView>,
    /// Gone, or of no concern to the node any more.
    pub removed_guests: Vec<GuestId>,
    /// New or other, and needed.
    pub auths: Vec<AuthsView>,
    /// Gone, or not needed any more.
    pub removed_auths: Vec<ServiceId>,
    /// Written.
    pub networks: Vec<NetworkView>,
    /// Gone.
    pub removed_networks: Vec<NetworkId>,
    /// The whole list of blocks, where it was touched.
    pub blocks: Option<Vec<BlockView>>,
    /// Written.
    pub peers: Vec<PeerView>,
    /// Gone.
    pub removed_peers: Vec<NodeId>,
    /// The whole list, where it was touched.
    pub controllers: Option<Vec<ControllerView>>,
    /// As it is, where it was touched.
    pub edge: Option<EdgeView>,
}

impl Parts {
    /// Nothing was touched.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what another one touched.
    pub fn merge(&mut self, other: &Self) {
        self.tasks.extend(other.tasks.iter().cloned());
        self.services.extend(other.services.iter().cloned());
        self.guests.extend(other.guests.iter().cloned());
        self.auths.extend(other.auths.iter().cloned());
        self.networks.extend(other.networks.iter().cloned());
        self.moved_in.extend(other.moved_in.iter().cloned());
        self.blocks |= other.blocks;
        self.peers.extend(other.peers.iter().cloned());
        self.controllers |= other.controllers;
        self.edge |= other.edge;
    }
}

/// The networks in which a node had somebody when it was told last. Its first live task or guest in a network makes it
/// see who else is there, and the last one's end takes them away: which of them is the first is not to be seen from the
/// changes, of which several come together and are seen later than the state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Joined(BTreeSet<NetworkId>);

impl Joined {
    /// As a node knows that is told everything now.
    pub fn of(state: &State, node_id: &NodeId) -> Self {
        let node = state.index.nodes.get(node_id);
        Self(node.into_iter().flat_map(|node| node.networks.keys().cloned()).collect())
    }

    /// Adds what the node sees from now on, or sees no more.
    fn look(&mut self, state: &State, node_id: &NodeId, parts: &mut Parts) {
        for network_id in std::mem::take(&mut parts.moved_in) {
            let is_in = members(state, node_id, &network_id) > 0;
            let news = if is_in { self.0.insert(network_id.clone()) } else { self.0.remove(&network_id) };
            if !news {
                continue;
            }
            let inside = state.services().filter(|service| {
                !is_everywhere(service) && service.vips.iter().any(|vip| vip.network_id == network_id)
            });
            parts.services.extend(inside.map(|service| service.id.clone()));
            parts.guests.extend(guest::inside(state, &network_id));
        }
    }
}

impl Touched {
    /// All that a node has to be told.
    pub fn for_node(&self, node_id: &NodeId) -> Parts {
        let mut parts = self.everywhere.clone();
        if let Some(own) = self.nodes.get(node_id) {
            parts.merge(own);
        }
        parts
    }

    /// Adds what later changes touched.
    pub fn merge(&mut self, other: &Self) {
        self.everywhere.merge(&other.everywhere);
        for (id, parts) in &other.nodes {
            self.nodes.entry(id.clone()).or_default().merge(parts);
        }
    }
}

impl NodeDelta {
    /// There is nothing to tell.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// All that a node has to do and to know.
pub fn assignment_for(state: &State, node_id: &NodeId) -> NodeAssignment {
    let tasks: BTreeMap<&TaskId, &Arc<Task>> =
        state.tasks_on_node(node_id).map(|task| (&task.id, task)).collect();
    let services =
        state.services().filter(|service| concerns(state, service, node_id)).flat_map(|s| views(state, s));
    let peers = state.nodes().filter(|node| node.id != *node_id && !is_gone(state, &node.id));
    NodeAssignment {
        tasks: tasks.into_values().map(Arc::clone).collect(),
        services: services.collect(),
        guests: guest::all_for(state, node_id),
        auths: state.services().filter_map(|service| auths(state, service, node_id)).collect(),
        networks: state.networks().map(|network| network_view(network)).collect(),
        blocks: blocks(state),
        peers: peers.map(|node| peer(state, node)).collect(),
        controllers: controllers(state),
        pools: pools(state),
        edge: edge(state),
    }
}

/// The parts that changes touched. `state` has them applied.
pub fn touched<'a>(state: &State, changes: impl IntoIterator<Item = &'a Change>) -> Touched {
    let mut touched = Touched::default();
    for change in changes {
        match change {
            // Rare, and it may be that all ways between nodes change.
            Change::Cluster => {
                touched.everywhere.controllers = true;
                touched.everywhere.edge = true;
                touched.everywhere.peers.extend(state.nodes().map(|node| node.id.clone()));
            }
            Change::Node(id) => {
                touched.everywhere.peers.insert(id.clone());
                touched.everywhere.controllers = true;
                // A node that is lost takes its endpoints out; one that is back brings them.
                let tasks = state.tasks_on_node(id).filter(|task| runs(task));
                touched.everywhere.services.extend(tasks.map(|task| task.service_id.clone()));
                touched.everywhere.guests.extend(state.guests_on_node(id).map(|guest| guest.id.clone()));
            }
            Change::Service { id, seen, auths } => {
                if *seen {
                    touched.everywhere.services.insert(id.clone());
                }
                if *auths {
                    for node_id in state.tasks_of_service(id).filter_map(|task| task.node_id.as_ref()) {
                        touched.nodes.entry(node_id.clone()).or_default().auths.insert(id.clone());
                    }
                }
            }
            Change::Network(id) => {
                touched.everywhere.networks.insert(id.clone());
                touched.everywhere.blocks = true;
                let named = |service: &&Arc<Service>| service.vips.iter().any(|vip| vip.network_id == *id);
                if state.network(id).is_none() {
                    let users = state.services().filter(named).map(|service| service.id.clone());
                    touched.everywhere.services.extend(users);
                }
            }
            Change::Task { id, node_id, before, after, .. } => {
                touch_task(state, &mut touched, id, node_id.as_ref(), before.as_deref(), after.as_deref());
            }
            Change::Guest { id, before, after } => {
                guest::touch(&mut touched, id, before.as_deref(), after.as_deref());
            }
            Change::Edge => touched.everywhere.edge = true,
            Change::Nothing => {}
        }
    }
    touched
}

fn touch_task(
    state: &State,
    touched: &mut Touched,
    id: &TaskId,
    node_id: Option<&NodeId>,
    before: Option<&Task>,
    after: Option<&Task>,
) {
    let is_endpoint = |task: Option<&Task>| task.is_some_and(Task::is_endpoint);
    let is_running = |task: Option<&Task>| task.is_some_and(runs);
    let named_unready = |task: &Task| state.service(&task.service_id).is_some_and(|s| names_unready(s));
    if let Some(task) = after.or(before)
        && (is_endpoint(before) != is_endpoint(after)
            || is_running(before) != is_running(after) && named_unready(task))
    {
        touched.everywhere.services.insert(task.service_id.clone());
    }
    let Some(node_id) = node_id else { return };
    // The agent is the writer of the status: it need not be told.
    let told = |task: &Task| (task.desired_state, task.node_id.clone());
    if before.map(told) != after.map(told) {
        touched.nodes.entry(node_id.clone()).or_default().tasks.insert(id.clone());
    }
    let lives = |task: Option<&Task>| {
        task.is_some_and(|task| task.node_id.is_some() && !task.status.state.is_terminal())
    };
    if lives(before) == lives(after) {
        return;
    }
    if let Some(task) = after.or(before)
        && state.service(&task.service_id).is_some_and(|service| !service.sealed_auths.is_empty())
    {
        touched.nodes.entry(node_id.clone()).or_default().auths.insert(task.service_id.clone());
    }
    let addresses = after.or(before).map(|task| task.addresses.as_slice()).unwrap_or_default();
    came_or_went(touched, node_id, addresses);
}

fn came_or_went(touched: &mut Touched, node_id: &NodeId, addresses: &[TaskAddress]) {
    if !addresses.is_empty() {
        let parts = touched.nodes.entry(node_id.clone()).or_default();
        parts.moved_in.extend(addresses.iter().map(|address| address.network_id.clone()));
    }
}

/// A replica that is meant to run, and does, whether it is well or not.
fn runs(task: &Task) -> bool {
    matches!(task.desired_state, DesiredState::Running | DesiredState::Retiring)
        && task.status.state == TaskState::Running
}

/// Replicas of the service are found by some name before they are healthy.
fn names_unready(service: &Service) -> bool {
    service.spec.networks.iter().any(|join| !join.unready_aliases.is_empty())
}

/// Whether the views of a service are the same for two of its records, as far as the record goes.
pub(crate) fn looks_same(one: &Service, other: &Service) -> bool {
    one.spec.name == other.spec.name
        && one.spec.networks == other.spec.networks
        && one.vips == other.vips
        && one.ports == other.ports
        && one.spec.dnsrr == other.spec.dnsrr
        && one.spec.client_affinity == other.spec.client_affinity
        && one.spec.routes == other.spec.routes
}

/// What to tell a node about parts that were touched.
pub fn delta_for(state: &State, node_id: &NodeId, mut parts: Parts, joined: &mut Joined) -> NodeDelta {
    joined.look(state, node_id, &mut parts);
    let mut delta = NodeDelta::default();
    for id in &parts.tasks {
        match state.task(id).filter(|task| task.node_id.as_ref() == Some(node_id)) {
            Some(task) => delta.tasks.push(Arc::clone(task)),
            None => delta.removed_tasks.push(id.clone()),
        }
    }
    for id in &parts.services {
        let service = state.service(id).filter(|service| concerns(state, service, node_id));
        let views = service.map(|service| views(state, service)).unwrap_or_default();
        if views.is_empty() {
            delta.removed_services.push(id.clone());
        }
        delta.services.extend(views);
    }
    for id in &parts.guests {
        let views = guest::views_for(state, id, node_id);
        if views.is_empty() {
            delta.removed_guests.push(id.clone());
        }
        delta.guests.extend(views);
    }
    for id in &parts.auths {
        match state.service(id).and_then(|service| auths(state, service, node_id)) {
            Some(view) => delta.auths.push(view),
            None => delta.removed_auths.push(id.clone()),
        }
    }
    for id in &parts.networks {
        match state.network(id) {
            Some(network) => delta.networks.push(network_view(network)),
            None => delta.removed_networks.push(id.clone()),
        }
    }
    delta.blocks = parts.blocks.then(|| blocks(state));
    for id in parts.peers.iter().filter(|id| *id != node_id) {
        match state.node(id).filter(|node| node.status.state != NodeState::Left) {
            Some(node) => delta.peers.push(peer(state, node)),
            None => delta.removed_peers.push(id.clone()),
        }
    }
    delta.controllers = parts.controllers.then(|| controllers(state));
    delta.edge = parts.edge.then(|| edge(state));
    delta
}

/// A service's views, one a network; the same for all nodes that it concerns.
pub fn service_views(state: &State, service_id: &ServiceId) -> Vec<ServiceView> {
    state.service(service_id).map(|service| views(state, service)).unwrap_or_default()
}

/// Whether a node has to know a service's endpoints.
pub fn concerns(state: &State, service: &Service, node_id: &NodeId) -> bool {
    is_everywhere(service) || service.vips.iter().any(|vip| members(state, node_id, &vip.network_id) > 0)
}

/// Every node leads to it.
fn is_everywhere(service: &Service) -> bool {
    !service.ports.is_empty() || !service.spec.routes.is_empty()
}

fn edge(state: &State) -> EdgeView {
    EdgeView {
        settings: state.cluster().map(|cluster| cluster.edge.clone()).unwrap_or_default(),
        records: state.records_behind(EDGE_RECORDS, "").cloned().collect(),
    }
}

/// The service's routes, each with the port that it leads to.
fn routes(service: &Service) -> Vec<RouteSpec> {
    let spec = &service.spec;
    let with_port = |route: &RouteSpec| Some(RouteSpec { port: spec.port_of(route)?, ..route.clone() });
    spec.routes.iter().filter_map(with_port).collect()
}

/// What a node has to show to registries for a service: nothing, unless it has a live task of it. Costs a look at the
/// node's tasks, for services that have something to show.
fn auths(state: &State, service: &Service, node_id: &NodeId) -> Option<AuthsView> {
    let is_needed = !service.sealed_auths.is_empty()
        && state
            .tasks_on_node(node_id)
            .any(|task| task.service_id == service.id && !task.status.state.is_terminal());
    is_needed.then(|| AuthsView { service_id: service.id.clone(), sealed: service.sealed_auths.clone() })
}

fn members(state: &State, node_id: &NodeId, network_id: &NetworkId) -> u32 {
    let node = state.index.nodes.get(node_id);
    node.and_then(|node| node.networks.get(network_id)).copied().unwrap_or_default()
}

fn views(state: &State, service: &Service) -> Vec<ServiceView> {
    let names = crate::allocate::network_names(&service.spec);
    let networks = names.into_iter().filter_map(|name| state.network_by_name(name));
    let join_of =
        |network: &Network| service.spec.networks.iter().find(|join| join.network == network.spec.name);
    // A service that is found by the addresses of its replicas keeps the one that it does not use.
    let own_vip = |network: &Network| {
        let mut vips = service.vips.iter().filter(|_| !service.spec.dnsrr);
        vips.find(|vip| vip.network_id == network.id).map(|vip| vip.address)
    };
    let view = |(place, network): (usize, &Arc<Network>)| {
        let address_in = |task: &Task| {
            task.addresses.iter().find(|given| given.network_id == network.id).map(|given| given.address)
        };
        let endpoint = |task: &Arc<Task>| {
            let node = state.node(task.node_id.as_ref()?).filter(|node| !is_lost(state, &node.id))?;
            Some(EndpointView {
                task_id: task.id.clone(),
                name: task.name(),
                address: address_in(task)?,
                node_id: node.id.clone(),
                weight: node.weight(),
            })
        };
        let endpoints = state.endpoints_of_service(&service.id).filter_map(endpoint);
        let join = join_of(network);
        let unready_aliases = join.map(|join| join.unready_aliases.clone()).unwrap_or_default();
        let mut unready: Vec<EndpointView> = Vec::new();
        if !unready_aliases.is_empty() {
            let tasks = state.tasks_of_service(&service.id).filter(|task| runs(task) && !task.is_endpoint());
            unready.extend(tasks.filter_map(endpoint));
            unready.sort_by(|one, other| one.task_id.cmp(&other.task_id));
        }
        ServiceView {
            service_id: service.id.clone(),
            name: service.spec.name.clone(),
            aliases: join.map(|join| join.aliases.clone()).unwrap_or_default(),
            network_id: network.id.clone(),
            network_name: network.spec.name.clone(),
            vip: own_vip(network),
            client_affinity: service.spec.client_affinity,
            ports: if place == 0 { service.ports.clone() } else { Vec::new() },
            routes: if place == 0 { routes(service) } else { Vec::new() },
            endpoints: endpoints.collect(),
            unready_aliases,
            unready,
        }
    };
    networks.enumerate().map(view).collect()
}

fn network_view(network: &Network) -> NetworkView {
    NetworkView {
        network_id: network.id.clone(),
        name: network.spec.name.clone(),
        subnets: network.spec.subnets.clone(),
        subnets6: network.spec.subnets6.clone(),
        internal: network.spec.internal,
        metadata: network.spec.allows_metadata(),
        ipv6_names: network.spec.has_ipv6_names(),
    }
}

fn blocks(state: &State) -> Vec<BlockView> {
    let leases = state.networks().flat_map(|network| {
        network.blocks.iter().map(|lease| BlockView {
            block: lease.block,
            network_id: network.id.clone(),
            node_id: lease.node_id.clone(),
        })
    });
    let mut blocks: Vec<BlockView> = leases.collect();
    blocks.sort_unstable();
    blocks
}

fn peer(state: &State, node: &Node) -> PeerView {
    let others = node.description.addresses.iter().filter(|address| node.underlay() != Some(**address));
    PeerView {
        node_id: node.id.clone(),
        hostname: node.description.hostname.clone(),
        address: node.address.clone(),
        encrypted: state.cluster().is_some_and(|cluster| cluster.encrypt),
        public_key: node.description.encryption.public_key.clone(),
        ipv6_addresses: node.description.ipv6_addresses.clone(),
        other_addresses: others.copied().collect(),
    }
}

/// Nodes that are Raft members, or are being taken in.
pub fn controllers(state: &State) -> Vec<ControllerView> {
    let controllers = state.nodes().filter_map(|node| {
        let raft_id = node.raft_id?;
        Some(ControllerView { node_id: node.id.clone(), address: node.address.clone(), raft_id })
    });
    controllers.collect()
}

/// The cluster's pools.
pub fn pools(state: &State) -> Option<Pools> {
    let cluster = state.cluster()?;
    Some(Pools { container_pool: cluster.container_pool, vip_pool: cluster.vip_pool })
}
