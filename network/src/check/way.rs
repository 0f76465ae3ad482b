//! The way to another node, as containers' packets take it.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{Mark, SocketError};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, getsockopt, setsockopt, socket,
};

use super::Finding;
use super::icmp::Prober;
use crate::encryption;
use crate::error::Error;
use crate::routes::TUNNEL_PORT;
use crate::survey::Way;

/// The smallest that everything has to carry is smaller than this; nobody builds less.
const SMALL: u32 = 100;
const LEAST: u32 = 576;
const TRIES: u32 = 4;
/// For a connection to be accepted.
const CONNECT: Duration = Duration::from_secs(3);

/// Tries the way to `peer`, whose TLS port is known. `named` is what the other node is called.
pub fn look(way: &Way, named: &str, port: u16) -> Result<Vec<Finding>, Error> {
    let failed = |source: io::Error| Error::Netlink { operation: format!("try the way to {named}"), source };
    let mut findings = Vec::new();
    let mut direct = Prober::new(way.own, way.peer, 0).map_err(failed)?;
    if !direct.passes(SMALL, TRIES).map_err(failed)? {
        findings.push(Finding::new(
            "icmp",
            format!("{} does not answer ICMP echo requests, so the size of packets can't be tried", way.peer),
            format!(
                "let ICMP pass between the nodes: without it too large packets get lost without a word (nft add \
                 rule inet filter input ip saddr {} icmp type {{ echo-request, destination-unreachable }} accept)",
                way.own
            ),
        ));
    } else if !direct.passes(way.mtu, TRIES).map_err(failed)? {
        let most = largest(way.mtu, |size| direct.passes(size, 2)).map_err(failed)?;
        findings.push(Finding::new(
            "mtu",
            format!(
                "packets of more than {most} bytes don't get to {named}, though {} takes {}",
                way.interface, way.mtu
            ),
            format!(
                "let the path carry {} bytes, or give the nodes' interfaces what it carries: ip link set dev {} \
                 mtu {most}, and restart rorquald there",
                way.mtu, way.interface
            ),
        ));
    }
    if let Some(mtu) = way.tunnel_mtu {
        findings.extend(look_through_tunnel(way, named, port, mtu).map_err(failed)?);
    }
    Ok(findings)
}

fn look_through_tunnel(way: &Way, named: &str, port: u16, mtu: u32) -> io::Result<Option<Finding>> {
    let mut prober = Prober::new(way.own, way.peer, way.mark)?;
    let (name, tunnel_port) =
        if way.encrypted { ("WireGuard", encryption::PORT) } else { ("VXLAN", TUNNEL_PORT) };
    if !prober.passes(SMALL, TRIES)? {
        return Ok(Some(Finding::new(
            "tunnel",
            format!(
                "nothing gets through the tunnel to {named}: {name}, UDP port {tunnel_port} of {}",
                way.peer
            ),
            format!(
                "open UDP port {tunnel_port} between the nodes, in firewalls of the machines and of the network"
            ),
        )));
    }
    if !prober.passes(mtu, TRIES)? {
        let most = largest(mtu, |size| prober.passes(size, 2))?;
        return Ok(Some(Finding::new(
            "mtu",
            format!(
                "packets of more than {most} bytes don't get through the tunnel to {named}, which takes {mtu}"
            ),
            format!(
                "let the path to {} carry {} bytes, or make the MTU of {} smaller",
                way.peer, way.mtu, way.interface
            ),
        )));
    }
    if connects(way.own, SocketAddrV4::new(way.peer, port), way.mark)? {
        return Ok(None);
    }
    Ok(Some(Finding::new(
        "offload",
        format!(
            "TCP does not get through the tunnel to {named}, though ICMP does: checksums go wrong on the way, or TCP is filtered"
        ),
        format!(
            "turn off checksum offloading on both nodes: ethtool -K {} tx-checksum-ip-generic off \
             tx-udp_tnl-csum-segmentation off",
            way.interface
        ),
    )))
}

/// The largest size that passes, of those below one that does not.
fn largest(fails: u32, mut passes: impl FnMut(u32) -> io::Result<bool>) -> io::Result<u32> {
    let (mut good, mut bad) = (SMALL, fails);
    if LEAST < bad && passes(LEAST)? {
        good = LEAST;
    }
    while good + 1 < bad {
        let middle = good + (bad - good) / 2;
        if passes(middle)? { good = middle } else { bad = middle }
    }
    Ok(good)
}

/// Whether a TCP connection comes about, by the way of packets that have the mark.
fn connects(own: Ipv4Addr, to: SocketAddrV4, mark: u32) -> io::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&stream, Mark, &mark)?;
    bind(stream.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(own, 0)))?;
    match connect(stream.as_raw_fd(), &SockaddrIn::from(to)) {
        Ok(()) => return Ok(true),
        Err(Errno::EINPROGRESS) => {}
        Err(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EPERM) => {
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    }
    let timeout = PollTimeout::try_from(CONNECT).unwrap_or(PollTimeout::MAX);
    let ready = loop {
        match poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)], timeout) {
            Err(Errno::EINTR) => {}
            outcome => break outcome?,
        }
    };
    Ok(ready > 0 && getsockopt(&stream, SocketError)? == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_size_is_found() {
        for limit in [100, 575, 576, 577, 1280, 1399, 1499] {
            assert_eq!(largest(1500, |size| Ok(size <= limit)).unwrap(), limit);
        }
    }
}
