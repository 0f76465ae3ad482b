//! The node's own side: kernel settings, its two link-local addresses, and who listens on a port.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::{fs, io};

use ipnet::IpNet;

use crate::error::Error;
use crate::fabric::{DNS, GATEWAY};
use crate::model::Protocol;
use crate::netlink::diag::Listeners;
use crate::netlink::link::{self, Conf, Link};
use crate::netlink::route::Route;
use crate::netlink::{Netlink, Request, route};
use crate::object::Object;
use crate::sys;
use crate::twins::{GATEWAY6, Twins};

const LOOPBACK: u32 = 1;
/// As many IPv6 addresses of a machine are told to others.
const MOST_ADDRESSES: usize = 64;
/// What interfaces have where nothing else is known.
const USUAL_MTU: u32 = 1500;

/// The interface that leads to the other nodes.
#[derive(Debug, Clone)]
pub(crate) struct Underlay {
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) mtu: u32,
    pub(crate) name: Option<String>,
}

/// Finds the underlay's interface.
pub(crate) fn prepare(netlink: &mut Netlink, underlay: Ipv4Addr) -> Result<Underlay, Error> {
    if underlay.is_unspecified() || underlay.is_loopback() {
        return Ok(Underlay { address: None, mtu: USUAL_MTU, name: None });
    }
    let missing = || Error::Invalid {
        field: "options.underlay",
        value: underlay.to_string(),
        expected: "expected an address that an interface of this node has",
    };
    let index = route::interface_of(netlink, underlay.into())?.ok_or_else(missing)?;
    let links = link::list(netlink)?;
    let link = links.into_iter().find(|link| link.index == index).ok_or_else(missing)?;
    Ok(Underlay { address: Some(underlay), mtu: link.mtu, name: Some(link.name) })
}

/// Whether the kernel has IPv6.
pub(crate) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf").exists()
}

/// Whether containers can have it: the kernel does, and nobody has turned it off where it is needed.
pub(crate) fn uses_ipv6(underlay: &Underlay) -> bool {
    let names = ["all", "lo"].into_iter().chain(underlay.name.as_deref());
    has_ipv6()
        && names
            .into_iter()
            .all(|name| get(&format!("net/ipv6/conf/{name}/disable_ipv6")).is_ok_and(|off| off == 0))
}

/// The settings of the whole node that routing needs.
const SETTINGS: [(&str, u32); 3] = [
    ("net/ipv4/ip_forward", 1),
    // Peers and clients on the same segment would be told to go around the balancer.
    ("net/ipv4/conf/all/send_redirects", 0),
    (FORWARDING6, 1),
];

const FORWARDING6: &str = "net/ipv6/conf/all/forwarding";

/// A kernel without IPv6, or where it is turned off, needs not all of them.
fn settings() -> impl Iterator<Item = (&'static str, u32)> {
    let off = get("net/ipv6/conf/all/disable_ipv6").map_or(true, |off| off != 0);
    SETTINGS.into_iter().filter(move |(name, _)| *name != FORWARDING6 || !off)
}

/// A router does not listen to routers, unless it is told to: a machine that has its default route by their
/// advertisements has to keep it.
fn keep_advertised_routes() {
    for interface in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
        let path = interface.path().join("accept_ra");
        if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1")
            && let Err(error) = fs::write(&path, "2")
        {
            tracing::warn!(%error, path = %path.display(), "routes that routers advertise may be lost");
        }
    }
}

fn in_words((name, value): (&str, u32)) -> String {
    format!("{} = {value}", name.replace('/', "."))
}

/// Those that are not right, in words.
pub(crate) fn wrong_settings() -> Result<Vec<String>, Error> {
    let mut wrong = Vec::new();
    for (name, value) in settings() {
        if get(name)? != value {
            wrong.push(in_words((name, value)));
        }
    }
    Ok(wrong)
}

/// Sets one of them.
pub(crate) fn mend_setting(words: &str) -> Result<(), Error> {
    let Some((name, value)) = SETTINGS.into_iter().find(|setting| in_words(*setting) == words) else {
        return Ok(());
    };
    if name == FORWARDING6 {
        keep_advertised_routes();
    }
    let path = PathBuf::from("/proc/sys").join(name);
    fs::write(&path, value.to_string()).map_err(|source| Error::Sysctl {
        path,
        value: value.to_string(),
        source,
    })
}

