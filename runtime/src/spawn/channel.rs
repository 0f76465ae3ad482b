//! The channel between a container's first process and whoever makes it: the process asks, one thing at a time, and
//! waits for the answer. A successful exec closes it; until then it carries the failure, if there is one.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
};

use crate::init::Failure;
use crate::sys;

/// No message is longer. A failure that would be loses the end of its text.
const LIMIT_BYTES: usize = 16 * 1024;

/// No message has more descriptors beside it: there are not so many v1 hierarchies.
const FILES: usize = 32;

/// What comes unasked is looked out for so long before the process sleeps.
const WATCH: Duration = Duration::from_micros(500);

/// What the first process cannot do for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Nothing: the process that was to be made is there, and has this pid. A parent tells itself so when the process is
    /// new, and a helper its monitor when it runs.
    Born(i32),
    /// Write the user and group mappings of the asking process' user namespace.
    MapIds,
    /// Move network devices into the asking process' network namespace.
    NetDevices,
    /// Give the asking process its scheduler.
    Schedule,
    /// Run the hooks that belong to the time after the namespaces and before the root file system is entered
    /// (prestart, createRuntime).
    Hooks,
    /// Take the other end of the terminal.
    Terminal,
    /// Take the descriptor that tells of filtered system calls; not answered (see `seccomp::listener`).
    Notify,
    /// Write down that the container is made: all that is left is to be started.
    Created,
    /// The end: why the program does not run.
    Failed(Failure),
}

/// What the parent gives unasked.
#[derive(Debug)]
pub(crate) enum Gift {
    /// The control groups are there: these files of theirs are to be written to.
    Groups(Vec<OwnedFd>),
    /// A network namespace; `None`: the process has to make it by itself.
    Network(Option<OwnedFd>),
}

/// One end.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// A new channel: (the parent's end, the first process' end).
pub(crate) fn channel() -> io::Result<(Channel, Channel)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (one, other) = socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    Ok((Channel(one), Channel(other)))
}

impl Channel {
    /// An end that was reached in another way, such as a connection.
    pub(crate) fn from_fd(fd: OwnedFd) -> Channel {
        Channel(fd)
    }

