//! `run`: makes a container, starts it at once, and (unless detached) waits for its end with the signals passed on.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd, OwnedFd};

use super::args::Matches;
use super::context::Context;
use super::create::{Making, Options};
use super::delete;
use super::error::{Error, Result};
use super::notify::{self, Notify};
use super::relay::Relay;
use super::start;
use crate::sys;

/// `run`.
pub(super) fn run(context: &Context, matches: &Matches) -> Result<u8> {
    let options = Options::new(matches)?;
    let detached = matches.is_set("detach");
    if !detached && !matches.is_set("no-subreaper") {
        become_subreaper()?;
    }
    // Before there is a process whose end could be missed.
    let signals = if detached { None } else { Some(Signals::take()?) };
    sys::begin_ahead();
    sys::make_ready();
    let mut making = Making::begin(context, matches, &options, !detached)?;
    let mut terminal = None;
    let made = notify::listen(&making.place).and_then(|notify| {
        making.first_process(None, Some(&mut terminal))?;
        making.write_pid_file().map(|()| notify)
    });
    let notify = made.inspect_err(|_| making.undo())?;
    start::after_start(context, &making.place, &making.record);
    making.unlock();
    let Some(mut signals) = signals else {
        notify.map_or(Ok(()), |notify| notify.until_ready(&making.record))?;
        return Ok(0);
    };
    // Without it the process would have to unmount what it has, before anybody sees that it has ended.
    let mounts = File::open(format!("/proc/{}/ns/mnt", making.record.pid));
    let relay = terminal.map(Relay::new).transpose();
    let code = relay.and_then(|relay| signals.until_the_end(making.record.pid, relay, notify));
    sys::keep_away();
    mounts.map(OwnedFd::from).into_iter().for_each(sys::close);
    if code.is_err() || !matches.is_set("keep") {
        let gone = take_away(context, &making);
        // What went wrong first is what counts.
        return code.and_then(|code| gone.map(|()| code));
    }
    code
}

/// Takes the container away, unless another command has done so meanwhile, and perhaps made one of the same name.
fn take_away(context: &Context, making: &Making<'_>) -> Result<()> {
    let Making { place, record, .. } = making;
    let _lock = match place.lock() {
        Err(Error::NotFound) => return Ok(()),
        other => other?,
    };
    if place.read_process()? == Some((record.pid, record.start_ticks)) {
        delete::take_away(context, place, Some(record))
    } else {
        Ok(())
    }
}

/// Orphans of the container come to us and are reaped, not to somebody who does not expect them.
pub(super) fn become_subreaper() -> Result<()> {
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).map(drop).map_err(Error::system("becoming a subreaper"))
}

/// Signals that come to us, for the process that we wait for.
pub(super) struct Signals(File);

/// Not passed on: what the kernel means for us, or what says something about us.
const OURS: [i32; 6] =
    [libc::SIGCHLD, libc::SIGPIPE, libc::SIGURG, libc::SIGKILL, libc::SIGSTOP, libc::SIGSEGV];

impl Signals {
    pub(super) fn take() -> Result<Signals> {
        let forwarded = (1..=libc::SIGRTMAX()).filter(|signal| !OURS.contains(signal));
        let wanted: Vec<i32> = forwarded.chain([libc::SIGCHLD]).collect();
        let fd: OwnedFd = sys::signalfd(&wanted).map_err(Error::system("taking signals"))?;
        Ok(Signals(File::from(fd)))
    }

    /// Passes signals on until a child has ended; returns the exit code that stands for how.
    /// A terminal is served meanwhile, and a service manager told that the container is ready.
    pub(super) fn until_the_end(
        &mut self,
        pid: i32,
        mut relay: Option<Relay>,
        mut notify: Option<Notify>,
    ) -> Result<u8> {
        loop {
            while let Some((ended, status)) = sys::reap() {
                if ended == pid {
                    if let Some(relay) = &mut relay {
                        relay.drain();
                    }
                    return Ok(exit_code(status));
                }
            }
            let mut fds = vec![libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            fds.extend(relay.iter().flat_map(Relay::interest));
            let told = notify.as_ref().map(Notify::number);
            fds.extend(told.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }));
            sys::poll(&mut fds, -1).map_err(Error::system("waiting"))?;
            if let Some(relay) = &mut relay {
                relay.pass_on(&fds[1..3]);
            }
            // Once: what it says later is not passed on.
            notify = notify.filter(|notify| !notify.is_ready());
            while let Some(signal) = self.next() {
                match (signal, &relay) {
                    (libc::SIGCHLD, _) => {}
                    (libc::SIGWINCH, Some(relay)) => relay.resize(),
                    // Gone meanwhile: the next look finds out.
                    _ => drop(sys::kill(pid, signal)),
                }
            }
        }
    }

    fn next(&mut self) -> Option<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.0.read_exact(&mut info).ok()?;
        // The number is the first field.
        Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
    }
}

/// As a shell has it.
pub(super) fn exit_code(status: i32) -> u8 {
    let code =
        if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    u8::try_from(code).unwrap_or(255)
}
