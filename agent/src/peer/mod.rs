//! What nodes ask of each other: blobs and signs of life (any member), a task's log, how the HTTP edge is and what is
//! wrong with the network (controllers).
//!
//! [`PeerApi`] answers; [`ClusterLink`], [`Swarm`] and [`source`] are the asking side.

mod link;
mod sending;
mod source;
mod swarm;

use std::sync::Arc;

use rorqual_image::Digest;
use rorqual_proto::model::Role;
use rorqual_proto::tls::{peer_identity, require_role};
use rorqual_proto::wire::{self, peer_server};
use tokio::sync::Semaphore;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

pub(crate) use link::ClusterLink;
pub(crate) use swarm::Swarm;

use crate::agent::Agent;
use crate::logs::{Lines, Wanted};

/// Blobs that are sent at the same time.
const MOST_BLOBS: usize = 64;

/// The `Peer` service of this node.
#[derive(Clone)]
pub struct PeerApi {
    agent: Agent,
    places: Arc<Semaphore>,
}

impl PeerApi {
    pub(crate) fn new(agent: Agent) -> Self {
        Self { agent, places: Arc::new(Semaphore::new(MOST_BLOBS)) }
    }
}

#[tonic::async_trait]
impl peer_server::Peer for PeerApi {
    type GetBlobStream = ReceiverStream<Result<wire::BlobPiece, Status>>;
    type TaskLogsStream = Lines;

    async fn get_blob(
        &self,
        request: Request<wire::GetBlobRequest>,
    ) -> Result<Response<Self::GetBlobStream>, Status> {
        self.member(peer_identity(&request).as_ref())?;
        let request = request.into_inner();
        let digest: Digest =
            request.digest.parse().map_err(|error| Status::invalid_argument(format!("digest: {error}")))?;
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted("this node is sending as many blobs as it can: ask another one")
        })?;
        let pieces = sending::blob(self.agent.images().store(), digest, &request, place).await?;
        Ok(Response::new(pieces))
    }

    async fn task_logs(
        &self,
        request: Request<wire::TaskLogsRequest>,
    ) -> Result<Response<Self::TaskLogsStream>, Status> {
        let identity = require_role(&request, Role::Controller)?;
        self.member(Some(&identity))?;
        let wire::TaskLogsRequest { task_id, follow, tail, since_ms } = request.into_inner();
        let wanted = Wanted { follow, tail, since_ms };
        let lines = self.agent.tasks().logs(&task_id, wanted, self.agent.hostname());
        lines.map(Response::new).ok_or_else(|| {
            Status::not_found(format!("task {task_id} is not on node {}", self.agent.hostname()))
        })
    }

    async fn edge_report(
        &self,
        request: Request<wire::EdgeReportRequest>,
    ) -> Result<Response<wire::EdgeReportResponse>, Status> {
        let identity = require_role(&request, Role::Controller)?;
        self.member(Some(&identity))?;
        Ok(Response::new(crate::edge::report(self.agent.edge().report())))
    }

    async fn examine(
        &self,
        request: Request<wire::ExamineRequest>,
    ) -> Result<Response<wire::ExamineResponse>, Status> {
        let identity = require_role(&request, Role::Controller)?;
        self.member(Some(&identity))?;
        Ok(Response::new(self.agent.examine(request.into_inner().peers).await))
    }

    async fn echo(
        &self,
        request: Request<wire::EchoRequest>,
    ) -> Result<Response<wire::EchoResponse>, Status> {
        self.member(peer_identity(&request).as_ref())?;
        Ok(Response::new(self.agent.echo().await))
    }
}

impl PeerApi {
    /// The caller is a node of this node's own cluster.
    fn member(&self, identity: Option<&rorqual_proto::tls::Identity>) -> Result<(), Status> {
        let identity = identity
            .ok_or_else(|| Status::unauthenticated("this call needs a certificate of the cluster"))?;
        match self.agent.cluster_id() {
            Some(cluster) if cluster == identity.cluster_id => Ok(()),
            _ => Err(Status::permission_denied("the caller's certificate is of another cluster")),
        }
    }
}
