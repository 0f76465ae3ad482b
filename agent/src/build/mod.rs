//! `rctl build`: the builder of the image crate, with this node's images, network and runtime.
//!
//! ```text
//! client ══ BuildRequest ══▶ sort ── answers ──▶ ClientFiles (context.rs) ─┐
//!        ◀═ BuildResponse ══ questions, events, result ◀───────────────────┴─ builder, on a thread of its own
//!                                                                               │ Node (node.rs)
//!                                                                               └─▶ container.rs: RUN
//! ```
//!
//! One call is one build. It ends with its client: containers of RUN are killed then, and nothing of them stays.

mod container;
mod context;
mod node;
mod relay;
mod secrets;
mod start;
mod steps;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rorqual_image::build::{BuildError, Built, Cancel, Event, OutputStream, build};
use rorqual_image::diff::Folders;
use rorqual_image::{SaveFormat, Saved};
use rorqual_proto::wire::{self, build_event, build_request, build_response};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use self::context::Answers;
use self::node::Node;
pub(crate) use self::secrets::sweep as sweep_secrets;
use self::start::{Around, Start};
use crate::agent::Agent;
use crate::error::one_line;

/// Messages that wait for a slow client; the build waits with them.
const RESPONSES: usize = 64;

/// What one message carries of an archive.
const PIECE_BYTES: usize = 256 << 10;

/// What a client gets.
pub(crate) type Responses = ReceiverStream<Result<wire::BuildResponse, Status>>;
type Sender = mpsc::Sender<Result<wire::BuildResponse, Status>>;

/// Ids of containers that builds have started and not taken away yet.
#[derive(Clone, Default)]
pub(crate) struct BuildContainers(Arc<Mutex<BTreeSet<String>>>);

impl BuildContainers {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.lock().iter().cloned().collect()
    }
}

/// Begins a build.
pub(crate) async fn start(
    agent: &Agent,
    mut requests: Streaming<wire::BuildRequest>,
) -> Result<Responses, Status> {
    let first = requests.message().await?.and_then(|request| request.kind);
    let Some(build_request::Kind::Start(start)) = first else {
        return Err(Status::invalid_argument("the first message of Build says what to build"));
    };
    let (sender, receiver) = mpsc::channel(RESPONSES);
    let answers = Answers::default();
    let cancel = Cancel::default();
    let around = Around {
        images: agent.images().clone(),
        runtime: tokio::runtime::Handle::current(),
        sender: sender.clone(),
        answers: answers.clone(),
        cancel: cancel.clone(),
    };
    let start = Start::read(start, &around)?;
    // Ends with the client; questions that wait for it are told then.
    tokio::spawn(sort(requests, answers, cancel.clone(), sender.clone()));
    let (agent, runtime) = (agent.clone(), tokio::runtime::Handle::current());
    // Builds take minutes and wait most of the time: a thread of its own, not one of tokio's few.
    let spawned = std::thread::Builder::new().name("build".to_owned()).spawn(move || {
        let outcome = work(&agent, &runtime, &start, &sender, &cancel);
        agent.images().note_change();
        let last = outcome.map(|built| result(&built));
        // A client that is gone does not want to know.
        let _ = sender.blocking_send(last);
    });
    spawned.map_err(|error| Status::resource_exhausted(format!("no thread for the build: {error}")))?;
    Ok(ReceiverStream::new(receiver))
}

