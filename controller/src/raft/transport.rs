//! Messages to other members over gRPC: one stream a member, kept open, made again with a growing pause.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use raft::eraftpb::{Message, MessageType};
use rorqual_proto::tls::{self, CredentialStore, Expect};
use rorqual_proto::wire::{RaftMessage, raft_client::RaftClient};
use tokio::runtime;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use super::core::Transport;
use super::handle::{Event, Handle};
use super::outbox::{Outbox, Parcel};
use super::{RaftPeer, codec};

/// The header in which a member says where it is reached.
pub(super) const ADDRESS_HEADER: &str = "rorqual-address";

/// The largest message, a snapshot, in either direction.
pub(super) const MESSAGE_BYTES: usize = 64 << 20;

/// Pauses between two attempts at a stream.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A stream that lived this long was a good one: the next pause is short.
const GOOD_STREAM: Duration = Duration::from_secs(2);

/// Streams to every member that something is sent to.
pub(super) struct GrpcTransport<O: Send + 'static> {
    own: RaftPeer,
    credentials: CredentialStore,
    pump: Handle<O>,
    runtime: runtime::Handle,
    links: BTreeMap<u64, Link>,
}

struct Link {
    peer: RaftPeer,
    outbox: Arc<Outbox>,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<O: Send + 'static> GrpcTransport<O> {
    pub(super) fn new(
        own: RaftPeer,
        credentials: CredentialStore,
        pump: Handle<O>,
        runtime: runtime::Handle,
    ) -> Self {
        Self { own, credentials, pump, runtime, links: BTreeMap::new() }
    }

    fn link(&self, peer: &RaftPeer) -> Link {
        let outbox = Arc::new(Outbox::default());
        let sender = Sender {
            own: self.own.clone(),
            peer: peer.clone(),
            credentials: self.credentials.clone(),
            pump: self.pump.clone(),
            outbox: outbox.clone(),
        };
        // Ends with the link, which aborts it.
        let task = self.runtime.spawn(sender.run());
        Link { peer: peer.clone(), outbox, task }
    }
}

impl<O: Send + 'static> Transport for GrpcTransport<O> {
    fn send(&mut self, to: &RaftPeer, message: Message) {
        let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
        let lost = |transport: &Self, delivered| {
            transport.pump.tell(Event::SnapshotSent { to: to.raft_id, delivered });
        };
        let data = match codec::encode(&message) {
            Ok(data) if data.len() < MESSAGE_BYTES - 1024 => data,
            Ok(data) => {
                tracing::error!(bytes = data.len(), limit = MESSAGE_BYTES, "a Raft message is too large");
                if snapshot {
                    lost(self, false);
                }
                return;
            }
            Err(error) => {
                tracing::error!(%error, "a Raft message can't be sent");
                return;
            }
        };
        if self.links.get(&to.raft_id).is_none_or(|link| link.peer != *to) {
            let link = self.link(to);
            self.links.insert(to.raft_id, link);
        }
        if let Some(link) = self.links.get(&to.raft_id)
            && link.outbox.push(Parcel { data, snapshot })
        {
            lost(self, false);
        }
    }

    fn retain(&mut self, keep: &dyn Fn(u64) -> bool) {
        self.links.retain(|id, _| keep(*id));
    }
}

/// The task behind a link.
struct Sender<O: Send + 'static> {
    own: RaftPeer,
    peer: RaftPeer,
    credentials: CredentialStore,
    pump: Handle<O>,
    outbox: Arc<Outbox>,
}

impl<O: Send + 'static> Sender<O> {
    async fn run(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            self.outbox.filled().await;
            let began = Instant::now();
            if let Err(status) = self.stream().await {
                tracing::debug!(to = self.peer.raft_id, address = self.peer.address, %status, "no Raft stream");
            }
            if self.outbox.clear() {
                self.pump.tell(Event::SnapshotSent { to: self.peer.raft_id, delivered: false });
            }
            self.pump.tell(Event::Unreachable(self.peer.raft_id));
            pause = if began.elapsed() > GOOD_STREAM { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends what comes into the outbox until the stream breaks.
    async fn stream(&self) -> Result<(), Status> {
        let expect = Expect::Node(self.peer.node_id.clone());
        let channel = tls::connect(&self.peer.address, self.credentials.clone(), &expect)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut client = RaftClient::new(channel).max_encoding_message_size(MESSAGE_BYTES);
        let (outbox, pump) = (self.outbox.clone(), self.pump.clone());
        let (from, to) = (self.own.raft_id, self.peer.raft_id);
        let messages = stream::unfold((outbox, pump), move |(outbox, pump)| async move {
            let parcel = outbox.take().await;
            if parcel.snapshot {
                // The stream keeps the order: what is sent next finds the snapshot installed, or the
                // follower refuses it and the leader sends the snapshot again.
                pump.tell(Event::SnapshotSent { to, delivered: true });
            }
            Some((RaftMessage { from, data: parcel.data.into() }, (outbox, pump)))
        });
        let mut request = Request::new(messages);
        if let Ok(address) = MetadataValue::try_from(&self.own.address) {
            request.metadata_mut().insert(ADDRESS_HEADER, address);
        }
        client.messages(request).await.map(drop)
    }
}
