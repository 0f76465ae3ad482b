//! Requests for interfaces: `RTM_*LINK` (linux/if_link.h).

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::{Answer, EXCLUSIVE, Netlink, Request, attribute, attributes, ipv4, u32_at};
use crate::error::Error;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const HEADER: usize = 16;
const IFF_UP: u32 = 1;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;
/// rp_filter: the sender has to be reachable, through whatever interface.
pub(crate) const RP_FILTER_LOOSE: u32 = 2;

/// Settings of an interface (linux/ip.h, IPV4_DEVCONF_*), with the kernel's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Conf {
    Forwarding = 1,
    SendRedirects = 6,
    RpFilter = 8,
    RouteLocalnet = 26,
}

impl Conf {
    pub(crate) const ALL: [Conf; 4] =
        [Conf::Forwarding, Conf::SendRedirects, Conf::RpFilter, Conf::RouteLocalnet];
}

impl std::fmt::Display for Conf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Conf::Forwarding => "forwarding",
            Conf::SendRedirects => "send_redirects",
            Conf::RpFilter => "rp_filter",
            Conf::RouteLocalnet => "route_localnet",
        })
    }
}

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// What is known of an interface.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    /// The node's own address, of a tunnel.
    pub(crate) local: Option<Ipv4Addr>,
    /// The interface that a tunnel's packets leave through, whatever routes say.
    pub(crate) lower: Option<u32>,
    /// A WireGuard device of the kernel.
    pub(crate) wireguard: bool,
    /// Values of the settings, from number 1 on.
    conf: Vec<u32>,
}

impl Link {
    /// The value of a setting; `None` where the interface has no IPv4.
    pub(crate) fn conf(&self, setting: Conf) -> Option<u32> {
        self.conf.get(setting as usize - 1).copied()
    }
}

/// `struct ifinfomsg`
fn header(index: u32, flags: u32, change: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

/// One end of a veth pair.
pub(crate) struct VethEnd<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
}

/// A veth pair whose second end stands in another namespace from its first moment on.
pub(crate) fn add_veth(here: &VethEnd, there: &VethEnd, netns: BorrowedFd, mtu: u32) -> Request {
    let fd = u32::try_from(netns.as_raw_fd()).unwrap_or(u32::MAX);
    Request::new(RTM_NEWLINK, EXCLUSIVE, format!("add veth {}", here.name))
        .put(&header(0, 0, 0))
        .attr_str(IFLA_IFNAME, here.name)
        .attr(IFLA_ADDRESS, &here.mac)
        .attr_u32(IFLA_MTU, mtu)
        .nest(IFLA_LINKINFO, |r| {
            r.attr_str(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |r| {
                r.nest(VETH_INFO_PEER, |r| {
                    r.put(&header(0, 0, 0))
                        .attr_str(IFLA_IFNAME, there.name)
                        .attr(IFLA_ADDRESS, &there.mac)
                        .attr_u32(IFLA_MTU, mtu)
                        .attr_u32(IFLA_NET_NS_FD, fd)
                })
            })
        })
}

/// Brings an interface up.
pub(crate) fn up(index: u32) -> Request {
    Request::new(RTM_SETLINK, 0, format!("bring up interface {index}")).put(&header(index, IFF_UP, IFF_UP))
}

/// Brings up an end of a container's veth: no IPv6 address by itself. On the node's side also no ICMP redirects, and
/// replies to the node's own loopback clients may pass.
pub(crate) fn up_veth(index: u32, node_side: bool, ipv6: bool) -> Request {
    let set = |r: Request| {
        let r = if node_side {
            r.nest(nix::libc::AF_INET as u16, |r| {
                r.nest(IFLA_INET_CONF, |r| {
                    r.attr_u32(Conf::SendRedirects as u16, 0).attr_u32(Conf::RouteLocalnet as u16, 1)
                })
            })
        } else {
            r
        };
        if !ipv6 {
            return r;
        }
        r.nest(nix::libc::AF_INET6 as u16, |r| r.attr(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]))
    };
    let request = up(index);
    if node_side || ipv6 { request.nest(IFLA_AF_SPEC, set) } else { request }
}

/// Changes a setting of an interface.
pub(crate) fn set_conf(index: u32, setting: Conf, value: u32) -> Request {
    Request::new(RTM_SETLINK, 0, format!("set {setting} of interface {index} to {value}"))
        .put(&header(index, 0, 0))
        .nest(IFLA_AF_SPEC, |r| {
            r.nest(nix::libc::AF_INET as u16, |r| {
                r.nest(IFLA_INET_CONF, |r| r.attr_u32(setting as u16, value))
            })
        })
}

/// Notes for people who look at `ip link` whose interface this is.
pub(crate) fn set_alias(index: u32, alias: &str) -> Request {
    Request::new(RTM_SETLINK, 0, format!("name the owner of interface {index}"))
        .put(&header(index, 0, 0))
        .attr(IFLA_IFALIAS, alias.as_bytes())
}

/// Removes an interface; fine if it is gone.
pub(crate) fn delete(name: &str) -> Request {
    Request::new(RTM_DELLINK, 0, format!("remove interface {name}"))
        .tolerate(&[Errno::ENODEV])
        .put(&header(0, 0, 0))
        .attr_str(IFLA_IFNAME, name)
}