/// Folders of settings of whose changes netlink says nothing.
pub(crate) fn setting_folders(underlay: &Underlay) -> Vec<String> {
    let names = std::iter::once("all").chain(underlay.name.as_deref());
    let mut folders: Vec<String> = names.map(|name| format!("/proc/sys/net/ipv4/conf/{name}")).collect();
    if has_ipv6() {
        folders.push("/proc/sys/net/ipv6/conf/all".to_owned());
    }
    folders
}

/// The node's own addresses, and settings of the interface that leads to the other nodes.
pub(crate) fn wanted(
    netlink: &mut Netlink,
    links: &BTreeMap<String, Link>,
    underlay: Ipv4Addr,
    twins: &Twins,
) -> Result<Vec<Object>, Error> {
    let own = own(underlay, twins).into_iter();
    let mut wanted: Vec<Object> =
        own.map(|address| Object::Address { interface: LOOPBACK, address }).collect();
    if let Some(lo) = links.values().find(|link| link.index == LOOPBACK) {
        wanted.push(Object::Up { interface: LOOPBACK, name: lo.name.clone() });
    }
    if underlay.is_unspecified() || underlay.is_loopback() {
        return Ok(wanted);
    }
    // An address that is away is not ours to put back.
    let Some(interface) = route::interface_of(netlink, underlay.into())? else { return Ok(wanted) };
    let Some(link) = links.values().find(|link| link.index == interface) else { return Ok(wanted) };
    let mut settings = vec![
        (Conf::Forwarding, 1),
        (Conf::SendRedirects, 0),
        // Loopback clients of published ports leave through it, before their address is translated.
        (Conf::RouteLocalnet, 1),
    ];
    // Clients of the routing mesh come in through a peer, with addresses that may be routed elsewhere. The kernel takes
    // the larger of both.
    let strict = [link.conf(Conf::RpFilter).unwrap_or(0), get("net/ipv4/conf/all/rp_filter")?];
    if strict.into_iter().max() == Some(1) {
        settings.push((Conf::RpFilter, link::RP_FILTER_LOOSE));
    }
    let name = &link.name;
    let object = |(setting, value)| Object::Setting { interface, name: name.clone(), setting, value };
    wanted.extend(settings.into_iter().map(object));
    if twins.on() {
        wanted.push(Object::Route(Route::loopback_answers(interface)));
    }
    Ok(wanted)
}

/// The addresses that we give the node.
fn own(underlay: Ipv4Addr, twins: &Twins) -> Vec<IpAddr> {
    let twin = (!underlay.is_unspecified()).then(|| twins.of(underlay)).flatten();
    let v6 = twins.on().then_some(GATEWAY6).into_iter().chain(twin);
    [GATEWAY, DNS].map(IpAddr::from).into_iter().chain(v6.map(IpAddr::from)).collect()
}

/// Gives the node its IPv6 addresses, where it has them not: routes name them as their source. Those of before go.
pub(crate) fn give_addresses(netlink: &mut Netlink, underlay: Ipv4Addr, twins: &Twins) -> Result<(), Error> {
    let has = route::list_addresses(netlink)?;
    let own: Vec<IpAddr> = own(underlay, twins).into_iter().filter(IpAddr::is_ipv6).collect();
    let missing = own.iter().filter(|address| !has.contains(&(LOOPBACK, **address)));
    let mut requests: Vec<Request> =
        missing.map(|address| route::add_address(LOOPBACK, *address, true)).collect();
    requests.extend(drop_former(netlink, underlay, twins)?);
    netlink.run(requests)
}

/// Takes away what the node had in another cluster, or with another address. Who gave it may put it back once more while it
/// ends, so this is asked for again and again.
pub(crate) fn drop_former(
    netlink: &mut Netlink,
    underlay: Ipv4Addr,
    twins: &Twins,
) -> Result<Vec<Request>, Error> {
    let own = own(underlay, twins);
    let had = route::list_own_addresses(netlink, LOOPBACK)?.into_iter();
    let former = had.filter(|address| !own.contains(address));
    Ok(former.map(|address| route::delete_address(LOOPBACK, address)).collect())
}

/// The ranges that this machine reaches by routes of its own: no network of containers may have them. Asked in the
/// network namespace of the calling thread.
pub fn foreign_routes() -> Result<Vec<IpNet>, Error> {
    route::list_foreign(&mut Netlink::route()?)
}

