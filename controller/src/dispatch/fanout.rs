//! From the store's watch to assignment sets: one task owns every open session.
//!
//! What changes touch is decided by [`rorqual_planner::assign`]; it is read from the present state, and each
//! session gets what concerns its node. A set's number is the log index that was applied when it was read,
//! so it grows across leaders. A set names whole objects, so sending one twice is harmless.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rorqual_planner::State;
use rorqual_planner::assign::{
    self, AuthsView, BlockView, ControllerView, EndpointView, GuestView, Joined, NetworkView, NodeDelta,
    PeerView, ServiceView, Touched,
};
use rorqual_proto::convert::texts_of;
use rorqual_proto::model::{Node, NodeId, TaskId};
use rorqual_proto::wire::{self, to_agent};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::auths::Auths;
use crate::edge;
use crate::store::{Applied, Store, WatchError};

type Outbox = mpsc::Sender<Result<wire::ToAgent, Status>>;

/// Told to a session that the fan-out has let go.
pub(super) struct Evicted;

/// How many registrations may wait.
const EVENTS: usize = 256;

enum Event {
    Register {
        node: NodeId,
        session: u64,
        outbox: Outbox,
        evict: oneshot::Sender<Evicted>,
    },
    Unregister {
        node: NodeId,
        session: u64,
    },
    /// The node has a set in effect.
    Acknowledged {
        node: NodeId,
        session: u64,
        set: u64,
    },
    /// Tasks get no new connections from now on.
    Withdraw(Vec<TaskId>),
    /// What was heard of these tasks is in the state, or will never be.
    Written(Vec<TaskId>),
}

/// Where sessions register. Cheap to clone.
#[derive(Clone)]
pub(super) struct FanoutHandle {
    events: mpsc::Sender<Event>,
}

impl FanoutHandle {
    /// Registers a session, in place of an earlier one of the same node; its first message is a full set.
    /// Returns the session's number, and what ends when the fan-out lets the session go.
    pub(super) async fn register(
        &self,
        node: NodeId,
        outbox: Outbox,
    ) -> Result<(u64, oneshot::Receiver<Evicted>), Status> {
        let session = rand::random();
        let (evict, evicted) = oneshot::channel();
        let event = Event::Register { node, session, outbox, evict };
        match self.events.send(event).await {
            Ok(()) => Ok((session, evicted)),
            Err(_) => Err(Status::unavailable("this controller is shutting down")),
        }
    }

    /// A session's node has a set in effect.
    pub(super) async fn acknowledged(&self, node: NodeId, session: u64, set: u64) {
        let _ = self.events.send(Event::Acknowledged { node, session, set }).await;
    }

    /// Tells all nodes that tasks are down, before that is in the log. Until [`Self::written`] no set names them.
    pub(super) async fn withdraw(&self, tasks: Vec<TaskId>) {
        let _ = self.events.send(Event::Withdraw(tasks)).await;
    }

    /// The state has what was heard of these tasks.
    pub(super) async fn written(&self, tasks: Vec<TaskId>) {
        let _ = self.events.send(Event::Written(tasks)).await;
    }

    /// Forgets a session, unless another one of the node has taken its place.
    pub(super) async fn unregister(&self, node: NodeId, session: u64) {
        // Fails only when the controller shuts down, and every session with it.
        let _ = self.events.send(Event::Unregister { node, session }).await;
    }
}

/// Starts the task; it ends when the store's watch closes.
pub(super) fn start(store: Store, auths: Auths) -> FanoutHandle {
    let (events, inbox) = mpsc::channel(EVENTS);
    let (sessions, blocks, withdrawn) = Default::default();
    let fanout = Fanout { store, auths, sessions, blocks, withdrawn };
    tokio::spawn(fanout.run(inbox));
    FanoutHandle { events }
}

struct Session {
    number: u64,
    outbox: Outbox,
    /// Dropped with the session, which tells it.
    _evict: oneshot::Sender<Evicted>,
    /// The number of the last set that it was given.
    set: u64,
    /// The number of the last set that it has in effect.
    acknowledged: u64,
    /// What it was told last of what all nodes have in effect.
    told: u64,
    joined: Joined,
}

struct Fanout {
    store: Store,
    auths: Auths,
    sessions: BTreeMap<NodeId, Session>,
    /// Blocks that sessions have been told of: a change names those that are gone.
    blocks: BTreeSet<String>,
    /// Tasks that are down, which the state does not say yet.
    withdrawn: BTreeSet<TaskId>,
}

/// What changes have touched since the last send.
#[derive(Default)]
struct Marked {
    touched: Touched,
    everything: bool,
}

