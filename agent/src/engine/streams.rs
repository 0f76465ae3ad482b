//! Input and output of running containers: `attach` and `exec`. Each call is a bridge between a client's stream and
//! the container's monitor, which owns the descriptors; the daemon keeps nothing, so that what runs goes on without it.
//!
//! ```text
//! client ══ StreamRequest ══▶ forward ── frames ──▶ monitor's socket
//!        ◀═ StreamResponse ══ backward ◀─ frames ──
//! ```
//!
//! Both halves are one task a call; it ends with the client, or with the monitor's last frame.

use rorqual_proto::wire::{self, stream_request, stream_response};
use rorqual_runtime::attach::{Decoder, FRAME_BYTES, Frame};
use rorqual_runtime::{Error, Exec, ExitStatus, LaunchError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Status, Streaming};

use super::{EXIT_CODE_METADATA, EngineApi};
use crate::error::one_line;

/// What a client gets.
pub(super) type Responses = ReceiverStream<Result<wire::StreamResponse, Status>>;

/// Responses that wait for a slow client; the monitor keeps what does not fit.
const RESPONSES: usize = 16;

const READ_BYTES: usize = 16 * 1024;

/// Attaches to a container's first process.
pub(super) async fn attach(
    api: &EngineApi,
    mut requests: Streaming<wire::StreamRequest>,
) -> Result<Responses, Status> {
    let Some(stream_request::Kind::Attach(start)) = first(&mut requests).await? else {
        return Err(Status::invalid_argument("the first message of Attach says which container"));
    };
    let (id, tty) = api.running(&start.name)?;
    let (runtime, name) = (api.agent.runtime().clone(), start.name);
    let attached = tokio::task::spawn_blocking(move || runtime.attach(&id)).await;
    let socket = attached.map_err(|_| interrupted())?.map_err(|error| refused(&name, &error))?;
    bridge(socket, requests, tty)
}

/// Runs a program in a container.
pub(super) async fn exec(
    api: &EngineApi,
    mut requests: Streaming<wire::StreamRequest>,
) -> Result<Responses, Status> {
    let Some(stream_request::Kind::Exec(start)) = first(&mut requests).await? else {
        return Err(Status::invalid_argument(
            "the first message of Exec says what to run in which container",
        ));
    };
    let (id, _) = api.running(&start.name)?;
    let (name, tty, detach) = (start.name.clone(), start.tty, start.detach);
    let settings = settings(start)?;
    let runtime = api.agent.runtime().clone();
    let executed = tokio::task::spawn_blocking(move || runtime.exec(&id, &settings)).await;
    let socket = executed.map_err(|_| interrupted())?.map_err(|error| not_executed(&name, &error))?;
    if detach {
        return Ok(started_only(tty));
    }
    bridge(socket, requests, tty)
}

async fn first(
    requests: &mut Streaming<wire::StreamRequest>,
) -> Result<Option<stream_request::Kind>, Status> {
    Ok(requests.message().await?.and_then(|request| request.kind))
}

fn settings(start: wire::ExecStart) -> Result<Exec, Status> {
    let wire::ExecStart { args, env, workdir, user, tty, stdin, size, detach, .. } = start;
    if args.first().is_none_or(String::is_empty) {
        return Err(Status::invalid_argument("args: name the program to run"));
    }
    if let Some(entry) = env.iter().find(|entry| !entry.contains('=') || entry.starts_with('=')) {
        return Err(Status::invalid_argument(format!("env: {entry:?} is not NAME=value")));
    }
    let some = |text: String| (!text.is_empty()).then_some(text);
    Ok(Exec {
        args,
        env,
        cwd: some(workdir),
        user: some(user),
        terminal: tty,
        size: size.map(|size| (clamp(size.columns), clamp(size.rows))),
        stdin: stdin && !detach,
    })
}

fn clamp(count: u32) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

fn started_only(tty: bool) -> Responses {
    let (sender, receiver) = mpsc::channel(1);
    // There is room for the one message.
    let _ = sender.try_send(Ok(started(tty)));
    ReceiverStream::new(receiver)
}

