//! A container's input and output on this terminal: what `exec`, `attach` and `run --interactive` have in common.
//!
//! Standard input is read by a thread of its own, since reads of it can't be cancelled; it ends with the process.

use std::io::{self, Read as _};

use rorqual_proto::wire::{
    AttachStart, EndOfInput, StreamRequest, StreamResponse, TerminalSize, stream_request::Kind,
    stream_response,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::detach::{Keys, Typed};
use crate::connect::Daemon;
use crate::failure::{Failure, Result};
use crate::terminal::{self, Raw};
use crate::{output, parse};

/// Messages to the daemon that wait to be sent.
const REQUESTS: usize = 16;

const READ_BYTES: usize = 16 * 1024;

/// What is passed on to the container.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Standard input.
    pub(crate) input: bool,
    /// Keys that leave the container to itself; only at a terminal.
    pub(crate) detach_keys: Keys,
}

/// How a stream ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With the program, which gave this code.
    Exited(i32),
    /// The user left it with the detach keys.
    Detached,
}

/// The client's half before the call: its first message is in it.
pub(crate) struct Requests {
    sender: mpsc::Sender<StreamRequest>,
    receiver: mpsc::Receiver<StreamRequest>,
}

impl Requests {
    pub(crate) fn starting_with(first: Kind) -> Self {
        let (sender, receiver) = mpsc::channel(REQUESTS);
        // There is room for the first one.
        let _ = sender.try_send(StreamRequest { kind: Some(first) });
        Self { sender, receiver }
    }

    /// What the call takes, and the way to say more.
    pub(crate) fn split(self) -> (ReceiverStream<StreamRequest>, mpsc::Sender<StreamRequest>) {
        (ReceiverStream::new(self.receiver), self.sender)
    }
}

/// Attaches to a container's first process and stays with it. A `Status` says that the daemon refused.
pub(crate) async fn to_container(
    daemon: &Daemon,
    name: String,
    wanted: Wanted,
) -> Result<Result<End>, Status> {
    let (requests, sender) = Requests::starting_with(Kind::Attach(AttachStart { name })).split();
    let response = daemon.engine().attach(requests).await?;
    Ok(follow(response, sender, wanted).await)
}

/// Stays with the program to its end.
pub(crate) async fn follow(
    response: Response<Streaming<StreamResponse>>,
    sender: mpsc::Sender<StreamRequest>,
    wanted: Wanted,
) -> Result<End> {
    let mut responses = response.into_inner();
    let tty = match responses.message().await? {
        Some(StreamResponse { kind: Some(stream_response::Kind::Started(started)) }) => started.tty,
        _ => return Err(Failure::operation("rorquald did not say that the program runs")),
    };
    let raw = if tty && wanted.input && terminal::is_interactive() { Some(Raw::enter()?) } else { None };
    let (typed, mut detached) = mpsc::channel(1);
    if wanted.input {
        let keys = raw.is_some().then_some(wanted.detach_keys);
        read_input(sender.clone(), keys, typed);
    }
    if tty {
        tokio::spawn(resize(sender.clone()));
    }
    loop {
        // Cancel-safe both: a message or a word that has come stays until it is taken.
        let message = tokio::select! {
            message = responses.message() => message,
            Some(()) = detached.recv() => return Ok(End::Detached),
        };
        match message?.and_then(|response| response.kind) {
            Some(stream_response::Kind::Output(bytes)) => output::container("stdout", &bytes)?,
            Some(stream_response::Kind::ErrorOutput(bytes)) => output::container("stderr", &bytes)?,
            Some(stream_response::Kind::ExitCode(code)) => return Ok(End::Exited(code)),
            Some(stream_response::Kind::Refused(why)) => output::complain(&why),
            Some(stream_response::Kind::Started(_)) => {}
            None => return Err(Failure::from(Status::unavailable("the stream ended early"))),
        }
    }
}

fn read_input(sender: mpsc::Sender<StreamRequest>, keys: Option<Keys>, left: mpsc::Sender<()>) {
    std::thread::spawn(move || {
        let mut typed = keys.map(Typed::new);
        let mut buffer = vec![0; READ_BYTES];
        let mut input = io::stdin().lock();
        loop {
            let kind = match input.read(&mut buffer) {
                Ok(0) => Kind::EndOfInput(EndOfInput {}),
                Ok(count) => {
                    let (bytes, leaving) = match &mut typed {
                        Some(typed) => typed.take(&buffer[..count]),
                        None => (buffer[..count].to_vec(), false),
                    };
                    if leaving {
                        let _ = left.blocking_send(());
                        return;
                    }
                    Kind::Input(bytes)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => Kind::EndOfInput(EndOfInput {}),
            };
            let last = matches!(kind, Kind::EndOfInput(_));
            // Nobody takes it any more: the program has ended.
            if sender.blocking_send(StreamRequest { kind: Some(kind) }).is_err() || last {
                return;
            }
        }
    });
}

/// Tells the container's terminal the size of this one, now and with every change.
async fn resize(sender: mpsc::Sender<StreamRequest>) {
    let Ok(mut changed) = signal(SignalKind::window_change()) else { return };
    loop {
        let Some(size) = terminal::size() else { return };
        if sender.send(StreamRequest { kind: Some(Kind::Resize(size)) }).await.is_err() {
            return;
        }
        if changed.recv().await.is_none() {
            return;
        }
    }
}

/// The size to begin with.
pub(crate) fn size(tty: bool) -> Option<TerminalSize> {
    terminal::size().filter(|_| tty)
}

/// Reads `--detach-keys`.
pub(crate) fn detach_keys(text: &str) -> Result<Keys, String> {
    parse::keys(text).map(Keys::new)
}
