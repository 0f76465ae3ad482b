//! The cluster as one source of blobs: the leader says whom to ask, and who fetches a blob from outside for all.
//!
//! ```text
//! who? ─► holders ─► one, or parts of several at a time ─┐
//!   ▲     a node that is getting it ─► as it comes ──────┼─► whole ─► "done", and others may ask us
//!   │     nobody ─► the registry is ours to ask          │
//!   └───────────── it did not deliver ◄──────────────────┘
//! ```

use std::collections::HashMap;
use std::str::FromStr as _;
use std::sync::{Mutex, PoisonError};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};
use rorqual_image::{BlobSource, BlobWriter, Digest, NobodyHasIt, SourceError, Store};
use rorqual_proto::model::NodeId;
use rorqual_proto::tls::{Expect, connect};
use rorqual_proto::wire;

use super::link::ClusterLink;
use super::source::PeerSource;
use crate::error::one_line;

/// Nodes that may fail to deliver one blob before the registry is asked.
const MOST_FAILED: usize = 8;

/// A blob of this size or more comes in parts where several nodes have it.
const PARTED_BYTES: u64 = 8 << 20;

/// One part; so many are on their way at a time, and in memory.
const PART_BYTES: u64 = 2 << 20;
const PARTS: usize = 4;

/// The nodes of the cluster, for the blobs of one image.
pub(crate) struct Swarm {
    link: ClusterLink,
    store: Store,
    /// As nodes report the image; empty where it is not known yet.
    image: String,
    /// One connection a node.
    peers: Mutex<HashMap<String, PeerSource>>,
}

impl BlobSource for Swarm {
    fn name(&self) -> String {
        "the cluster".to_owned()
    }

    fn fetch<'a>(
        &'a self,
        digest: &'a Digest,
        size: Option<u64>,
        to: &'a mut BlobWriter,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(self.bring(digest, size, to))
    }
}

impl Swarm {
    pub(crate) fn new(link: ClusterLink, store: Store, image: Option<&Digest>) -> Self {
        let image = image.map(ToString::to_string).unwrap_or_default();
        Self { link, store, image, peers: Mutex::default() }
    }

    async fn bring(
        &self,
        digest: &Digest,
        size: Option<u64>,
        to: &mut BlobWriter,
    ) -> Result<(), SourceError> {
        let mut failed: Vec<String> = Vec::new();
        let mut tried: Vec<String> = Vec::new();
        while failed.len() < MOST_FAILED {
            let request = wire::FindBlobRequest {
                digest: digest.to_string(),
                image: self.image.clone(),
                failed: failed.clone(),
                ..wire::FindBlobRequest::default()
            };
            // Without a leader nobody is known: the registry is asked at once.
            let Ok(advice) = self.link.find_blob(request).await else { break };
            let holders: Vec<PeerSource> = advice.holders.iter().filter_map(|peer| self.peer(peer)).collect();
            let parent = advice.parent.as_ref().and_then(|peer| self.peer(peer));
            let mut asked: Vec<PeerSource> = holders.into_iter().chain(parent.clone()).collect();
            if asked.is_empty() {
                break;
            }
            let brought = match size.filter(|size| *size >= PARTED_BYTES && asked.len() > 1) {
                Some(size) => parts(&asked, digest, size, to).await,
                None => {
                    // The others did not fail: they may be named again.
                    asked.truncate(1);
                    asked[0].copy(digest, size, parent.is_some(), to).await
                }
            };
            let error = match brought.and_then(|()| Ok(to.verify().map(drop)?)) {
                Ok(()) => {
                    end(&self.link, digest, true).await;
                    return Ok(());
                }
                Err(error) => error,
            };
            if is_ours(&error) {
                end(&self.link, digest, false).await;
                return Err(error);
            }
            tracing::debug!(%digest, from = asked[0].name, error = %one_line(&*error), "a blob did not come from a node");
            tried.push(format!("{}: {}", asked[0].name, one_line(&*error)));
            failed.extend(asked.into_iter().map(|peer| peer.node_id));
            // Whole and wrong, or more than there can be: none of it can be relied on.
            if size.is_none_or(|size| to.written_bytes() >= size) {
                to.reset()?;
            }
        }
        self.watch(digest);
        if tried.is_empty() { Err(Box::new(NobodyHasIt)) } else { Err(tried.join("; ").into()) }
    }

    /// Tells the leader what becomes of a blob that we fetch from outside for all.
    fn watch(&self, digest: &Digest) {
        let (link, store, digest) = (self.link.clone(), self.store.clone(), digest.clone());
        // Ends with the transfer.
        tokio::spawn(async move {
            while let Some(mut along) = store.along(&digest) {
                // Another try of the same transfer begins anew, and is found by the next look.
                if along.beyond(u64::MAX).await.is_whole {
                    return end(&link, &digest, true).await;
                }
                drop(along);
                tokio::task::yield_now().await;
            }
            end(&link, &digest, false).await;
        });
    }

    fn peer(&self, peer: &wire::NodePeer) -> Option<PeerSource> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = peers.get(&peer.node_id) {
            return Some(known.clone());
        }
        let node = NodeId::from_str(&peer.node_id).ok()?;
        let channel = connect(&peer.address, self.link.credentials().clone(), &Expect::Node(node)).ok()?;
        let name = if peer.hostname.is_empty() { peer.node_id.clone() } else { peer.hostname.clone() };
        let source = PeerSource { node_id: peer.node_id.clone(), name, channel };
        peers.insert(peer.node_id.clone(), source.clone());
        Some(source)
    }
}

async fn end(link: &ClusterLink, digest: &Digest, done: bool) {
    let digest = digest.to_string();
    let request = wire::FindBlobRequest { digest, done, gave_up: !done, ..wire::FindBlobRequest::default() };
    // Without it the leader takes us for busy until the session ends.
    if let Err(status) = link.find_blob(request).await {
        tracing::debug!(%status, "the leader does not know what became of a blob");
    }
}

/// Our own disk's fault: no other node can help.
fn is_ours(error: &SourceError) -> bool {
    use rorqual_image::Error;
    matches!(error.downcast_ref::<Error>(), Some(Error::DiskFull { .. } | Error::Io { .. }))
}

/// From several nodes at a time, each part from another one; a part that does not come is asked of the next.
async fn parts(
    holders: &[PeerSource],
    digest: &Digest,
    size: u64,
    to: &mut BlobWriter,
) -> Result<(), SourceError> {
    let first = to.written_bytes();
    let part = |number: u64| async move {
        let offset = first + number * PART_BYTES;
        let length = PART_BYTES.min(size - offset);
        let mut last: SourceError = "no node was asked".into();
        for turn in 0..holders.len() {
            let start = usize::try_from(number).unwrap_or(0);
            match holders[(start + turn) % holders.len()].part(digest, offset, length).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    let count = (size - first).div_ceil(PART_BYTES);
    let mut coming = stream::iter(0..count).map(part).buffered(PARTS);
    while let Some(bytes) = coming.next().await {
        to.write(&bytes?)?;
    }
    Ok(())
}
