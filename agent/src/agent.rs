//! [`Agent`]: the handle that the daemon holds, and the order in which its parts start and end.
//!
//! A node that is in no cluster runs plain containers. [`Agent::join_cluster`] adds the session with the leader;
//! what the node was a member of is remembered, so that a daemon that starts again takes its network over as it
//! is, before anybody tells it of the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError, RwLock};

use rorqual_edge::Edge;
use rorqual_image::Store;
use rorqual_network::NetworkOptions;
use rorqual_proto::model::{ClusterId, ContainerSpec, NodeDescription};
use rorqual_proto::wire;
use rorqual_runtime::{ContainerState, Runtime, RuntimeOptions};
use tokio::sync::{Mutex, watch};

use crate::build::{self, BuildContainers};
use crate::containers::Containers;
use crate::doctor::Doctor;
use crate::engine::EngineApi;
use crate::error::{AgentError, one_line};
use crate::executor::{Executor, make_folder};
use crate::gc::{self, Needed};
use crate::host;
use crate::images::Images;
use crate::network::{Network, OwnName};
use crate::options::{
    AgentOptions, ClusterMembership, DEFAULT_CONTAINER_POOL, DEFAULT_VIP_POOL, network_name, pool,
};
use crate::peer::{ClusterLink, PeerApi};
use crate::registry::Registry;
use crate::session::{Parts, Session, SessionStatus};
use crate::set::AssignmentSet;
use crate::store::{MembershipRecord, NodeStore};
use crate::tasks::Tasks;

/// Network namespaces that are made ahead of time: enough for a burst of ten containers.
const PREPARED: usize = 12;

/// The worker of one node. Clones share it.
#[derive(Clone)]
pub struct Agent {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    options: AgentOptions,
    description: NodeDescription,
    store: NodeStore,
    network: Network,
    edge: Edge,
    images: Images,
    registry: Registry,
    executor: Executor,
    tasks: Tasks,
    containers: Containers,
    builds: BuildContainers,
    doctor: Doctor,
    cluster: RwLock<Option<ClusterId>>,
    status: Arc<watch::Sender<SessionStatus>>,
    /// Held while the node joins, leaves or ends.
    session: Mutex<Option<Session>>,
}

/// What is opened before anything runs.
struct Opened {
    store: NodeStore,
    runtime: Arc<Runtime>,
    images: Store,
    remembered: Option<MembershipRecord>,
}

fn open(options: &AgentOptions) -> Result<Opened, AgentError> {
    for folder in ["containers", "volumes"] {
        make_folder(&options.data_dir.join(folder))?;
    }
    for folder in ["containers", "network"] {
        make_folder(&options.run_dir.join(folder))?;
    }
    if let Err(error) = build::sweep_secrets(&options.run_dir) {
        tracing::warn!(%error, "secrets of a build that an earlier daemon began are still there");
    }
    let store = NodeStore::open(&options.data_dir.join("node"))?;
    let runtime = Runtime::new(RuntimeOptions {
        runtime_dir: options.run_dir.join("containers"),
        cgroup_parent: options.cgroup_parent.clone(),
        binary: options.runtime_binary.clone(),
    });
    let limits = rorqual_image::Options { limits: options.image_limits.clone(), ..Default::default() };
    let images = Store::open_with(options.data_dir.join("images"), limits).map_err(AgentError::Images)?;
    let remembered = store.membership()?;
    Ok(Opened { store, runtime: Arc::new(runtime.map_err(AgentError::Runtime)?), images, remembered })
}

