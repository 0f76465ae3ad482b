//! The container's standard input, as the monitor holds it: a pipe or a terminal, if the container was given one.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};

use crate::sys;

/// More is not taken from clients before the container has read.
const PENDING_BYTES: usize = 64 * 1024;

/// Where input goes.
#[derive(Debug)]
pub(super) struct Input {
    /// `None` once it has ended.
    file: Option<File>,
    terminal: bool,
    pending: VecDeque<u8>,
    /// The input ends when the pending bytes are written.
    ending: bool,
}

impl Input {
    pub(super) fn new(file: File, terminal: bool) -> Input {
        Input { file: Some(file), terminal, pending: VecDeque::new(), ending: false }
    }

    /// What to wait for: room, if something is pending.
    pub(super) fn interest(&self) -> Option<RawFd> {
        self.file.as_ref().filter(|_| !self.pending.is_empty()).map(|file| file.as_raw_fd())
    }

    /// Whether more may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.file.is_none() || self.pending.len() < PENDING_BYTES
    }

    /// Takes bytes for the container; after the end of input they go nowhere, as to a closed pipe.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        if self.file.is_some() && !self.ending {
            self.pending.extend(bytes);
            self.flush();
        }
    }

    /// The client's input has ended. A terminal stays open: there a key ends the input.
    pub(super) fn end(&mut self) {
        if !self.terminal {
            self.ending = true;
            self.flush();
        }
    }

    pub(super) fn flush(&mut self) {
        let Some(file) = &mut self.file else { return };
        while !self.pending.is_empty() {
            let (bytes, _) = self.pending.as_slices();
            match file.write(bytes) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Nobody reads it any more.
                Err(_) => {
                    self.pending.clear();
                    self.ending = true;
                }
            }
        }
        self.pending = VecDeque::new();
        if self.ending {
            self.file = None;
        }
    }

    /// Tells the terminal its size; `Err` says why not.
    pub(super) fn resize(&self, columns: u16, rows: u16) -> Result<(), String> {
        match &self.file {
            Some(file) if self.terminal => {
                sys::set_terminal_size(file.as_fd(), rows, columns).map_err(|error| error.to_string())
            }
            _ => Err("this has no terminal".to_owned()),
        }
    }
}