fn bridge(
    socket: std::os::unix::net::UnixStream,
    requests: Streaming<wire::StreamRequest>,
    tty: bool,
) -> Result<Responses, Status> {
    let stream = socket.set_nonblocking(true).and_then(|()| UnixStream::from_std(socket));
    let stream = stream.map_err(|error| Status::internal(format!("the monitor's socket: {error}")))?;
    let (reader, writer) = stream.into_split();
    let (sender, receiver) = mpsc::channel(RESPONSES);
    tokio::spawn(async move {
        if sender.send(Ok(started(tty))).await.is_err() {
            return;
        }
        // Cancel-safe as a whole: whichever ends first, the call is over, and the others are dropped with their
        // ends of the socket. A client that only stops sending keeps its forward half waiting.
        tokio::select! {
            () = forward(requests, writer) => {}
            () = backward(reader, &sender) => {}
            // Nobody reads the answers: the client is gone, even if its requests have just ended in good order.
            () = sender.closed() => {}
        }
    });
    Ok(ReceiverStream::new(receiver))
}

/// From the client to the monitor; returns when the client is gone or the monitor does not listen any more.
async fn forward(mut requests: Streaming<wire::StreamRequest>, mut writer: OwnedWriteHalf) {
    loop {
        let frames = match requests.message().await {
            Ok(Some(request)) => request.kind.map(frames).unwrap_or_default(),
            // No more input, but the client still reads.
            Ok(None) => return std::future::pending().await,
            Err(_) => return,
        };
        for frame in frames {
            if writer.write_all(&frame.encode()).await.is_err() {
                // What the monitor has said last is still to be read.
                return std::future::pending().await;
            }
        }
    }
}

fn frames(kind: stream_request::Kind) -> Vec<Frame> {
    match kind {
        stream_request::Kind::Input(bytes) => {
            bytes.chunks(FRAME_BYTES).map(|part| Frame::Input(part.to_vec())).collect()
        }
        stream_request::Kind::EndOfInput(_) => vec![Frame::EndOfInput],
        stream_request::Kind::Resize(size) => {
            vec![Frame::Resize { columns: clamp(size.columns), rows: clamp(size.rows) }]
        }
        // Said once already.
        stream_request::Kind::Attach(_) | stream_request::Kind::Exec(_) => Vec::new(),
    }
}

/// From the monitor to the client; returns with the end of either.
async fn backward(mut reader: OwnedReadHalf, sender: &mpsc::Sender<Result<wire::StreamResponse, Status>>) {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => decoder.take(&buffer[..count]),
        }
        loop {
            match decoder.frame() {
                Ok(Some(frame)) => {
                    let last = matches!(frame, Frame::Exited(_));
                    if sender.send(response(frame)).await.is_err() || last {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    let _ = sender.send(Err(Status::internal(error.to_string()))).await;
                    return;
                }
            }
        }
    }
    let lost = "the container's monitor closed the connection: the container is gone, or its output was not read \
                for too long; `rctl logs` has what it wrote";
    let _ = sender.send(Err(Status::unavailable(lost))).await;
}

fn response(frame: Frame) -> Result<wire::StreamResponse, Status> {
    let kind = match frame {
        Frame::Output(bytes) => stream_response::Kind::Output(bytes),
        Frame::ErrorOutput(bytes) => stream_response::Kind::ErrorOutput(bytes),
        Frame::Refused(why) => stream_response::Kind::Refused(why),
        Frame::Exited(json) => {
            let status: ExitStatus = serde_json::from_slice(&json)
                .map_err(|error| Status::internal(format!("the monitor's last word: {error}")))?;
            stream_response::Kind::ExitCode(status.code)
        }
        _ => return Err(Status::internal("the monitor spoke as a client")),
    };
    Ok(wire::StreamResponse { kind: Some(kind) })
}

fn started(tty: bool) -> wire::StreamResponse {
    wire::StreamResponse { kind: Some(stream_response::Kind::Started(wire::StreamStarted { tty })) }
}

fn interrupted() -> Status {
    Status::unavailable("the agent is shutting down")
}

fn refused(name: &str, error: &Error) -> Status {
    match error {
        Error::NotFound { .. } | Error::NotRunning { .. } => Status::failed_precondition(format!(
            "container {name} is not running: `rctl start {name}` starts it, `rctl logs {name}` has what it wrote"
        )),
        error => Status::internal(one_line(error)),
    }
}

/// Docker's exit codes of `exec` go with it.
fn not_executed(name: &str, error: &LaunchError) -> Status {
    if let LaunchError::Runtime(error @ (Error::NotFound { .. } | Error::NotRunning { .. })) = error {
        return refused(name, error);
    }
    let mut status = Status::failed_precondition(one_line(error));
    status.metadata_mut().insert(EXIT_CODE_METADATA, MetadataValue::from(error.exit_code()));
    status
}
