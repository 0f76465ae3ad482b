//! Requests for addresses, routes, rules and neighbours (rtnetlink(7), linux/rtnetlink.h, linux/fib_rules.h).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::errno::Errno;

use super::link::Mac;
use super::{CREATE, EXCLUSIVE, Netlink, REPLACE, Request, attribute, ip, ipv4, u32_at};
use crate::error::Error;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
const AF_INET: u8 = nix::libc::AF_INET as u8;
const AF_INET6: u8 = nix::libc::AF_INET6 as u8;
/// The protocol's number.
const UDP: u8 = nix::libc::IPPROTO_UDP as u8;
/// A dump of all families.
const AF_UNSPEC: u8 = 0;
/// State of a neighbour that needs no ARP.
pub(crate) const PERMANENT: u16 = 0x80;

/// `proto` of our routes in `ip route`: how they are told from those of others.
pub(crate) const ROUTE_PROTOCOL: u8 = 113;
pub(crate) const MAIN_TABLE: u32 = 254;
/// linux/if_addr.h: who gave an address.
const IFA_PROTO: u16 = 11;
/// What the kernel says to routes and addresses (`EACCES`) and neighbours (`EINVAL`) where IPv6 was turned off after the
/// start: what is for it then waits until that changes. Everything is looked at again and again, so nothing else is hidden.
const TURNED_OFF: &[Errno] = &[Errno::EACCES, Errno::EINVAL];
const SCOPE_UNIVERSE: u8 = 0;
pub(crate) const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;
const LOOPBACK: u32 = 1;

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn unspecified(family: u8) -> IpAddr {
    if family == AF_INET6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index
fn address_header(address: IpAddr, scope: u8, index: u32) -> [u8; 8] {
    // Nobody else can have an IPv6 address of ours: the kernel need not ask around first (IFA_F_NODAD).
    let (length, flags) = if address.is_ipv4() { (32, 0) } else { (128, 0x02) };
    let [a, b, c, d] = index.to_ne_bytes();
    [family(address), length, flags, scope, a, b, c, d]
}

/// Gives an interface a /32 or /128. A node's own is never chosen by itself for what does not go to containers.
pub(crate) fn add_address(index: u32, address: IpAddr, host_only: bool) -> Request {
    const FOREVER: u32 = u32::MAX;
    let scope = if host_only { SCOPE_HOST } else { SCOPE_UNIVERSE };
    let request = Request::new(RTM_NEWADDR, REPLACE, format!("add address {address}"))
        .put(&address_header(address, scope, index))
        .attr(2, &octets(address));
    match address {
        IpAddr::V4(address) => request.attr(1, &address.octets()),
        IpAddr::V6(_) if host_only => {
            // struct ifa_cacheinfo: preferred (not at all), valid, and two times
            let lives = [0, FOREVER, 0, 0].map(u32::to_ne_bytes).concat();
            request.attr(6, &lives).attr(IFA_PROTO, &[ROUTE_PROTOCOL]).tolerate(TURNED_OFF)
        }
        IpAddr::V6(_) => request,
    }
}

/// The IPv6 addresses that some fabric gave this interface for itself. Kernels before 5.18 don't tell.
pub(crate) fn list_own_addresses(netlink: &mut Netlink, index: u32) -> Result<Vec<IpAddr>, Error> {
    let request = Request::new(RTM_GETADDR, 0, "list addresses").put(&[AF_INET6, 0, 0, 0, 0, 0, 0, 0]);
    let parse = |payload: &[u8]| {
        let ours = u32_at(payload, 4)? == index && attribute(payload, 8, IFA_PROTO)? == [ROUTE_PROTOCOL];
        attribute(payload, 8, 1).and_then(ip).filter(|_| ours)
    };
    Ok(netlink.dump(request)?.iter().filter_map(|answer| parse(&answer.payload)).collect())
}

/// Takes a /32 or /128 away; fine if it is gone.
pub(crate) fn delete_address(index: u32, address: IpAddr) -> Request {
    Request::new(RTM_DELADDR, 0, format!("remove address {address}"))
        .tolerate(&[Errno::EADDRNOTAVAIL, Errno::ENODEV])
        .put(&address_header(address, SCOPE_HOST, index))
        .attr(2, &octets(address))
}

/// Index of the interface that has an address.
pub(crate) fn interface_of(netlink: &mut Netlink, address: IpAddr) -> Result<Option<u32>, Error> {
    let all = list_addresses(netlink)?;
    Ok(all.into_iter().find(|(_, has)| *has == address).map(|(interface, _)| interface))
}

/// All addresses, with their interfaces.
pub(crate) fn list_addresses(netlink: &mut Netlink) -> Result<Vec<(u32, IpAddr)>, Error> {
    let request = Request::new(RTM_GETADDR, 0, "list addresses").put(&[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0]);
    let parse = |payload: &[u8]| {
        // IFA_LOCAL; IPv6 has IFA_ADDRESS alone.
        let address = attribute(payload, 8, 2).or_else(|| attribute(payload, 8, 1)).and_then(ip)?;
        (*payload.first()? == family(address)).then_some((u32_at(payload, 4)?, address))
    };
    Ok(netlink.dump(request)?.iter().filter_map(|answer| parse(&answer.payload)).collect())
}

/// A route that is ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) to: IpNet,
    pub(crate) table: u32,
    pub(crate) interface: u32,
    pub(crate) via: Option<IpAddr>,
    pub(crate) source: Option<IpAddr>,
}