/// Passes the client's answers on to who asked.
async fn sort(mut requests: Streaming<wire::BuildRequest>, answers: Answers, cancel: Cancel, sender: Sender) {
    loop {
        // Both arms are cancel-safe: a message that was not taken is there the next time, and the other only waits.
        let message = tokio::select! {
            message = requests.message() => message,
            () = sender.closed() => break,
        };
        match message {
            Ok(Some(wire::BuildRequest { kind: Some(build_request::Kind::Answer(answer)) })) => {
                answers.pass_on(answer).await;
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    cancel.cancel();
    answers.close();
}

fn work(
    agent: &Agent,
    runtime: &tokio::runtime::Handle,
    start: &Start,
    sender: &Sender,
    cancel: &Cancel,
) -> Result<Built, Status> {
    let node = Node::new(agent.clone(), runtime.clone(), start.context.clone());
    let events = sender.clone();
    let report: rorqual_image::build::Report = Arc::new(move |event| {
        let kind = Some(build_response::Kind::Event(wire_event(event)));
        // Whoever does not listen has cancelled the build by that.
        let _ = events.blocking_send(Ok(wire::BuildResponse { kind }));
    });
    let store = agent.images().store();
    let built = build(store, &node, &start.context, &start.options, &report, cancel)
        .map_err(|error| status(&error))?;
    let mut archive = Pieces::of_output(sender);
    let failed = |error: rorqual_image::Error| Status::internal(format!("the output: {}", one_line(&error)));
    let saved = Saved { digest: built.digest.clone(), names: start.options.tags.clone() };
    match start.output {
        wire::BuildOutput::Unspecified => return Ok(built),
        wire::BuildOutput::Oci => store.save(&[saved], SaveFormat::Oci, &mut archive).map_err(failed)?,
        wire::BuildOutput::Docker => {
            store.save(&[saved], SaveFormat::Docker, &mut archive).map_err(failed)?
        }
        wire::BuildOutput::Files => export(store, &built, &mut archive).map_err(failed)?,
    }
    archive.flush().map_err(|error| Status::internal(format!("the output: {error}")))?;
    Ok(built)
}

/// The image's files as one archive.
fn export(
    store: &rorqual_image::Store,
    built: &Built,
    archive: &mut dyn Write,
) -> Result<(), rorqual_image::Error> {
    let prepared = store.prepare_any(&built.digest)?;
    let mut layers = prepared.layers.clone();
    let upper = layers.remove(0);
    rorqual_image::diff::export(&Folders { upper, lowers: layers, mount_points: Vec::new() }, archive)
        .map(drop)
}

/// Sends what is written to the client.
struct Pieces<'a> {
    sender: &'a Sender,
    /// Which of the client's archives it is.
    kind: fn(Bytes) -> build_response::Kind,
    buffer: Vec<u8>,
}

impl<'a> Pieces<'a> {
    fn of_output(sender: &'a Sender) -> Self {
        Pieces { sender, kind: build_response::Kind::Output, buffer: Vec::new() }
    }

    fn of_steps(sender: &'a Sender) -> Self {
        Pieces { sender, kind: build_response::Kind::Cache, buffer: Vec::new() }
    }
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let output = Bytes::from(std::mem::take(&mut self.buffer));
        let message = wire::BuildResponse { kind: Some((self.kind)(output)) };
        self.sender.blocking_send(Ok(message)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn wire_event(event: Event) -> wire::BuildEvent {
    use build_event::Kind;
    let plain =
        |kind: Kind, step| wire::BuildEvent { kind: kind.into(), step, ..wire::BuildEvent::default() };
    match event {
        Event::Started { step, name } => wire::BuildEvent { text: name, ..plain(Kind::Started, step) },
        Event::Output { step, stream, bytes } => wire::BuildEvent {
            data: bytes.into(),
            is_stderr: stream == OutputStream::Stderr,
            ..plain(Kind::Output, step)
        },
        Event::Done { step, cached: true } => plain(Kind::Cached, step),
        Event::Done { step, cached: false } => plain(Kind::Done, step),
        Event::Failed { step } => plain(Kind::Failed, step),
        Event::Warning(text) => wire::BuildEvent { text, ..plain(Kind::Warning, 0) },
    }
}

fn result(built: &Built) -> wire::BuildResponse {
    let result =
        wire::BuildResult { digest: built.digest.to_string(), config_digest: built.config.to_string() };
    wire::BuildResponse { kind: Some(build_response::Kind::Result(result)) }
}

fn status(error: &BuildError) -> Status {
    let code = match error {
        BuildError::Syntax(_) | BuildError::Option { .. } => Code::InvalidArgument,
        BuildError::Cancelled => Code::Cancelled,
        BuildError::Command { .. } => Code::FailedPrecondition,
        BuildError::Store(source) | BuildError::Step { source, .. }
            if matches!(**source, rorqual_image::Error::DiskFull { .. }) =>
        {
            Code::ResourceExhausted
        }
        _ => Code::FailedPrecondition,
    };
    Status::new(code, message(error))
}

/// The cause comes before the lines of the Dockerfile, which are the last thing that is read.
fn message(error: &BuildError) -> String {
    match error {
        BuildError::Step { place, instruction, source } => {
            format!("{place}: {instruction} failed: {}{}", one_line(&**source), place.excerpt())
        }
        error => one_line(error),
    }
}
