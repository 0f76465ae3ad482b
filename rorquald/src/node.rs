//! The node's life: alone, or a member of a cluster as worker or controller.
//!
//! ```text
//! alone ──init──▶ controller ──leave──▶ alone
//!   └────join───▶ worker or controller ──leave──▶ alone
//! ```
//! One change at a time: the state stands behind an async mutex. Containers of the node run on whatever
//! happens here; only `leave` ends those of the cluster.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use ipnet::Ipv4Net;
use rorqual_agent::{Agent, AgentOptions, ClusterMembership};
use rorqual_controller::{Controller, ControllerOptions, FIRST_RAFT_ID, Founding, SealKey, store::RaftPeer};
use rorqual_proto::model::{NodeId, Role};
use rorqual_proto::tls::{self, CredentialStore, Credentials, Expect};
use rorqual_proto::token::JoinToken;
use rorqual_proto::wire::bootstrap_client::BootstrapClient;
use rorqual_proto::wire::dispatcher_client::DispatcherClient;
use rorqual_proto::wire::{self, peer_server::PeerServer};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tonic::service::Routes;

use crate::config::{Config, parse_address};
use crate::gate::{Behind, ControlGate};
use crate::record::{KnownController, MembershipFiles, Record};
use crate::serve::{self, Door};

/// How long a controller that joins may take to hear from the leader.
const CATCH_UP: Duration = Duration::from_secs(30);

/// How often a controller that joins looks whether its vote counts.
const VOTE_LOOK: Duration = Duration::from_millis(50);

/// How often the node looks whether it still has its address.
const MOVED_LOOK: Duration = Duration::from_secs(5);

/// How long the other side may take to answer a join or a leave.
const ANSWER: Duration = Duration::from_secs(20);

/// The node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) config: Arc<Config>,
    pub(crate) agent: Agent,
    gate: ControlGate,
    files: MembershipFiles,
    member: Arc<Mutex<Option<Member>>>,
    /// Why the controller has stopped by itself, if it has.
    broken: Arc<watch::Sender<Option<String>>>,
}

/// What runs while the node is in a cluster.
struct Member {
    record: Record,
    credentials: CredentialStore,
    door: Door,
    controller: Option<Controller>,
    /// Looks whether the controller stops by itself; ended before the controller is.
    guard: Option<AbortOnDrop>,
}

/// Ends its task when it is dropped.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What `cluster init` tells.
pub(crate) struct Initialised {
    pub(crate) record: Record,
    pub(crate) worker_token: String,
    pub(crate) controller_token: String,
}

impl Node {
    /// Starts the agent, with what the node was a member of, and goes on as that member.
    pub(crate) async fn start(config: Config, gate: ControlGate) -> anyhow::Result<Self> {
        let files = MembershipFiles::new(&config.data_dir);
        let mut remembered = remembered(&files)?;
        if let Some((record, _)) = &mut remembered
            && let Some(address) = config.moved_to(record.address)
        {
            tracing::info!(from = %record.address, to = %address, "this node's address has changed");
            record.address = address;
            files.save(record)?;
        }
        let known = remembered.as_ref().map(|(record, _)| record.address);
        let agent = Agent::start(agent_options(&config, known)).await.context("cannot start the agent")?;
        let node = Self {
            config: Arc::new(config),
            agent,
            gate,
            files,
            member: Arc::default(),
            broken: Arc::new(watch::Sender::new(None)),
        };
        if let Some((record, credentials)) = remembered {
            let membership = membership(&record, &credentials)?;
            let member = node
                .enter(record, credentials, None)
                .await
                .context("cannot go on as the cluster's member; the node's containers run on")?;
            node.agent.join_cluster(membership).await?;
            *node.member.lock().await = Some(member);
        }
        Ok(node)
    }

    /// The record of the membership, if there is one.
    pub(crate) async fn record(&self) -> Option<Record> {
        self.member.lock().await.as_ref().map(|member| member.record.clone())
    }

