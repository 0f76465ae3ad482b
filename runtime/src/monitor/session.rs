//! A further program in the container (`exec`): started for a client, with its input and output. It is this monitor's
//! child, so it goes on when the client or the daemon goes.
//!
//! ```text
//! client: Execute ──▶ begin: this program anew as a helper (see `super::helper`), which enters the container and
//!                     starts the program; it tells by its channel of the terminal, the pid or the failure, and ends
//!         ◀── Executed / NotExecuted           the program is ours from then on: we are its reaper
//!         ◀── Output, ErrorOutput, Exited      once it has ended and its output is read
//! ```

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio as Inherit};
use std::time::{Duration, Instant};

use super::clients::{ClientId, Clients};
use super::stdio::Stdio;
use super::{HELPER, wait_code};
use crate::api::ExitStatus;
use crate::attach::{Frame, encode};
use crate::init::Failure;
use crate::log::Stream;
use crate::record;
use crate::spawn::{Ask, Channel, channel};
use crate::sys;

/// More programs are not executed in one container at the same time.
const SESSIONS: usize = 64;

/// No connection has this number.
const NOBODY: ClientId = ClientId::MAX;

/// Reads of one stream before the others get their turn.
const ROUNDS: usize = 16;

/// While its client has so much to read, a program's output waits.
const UNREAD_BYTES: usize = 256 * 1024;

/// How long output is waited for after a program has ended.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// How a program is to be started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) terminal: bool,
    pub(super) stdin: bool,
}

/// One program.
#[derive(Debug)]
struct Session {
    client: ClientId,
    /// Where the helper tells; gone once it has ended.
    helper: Option<Channel>,
    pid: Option<i32>,
    stdio: Stdio,
    ended: Option<(ExitStatus, Instant)>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    list: Vec<Session>,
}

impl Sessions {
    /// Starts a program for a client: `request` goes to the helper as it is.
    pub(super) fn begin(
        &mut self,
        client: ClientId,
        wanted: Wanted,
        request: &[u8],
        runtime_dir: &Path,
    ) -> Result<(), Failure> {
        if self.list.len() >= SESSIONS {
            let many =
                io::Error::other(format!("{SESSIONS} programs are executed in this container already"));
            return Err(Failure::step("executing one more program", &many));
        }
        let session = Session::begin(client, wanted, request, runtime_dir);
        self.list.push(session.map_err(|error| Failure::step("starting the helper", &error))?);
        Ok(())
    }

    /// What to wait for; poll(2) passes over negative numbers.
    pub(super) fn interests(&self, clients: &Clients) -> Vec<(RawFd, i16)> {
        let mut all = Vec::new();
        for session in &self.list {
            all.push((session.helper.as_ref().map_or(-1, Channel::number), libc::POLLIN));
            all.push((session.stdio.room().unwrap_or(-1), libc::POLLOUT));
            let patient = session.pid.is_none() || clients.unread(session.client) > UNREAD_BYTES;
            for stream in &session.stdio.streams {
                let fd = stream.as_ref().filter(|_| !patient).map_or(-1, |file| file.as_raw_fd());
                all.push((fd, libc::POLLIN));
            }
        }
        all
    }

    /// Does all that can be done now.
    pub(super) fn serve(&mut self, clients: &mut Clients) {
        for session in &mut self.list {
            session.listen(clients);
            session.read_streams(clients);
            session.stdio.flush();
        }
        self.list.retain_mut(|session| !session.end(clients));
    }

    /// Takes what a client says that executes something; `None` if it does not.
    pub(super) fn take(&mut self, client: ClientId, frame: &Frame) -> Option<Result<(), String>> {
        let session = self.list.iter_mut().find(|session| session.client == client)?;
        match frame {
            Frame::Kill => Some(session.kill()),
            _ => Some(session.stdio.take(frame)),
        }
    }

    /// Whether this client executes something.
    pub(super) fn has(&self, client: ClientId) -> bool {
        self.list.iter().any(|session| session.client == client)
    }

    /// Whether the input of this client's program can be taken now.
    pub(super) fn has_room(&self, client: ClientId) -> bool {
        let session = self.list.iter().find(|session| session.client == client);
        session.is_none_or(|session| session.stdio.has_room())
    }

