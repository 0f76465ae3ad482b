//! Moves devices of our network namespace into the container's. A device loses its addresses on the way and is down
//! afterwards; so the addresses that somebody has given it are given to it again, and it is brought up.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, send,
};

use crate::init::Failure;
use crate::plan::NetDevice;
use crate::sys;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;

const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_PID: u16 = 19;
const IFA_CACHEINFO: u16 = 6;
const IFA_F_PERMANENT: u8 = 0x80;
const SCOPE_GLOBAL: u8 = 0;

const HEADER: usize = 16;

/// Moves devices into the network namespace of a process.
pub(super) fn move_all(devices: &[NetDevice], pid: i32) -> Result<(), Failure> {
    devices.iter().try_for_each(|device| {
        move_one(device, pid).map_err(|error| {
            Failure::step(format!("moving network device {} into the container", device.host), &error)
        })
    })
}

fn move_one(device: &NetDevice, pid: i32) -> io::Result<()> {
    let index = if_nametoindex(device.host.as_str())?;
    let mut ours = Route::open()?;
    let addresses = ours.addresses(index)?;
    let mut message = link(index, 0);
    attribute(&mut message, IFLA_NET_NS_PID, &pid.to_ne_bytes());
    attribute(&mut message, IFLA_IFNAME, &[device.container.as_bytes(), b"\0"].concat());
    ours.request(RTM_NEWLINK, ACKNOWLEDGE, &message)?;
    inside(pid, || {
        let index = if_nametoindex(device.container.as_str())?;
        let mut theirs = Route::open()?;
        for mut address in addresses {
            address[4..8].copy_from_slice(&index.to_ne_bytes());
            theirs.request(RTM_NEWADDR, ACKNOWLEDGE | CREATE, &address)?;
        }
        theirs.request(RTM_NEWLINK, ACKNOWLEDGE, &link(index, libc::IFF_UP as u32))
    })
}

/// Does something in the network namespace of a process. We come back whatever happens, or end.
fn inside(pid: i32, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let home = File::open("/proc/self/ns/net")?;
    let there = File::open(format!("/proc/{pid}/ns/net"))?;
    sys::setns(there.as_fd(), libc::CLONE_NEWNET)?;
    let result = act();
    sys::setns(home.as_fd(), libc::CLONE_NEWNET)?;
    result
}

/// The body of a message about a link: family, type, index, flags and which of them are meant.
fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut message = vec![0; 4];
    for word in [index, flags, flags] {
        message.extend(word.to_ne_bytes());
    }
    message
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend((value.len() as u16 + 4).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// A netlink socket for routes, of the network namespace in which it was opened.
struct Route {
    socket: OwnedFd,
    sequence: u32,
}

impl Route {
    fn open() -> io::Result<Route> {
        let protocol = SockProtocol::NetlinkRoute;
        let socket = socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Route { socket, sequence: 0 })
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | REQUEST).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(body);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// Asks for one thing, and waits until it is done.
    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.send(kind, flags, body)?;
        self.answers(|_, _| ())
    }

    /// Messages that make the global, permanent addresses of a device anew.
    fn addresses(&mut self, index: u32) -> io::Result<Vec<Vec<u8>>> {
        self.send(RTM_GETADDR, DUMP, &[0; 8])?;
        let mut found = Vec::new();
        self.answers(|kind, body| {
            // family, prefix length, flags, scope, index
            let [_, _, flags, scope, device @ ..] = body else { return };
            let ours = device.get(..4) == Some(&index.to_ne_bytes());
            if kind == RTM_NEWADDR && ours && *scope == SCOPE_GLOBAL && flags & IFA_F_PERMANENT != 0 {
                found.push(without_cache_info(body));
            }
        })?;
        Ok(found)
    }

    /// Reads until the end of the answer.
    fn answers(&mut self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..count];
            while rest.len() >= HEADER {
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                if length < HEADER || length > rest.len() {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                let body = &rest[HEADER..length];
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    kind => each(kind, body),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// Only tells when an address was made; the kernel would take it as a lifetime.
fn without_cache_info(body: &[u8]) -> Vec<u8> {
    let mut message = body[..8].to_vec();
    let mut rest = &body[8..];
    while rest.len() >= 4 {
        let length = u16::from_ne_bytes([rest[0], rest[1]]) as usize;
        let kind = u16::from_ne_bytes([rest[2], rest[3]]);
        if length < 4 || length > rest.len() {
            break;
        }
        if kind != IFA_CACHEINFO {
            attribute(&mut message, kind, &rest[4..length]);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    message
}