    /// The leader as this controller sees it; empty on a worker.
    pub(crate) async fn leader_address(&self) -> String {
        let member = self.member.lock().await;
        let Some(controller) = member.as_ref().and_then(|member| member.controller.as_ref()) else {
            return String::new();
        };
        let leadership = controller.store().leadership();
        let now = leadership.borrow();
        now.leader.as_ref().map(|peer| peer.address.clone()).unwrap_or_default()
    }

    /// Founds a cluster on this node.
    pub(crate) async fn init(&self, request: &wire::InitClusterRequest) -> anyhow::Result<Initialised> {
        let mut member = self.member.lock().await;
        refuse_second(member.as_ref())?;
        let address = self.own_address(&request.advertise)?;
        let pool = |field: &str, text: &str, default: &str| {
            let text = if text.is_empty() { default } else { text };
            text.parse().map_err(|_| anyhow!("{field}: `{text}` is not a range such as {default}"))
        };
        let founding = Founding {
            hostname: self.config.hostname.clone(),
            address,
            container_pool: pool("container_pool", &request.container_pool, "10.213.0.0/16")?,
            vip_pool: pool("vip_pool", &request.vip_pool, "10.214.0.0/16")?,
            encrypt: request.encrypt,
        };
        self.refuse_own_pool(&[founding.container_pool, founding.vip_pool])?;
        self.files.forget()?;
        let founded = rorqual_controller::found(&founding, now_ms())?;
        let credentials = self.keep(founded.credentials)?;
        SealKey::generate().save(&self.files.certs())?;
        let record = Record {
            cluster_id: founded.cluster_id.to_string(),
            node_id: founded.node_id.to_string(),
            raft_id: Some(FIRST_RAFT_ID),
            address,
            container_pool: founding.container_pool,
            vip_pool: founding.vip_pool,
            controllers: vec![KnownController {
                node_id: founded.node_id.to_string(),
                address: address.to_string(),
            }],
        };
        let entered = self.enter(record.clone(), credentials.clone(), Some(founded.actions)).await?;
        self.files.save(&record)?;
        self.agent.join_cluster(membership(&record, &credentials)?).await?;
        *member = Some(entered);
        tracing::info!(cluster = record.cluster_id, node = record.node_id, %address, "cluster founded");
        Ok(Initialised {
            record,
            worker_token: founded.worker_token,
            controller_token: founded.controller_token,
        })
    }

    /// Joins the cluster that the token belongs to.
    pub(crate) async fn join(&self, request: &wire::JoinClusterRequest) -> anyhow::Result<(Record, Role)> {
        let mut member = self.member.lock().await;
        refuse_second(member.as_ref())?;
        let token: JoinToken = request.token.parse().context("token")?;
        let address = self.own_address(&request.advertise)?;
        let controller = parse_address("controller_address", &request.controller_address)?;
        self.files.forget()?;
        let (key, csr) = tls::generate_csr().context("cannot make the node's key")?;
        let joined = self.ask_to_join(&token, controller, address, csr).await?;
        let pool = |field: &'static str, text: &str| text.parse::<Ipv4Net>().context(field);
        let container_pool = pool("container_pool", &joined.container_pool)?;
        let vip_pool = pool("vip_pool", &joined.vip_pool)?;
        self.refuse_own_pool(&[container_pool, vip_pool])?;
        let credentials = self.keep(Credentials::from_der(joined.ca_certificate, joined.certificate, key))?;
        // A leader that has lost its own has none to give.
        if !joined.seal_key.is_empty() {
            SealKey::from_bytes(&joined.seal_key, "what the leader sent")?.save(&self.files.certs())?;
        }
        let record = Record {
            cluster_id: joined.cluster_id,
            node_id: joined.node_id,
            raft_id: (joined.raft_id != 0).then_some(joined.raft_id),
            address,
            container_pool,
            vip_pool,
            controllers: joined
                .controllers
                .into_iter()
                .map(|controller| KnownController {
                    node_id: controller.node_id,
                    address: controller.address,
                })
                .collect(),
        };
        let entered = self.enter(record.clone(), credentials.clone(), None).await?;
        self.files.save(&record)?;
        self.agent.join_cluster(membership(&record, &credentials)?).await?;
        if let Some(controller) = &entered.controller {
            tokio::time::timeout(CATCH_UP, voting(controller, record.raft_id)).await.with_context(|| {
                format!("joined, but the leader does not reach this node at {address}: check the firewall")
            })?;
        }
        *member = Some(entered);
        let role = if record.raft_id.is_some() { Role::Controller } else { Role::Worker };
        tracing::info!(cluster = record.cluster_id, node = record.node_id, ?role, "joined");
        Ok((record, role))
    }