impl Marked {
    /// Marks what the changes touch; false when the watch has closed.
    fn take(&mut self, store: &Store, changes: Result<Applied, WatchError>) -> bool {
        match changes {
            Ok(applied) => {
                let touched = store.read(|state| assign::touched(state, applied.changes.iter()));
                self.touched.merge(&touched);
            }
            Err(WatchError::Lagged) => self.everything = true,
            Err(WatchError::Closed) => return false,
        }
        true
    }
}

impl Fanout {
    async fn run(mut self, mut inbox: mpsc::Receiver<Event>) {
        let mut watch = self.store.watch();
        loop {
            let mut marked = Marked::default();
            // Both arms are cancel-safe: each queue keeps what was not taken.
            tokio::select! {
                changes = watch.recv() => {
                    // Nobody listens on a follower: nothing has to be marked.
                    if self.sessions.is_empty() {
                        if matches!(changes, Err(WatchError::Closed)) {
                            return;
                        }
                        continue;
                    }
                    if !marked.take(&self.store, changes) {
                        return;
                    }
                }
                event = inbox.recv() => match event {
                    Some(event) => self.handle(event, &mut marked),
                    None => return,
                },
            }
            while let Some(changes) = watch.try_recv() {
                if !marked.take(&self.store, changes) {
                    return;
                }
            }
            self.send(&marked);
        }
    }

    fn handle(&mut self, event: Event, marked: &mut Marked) {
        match event {
            Event::Register { node, session, outbox, evict } => {
                let (set, acknowledged, told) = (0, 0, 0);
                let joined = Joined::default();
                let mut session =
                    Session { number: session, outbox, _evict: evict, set, acknowledged, told, joined };
                if self.give_all(&node, &mut session) {
                    self.sessions.insert(node, session);
                }
            }
            Event::Unregister { node, session } => {
                if self.sessions.get(&node).is_some_and(|known| known.number == session) {
                    self.sessions.remove(&node);
                    self.tell_what_is_everywhere();
                }
            }
            Event::Acknowledged { node, session, set } => {
                if let Some(known) = self.sessions.get_mut(&node).filter(|known| known.number == session) {
                    known.acknowledged = known.acknowledged.max(set);
                    self.tell_what_is_everywhere();
                }
            }
            Event::Withdraw(tasks) => self.withdraw(tasks),
            Event::Written(tasks) => self.let_in(&tasks, marked),
        }
    }

    /// From now on the state says how tasks are. One that serves all the same is named again.
    fn let_in(&mut self, tasks: &[TaskId], marked: &mut Marked) {
        let known = tasks.iter().filter(|task| self.withdrawn.remove(*task));
        self.store.read(|state| {
            let serving = known.filter_map(|task| state.task(task)).filter(|task| task.is_endpoint());
            marked.touched.everywhere.services.extend(serving.map(|task| task.service_id.clone()));
        });
    }

    fn withdraw(&mut self, tasks: Vec<TaskId>) {
        let task_ids: Vec<String> = tasks.iter().map(ToString::to_string).collect();
        self.withdrawn.extend(tasks);
        for session in self.sessions.values() {
            let withdrawal = wire::Withdrawal { task_ids: task_ids.clone() };
            let message = wire::ToAgent { message: Some(to_agent::Message::Withdrawal(withdrawal)) };
            // One that does not read loses its session with the next set.
            let _ = session.outbox.try_send(Ok(message));
        }
    }

    /// Whoever has got a set since it was told last learns what all nodes have in effect: a task that left the balancers
    /// with a set up to that gets no new connections from then on.
    fn tell_what_is_everywhere(&mut self) {
        // One that has all that it was given is no reason to wait: what came after did not concern it.
        let behind = self.sessions.values().filter(|session| session.acknowledged < session.set);
        let everywhere = behind.map(|session| session.acknowledged).min();
        let newest = self.sessions.values().map(|session| session.set).max().unwrap_or_default();
        let everywhere = everywhere.unwrap_or(newest);
        for session in self.sessions.values_mut() {
            let news = everywhere.min(session.set);
            if session.told < news {
                session.told = news;
                let message = to_agent::Message::Everywhere(everywhere);
                // One that does not read loses its session with the next set.
                let _ = session.outbox.try_send(Ok(wire::ToAgent { message: Some(message) }));
            }
        }
    }

