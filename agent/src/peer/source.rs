//! A peer that blobs come from: whole, in parts, or as far as it has them itself.

use std::time::{Duration, Instant};

use rorqual_image::{BlobWriter, Digest, SourceError};
use rorqual_proto::wire;
use rorqual_proto::wire::peer_client::PeerClient;
use tonic::transport::Channel;

/// A peer that lets hear nothing for so long is given up; the next one is asked.
const SILENCE: Duration = Duration::from_secs(10);

/// One that says no more than that it still waits itself is given up after so long: twice as long as a node waits for a
/// silent registry before it asks again.
const NO_NEWS: Duration = Duration::from_secs(60);

/// One node that has a blob, or is getting it.
#[derive(Clone)]
pub(super) struct PeerSource {
    pub(super) node_id: String,
    pub(super) name: String,
    pub(super) channel: Channel,
}

impl PeerSource {
    /// Writes the blob from where `to` is to its end. With `along` the peer need not have it yet.
    pub(super) async fn copy(
        &self,
        digest: &Digest,
        size: Option<u64>,
        along: bool,
        to: &mut BlobWriter,
    ) -> Result<(), SourceError> {
        let offset = to.written_bytes();
        let request = wire::GetBlobRequest { digest: digest.to_string(), offset, length: 0, along };
        let mut client = PeerClient::new(self.channel.clone());
        let answer = tokio::time::timeout(SILENCE, client.get_blob(request)).await;
        let mut pieces = answer.map_err(|_| "it did not answer")??.into_inner();
        let mut news = Instant::now();
        loop {
            let piece = tokio::time::timeout(SILENCE, pieces.message()).await;
            let Some(piece) = piece.map_err(|_| "it stopped sending")?? else { return Ok(()) };
            if !piece.data.is_empty() {
                news = Instant::now();
            } else if news.elapsed() > NO_NEWS {
                return Err("nothing came to it".into());
            }
            if let Some(expected) = size.filter(|size| piece.size_bytes > 0 && piece.size_bytes != *size) {
                return Err(format!("it has {} bytes, not {expected}", piece.size_bytes).into());
            }
            to.write(&piece.data)?;
        }
    }

    /// A part of a blob that the peer has.
    pub(super) async fn part(
        &self,
        digest: &Digest,
        offset: u64,
        length: u64,
    ) -> Result<Vec<u8>, SourceError> {
        let request = wire::GetBlobRequest { digest: digest.to_string(), offset, length, along: false };
        let mut client = PeerClient::new(self.channel.clone());
        let answer = tokio::time::timeout(SILENCE, client.get_blob(request)).await;
        let mut pieces = answer.map_err(|_| "it did not answer")??.into_inner();
        let wanted = usize::try_from(length).unwrap_or(usize::MAX);
        let mut part = Vec::with_capacity(wanted);
        while part.len() < wanted {
            let piece = tokio::time::timeout(SILENCE, pieces.message()).await;
            let Some(piece) = piece.map_err(|_| "it stopped sending")?? else { break };
            part.extend_from_slice(&piece.data);
        }
        if part.len() != wanted {
            return Err(format!("it sent {} bytes of {wanted}", part.len()).into());
        }
        Ok(part)
    }
}
