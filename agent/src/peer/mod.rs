//! What nodes ask of each other: blobs (any member), and a task's log (controllers).
//!
//! [`PeerApi`] answers; [`ClusterLink`] and [`source`] are the asking side.

mod link;
mod source;

use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::sync::Arc;

use rorqual_image::{Blob, Digest};
use rorqual_proto::model::Role;
use rorqual_proto::tls::{peer_identity, require_role};
use rorqual_proto::wire::{self, peer_server};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

pub(crate) use link::ClusterLink;

use crate::agent::Agent;
use crate::error::one_line;
use crate::logs::{Lines, Wanted};

/// One piece of a blob on the wire.
const PIECE_BYTES: usize = 256 * 1024;

/// Blobs that are sent at the same time.
const MOST_BLOBS: usize = 64;

/// Pieces that wait for a slow reader.
const PIECES: usize = 4;

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
        let wire::GetBlobRequest { digest, offset } = request.into_inner();
        let digest: Digest =
            digest.parse().map_err(|error| Status::invalid_argument(format!("digest: {error}")))?;
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted("this node is sending as many blobs as it can: ask another one")
        })?;
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
        tokio::spawn(async move {
            send_blob(blob, offset, pieces).await;
            drop(place);
        });
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

/// Reads and sends one piece after the other; a blocking thread is only taken while the disk is read, so that
/// slow readers don't keep containers from starting.
async fn send_blob(mut blob: Blob, offset: u64, pieces: mpsc::Sender<Result<wire::BlobPiece, Status>>) {
    // The first piece says the size, so there is one even where there is nothing to read.
    let mut size_bytes = blob.size_bytes;
    let mut at = offset;
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let data = read_piece(&mut blob, at);
            (blob, data)
        });
        let Ok((back, data)) = read.await else { return };
        blob = back;
        let (message, last) = match data {
            Ok(data) => {
                let last = data.len() < PIECE_BYTES;
                at += data.len() as u64;
                let size_bytes = std::mem::take(&mut size_bytes);
                (Ok(wire::BlobPiece { data: data.into(), size_bytes }), last)
            }
            Err(error) => (Err(Status::internal(format!("can't read the blob: {error}"))), true),
        };
        if pieces.send(message).await.is_err() || last {
            return;
        }
    }
}

fn read_piece(blob: &mut Blob, at: u64) -> io::Result<Vec<u8>> {
    blob.file.seek(SeekFrom::Start(at))?;
    let mut data = Vec::with_capacity(PIECE_BYTES);
    blob.file.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut data)?;
    Ok(data)
}