    fn send(&mut self, marked: &Marked) {
        let mut sessions = std::mem::take(&mut self.sessions);
        if marked.everything {
            sessions.retain(|node, session| self.give_all(node, session));
        } else if marked.touched.everywhere.is_empty() {
            for node in marked.touched.nodes.keys() {
                if let Some(session) = sessions.get_mut(node)
                    && !self.give(node, session, &marked.touched, &[])
                {
                    sessions.remove(node);
                }
            }
        } else {
            let gone = if marked.touched.everywhere.blocks { self.blocks_gone() } else { Vec::new() };
            sessions.retain(|node, session| self.give(node, session, &marked.touched, &gone));
        }
        self.sessions = sessions;
    }

    /// Blocks that were told and are not leased any more.
    fn blocks_gone(&mut self) -> Vec<String> {
        let now = self.store.read(|state| {
            let leases = state.networks().flat_map(|network| &network.blocks);
            leases.map(|lease| lease.block.to_string()).collect::<BTreeSet<_>>()
        });
        let gone = self.blocks.difference(&now).cloned().collect();
        self.blocks = now;
        gone
    }

    /// Sends the whole truth for one node; false when the session is too slow or gone.
    fn give_all(&mut self, node: &NodeId, session: &mut Session) -> bool {
        let (set, assignment) = self.store.read(|state| {
            session.joined = Joined::of(state, node);
            (state.index(), assign::assignment_for(state, node))
        });
        self.blocks.extend(assignment.blocks.iter().map(|view| view.block.to_string()));
        let (container_pool, vip_pool) = assignment
            .pools
            .map(|pools| (pools.container_pool.to_string(), pools.vip_pool.to_string()))
            .unwrap_or_default();
        session.send(wire::Assignments {
            set,
            full: true,
            tasks: assignment.tasks.iter().map(|task| wire::Task::from(&**task)).collect(),
            services: assignment
                .services
                .iter()
                .map(|view| service(view, &self.withdrawn))
                .chain(assignment.guests.iter().map(guest))
                .collect(),
            auths: self.opened(&assignment.auths),
            networks: assignment.networks.iter().map(network).collect(),
            blocks: assignment.blocks.iter().map(block).collect(),
            peers: assignment.peers.iter().map(peer).collect(),
            controllers: assignment.controllers.iter().map(controller).collect(),
            container_pool,
            vip_pool,
            edge: Some(edge::config(&assignment.edge, &self.auths)),
            ..wire::Assignments::default()
        })
    }

    /// Sends one node what was touched and concerns it; false when the session is too slow or gone.
    fn give(&self, node: &NodeId, session: &mut Session, touched: &Touched, blocks_gone: &[String]) -> bool {
        let parts = touched.for_node(node);
        let (set, delta) = self
            .store
            .read(|state| (state.index(), assign::delta_for(state, node, parts, &mut session.joined)));
        if delta.is_empty() && blocks_gone.is_empty() {
            return true;
        }
        let auths = self.opened(&delta.auths);
        let edge = delta.edge.as_ref().map(|view| edge::config(view, &self.auths));
        session.send(wire::Assignments { auths, edge, ..self.change(delta, set, session.set, blocks_gone) })
    }

    fn change(&self, delta: NodeDelta, set: u64, base: u64, blocks_gone: &[String]) -> wire::Assignments {
        // A service that is named is replaced whole; only one without any view left is removed.
        let named = |id: &&_| !delta.services.iter().any(|view| view.service_id == **id);
        let removed_services = delta.removed_services.iter().filter(named).map(ToString::to_string);
        wire::Assignments {
            set,
            base,
            tasks: delta.tasks.iter().map(|task| wire::Task::from(&**task)).collect(),
            removed_tasks: delta.removed_tasks.iter().map(ToString::to_string).collect(),
            removed_services: removed_services
                .chain(delta.removed_guests.iter().map(ToString::to_string))
                .collect(),
            services: delta
                .services
                .iter()
                .map(|view| service(view, &self.withdrawn))
                .chain(delta.guests.iter().map(guest))
                .collect(),
            removed_auths: delta.removed_auths.iter().map(ToString::to_string).collect(),
            networks: delta.networks.iter().map(network).collect(),
            removed_networks: delta.removed_networks.iter().map(ToString::to_string).collect(),
            blocks: delta.blocks.iter().flatten().map(block).collect(),
            removed_blocks: blocks_gone.to_vec(),
            peers: delta.peers.iter().map(peer).collect(),
            removed_peers: delta.removed_peers.iter().map(ToString::to_string).collect(),
            controllers: delta.controllers.iter().flatten().map(controller).collect(),
            ..wire::Assignments::default()
        }
    }