/// The IPv4 addresses at which others reach this machine. Asked in the network namespace of the calling thread.
pub fn own_addresses() -> Result<Vec<Ipv4Addr>, Error> {
    let all = route::list_addresses(&mut Netlink::route()?)?;
    let v4 = |(_, address)| if let IpAddr::V4(address) = address { Some(address) } else { None };
    let mut addresses: Vec<Ipv4Addr> = all.into_iter().filter_map(v4).collect();
    addresses.retain(|address| !address.is_loopback() && ![GATEWAY, DNS].contains(address));
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// The IPv6 addresses at which others reach this machine, also the one that it has for that from the fabric.
pub fn own_ipv6_addresses() -> Result<Vec<Ipv6Addr>, Error> {
    let all = route::list_addresses(&mut Netlink::route()?)?;
    let v6 = |(_, address)| if let IpAddr::V6(address) = address { Some(address) } else { None };
    let mut addresses: Vec<Ipv6Addr> = all.into_iter().filter_map(v6).collect();
    addresses.retain(|a| !a.is_loopback() && !a.is_unicast_link_local() && *a != GATEWAY6);
    // Those of private ranges first: the fabric's is one of them.
    addresses.sort_unstable_by_key(|address| (!address.is_unique_local(), *address));
    addresses.dedup();
    addresses.truncate(MOST_ADDRESSES);
    Ok(addresses)
}

/// Whether this machine has an address.
pub(crate) fn has_address(address: IpAddr) -> Result<bool, Error> {
    Ok(address.is_loopback() || route::interface_of(&mut Netlink::route()?, address)?.is_some())
}

/// Takes those that we gave it away. Kernel settings stay, since others may rely on them by now; but for the one that nobody
/// should have without our table: with it, what comes from outside for 127.0.0.1 would get there.
pub(crate) fn release(netlink: &mut Netlink, underlay: Ipv4Addr, twins: &Twins) -> Result<(), Error> {
    let mut requests: Vec<Request> =
        own(underlay, twins).into_iter().map(|address| route::delete_address(LOOPBACK, address)).collect();
    let answers = route::list_routes(netlink)?.into_iter().filter(Route::is_loopback_answer);
    requests.extend(answers.map(|route| route.delete()));
    let mut errors: Vec<Error> = netlink.run(requests).err().into_iter().collect();
    let interface = route::interface_of(netlink, underlay.into())?;
    let links = link::list(netlink)?;
    if let Some(link) = links.iter().find(|link| interface == Some(link.index)) {
        let path = PathBuf::from(format!("/proc/sys/net/ipv4/conf/{}/route_localnet", link.name));
        let written = fs::write(&path, "0");
        errors.extend(written.err().map(|source| Error::Sysctl { path, value: "0".to_owned(), source }));
    }
    Error::all(errors)
}

/// Whether the kernel has a protocol. Only asked where somebody wants it: the question loads its module.
pub(crate) fn has_protocol(protocol: Protocol) -> bool {
    let missing = |error: io::Error| {
        matches!(error.raw_os_error(), Some(nix::libc::EPROTONOSUPPORT | nix::libc::ESOCKTNOSUPPORT))
    };
    // RFC 6458, section 3.1.1.
    let socket = || sys::socket(nix::libc::SOCK_STREAM, nix::libc::IPPROTO_SCTP);
    protocol != Protocol::Sctp || !socket().is_err_and(missing)
}

/// Who listens on a port of the node: any address, or one.
pub(crate) fn port_taken(
    port: u16,
    protocol: Protocol,
    address: Option<IpAddr>,
) -> Result<Option<String>, Error> {
    port_taken_of(&mut Listeners::default(), port, protocol, address)
}

/// The same, for many ports at one moment.
pub(crate) fn port_taken_of(
    listeners: &mut Listeners,
    port: u16,
    protocol: Protocol,
    address: Option<IpAddr>,
) -> Result<Option<String>, Error> {
    Ok(listeners.find(port, protocol, address)?.map(describe))
}

/// The process that has a socket, by its inode.
fn describe(inode: u32) -> String {
    let unknown = "another process".to_owned();
    let Ok(processes) = fs::read_dir("/proc") else { return unknown };
    let wanted = format!("socket:[{inode}]");
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else { continue };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        let has = files.flatten().any(|f| fs::read_link(f.path()).is_ok_and(|to| to.as_os_str() == &*wanted));
        if has {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return format!("process {pid} ({})", command.trim());
        }
    }
    unknown
}

/// A setting of the calling thread's network namespace, a number.
pub(crate) fn get(name: &str) -> Result<u32, Error> {
    let path = PathBuf::from("/proc/sys").join(name);
    let text = fs::read_to_string(&path).map_err(|source| Error::State {
        path: path.clone(),
        operation: "read",
        source,
    })?;
    text.trim().parse().map_err(|_| Error::State {
        path,
        operation: "read a number from",
        source: std::io::ErrorKind::InvalidData.into(),
    })
}
