//! Two containers for as long as somebody looks: whether they reach each other and the resolver, and whether other
//! nodes reach one through a published port.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::Finding;
use super::firewall::{Hook, suspects};
use crate::error::Error;
use crate::fabric::{DNS, Fabric};
use crate::model::{Attach, HostPort, Join, LOCAL_NETWORK, Protocol};

const NAMES: [&str; 2] = ["rorqual-doctor-1", "rorqual-doctor-2"];
const TARGET: u16 = 80;
/// The first of the node's ports that are tried.
const FIRST_PORT: u16 = 47_270;
const PORTS: u16 = 16;
/// For an answer from the same machine.
const ANSWER: Duration = Duration::from_secs(3);
/// A question for the address of the root, which every resolver can read.
const QUESTION: [u8; 17] = [0x72, 0x71, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1];

/// The containers. They stay until [`Beacon::put_out`].
#[derive(Debug)]
pub struct Beacon {
    port: u16,
    /// Of the first.
    addresses: Vec<IpAddr>,
    /// Of the second.
    netns: PathBuf,
    /// Of the first. Connections come about before anybody accepts them.
    listener: TcpListener,
    own_netns: PathBuf,
}

impl Beacon {
    /// Makes them. What an earlier one left is taken over.
    pub async fn light(fabric: &Fabric) -> Result<Beacon, Error> {
        let [first, second] = NAMES;
        fabric.detach(first).await?;
        let (port, target) = attach_published(fabric, first).await?;
        let other = fabric.attach(attach(second, Vec::new())).await?;
        let addresses: Vec<IpAddr> =
            target.interfaces.iter().flat_map(crate::model::Interface::addresses).collect();
        let v6 = addresses.iter().any(IpAddr::is_ipv6);
        let listener = inside(&target.netns, move || {
            let all: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
            let listener = TcpListener::bind((all, TARGET))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        Ok(Beacon { port, addresses, netns: other.netns, listener, own_netns: target.netns })
    }

    /// Whether it is still there. What has come in meanwhile is let go: only so many fit into the listener's queue.
    pub fn tend(&self) -> bool {
        while self.listener.accept().is_ok() {}
        self.netns.exists() && self.own_netns.exists()
    }

    /// The port of the node that leads to the first.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What a check needs.
    pub fn place(&self) -> Place {
        Place { addresses: self.addresses.clone(), netns: self.netns.clone() }
    }

    /// Takes them away.
    pub async fn put_out(self, fabric: &Fabric) -> Result<(), Error> {
        let mut errors = Vec::new();
        for name in NAMES {
            errors.extend(fabric.detach(name).await.err());
        }
        Error::all(errors)
    }
}

/// Where the containers are.
#[derive(Debug, Clone)]
pub struct Place {
    addresses: Vec<IpAddr>,
    netns: PathBuf,
}

impl Place {
    /// Whether they reach each other and the resolver. `table` is this node's.
    pub fn look(&self, table: &str) -> Result<Vec<Finding>, Error> {
        let mut findings = Vec::new();
        for address in &self.addresses {
            let to = SocketAddr::from((*address, TARGET));
            let met = inside(&self.netns, move || Ok(TcpStream::connect_timeout(&to, ANSWER)))?;
            let Err(error) = met else { continue };
            let (by, hook) =
                if address.is_ipv6() { (" by IPv6", Hook::Forward6) } else { ("", Hook::Forward) };
            let what = format!("containers of this node don't reach each other{by} ({error})");
            findings.push(blocked(what, hook, table)?);
        }
        let heard = inside(&self.netns, || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(ANSWER))?;
            socket.send_to(&QUESTION, SocketAddrV4::new(DNS, 53))?;
            Ok(socket.recv(&mut [0; 512]))
        })?;
        if let Err(error) = heard {
            findings.push(blocked(
                format!("containers of this node don't reach its resolver, {DNS} ({error})"),
                Hook::Input,
                table,
            )?);
        }
        Ok(findings)
    }
}

fn blocked(what: String, hook: Hook, table: &str) -> Result<Finding, Error> {
    let suspects = suspects(hook, table)?;
    Ok(Finding::new("firewall", what, remedy(&suspects)))
}

/// What to do about a firewall; `suspects` are who may be to blame.
pub fn remedy(suspects: &[String]) -> String {
    let accept = "let it accept what comes from and goes to interfaces that begin with rqc (iifname \"rqc*\" accept, \
                  oifname \"rqc*\" accept)";
    match suspects {
        [] => format!("find the firewall that drops these packets, and {accept}"),
        some => format!("it may be {}: {accept}", some.join(", or ")),
    }
}

async fn attach_published(fabric: &Fabric, name: &str) -> Result<(u16, crate::model::Attachment), Error> {
    let mut last = None;
    for port in (FIRST_PORT..).take(PORTS.into()) {
        let published = HostPort {
            address: None,
            published: port,
            target: TARGET,
            protocol: Protocol::Tcp,
            allow: Vec::new(),
        };
        match fabric.attach(attach(name, vec![published])).await {
            Ok(attachment) => return Ok((port, attachment)),
            Err(error @ (Error::PortTaken { .. } | Error::PortConflict { .. })) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or(Error::Stopped))
}

fn attach(name: &str, ports: Vec<HostPort>) -> Attach {
    let (id, name) = (name.to_owned(), name.to_owned());
    Attach { id, name, networks: vec![Join::new(LOCAL_NETWORK, None)], ports, resolvers: Vec::new() }
}

/// Runs something in a thread that went into a namespace, and ends with that.
fn inside<T: Send + 'static>(
    netns: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let failed =
        |source| Error::Namespace { operation: format!("look around in {}", netns.display()), source };
    let file = File::open(netns).map_err(failed)?;
    let enter = move || {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        work()
    };
    let thread = std::thread::Builder::new().name("rorqual-doctor".to_owned()).spawn(enter);
    let joined = thread.map_err(failed)?.join();
    joined.unwrap_or_else(|_| Err(io::Error::other("the thread panicked"))).map_err(failed)
}