    /// What can't be opened is told as nothing: the registry's refusal reaches the user in the task's status.
    fn opened(&self, views: &[AuthsView]) -> Vec<wire::ServiceAuths> {
        let open = |view: &AuthsView| {
            let list = self.auths.open(&view.service_id, &view.sealed).unwrap_or_else(|error| {
                tracing::error!(service = %view.service_id, %error, "credentials of a service can't be read");
                Vec::new()
            });
            wire::ServiceAuths { service_id: view.service_id.to_string(), list }
        };
        views.iter().map(open).collect()
    }
}

impl Session {
    fn send(&mut self, assignments: wire::Assignments) -> bool {
        self.set = assignments.set;
        let message = wire::ToAgent { message: Some(to_agent::Message::Assignments(assignments)) };
        self.outbox.try_send(Ok(message)).is_ok()
    }
}

/// A service without those endpoints that are down.
fn service(view: &ServiceView, down: &BTreeSet<TaskId>) -> wire::ServiceEndpoints {
    let up = |endpoint: &&EndpointView| !down.contains(&endpoint.task_id);
    let endpoint = |endpoint: &EndpointView| wire::ServiceEndpoint {
        task_id: endpoint.task_id.to_string(),
        name: endpoint.name.clone(),
        address: endpoint.address.to_string(),
        node_id: endpoint.node_id.to_string(),
        weight: endpoint.weight,
    };
    wire::ServiceEndpoints {
        service_id: view.service_id.to_string(),
        name: view.name.clone(),
        network_id: view.network_id.to_string(),
        network_name: view.network_name.clone(),
        vip: view.vip.map(|vip| vip.to_string()).unwrap_or_default(),
        ports: view.ports.iter().map(wire::PortSpec::from).collect(),
        endpoints: view.endpoints.iter().filter(up).map(endpoint).collect(),
        unready_aliases: view.unready_aliases.clone(),
        unready: view.unready.iter().map(endpoint).collect(),
        aliases: view.aliases.clone(),
        client_affinity: view.client_affinity,
        routes: view.routes.iter().map(Into::into).collect(),
        guest_node_id: String::new(),
    }
}

/// A guest in the shape of a service, so that nodes keep, name and forget it as one.
fn guest(view: &GuestView) -> wire::ServiceEndpoints {
    let endpoint = view.address.map(|address| wire::ServiceEndpoint {
        task_id: view.guest_id.to_string(),
        name: view.name.clone(),
        address: address.to_string(),
        node_id: view.node_id.to_string(),
        weight: 0,
    });
    wire::ServiceEndpoints {
        service_id: view.guest_id.to_string(),
        name: view.name.clone(),
        network_id: view.network_id.to_string(),
        network_name: view.network_name.clone(),
        endpoints: endpoint.into_iter().collect(),
        aliases: view.aliases.clone(),
        guest_node_id: view.node_id.to_string(),
        ..wire::ServiceEndpoints::default()
    }
}

fn network(view: &NetworkView) -> wire::NodeNetwork {
    wire::NodeNetwork {
        network_id: view.network_id.to_string(),
        name: view.name.clone(),
        subnets: texts_of(&view.subnets, &view.subnets6),
        internal: view.internal,
        metadata: view.metadata,
        ipv6_names: view.ipv6_names,
    }
}

fn block(view: &BlockView) -> wire::NetworkBlock {
    wire::NetworkBlock {
        block: view.block.to_string(),
        network_id: view.network_id.to_string(),
        node_id: view.node_id.to_string(),
    }
}

fn peer(view: &PeerView) -> wire::NodePeer {
    wire::NodePeer {
        node_id: view.node_id.to_string(),
        hostname: view.hostname.clone(),
        address: view.address.clone(),
        encrypted: view.encrypted,
        public_key: view.public_key.clone(),
        ipv6_addresses: view.ipv6_addresses.iter().map(ToString::to_string).collect(),
        other_addresses: view.other_addresses.iter().map(ToString::to_string).collect(),
    }
}

fn controller(view: &ControllerView) -> wire::Controller {
    wire::Controller {
        node_id: view.node_id.to_string(),
        address: view.address.clone(),
        raft_id: view.raft_id,
    }
}

/// A node as one that fetches from it has to know it.
pub(super) fn holder(node: &Arc<Node>) -> wire::NodePeer {
    wire::NodePeer {
        node_id: node.id.to_string(),
        hostname: node.description.hostname.clone(),
        address: node.address.clone(),
        ..wire::NodePeer::default()
    }
}

/// The controllers, for agents that look for the leader.
pub(crate) fn controllers(state: &State) -> Vec<wire::Controller> {
    assign::controllers(state).iter().map(controller).collect()
}

#[cfg(test)]
#[path = "fanout_tests.rs"]
mod tests;
