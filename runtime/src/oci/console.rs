//! Terminals and who gets the master: whoever listens on `--console-socket`, or this process, which then relays.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use oci_spec::runtime::{BoxBuilder, Process};

use super::error::{Error, Result};
use crate::init::Failure;
use crate::spawn;
use crate::sys;

/// A connection to the socket, made before anything else, so that a wrong path costs nothing.
#[derive(Debug)]
pub(super) struct ConsoleSocket(UnixStream);

impl ConsoleSocket {
    pub(super) fn connect(path: &Path) -> Result<ConsoleSocket> {
        UnixStream::connect(path).map(ConsoleSocket).map_err(Error::file("connect to console socket", path))
    }
}

/// Whether the terminal that is wanted has somebody to go to. `attached`: we stay until the process ends.
pub(super) fn check(terminal: bool, socket: bool, attached: bool) -> Result<()> {
    let wrong = |text: &str| Err(Error::Usage(text.to_owned()));
    match (terminal, socket) {
        (true, false) if !attached => {
            wrong("cannot allocate tty if the runtime will detach without setting console socket")
        }
        (false, true) => wrong("cannot use console socket if the process has no terminal"),
        _ => Ok(()),
    }
}

/// A terminal that we relay is made with the size of ours: set later, it would be a change, and the program be told of it
/// by a signal (SIGWINCH) that it has no reason to expect. A size that the specification names stays.
pub(super) fn size_as_ours(process: &mut Process) {
    if process.terminal() == Some(true)
        && process.console_size().is_none()
        && let Ok((rows, columns)) = sys::terminal_size(io::stdin().as_fd())
        && rows > 0
    {
        // Without one of the two numbers it would not be made.
        let size = BoxBuilder::default().height(u64::from(rows)).width(u64::from(columns));
        process.set_console_size(size.build().ok());
    }
}

/// Gives the master away: to the socket, with the name that runc sends beside it, or into the slot.
pub(super) fn hand_over(
    master: OwnedFd,
    socket: &Option<ConsoleSocket>,
    slot: Option<&mut Option<OwnedFd>>,
) -> Result<(), Failure> {
    match (socket, slot) {
        (Some(socket), _) => spawn::send(socket.0.as_fd(), b"/dev/ptmx", &[master.as_fd()])
            .map_err(|error| Failure::step("sending the terminal to the console socket", &error)),
        (None, Some(slot)) => {
            *slot = Some(master);
            Ok(())
        }
        (None, None) => {
            Err(Failure::step("handing out the terminal", &io::Error::other("there is no console socket")))
        }
    }
}
