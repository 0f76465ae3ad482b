//! Who belongs to the cluster: the certificate authority, join tokens, nodes that come and go.
//!
//! Only the leader writes. A controller that joins gets its certificate and Raft id at once; the Raft group
//! takes it in as a learner and lets it vote when it has caught up.

use std::time::Duration;

use rorqual_planner::{Action, ActionKind};
use rorqual_proto::model::{
    Availability, Cluster, Meta, Node, NodeDescription, NodeId, NodeSpec, NodeState, NodeStatus, Role,
};
use rorqual_proto::tls::{CertificateAuthority, Identity, ca_hash};
use rorqual_proto::token::JoinToken;
use rorqual_proto::wire;
use tonic::Status;

use crate::auths::Auths;
use crate::store::{RaftPeer, Store};
use crate::{clock, status};

/// How long a node's certificate is valid; its agent renews it after two thirds.
pub(crate) const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(90 * 24 * 3600);

/// Decides about members. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Membership {
    store: Store,
    auths: Auths,
}

impl Membership {
    pub(crate) fn new(store: Store, auths: Auths) -> Self {
        Self { store, auths }
    }

    fn cluster(&self) -> Result<std::sync::Arc<Cluster>, Status> {
        self.store
            .read(|state| state.cluster().cloned())
            .ok_or_else(|| Status::unavailable("this controller has not caught up with its cluster yet"))
    }

    /// Takes a node in: the secret decides its role. Only where this controller leads.
    pub(crate) async fn join(&self, request: &wire::JoinRequest) -> Result<wire::JoinResponse, Status> {
        if request.hostname.is_empty() || request.hostname.len() > 253 {
            return Err(Status::invalid_argument("hostname: expected 1 to 253 characters"));
        }
        if request.address.parse::<std::net::SocketAddr>().is_err() {
            return Err(Status::invalid_argument(format!(
                "address: `{}` is not IP:port; give the address at which other nodes reach this one \
                 (--advertise)",
                request.address
            )));
        }
        let cluster = self.cluster()?;
        let role = role_of(&cluster, &request.secret)?;
        let node_id = NodeId::from_bits(rand::random());
        let certificate = issue(&cluster, &node_id, role, &request.csr)?;
        let raft_id = (role == Role::Controller).then_some(cluster.last_raft_id + 1);
        let node = new_node(&node_id, role, request, raft_id);
        let mut actions = vec![Action::new(ActionKind::PutNode(node.into()))];
        if let Some(raft_id) = raft_id {
            let version = cluster.meta.version;
            let mut cluster = Cluster::clone(&cluster);
            cluster.last_raft_id = raft_id;
            let put = ActionKind::PutCluster(cluster.into());
            actions.push(Action::expecting(put, version));
        }
        self.store.propose(actions).await.map_err(status::from_propose)?;
        tracing::info!(node = %node_id, ?role, hostname = request.hostname, "node joined");
        if let Some(raft_id) = raft_id {
            self.add_raft_member(RaftPeer {
                raft_id,
                node_id: node_id.clone(),
                address: request.address.clone(),
            })
            .await?;
        }
        Ok(wire::JoinResponse {
            cluster_id: cluster.id.to_string(),
            node_id: node_id.to_string(),
            role: wire::Role::from(role).into(),
            certificate,
            ca_certificate: cluster.ca_certificate.clone(),
            controllers: self.store.read(crate::dispatch::controllers),
            raft_id: raft_id.unwrap_or_default(),
            container_pool: cluster.container_pool.to_string(),
            vip_pool: cluster.vip_pool.to_string(),
            seal_key: raft_id.map(|_| self.auths.key_bytes()).unwrap_or_default(),
        })
    }

    async fn add_raft_member(&self, peer: RaftPeer) -> Result<(), Status> {
        let node_id = peer.node_id.clone();
        match self.store.add_member(peer).await {
            Ok(()) => Ok(()),
            Err(error) => {
                // The node must not stay behind as a controller that is none.
                let gone = vec![Action::new(ActionKind::RemoveNode(node_id))];
                if let Err(error) = self.store.propose(gone).await {
                    tracing::warn!(%error, "a controller that could not be added stays listed");
                }
                Err(status::from_propose(error))
            }
        }
    }