    /// The node's own containers have addresses that no other may have.
    fn refuse_own_pool(&self, pools: &[Ipv4Net]) -> anyhow::Result<()> {
        let own = self.config.local_pool;
        let overlaps = |pool: &&Ipv4Net| pool.contains(&own) || own.contains(*pool);
        match pools.iter().find(overlaps) {
            None => Ok(()),
            Some(pool) => Err(anyhow!(
                "{pool} overlaps {own}, the range of this node's own containers: choose another pool for the cluster, or \
                 another local_pool in the settings of rorquald"
            )),
        }
    }

    async fn ask_to_join(
        &self,
        token: &JoinToken,
        controller: SocketAddrV4,
        address: SocketAddrV4,
        csr: Vec<u8>,
    ) -> anyhow::Result<wire::JoinResponse> {
        let channel = tls::connect_bootstrap(&controller.to_string(), token.ca_hash)
            .with_context(|| format!("cannot reach the controller at {controller}"))?;
        let request = wire::JoinRequest {
            secret: token.secret.clone(),
            csr,
            hostname: self.config.hostname.clone(),
            address: address.to_string(),
        };
        let mut client = BootstrapClient::new(channel);
        let answer = tokio::time::timeout(ANSWER, client.join(request)).await.with_context(|| {
            format!("the controller at {controller} has not answered within {} s", ANSWER.as_secs())
        })?;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| anyhow!("the controller at {controller} refused: {}", describe(&status)))
    }

    /// Starts the controller where the node is one, and opens the TLS port.
    async fn enter(
        &self,
        record: Record,
        credentials: CredentialStore,
        founding: Option<Vec<rorqual_controller::Action>>,
    ) -> anyhow::Result<Member> {
        let node_id: NodeId = record.node_id.parse().context("node_id")?;
        let controller = match record.raft_id {
            None => None,
            Some(raft_id) => Some(
                Controller::start(ControllerOptions {
                    dir: self.files.raft(),
                    own: RaftPeer { raft_id, node_id: node_id.clone(), address: record.address.to_string() },
                    founding,
                    credentials: credentials.clone(),
                    seal_key: SealKey::load(&self.files.certs())?,
                })
                .await?,
            ),
        };
        let mut routes = Routes::new(PeerServer::new(self.agent.peer()));
        if let Some(controller) = &controller {
            routes = controller.mount(routes);
        }
        let door = match serve::tls(record.address, credentials.clone(), routes.prepare()).await {
            Ok(door) => door,
            Err(error) => {
                if let Some(controller) = controller {
                    controller.shutdown().await;
                }
                return Err(error);
            }
        };
        self.gate.set(match &controller {
            Some(controller) => Behind::Controller(Box::new(controller.local_control())),
            None => Behind::Worker(
                record.controllers.iter().map(|controller| controller.address.clone()).collect(),
            ),
        });
        let guard = controller.as_ref().map(|controller| self.guard(controller));
        Ok(Member { record, credentials, door, controller, guard })
    }

    fn guard(&self, controller: &Controller) -> AbortOnDrop {
        let mut leadership = controller.store().leadership();
        let broken = Arc::clone(&self.broken);
        AbortOnDrop(tokio::spawn(async move {
            // An error says that the controller was shut down, which is no news.
            if let Ok(now) = leadership.wait_for(|now| now.stopped.is_some()).await {
                broken.send_replace(now.stopped.clone());
            }
        }))
    }

    /// Waits until the controller has stopped by itself, and says why.
    pub(crate) async fn broken(&self) -> String {
        let mut broken = self.broken.subscribe();
        match broken.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The sender lives as long as the node.
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until the machine has another address than the one at which the cluster knows it. What the daemon opened
    /// at the old one is of no use any more.
    pub(crate) async fn moved(&self) -> SocketAddrV4 {
        let mut before = None;
        loop {
            tokio::time::sleep(MOVED_LOOK).await;
            let known = self.member.lock().await.as_ref().map(|member| member.record.address);
            let now = known.and_then(|known| self.config.moved_to(known));
            // An address that is being changed may be away for a moment.
            if let Some(address) = now.filter(|_| now == before) {
                return address;
            }
            before = now;
        }
    }

    /// Leaves the cluster: tells the leader (unless forced and it can't be told), then ends what the cluster
    /// runs here and forgets it.
    pub(crate) async fn leave(&self, force: bool) -> anyhow::Result<()> {
        let mut member = self.member.lock().await;
        let Some(present) = member.as_ref() else { bail!("this node is in no cluster") };
        match self.tell_leader(present).await {
            Ok(()) => {}
            Err(error) if force => tracing::warn!(%error, "leaving although the cluster was not told"),
            Err(error) => return Err(error),
        }
        let Some(Member { door, controller, guard, .. }) = member.take() else { return Ok(()) };
        drop(guard);
        self.gate.set(Behind::Nothing);
        let left = self.agent.leave_cluster().await;
        if let Some(controller) = controller {
            controller.shutdown().await;
        }
        door.close().await;
        self.files.forget()?;
        left?;
        tracing::info!("left the cluster");
        Ok(())
    }

    async fn tell_leader(&self, member: &Member) -> anyhow::Result<()> {
        let leader = match &member.controller {
            Some(controller) => {
                let store = controller.store();
                if store.leadership().borrow().is_leader {
                    store.transfer_leadership().await.map_err(|error| {
                        anyhow!(
                            "this node leads and can hand over to no other controller ({error}): join one, \
                             or give the cluster up with --force"
                        )
                    })?;
                }
                let mut leadership = store.leadership();
                let other = leadership.wait_for(|now| !now.is_leader && now.leader.is_some());
                let other = tokio::time::timeout(ANSWER, other).await;
                let other = other.ok().and_then(Result::ok).and_then(|now| now.leader.clone());
                other.context("the cluster has no leader to leave: repeat later, or use --force")?.address
            }
            None => self.agent.session_status().leader_address,
        };
        if leader.is_empty() {
            bail!("no controller can be reached to leave the cluster: repeat later, or use --force");
        }
        let channel = tls::connect(&leader, member.credentials.clone(), &Expect::Controller)
            .with_context(|| format!("cannot reach the leader at {leader}"))?;
        let mut client = DispatcherClient::new(channel);
        tokio::time::timeout(ANSWER, client.leave(wire::LeaveRequest {}))
            .await
            .with_context(|| format!("the leader at {leader} has not answered"))?
            .map_err(|status| anyhow!("the leader refused: {}", describe(&status)))?;
        Ok(())
    }

    fn keep(&self, credentials: Credentials) -> anyhow::Result<CredentialStore> {
        let store = CredentialStore::new(credentials)?;
        store.save(&self.files.certs())?;
        Ok(store)
    }

    fn own_address(&self, advertise: &str) -> anyhow::Result<SocketAddrV4> {
        if !advertise.is_empty() {
            return parse_address("advertise", advertise);
        }
        self.config.advertise.context(
            "advertise: this machine has no default route to take its address from: name the address at \
             which the other nodes reach it with --advertise",
        )
    }

    /// Stops the daemon's own parts; containers run on.
    pub(crate) async fn shutdown(&self) {
        if let Some(Member { door, controller, guard, .. }) = self.member.lock().await.take() {
            drop(guard);
            if let Some(controller) = controller {
                controller.shutdown().await;
            }
            door.close().await;
        }
        self.agent.shutdown().await;
    }
}

