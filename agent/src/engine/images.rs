//! The image half of the engine API.

use std::collections::{BTreeSet, HashSet};
use std::io::{self, Read};

use bytes::Bytes;
use rorqual_image::{Digest, Progress, Reference, Target};
use rorqual_proto::wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::image_status;
use crate::agent::Agent;
use crate::images::ImageError;

/// Pieces of an archive that wait for the disk.
const PIECES: usize = 16;

/// Lines of progress that wait for a slow client; more are dropped, the last one never.
const PROGRESS: usize = 64;

fn interrupted() -> Status {
    Status::unavailable("the agent is shutting down")
}

/// An archive that comes over the stream.
pub(super) async fn load(
    agent: &Agent,
    mut archive: Streaming<wire::LoadImageRequest>,
) -> Result<wire::LoadImageResponse, Status> {
    let (pieces, queue) = mpsc::channel(PIECES);
    let store = agent.images().store().clone();
    let loading = tokio::task::spawn_blocking(move || store.load_stream(Pieces::new(queue), "(upload)"));
    let mut broken = None;
    loop {
        match archive.message().await {
            Ok(Some(piece)) => {
                // The loader has ended early: its error says why.
                if pieces.send(Ok(piece.data)).await.is_err() {
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
    let loaded = loading.await.map_err(|_| interrupted())?;
    agent.images().note_change();
    if let Some(status) = broken {
        return Err(status);
    }
    let loaded = loaded.map_err(|error| image_status("", &ImageError::Store(error)))?;
    let images = loaded.into_iter().map(|image| wire::LoadedImage {
        reference: image.reference.map(|reference| reference.to_string()).unwrap_or_default(),
        digest: image.digest.to_string(),
    });
    Ok(wire::LoadImageResponse { images: images.collect() })
}

/// Pieces of a stream as one [`Read`], for a blocking thread.
struct Pieces {
    queue: mpsc::Receiver<io::Result<Bytes>>,
    piece: io::Cursor<Bytes>,
}

impl Pieces {
    fn new(queue: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self { queue, piece: io::Cursor::default() }
    }
}

impl Read for Pieces {
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

/// Fetches an image and tells how far it is.
pub(super) fn pull(agent: &Agent, reference: String) -> ReceiverStream<Result<wire::PullProgress, Status>> {
    let (lines, queue) = mpsc::channel(PROGRESS);
    let images = agent.images().clone();
    // Ends with the pull, or when the client hangs up.
    tokio::spawn(async move {
        let report = {
            let lines = lines.clone();
            move |progress| {
                if let Some(line) = line(progress) {
                    let _ = lines.try_send(Ok(line));
                }
            }
        };
        // Both arms are cancel-safe: a pull that is dropped keeps what is whole.
        let pulled = tokio::select! {
            pulled = images.pull(&reference, report) => pulled,
            () = lines.closed() => return,
        };
        let last = match pulled {
            Ok(digest) => Ok(wire::PullProgress {
                status: "done".to_owned(),
                digest: digest.to_string(),
                ..wire::PullProgress::default()
            }),
            Err(error) => Err(image_status(&reference, &error)),
        };
        let _ = lines.send(last).await;
    });
    ReceiverStream::new(queue)
}

fn line(progress: Progress) -> Option<wire::PullProgress> {
    let line = |item: &Digest, status: &str, done_bytes: u64, total_bytes: u64| wire::PullProgress {
        item: item.to_string(),
        status: status.to_owned(),
        done_bytes,
        total_bytes,
        digest: String::new(),
    };
    Some(match progress {
        Progress::Resolved { digest } => {
            wire::PullProgress { status: format!("resolved to {digest}"), ..wire::PullProgress::default() }
        }
        Progress::Present { digest } => line(&digest, "present", 0, 0),
        Progress::Bytes { digest, done_bytes, total_bytes } => {
            line(&digest, "fetching", done_bytes, total_bytes.unwrap_or(0))
        }
        Progress::Fetched { digest, from, .. } => line(&digest, &format!("fetched from {from}"), 0, 0),
        Progress::Unpacked { digest } => line(&digest, "unpacked", 0, 0),
        Progress::Layers { layers } => wire::PullProgress {
            status: format!("{} layers", layers.len()),
            total_bytes: layers.iter().map(|(_, size)| size).sum(),
            ..wire::PullProgress::default()
        },
    })
}

/// Manifests of the containers and tasks of this node, once for each of them.
fn in_use(agent: &Agent) -> Vec<Digest> {
    let plain = agent.containers().records().into_iter().map(|(_, spec)| spec);
    let tasks = agent.tasks().entries().into_iter();
    let tasks = tasks
        .filter(|entry| !entry.observed().status.state.is_terminal())
        .map(|entry| entry.task.container.clone());
    let digest = |spec: rorqual_proto::model::ContainerSpec| {
        agent.images().local(&spec.image, spec.image_digest.as_deref())
    };
    plain.chain(tasks).filter_map(digest).collect()
}

pub(super) fn list(agent: &Agent) -> wire::ListImagesResponse {
    let used = in_use(agent);
    let images = agent.images().store().list().into_iter().map(|record| {
        let count = used.iter().filter(|digest| **digest == record.digest).count();
        wire::ImageInfo {
            reference: record.reference.map(|reference| reference.to_string()).unwrap_or_default(),
            digest: record.digest.to_string(),
            size_bytes: record.size_bytes,
            created_at_ms: record.created.as_deref().and_then(crate::logs::milliseconds).unwrap_or(0),
            in_use: u32::try_from(count).unwrap_or(u32::MAX),
        }
    });
    wire::ListImagesResponse { images: images.collect() }
}

/// By name, by digest, or by the first characters of a digest. `force` takes every name of an image away; what
/// is in use stays all the same, since its containers need it.
pub(super) async fn remove(
    agent: &Agent,
    name: &str,
    force: bool,
) -> Result<wire::RemoveImageResponse, Status> {
    let targets = targets(agent, name, force)?;
    let store = agent.images().store().clone();
    let used: HashSet<Digest> = in_use(agent).into_iter().collect();
    let removing = tokio::task::spawn_blocking(move || {
        let mut answer = wire::RemoveImageResponse::default();
        for target in targets {
            let removed = store.remove(target, &used)?;
            answer.untagged.extend(removed.untagged.iter().map(ToString::to_string));
            answer.deleted.extend(removed.images.iter().map(ToString::to_string));
        }
        Ok(answer)
    });
    let removed = removing.await.map_err(|_| interrupted())?;
    agent.images().note_change();
    removed.map_err(|error| image_status(name, &ImageError::Store(error)))
}

fn targets(agent: &Agent, name: &str, force: bool) -> Result<Vec<Target>, Status> {
    let records = agent.images().store().list();
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let is_prefix = hex.len() >= 6 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let named: Option<Reference> = name.parse().ok();
    if let Some(reference) = named.filter(|r| records.iter().any(|known| known.reference.as_ref() == Some(r)))
    {
        return Ok(vec![Target::Name(reference)]);
    }
    let digests: BTreeSet<String> = records
        .iter()
        .filter(|record| is_prefix && record.digest.hex().starts_with(hex))
        .map(|record| record.digest.to_string())
        .collect();
    match digests.len() {
        0 => {
            let error = rorqual_image::Error::NoSuchImage(name.to_owned());
            Err(image_status(name, &ImageError::Store(error)))
        }
        1 if force => {
            let all = records.iter().filter(|record| digests.contains(&record.digest.to_string()));
            let by_name = all.clone().filter_map(|record| record.reference.clone()).map(Target::Name);
            let mut targets: Vec<Target> = by_name.collect();
            if targets.is_empty() {
                targets.extend(all.take(1).map(|record| Target::Image(record.digest.clone())));
            }
            Ok(targets)
        }
        1 => {
            let one = records.iter().find(|record| digests.contains(&record.digest.to_string()));
            Ok(one.map(|record| Target::Image(record.digest.clone())).into_iter().collect())
        }
        _ => {
            Err(Status::invalid_argument(format!("`{name}` means {} images: give more of it", digests.len())))
        }
    }
}
