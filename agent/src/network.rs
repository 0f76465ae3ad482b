//! The node's fabric, as the agent uses it: containers attach at once, what the leader says is applied in order.
//!
//! One task (`run`) owns what the fabric was last told: services, blocks and peers of the assignment set, and
//! which of this node's own tasks are down just now. The latter are left out of the balancer on this node
//! before any controller hears of it, also while none can be reached. Changes that wait are applied as one;
//! after an error the whole truth is applied again, later. Published ports that something else has here are kept
//! account of ([`HeldPorts`]) and tried again until they are free.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use rorqual_network::{
    Attach, Attachment, Block, Change, Endpoint, Error, Fabric, HostPort, LOCAL_NETWORK, NetworkOptions,
    Peer, Protocol, PublishedPort, ServiceView,
};
use rorqual_proto::model::HeldPort;
use rorqual_proto::wire::{self, NetworkBlock, NodePeer, ServiceEndpoints};
use tokio::sync::{RwLock, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::error::one_line;
use crate::held::{self, HeldPorts};
use crate::set::SetChange;

/// Changes that may wait; a session that is faster than the kernel waits with them.
const EVENTS: usize = 256;

/// After a change that failed, the whole truth is applied again: first so soon, then ever more rarely.
const AGAIN: Duration = Duration::from_millis(500);
const AGAIN_MOST: Duration = Duration::from_secs(30);

/// How often ports that are held are tried again. It costs a look at who listens, and at /proc for who that is.
const FREE_YET: Duration = Duration::from_secs(2);

/// How long an earlier fabric of this process may take to let go of the resolver's socket.
const HAND_OVER: Duration = Duration::from_secs(5);
const HAND_OVER_STEP: Duration = Duration::from_millis(20);

enum Event {
    Set(Box<SetChange>),
    Health {
        task: String,
        up: bool,
    },
    /// The node has joined or left a cluster: what the set said before means nothing any more.
    Reset(OwnName),
}

/// The node's network. Clones share it.
#[derive(Clone)]
pub(crate) struct Network {
    fabric: Arc<RwLock<Option<Fabric>>>,
    events: mpsc::Sender<Event>,
    held: watch::Receiver<Vec<HeldPort>>,
    /// Ends the task with the last clone.
    _task: Arc<JoinSet<()>>,
}

/// How this node is called in the cluster and in its fabric. The fabric's name stays the same when a node
/// joins or leaves, so that links and tables are taken over.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnName {
    /// Empty outside a cluster.
    pub(crate) node_id: String,
    pub(crate) fabric: String,
}

impl OwnName {
    fn translate(&self, node_id: &str) -> String {
        if node_id == self.node_id { self.fabric.clone() } else { node_id.to_owned() }
    }
}

impl Network {
    /// Starts the fabric and the task that feeds it.
    pub(crate) async fn start(options: NetworkOptions, own: OwnName) -> Result<Self, Error> {
        let fabric = Arc::new(RwLock::new(Some(Fabric::start(options).await?)));
        let (events, inbox) = mpsc::channel(EVENTS);
        let (told, held) = watch::channel(Vec::new());
        let mut task = JoinSet::new();
        task.spawn(run(Feeder::new(fabric.clone(), own), inbox, told));
        Ok(Self { fabric, events, held, _task: Arc::new(task) })
    }

    /// Starts the fabric anew with other pools or another underlay: the node has joined or left a cluster.
    /// Containers stay attached.
    pub(crate) async fn restart(&self, options: NetworkOptions, own: OwnName) -> Result<(), Error> {
        self.replace(options).await?;
        // Fails only at the very end of the agent.
        let _ = self.events.send(Event::Reset(own)).await;
        Ok(())
    }

