//! Looks after a running container: writes its logs, tells watchers of its end, records its end. Keeps little in
//! memory, since there is one of it per container: no JSON library, no thread, buffers only where something flows.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::api::{ExitStatus, LogPolicy};
use crate::log::Stream;
use crate::log::writer::LogWriter;
use crate::record;
use crate::sys;

/// More do not watch one container; a further one is turned away.
const WATCHERS: usize = 64;

/// How long output is waited for after the first process has ended. All others of its pid namespace are gone by then,
/// so that only one who took a descriptor elsewhere can keep a pipe open.
const DRAIN: Duration = Duration::from_secs(1);

struct Server {
    pid: i32,
    dir: PathBuf,
    /// Where the kernel counts its kills for want of memory.
    oom: PathBuf,
    signals: File,
    listener: UnixListener,
    streams: [Option<File>; 2],
    watchers: Vec<UnixStream>,
    log: LogWriter,
    /// Held as long as we live.
    _lock: OwnedFd,
}

/// Serves until the container has ended.
pub(super) fn run(args: &[String]) -> ExitCode {
    let Some(mut server) = Server::from_args(args) else { return ExitCode::from(2) };
    let status = server.until_the_end();
    server.record_end(&status);
    ExitCode::SUCCESS
}

impl Server {
    fn from_args(args: &[String]) -> Option<Server> {
        let [_id, pid, stdout, stderr, listener, lock, max_bytes, max_files, dir, oom] = args else {
            return None;
        };
        let fd = |text: &String| {
            let fd = sys::adopt_fd(text.parse().ok()?).ok()?;
            sys::set_cloexec(fd.as_fd(), true).ok()?;
            Some(fd)
        };
        let stream = |text: &String| {
            let fd = fd(text)?;
            sys::set_nonblocking(fd.as_fd()).ok()?;
            Some(File::from(fd))
        };
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
            listener: UnixListener::from(fd(listener)?),
            streams: [Some(stream(stdout)?), Some(stream(stderr)?)],
            watchers: Vec::new(),
            log: LogWriter::open(dir.clone(), policy),
            _lock: fd(lock)?,
            dir,
        })
    }

    /// Serves; returns how the first process ended, once its output is in the log.
    fn until_the_end(&mut self) -> ExitStatus {
        // It may have ended before the signals were looked for.
        let mut ended = self.reap();
        while ended.is_none() {
            self.wait(-1);
            self.read_streams();
            self.accept();
            if let Some(signal) = self.next_signal() {
                if signal == libc::SIGTERM {
                    // The machine is shut down: the container's turn to end by itself.
                    let _ = sys::kill(self.pid, libc::SIGTERM);
                }
                ended = self.reap();
            }
        }
        let deadline = Instant::now() + DRAIN;
        while self.streams.iter().any(Option::is_some) && Instant::now() < deadline {
            self.read_streams();
            if self.streams.iter().any(Option::is_some) {
                self.wait(50);
            }
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.log.finish(stream);
        }
        let (code, signal) = ended.unwrap_or((255, None));
        ExitStatus { code, signal, oom_killed: oom_kills(&self.oom) > 0, finished_at_ms: record::now_ms() }
    }

    /// Reaps everything that has ended; returns code and signal if the container's first process is among it.
    fn reap(&self) -> Option<(i32, Option<i32>)> {
        let mut ended = None;
        while let Some((pid, status)) = sys::reap() {
            if pid == self.pid {
                ended = Some(if libc::WIFSIGNALED(status) {
                    (128 + libc::WTERMSIG(status), Some(libc::WTERMSIG(status)))
                } else {
                    (libc::WEXITSTATUS(status), None)
                });
            }
        }
        ended
    }

    fn next_signal(&mut self) -> Option<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.signals.read_exact(&mut info).ok()?;
        // The number is the first field.
        Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
    }

    fn wait(&mut self, timeout_ms: i32) {
        let interest = |fd, events| libc::pollfd { fd, events, revents: 0 };
        let mut fds = vec![interest(self.signals.as_raw_fd(), libc::POLLIN)];
        fds.push(interest(self.listener.as_raw_fd(), libc::POLLIN));
        for stream in self.streams.iter().flatten() {
            fds.push(interest(stream.as_raw_fd(), libc::POLLIN));
        }
        let before_watchers = fds.len();
        fds.extend(self.watchers.iter().map(|watcher| interest(watcher.as_raw_fd(), libc::POLLRDHUP)));
        if sys::poll(&mut fds, timeout_ms).is_err() {
            return;
        }
        let mut gone = fds[before_watchers..].iter().map(|fd| fd.revents != 0);
        self.watchers.retain(|_| !gone.next().unwrap_or(false));
    }

    fn read_streams(&mut self) {
        let mut buffer = [0; 16 * 1024];
        for (index, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            // A bounded number of rounds, so that one noisy stream does not keep the other and the socket waiting.
            for _ in 0..16 {
                let Some(file) = &mut self.streams[index] else { break };
                match file.read(&mut buffer) {
                    Ok(0) => {
                        self.streams[index] = None;
                        self.log.finish(stream);
                    }
                    Ok(count) => self.log.take(stream, &buffer[..count]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
    }

    /// Takes new watchers in: processes of root or of our own user.
    fn accept(&mut self) {
        while let Ok((mut watcher, _)) = self.listener.accept() {
            let known = sys::peer_uid(watcher.as_fd()).is_ok_and(|uid| uid == 0 || uid == sys::euid());
            let _ = watcher.set_nonblocking(true);
            // The greeting promises the line: who has not read it looks into exit.json instead.
            if known && self.watchers.len() < WATCHERS && watcher.write_all(b"ok\n").is_ok() {
                self.watchers.push(watcher);
            }
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
        self.accept();
        for watcher in &mut self.watchers {
            // One that has gone away needs no answer.
            let _ = watcher.write_all(line.as_bytes());
        }
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