    /// Its number, for poll(2).
    pub(crate) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Whether [`Channel::receive`] would return at once.
    pub(crate) fn has_word(&self) -> io::Result<bool> {
        let mut fds = [libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        Ok(sys::poll(&mut fds, 0)? > 0)
    }

    /// First process: asks and waits for the answer.
    pub(crate) fn ask(&self, ask: &Ask, fd: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::step("asking the runtime", &error);
        self.send(&ask.to_bytes(), fd.as_slice()).map_err(failed)?;
        match self.wait()? {
            (OK, _) => Ok(()),
            _ => Err(failed(io::ErrorKind::InvalidData.into())),
        }
    }

    /// First process: waits for what comes unasked, and mostly in a moment.
    pub(crate) fn gift(&self) -> Result<Gift, Failure> {
        self.watch();
        match self.wait()? {
            (sys::NETWORK, fds) => Ok(Gift::Network(fds.into_iter().next())),
            (_, fds) => Ok(Gift::Groups(fds)),
        }
    }

    /// Looks again and again for a while: who sleeps takes as long to wake up as most of the waiting. Whoever else is to run
    /// here goes first.
    fn watch(&self) {
        let begun = Instant::now();
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
        while socket::recv(self.0.as_raw_fd(), &mut [], flags) == Err(Errno::EAGAIN)
            && begun.elapsed() < WATCH
        {
            std::thread::yield_now();
        }
    }

    /// What a word begins with that is no failure.
    fn wait(&self) -> Result<(u8, Vec<OwnedFd>), Failure> {
        let failed = |error: io::Error| Failure::step("asking the runtime", &error);
        let (answer, fds) = self.receive_bytes().map_err(failed)?;
        match answer[..] {
            [tag @ (OK | sys::NETWORK)] => Ok((tag, fds)),
            // It has died, or given us up.
            [] => Err(Failure::step("waiting for the runtime", &io::Error::other("it has ended"))),
            _ => Err(parse_failure(&answer)),
        }
    }

    /// First process: tells something that needs no answer.
    pub(crate) fn tell(&self, ask: &Ask) -> io::Result<()> {
        self.send(&ask.to_bytes(), &[])
    }

    /// Parent: says that the control groups are there. `files`: what is to be written to.
    pub(crate) fn give_groups(&self, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send(&[OK], files)
    }

    /// Parent: has a network namespace made, beside whatever else is done, and given to the first process. To be kept
    /// open until that has it.
    pub(crate) fn give_network(&self) -> io::Result<()> {
        if sys::send_new_network(self.0.as_fd()) { Ok(()) } else { self.send(&[sys::NETWORK], &[]) }
    }

    /// Hands a descriptor out.
    pub(crate) fn give(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.send(&[OK], &[fd])
    }

    /// Takes a descriptor that is handed out; `None` if there is none, or the other end is closed.
    pub(crate) fn take(&self) -> io::Result<Option<OwnedFd>> {
        self.receive_bytes().map(|(_, fds)| fds.into_iter().next())
    }

    /// Parent: the next question; `None` once the other end is closed.
    pub(crate) fn receive(&self) -> io::Result<Option<(Ask, Option<OwnedFd>)>> {
        let (bytes, fds) = self.receive_bytes()?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let fd = fds.into_iter().next();
        Ask::from_bytes(&bytes).map(|ask| Some((ask, fd))).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Parent: answers a question.
    pub(crate) fn answer(&self, answer: Result<(), &Failure>) -> io::Result<()> {
        match answer {
            Ok(()) => self.send(&[OK], &[]),
            Err(failure) => self.send(&Ask::Failed(failure.clone()).to_bytes(), &[]),
        }
    }

    /// Whether the other end is closed.
    pub(crate) fn is_closed(&self) -> io::Result<bool> {
        let mut fds = [libc::pollfd { fd: self.0.as_raw_fd(), events: 0, revents: 0 }];
        sys::poll(&mut fds, 0)?;
        Ok(fds[0].revents & (libc::POLLHUP | libc::POLLERR) != 0)
    }

    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(self.0.as_fd(), bytes, fds)
    }

    /// How long the next message is; 0 at the end.
    fn next_bytes(&self) -> io::Result<usize> {
        loop {
            match socket::recv(self.0.as_raw_fd(), &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC) {
                // As below.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                other => return Ok(other?.min(LIMIT_BYTES)),
            }
        }
    }

    fn receive_bytes(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut buffer = vec![0; self.next_bytes()?];
        let mut space = nix::cmsg_space!([RawFd; FILES]);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = loop {
            match socket::recvmsg::<UnixAddr>(self.0.as_raw_fd(), &mut slices, Some(&mut space), flags) {
                // Closed with something of ours unread, which is told once and first: the other's last words, if there
                // are any, or the end come next.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                other => break other?,
            }
        };
        let mut received = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                received = fds.into_iter().map(sys::adopt_fd).collect::<io::Result<_>>()?;
            }
        }
        let count = message.bytes;
        buffer.truncate(count);
        Ok((buffer, received))
    }
}

