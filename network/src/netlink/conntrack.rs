//! Counts connections to an endpoint that is to go, and forgets those whose endpoint is gone (nf_conntrack,
//! linux/netfilter/nfnetlink_conntrack.h).
//!
//! A UDP client that keeps its port would be sent to the old endpoint for as long as it talks, and a TCP client of a
//! node that died would wait for its own time-out. Without the entry the next packet is balanced anew: UDP goes on
//! with another endpoint, TCP is reset by it.

use std::net::IpAddr;

use ipnet::IpNet;
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
/// SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSE_WAIT (linux/netfilter/nf_conntrack_tcp.h).
const TCP_OPEN: std::ops::RangeInclusive<u8> = 2..=5;
const PROTOCOL_INFO_SCTP: u16 = 3;
/// ESTABLISHED, SHUTDOWN_SENT, SHUTDOWN_RECD (linux/netfilter/nf_conntrack_sctp.h).
const SCTP_OPEN: std::ops::RangeInclusive<u8> = 4..=6;
const STATE: u16 = 1;
const FILTER_SOURCE: u32 = 1;
const FILTER_PROTOCOL: u32 = 1 << 3;
/// CTA_IP_V4_SRC, CTA_IP_V6_SRC
const SOURCES: [u16; 2] = [1, 3];
const NESTED: u16 = super::NLA_F_NESTED;

/// `struct nfgenmsg` for the family of an address.
fn header(address: IpAddr) -> [u8; 4] {
    let family = if address.is_ipv4() { nix::libc::AF_INET } else { nix::libc::AF_INET6 };
    [family as u8, 0, 0, 0]
}

/// The part of a tuple that says who answers.
fn put_source(request: Request, address: IpAddr) -> Request {
    match address {
        IpAddr::V4(address) => request.attr(SOURCES[0], &address.octets()),
        IpAddr::V6(address) => request.attr(SOURCES[1], &address.octets()),
    }
}

/// Who answers, of a tuple.
fn source(tuple: &[u8]) -> Option<IpAddr> {
    let ip = attribute(tuple, 0, 1)?;
    SOURCES.iter().find_map(|kind| attribute(ip, 0, *kind)).and_then(super::ip)
}

/// Which connections to an endpoint are forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The endpoint left its service: established TCP connections may end in peace.
    Datagrams,
    /// The endpoint's node is gone.
    All,
}

/// Forgets this namespace's connections that are answered by an address of `range`.
pub(crate) fn forget(netlink: &mut Netlink, range: IpNet, kind: Kind) -> Result<(), Error> {
    let header = header(range.addr());
    let mut request =
        Request::new(GET, 0, format!("list connections to {range}")).tolerate(&[Errno::ENOENT]).put(&header);
    // The kernel can look for one address; for a range everything is listed.
    if kind == Kind::Datagrams && range.prefix_len() == range.max_prefix_len() {
        request = request
            .nest(TUPLE_REPLY, |r| {
                r.nest(1, |r| put_source(r, range.addr()))
                    .nest(2, |r| r.attr(1, &[nix::libc::IPPROTO_UDP as u8]))
            })
            .nest(FILTER, |r| r.attr_u32(1, 0).attr_u32(2, FILTER_SOURCE | FILTER_PROTOCOL));
    }
    let mut deletions = Vec::new();
    for answer in netlink.dump(request)? {
        // An old kernel ignores the filter: look again.
        let reply = attribute(&answer.payload, 4, TUPLE_REPLY).unwrap_or_default();
        let source = source(reply);
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
                    .put(&header)
                    .attr(TUPLE_ORIGINAL | NESTED, original),
            );
        }
    }
    netlink.run(deletions)
}

/// How many TCP connections and SCTP associations to an address are open: both ends have agreed on them, and not both have
/// ended them. Those that the address has opened itself don't count.
pub(crate) fn count_open(netlink: &mut Netlink, address: IpAddr) -> Result<usize, Error> {
    let tcp = count_open_of(netlink, address, nix::libc::IPPROTO_TCP, PROTOCOL_INFO_TCP, TCP_OPEN)?;
    let sctp = count_open_of(netlink, address, nix::libc::IPPROTO_SCTP, PROTOCOL_INFO_SCTP, SCTP_OPEN)?;
    Ok(tcp + sctp)
}

fn count_open_of(
    netlink: &mut Netlink,
    address: IpAddr,
    protocol: nix::libc::c_int,
    info: u16,
    open: std::ops::RangeInclusive<u8>,
) -> Result<usize, Error> {
    let operation = format!("list connections to {address}");
    let request = Request::new(GET, 0, operation)
        .tolerate(&[Errno::ENOENT])
        .put(&header(address))
        .nest(TUPLE_REPLY, |r| {
            r.nest(1, |r| put_source(r, address)).nest(2, |r| r.attr(1, &[protocol as u8]))
        })
        .nest(FILTER, |r| r.attr_u32(1, 0).attr_u32(2, FILTER_SOURCE | FILTER_PROTOCOL));
    let is_open = |payload: &[u8]| {
        // An old kernel ignores the filter: look again.
        let reply = attribute(payload, 4, TUPLE_REPLY).unwrap_or_default();
        let source = source(reply);
        let state = attribute(payload, 4, PROTOCOL_INFO)
            .and_then(|all| attribute(all, 0, info))
            .and_then(|own| attribute(own, 0, STATE));
        source == Some(address) && matches!(state, Some([state]) if open.contains(state))
    };
    Ok(netlink.dump(request)?.iter().filter(|answer| is_open(&answer.payload)).count())
}

/// Opens the socket for the others here.
pub(crate) fn open() -> Result<Netlink, Error> {
    Netlink::open(SockProtocol::NetlinkNetFilter)
}
