//! The controller role of a node: its parts, put together and started.

use std::path::PathBuf;

use rorqual_planner::Action;
use rorqual_proto::tls::CredentialStore;
use rorqual_proto::wire;
use tokio::task::JoinHandle;
use tonic::service::Routes;

use crate::auths::Auths;
use crate::bootstrap::Bootstrap;
use crate::control::{Control, Entrance};
use crate::dispatch::Dispatch;
use crate::edge::acme;
use crate::forward::LeaderRoute;
use crate::leader::{self, LeaderShared};
use crate::membership::Membership;
use crate::raft::{RaftNode, RaftOptions, StartError};
use crate::registry::RegistryTable;
use crate::seal::SealKey;
use crate::store::{RaftPeer, Store};

/// The largest gRPC message that controllers take from each other: a snapshot.
const RAFT_MESSAGE_BYTES: usize = 64 << 20;

/// What a controller needs to start.
pub struct ControllerOptions {
    /// Where the log and the snapshots are kept.
    pub dir: PathBuf,
    /// This node as a member of the Raft group.
    pub own: RaftPeer,
    /// The first entry of a cluster that is being founded; `None` to resume or to join.
    pub founding: Option<Vec<Action>>,
    /// The node's certificate and key, as they are at any time.
    pub credentials: CredentialStore,
    /// The key of what is sealed in the store; without it, this controller can lead but not open that.
    pub seal_key: Option<SealKey>,
}

/// A running controller.
pub struct Controller {
    raft: RaftNode,
    store: Store,
    dispatch: Dispatch,
    bootstrap: Bootstrap,
    registry: RegistryTable,
    tls_control: Control,
    local_control: Control,
    leader: JoinHandle<()>,
    acme: JoinHandle<()>,
}

impl Controller {
    /// Starts the Raft member and, on top of it, everything that a leader does.
    ///
    /// # Errors
    /// A store that can't be opened or is corrupt; the error names the folder and the way out.
    pub async fn start(options: ControllerOptions) -> Result<Self, StartError> {
        let credentials = options.credentials.clone();
        let raft = RaftNode::start(RaftOptions::new(
            options.dir,
            options.own,
            options.founding,
            options.credentials,
        ))
        .await?;
        let store = raft.store().clone();
        let shared = LeaderShared::default();
        let route = LeaderRoute::new(store.clone(), credentials.clone());
        let auths = Auths::new(options.seal_key);
        let membership = Membership::new(store.clone(), auths.clone());
        let dispatch = Dispatch::start(
            store.clone(),
            shared.clone(),
            credentials.clone(),
            membership.clone(),
            auths.clone(),
        );
        let control = |entrance| Control {
            entrance,
            store: store.clone(),
            leader: route.clone(),
            membership: membership.clone(),
            credentials: credentials.clone(),
            auths: auths.clone(),
        };
        Ok(Self {
            tls_control: control(Entrance::Tls),
            local_control: control(Entrance::Local),
            registry: RegistryTable::new(store.clone(), route.clone()),
            bootstrap: Bootstrap::new(membership.clone(), route.clone()),
            leader: tokio::spawn(leader::run(store.clone(), shared.clone())),
            acme: tokio::spawn(acme::run(acme::Parts { store: store.clone(), auths, credentials })),
            raft,
            store,
            dispatch,
        })
    }

    /// Adds what this controller serves to other nodes to the TLS port's routes.
    pub fn mount(&self, routes: Routes) -> Routes {
        routes
            .add_service(wire::bootstrap_server::BootstrapServer::new(self.bootstrap.clone()))
            .add_service(wire::dispatcher_server::DispatcherServer::new(self.dispatch.clone()))
            .add_service(wire::registry_table_server::RegistryTableServer::new(self.registry.clone()))
            .add_service(wire::control_server::ControlServer::new(self.tls_control.clone()))
            .add_service(
                wire::raft_server::RaftServer::new(self.raft.service())
                    .max_decoding_message_size(RAFT_MESSAGE_BYTES),
            )
    }

    /// The control API for the local socket.
    pub fn local_control(&self) -> Control {
        self.local_control.clone()
    }

    /// The replicated store as this controller has it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Hands leadership over where this controller leads, makes everything durable, and stops.
    pub async fn shutdown(self) {
        self.leader.abort();
        self.acme.abort();
        self.raft.shutdown().await;
    }
}
