//! A peer as a source of blobs.

use std::time::Duration;

use futures_util::future::BoxFuture;
use rorqual_image::{BlobSource, BlobWriter, Digest, SourceError};
use rorqual_proto::wire;
use rorqual_proto::wire::peer_client::PeerClient;
use tonic::transport::Channel;

/// A peer that sends nothing for so long is given up; the next one is asked.
const SILENCE: Duration = Duration::from_secs(10);

/// One node that has an image.
pub(super) struct PeerSource {
    pub(super) name: String,
    pub(super) channel: Channel,
}

impl BlobSource for PeerSource {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn fetch<'a>(
        &'a self,
        digest: &'a Digest,
        size: Option<u64>,
        to: &'a mut BlobWriter,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(self.copy(digest, size, to))
    }
}

impl PeerSource {
    async fn copy(&self, digest: &Digest, size: Option<u64>, to: &mut BlobWriter) -> Result<(), SourceError> {
        let mut client = PeerClient::new(self.channel.clone());
        let request = wire::GetBlobRequest { digest: digest.to_string(), offset: 0 };
        let answer = tokio::time::timeout(SILENCE, client.get_blob(request)).await;
        let mut pieces = answer.map_err(|_| "it did not answer")??.into_inner();
        loop {
            let piece = tokio::time::timeout(SILENCE, pieces.message()).await;
            let Some(piece) = piece.map_err(|_| "it stopped sending")?? else { return Ok(()) };
            if let Some(expected) = size.filter(|size| piece.size_bytes > 0 && piece.size_bytes != *size) {
                return Err(format!("it has {} bytes, not {expected}", piece.size_bytes).into());
            }
            to.write(&piece.data)?;
        }
    }
}