/// Waits until the controller has caught up and its vote counts, so that the next controller may be lost.
async fn voting(controller: &Controller, raft_id: Option<u64>) {
    let store = controller.store();
    let mut leadership = store.leadership();
    loop {
        leadership.borrow_and_update();
        let mut members = store.member_statuses().into_iter();
        if members.any(|member| member.voter && Some(member.peer.raft_id) == raft_id) {
            return;
        }
        // Cancel-safe: nothing is taken. A look from time to time needs no wake-up to be right.
        let _ = tokio::time::timeout(VOTE_LOOK, leadership.changed()).await;
    }
}

/// What the agent has to know of the settings; `known` is the address that the node has in its cluster.
fn agent_options(config: &Config, known: Option<SocketAddrV4>) -> AgentOptions {
    AgentOptions {
        data_dir: config.data_dir.clone(),
        run_dir: config.run_dir.clone(),
        hostname: config.hostname.clone(),
        labels: config.labels.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
        runtime_binary: config.runtime_binary.clone(),
        advertise: known.or(config.advertise).map(Into::into),
        local_pool: config.local_pool,
        registry_port: (config.registry_port != 0).then_some(config.registry_port),
        insecure_registries: config.insecure_registries.clone(),
        registries: config.registries.clone().into_iter().collect(),
        image_limits: config.image_limits.clone(),
        gc: rorqual_agent::GcThresholds {
            high_percent: config.image_gc_high_percent,
            low_percent: config.image_gc_low_percent,
        },
    }
}