    /// A child of ours has ended.
    pub(super) fn note_end(&mut self, pid: i32, status: i32, clients: &mut Clients) {
        // Whoever made it has told of it before it became our child.
        self.list.iter_mut().for_each(|session| session.listen(clients));
        if let Some(session) = self.list.iter_mut().find(|session| session.pid == Some(pid)) {
            let (code, signal) = wait_code(status);
            let finished_at_ms = record::now_ms();
            let status = ExitStatus { code, signal, oom_killed: false, finished_at_ms };
            session.ended = Some((status, Instant::now()));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether a program has ended whose output is still waited for.
    pub(super) fn in_grace(&self) -> bool {
        self.list.iter().any(|session| session.ended.is_some())
    }

    /// The container has ended, and every program in it with it.
    pub(super) fn end_all(&mut self, clients: &mut Clients) {
        for session in &mut self.list {
            let code = 128 + libc::SIGKILL;
            let killed = || ExitStatus {
                code,
                signal: Some(libc::SIGKILL),
                oom_killed: false,
                finished_at_ms: record::now_ms(),
            };
            session.ended.get_or_insert_with(|| (killed(), Instant::now()));
            session.stdio.streams = [None, None];
            session.end(clients);
        }
        self.list.clear();
    }
}

impl Session {
    fn begin(client: ClientId, wanted: Wanted, request: &[u8], runtime_dir: &Path) -> io::Result<Session> {
        let (ours, theirs) = channel()?;
        let (stdin, stdin_in) =
            if wanted.stdin && !wanted.terminal { Some(sys::pipe()?) } else { None }.unzip();
        let (stdout, stdout_in) = if wanted.terminal { None } else { Some(sys::pipe()?) }.unzip();
        let (stderr, stderr_in) = if wanted.terminal { None } else { Some(sys::pipe()?) }.unzip();
        // A pipe takes 64 KiB at once, and a frame is not longer.
        let (asked, asking) = sys::pipe()?;
        sys::set_nonblocking(asking.as_fd())?;
        File::from(asking).write_all(request)?;
        let (theirs, asked) = (theirs.into_fd(), asked);
        for fd in [&theirs, &asked] {
            sys::set_cloexec(fd.as_fd(), false)?;
        }
        let inherit = |fd: Option<OwnedFd>| fd.map_or_else(Inherit::null, Inherit::from);
        let helper = Command::new("/proc/self/exe")
            .arg0("rorqual-monitor")
            .args(["monitor", HELPER])
            .arg(runtime_dir)
            .arg(theirs.as_raw_fd().to_string())
            .arg(asked.as_raw_fd().to_string())
            .env_clear()
            .stdin(inherit(stdin))
            .stdout(inherit(stdout_in))
            .stderr(inherit(stderr_in))
            .spawn();
        // Reaped with everybody else.
        drop(helper?);
        let stdio = Stdio::of_pipes(stdout, stderr, stdin_in)?;
        Ok(Session { client, helper: Some(ours), pid: None, stdio, ended: None })
    }

    /// Ends the program. One that is not there yet, or has ended, needs no more.
    fn kill(&self) -> Result<(), String> {
        match self.pid.filter(|_| self.ended.is_none()) {
            // It is our child and not waited for yet: nobody else has its number.
            Some(pid) => {
                sys::kill(pid, libc::SIGKILL).map_err(|error| format!("killing the program: {error}"))
            }
            None => Ok(()),
        }
    }

    /// Takes what the helper tells.
    fn listen(&mut self, clients: &mut Clients) {
        while let Some(helper) = self.helper.as_ref().filter(|helper| helper.has_word().unwrap_or(true)) {
            let told = helper.receive();
            match told {
                Ok(Some((Ask::Terminal, Some(terminal)))) => {
                    let taken = Stdio::of_terminal(terminal).map(|stdio| self.stdio = stdio);
                    let answer = taken.map_err(|error| Failure::step("taking the terminal", &error));
                    // If it is not there any more, its end tells.
                    let _ = helper.answer(answer.as_ref().map(|done| *done));
                }
                Ok(Some((Ask::Born(pid), _))) => {
                    self.pid = Some(pid);
                    clients.send(self.client, &Frame::Executed.encode());
                }
                Ok(Some((Ask::Failed(failure), _))) => return self.fail(&failure, clients),
                Ok(None) if self.pid.is_some() => self.helper = None,
                Ok(None) => {
                    let gone = io::Error::other("it ended without a word");
                    return self.fail(&Failure::step("waiting for the helper", &gone), clients);
                }
                Ok(Some(_)) => {}
                Err(error) => return self.fail(&Failure::step("listening to the helper", &error), clients),
            }
        }
    }

    fn fail(&mut self, failure: &Failure, clients: &mut Clients) {
        self.helper = None;
        if self.pid.is_none() {
            let json = serde_json::to_vec(failure).unwrap_or_default();
            clients.send(self.client, &encode(b'N', &json));
            clients.release(self.client);
            // Nothing runs, so nothing is waited for.
            self.stdio = Stdio::closed();
            let status = ExitStatus { code: 255, signal: None, oom_killed: false, finished_at_ms: 0 };
            self.ended = Some((status, Instant::now()));
            self.client = NOBODY;
        }
    }

    fn read_streams(&mut self, clients: &mut Clients) {
        if self.pid.is_none() {
            // The client hears first that it runs.
            return;
        }
        let mut buffer = [0; 16 * 1024];
        for (index, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            for _ in 0..ROUNDS {
                let Some(file) = &mut self.stdio.streams[index] else { break };
                if clients.unread(self.client) > UNREAD_BYTES {
                    break;
                }
                match file.read(&mut buffer) {
                    Ok(count) if count > 0 => clients.send_output(self.client, stream, &buffer[..count]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // The end; a terminal's is an error.
                    Ok(_) | Err(_) => self.stdio.streams[index] = None,
                }
            }
        }
        if !clients.is_there(self.client) {
            // Nobody is left who could say more, and nobody who reads: the program's input ends, its output goes on
            // to be read, so that it is not stopped by a full pipe.
            self.stdio.end_input();
        }
    }

    /// Tells the client of the end, once the program has ended and its output is read; `true` when all is over.
    fn end(&mut self, clients: &mut Clients) -> bool {
        let Some((status, since)) = &self.ended else { return false };
        // What it left in the background may hold its pipes for ever.
        if self.stdio.streams.iter().any(Option::is_some) && since.elapsed() < GRACE {
            return false;
        }
        clients.send(self.client, &encode(b'S', record::exit_line(status).trim_end().as_bytes()));
        clients.release(self.client);
        true
    }
}
