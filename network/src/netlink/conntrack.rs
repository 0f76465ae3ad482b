//! Counts connections to an endpoint that is to go, and forgets those whose endpoint is gone (nf_conntrack,
//! linux/netfilter/nfnetlink_conntrack.h).
//!
//! A UDP client that keeps its port would be sent to the old endpoint for as long as it talks, and a TCP client of a
//! node that died would wait for its own time-out. Without the entry the next packet is balanced anew: UDP goes on
//! with another endpoint, TCP is reset by it.

use std::collections::BTreeMap;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The endpoint left its service: established TCP connections may end in peace.
    Datagrams,
    /// The endpoint's node is gone.
    All,
}

/// Which connections are to be forgotten, by who answers them.
pub(crate) type Ranges = BTreeMap<IpNet, Kind>;

/// Whether it is one address.
pub(crate) fn is_single(range: &IpNet) -> bool {
    range.prefix_len() == range.max_prefix_len()
}

/// Forgets this namespace's connections that are answered by addresses of these ranges. The kernel looks through all
/// connections of the machine for it, which takes milliseconds: once for all ranges of a family.
pub(crate) fn forget(netlink: &mut Netlink, ranges: &Ranges) -> Result<(), Error> {
    let (v4, v6): (Ranges, Ranges) = ranges.iter().partition(|(range, _)| range.addr().is_ipv4());
    let mut errors = Vec::new();
    for ranges in [v4, v6] {
        errors.extend(forget_of_family(netlink, &ranges).err());
    }
    Error::all(errors)
}

fn forget_of_family(netlink: &mut Netlink, ranges: &Ranges) -> Result<(), Error> {
    let Some(first) = ranges.keys().next() else { return Ok(()) };
    let words = match ranges.len() {
        1 => first.to_string(),
        more => format!("{first} and {} others", more - 1),
    };
    let header = header(first.addr());
    let mut request =
        Request::new(GET, 0, format!("list connections to {words}")).tolerate(&[Errno::ENOENT]).put(&header);
    // The kernel can look for one address; for more everything is listed.
    if let ([(range, Kind::Datagrams)], true) = (&ranges.iter().collect::<Vec<_>>()[..], is_single(first)) {
        request = request
            .nest(TUPLE_REPLY, |r| {
                r.nest(1, |r| put_source(r, range.addr()))
                    .nest(2, |r| r.attr(1, &[nix::libc::IPPROTO_UDP as u8]))
            })
            .nest(FILTER, |r| r.attr_u32(1, 0).attr_u32(2, FILTER_SOURCE | FILTER_PROTOCOL));
    }
    let wide: Vec<_> = ranges.iter().filter(|(range, _)| !is_single(range)).collect();
    let kind_of = |source: IpAddr| {
        let single = ranges.get(&IpNet::from(source)).into_iter();
        single.chain(wide.iter().filter(|(range, _)| range.contains(&source)).map(|(_, kind)| *kind)).max()
    };
    let mut deletions = Vec::new();
    for answer in netlink.dump(request)? {
        // An old kernel ignores the filter: look again.
        let reply = attribute(&answer.payload, 4, TUPLE_REPLY).unwrap_or_default();
        let protocol = attribute(reply, 0, 2).and_then(|proto| attribute(proto, 0, 1));
        let udp = protocol == Some(&[nix::libc::IPPROTO_UDP as u8][..]);
        match source(reply).and_then(kind_of) {
            Some(Kind::All) => {}
            Some(Kind::Datagrams) if udp => {}
            Some(Kind::Datagrams) | None => continue,
        }
        if let Some(original) = attribute(&answer.payload, 4, TUPLE_ORIGINAL) {
            deletions.push(
                Request::new(DELETE, 0, format!("forget a connection to {words}"))
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

/// How many connections are answered by an address.
#[cfg(test)]
pub(crate) fn count(netlink: &mut Netlink, address: IpAddr) -> Result<usize, Error> {
    let request = Request::new(GET, 0, "list connections").put(&header(address));
    let is_from = |payload: &[u8]| attribute(payload, 4, TUPLE_REPLY).and_then(source) == Some(address);
    Ok(netlink.dump(request)?.iter().filter(|answer| is_from(&answer.payload)).count())
}

/// Opens the socket for the others here.
pub(crate) fn open() -> Result<Netlink, Error> {
    Netlink::open(SockProtocol::NetlinkNetFilter)
}
