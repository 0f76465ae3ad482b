//! Archives that go over the engine API in pieces, either way: images saved and loaded, containers exported; and what
//! `import` reads.
//!
//! Whoever reads or writes an archive does it on a blocking thread, through [`Inbox`] or [`Outbox`]; a bounded
//! channel stands between it and the client, so a slow one holds it up and one that hangs up ends it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use bytes::Bytes;
use rorqual_image::{Digest, Instruction, Reference, SaveFormat, Saved};
use rorqual_proto::wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{image_status, select};
use crate::agent::Agent;
use crate::images::ImageError;

/// Pieces of an archive that wait for the disk, or for the client.
const PIECES: usize = 16;

/// One piece of an archive on the wire.
const PIECE_BYTES: usize = 256 * 1024;

/// An archive on its way to the client.
pub(super) type Pieces = ReceiverStream<Result<wire::ArchivePiece, Status>>;

pub(super) fn interrupted() -> Status {
    Status::unavailable("the agent is shutting down")
}

/// An archive that the client sends, as one [`Read`].
pub(super) struct Inbox {
    queue: mpsc::Receiver<io::Result<Bytes>>,
    piece: io::Cursor<Bytes>,
}

impl Read for Inbox {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.piece.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match self.queue.blocking_recv() {
                Some(piece) => self.piece = io::Cursor::new(piece?),
                None => return Ok(0),
            }
        }
    }
}

/// Passes what comes over `stream` to `work`, on a blocking thread, and gives its answer. A stream that breaks off
/// is what the caller is told, whatever became of the work.
pub(super) async fn receive<M, T: Send + 'static>(
    mut stream: Streaming<M>,
    data: impl Fn(M) -> Bytes,
    work: impl FnOnce(Inbox) -> T + Send + 'static,
) -> Result<T, Status> {
    let (pieces, queue) = mpsc::channel(PIECES);
    let working = tokio::task::spawn_blocking(move || work(Inbox { queue, piece: io::Cursor::default() }));
    let mut broken = None;
    loop {
        match stream.message().await {
            Ok(Some(message)) => {
                // The work has ended early: its answer says why.
                if pieces.send(Ok(data(message))).await.is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(status) => {
                let _ = pieces.send(Err(io::ErrorKind::UnexpectedEof.into())).await;
                broken = Some(status);
                break;
            }
        }
    }
    drop(pieces);
    let answer = working.await.map_err(|_| interrupted())?;
    broken.map_or(Ok(answer), Err)
}

/// An archive that is written for the client.
pub(super) struct Outbox {
    queue: mpsc::Sender<Result<wire::ArchivePiece, Status>>,
    piece: Vec<u8>,
}

impl Outbox {
    fn send(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let data = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES)).into();
        self.queue
            .blocking_send(Ok(wire::ArchivePiece { data }))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Outbox {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE_BYTES - self.piece.len();
        let taken = bytes.len().min(room);
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == PIECE_BYTES {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

/// Sends what `work` writes; an error of its own ends the stream.
pub(super) fn send(work: impl FnOnce(&mut Outbox) -> Result<(), Status> + Send + 'static) -> Pieces {
    let (queue, pieces) = mpsc::channel(PIECES);
    // Ends with the archive, or when the client hangs up.
    tokio::task::spawn_blocking(move || {
        let mut outbox = Outbox { queue, piece: Vec::with_capacity(PIECE_BYTES) };
        let done = work(&mut outbox).and_then(|()| outbox.send().map_err(|_| interrupted()));
        if let Err(status) = done {
            let _ = outbox.queue.blocking_send(Err(status));
        }
    });
    ReceiverStream::new(pieces)
}

/// The images with these names as an archive. An image that is named by several of its names has all of them in it,
/// one that is named by its digest none.
pub(super) fn save(agent: &Agent, request: &wire::SaveImagesRequest) -> Result<Pieces, Status> {
    if request.names.is_empty() {
        return Err(Status::invalid_argument("names: name at least one image"));
    }
    let mut images: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
    for name in &request.names {
        let record = select::image(agent, name)?;
        let names = images.entry(record.digest).or_default();
        let asked = name.parse::<Reference>().ok();
        if let Some(reference) = record.reference.filter(|reference| asked.as_ref() == Some(reference))
            && !names.contains(&reference)
        {
            names.push(reference);
        }
    }
    let images: Vec<Saved> = images.into_iter().map(|(digest, names)| Saved { digest, names }).collect();
    let format = if request.oci { SaveFormat::Oci } else { SaveFormat::Docker };
    let store = agent.images().store().clone();
    Ok(send(move |out| {
        store.save(&images, format, out).map_err(|error| image_status("", &ImageError::Store(error)))
    }))
}

/// Loads the images of an archive.
pub(super) async fn load(
    agent: &Agent,
    archive: Streaming<wire::LoadImageRequest>,
) -> Result<wire::LoadImageResponse, Status> {
    let store = agent.images().store().clone();
    let loading = receive(archive, |piece| piece.data, move |inbox| store.load_stream(inbox, "(upload)"));
    let loaded = loading.await;
    agent.images().note_change();
    let loaded = loaded?.map_err(|error| image_status("", &ImageError::Store(error)))?;
    let images = loaded.into_iter().map(|image| wire::LoadedImage {
        reference: image.reference.map(|reference| reference.to_string()).unwrap_or_default(),
        digest: image.digest.to_string(),
    });
    Ok(wire::LoadImageResponse { images: images.collect() })
}

/// A name that a user gives; empty for none.
pub(super) fn reference(text: &str) -> Result<Option<Reference>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed: Reference =
        text.parse().map_err(|error| Status::invalid_argument(format!("image name `{text}`: {error}")))?;
    if parsed.digest().is_some() {
        return Err(Status::invalid_argument(format!(
            "image name `{text}`: a digest can't be given, only a tag"
        )));
    }
    Ok(Some(parsed))
}

pub(super) fn instructions(texts: &[String]) -> Result<Vec<Instruction>, Status> {
    let parse =
        |text: &String| text.parse().map_err(|error| Status::invalid_argument(format!("--change: {error}")));
    texts.iter().map(parse).collect()
}
