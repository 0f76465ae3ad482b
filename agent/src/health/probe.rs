//! Asks one container again and again.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;

use rorqual_proto::model::Health;
use rorqual_runtime::attach::{Decoder, Frame};
use rorqual_runtime::{Exec, ExitStatus, Runtime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;

use super::state::State;
use super::{Asked, Check};
use crate::clock;
use crate::error::one_line;
use crate::workload::Event;

/// As much of a command's output is kept, as with Docker.
const OUTPUT_BYTES: usize = 4096;

/// As much of it is told with the container's status.
const TOLD_CHARS: usize = 200;

/// A status line is not longer.
const STATUS_LINE_BYTES: usize = 512;

const READ_BYTES: usize = 4096;

/// Whom to ask, and what.
pub(crate) struct Prober {
    runtime: Arc<Runtime>,
    id: String,
    address: Option<IpAddr>,
    check: Check,
}

impl Prober {
    /// `address`: where the node reaches the container.
    pub(crate) fn new(runtime: Arc<Runtime>, id: String, address: Option<IpAddr>, check: Check) -> Self {
        Self { runtime, id, address, check }
    }

    /// Asks until it is dropped, and tells what changes. `known` is the container's health as it is known from before.
    pub(crate) async fn run(self, known: Option<Health>, events: &mpsc::Sender<Event>) {
        let known = known.unwrap_or(Health::Starting);
        let mut state = State::new(self.check.times, known, clock::steady_ms());
        loop {
            let timeout = self.check.times.timeout;
            let answer = match tokio::time::timeout(timeout, self.ask()).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {timeout:?}")),
            };
            if state.take(answer.is_ok(), clock::steady_ms()) {
                let note = answer.err().unwrap_or_default();
                tracing::info!(container = %self.id, health = ?state.health(), note, "health");
                if events.send(Event::Health { health: state.health(), note }).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(state.pause()).await;
        }
    }

    /// Once; the error says what was wrong, for people. Dropped, it ends what it has started.
    async fn ask(&self) -> Result<(), String> {
        match &self.check.asked {
            Asked::Command(args) => self.command(args).await,
            Asked::Http { port, path } => self.http(*port, path).await,
            Asked::Tcp { port } => self.connect(*port).await.map(drop),
        }
    }

    async fn command(&self, args: &[String]) -> Result<(), String> {
        let exec = Exec { args: args.to_vec(), ..Exec::default() };
        let (runtime, id) = (self.runtime.clone(), self.id.clone());
        // One that comes about after nobody waits for it any more is killed as well.
        let begun = tokio::task::spawn_blocking(move || {
            let socket = runtime.exec(&id, &exec).map_err(|error| one_line(&error))?;
            Ok::<_, String>(Program { socket, ended: false })
        });
        let mut program = begun.await.map_err(|_| "the agent is shutting down".to_owned())??;
        let (status, output) = program.end().await?;
        if status.code == 0 {
            return Ok(());
        }
        let output = String::from_utf8_lossy(&output);
        let told: String = output.trim().chars().take(TOLD_CHARS).collect();
        Err(match told.replace('\n', " ") {
            told if told.is_empty() => format!("exit code {}", status.code),
            told => format!("exit code {}: {told}", status.code),
        })
    }

    async fn connect(&self, port: u16) -> Result<TcpStream, String> {
        let address = self.address.ok_or("the container has no network in which it could be asked")?;
        let to = SocketAddr::new(address, port);
        TcpStream::connect(to).await.map_err(|error| format!("connecting to port {port}: {error}"))
    }

    async fn http(&self, port: u16, path: &str) -> Result<(), String> {
        let mut stream = self.connect(port).await?;
        let host = self.address.map(|address| address.to_string()).unwrap_or_default();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: rorqual-health\r\nAccept: */*\r\nConnection: \
             close\r\n\r\n"
        );
        let failed = |error: std::io::Error| format!("GET {path} from port {port}: {error}");
        stream.write_all(request.as_bytes()).await.map_err(failed)?;
        let mut line = Vec::new();
        let mut buffer = [0; STATUS_LINE_BYTES];
        while !line.contains(&b'\n') && line.len() < STATUS_LINE_BYTES {
            match stream.read(&mut buffer).await.map_err(failed)? {
                0 => break,
                count => line.extend_from_slice(&buffer[..count]),
            }
        }
        let line = String::from_utf8_lossy(&line);
        let status = line.strip_prefix("HTTP/").and_then(|rest| rest.split_whitespace().nth(1));
        match status.and_then(|status| status.parse::<u16>().ok()) {
            Some(200..=399) => Ok(()),
            Some(status) => Err(format!("GET {path} from port {port}: status {status}")),
            None => Err(format!("GET {path} from port {port}: what answers does not speak HTTP")),
        }
    }
}

/// A command that runs in the container. One that is given up is killed.
struct Program {
    socket: StdUnixStream,
    ended: bool,
}

impl Program {
    /// How it ended, and the first of what it wrote.
    async fn end(&mut self) -> Result<(ExitStatus, Vec<u8>), String> {
        let (mut decoder, mut output) = (Decoder::default(), Vec::new());
        let mut buffer = vec![0; READ_BYTES];
        let stream = self.socket.set_nonblocking(true).and_then(|()| self.socket.try_clone());
        let mut stream = stream.and_then(UnixStream::from_std).map_err(|error| error.to_string())?;
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return Err("the container has ended".to_owned()),
                Ok(count) => decoder.take(&buffer[..count]),
            }
            while let Some(frame) = decoder.frame().map_err(|error| error.to_string())? {
                match frame {
                    Frame::Output(bytes) | Frame::ErrorOutput(bytes) => {
                        let room = OUTPUT_BYTES - output.len().min(OUTPUT_BYTES);
                        output.extend_from_slice(&bytes[..bytes.len().min(room)]);
                    }
                    Frame::Exited(json) => {
                        self.ended = true;
                        let status = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
                        return Ok((status, output));
                    }
                    _ => {}
                }
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.ended {
            // A socket that does not take five bytes is that of a monitor that does not live any more.
            let _ = self.socket.write(&Frame::Kill.encode());
        }
    }
}
