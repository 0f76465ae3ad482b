//! Messages from other members: who sends is checked against its certificate, then the pump gets them.

use std::sync::PoisonError;

use rorqual_proto::model::{ClusterId, NodeId, Role};
use rorqual_proto::tls;
use rorqual_proto::wire::{RaftEnd, RaftMessage, raft_server};
use tonic::{Request, Response, Status, Streaming};

use super::handle::{Event, Handle};
use super::streams::Streams;
use super::transport::ADDRESS_HEADER;
use super::{RaftPeer, codec};
use crate::store::Outcome;

/// Serves `rorqual.v1.Raft`, to controllers of the same cluster.
#[derive(Clone)]
pub struct RaftService {
    cluster_id: ClusterId,
    own_raft_id: u64,
    pump: Handle<Outcome>,
    streams: Streams,
}

impl RaftService {
    pub(super) fn new(cluster_id: ClusterId, own_raft_id: u64, pump: Handle<Outcome>) -> Self {
        Self { cluster_id, own_raft_id, pump, streams: Streams::default() }
    }

    fn admit(&self, from: u64, node_id: &NodeId) -> Result<(), Status> {
        let members = self.pump.view().members.read().unwrap_or_else(PoisonError::into_inner);
        if members.admits(from, node_id) {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "node {node_id} is not member {from} of this Raft group (any more): leave the cluster there and \
             join again"
        )))
    }

    fn take(&self, message: RaftMessage, node_id: &NodeId) -> Result<(), Status> {
        // Each time: a member may be removed while its stream is open.
        self.admit(message.from, node_id)?;
        let from = message.from;
        let message = codec::decode(&message.data)
            .map_err(|error| Status::invalid_argument(format!("data: {error}")))?;
        if message.from != from {
            return Err(Status::permission_denied("data: the message is not its sender's"));
        }
        if message.to != self.own_raft_id {
            return Err(Status::failed_precondition(format!(
                "this is member {} of the Raft group, not {}",
                self.own_raft_id, message.to
            )));
        }
        self.pump.deliver(Box::new(message));
        Ok(())
    }
}

#[tonic::async_trait]
impl raft_server::Raft for RaftService {
    async fn messages(&self, request: Request<Streaming<RaftMessage>>) -> Result<Response<RaftEnd>, Status> {
        let identity = tls::require_role(&request, Role::Controller)?;
        if identity.cluster_id != self.cluster_id {
            return Err(Status::permission_denied("the caller is a controller of another cluster"));
        }
        let address = request.metadata().get(ADDRESS_HEADER).and_then(|value| value.to_str().ok());
        let mut address = address.map(ToOwned::to_owned);
        let mut stream = request.into_inner();
        // Closed however this ends, also when the connection breaks and nobody polls this any more.
        let mut open = None;
        while let Some(message) = stream.message().await? {
            self.admit(message.from, &identity.node_id)?;
            if let Some(address) = address.take() {
                let peer = RaftPeer { raft_id: message.from, node_id: identity.node_id.clone(), address };
                self.pump.tell(Event::Heard(peer));
            }
            let from = message.from;
            self.take(message, &identity.node_id)?;
            open.get_or_insert_with(|| self.streams.open(from, self.pump.clone()));
        }
        Ok(Response::new(RaftEnd {}))
    }
}
