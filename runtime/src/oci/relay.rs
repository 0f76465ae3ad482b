//! The terminal of `run` and `exec` without `--console-socket`: our own terminal, made raw, and the container's, with
//! everything passed on between the two, size changes included.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::termios::{self, SetArg, Termios};

use super::error::{Error, Result};
use crate::sys;

/// More than this is not taken from our terminal before the container has read what it got.
const PENDING_BYTES: usize = 4096;

/// A relay between two terminals. Dropping it makes ours as it was.
pub(super) struct Relay {
    master: File,
    /// How ours was, if standard input is one.
    before: Option<Termios>,
    /// Typed, and not yet read by the container.
    pending: Vec<u8>,
    /// Our terminal can still be read.
    input: bool,
    /// The container's terminal can still be read.
    output: bool,
}

impl Relay {
    pub(super) fn new(master: OwnedFd) -> Result<Relay> {
        let set_up = || -> io::Result<Option<Termios>> {
            sys::set_nonblocking(master.as_fd())?;
            if !sys::is_terminal(0) {
                return Ok(None);
            }
            let before = termios::tcgetattr(io::stdin())?;
            let mut raw = before.clone();
            termios::cfmakeraw(&mut raw);
            termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
            Ok(Some(before))
        };
        let before = set_up().map_err(Error::system("preparing the terminal"))?;
        Ok(Relay { master: File::from(master), before, pending: Vec::new(), input: true, output: true })
    }

    /// Our window has another size.
    pub(super) fn resize(&self) {
        // A terminal without a size leaves the container's as it is.
        if let Ok((rows, columns)) = sys::terminal_size(io::stdin().as_fd())
            && rows > 0
        {
            let _ = sys::set_terminal_size(self.master.as_fd(), rows, columns);
        }
    }

    /// What is waited for: to be given to poll, and then to [`Relay::pass_on`].
    pub(super) fn interest(&self) -> [libc::pollfd; 2] {
        let read_input = self.input && self.pending.len() < PENDING_BYTES;
        let mut master = if self.output { libc::POLLIN } else { 0 };
        if !self.pending.is_empty() {
            master |= libc::POLLOUT;
        }
        // A negative descriptor is passed over: one that has been hung up would end every wait at once.
        let fd = |fd, wanted| if wanted { fd } else { -1 };
        [
            libc::pollfd { fd: fd(0, read_input), events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: fd(self.master.as_raw_fd(), self.output), events: master, revents: 0 },
        ]
    }

    /// Passes on what has come.
    pub(super) fn pass_on(&mut self, ready: &[libc::pollfd]) {
        let [input, master] = ready else { return };
        let mut buffer = [0; PENDING_BYTES];
        if input.revents != 0 {
            match io::stdin().read(&mut buffer) {
                Ok(0) | Err(_) => self.input = false,
                Ok(count) => self.pending.extend_from_slice(&buffer[..count]),
            }
        }
        if !self.pending.is_empty()
            && let Ok(count) = self.master.write(&self.pending)
        {
            self.pending.drain(..count);
        }
        if master.revents & !libc::POLLOUT != 0 {
            self.read_master();
        }
    }

    /// Passes on what the container has written, up to now.
    pub(super) fn drain(&mut self) {
        while self.output && self.read_master() {}
    }

    fn read_master(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match self.master.read(&mut buffer) {
            Ok(count) if count > 0 => {
                let mut out = io::stdout();
                // If nobody reads it any more, the container learns it from us as it would from a terminal.
                self.output = out.write_all(&buffer[..count]).and_then(|()| out.flush()).is_ok();
                self.output
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            // EIO: all slaves are closed.
            _ => {
                self.output = false;
                false
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, before);
        }
    }
}