impl Agent {
    /// Takes over what an earlier daemon ran on this node, and starts nothing that is not there to be started.
    pub async fn start(options: AgentOptions) -> Result<Self, AgentError> {
        let given = options.clone();
        let opened = tokio::task::spawn_blocking(move || open(&given)).await;
        let Opened { store, runtime, images, remembered } = opened.map_err(|_| AgentError::Stopped)??;
        let description = host::description(&runtime.host(), &options);
        let (own, shape) = shape(&options, remembered.as_ref());
        let edge = Edge::new(rorqual_edge::Limits::default(), &options.data_dir.join("edge"));
        let network = Network::start(shape, own, edge.clone()).await.map_err(AgentError::Network)?;
        let images = Images::new(images, options.insecure_registries.clone(), options.registries.clone());
        let registry = {
            let (images, data_dir, port) = (images.clone(), options.data_dir.clone(), options.registry_port);
            tokio::task::spawn_blocking(move || Registry::open(&images, &data_dir, port)).await
        };
        let registry = registry.map_err(|_| AgentError::Stopped)??;
        images.set_registry(registry.clone());
        let executor =
            Executor::new(runtime, images.clone(), network.clone(), &options.data_dir, &options.hostname);
        let inner = Inner {
            tasks: Tasks::new(executor.clone(), store.clone(), network.clone()),
            containers: Containers::new(executor.clone(), store.clone()),
            builds: BuildContainers::default(),
            doctor: Doctor::default(),
            description,
            store,
            network,
            edge,
            images,
            registry,
            executor,
            cluster: RwLock::default(),
            status: Arc::new(watch::Sender::new(SessionStatus::none())),
            session: Mutex::default(),
            options,
        };
        let agent = Self { inner: Arc::new(inner) };
        gc::start(&agent.inner, agent.inner.options.gc);
        let found = agent.found().await?;
        agent.inner.containers.restore(&found)?;
        if remembered.is_none() {
            agent.sweep(&found).await;
        }
        Ok(agent)
    }

    /// What this node's API answers with.
    pub fn engine(&self) -> EngineApi {
        EngineApi::new(self.clone())
    }

    /// What other nodes ask of this one.
    pub fn peer(&self) -> PeerApi {
        PeerApi::new(self.clone())
    }

    /// What the node tells about its machine.
    pub fn description(&self) -> NodeDescription {
        self.inner.description.clone()
    }

    /// How the node stands with its leader.
    pub fn session_status(&self) -> SessionStatus {
        self.inner.status.borrow().clone()
    }

    /// Enters a cluster, or goes on as its member: takes over the tasks that run, brings the network up to date
    /// with the set on disk, and looks for the leader. Returns without having found it.
    pub async fn join_cluster(&self, membership: ClusterMembership) -> Result<(), AgentError> {
        let inner = &self.inner;
        let mut session = inner.session.lock().await;
        if session.is_some() {
            let cluster = self.cluster_id().map(|id| id.to_string()).unwrap_or_default();
            return Err(AgentError::AlreadyMember { cluster });
        }
        let set = self.enter(&membership).await?;
        let link = self.link(&membership, &set);
        inner.images.link(Some(link.clone()));
        inner.containers.link(Some(link.clone()));
        *inner.cluster.write().unwrap_or_else(PoisonError::into_inner) = Some(membership.cluster_id);
        let found = self.found().await?;
        let mut change = set.as_change();
        inner.tasks.restore(std::mem::take(&mut change.tasks), &found).await?;
        if set.number > 0 {
            inner.network.apply(change).await;
        }
        self.sweep(&found).await;
        let parts = Parts {
            store: inner.store.clone(),
            network: inner.network.clone(),
            tasks: inner.tasks.clone(),
            containers: inner.containers.clone(),
            images: inner.images.clone(),
            edge: inner.edge.clone(),
            link,
            description: self.description(),
            address: membership.address.to_string(),
            certs: inner.options.data_dir.join("certs"),
            status: inner.status.clone(),
        };
        *session = Some(Session::start(parts, set));
        inner.registry.start(membership.address.ip(), &membership.credentials);
        Ok(())
    }

    /// Remembers the membership, makes the network fit for it, and reads the set that belongs to it.
    async fn enter(&self, membership: &ClusterMembership) -> Result<AssignmentSet, AgentError> {
        let inner = &self.inner;
        let record = MembershipRecord::of(membership);
        let store = inner.store.clone();
        let entered = {
            let record = record.clone();
            tokio::task::spawn_blocking(move || {
                let remembered = store.membership()?;
                let known = remembered.as_ref().is_some_and(|known| known.is_same_node(&record));
                if remembered.is_some() && !known {
                    // Another cluster's tasks: nobody asks for them any more.
                    store.forget_cluster()?;
                }
                if remembered.as_ref() != Some(&record) {
                    store.put_membership(&record)?;
                }
                Ok::<_, AgentError>((remembered, store.read_set()?))
            })
        };
        let (remembered, entries) = entered.await.map_err(|_| AgentError::Stopped)??;
        if remembered.as_ref() != Some(&record) {
            let (own, shape) = shape(&inner.options, Some(&record));
            inner.network.restart(shape, own).await.map_err(AgentError::Network)?;
        }
        let (mut set, unreadable) = AssignmentSet::load(entries);
        if !unreadable.is_empty() {
            tracing::warn!(
                ?unreadable,
                "part of the assignment set can't be read; the leader sends it again"
            );
            // With this number it is never taken for the base of a change.
            set.number = 0;
        }
        Ok(set)
    }

