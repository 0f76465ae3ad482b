//! The node's fabric, as the agent uses it: containers attach at once, what the leader says is applied in order.
//!
//! One task (`run`) owns what the fabric and the HTTP edge were last told ([`feeder::Feeder`]): services, blocks and peers of the assignment set, and
//! which of this node's own tasks are down just now. The latter are left out of the balancer on this node
//! before any controller hears of it, also while none can be reached; those of other nodes as soon as the leader hears
//! of it (`adr/0075`). Changes that wait are applied as one;
//! after an error the whole truth is applied again, later. What was applied is told to be in effect by
//! [`settling`]. Published ports that something else has here are kept
//! account of ([`HeldPorts`]) and tried again until they are free.

mod feeder;
mod settling;

use std::sync::{Arc, Weak};
use std::time::Duration;

use rorqual_edge::Edge;
use rorqual_network::{
    Attach, Attachment, Error, Fabric, HostPort, Interface, Join, LOCAL_NETWORK, NetworkOptions,
};
use rorqual_proto::model::{HeldPort, NodeEncryption};
use rorqual_proto::wire;
use tokio::sync::{RwLock, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::error::one_line;
use crate::set::SetChange;
use feeder::{Dirty, Feeder, published_port};

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
    /// Tasks of any node that the leader has told to be down.
    Withdraw(Vec<String>),
    /// Who wants to know when no node that answers sends a task new connections any more.
    Withdrawn {
        task: String,
        reply: oneshot::Sender<u64>,
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
    /// The number of the last set that is in effect here.
    in_effect: watch::Receiver<u64>,
    /// As the leader told it: every node has all up to this set in effect.
    everywhere: Arc<watch::Sender<u64>>,
    /// Ends the task with the last clone.
    _task: Arc<JoinSet<()>>,
}

/// The fabric, for those who must not keep it.
pub(crate) struct WeakFabric(Weak<RwLock<Option<Fabric>>>);

impl WeakFabric {
    /// The one that there is now.
    pub(crate) async fn get(&self) -> Option<Fabric> {
        self.0.upgrade()?.read().await.clone()
    }
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
    pub(crate) async fn start(options: NetworkOptions, own: OwnName, edge: Edge) -> Result<Self, Error> {
        let fabric = Arc::new(RwLock::new(Some(Fabric::start(options).await?)));
        let (events, inbox) = mpsc::channel(EVENTS);
        let (held_told, held) = watch::channel(Vec::new());
        let (in_effect_told, in_effect) = watch::channel(0);
        let mut task = JoinSet::new();
        let told = Outlets { held: held_told, in_effect: in_effect_told };
        // In no cluster nothing is to come: that is the whole truth already.
        let dirty = if own.node_id.is_empty() { Dirty::everything() } else { Dirty::default() };
        task.spawn(run(Feeder::new(fabric.clone(), own, edge), dirty, inbox, told));
        let everywhere = Arc::new(watch::Sender::new(0));
        Ok(Self { fabric, events, held, in_effect, everywhere, _task: Arc::new(task) })
    }

    /// Starts the fabric anew with other pools or another underlay: the node has joined or left a cluster.
    /// Containers stay attached.
    pub(crate) async fn restart(&self, options: NetworkOptions, own: OwnName) -> Result<(), Error> {
        self.replace(options).await?;
        self.everywhere.send_replace(0);
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

    pub(crate) fn downgrade(&self) -> WeakFabric {
        WeakFabric(Arc::downgrade(&self.fabric))
    }

    pub(crate) async fn fabric(&self) -> Result<Fabric, Error> {
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

    /// How this node encrypts what goes to others.
    pub(crate) async fn encryption(&self) -> NodeEncryption {
        self.fabric().await.map(|fabric| encryption(&fabric)).unwrap_or_default()
    }

    /// The number of the last set that is in effect here.
    pub(crate) fn in_effect(&self) -> watch::Receiver<u64> {
        self.in_effect.clone()
    }

    /// The leader says that all nodes have everything up to this set in effect.
    pub(crate) fn is_everywhere(&self, set: u64) {
        self.everywhere.send_replace(set);
    }

    /// Returns when no node that answers sends a task of this node new connections any more. While no leader can be
    /// reached it does not return.
    pub(crate) async fn withdrawn(&self, task: &str) {
        let (reply, answer) = oneshot::channel();
        let event = Event::Withdrawn { task: task.to_owned(), reply };
        if self.events.send(event).await.is_err() {
            return;
        }
        if let Ok(set) = answer.await {
            // An error comes at the very end of the agent alone.
            let _ = self.everywhere.subscribe().wait_for(|everywhere| *everywhere >= set).await;
        }
    }

    /// How many connections to a container are open.
    pub(crate) async fn open_connections(&self, id: &str) -> Result<usize, Error> {
        let attached = self.attached().await;
        let own = attached.iter().find(|attachment| attachment.id == id);
        let addresses: Vec<_> =
            own.iter().flat_map(|own| &own.interfaces).flat_map(Interface::addresses).collect();
        let counted = tokio::task::spawn_blocking(move || rorqual_network::open_connections(&addresses));
        counted.await.map_err(|_| Error::Stopped)?
    }

    /// The leader has heard that tasks are down, and has not written it yet.
    pub(crate) async fn withdraw(&self, tasks: Vec<String>) {
        let _ = self.events.send(Event::Withdraw(tasks)).await;
    }

    /// Tells that a task of this node came up or went down.
    pub(crate) async fn health(&self, task: &str, up: bool) {
        let _ = self.events.send(Event::Health { task: task.to_owned(), up }).await;
    }
}

/// Where the task tells what it knows.
struct Outlets {
    held: watch::Sender<Vec<HeldPort>>,
    in_effect: watch::Sender<u64>,
}

/// Ends when the last [`Network`] is dropped.
async fn run(mut feeder: Feeder, mut dirty: Dirty, mut inbox: mpsc::Receiver<Event>, told: Outlets) {
    let mut pause = AGAIN;
    let mut look_at = Instant::now();
    let mut sealed = feeder.encryption().await;
    loop {
        // Each arm is cancel-safe: the queue keeps what was not taken, a sleep starts anew or has a fixed end, and what
        // settles is kept.
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
            settled = feeder.settling.settled() => {
                match settled {
                    Ok(settled) => settled.tell(&told.in_effect),
                    Err(error) => {
                        tracing::warn!(error = %one_line(&error), "cannot tell whether the network is up to date");
                        dirty = Dirty::everything();
                    }
                }
                continue;
            }
        }
        while let Ok(event) = inbox.try_recv() {
            feeder.take(event, &mut dirty);
        }
        if dirty.is_clean() {
            let settled = feeder.settled();
            if feeder.settling.is_idle() {
                settled.tell(&told.in_effect);
            } else {
                feeder.settling.add(settled);
            }
            continue;
        }
        match feeder.apply(&dirty).await {
            Ok(()) => {
                (dirty, pause) = (Dirty::default(), AGAIN);
                let settled = feeder.settled();
                feeder.settling.add(settled);
            }
            Err(error) => {
                tracing::warn!(error = %one_line(&error), "the network is not up to date");
                dirty = Dirty::everything();
                pause = (pause * 2).min(AGAIN_MOST);
            }
        }
        let told_of = feeder.encryption().await;
        told.held.send_if_modified(|list| {
            let now = feeder.held.list();
            // Both stand in what the node tells of itself.
            let news = *list != now || sealed != told_of;
            *list = now;
            news
        });
        sealed = told_of;
    }
}

fn encryption(fabric: &Fabric) -> NodeEncryption {
    let rorqual_network::Encryption { key, kind, problem } = fabric.encryption();
    NodeEncryption { public_key: key, kind: kind.to_owned(), problem }
}

/// Ports of this node alone, for a plain container.
pub(crate) fn host_ports(ports: &[wire::PortSpec]) -> Vec<HostPort> {
    let published = ports.iter().filter_map(published_port);
    published
        .map(|port| HostPort {
            address: port.address,
            published: port.published,
            target: port.target,
            protocol: port.protocol,
            allow: port.allow,
        })
        .collect()
}

/// The attachment of a plain container: an address of the local pool.
pub(crate) fn local_attach(id: &str, name: &str, ports: &[wire::PortSpec]) -> Attach {
    Attach {
        resolvers: vec![],
        id: id.to_owned(),
        name: name.to_owned(),
        networks: vec![Join::new(LOCAL_NETWORK, None)],
        ports: host_ports(ports),
    }
}
