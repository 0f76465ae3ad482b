//! A small netlink client: requests are bytes built here (netlink(7), rtnetlink(7)), sent in batches, and every one
//! is acknowledged by the kernel.
//!
//! A socket acts for ever in the network namespace in which it was opened, whatever thread uses it. That is how the
//! engine configures the inside of a container without entering it.

pub(crate) mod conntrack;
pub(crate) mod diag;
pub(crate) mod link;
pub(crate) mod news;
pub(crate) mod nftables;
pub(crate) mod route;
pub(crate) mod wireguard;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{ReceiveTimeout, SndBuf};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recv, sendto,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::error::Error;

/// The kernel answers at once; an answer that takes this long will not come.
const ANSWER_TIMEOUT_S: i64 = 5;
/// Larger than any single message: dumps come in pieces of at most 32 KiB.
const BUFFER_BYTES: usize = 64 * 1024;
/// A batch is cut here, well below the send buffer.
const BATCH_BYTES: usize = 48 * 1024;
/// And here: each answer takes about a kilobyte of the receive buffer, which has 208 KiB unless the machine says otherwise.
/// One that finds no room is lost.
const BATCH_REQUESTS: usize = 128;

const HEADER_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_ACK: u16 = 0x04;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// For new objects: replace one that is there.
pub(crate) const REPLACE: u16 = 0x100 | CREATE;
/// For new objects: fail if there is one.
pub(crate) const EXCLUSIVE: u16 = 0x200 | CREATE;
/// For new objects: make it.
pub(crate) const CREATE: u16 = 0x400;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// One request under construction.
#[derive(Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    operation: String,
    tolerated: &'static [Errno],
}

impl Request {
    /// `operation` is what errors say, for example `add route 10.0.0.0/24`.
    pub(crate) fn new(kind: u16, flags: u16, operation: impl Into<String>) -> Request {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Request { bytes, operation: operation.into(), tolerated: &[] }
    }

    /// Answers that are as good as success, such as `ENOENT` for a removal.
    pub(crate) fn tolerate(mut self, errors: &'static [Errno]) -> Request {
        self.tolerated = errors;
        self
    }