    /// A new certificate for a member, with the role that it has now.
    pub(crate) fn renew(&self, node: &NodeId, csr: &[u8]) -> Result<Vec<u8>, Status> {
        let role = self
            .store
            .read(|state| state.node(node).map(|node| node.spec.role))
            .ok_or_else(|| Status::permission_denied("the node was removed from the cluster"))?;
        issue(&*self.cluster()?, node, role, csr)
    }

    /// Takes a node out. Without `force` a node that is alive is refused unless it asked itself.
    pub(crate) async fn remove(&self, node: &NodeId, only_if_down: bool) -> Result<(), Status> {
        let Some(known) = self.store.read(|state| state.node(node).cloned()) else {
            return Ok(());
        };
        let alive = matches!(known.status.state, NodeState::Ready | NodeState::Suspect);
        if only_if_down && alive {
            return Err(Status::failed_precondition(format!(
                "node {} is alive: run `rctl cluster leave` on it, or repeat with --force",
                known.description.hostname
            )));
        }
        if let Some(raft_id) = known.raft_id {
            self.check_quorum_without(raft_id)?;
            self.store.remove_member(raft_id).await.map_err(status::from_propose)?;
        }
        let remove = Action::new(ActionKind::RemoveNode(node.clone()));
        self.store.propose(vec![remove]).await.map_err(status::from_propose)?;
        tracing::info!(%node, "node removed");
        Ok(())
    }

    /// The last controller can't leave the others behind without a cluster.
    fn check_quorum_without(&self, raft_id: u64) -> Result<(), Status> {
        let others = self.store.members().into_iter().filter(|member| member.raft_id != raft_id).count();
        if others == 0 {
            return Err(Status::failed_precondition(
                "this is the cluster's only controller: join another controller first, or give the cluster \
                 up with `rctl cluster leave --force`",
            ));
        }
        Ok(())
    }

    /// A new join token for a role; the old one is refused from then on.
    pub(crate) async fn rotate(&self, role: Role) -> Result<(), Status> {
        let cluster = self.cluster()?;
        let version = cluster.meta.version;
        let mut cluster = Cluster::clone(&cluster);
        let token = new_token(&cluster.ca_certificate);
        match role {
            Role::Worker => cluster.worker_token = token,
            Role::Controller => cluster.controller_token = token,
        }
        let put = ActionKind::PutCluster(cluster.into());
        self.store.propose(vec![Action::expecting(put, version)]).await.map_err(status::from_propose)?;
        Ok(())
    }
}

/// A join token of the CA with a secret of 128 random bits.
pub(crate) fn new_token(ca_certificate: &[u8]) -> String {
    JoinToken::from_bits(ca_hash(ca_certificate), rand::random()).to_string()
}

fn role_of(cluster: &Cluster, secret: &str) -> Result<Role, Status> {
    for (token, role) in
        [(&cluster.worker_token, Role::Worker), (&cluster.controller_token, Role::Controller)]
    {
        let token: JoinToken =
            token.parse().map_err(|_| Status::internal("the cluster's own join token can't be read"))?;
        if token.secret_matches(secret) {
            return Ok(role);
        }
    }
    Err(Status::permission_denied(
        "the join token is not valid (any more): `rctl cluster token worker` on a controller shows the \
         present one",
    ))
}

fn issue(cluster: &Cluster, node_id: &NodeId, role: Role, csr: &[u8]) -> Result<Vec<u8>, Status> {
    let authority = CertificateAuthority::from_der(&cluster.ca_certificate, &cluster.ca_key)
        .map_err(|error| Status::internal(format!("the cluster's CA can't be used: {error}")))?;
    let identity = Identity { cluster_id: cluster.id.clone(), node_id: node_id.clone(), role };
    authority
        .issue(csr, &identity, CERTIFICATE_VALIDITY)
        .map(|certificate| certificate.to_vec())
        .map_err(|error| Status::invalid_argument(format!("csr: {error}")))
}

fn new_node(node_id: &NodeId, role: Role, request: &wire::JoinRequest, raft_id: Option<u64>) -> Node {
    Node {
        id: node_id.clone(),
        meta: Meta::default(),
        spec: NodeSpec { role, availability: Availability::Active, labels: Default::default() },
        description: NodeDescription { hostname: request.hostname.clone(), ..Default::default() },
        status: NodeStatus {
            state: NodeState::Unknown,
            message: "joined, not heard of yet".to_owned(),
            since_ms: clock::now_ms(),
        },
        address: request.address.clone(),
        raft_id,
    }
}
