//! Which ports processes of this namespace listen on (sock_diag(7)).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, Ipv6Addr};

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::{Netlink, Request, u32_at};
use crate::error::Error;
use crate::model::Protocol;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

/// A socket that waits for clients.
#[derive(Debug, Clone, Copy)]
struct Listener {
    port: u16,
    /// `None`: on all addresses. Of IPv6 alone is no more said than of both.
    address: Option<IpAddr>,
    inode: u32,
}

/// The sockets of this namespace that wait for clients, as of the moment when they were first asked for.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    by_protocol: BTreeMap<Protocol, Vec<Listener>>,
}

impl Listeners {
    /// The inode of a socket that waits on the port: on this address, or on any if `address` is `None`. The fabric's
    /// own resolver does not count: balancing leaves its address alone.
    pub(crate) fn find(
        &mut self,
        port: u16,
        protocol: Protocol,
        address: Option<IpAddr>,
    ) -> Result<Option<u32>, Error> {
        let all = match self.by_protocol.entry(protocol) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(asked) => asked.insert(list(protocol)?),
        };
        let meets = |l: &&Listener| {
            l.port == port
                && l.address != Some(crate::DNS.into())
                && (l.address.is_none() || address.is_none() || l.address == address)
        };
        Ok(all.iter().find(meets).map(|l| l.inode))
    }
}

fn list(protocol: Protocol) -> Result<Vec<Listener>, Error> {
    let (number, state) = match protocol {
        Protocol::Tcp => (nix::libc::IPPROTO_TCP, TCP_LISTEN),
        // An unconnected UDP socket is in state "close".
        Protocol::Udp => (nix::libc::IPPROTO_UDP, TCP_CLOSE),
        Protocol::Sctp => (nix::libc::IPPROTO_SCTP, TCP_LISTEN),
    };
    let mut netlink = Netlink::open(SockProtocol::NetlinkSockDiag)?;
    let mut listeners = Vec::new();
    for family in [nix::libc::AF_INET, nix::libc::AF_INET6] {
        // struct inet_diag_req_v2: family, protocol, extensions, pad, states, then a socket id (48 bytes)
        let mut header = [0_u8; 56];
        header[0] = family as u8;
        header[1] = number as u8;
        header[4..8].copy_from_slice(&(1_u32 << state).to_ne_bytes());
        let request = Request::new(SOCK_DIAG_BY_FAMILY, 0, format!("list {protocol} sockets"))
            // A kernel without that protocol has no sockets of it.
            .tolerate(&[Errno::ENOENT, Errno::EPROTONOSUPPORT, Errno::EINVAL])
            .put(&header);
        for answer in netlink.dump(request)? {
            // struct inet_diag_msg: family, state, timer, retrans, then a socket id: ports in network order, and
            // addresses; the inode is last
            let Some(port) = answer.payload.get(4..6).map(|b| u16::from_be_bytes([b[0], b[1]])) else {
                continue;
            };
            let address = address(family, &answer.payload);
            listeners.push(Listener { port, address, inode: u32_at(&answer.payload, 68).unwrap_or(0) });
        }
    }
    Ok(listeners)
}

/// The address that a socket is bound to, where that is one. An IPv4 one may be bound as IPv6.
fn address(family: i32, message: &[u8]) -> Option<IpAddr> {
    let address = if family == nix::libc::AF_INET {
        super::ipv4(message.get(8..12)?)?.into()
    } else {
        let octets: [u8; 16] = message.get(8..24)?.try_into().ok()?;
        IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
    };
    (!address.is_unspecified()).then_some(address)
}
