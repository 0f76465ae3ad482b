//! Looks after a running container: writes its logs, passes input and output on to those who are attached, tells them
//! of its end, records its end. Keeps little in
//! memory, since there is one of it per container: no JSON library, no thread, buffers only where something flows.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::clients::{ClientId, Clients};
use super::session::{Sessions, Wanted};
use super::stdio::{Stdio, handed_over};
use super::wait_code;
use crate::api::{ExitStatus, LogPolicy};
use crate::attach::Frame;
use crate::log::Stream;
use crate::log::writer::LogWriter;
use crate::record;
use crate::sys;

/// How long output is waited for after the first process has ended. All others of its pid namespace are gone by then,
/// so that only one who took a descriptor elsewhere can keep a pipe open.
const DRAIN: Duration = Duration::from_secs(1);

/// How long clients may take to read what they were sent when the container has ended.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a container that takes input wrote before anybody was attached is kept up to this size: its first prompt is for
/// the first one who attaches.
const PROLOGUE_BYTES: usize = 64 * 1024;

/// Reads of one stream before the others get their turn.
const ROUNDS: usize = 16;

struct Server {
    pid: i32,
    dir: PathBuf,
    /// Where the kernel counts its kills for want of memory.
    oom: PathBuf,
    signals: File,
    clients: Clients,
    stdio: Stdio,
    sessions: Sessions,
    runtime_dir: PathBuf,
    /// Nobody was attached yet.
    prologue: Option<Vec<(Stream, Vec<u8>)>>,
    log: LogWriter,
    /// The container's mounts. A process that ends as the last one in a mount namespace takes it down before anybody hears
    /// of its end, and with an overlay goes all that the disk below it has not written yet: that has to wait for us.
    mounts: Option<File>,
    /// Held as long as we live.
    _lock: OwnedFd,
}

/// Serves until the container has ended.
pub(super) fn run(args: &[String]) -> u8 {
    let Some(mut server) = Server::from_args(args) else { return 2 };
    let status = server.until_the_end();
    server.record_end(&status);
    0
}

