//! What the kernel tells of changes, whoever made them: multicast groups (rtnetlink(7), linux/rtnetlink.h RTNLGRP_*,
//! linux/netfilter/nfnetlink.h NFNLGRP_*).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
};

use super::{BUFFER_BYTES, attribute, messages, u16_at};
use crate::error::Error;

/// Room for what a large table's replacement says. Too little costs a look, no more.
const ROOM_BYTES: usize = 1024 * 1024;

const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const TABLE_LOCAL: u8 = 255;
const SCOPE_LINK: u8 = 253;
const AF_INET6: u8 = 10;
const NFT_SUBSYSTEM: u16 = 10;
/// `NFT_MSG_NEWGEN` says that a transaction is at its end, and of which table is not said.
const NFT_NEWGEN: u16 = 15;

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News<'a> {
    /// Interfaces, addresses, routes, rules, settings, and neighbours that were written down.
    Object,
    /// A neighbour was learned, or is another now.
    Neighbour,
    /// Something of a table of nftables.
    Table(&'a [u8]),
    /// More happened than could be told.
    Missed,
}

/// A socket that hears of changes in the network namespace in which it was opened. It never blocks.
#[derive(Debug)]
pub(crate) struct Ear {
    socket: OwnedFd,
    netfilter: bool,
}

impl Ear {
    /// Hears of interfaces, addresses, routes, rules, neighbours and settings.
    pub(crate) fn route() -> Result<Ear, Error> {
        const LINK: u32 = 1;
        const NEIGHBOUR: u32 = 3;
        const ADDRESS: u32 = 5;
        const ROUTE: u32 = 7;
        const RULE: u32 = 8;
        const SETTING: u32 = 24;
        const ADDRESS6: u32 = 9;
        const ROUTE6: u32 = 11;
        const RULE6: u32 = 19;
        let groups = [LINK, NEIGHBOUR, ADDRESS, ROUTE, RULE, SETTING, ADDRESS6, ROUTE6, RULE6];
        Ear::open(SockProtocol::NetlinkRoute, &groups)
    }

    /// Hears of nftables.
    pub(crate) fn nftables() -> Result<Ear, Error> {
        const NFTABLES: u32 = 7;
        Ear::open(SockProtocol::NetlinkNetFilter, &[NFTABLES])
    }

    fn open(protocol: SockProtocol, groups: &[u32]) -> Result<Ear, Error> {
        let groups = groups.iter().fold(0, |bits, group| bits | 1 << (group - 1));
        let open = || -> nix::Result<OwnedFd> {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
            setsockopt(&fd, RcvBufForce, &ROOM_BYTES)?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
            Ok(fd)
        };
        let socket = open()
            .map_err(|e| Error::Netlink { operation: "listen for changes".to_owned(), source: e.into() })?;
        Ok(Ear { socket, netfilter: protocol == SockProtocol::NetlinkNetFilter })
    }

    /// Hands on what was told since the last time, each with the port of the socket through which it was done.
    pub(crate) fn hear(&self, mut each: impl FnMut(u32, News<'_>)) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(Errno::ENOBUFS) => {
                    each(0, News::Missed);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            for message in messages(&buffer[..length]) {
                let news = if self.netfilter {
                    table(message.kind, message.payload)
                } else {
                    object(message.kind, message.payload)
                };
                if let Some(news) = news {
                    each(message.port, news);
                }
            }
        }
    }
}

impl AsFd for Ear {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn table(kind: u16, payload: &[u8]) -> Option<News<'_>> {
    if kind >> 8 != NFT_SUBSYSTEM || kind & 0xff == NFT_NEWGEN {
        return None;
    }
    // All messages of the subsystem name their table first.
    let name = attribute(payload, 4, 1)?;
    Some(News::Table(name.strip_suffix(&[0]).unwrap_or(name)))
}

fn object(kind: u16, payload: &[u8]) -> Option<News<'static>> {
    match kind {
        RTM_NEWNEIGH => {
            let state = u16_at(payload, 8)?;
            let written = state & super::route::PERMANENT != 0;
            Some(if written { News::Object } else { News::Neighbour })
        }
        RTM_DELNEIGH => Some(News::Object),
        // Those come and go with addresses.
        RTM_NEWROUTE | RTM_DELROUTE if payload.get(4) == Some(&TABLE_LOCAL) => None,
        // By IPv6 each interface brings some of its own, and no way to a peer depends on them.
        RTM_NEWROUTE | RTM_DELROUTE if payload.first() == Some(&AF_INET6) => {
            (payload.get(5) == Some(&super::route::ROUTE_PROTOCOL)).then_some(News::Object)
        }
        RTM_NEWADDR | RTM_DELADDR if payload.first() == Some(&AF_INET6) => {
            (payload.get(3) != Some(&SCOPE_LINK)).then_some(News::Object)
        }
        _ => Some(News::Object),
    }
}