    /// The controllers of the set, then those that the daemon was told of.
    fn link(&self, membership: &ClusterMembership, set: &AssignmentSet) -> ClusterLink {
        let mut controllers: Vec<wire::Controller> = set.controllers.clone();
        for given in &membership.controllers {
            if controllers.iter().all(|known| known.address != given.address) {
                controllers.push(given.clone());
            }
        }
        ClusterLink::new(membership.node_id.clone(), membership.credentials.clone(), controllers)
    }

    /// Ends everything that the cluster runs here, and forgets it. Telling the controllers is the daemon's part.
    /// A node that is in no cluster is fine.
    pub async fn leave_cluster(&self) -> Result<(), AgentError> {
        let inner = &self.inner;
        let mut session = inner.session.lock().await;
        if let Some(session) = session.take() {
            session.stop().await;
        }
        inner.status.send_replace(SessionStatus::none());
        inner.registry.stop();
        inner.images.link(None);
        inner.containers.link(None);
        inner.images.auths().forget();
        *inner.cluster.write().unwrap_or_else(PoisonError::into_inner) = None;
        inner.tasks.remove_all().await;
        inner.containers.leave_networks().await;
        let store = inner.store.clone();
        let forgotten = tokio::task::spawn_blocking(move || {
            let was_member = store.membership()?.is_some();
            store.forget_cluster()?;
            Ok::<_, AgentError>(was_member)
        });
        if forgotten.await.map_err(|_| AgentError::Stopped)?? {
            let (own, shape) = shape(&inner.options, None);
            inner.network.restart(shape, own).await.map_err(AgentError::Network)?;
            self.sweep(&self.found().await?).await;
        }
        Ok(())
    }