impl Server {
    fn from_args(args: &[String]) -> Option<Server> {
        let [_id, pid, stdio, listener, lock, max_bytes, max_files, dir, oom, runtime_dir] = args else {
            return None;
        };
        let stdio = Stdio::from_word(stdio)?;
        for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT] {
            sys::ignore_signal(signal);
        }
        let signals = sys::signalfd(&[libc::SIGCHLD, libc::SIGTERM]).ok()?;
        let dir = PathBuf::from(dir);
        let policy = LogPolicy { max_bytes: max_bytes.parse().ok()?, max_files: max_files.parse().ok()? };
        Some(Server {
            pid: pid.parse().ok()?,
            oom: PathBuf::from(oom),
            signals: File::from(signals),
            clients: Clients::new(UnixListener::from(handed_over(listener)?)),
            prologue: stdio.takes_input().then(Vec::new),
            stdio,
            sessions: Sessions::default(),
            runtime_dir: PathBuf::from(runtime_dir),
            log: LogWriter::open(dir.clone(), policy),
            // A container that has ended by now has none any more.
            mounts: File::open(format!("/proc/{pid}/ns/mnt")).ok(),
            _lock: handed_over(lock)?,
            dir,
        })
    }

    /// Serves; returns how the first process ended, once its output is in the log.
    fn until_the_end(&mut self) -> ExitStatus {
        // It may have ended before the signals were looked for.
        let mut ended = self.reap();
        while ended.is_none() {
            self.wait(if self.sessions.in_grace() { 50 } else { -1 });
            if let Some(signal) = self.next_signal() {
                if signal == libc::SIGTERM {
                    // The machine is shut down: the container's turn to end by itself.
                    let _ = sys::kill(self.pid, libc::SIGTERM);
                }
                ended = self.reap();
            }
        }
        self.clients.announce_the_end();
        self.mounts = None;
        let deadline = Instant::now() + DRAIN;
        while self.is_draining() && Instant::now() < deadline {
            self.read_streams();
            if self.is_draining() {
                self.wait(50);
                self.reap();
            }
        }
        self.sessions.end_all(&mut self.clients);
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.log.finish(stream);
        }
        let (code, signal) = ended.unwrap_or((255, None));
        ExitStatus { code, signal, oom_killed: oom_kills(&self.oom) > 0, finished_at_ms: record::now_ms() }
    }

    fn is_draining(&self) -> bool {
        self.stdio.streams.iter().any(Option::is_some) || !self.sessions.is_empty()
    }

    /// Reaps everything that has ended; returns code and signal if the container's first process is among it.
    fn reap(&mut self) -> Option<(i32, Option<i32>)> {
        let mut ended = None;
        while let Some((pid, status)) = sys::reap() {
            if pid == self.pid {
                ended = Some(wait_code(status));
            } else {
                self.sessions.note_end(pid, status, &mut self.clients);
            }
        }
        if !self.sessions.is_empty() {
            self.sessions.serve(&mut self.clients);
        }
        ended
    }

    fn next_signal(&mut self) -> Option<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.signals.read_exact(&mut info).ok()?;
        // The number is the first field.
        Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
    }

    /// Waits until there is something to do, and does what clients and streams want.
    fn wait(&mut self, timeout_ms: i32) {
        let Server { signals, stdio, sessions, clients, .. } = self;
        // poll(2) passes over negative numbers.
        let number = |file: &Option<File>| file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let mut interests =
            vec![(signals.as_raw_fd(), libc::POLLIN), (stdio.room().unwrap_or(-1), libc::POLLOUT)];
        interests.extend(stdio.streams.iter().map(|file| (number(file), libc::POLLIN)));
        interests.extend(sessions.interests(clients));
        let first_client = interests.len() + 1;
        let room = stdio.has_room();
        interests.extend(clients.interests(|id| if sessions.has(id) { sessions.has_room(id) } else { room }));
        let poll = |(fd, events)| libc::pollfd { fd, events, revents: 0 };
        let mut fds: Vec<_> = interests.into_iter().map(poll).collect();
        if sys::poll(&mut fds, timeout_ms).is_err() {
            return;
        }
        self.stdio.flush();
        self.read_streams();
        for (client, frames) in self.clients.serve(&fds[first_client..]) {
            frames.into_iter().for_each(|frame| self.answer(client, &frame));
        }
        if !self.sessions.is_empty() {
            self.sessions.serve(&mut self.clients);
        }
        self.clients.sweep();
        self.clients.accept();
    }

    fn read_streams(&mut self) {
        let mut buffer = [0; 16 * 1024];
        for (index, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            // A bounded number of rounds, so that one noisy stream does not keep the other and the socket waiting.
            for _ in 0..ROUNDS {
                let Some(file) = &mut self.stdio.streams[index] else { break };
                match file.read(&mut buffer) {
                    Ok(count) if count > 0 => self.output(stream, &buffer[..count]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // The end; a terminal's is an error (EIO), when nobody in the container has it open any more.
                    Ok(_) | Err(_) => {
                        self.stdio.streams[index] = None;
                        self.log.finish(stream);
                    }
                }
            }
        }
    }

    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        self.log.take(stream, bytes);
        if !self.clients.output(stream, bytes)
            && let Some(prologue) = &mut self.prologue
        {
            let kept: usize = prologue.iter().map(|(_, bytes)| bytes.len()).sum();
            prologue.push((stream, bytes[..bytes.len().min(PROLOGUE_BYTES - kept)].to_vec()));
        }
    }

    /// Does what a client asks for.
    fn answer(&mut self, client: ClientId, frame: &Frame) {
        let done = match frame {
            Frame::Attach => {
                self.clients.attach(client);
                for (stream, bytes) in self.prologue.take().unwrap_or_default() {
                    self.clients.send_output(client, stream, &bytes);
                }
                Ok(())
            }
            Frame::Execute { terminal, stdin, request } if self.clients.execute(client) => {
                let wanted = Wanted { terminal: *terminal, stdin: *stdin };
                let begun = self.sessions.begin(client, wanted, request, &self.runtime_dir);
                if let Err(failure) = begun {
                    let json = serde_json::to_vec(&failure).unwrap_or_default();
                    self.clients.send(client, &Frame::NotExecuted(json).encode());
                    self.clients.release(client);
                }
                Ok(())
            }
            frame => self.sessions.take(client, frame).unwrap_or_else(|| self.stdio.take(frame)),
        };
        if let Err(why) = done {
            self.clients.send(client, &Frame::Refused(why).encode());
        }
    }

    /// Puts the end on disk, then tells it. In this order: who is told may rely on it.
    fn record_end(&mut self, status: &ExitStatus) {
        let line = record::exit_line(status);
        let path = record::exit_path(&self.dir);
        let mut pause = Duration::from_millis(50);
        while let Err(error) = record::write(&path, line.as_bytes(), true) {
            if error.kind() == io::ErrorKind::NotFound || pause > Duration::from_secs(30) {
                // Its directory is gone, or the disk has been full for a minute: watchers are told all the same.
                break;
            }
            std::thread::sleep(pause);
            pause *= 2;
        }
        self.clients.tell_the_end(&line, Instant::now() + FAREWELL);
    }
}

fn oom_kills(path: &Path) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok());
    count.unwrap_or(0)
}