    /// Appends a fixed header or raw bytes.
    pub(crate) fn put(mut self, bytes: &[u8]) -> Request {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Appends an attribute.
    pub(crate) fn attr(mut self, kind: u16, value: &[u8]) -> Request {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends an attribute of 32 bits in host order.
    pub(crate) fn attr_u32(self, kind: u16, value: u32) -> Request {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends a zero-terminated string.
    pub(crate) fn attr_str(self, kind: u16, value: &str) -> Request {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Appends an attribute that holds what `fill` appends.
    pub(crate) fn nest(mut self, kind: u16, fill: impl FnOnce(Request) -> Request) -> Request {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        let mut filled = fill(self);
        let length = u16::try_from(filled.bytes.len() - start).unwrap_or(u16::MAX);
        filled.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    fn flags(&self) -> u16 {
        u16::from_ne_bytes([self.bytes[6], self.bytes[7]])
    }

    fn finish(&mut self, sequence: u32, extra_flags: u16) {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        let flags = self.flags() | extra_flags;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }

    fn error(&self, source: io::Error) -> Error {
        Error::Netlink { operation: self.operation.clone(), source }
    }
}

/// One message of an answer, without its netlink header.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) payload: Vec<u8>,
}

/// The attributes after the first `skip` bytes of a payload.
pub(crate) fn attributes(payload: &[u8], skip: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = payload.get(skip..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & NLA_TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of one attribute.
pub(crate) fn attribute(payload: &[u8], skip: usize, kind: u16) -> Option<&[u8]> {
    attributes(payload, skip).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// An address of either family, by its length.
pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v6 = || <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into());
    ipv4(bytes).map(IpAddr::from).or_else(v6)
}

pub(crate) fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

/// A netlink socket of one protocol in one network namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket for links, addresses, routes, rules and neighbours in this thread's namespace.
    pub(crate) fn route() -> Result<Netlink, Error> {
        Netlink::open(SockProtocol::NetlinkRoute)
    }

    pub(crate) fn open(protocol: SockProtocol) -> Result<Netlink, Error> {
        let open = || -> nix::Result<OwnedFd> {
            let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
            setsockopt(&fd, ReceiveTimeout, &TimeVal::seconds(ANSWER_TIMEOUT_S))?;
            setsockopt(&fd, SndBuf, &(4 * BATCH_BYTES))?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            Ok(fd)
        };
        let socket =
            open().map_err(|e| Error::Netlink { operation: "open a socket".to_owned(), source: e.into() })?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// By which the kernel calls this socket when it tells others what was done through it.
    pub(crate) fn port(&self) -> Result<u32, Error> {
        let address = getsockname::<NetlinkAddr>(self.socket.as_raw_fd());
        address.map(|address| address.pid()).map_err(|e| Error::Netlink {
            operation: "ask for a socket's own address".to_owned(),
            source: e.into(),
        })
    }

    /// Runs requests in order. All are tried; the first refusal is returned.
    pub(crate) fn run(&mut self, requests: Vec<Request>) -> Result<(), Error> {
        let mut first = Ok(());
        let mut rest = requests;
        while !rest.is_empty() {
            let mut size = 0;
            let fit = rest
                .iter()
                .take(BATCH_REQUESTS)
                .take_while(|r| {
                    size += r.bytes.len();
                    size <= BATCH_BYTES
                })
                .count();
            let tail = rest.split_off(fit.max(1));
            let outcome = self.run_batch(rest);
            first = first.and(outcome);
            rest = tail;
        }
        first
    }

    fn run_batch(&mut self, mut requests: Vec<Request>) -> Result<(), Error> {
        let base = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for request in &mut requests {
            self.sequence = self.sequence.wrapping_add(1);
            request.finish(self.sequence, 0);
            bytes.extend_from_slice(&request.bytes);
        }
        let Some(head) = requests.first() else { return Ok(()) };
        self.send(&bytes).map_err(|e| head.error(e))?;
        let mut first = Ok(());
        let mut missing = requests.len();
        let mut buffer = vec![0; BUFFER_BYTES];
        while missing > 0 {
            let length = self.receive(&mut buffer).map_err(|e| head.error(e))?;
            for message in messages(&buffer[..length]) {
                let index = message.sequence.wrapping_sub(base) as usize;
                let (Some(request), true) = (requests.get(index), message.kind == NLMSG_ERROR) else {
                    continue;
                };
                missing -= 1;
                let code = i32::from_ne_bytes(u32_at(message.payload, 0).unwrap_or(0).to_ne_bytes());
                let errno = Errno::from_raw(-code);
                if code != 0 && first.is_ok() && !request.tolerated.contains(&errno) {
                    first = Err(request.error(errno.into()));
                }
            }
        }
        first
    }

    /// Asks for all objects that match.
    pub(crate) fn dump(&mut self, request: Request) -> Result<Vec<Answer>, Error> {
        self.ask(request, NLM_F_DUMP)
    }

    /// Asks for one object.
    pub(crate) fn get(&mut self, request: Request) -> Result<Option<Answer>, Error> {
        Ok(self.ask(request, 0)?.pop())
    }

    fn ask(&mut self, mut request: Request, flags: u16) -> Result<Vec<Answer>, Error> {
        // A dump that others changed midway is asked for again, a few times.
        for _ in 0..4 {
            self.sequence = self.sequence.wrapping_add(1);
            request.finish(self.sequence, flags);
            self.send(&request.bytes).map_err(|e| request.error(e))?;
            let (answers, torn) = self.collect(&request)?;
            if !torn {
                return Ok(answers);
            }
        }
        Err(request.error(Errno::EAGAIN.into()))
    }

    fn collect(&mut self, request: &Request) -> Result<(Vec<Answer>, bool), Error> {
        let mut answers = Vec::new();
        let mut torn = false;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let length = self.receive(&mut buffer).map_err(|e| request.error(e))?;
            for message in messages(&buffer[..length]) {
                if message.sequence != self.sequence {
                    continue;
                }
                torn |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => return Ok((answers, torn)),
                    NLMSG_ERROR => {
                        let code = i32::from_ne_bytes(u32_at(message.payload, 0).unwrap_or(0).to_ne_bytes());
                        let errno = Errno::from_raw(-code);
                        if code == 0 || request.tolerated.contains(&errno) {
                            return Ok((answers, torn));
                        }
                        return Err(request.error(errno.into()));
                    }
                    _ => answers.push(Answer { payload: message.payload.to_vec() }),
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        sendto(self.socket.as_raw_fd(), bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(self.socket.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(length) => return Ok(length),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    /// Who made the kernel say this; 0: nobody.
    port: u32,
    payload: &'a [u8],
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            port: u32_at(bytes, 12)?,
            payload: bytes.get(HEADER_BYTES..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_back_as_they_were_written() {
        let request =
            Request::new(16, 0, "test").attr_str(3, "eth0").nest(18, |r| r.attr(1, b"veth").attr_u32(2, 7));
        let body = &request.bytes[HEADER_BYTES..];
        assert_eq!(attribute(body, 0, 3), Some(&b"eth0\0"[..]));
        let nested = attribute(body, 0, 18).unwrap();
        assert_eq!(attribute(nested, 0, 1), Some(&b"veth"[..]));
        assert_eq!(u32_at(attribute(nested, 0, 2).unwrap(), 0), Some(7));
    }

    /// In a network namespace of its own. Needs root.
    #[test]
    fn however_many_are_asked_at_once_all_are_answered() {
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let mut netlink = Netlink::route().unwrap();
            let addresses = (0..3000).map(|n| IpAddr::from(Ipv4Addr::from(0x0a00_0001 + n)));
            let requests = addresses.map(|address| route::add_address(1, address, true)).collect();
            netlink.run(requests).unwrap();
            assert_eq!(route::list_addresses(&mut netlink).unwrap().len(), 3000);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_torn_answer_ends_the_iteration() {
        assert_eq!(attributes(&[9, 0, 1, 0, 1], 0).count(), 0);
        assert_eq!(attributes(&[0, 0, 0, 0, 0, 0, 0, 0], 0).count(), 0);
        assert_eq!(messages(&[255, 0, 0, 0, 1, 1]).count(), 0);
    }
}