    /// Ends the agent's own work. Containers, their logs and their network stay as they are.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.registry.stop();
        if let Some(session) = inner.session.lock().await.take() {
            session.stop().await;
        }
        inner.edge.shutdown().await;
        inner.tasks.abandon();
        inner.containers.abandon();
        let store = inner.store.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || store.barrier()).await {
            tracing::error!(error = %one_line(&error), "the node's store may lack what happened last");
        }
    }

    /// The node's containers as the kernel has them.
    pub(crate) fn runtime(&self) -> &Arc<Runtime> {
        self.inner.executor.runtime()
    }

    /// Every container that the runtime knows.
    async fn found(&self) -> Result<BTreeMap<String, ContainerState>, AgentError> {
        let runtime = self.inner.executor.runtime().clone();
        let listed = tokio::task::spawn_blocking(move || runtime.list()).await;
        let listed = listed.map_err(|_| AgentError::Stopped)?.map_err(AgentError::Runtime)?;
        Ok(listed.into_iter().collect())
    }

    /// Takes away what nobody wants any more: containers, networks and folders that belong to no task and to no
    /// plain container. An error is logged and the rest goes on.
    async fn sweep(&self, found: &BTreeMap<String, ContainerState>) {
        let inner = &self.inner;
        let attached = inner.network.attached().await;
        let folders = folders(&inner.options.data_dir.join("containers")).await;
        // Read after the lists: what was made meanwhile is in here, and not in those.
        let mut wanted: BTreeSet<String> = inner.containers.ids().into_iter().collect();
        wanted.extend(inner.tasks.ids());
        wanted.extend(inner.builds.ids());
        for id in found.keys().filter(|id| !wanted.contains(*id)) {
            tracing::info!(container = %id, "taking away a container that nobody wants any more");
            inner.executor.discard(id).await;
        }
        for attachment in attached.iter().filter(|attached| !wanted.contains(&attached.id)) {
            if found.contains_key(&attachment.id) {
                continue;
            }
            if let Err(error) = inner.network.detach(&attachment.id).await {
                tracing::warn!(container = %attachment.id, error = %one_line(&error), "leftover network");
            }
        }
        for id in folders.iter().filter(|id| !wanted.contains(*id)) {
            inner.executor.remove_folder(id).await;
        }
    }

    pub(crate) fn images(&self) -> &Images {
        &self.inner.images
    }

    pub(crate) fn of(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// What no collection may take away.
    pub(crate) async fn needed_images(&self) -> Needed {
        let plain = self.containers().records().into_iter().map(|(_, spec)| spec);
        // Those that have ended, too: a service may go back to them.
        let tasks = self.tasks().entries().into_iter().map(|entry| entry.task.container.clone());
        let digest = |spec: ContainerSpec| self.images().local(&spec.image, spec.image_digest.as_deref());
        let used = plain.chain(tasks).filter_map(digest).collect();
        let services =
            self.images().of_services(self.inner.store.membership().ok().flatten().is_some()).await;
        Needed { used, services }
    }

    pub(crate) fn executor(&self) -> &Executor {
        &self.inner.executor
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// The HTTP edge.
    pub(crate) fn doctor(&self) -> &Doctor {
        &self.inner.doctor
    }

    pub(crate) fn edge(&self) -> &Edge {
        &self.inner.edge
    }

    pub(crate) fn network(&self) -> &Network {
        &self.inner.network
    }

    pub(crate) fn tasks(&self) -> &Tasks {
        &self.inner.tasks
    }

    pub(crate) fn containers(&self) -> &Containers {
        &self.inner.containers
    }

    /// Containers of builds that go on.
    pub(crate) fn builds(&self) -> &BuildContainers {
        &self.inner.builds
    }

    /// A container's own folder.
    pub(crate) fn executor_folder(&self, id: &str) -> std::path::PathBuf {
        self.inner.executor.folder(id).path().to_owned()
    }

    /// What lives no longer than the machine.
    pub(crate) fn run_dir(&self) -> &std::path::Path {
        &self.inner.options.run_dir
    }

    pub(crate) fn hostname(&self) -> &str {
        &self.inner.options.hostname
    }

    pub(crate) fn cluster_id(&self) -> Option<ClusterId> {
        self.inner.cluster.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How the network has to be: with the cluster's pools and underlay, else with the defaults and none.
pub(crate) fn shape(
    options: &AgentOptions,
    membership: Option<&MembershipRecord>,
) -> (OwnName, NetworkOptions) {
    let fabric = network_name(&options.hostname);
    let parsed = |text: Option<&String>, default: &str| {
        text.and_then(|text| text.parse().ok()).unwrap_or_else(|| pool(default))
    };
    let port = membership.and_then(|member| u16::try_from(member.port).ok()).filter(|port| *port > 0);
    let port = port.or_else(|| options.advertise.map(|address| address.port()));
    let remembered = membership.and_then(|member| member.underlay.parse::<Ipv4Addr>().ok());
    // The machine may have another address since.
    let own = rorqual_network::own_addresses().unwrap_or_default();
    let present = remembered.filter(|address| own.contains(address));
    let underlay = present.or_else(|| advertised(options)).or(remembered);
    let network = NetworkOptions {
        node: fabric.clone(),
        state_dir: options.run_dir.join("network"),
        underlay: underlay.unwrap_or(Ipv4Addr::UNSPECIFIED),
        cluster_pool: parsed(membership.map(|member| &member.container_pool), DEFAULT_CONTAINER_POOL),
        vip_pool: parsed(membership.map(|member| &member.vip_pool), DEFAULT_VIP_POOL),
        local_pool: options.local_pool,
        ipv6: membership
            .and_then(|member| member.cluster_id.parse::<ClusterId>().ok())
            .map(|cluster| cluster.ipv6_range()),
        dns_upstreams: None,
        guarded_ports: port.into_iter().collect(),
        own_names: vec![rorqual_proto::tls::REGISTRY_NAME.to_owned()],
        mtu: None,
        prepared: PREPARED,
    };
    let node_id = membership.map(|member| member.node_id.clone()).unwrap_or_default();
    (OwnName { node_id, fabric }, network)
}

fn advertised(options: &AgentOptions) -> Option<Ipv4Addr> {
    match options.advertise?.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

async fn folders(path: &std::path::Path) -> Vec<String> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    });
    read.await.unwrap_or_default()
}
