//! Sends a blob to a peer: one that is here, or one that is on its way here, as it comes.
//!
//! A blocking thread is only taken while the disk is read, so that slow readers don't keep containers from starting.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use rorqual_image::{Along, Blob, Digest, Store};
use rorqual_proto::wire;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::error::one_line;

/// One piece of a blob on the wire.
const PIECE_BYTES: usize = 256 * 1024;

/// Pieces that wait for a slow reader.
const PIECES: usize = 4;

/// How long a blob that is to come may take to begin.
const BEGINS: Duration = Duration::from_secs(5);

/// Between two looks whether it has begun.
const BEGUN_YET: Duration = Duration::from_millis(20);

/// A reader hears of us at least so often, while nothing comes.
const STILL_HERE: Duration = Duration::from_secs(2);

type Pieces = ReceiverStream<Result<wire::BlobPiece, Status>>;
type Queue = mpsc::Sender<Result<wire::BlobPiece, Status>>;

/// What there is of a blob.
enum Found {
    Here(Blob),
    Coming(Along),
}

/// The blob as the request wants it; `place` is given back when it is sent.
pub(super) async fn blob(
    store: &Store,
    digest: Digest,
    request: &wire::GetBlobRequest,
    place: OwnedSemaphorePermit,
) -> Result<Pieces, Status> {
    let (offset, length) = (request.offset, request.length);
    let found = find(store, &digest, request.along).await?;
    let size_bytes = match &found {
        Found::Here(blob) => Some(blob.size_bytes),
        Found::Coming(along) => along.size_bytes(),
    };
    if size_bytes.is_some_and(|size_bytes| offset > size_bytes) {
        let size_bytes = size_bytes.unwrap_or(0);
        return Err(Status::out_of_range(format!(
            "offset {offset} lies behind the end of {digest}, which has {size_bytes} bytes"
        )));
    }
    let (queue, pieces) = mpsc::channel(PIECES);
    // Ends with the blob, or when the reader hangs up.
    tokio::spawn(async move {
        let sent = match found {
            Found::Here(blob) => send(blob, offset, length, &queue).await,
            Found::Coming(along) => send_along(along, offset, length, &queue).await,
        };
        if let Err(status) = sent {
            let _ = queue.send(Err(status)).await;
        }
        drop(place);
    });
    Ok(ReceiverStream::new(pieces))
}

async fn find(store: &Store, digest: &Digest, along: bool) -> Result<Found, Status> {
    let deadline = tokio::time::Instant::now() + BEGINS;
    loop {
        // Taken before the store is looked at, so that what arrives in between is in one of the two. A node
        // that has it whole is named to others a moment before the blob has its name in the store.
        let coming = store.along(digest).filter(|coming| !coming.arrived().is_lost);
        let (looked, wanted) = (store.clone(), digest.clone());
        let blob = tokio::task::spawn_blocking(move || looked.blob(&wanted)).await;
        let blob = blob.map_err(|_| Status::unavailable("the node is shutting down"))?;
        if let Some(blob) = blob.map_err(|error| Status::internal(one_line(&error)))? {
            return Ok(Found::Here(blob));
        }
        if let Some(coming) = coming {
            return Ok(Found::Coming(coming));
        }
        if !along || tokio::time::Instant::now() >= deadline {
            return Err(Status::not_found(format!("blob {digest} is not on this node")));
        }
        tokio::time::sleep(BEGUN_YET).await;
    }
}

/// Nobody reads any more; that is told to nobody.
fn hung_up() -> Status {
    Status::cancelled("the reader hung up")
}

async fn send(blob: Blob, offset: u64, length: u64, queue: &Queue) -> Result<(), Status> {
    // The first piece says the size, so there is one even where there is nothing to read.
    let mut size_bytes = blob.size_bytes;
    let end = if length == 0 { blob.size_bytes } else { blob.size_bytes.min(offset.saturating_add(length)) };
    let file = std::sync::Arc::new(blob.file);
    let mut at = offset;
    loop {
        let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(PIECE_BYTES);
        let (file, from) = (file.clone(), at);
        let read = tokio::task::spawn_blocking(move || {
            let mut data = vec![0; most];
            file.read_exact_at(&mut data, from).map(|()| data)
        });
        let read = read.await.map_err(|_| Status::unavailable("the node is shutting down"))?;
        let data = read.map_err(|error| Status::internal(format!("can't read the blob: {error}")))?;
        at += data.len() as u64;
        let piece = wire::BlobPiece { data: data.into(), size_bytes: std::mem::take(&mut size_bytes) };
        queue.send(Ok(piece)).await.map_err(|_| hung_up())?;
        if at >= end {
            return Ok(());
        }
    }
}

async fn send_along(mut along: Along, offset: u64, length: u64, queue: &Queue) -> Result<(), Status> {
    let end = if length == 0 { u64::MAX } else { offset.saturating_add(length) };
    let mut size_bytes = along.size_bytes().unwrap_or(0);
    let mut at = offset;
    loop {
        // Cancel-safe: it only waits.
        let arrived = match tokio::time::timeout(STILL_HERE, along.beyond(at)).await {
            Ok(arrived) => arrived,
            Err(_) => along.arrived(),
        };
        if arrived.is_lost {
            return Err(Status::aborted("the blob does not come here any more"));
        }
        let most = arrived.bytes.min(end).saturating_sub(at);
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(PIECE_BYTES);
        if most == 0 && arrived.is_whole {
            return Ok(());
        }
        let reading = tokio::task::spawn_blocking(move || {
            let mut data = vec![0; most];
            let read = if most == 0 { Ok(0) } else { along.read_at(&mut data, at) };
            (
                along,
                read.map(|length| {
                    data.truncate(length);
                    data
                }),
            )
        });
        let (back, read) = reading.await.map_err(|_| Status::unavailable("the node is shutting down"))?;
        along = back;
        let data = read.map_err(|error| Status::internal(format!("can't read the blob: {error}")))?;
        if data.is_empty() && most > 0 {
            return Err(Status::aborted("the blob begins anew"));
        }
        at += data.len() as u64;
        let piece = wire::BlobPiece { data: data.into(), size_bytes: std::mem::take(&mut size_bytes) };
        queue.send(Ok(piece)).await.map_err(|_| hung_up())?;
        if at >= end {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_blob_that_is_whole_and_not_yet_in_place_is_sent_in_any_part() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let digest = Digest::of(b"0123456789");
        assert!(find(&store, &digest, false).await.is_err(), "nobody brings it");
        let mut writer = store.ingest(&digest, Some(10)).unwrap();
        writer.write(b"0123456789").unwrap();
        writer.verify().unwrap();
        // As a node asks that was just told that we have it.
        let request = wire::GetBlobRequest { offset: 2, length: 5, ..wire::GetBlobRequest::default() };
        let place = std::sync::Arc::new(tokio::sync::Semaphore::new(1)).acquire_owned().await.unwrap();
        let mut pieces = blob(&store, digest, &request, place).await.unwrap();
        let mut sent = Vec::new();
        while let Some(piece) = tokio_stream::StreamExt::next(&mut pieces).await {
            sent.extend_from_slice(&piece.unwrap().data);
        }
        assert_eq!(sent, b"23456");
    }
}