/// The interface of that name, if there is one.
pub(crate) fn find(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, Error> {
    let request = Request::new(RTM_GETLINK, 0, format!("find interface {name}"))
        .tolerate(&[Errno::ENODEV])
        .put(&header(0, 0, 0))
        .attr_str(IFLA_IFNAME, name);
    Ok(netlink.get(request)?.as_ref().and_then(parse))
}

/// All interfaces.
pub(crate) fn list(netlink: &mut Netlink) -> Result<Vec<Link>, Error> {
    let request = Request::new(RTM_GETLINK, 0, "list interfaces").put(&header(0, 0, 0));
    Ok(netlink.dump(request)?.iter().filter_map(parse).collect())
}

fn parse(answer: &Answer) -> Option<Link> {
    let index = u32_at(&answer.payload, 4)?;
    let up = u32_at(&answer.payload, 8)? & IFF_UP != 0;
    let mut link = Link {
        index,
        name: String::new(),
        mtu: 0,
        up,
        local: None,
        lower: None,
        wireguard: false,
        conf: Vec::new(),
    };
    for (kind, value) in attributes(&answer.payload, HEADER) {
        match kind {
            IFLA_IFNAME => link.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_LINKINFO => {
                let data = attribute(value, 0, IFLA_INFO_DATA).unwrap_or_default();
                let tunnel =
                    attribute(value, 0, IFLA_INFO_KIND).is_some_and(|kind| kind.starts_with(b"vxlan"));
                let kind = attribute(value, 0, IFLA_INFO_KIND);
                link.wireguard = kind.is_some_and(|kind| kind.starts_with(b"wireguard"));
                let lower = attribute(data, 0, IFLA_VXLAN_LINK).and_then(|index| u32_at(index, 0));
                link.lower = lower.filter(|index| tunnel && *index != 0);
                link.local = tunnel.then(|| attribute(data, 0, IFLA_VXLAN_LOCAL).and_then(ipv4)).flatten();
            }
            IFLA_AF_SPEC => {
                let inet = attribute(value, 0, nix::libc::AF_INET as u16).unwrap_or_default();
                let conf = attribute(inet, 0, IFLA_INET_CONF).unwrap_or_default();
                link.conf = (0..conf.len() / 4).filter_map(|at| u32_at(conf, 4 * at)).collect();
            }
            _ => {}
        }
    }
    attribute(&answer.payload, HEADER, IFLA_IFNAME)?;
    Some(link)
}

/// A VXLAN device that learns nothing.
pub(crate) struct Tunnel<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
    pub(crate) local: Ipv4Addr,
    /// The interface that its packets leave through; `None`: as routes say.
    pub(crate) lower: Option<u32>,
    pub(crate) id: u32,
    pub(crate) port: u16,
    pub(crate) mtu: u32,
}

/// Makes a tunnel.
pub(crate) fn add_tunnel(tunnel: &Tunnel) -> Request {
    // linux/if_link.h, IFLA_VXLAN_*
    const ID: u16 = 1;
    const LEARNING: u16 = 7;
    const PORT: u16 = 15;
    Request::new(RTM_NEWLINK, EXCLUSIVE, format!("add tunnel {}", tunnel.name))
        .put(&header(0, 0, 0))
        .attr_str(IFLA_IFNAME, tunnel.name)
        .attr(IFLA_ADDRESS, &tunnel.mac)
        .attr_u32(IFLA_MTU, tunnel.mtu)
        .nest(IFLA_LINKINFO, |r| {
            r.attr_str(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, |r| {
                let r = match tunnel.lower {
                    Some(lower) => r.attr_u32(IFLA_VXLAN_LINK, lower),
                    None => r,
                };
                r.attr_u32(ID, tunnel.id)
                    .attr(IFLA_VXLAN_LOCAL, &tunnel.local.octets())
                    .attr(LEARNING, &[0])
                    .attr(PORT, &tunnel.port.to_be_bytes())
            })
        })
}

/// Makes a WireGuard device of the kernel.
pub(crate) fn add_wireguard(name: &str) -> Request {
    Request::new(RTM_NEWLINK, EXCLUSIVE, format!("add WireGuard interface {name}"))
        .put(&header(0, 0, 0))
        .attr_str(IFLA_IFNAME, name)
        .nest(IFLA_LINKINFO, |r| r.attr_str(IFLA_INFO_KIND, "wireguard"))
}

/// Changes the largest packet of an interface.
pub(crate) fn set_mtu(index: u32, mtu: u32) -> Request {
    Request::new(RTM_SETLINK, 0, format!("set the MTU of interface {index} to {mtu}"))
        .put(&header(index, 0, 0))
        .attr_u32(IFLA_MTU, mtu)
}

/// Brings the tunnel up. Clients of the routing mesh come through it with addresses that are routed elsewhere, so
/// the kernel may not compare the two.
pub(crate) fn up_tunnel(index: u32) -> Request {
    up(index).nest(IFLA_AF_SPEC, |r| {
        r.nest(nix::libc::AF_INET as u16, |r| {
            r.nest(IFLA_INET_CONF, |r| {
                r.attr_u32(Conf::SendRedirects as u16, 0)
                    .attr_u32(Conf::RpFilter as u16, RP_FILTER_LOOSE)
                    .attr_u32(Conf::RouteLocalnet as u16, 1)
            })
        })
    })
}