    async fn replace(&self, options: NetworkOptions) -> Result<(), Error> {
        let mut fabric = self.fabric.write().await;
        *fabric = None;
        let started = tokio::time::Instant::now();
        loop {
            match Fabric::start(options.clone()).await {
                Ok(new) => {
                    *fabric = Some(new);
                    return Ok(());
                }
                // The threads of the one before have not ended yet.
                Err(Error::Dns { .. }) if started.elapsed() < HAND_OVER => {
                    tokio::time::sleep(HAND_OVER_STEP).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn fabric(&self) -> Result<Fabric, Error> {
        self.fabric.read().await.clone().ok_or(Error::Stopped)
    }

    /// Gives a container its namespace and address.
    pub(crate) async fn attach(&self, attach: Attach) -> Result<Attachment, Error> {
        self.fabric().await?.attach(attach).await
    }

    /// Takes them away.
    pub(crate) async fn detach(&self, id: &str) -> Result<(), Error> {
        self.fabric().await?.detach(id).await
    }

    /// Everything that is attached, also by an earlier daemon.
    pub(crate) async fn attached(&self) -> Vec<Attachment> {
        match self.fabric().await {
            Ok(fabric) => fabric.attached().await,
            Err(_) => Vec::new(),
        }
    }

    /// Hands over what an assignment set changes; waits only while too much is waiting.
    pub(crate) async fn apply(&self, change: SetChange) {
        let change = SetChange { tasks: Vec::new(), writes: Vec::new(), ..change };
        // Fails only at the very end of the agent.
        let _ = self.events.send(Event::Set(Box::new(change))).await;
    }

    /// Published ports of services that something else has on this node.
    pub(crate) fn held_ports(&self) -> watch::Receiver<Vec<HeldPort>> {
        self.held.clone()
    }

    /// Tells that a task of this node came up or went down.
    pub(crate) async fn health(&self, task: &str, up: bool) {
        let _ = self.events.send(Event::Health { task: task.to_owned(), up }).await;
    }
}

/// What the fabric was told last.
struct Feeder {
    fabric: Arc<RwLock<Option<Fabric>>>,
    own: OwnName,
    services: BTreeMap<String, ServiceEndpoints>,
    blocks: BTreeMap<String, NetworkBlock>,
    peers: BTreeMap<String, NodePeer>,
    /// Tasks of this node that must get no traffic, although the set names them.
    down: BTreeSet<String>,
    /// Which service names a task as its endpoint.
    endpoint_of: BTreeMap<String, String>,
    held: HeldPorts,
}

/// What has to be applied next.
#[derive(Default)]
struct Dirty {
    full: bool,
    services: BTreeSet<String>,
    removed_services: BTreeSet<String>,
    blocks: BTreeSet<String>,
    removed_blocks: BTreeSet<String>,
    peers: BTreeSet<String>,
    removed_peers: BTreeSet<String>,
}

impl Dirty {
    fn is_clean(&self) -> bool {
        !self.full
            && [
                &self.services,
                &self.removed_services,
                &self.blocks,
                &self.removed_blocks,
                &self.peers,
                &self.removed_peers,
            ]
            .iter()
            .all(|set| set.is_empty())
    }
}

/// Ends when the last [`Network`] is dropped.
async fn run(mut feeder: Feeder, mut inbox: mpsc::Receiver<Event>, told: watch::Sender<Vec<HeldPort>>) {
    let mut dirty = Dirty::default();
    let mut pause = AGAIN;
    let mut look_at = Instant::now();
    loop {
        // Each arm is cancel-safe: the queue keeps what was not taken, a sleep starts anew or has a fixed end.
        tokio::select! {
            event = inbox.recv() => match event {
                Some(event) => feeder.take(event, &mut dirty),
                None => return,
            },
            () = tokio::time::sleep(pause), if !dirty.is_clean() => {}
            () = tokio::time::sleep_until(look_at), if !feeder.held.is_empty() => {
                feeder.try_held_ports(&mut dirty);
                look_at = Instant::now() + FREE_YET;
            }
        }
        while let Ok(event) = inbox.try_recv() {
            feeder.take(event, &mut dirty);
        }
        if dirty.is_clean() {
            continue;
        }
        match feeder.apply(&dirty).await {
            Ok(()) => (dirty, pause) = (Dirty::default(), AGAIN),
            Err(error) => {
                tracing::warn!(error = %one_line(&error), "the network is not up to date");
                dirty = Dirty { full: true, ..Dirty::default() };
                pause = (pause * 2).min(AGAIN_MOST);
            }
        }
        told.send_if_modified(|list| {
            let now = feeder.held.list();
            let news = *list != now;
            *list = now;
            news
        });
    }
}

impl Feeder {
    fn new(fabric: Arc<RwLock<Option<Fabric>>>, own: OwnName) -> Self {
        Self {
            fabric,
            own,
            services: BTreeMap::new(),
            blocks: BTreeMap::new(),
            peers: BTreeMap::new(),
            down: BTreeSet::new(),
            endpoint_of: BTreeMap::new(),
            held: HeldPorts::default(),
        }
    }

    fn take(&mut self, event: Event, dirty: &mut Dirty) {
        match event {
            Event::Set(change) => self.take_set(*change, dirty),
            Event::Reset(own) => {
                *self = Self::new(self.fabric.clone(), own);
                *dirty = Dirty { full: true, ..Dirty::default() };
            }
            Event::Health { task, up } => {
                let changed = if up { self.down.remove(&task) } else { self.down.insert(task.clone()) };
                if let Some(service) = self.endpoint_of.get(&task).filter(|_| changed) {
                    dirty.services.insert(service.clone());
                }
            }
        }
    }

    fn take_set(&mut self, change: SetChange, dirty: &mut Dirty) {
        dirty.full |= change.full;
        for id in change.removed_tasks {
            self.down.remove(&id);
        }
        for id in change.removed_services {
            self.forget_endpoints(&id);
            self.services.remove(&id);
            dirty.services.remove(&id);
            dirty.removed_services.insert(id);
        }
        for service in change.services {
            let id = service.service_id.clone();
            self.forget_endpoints(&id);
            for endpoint in &service.endpoints {
                self.endpoint_of.insert(endpoint.task_id.clone(), id.clone());
            }
            self.services.insert(id.clone(), service);
            dirty.removed_services.remove(&id);
            dirty.services.insert(id);
        }
        for key in change.removed_blocks {
            self.blocks.remove(&key);
            dirty.blocks.remove(&key);
            dirty.removed_blocks.insert(key);
        }
        for block in change.blocks {
            dirty.removed_blocks.remove(&block.block);
            dirty.blocks.insert(block.block.clone());
            self.blocks.insert(block.block.clone(), block);
        }
        for id in change.removed_peers {
            self.peers.remove(&id);
            dirty.peers.remove(&id);
            dirty.removed_peers.insert(id);
        }
        for peer in change.peers {
            dirty.removed_peers.remove(&peer.node_id);
            dirty.peers.insert(peer.node_id.clone());
            self.peers.insert(peer.node_id.clone(), peer);
        }
    }

    fn forget_endpoints(&mut self, service: &str) {
        for endpoint in self.services.get(service).into_iter().flat_map(|service| &service.endpoints) {
            self.endpoint_of.remove(&endpoint.task_id);
        }
    }

    async fn apply(&mut self, dirty: &Dirty) -> Result<(), Error> {
        let change = self.change(dirty);
        let services = change.services.clone();
        let fabric = self.fabric.read().await.clone().ok_or(Error::Stopped)?;
        // Ports of services that are refused: the rest is in effect.
        let refused = match fabric.apply(change).await {
            Ok(()) => Vec::new(),
            Err(error) => held::refusals(error)?,
        };
        let given: BTreeSet<(u16, Protocol)> = if self.held.is_empty() && refused.is_empty() {
            BTreeSet::new()
        } else {
            let ports = self.services.values().flat_map(|service| &service.ports).filter_map(published_port);
            ports.map(|port| (port.published, port.protocol)).collect()
        };
        let mut news = self.held.take(&services, refused);
        news |= self.held.retain(|port, protocol| given.contains(&(port, protocol)));
        if news {
            tracing::warn!(held = ?self.held.list(), "published ports that something else has on this node");
        }
        Ok(())
    }

    /// Services whose ports were held when they were last looked at.
    fn try_held_ports(&self, dirty: &mut Dirty) {
        for (id, service) in &self.services {
            if self.service_view(service).is_some_and(|service| self.held.concern(&service)) {
                dirty.services.insert(id.clone());
            }
        }
    }

    fn change(&self, dirty: &Dirty) -> Change {
        let wanted = |set: &BTreeSet<String>, key: &String| dirty.full || set.contains(key);
        let services = self.services.iter().filter(|(id, _)| wanted(&dirty.services, id));
        let blocks = self.blocks.iter().filter(|(key, _)| wanted(&dirty.blocks, key));
        let peers = self.peers.iter().filter(|(id, _)| wanted(&dirty.peers, id) && **id != self.own.node_id);
        let removed =
            |set: &BTreeSet<String>| if dirty.full { Vec::new() } else { set.iter().cloned().collect() };
        Change {
            full: dirty.full,
            services: services.filter_map(|(_, service)| self.service_view(service)).collect(),
            removed_services: removed(&dirty.removed_services),
            blocks: blocks.filter_map(|(_, block)| self.block(block)).collect(),
            removed_blocks: removed(&dirty.removed_blocks)
                .iter()
                .filter_map(|text| readable(text, "block"))
                .collect(),
            peers: peers.filter_map(|(_, given)| peer(given)).collect(),
            removed_peers: removed(&dirty.removed_peers),
        }
    }

    fn service_view(&self, service: &ServiceEndpoints) -> Option<ServiceView> {
        let up = service.endpoints.iter().filter(|endpoint| !self.down.contains(&endpoint.task_id));
        let endpoints = up.filter_map(|endpoint| {
            Some(Endpoint {
                id: endpoint.task_id.clone(),
                name: endpoint.name.clone(),
                address: readable(&endpoint.address, "endpoint")?,
                node: self.own.translate(&endpoint.node_id),
            })
        });
        let vip = match service.vip.as_str() {
            "" => None,
            text => Some(readable(text, "virtual address")?),
        };
        Some(ServiceView {
            id: service.service_id.clone(),
            name: service.name.clone(),
            network: service.network_id.clone(),
            vip,
            ports: service.ports.iter().filter_map(published_port).collect(),
            endpoints: endpoints.collect(),
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

fn peer(given: &NodePeer) -> Option<Peer> {
    let host = given.address.rsplit_once(':').map_or(given.address.as_str(), |(host, _)| host);
    Some(Peer { node: given.node_id.clone(), underlay: readable::<Ipv4Addr>(host, "peer")? })
}

/// One item that can't be read is left out, so that the others work.
fn readable<T: std::str::FromStr>(text: &str, what: &str) -> Option<T> {
    let parsed = text.parse().ok();
    if parsed.is_none() {
        tracing::warn!(text, what, "the leader sent an address that can't be read; left out");
    }
    parsed
}

fn protocol(number: i32) -> Protocol {
    match wire::Protocol::try_from(number) {
        Ok(wire::Protocol::Udp) => Protocol::Udp,
        _ => Protocol::Tcp,
    }
}

fn published_port(port: &wire::PortSpec) -> Option<PublishedPort> {
    Some(PublishedPort {
        published: u16::try_from(port.published).ok().filter(|port| *port > 0)?,
        target: u16::try_from(port.target).ok().filter(|port| *port > 0)?,
        protocol: protocol(port.protocol),
    })
}

/// Ports of this node alone, for a plain container.
pub(crate) fn host_ports(ports: &[wire::PortSpec]) -> Vec<HostPort> {
    let published = ports.iter().filter_map(published_port);
    published
        .map(|port| HostPort {
            address: None,
            published: port.published,
            target: port.target,
            protocol: port.protocol,
        })
        .collect()
}

/// The attachment of a plain container: an address of the local pool.
pub(crate) fn local_attach(id: &str, name: &str, ports: &[wire::PortSpec]) -> Attach {
    Attach {
        id: id.to_owned(),
        name: name.to_owned(),
        network: LOCAL_NETWORK.to_owned(),
        address: None,
        ports: host_ports(ports),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feeder() -> Feeder {
        let own = OwnName { node_id: "id1".into(), fabric: "n1".into() };
        Feeder::new(Arc::default(), own)
    }

    fn service(endpoints: &[(&str, &str)]) -> ServiceEndpoints {
        ServiceEndpoints {
            service_id: "s1".into(),
            name: "web".into(),
            network_id: "net".into(),
            vip: "10.214.0.1".into(),
            endpoints: endpoints
                .iter()
                .map(|(task, node)| wire::ServiceEndpoint {
                    task_id: (*task).into(),
                    name: format!("web.{task}"),
                    address: "10.213.0.2".into(),
                    node_id: (*node).into(),
                })
                .collect(),
            ..ServiceEndpoints::default()
        }
    }

    fn ids(change: &Change) -> Vec<&str> {
        change.services.iter().flat_map(|s| &s.endpoints).map(|e| e.id.as_str()).collect()
    }

    #[test]
    fn an_own_task_that_is_down_leaves_the_balancer_at_once() {
        let mut feeder = feeder();
        let mut dirty = Dirty::default();
        let change = SetChange {
            full: true,
            services: vec![service(&[("a", "id1"), ("b", "id2")])],
            ..SetChange::default()
        };
        feeder.take(Event::Set(Box::new(change)), &mut dirty);
        let first = feeder.change(&dirty);
        assert!(first.full);
        assert_eq!(ids(&first), ["a", "b"]);
        assert_eq!(first.services[0].endpoints[0].node, "n1");
        assert_eq!(first.services[0].endpoints[1].node, "id2");

        let mut dirty = Dirty::default();
        feeder.take(Event::Health { task: "a".into(), up: false }, &mut dirty);
        assert_eq!(ids(&feeder.change(&dirty)), ["b"]);
        let mut dirty = Dirty::default();
        feeder.take(Event::Health { task: "a".into(), up: true }, &mut dirty);
        assert_eq!(ids(&feeder.change(&dirty)), ["a", "b"]);
    }

    #[test]
    fn the_health_of_a_task_that_no_service_names_changes_nothing() {
        let mut feeder = feeder();
        let mut dirty = Dirty::default();
        feeder.take(Event::Health { task: "x".into(), up: false }, &mut dirty);
        assert!(dirty.is_clean());
    }

    #[test]
    fn what_comes_and_goes_in_one_batch_ends_as_it_is() {
        let mut feeder = feeder();
        let mut dirty = Dirty::default();
        let put = SetChange { services: vec![service(&[])], ..SetChange::default() };
        let remove = SetChange { removed_services: vec!["s1".into()], ..SetChange::default() };
        feeder.take(Event::Set(Box::new(put.clone())), &mut dirty);
        feeder.take(Event::Set(Box::new(remove)), &mut dirty);
        let change = feeder.change(&dirty);
        assert!(change.services.is_empty());
        assert_eq!(change.removed_services, ["s1"]);
        feeder.take(Event::Set(Box::new(put)), &mut dirty);
        let change = feeder.change(&dirty);
        assert_eq!(change.services.len(), 1);
        assert!(change.removed_services.is_empty());
    }

    #[test]
    fn the_own_node_is_no_peer_and_an_unreadable_one_is_left_out() {
        let mut feeder = feeder();
        let peers = [("id1", "10.0.0.1:4780"), ("id2", "10.0.0.2:4780"), ("id3", "somewhere:4780")];
        let peers = peers.map(|(id, address)| NodePeer {
            node_id: id.into(),
            hostname: String::new(),
            address: address.into(),
        });
        let mut dirty = Dirty::default();
        let change = SetChange { full: true, peers: peers.to_vec(), ..SetChange::default() };
        feeder.take(Event::Set(Box::new(change)), &mut dirty);
        let change = feeder.change(&dirty);
        assert_eq!(change.peers, [Peer { node: "id2".into(), underlay: Ipv4Addr::new(10, 0, 0, 2) }]);
    }
}
