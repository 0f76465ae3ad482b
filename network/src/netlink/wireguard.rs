//! The kernel's WireGuard: generic netlink (linux/genetlink.h, linux/wireguard.h).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::{Netlink, Request, attribute, attributes, ipv4, u16_at};
use crate::encryption::Key;
use crate::error::Error;

const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
const DEVICE_NAME: u16 = 2;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_PUBLIC_KEY: u16 = 4;
const DEVICE_LISTEN_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_ALLOWED: u16 = 9;
const REMOVE: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;
const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_BITS: u16 = 3;

/// `struct genlmsghdr`: command, version
fn header(command: u8) -> [u8; 4] {
    [command, 1, 0, 0]
}

/// What a device has.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) public: Key,
    pub(crate) port: u16,
    /// Those that have just the one address they should have.
    pub(crate) peers: BTreeMap<Key, Ipv4Addr>,
    /// Those that have not.
    pub(crate) others: Vec<Key>,
}

/// A way to the kernel's WireGuard devices of one network namespace.
#[derive(Debug)]
pub(crate) struct WireGuard {
    netlink: Netlink,
    family: u16,
}

impl WireGuard {
    /// `None`: the kernel has none. The family is there once the module is, so a device has to be made first.
    pub(crate) fn open() -> Result<Option<WireGuard>, Error> {
        let mut netlink = Netlink::open(SockProtocol::NetlinkGeneric)?;
        let request = Request::new(CONTROLLER, 0, "find WireGuard")
            .tolerate(&[Errno::ENOENT])
            .put(&header(GET_FAMILY))
            .attr_str(FAMILY_NAME, "wireguard");
        let Some(answer) = netlink.get(request)? else { return Ok(None) };
        let family = attribute(&answer.payload, 4, FAMILY_ID).and_then(|id| u16_at(id, 0));
        Ok(family.map(|family| WireGuard { netlink, family }))
    }

    /// What the device has now.
    pub(crate) fn look(&mut self, device: &str, port: u16) -> Result<Device, Error> {
        let request = Request::new(self.family, 0, format!("look at {device}"))
            .put(&header(GET_DEVICE))
            .attr_str(DEVICE_NAME, device);
        let mut seen = Device::default();
        // A device with many peers comes in pieces.
        for answer in self.netlink.dump(request)? {
            for (kind, value) in attributes(&answer.payload, 4) {
                match kind {
                    DEVICE_PUBLIC_KEY => seen.public = value.try_into().unwrap_or_default(),
                    DEVICE_LISTEN_PORT => seen.port = u16_at(value, 0).unwrap_or(0),
                    DEVICE_PEERS => seen.add_peers(value, port),
                    _ => {}
                }
            }
        }
        Ok(seen)
    }

    /// Gives a device its key and port, which its present peers keep.
    pub(crate) fn set_key(&mut self, device: &str, private: &Key, port: u16) -> Result<(), Error> {
        let request = Request::new(self.family, 0, format!("set the key of {device}"))
            .put(&header(SET_DEVICE))
            .attr_str(DEVICE_NAME, device)
            .attr(DEVICE_PRIVATE_KEY, private)
            .attr(DEVICE_LISTEN_PORT, &port.to_ne_bytes());
        self.netlink.run(vec![request])
    }

    /// A peer at an address, which is all that it may send from and get.
    pub(crate) fn put(&mut self, device: &str, peer: &Key, at: Ipv4Addr, port: u16) -> Result<(), Error> {
        // struct sockaddr_in
        let mut endpoint = [0; 16];
        endpoint[..2].copy_from_slice(&(nix::libc::AF_INET as u16).to_ne_bytes());
        endpoint[2..4].copy_from_slice(&port.to_be_bytes());
        endpoint[4..8].copy_from_slice(&at.octets());
        let allowed = |r: Request| {
            r.nest(0, |r| {
                r.attr(ALLOWED_FAMILY, &(nix::libc::AF_INET as u16).to_ne_bytes())
                    .attr(ALLOWED_ADDRESS, &at.octets())
                    .attr(ALLOWED_BITS, &[32])
            })
        };
        self.set_peer(device, format!("set WireGuard peer {at}"), |r| {
            r.attr(PEER_PUBLIC_KEY, peer)
                .attr_u32(PEER_FLAGS, REPLACE_ALLOWED)
                .attr(PEER_ENDPOINT, &endpoint)
                .nest(PEER_ALLOWED, allowed)
        })
    }

    /// Its packets are refused from now on.
    pub(crate) fn remove(&mut self, device: &str, peer: &Key) -> Result<(), Error> {
        self.set_peer(device, format!("remove a WireGuard peer of {device}"), |r| {
            r.attr(PEER_PUBLIC_KEY, peer).attr_u32(PEER_FLAGS, REMOVE)
        })
    }

    fn set_peer(
        &mut self,
        device: &str,
        operation: String,
        peer: impl FnOnce(Request) -> Request,
    ) -> Result<(), Error> {
        let request = Request::new(self.family, 0, operation)
            .put(&header(SET_DEVICE))
            .attr_str(DEVICE_NAME, device)
            .nest(DEVICE_PEERS, |r| r.nest(0, peer));
        self.netlink.run(vec![request])
    }
}

impl Device {
    fn add_peers(&mut self, list: &[u8], port: u16) {
        for (_, peer) in attributes(list, 0) {
            let Some(key) = attribute(peer, 0, PEER_PUBLIC_KEY).and_then(|key| key.try_into().ok()) else {
                continue;
            };
            let endpoint = attribute(peer, 0, PEER_ENDPOINT).unwrap_or_default();
            let at = endpoint.get(4..8).and_then(ipv4).filter(|_| endpoint[2..4] == port.to_be_bytes());
            let allowed: Vec<Option<Ipv4Addr>> =
                attributes(attribute(peer, 0, PEER_ALLOWED).unwrap_or_default(), 0)
                    .map(|(_, range)| {
                        let whole = attribute(range, 0, ALLOWED_BITS) == Some(&[32]);
                        attribute(range, 0, ALLOWED_ADDRESS).and_then(ipv4).filter(|_| whole)
                    })
                    .collect();
            match at {
                Some(at) if allowed == [Some(at)] => drop(self.peers.insert(key, at)),
                _ => self.others.push(key),
            }
        }
    }
}
