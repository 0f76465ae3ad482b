//! The node's own side: kernel settings, its two link-local addresses, and who listens on a port.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::error::Error;
use crate::fabric::{DNS, GATEWAY};
use crate::model::Protocol;
use crate::netlink::diag::Listeners;
use crate::netlink::{Netlink, link, route};

const LOOPBACK: u32 = 1;
/// What interfaces have where nothing else is known.
const USUAL_MTU: u32 = 1500;

/// The interface that leads to the other nodes.
#[derive(Debug, Clone)]
pub(crate) struct Underlay {
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) mtu: u32,
}

/// Sets what routing needs and finds the underlay's interface.
pub(crate) fn prepare(netlink: &mut Netlink, underlay: Ipv4Addr) -> Result<Underlay, Error> {
    netlink.run(vec![
        link::up(LOOPBACK),
        route::add_address(LOOPBACK, GATEWAY, true),
        route::add_address(LOOPBACK, DNS, true),
    ])?;
    set("net/ipv4/ip_forward", 1)?;
    // Peers and clients on the same segment would be told to go around the balancer.
    set("net/ipv4/conf/all/send_redirects", 0)?;
    if underlay.is_unspecified() || underlay.is_loopback() {
        return Ok(Underlay { address: None, mtu: USUAL_MTU });
    }
    let missing = || Error::Invalid {
        field: "options.underlay",
        value: underlay.to_string(),
        expected: "expected an address that an interface of this node has",
    };
    let index = route::interface_of(netlink, underlay)?.ok_or_else(missing)?;
    let links = link::list(netlink)?;
    let link = links.into_iter().find(|link| link.index == index).ok_or_else(missing)?;
    let conf = format!("net/ipv4/conf/{}", link.name);
    set(&format!("{conf}/send_redirects"), 0)?;
    // Loopback clients of published ports leave through it, before their address is translated.
    set(&format!("{conf}/route_localnet"), 1)?;
    // Clients of the routing mesh come in through a peer, with addresses that may be routed elsewhere.
    if get(&format!("{conf}/rp_filter"))? == 1 || get("net/ipv4/conf/all/rp_filter")? == 1 {
        set(&format!("{conf}/rp_filter"), 2)?;
    }
    Ok(Underlay { address: Some(underlay), mtu: link.mtu })
}

/// The ranges that this machine reaches by routes of its own: no network of containers may have them. Asked in the
/// network namespace of the calling thread.
pub fn foreign_routes() -> Result<Vec<ipnet::Ipv4Net>, Error> {
    route::list_foreign(&mut Netlink::route()?)
}

/// The IPv4 addresses at which others reach this machine. Asked in the network namespace of the calling thread.
pub fn own_addresses() -> Result<Vec<Ipv4Addr>, Error> {
    let mut addresses = route::list_addresses(&mut Netlink::route()?)?;
    addresses.retain(|address| !address.is_loopback() && ![GATEWAY, DNS].contains(address));
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// Whether this machine has an address.
pub(crate) fn has_address(address: Ipv4Addr) -> Result<bool, Error> {
    Ok(address.is_loopback() || route::interface_of(&mut Netlink::route()?, address)?.is_some())
}

/// Takes the link-local addresses away. Kernel settings stay: others may rely on them by now.
pub(crate) fn release(netlink: &mut Netlink) -> Result<(), Error> {
    netlink.run(vec![route::delete_address(LOOPBACK, GATEWAY), route::delete_address(LOOPBACK, DNS)])
}

/// Who listens on a port of the node: any address, or one.
pub(crate) fn port_taken(
    port: u16,
    protocol: Protocol,
    address: Option<Ipv4Addr>,
) -> Result<Option<String>, Error> {
    port_taken_of(&mut Listeners::default(), port, protocol, address)
}

/// The same, for many ports at one moment.
pub(crate) fn port_taken_of(
    listeners: &mut Listeners,
    port: u16,
    protocol: Protocol,
    address: Option<Ipv4Addr>,
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

/// Writes a setting only if it is another, so that a read-only /proc/sys that is right already is fine.
fn set(name: &str, value: u32) -> Result<(), Error> {
    if get(name)? == value {
        return Ok(());
    }
    let path = PathBuf::from("/proc/sys").join(name);
    fs::write(&path, value.to_string()).map_err(|source| Error::Sysctl {
        path,
        value: value.to_string(),
        source,
    })
}

fn get(name: &str) -> Result<u32, Error> {
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
