//! Forgets connections whose endpoint is gone (nf_conntrack, linux/netfilter/nfnetlink_conntrack.h).
//!
//! A UDP client that keeps its port would be sent to the old endpoint for as long as it talks, and a TCP client of a
//! node that died would wait for its own time-out. Without the entry the next packet is balanced anew: UDP goes on
//! with another endpoint, TCP is reset by it.

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

/// Opens the socket for [`forget`].
pub(crate) fn open() -> Result<Netlink, Error> {
    Netlink::open(SockProtocol::NetlinkNetFilter)
}