impl Route {
    /// Answers to what [::1] of this node has sent may come in by this interface. The kernel knows `::1` on the loopback
    /// interface alone, and otherwise drops them once their address is translated back; what comes from outside to `::1`
    /// it drops before it looks for a route.
    pub(crate) fn loopback_answers(interface: u32) -> Route {
        let to = IpAddr::from(Ipv6Addr::LOCALHOST).into();
        Route { to, table: MAIN_TABLE, interface, via: None, source: None }
    }

    /// Whether it is one of those: there is one for each interface.
    pub(crate) fn is_loopback_answer(&self) -> bool {
        self.to.addr() == Ipv6Addr::LOCALHOST && self.interface != LOOPBACK
    }

    /// `struct rtmsg`
    fn header(&self) -> [u8; 12] {
        const UNICAST: u8 = 1;
        const LOCAL: u8 = 2;
        const ONLINK: u32 = 4;
        // IPv6 has no other routes to the loopback interface: unicast ones become refusals, also for the node itself.
        let to_self = !self.to.addr().is_ipv4() && (self.interface == LOOPBACK || self.is_loopback_answer());
        let kind = if to_self { LOCAL } else { UNICAST };
        let family = family(self.to.addr());
        let scope = if self.via.is_some() { SCOPE_UNIVERSE } else { SCOPE_LINK };
        let table = u8::try_from(self.table).unwrap_or(0);
        let flags = if self.via.is_some() { ONLINK } else { 0 };
        let mut bytes = [family, self.to.prefix_len(), 0, 0, table, ROUTE_PROTOCOL, scope, kind, 0, 0, 0, 0];
        bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
        bytes
    }

    fn attributes(&self, mut request: Request) -> Request {
        request = request.attr(1, &octets(self.to.network())).attr_u32(15, self.table);
        request = request.attr_u32(4, self.interface);
        if let Some(via) = self.via {
            request = request.attr(5, &octets(via));
        }
        if let Some(source) = self.source {
            request = request.attr(7, &octets(source));
        }
        // Of the same metric they would take each other's place.
        if self.is_loopback_answer() { request.attr_u32(6, self.interface) } else { request }
    }

    /// Sets the route, in one step where there is another to the same destination.
    pub(crate) fn replace(&self) -> Request {
        self.set(REPLACE)
    }

    /// Adds the route where no other can be.
    pub(crate) fn set(&self, flags: u16) -> Request {
        let request = Request::new(RTM_NEWROUTE, flags, format!("set route to {}", self.to));
        let tolerated = if self.to.addr().is_ipv6() { TURNED_OFF } else { &[] };
        self.attributes(request.tolerate(tolerated).put(&self.header()))
    }

    /// Removes the route; fine if it is gone.
    pub(crate) fn delete(&self) -> Request {
        let request = Request::new(RTM_DELROUTE, 0, format!("remove route to {}", self.to))
            .tolerate(&[Errno::ESRCH, Errno::ENODEV]);
        self.attributes(request.put(&self.header()))
    }
}

