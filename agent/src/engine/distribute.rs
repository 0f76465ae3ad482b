//! What the engine API does with registries: pull, push, log in, search.

use rorqual_image::{Digest, Progress, PushProgress};
use rorqual_proto::wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::image_status;
use crate::agent::Agent;
use crate::images::{ImageError, read_credentials};

/// Lines of progress that wait for a slow client; more are dropped, the last one never.
const PROGRESS: usize = 64;
/// Repositories that a search gives unless it says how many.
const HITS: usize = 25;
/// Docker Hub, as references name it.
const HUB: &str = "docker.io";

type Lines = ReceiverStream<Result<wire::PullProgress, Status>>;

/// Fetches an image and tells how far it is.
pub(super) fn pull(agent: &Agent, request: wire::PullImageRequest) -> Lines {
    let images = agent.images().clone();
    let wire::PullImageRequest { reference, credentials } = request;
    told(reference.clone(), move |lines| async move {
        let report = tell(lines, pull_line);
        let digest = images.pull(&reference, credentials.and_then(read_credentials), report).await?;
        Ok((digest, "done".to_owned()))
    })
}

/// Pushes an image and tells how far it is.
pub(super) fn push(agent: &Agent, request: wire::PushImageRequest) -> Lines {
    let images = agent.images().clone();
    let wire::PushImageRequest { reference, credentials } = request;
    told(reference.clone(), move |lines| async move {
        let report = tell(lines, push_line);
        let pushed = images.push(&reference, credentials.and_then(read_credentials), report).await?;
        let status = match pushed.is_part {
            true => "done, for this node's platform alone: the others of its index are not here",
            false => "done",
        };
        Ok((pushed.digest, status.to_owned()))
    })
}

/// Whether a registry takes the credentials.
pub(super) async fn login(agent: &Agent, request: wire::LoginRequest) -> Result<wire::LoginResponse, Status> {
    let wire::LoginRequest { registry, credentials } = request;
    let asked =
        agent.images().client_for(&registry, credentials.and_then(read_credentials)).login(&registry).await;
    let token = asked.map_err(|error| refused(&registry, error))?;
    Ok(wire::LoginResponse { identity_token: token.unwrap_or_default() })
}

/// Repositories by a word.
pub(super) async fn search(
    agent: &Agent,
    request: wire::SearchImagesRequest,
) -> Result<wire::SearchImagesResponse, Status> {
    let wire::SearchImagesRequest { registry, term, limit, credentials } = request;
    let registry = if registry.is_empty() { HUB } else { &registry };
    let limit = usize::try_from(limit).ok().filter(|limit| *limit > 0).unwrap_or(HITS);
    let client = agent.images().client_for(registry, credentials.and_then(read_credentials));
    let hits = client.search(registry, &term, limit).await.map_err(|error| refused(registry, error))?;
    let hits = hits.into_iter().map(|hit| wire::SearchHit {
        name: hit.name,
        description: hit.description,
        stars: hit.stars,
        official: hit.is_official,
    });
    Ok(wire::SearchImagesResponse { hits: hits.collect() })
}

/// The tags of a repository.
pub(super) async fn tags(
    agent: &Agent,
    request: wire::ListTagsRequest,
) -> Result<wire::ListTagsResponse, Status> {
    let wire::ListTagsRequest { reference, credentials } = request;
    let tags = agent.images().tags(&reference, credentials.and_then(read_credentials)).await;
    let tags = tags.map_err(|error| image_status(&reference, &error))?;
    Ok(wire::ListTagsResponse { tags })
}

/// Runs `work` for as long as the client listens; its outcome is the last line.
fn told<F>(
    reference: String,
    work: impl FnOnce(mpsc::Sender<Result<wire::PullProgress, Status>>) -> F,
) -> Lines
where
    F: Future<Output = Result<(Digest, String), ImageError>> + Send + 'static,
{
    let (lines, queue) = mpsc::channel(PROGRESS);
    let working = work(lines.clone());
    // Ends with the work, or when the client hangs up.
    tokio::spawn(async move {
        // Both arms are cancel-safe: what is dropped keeps what is whole.
        let done = tokio::select! {
            done = working => done,
            () = lines.closed() => return,
        };
        let last = match done {
            Ok((digest, status)) => {
                Ok(wire::PullProgress { status, digest: digest.to_string(), ..wire::PullProgress::default() })
            }
            Err(error) => Err(image_status(&reference, &error)),
        };
        let _ = lines.send(last).await;
    });
    ReceiverStream::new(queue)
}

fn tell<P>(
    lines: mpsc::Sender<Result<wire::PullProgress, Status>>,
    line: fn(P) -> wire::PullProgress,
) -> impl Fn(P) + Send + Sync + 'static
where
    P: 'static,
{
    move |progress| {
        let _ = lines.try_send(Ok(line(progress)));
    }
}

fn refused(registry: &str, error: rorqual_image::Error) -> Status {
    image_status(registry, &ImageError::Store(error))
}

fn line(item: &Digest, status: &str, done_bytes: u64, total_bytes: u64) -> wire::PullProgress {
    let (item, status) = (item.to_string(), status.to_owned());
    wire::PullProgress { item, status, done_bytes, total_bytes, digest: String::new() }
}

fn pull_line(progress: Progress) -> wire::PullProgress {
    match progress {
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
    }
}

fn push_line(progress: PushProgress) -> wire::PullProgress {
    match progress {
        PushProgress::Blobs { blobs } => wire::PullProgress {
            status: format!("{} blobs", blobs.len()),
            total_bytes: blobs.iter().map(|(_, size)| size).sum(),
            ..wire::PullProgress::default()
        },
        PushProgress::Present { digest } => line(&digest, "present", 0, 0),
        PushProgress::Mounted { digest, from } => line(&digest, &format!("mounted from {from}"), 0, 0),
        PushProgress::Bytes { digest, done_bytes, total_bytes } => {
            line(&digest, "pushing", done_bytes, total_bytes)
        }
        PushProgress::Sent { digest } => line(&digest, "pushed", 0, 0),
    }
}