/// Takes away what the node has on its machine beside its data; no daemon may run.
pub(crate) async fn take_down(config: &Config) -> anyhow::Result<()> {
    serve::refuse_second(&config.socket)?;
    let known = MembershipFiles::new(&config.data_dir).load()?.map(|record| record.address);
    rorqual_agent::take_down(agent_options(config, known)).await?;
    serve::forget(&config.socket)?;
    // What others have in the folder is theirs, and it is as well.
    let _ = std::fs::remove_dir(&config.run_dir);
    Ok(())
}

/// What the node was a member of when it last ran; clears what a join that was cut off has left.
fn remembered(files: &MembershipFiles) -> anyhow::Result<Option<(Record, CredentialStore)>> {
    let Some(record) = files.load()? else {
        files.forget()?;
        return Ok(None);
    };
    let certs = files.certs();
    let credentials = CredentialStore::load(&certs)?.with_context(|| {
        format!(
            "the node's certificate in {} is gone: restore it from a backup, or remove node.json to take this \
             node out of its cluster and join again",
            certs.display()
        )
    })?;
    Ok(Some((record, credentials)))
}

/// The membership as the agent has to know it.
fn membership(record: &Record, credentials: &CredentialStore) -> anyhow::Result<ClusterMembership> {
    let controllers = record.controllers.iter().map(|controller| wire::Controller {
        node_id: controller.node_id.clone(),
        address: controller.address.clone(),
        raft_id: 0,
    });
    Ok(ClusterMembership {
        node_id: record.node_id.parse().context("node_id")?,
        cluster_id: record.cluster_id.parse().context("cluster_id")?,
        address: record.address.into(),
        credentials: credentials.clone(),
        controllers: controllers.collect(),
        container_pool: record.container_pool,
        vip_pool: record.vip_pool,
    })
}

fn refuse_second(member: Option<&Member>) -> anyhow::Result<()> {
    match member {
        None => Ok(()),
        Some(member) => {
            bail!("this node is in cluster {} already: `rctl cluster leave` first", member.record.cluster_id)
        }
    }
}

/// A status in words, with what lies beneath it where the transport failed.
fn describe(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
