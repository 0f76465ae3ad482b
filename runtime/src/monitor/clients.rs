//! Those who are connected to the monitor's socket: watchers, who wait for one line, and attached clients, who get
//! frames (see [`crate::attach`]). None of them can hold the container up: what a client does not read is kept up to a
//! bound, and then the client is let go.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use crate::attach::{Decoder, FRAME_BYTES, Frame, encode};
use crate::log::Stream;
use crate::sys;

/// More are not connected to one container; a further one is turned away.
const CLIENTS: usize = 64;

/// What is kept for a client that does not read.
const BACKLOG_BYTES: usize = 4 << 20;

/// What is read from a client at once.
const READ_BYTES: usize = 16 * 1024;

/// Names a connection; never given again.
pub(super) type ClientId = u64;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It waits for the end.
    Watcher,
    /// It has the container's input and output.
    Attached,
    /// It has those of a program of its own.
    Executing,
}

/// One connection.
#[derive(Debug)]
struct Client {
    id: ClientId,
    stream: UnixStream,
    decoder: Decoder,
    /// Not taken by the socket yet.
    backlog: Vec<u8>,
    role: Role,
    /// It is let go once the backlog is empty.
    released: bool,
    gone: bool,
}

impl Client {
    /// Sends bytes now or later.
    fn send(&mut self, bytes: &[u8]) {
        if self.gone {
            return;
        }
        self.backlog.extend_from_slice(bytes);
        self.flush();
        if self.backlog.len() > BACKLOG_BYTES {
            self.gone = true;
        }
    }

    fn send_output(&mut self, stream: Stream, bytes: &[u8]) {
        let kind = if stream == Stream::Stdout { b'O' } else { b'R' };
        for part in bytes.chunks(FRAME_BYTES) {
            self.send(&encode(kind, part));
        }
    }

