//! What nodes ask of each other: blobs (any member), and a task's log (controllers).
//!
//! [`PeerApi`] answers; [`ClusterLink`] and [`source`] are the asking side.

mod link;
mod source;

use std::io::Read;

use rorqual_image::{Blob, Digest};
use rorqual_proto::model::Role;
use rorqual_proto::tls::{peer_identity, require_role};
use rorqual_proto::wire::{self, peer_server};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

pub(crate) use link::ClusterLink;

use crate::agent::Agent;
use crate::error::one_line;
use crate::logs::{Lines, Wanted};

/// One piece of a blob on the wire.
const PIECE_BYTES: usize = 256 * 1024;

/// Pieces that wait for a slow reader.
const PIECES: usize = 4;

/// The `Peer` service of this node.
#[derive(Clone)]
pub struct PeerApi {
    agent: Agent,
}

impl PeerApi {
    pub(crate) fn new(agent: Agent) -> Self {
        Self { agent }
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
        let wire::GetBlobRequest { digest, offset } = request.into_inner();
        let digest: Digest =
            digest.parse().map_err(|error| Status::invalid_argument(format!("digest: {error}")))?;
        let store = self.agent.images().store().clone();
        let wanted = digest.clone();
        let blob = tokio::task::spawn_blocking(move || store.blob(&wanted)).await;
        let blob = blob
            .map_err(|_| Status::unavailable("the node is shutting down"))?
            .map_err(|error| Status::internal(one_line(&error)))?
            .ok_or_else(|| Status::not_found(format!("blob {digest} is not on this node")))?;
        if offset > blob.size_bytes {
            return Err(Status::out_of_range(format!(
                "offset {offset} lies behind the end of {digest}, which has {} bytes",
                blob.size_bytes
            )));
        }
        let (pieces, queue) = mpsc::channel(PIECES);
        // Ends with the blob, or when the reader hangs up.
        tokio::task::spawn_blocking(move || send_blob(blob, offset, &pieces));
        Ok(Response::new(ReceiverStream::new(queue)))
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

fn send_blob(mut blob: Blob, offset: u64, pieces: &mpsc::Sender<Result<wire::BlobPiece, Status>>) {
    use std::io::Seek as _;
    let broken = |error: std::io::Error| Status::internal(format!("can't read the blob: {error}"));
    if let Err(error) = blob.file.seek(std::io::SeekFrom::Start(offset)) {
        let _ = pieces.blocking_send(Err(broken(error)));
        return;
    }
    // The first piece says the size, so there is one even where there is nothing to read.
    let mut size_bytes = blob.size_bytes;
    loop {
        let mut data = Vec::with_capacity(PIECE_BYTES);
        let read = blob.file.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut data);
        let (message, last) = match read {
            Ok(read) => {
                let piece =
                    wire::BlobPiece { data: data.into(), size_bytes: std::mem::take(&mut size_bytes) };
                (Ok(piece), read < PIECE_BYTES)
            }
            Err(error) => (Err(broken(error)), true),
        };
        if pieces.blocking_send(message).is_err() || last {
            return;
        }
    }
}