/// All routes with our protocol number, of all tables.
pub(crate) fn list_routes(netlink: &mut Netlink) -> Result<Vec<Route>, Error> {
    let request =
        Request::new(RTM_GETROUTE, 0, "list routes").put(&[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut routes = Vec::new();
    for answer in netlink.dump(request)? {
        let payload = &answer.payload;
        if payload.get(5) != Some(&ROUTE_PROTOCOL) {
            continue;
        }
        let address = |kind| attribute(payload, 12, kind).and_then(ip);
        let (Some(&family), Some(&prefix)) = (payload.first(), payload.get(1)) else { continue };
        if ![AF_INET, AF_INET6].contains(&family) {
            continue;
        }
        let to = address(1).unwrap_or_else(|| unspecified(family));
        let (Ok(to), Some(interface)) =
            (IpNet::new(to, prefix), attribute(payload, 12, 4).and_then(|v| u32_at(v, 0)))
        else {
            continue;
        };
        let table = attribute(payload, 12, 15).and_then(|v| u32_at(v, 0)).unwrap_or(MAIN_TABLE);
        routes.push(Route { to, table, interface, via: address(5), source: address(7) });
    }
    Ok(routes)
}

/// Where the main table leads by routes that are not ours; the default route is none of them.
pub(crate) fn list_foreign(netlink: &mut Netlink) -> Result<Vec<IpNet>, Error> {
    const UNICAST: u8 = 1;
    let request =
        Request::new(RTM_GETROUTE, 0, "list routes").put(&[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let parse = |payload: &[u8]| {
        let table = attribute(payload, 12, 15).and_then(|v| u32_at(v, 0)).unwrap_or(MAIN_TABLE);
        let foreign = payload.get(5) != Some(&ROUTE_PROTOCOL) && payload.get(7) == Some(&UNICAST);
        let to = attribute(payload, 12, 1).and_then(ip).filter(|to| payload.first() == Some(&family(*to)))?;
        let to = IpNet::new(to, *payload.get(1)?).ok()?;
        (foreign && table == MAIN_TABLE && to.prefix_len() > 0).then_some(to)
    };
    let mut routes: Vec<IpNet> =
        netlink.dump(request)?.iter().filter_map(|answer| parse(&answer.payload)).collect();
    routes.sort_unstable();
    routes.dedup();
    Ok(routes)
}

/// How a packet to `address` would leave: interface, and the router if it is not on the segment.
pub(crate) fn lookup(
    netlink: &mut Netlink,
    address: Ipv4Addr,
) -> Result<Option<(u32, Option<Ipv4Addr>)>, Error> {
    let request = Request::new(RTM_GETROUTE, 0, format!("look up the route to {address}"))
        .tolerate(&[Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES, Errno::EINVAL])
        .put(&[AF_INET, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        .attr(1, &address.octets());
    let Some(answer) = netlink.get(request)? else { return Ok(None) };
    let interface = attribute(&answer.payload, 12, 4).and_then(|v| u32_at(v, 0));
    let via = attribute(&answer.payload, 12, 5).and_then(ipv4);
    Ok(interface.map(|interface| (interface, via)))
}

/// `struct ndmsg`: family, pad, index, state, flags, type
fn neighbour_header(family: u8, index: u32, state: u16) -> [u8; 12] {
    let [a, b, c, d] = index.to_ne_bytes();
    let [e, f] = state.to_ne_bytes();
    [family, 0, 0, 0, a, b, c, d, e, f, 0, 0]
}

/// A neighbour that needs no ARP and no neighbour discovery.
pub(crate) fn add_neighbour(index: u32, address: IpAddr, mac: Mac) -> Request {
    let tolerated = if address.is_ipv6() { TURNED_OFF } else { &[] };
    Request::new(RTM_NEWNEIGH, REPLACE, format!("set neighbour {address}"))
        .tolerate(tolerated)
        .put(&neighbour_header(family(address), index, PERMANENT))
        .attr(1, &octets(address))
        .attr(2, &mac)
}

/// Forgets one; fine if it is gone.
pub(crate) fn delete_neighbour(index: u32, address: IpAddr) -> Request {
    Request::new(RTM_DELNEIGH, 0, format!("remove neighbour {address}"))
        .tolerate(&[Errno::ENOENT, Errno::ENODEV, Errno::EINVAL])
        .put(&neighbour_header(family(address), index, 0))
        .attr(1, &octets(address))
}

/// linux/neighbour.h: of a tunnel's entry, the interface that its packets leave through.
const NDA_IFINDEX: u16 = 8;

/// Tells a tunnel which node has an Ethernet address, and through which interface alone it is reached.
pub(crate) fn add_forwarding(tunnel: u32, mac: Mac, node: Ipv4Addr, through: Option<u32>) -> Request {
    const PERMANENT_NO_ARP: u16 = PERMANENT | 0x40;
    const SELF: u8 = 0x02;
    let mut header = neighbour_header(AF_INET, tunnel, PERMANENT_NO_ARP);
    header[0] = nix::libc::AF_BRIDGE as u8;
    header[10] = SELF;
    let request = Request::new(RTM_NEWNEIGH, REPLACE, format!("set tunnel to {node}"))
        .put(&header)
        .attr(2, &mac)
        .attr(1, &node.octets());
    match through {
        Some(interface) => request.attr_u32(NDA_IFINDEX, interface),
        None => request,
    }
}

/// Makes the kernel find a neighbour's Ethernet address, as if a packet were on its way.
pub(crate) fn resolve_neighbour(index: u32, address: Ipv4Addr) -> Request {
    const USE: u8 = 0x01;
    let mut header = neighbour_header(AF_INET, index, 0);
    header[10] = USE;
    Request::new(RTM_NEWNEIGH, CREATE, format!("resolve neighbour {address}"))
        .put(&header)
        .attr(1, &address.octets())
}

/// Neighbours on an interface whose Ethernet address is known.
pub(crate) fn list_neighbours(netlink: &mut Netlink, index: u32) -> Result<Vec<(Ipv4Addr, Mac)>, Error> {
    const NO_ADDRESS: u16 = 0x01 | 0x20; // incomplete, failed
    let request = Request::new(RTM_GETNEIGH, 0, "list neighbours").put(&neighbour_header(AF_INET, 0, 0));
    let answers = netlink.dump(request)?;
    let parse = |payload: &[u8]| {
        let state = super::u16_at(payload, 8)?;
        if u32_at(payload, 4)? != index || state & NO_ADDRESS != 0 {
            return None;
        }
        let mac = attribute(payload, 12, 2)?.try_into().ok()?;
        Some((attribute(payload, 12, 1).and_then(ipv4)?, mac))
    };
    Ok(answers.iter().filter_map(|a| parse(&a.payload)).collect())
}

/// Neighbours that were written down and not learned.
pub(crate) fn list_permanent(netlink: &mut Netlink) -> Result<Vec<(u32, IpAddr, Mac)>, Error> {
    let request = Request::new(RTM_GETNEIGH, 0, "list neighbours").put(&neighbour_header(AF_UNSPEC, 0, 0));
    let parse = |payload: &[u8]| {
        if super::u16_at(payload, 8)? & PERMANENT == 0 {
            return None;
        }
        let mac = attribute(payload, 12, 2)?.try_into().ok()?;
        Some((u32_at(payload, 4)?, attribute(payload, 12, 1).and_then(ip)?, mac))
    };
    Ok(netlink.dump(request)?.iter().filter_map(|answer| parse(&answer.payload)).collect())
}

/// An Ethernet address, its node, and the interface that alone leads there.
pub(crate) type Forwarding = (Mac, Ipv4Addr, Option<u32>);

/// What a tunnel knows of who has which Ethernet address.
pub(crate) fn list_forwardings(netlink: &mut Netlink, tunnel: u32) -> Result<Vec<Forwarding>, Error> {
    let mut header = neighbour_header(AF_INET, 0, 0);
    header[0] = nix::libc::AF_BRIDGE as u8;
    let request = Request::new(RTM_GETNEIGH, 0, "list what tunnels know").put(&header);
    let parse = |payload: &[u8]| {
        let mac = attribute(payload, 12, 2)?.try_into().ok()?;
        let node = attribute(payload, 12, 1).and_then(ipv4)?;
        let through = attribute(payload, 12, NDA_IFINDEX).and_then(|index| u32_at(index, 0));
        (u32_at(payload, 4)? == tunnel).then_some((mac, node, through))
    };
    Ok(netlink.dump(request)?.iter().filter_map(|answer| parse(&answer.payload)).collect())
}

/// What a rule of ours does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RuleAction {
    /// Go on at another rule unless the packet is marked: one step for packets that do not concern us.
    SkipTo(u32),
    /// Look into a table.
    Table(u32),
    /// Where `SkipTo` goes on.
    Nothing,
}

/// A routing rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    pub(crate) priority: u32,
    /// It is for IPv6.
    pub(crate) v6: bool,
    /// Only packets of this address.
    pub(crate) from: Option<IpAddr>,
    /// Only packets that the node itself sends to this UDP port.
    pub(crate) sent_to: Option<u16>,
    pub(crate) mark: u32,
    pub(crate) mask: u32,
    pub(crate) action: RuleAction,
}

impl Rule {
    fn request(&self, kind: u16, flags: u16, operation: &str) -> Request {
        let (action, table) = match self.action {
            RuleAction::Table(table) => (1, table),
            RuleAction::SkipTo(_) => (2, 0),
            RuleAction::Nothing => (3, 0),
        };
        // struct fib_rule_hdr
        let source_bits = self.from.map_or(0, |from| if from.is_ipv4() { 32 } else { 128 });
        let family = if self.v6 { AF_INET6 } else { AF_INET };
        let header = [family, 0, source_bits, 0, 0, 0, 0, action, 0, 0, 0, 0];
        let mut request = Request::new(kind, flags, format!("{operation} routing rule {}", self.priority))
            .put(&header)
            .attr_u32(6, self.priority)
            .attr(21, &[ROUTE_PROTOCOL]);
        if let Some(from) = self.from {
            request = request.attr(2, &octets(from));
        }
        if let Some(port) = self.sent_to {
            // struct fib_rule_port_range
            let [low, high] = port.to_ne_bytes();
            request = request.attr(3, b"lo\0").attr(22, &[UDP]).attr(24, &[low, high, low, high]);
        }
        if self.mask != 0 {
            request = request.attr_u32(10, self.mark).attr_u32(16, self.mask);
        }
        match self.action {
            RuleAction::SkipTo(priority) => request.attr_u32(4, priority),
            RuleAction::Table(_) => request.attr_u32(15, table),
            RuleAction::Nothing => request,
        }
    }

    pub(crate) fn add(&self) -> Request {
        self.request(RTM_NEWRULE, EXCLUSIVE, "add").tolerate(&[Errno::EEXIST])
    }

    pub(crate) fn delete(&self) -> Request {
        self.request(RTM_DELRULE, 0, "remove").tolerate(&[Errno::ENOENT])
    }
}

/// All rules with our protocol number.
pub(crate) fn list_rules(netlink: &mut Netlink) -> Result<Vec<Rule>, Error> {
    let request =
        Request::new(RTM_GETRULE, 0, "list routing rules").put(&[AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut rules = Vec::new();
    for answer in netlink.dump(request)? {
        let payload = &answer.payload;
        let value = |kind| attribute(payload, 12, kind).and_then(|v| u32_at(v, 0));
        if attribute(payload, 12, 21) != Some(&[ROUTE_PROTOCOL][..]) {
            continue;
        }
        let action = match payload.get(7) {
            Some(1) => RuleAction::Table(value(15).unwrap_or(0)),
            Some(2) => RuleAction::SkipTo(value(4).unwrap_or(0)),
            _ => RuleAction::Nothing,
        };
        let (mark, mask) = (value(10).unwrap_or(0), value(16).unwrap_or(0));
        let from = attribute(payload, 12, 2).and_then(ip);
        let port = attribute(payload, 12, 24).and_then(|range| range.first_chunk());
        let sent_to = port.map(|port| u16::from_ne_bytes(*port));
        let v6 = match payload.first() {
            Some(&AF_INET) => false,
            Some(&AF_INET6) => true,
            _ => continue,
        };
        rules.push(Rule { priority: value(6).unwrap_or(0), v6, from, sent_to, mark, mask, action });
    }
    Ok(rules)
}
