//! Which ports processes of this namespace listen on (sock_diag(7)).

use std::net::Ipv4Addr;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::{Netlink, Request, u32_at};
use crate::error::Error;
use crate::model::Protocol;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

/// The inode of a socket that waits for clients on the port: on this address, or on all, or on any if `address` is
/// `None`. The fabric's own resolver does not count: balancing leaves its address alone.
pub(crate) fn listener(
    port: u16,
    protocol: Protocol,
    address: Option<Ipv4Addr>,
) -> Result<Option<u32>, Error> {
    let (number, state) = match protocol {
        Protocol::Tcp => (nix::libc::IPPROTO_TCP, TCP_LISTEN),
        // An unconnected UDP socket is in state "close".
        Protocol::Udp => (nix::libc::IPPROTO_UDP, TCP_CLOSE),
        Protocol::Sctp => (nix::libc::IPPROTO_SCTP, TCP_LISTEN),
    };
    let mut netlink = Netlink::open(SockProtocol::NetlinkSockDiag)?;
    for family in [nix::libc::AF_INET, nix::libc::AF_INET6] {
        // struct inet_diag_req_v2: family, protocol, extensions, pad, states, then a socket id (48 bytes)
        let mut header = [0_u8; 56];
        header[0] = family as u8;
        header[1] = number as u8;
        header[4..8].copy_from_slice(&(1_u32 << state).to_ne_bytes());
        header[8..10].copy_from_slice(&port.to_be_bytes());
        let request = Request::new(SOCK_DIAG_BY_FAMILY, 0, format!("list {protocol} sockets"))
            // A kernel without that protocol has no sockets of it.
            .tolerate(&[Errno::ENOENT, Errno::EPROTONOSUPPORT, Errno::EINVAL])
            .put(&header);
        for answer in netlink.dump(request)? {
            // struct inet_diag_msg: family, state, timer, retrans, then source port in network order
            let source = answer.payload.get(4..6).map(|b| u16::from_be_bytes([b[0], b[1]]));
            let bound = answer.payload.get(8..12).map(|b| Ipv4Addr::new(b[0], b[1], b[2], b[3]));
            let bound = bound.unwrap_or(Ipv4Addr::UNSPECIFIED);
            let meets = family == nix::libc::AF_INET6
                || bound.is_unspecified()
                || address.is_none_or(|address| address == bound);
            if source == Some(port) && meets && bound != crate::DNS {
                return Ok(Some(u32_at(&answer.payload, 68).unwrap_or(0)));
            }
        }
    }
    Ok(None)
}