    fn flush(&mut self) {
        while !self.backlog.is_empty() {
            match self.stream.write(&self.backlog) {
                Ok(count) => drop(self.backlog.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
        self.backlog = Vec::new();
        self.gone |= self.released;
    }

    /// Reads what has come; gives the frames that are whole. A client that says what makes no sense is let go.
    fn read(&mut self, frames: &mut Vec<Frame>) {
        let mut buffer = [0; READ_BYTES];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.gone = true,
            Ok(count) => {
                self.decoder.take(&buffer[..count]);
                loop {
                    match self.decoder.frame() {
                        Ok(Some(frame)) => frames.push(frame),
                        Ok(None) => return,
                        Err(error) => {
                            let why = Frame::Refused(error.to_string()).encode();
                            self.send(&why);
                            self.gone = true;
                            return;
                        }
                    }
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.gone = true,
        }
    }
}

/// Everyone who is connected.
#[derive(Debug)]
pub(super) struct Clients {
    listener: UnixListener,
    list: Vec<Client>,
    next: ClientId,
}

impl Clients {
    pub(super) fn new(listener: UnixListener) -> Clients {
        Clients { listener, list: Vec::new(), next: 0 }
    }

    /// What to wait for: the listener first, then the clients in order. `listening`: whether a client's input can be
    /// taken now.
    pub(super) fn interests(&self, listening: impl Fn(ClientId) -> bool) -> Vec<(RawFd, i16)> {
        let mut all = vec![(self.listener.as_raw_fd(), libc::POLLIN)];
        for client in &self.list {
            let input = if listening(client.id) { libc::POLLIN } else { 0 };
            let output = if client.backlog.is_empty() { 0 } else { libc::POLLOUT };
            all.push((client.stream.as_raw_fd(), input | output));
        }
        all
    }

    /// Takes new connections: from processes of root or of our own user.
    pub(super) fn accept(&mut self) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            let known = sys::peer_uid(stream.as_fd()).is_ok_and(|uid| uid == 0 || uid == sys::euid());
            let _ = stream.set_nonblocking(true);
            // The greeting promises the end: who has not read it looks into exit.json instead.
            if known && self.list.len() < CLIENTS && stream.write_all(b"ok\n").is_ok() {
                self.list.push(Client {
                    id: self.next,
                    stream,
                    decoder: Decoder::default(),
                    backlog: Vec::new(),
                    role: Role::Watcher,
                    released: false,
                    gone: false,
                });
                self.next += 1;
            }
        }
    }

    /// Does what the events ask for, in the order of [`Clients::interests`] without the listener; gives every client
    /// that said something with what it said.
    pub(super) fn serve(&mut self, events: &[libc::pollfd]) -> Vec<(ClientId, Vec<Frame>)> {
        let mut said = Vec::new();
        for (client, event) in self.list.iter_mut().zip(events) {
            if event.revents & libc::POLLOUT != 0 {
                client.flush();
            }
            if event.revents & libc::POLLIN != 0 {
                let mut frames = Vec::new();
                client.read(&mut frames);
                if !frames.is_empty() {
                    said.push((client.id, frames));
                }
            } else if event.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 {
                client.gone = true;
            }
        }
        said
    }

    fn get(&mut self, id: ClientId) -> Option<&mut Client> {
        self.list.iter_mut().find(|client| client.id == id)
    }

    /// Whether the client is still connected.
    pub(super) fn is_there(&self, id: ClientId) -> bool {
        self.list.iter().any(|client| client.id == id && !client.gone)
    }

    /// How much it has not taken yet.
    pub(super) fn unread(&self, id: ClientId) -> usize {
        self.list.iter().find(|client| client.id == id).map_or(0, |client| client.backlog.len())
    }

    /// Sends to a client; to one that is gone, nothing.
    pub(super) fn send(&mut self, id: ClientId, bytes: &[u8]) {
        if let Some(client) = self.get(id) {
            client.send(bytes);
        }
    }

    pub(super) fn send_output(&mut self, id: ClientId, stream: Stream, bytes: &[u8]) {
        if let Some(client) = self.get(id) {
            client.send_output(stream, bytes);
        }
    }

    /// Lets a client go once it has what it was sent.
    pub(super) fn release(&mut self, id: ClientId) {
        if let Some(client) = self.get(id) {
            client.released = true;
            client.flush();
        }
    }

    /// Makes a watcher one that is attached.
    pub(super) fn attach(&mut self, id: ClientId) {
        if let Some(client) = self.get(id) {
            client.role = Role::Attached;
        }
    }

    /// Makes a watcher one that has a program of its own; `false` if it is something else already.
    pub(super) fn execute(&mut self, id: ClientId) -> bool {
        let Some(client) = self.get(id).filter(|client| client.role == Role::Watcher) else { return false };
        client.role = Role::Executing;
        true
    }

    pub(super) fn sweep(&mut self) {
        self.list.retain(|client| !client.gone);
    }

    /// Gives output to all who are attached; `false` if nobody is.
    pub(super) fn output(&mut self, stream: Stream, bytes: &[u8]) -> bool {
        let mut attached = false;
        for client in self.list.iter_mut().filter(|client| client.role == Role::Attached) {
            client.send_output(stream, bytes);
            attached = true;
        }
        attached
    }

    /// Tells watchers that the first process has ended: an empty line before the one that says how. What that says has
    /// to be on disk first, and who sends traffic to the container need not wait for it.
    pub(super) fn announce_the_end(&mut self) {
        self.accept();
        for client in self.list.iter_mut().filter(|client| client.role == Role::Watcher) {
            client.send(b"\n");
        }
    }

    /// Tells everyone how the container ended. What the sockets do not take within the deadline is given up: exit.json
    /// has it.
    pub(super) fn tell_the_end(&mut self, line: &str, deadline: std::time::Instant) {
        self.accept();
        let frame = encode(b'S', line.trim_end().as_bytes());
        for client in &mut self.list {
            match client.role {
                Role::Watcher => client.send(line.as_bytes()),
                Role::Attached => client.send(&frame),
                // It was told how its own program ended.
                Role::Executing => {}
            }
        }
        loop {
            self.list.retain(|client| !client.gone && !client.backlog.is_empty());
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if self.list.is_empty() || left.is_zero() {
                return;
            }
            let interest = |client: &Client| libc::pollfd {
                fd: client.stream.as_raw_fd(),
                events: libc::POLLOUT,
                revents: 0,
            };
            let mut fds: Vec<_> = self.list.iter().map(interest).collect();
            if sys::poll(&mut fds, i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1)).is_err() {
                return;
            }
            self.list.iter_mut().for_each(Client::flush);
        }
    }
}