/// Sends bytes, and descriptors beside them, over a Unix socket.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = Some(ControlMessage::ScmRights(&raw)).filter(|_| !raw.is_empty());
    loop {
        let control = rights.as_slice();
        match socket::sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Err(Errno::EINTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

const OK: u8 = b'+';

impl Ask {
    fn to_bytes(&self) -> Vec<u8> {
        match self {
            Ask::Born(pid) => [b"b", &pid.to_ne_bytes()[..]].concat(),
            Ask::MapIds => b"m".to_vec(),
            Ask::NetDevices => b"d".to_vec(),
            Ask::Schedule => b"s".to_vec(),
            Ask::Hooks => b"h".to_vec(),
            Ask::Terminal => b"t".to_vec(),
            Ask::Notify => b"n".to_vec(),
            Ask::Created => b"c".to_vec(),
            Ask::Failed(failure) => {
                let mut failure = failure.clone();
                for text in [&mut failure.subject, &mut failure.detail] {
                    // Escaped, a byte may take six.
                    let mut end = text.len().min(LIMIT_BYTES / 16);
                    while !text.is_char_boundary(end) {
                        end -= 1;
                    }
                    text.truncate(end);
                }
                [b"f", &serde_json::to_vec(&failure).unwrap_or_default()[..]].concat()
            }
        }
    }

    fn from_bytes(bytes: &[u8]) -> Option<Ask> {
        Some(match bytes {
            [b'b', pid @ ..] => Ask::Born(i32::from_ne_bytes(pid.try_into().ok()?)),
            b"m" => Ask::MapIds,
            b"d" => Ask::NetDevices,
            b"s" => Ask::Schedule,
            b"h" => Ask::Hooks,
            b"t" => Ask::Terminal,
            b"n" => Ask::Notify,
            b"c" => Ask::Created,
            [b'f', ..] => Ask::Failed(parse_failure(bytes)),
            _ => return None,
        })
    }
}

fn parse_failure(bytes: &[u8]) -> Failure {
    serde_json::from_slice(bytes.get(1..).unwrap_or_default())
        .unwrap_or_else(|error| Failure::step("reading a failure", &io::Error::other(error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::Kind;
    use std::io::{Read as _, Write as _};

    fn failure(length: usize) -> Failure {
        let detail = "ä\u{1}".repeat(length);
        Failure { kind: Kind::UnknownUser, subject: "web".to_owned(), errno: Some(2), detail }
    }

    #[test]
    fn every_question_arrives_as_it_was_asked() {
        let (parent, child) = channel().unwrap();
        let asks = [Ask::Born(77), Ask::MapIds, Ask::NetDevices, Ask::Schedule, Ask::Hooks];
        for ask in asks
            .into_iter()
            .chain([Ask::Terminal, Ask::Notify, Ask::Created])
            .chain([Ask::Failed(failure(3))])
        {
            child.tell(&ask).unwrap();
            let (received, fd) = parent.receive().unwrap().unwrap();
            assert_eq!((received, fd.is_none()), (ask, true));
        }
        assert!(!parent.is_closed().unwrap());
        drop(child);
        assert!(parent.is_closed().unwrap());
        assert!(parent.receive().unwrap().is_none());
    }

    #[test]
    fn last_words_are_heard_though_an_answer_was_not() {
        let (parent, child) = channel().unwrap();
        parent.answer(Ok(())).unwrap();
        child.tell(&Ask::Failed(failure(1))).unwrap();
        drop(child);
        assert_eq!(parent.receive().unwrap().unwrap().0, Ask::Failed(failure(1)));
        assert!(parent.receive().unwrap().is_none());
    }

    #[test]
    fn a_failure_of_any_length_keeps_its_kind() {
        let (parent, child) = channel().unwrap();
        child.tell(&Ask::Failed(failure(100_000))).unwrap();
        let Some((Ask::Failed(received), _)) = parent.receive().unwrap() else { panic!() };
        assert_eq!((received.kind, received.errno), (Kind::UnknownUser, Some(2)));
    }

    #[test]
    fn who_ends_with_something_unread_is_heard_all_the_same() {
        let (parent, child) = channel().unwrap();
        parent.give_groups(&[]).unwrap();
        child.tell(&Ask::Failed(failure(1))).unwrap();
        drop(child);
        let (ask, _) = parent.receive().unwrap().unwrap();
        assert_eq!(ask, Ask::Failed(failure(1)));
        assert!(parent.receive().unwrap().is_none());
    }

    #[test]
    fn gifts_come_in_any_order() {
        let (parent, child) = channel().unwrap();
        let (read, write) = sys::pipe().unwrap();
        parent.give_groups(&[read.as_fd(), write.as_fd()]).unwrap();
        parent.send(&[sys::NETWORK], &[]).unwrap();
        assert!(matches!(child.gift(), Ok(Gift::Groups(files)) if files.len() == 2));
        assert!(matches!(child.gift(), Ok(Gift::Network(None))));
        drop(parent);
        assert!(child.gift().unwrap_err().detail.contains("ended"));
    }

    #[test]
    fn descriptors_and_answers_go_across() {
        let (parent, child) = channel().unwrap();
        let (read, write) = sys::pipe().unwrap();
        let asking = std::thread::spawn(move || {
            let first = child.ask(&Ask::Terminal, Some(write.as_fd()));
            let second = child.ask(&Ask::MapIds, None);
            (first, second, child.ask(&Ask::Hooks, None))
        });
        let (ask, fd) = parent.receive().unwrap().unwrap();
        assert_eq!(ask, Ask::Terminal);
        std::fs::File::from(fd.unwrap()).write_all(b"x").unwrap();
        parent.answer(Ok(())).unwrap();
        assert_eq!(parent.receive().unwrap().unwrap().0, Ask::MapIds);
        parent.answer(Err(&failure(1))).unwrap();
        assert_eq!(parent.receive().unwrap().unwrap().0, Ask::Hooks);
        drop(parent);
        let (first, second, third) = asking.join().unwrap();
        assert_eq!((first, second), (Ok(()), Err(failure(1))));
        assert!(third.unwrap_err().detail.contains("ended"));
        let mut byte = [0];
        std::fs::File::from(read).read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
}
