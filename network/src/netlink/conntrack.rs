//! Counts connections to an endpoint that is to go, and forgets those whose endpoint is gone (nf_conntrack,
//! linux/netfilter/nfnetlink_conntrack.h).
//!
//! A UDP client that keeps its port would be sent to the old endpoint for as long as it talks, and a TCP client of a
//! node that died would wait for its own time-out. Without the entry the next packet is balanced anew: UDP goes on
//! with another endpoint, TCP is reset by it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::{Netlink, Request, attribute};
use crate::error::Error;

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const FILTER: u16 = 25;
const PROTOCOL_INFO: u16 = 4;
const PROTOCOL_INFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
/// SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSE_WAIT (linux/netfilter/nf_conntrack_tcp.h).
const TCP_OPEN: std::ops::RangeInclusive<u8> = 2..=5;
const FILTER_SOURCE: u32 = 1;
const FILTER_PROTOCOL: u32 = 1 << 3;
/// `struct nfgenmsg` for IPv4
const HEADER: [u8; 4] = [nix::libc::AF_INET as u8, 0, 0, 0];
const NESTED: u16 = super::NLA_F_NESTED;

/// Which connections to an endpoint are forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The endpoint left its service: established TCP connections may end in peace.
    Datagrams,
    /// The endpoint's node is gone.
    All,
}

/// Forgets this namespace's connections that are answered by an address of `range`.
pub(crate) fn forget(netlink: &mut Netlink, range: Ipv4Net, kind: Kind) -> Result<(), Error> {
    let mut request =
        Request::new(GET, 0, format!("list connections to {range}")).tolerate(&[Errno::ENOENT]).put(&HEADER);
    // The kernel can look for one address; for a range everything is listed.
    if kind == Kind::Datagrams && range.prefix_len() == 32 {
        request = request
            .nest(TUPLE_REPLY, |r| {
                r.nest(1, |r| r.attr(1, &range.addr().octets()))
                    .nest(2, |r| r.attr(1, &[nix::libc::IPPROTO_UDP as u8]))
            })
            .nest(FILTER, |r| r.attr_u32(1, 0).attr_u32(2, FILTER_SOURCE | FILTER_PROTOCOL));
    }
    let mut deletions = Vec::new();
    for answer in netlink.dump(request)? {
        // An old kernel ignores the filter: look again.
        let reply = attribute(&answer.payload, 4, TUPLE_REPLY).unwrap_or_default();
        let source = attribute(reply, 0, 1).and_then(|ip| attribute(ip, 0, 1)).and_then(super::ipv4);
        let protocol = attribute(reply, 0, 2).and_then(|proto| attribute(proto, 0, 1));
        let udp = protocol == Some(&[nix::libc::IPPROTO_UDP as u8][..]);
        let meant = source.is_some_and(|source| range.contains(&source));
        if !meant || (kind == Kind::Datagrams && !udp) {
            continue;
        }
        if let Some(original) = attribute(&answer.payload, 4, TUPLE_ORIGINAL) {
            deletions.push(
                Request::new(DELETE, 0, format!("forget a connection to {range}"))
                    .tolerate(&[Errno::ENOENT])
                    .put(&HEADER)
                    .attr(TUPLE_ORIGINAL | NESTED, original),
            );
        }
    }
    netlink.run(deletions)
}

/// How many TCP connections to an address are open: both ends have agreed on them, and not both have ended them. Those
/// that the address has opened itself don't count.
pub(crate) fn count_open(netlink: &mut Netlink, address: Ipv4Addr) -> Result<usize, Error> {
    let operation = format!("list connections to {address}");
    let request = Request::new(GET, 0, operation)
        .tolerate(&[Errno::ENOENT])
        .put(&HEADER)
        .nest(TUPLE_REPLY, |r| {
            r.nest(1, |r| r.attr(1, &address.octets()))
                .nest(2, |r| r.attr(1, &[nix::libc::IPPROTO_TCP as u8]))
        })
        .nest(FILTER, |r| r.attr_u32(1, 0).attr_u32(2, FILTER_SOURCE | FILTER_PROTOCOL));
    let is_open = |payload: &[u8]| {
        // An old kernel ignores the filter: look again.
        let reply = attribute(payload, 4, TUPLE_REPLY).unwrap_or_default();
        let source = attribute(reply, 0, 1).and_then(|ip| attribute(ip, 0, 1)).and_then(super::ipv4);
        let state = attribute(payload, 4, PROTOCOL_INFO)
            .and_then(|info| attribute(info, 0, PROTOCOL_INFO_TCP))
            .and_then(|tcp| attribute(tcp, 0, TCP_STATE));
        source == Some(address) && matches!(state, Some([state]) if TCP_OPEN.contains(state))
    };
    Ok(netlink.dump(request)?.iter().filter(|answer| is_open(&answer.payload)).count())
}

/// Opens the socket for the others here.
pub(crate) fn open() -> Result<Netlink, Error> {
    Netlink::open(SockProtocol::NetlinkNetFilter)
}
