//! Hands a terminal's master to whoever listens on `--console-socket`.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::error::{Error, Result};
use crate::spawn;

/// A connection to the socket, made before anything else, so that a wrong path costs nothing.
#[derive(Debug)]
pub(super) struct ConsoleSocket(UnixStream);

impl ConsoleSocket {
    pub(super) fn connect(path: &Path) -> Result<ConsoleSocket> {
        UnixStream::connect(path).map(ConsoleSocket).map_err(Error::file("connect to console socket", path))
    }

    /// Sends the master, with the name that runc sends beside it.
    pub(super) fn send(&self, master: &OwnedFd) -> std::io::Result<()> {
        spawn::send(self.0.as_fd(), b"/dev/ptmx", Some(master.as_fd()))
    }
}
