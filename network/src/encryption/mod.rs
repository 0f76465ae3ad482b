//! Encryption between the nodes: a WireGuard device under the tunnel.
//!
//! ```text
//!   container ──▶ VXLAN (who is next) ──▶ WireGuard (whom to trust) ──▶ UDP to the peer's address
//! ```
//!
//! The tunnel stays as it is for nodes behind routers, with the device as its lower one: its outer packets, from node
//! address to node address, can leave through the device alone. So packets of the routing mesh, which have any address in
//! the world, need no allowed addresses of their own: each peer has one, its node's.
//!
//! The kernel does it where it can, else [`userspace`]; both speak the same protocol. When the device goes, the tunnel
//! goes with it (the kernel sees to that), and no packet finds a way that is not encrypted.

mod key;
mod userspace;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;

use crate::error::Error;
use crate::fabric::GATEWAY;
use crate::model::Peer;
use crate::netlink::Netlink;
use crate::netlink::link::{self, Conf, Link};
use crate::netlink::route;
use crate::netlink::wireguard::WireGuard;
use crate::object::Object;
use key::KeyPair;
use userspace::Userspace;

/// A Curve25519 key.
pub(crate) type Key = [u8; 32];

/// UDP port of WireGuard, on all nodes.
pub(crate) const PORT: u16 = 7272;
/// What it takes of a packet: IPv4, UDP, and its own header and tag.
pub(crate) const BYTES: u32 = 60;

/// Who encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kernel,
    Userspace,
}

/// Whether peers are reached through an interface that encrypts, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seal {
    Off,
    On {
        device: u32,
    },
    /// They should be, and there is no such interface.
    Broken,
}

impl Seal {
    pub(crate) fn lets_through(self, peer: &Peer) -> bool {
        match self {
            Seal::Off => true,
            Seal::On { .. } => peer.key.is_some(),
            Seal::Broken => false,
        }
    }

    pub(crate) fn device(self) -> Option<u32> {
        match self {
            Seal::On { device } => Some(device),
            Seal::Off | Seal::Broken => None,
        }
    }
}

/// What the node tells of its encryption.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encryption {
    /// The public key of this node.
    pub key: Vec<u8>,
    /// `kernel`, `userspace`, or empty where nothing is encrypted.
    pub kind: &'static str,
    /// Why nothing gets through though it should be encrypted; empty: all is well.
    pub problem: String,
}

/// The same, for whoever asks.
pub(crate) type Told = Arc<Mutex<Encryption>>;

/// The node's key, device and peers.
#[derive(Debug)]
pub(crate) struct Sealing {
    keys: KeyPair,
    device: String,
    own: Ipv4Addr,
    mtu: u32,
    netlink: Netlink,
    /// Peers by their keys. `None`: nothing is encrypted.
    peers: Option<BTreeMap<Key, Ipv4Addr>>,
    /// Nodes that have told no key yet.
    silent: Vec<String>,
    kernel: Option<WireGuard>,
    userspace: Option<Userspace>,
    told: Told,
}

impl Sealing {
    /// Nothing is encrypted yet; a device of an earlier process goes on.
    pub(crate) fn new(
        device: String,
        own: Ipv4Addr,
        underlay_mtu: u32,
        state_dir: &Path,
        told: Told,
    ) -> Result<Sealing, Error> {
        let keys = KeyPair::load_or_make(&state_dir.join("wireguard.key"))?;
        told.lock().unwrap_or_else(PoisonError::into_inner).key = keys.public.as_bytes().to_vec();
        Ok(Sealing {
            keys,
            device,
            own,
            mtu: underlay_mtu.saturating_sub(BYTES),
            netlink: Netlink::route()?,
            peers: None,
            silent: Vec::new(),
            kernel: None,
            userspace: None,
            told,
        })
    }

    /// Of the socket through which the device is changed.
    pub(crate) fn port(&self) -> Result<u32, Error> {
        self.netlink.port()
    }

    /// Whether traffic between nodes has to be encrypted.
    pub(crate) fn is_on(&self) -> bool {
        self.peers.is_some()
    }

    /// What the node tells of what is wrong; empty: nothing.
    pub(crate) fn problem(&self) -> String {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).problem.clone()
    }

    /// The device, where it has to be.
    pub(crate) fn device(&self) -> Option<&str> {
        self.is_on().then_some(self.device.as_str())
    }

    /// Whether it has to be looked at from time to time: the kernel tells nobody of its peers, and what failed may
    /// succeed later.
    pub(crate) fn is_quiet(&self) -> bool {
        self.kernel.is_some() || (self.is_on() && self.userspace.is_none())
    }

    /// Takes over who the peers are and brings the device up to date. Returns the number of the device. Where there is
    /// none though it is on, no packet may leave.
    pub(crate) fn set(&mut self, node: &str, peers: &BTreeMap<String, Peer>) -> Option<u32> {
        let on = peers.values().any(|peer| peer.encrypted);
        let others = || peers.values().filter(|peer| on && peer.node != node);
        self.silent = others().filter(|peer| peer.key.is_none()).map(|peer| peer.node.clone()).collect();
        self.peers = on.then(|| others().filter_map(|peer| Some((peer.key?, peer.underlay))).collect());
        let outcome = match self.peers.clone() {
            Some(peers) => self.bring_up(&peers).map(Some),
            None => self.take_down().map(|()| None),
        };
        let (index, error) = match outcome {
            Ok(index) => (index, None),
            Err(error) => (None, Some(error)),
        };
        self.tell(error.as_ref());
        index
    }

    fn tell(&self, error: Option<&Error>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.kind = match (&self.kernel, &self.userspace) {
            (Some(_), _) => "kernel",
            (None, Some(_)) => "userspace",
            (None, None) => "",
        };
        let problem = match error {
            Some(error) => crate::error::chain(error),
            None if self.silent.is_empty() => String::new(),
            None => format!("no key is known yet of {}: nothing gets there", self.silent.join(", ")),
        };
        if problem != told.problem && !problem.is_empty() {
            tracing::warn!("encryption between the nodes: {problem}");
        }
        told.problem = problem;
    }

    fn bring_up(&mut self, peers: &BTreeMap<Key, Ipv4Addr>) -> Result<u32, Error> {
        let kind = self.find_device()?;
        match kind {
            Kind::Kernel => self.kernel = WireGuard::open()?,
            Kind::Userspace => self.start_userspace()?,
        }
        let link = self.link()?.ok_or_else(|| self.missing())?;
        if link.mtu != self.mtu {
            self.netlink.run(vec![link::set_mtu(link.index, self.mtu)])?;
        }
        if let Some(kernel) = &mut self.kernel {
            update_kernel(kernel, &self.device, &self.keys, peers)?;
        }
        // The kernel drops what comes in by an interface that has no address at all and is for somebody else.
        self.netlink
            .run(vec![route::add_address(link.index, GATEWAY.into(), true), link::up_tunnel(link.index)])?;
        if let Some(userspace) = &self.userspace {
            userspace.set_peers(peers);
        }
        Ok(link.index)
    }

    fn missing(&self) -> Error {
        Error::Netlink {
            operation: format!("find the new interface {}", self.device),
            source: std::io::ErrorKind::NotFound.into(),
        }
    }

    fn link(&mut self) -> Result<Option<Link>, Error> {
        link::find(&mut self.netlink, &self.device)
    }

    /// The device as it is, else one that the kernel makes; else one for us to fill.
    fn find_device(&mut self) -> Result<Kind, Error> {
        match self.link()? {
            Some(link) if link.wireguard => return Ok(Kind::Kernel),
            Some(_) => return Ok(Kind::Userspace),
            None => {}
        }
        (self.kernel, self.userspace) = (None, None);
        match self.netlink.run(vec![link::add_wireguard(&self.device)]) {
            Ok(()) => Ok(Kind::Kernel),
            Err(Error::Netlink { source, .. }) if source.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
                Ok(Kind::Userspace)
            }
            Err(error) => Err(error),
        }
    }

    fn start_userspace(&mut self) -> Result<(), Error> {
        if self.userspace.as_ref().is_some_and(Userspace::is_well) {
            return Ok(());
        }
        // Its end of the device has to be free first.
        self.userspace = None;
        let failed = |what: &'static str| move |source| Error::Encryption { what, source };
        let device = userspace::open_device(&self.device).map_err(failed(
            "open /dev/net/tun: this kernel has no WireGuard of its own, and no TUN devices either (modprobe \
             wireguard, or modprobe tun)",
        ))?;
        let started = Userspace::start(device, self.keys.clone(), self.own, PORT);
        self.userspace = Some(started.map_err(failed("listen on UDP port 7272 of this node's address"))?);
        Ok(())
    }

    fn take_down(&mut self) -> Result<(), Error> {
        (self.kernel, self.userspace) = (None, None);
        self.netlink.run(vec![link::delete(&self.device)])
    }

    /// What is not as it should be, in words.
    pub(crate) fn wrong(&mut self, links: &BTreeMap<String, Link>) -> Result<Vec<String>, Error> {
        let Some(peers) = &self.peers else { return Ok(Vec::new()) };
        let Some(link) = links.get(&self.device) else {
            return Ok(vec![format!("interface {}, which encrypts", self.device)]);
        };
        let mut wrong = Vec::new();
        if link.mtu != self.mtu {
            wrong.push(format!("MTU of {}", self.device));
        }
        if self.userspace.as_ref().is_some_and(|userspace| !userspace.is_well()) {
            wrong.push(format!("what encrypts for interface {}", self.device));
        }
        if let Some(kernel) = &mut self.kernel {
            let seen = kernel.look(&self.device, PORT)?;
            if seen.public != *self.keys.public.as_bytes() || seen.port != PORT {
                wrong.push(format!("key and port of {}", self.device));
            }
            let missing = peers.iter().filter(|(key, at)| seen.peers.get(*key) != Some(*at));
            wrong.extend(missing.map(|(_, at)| format!("WireGuard peer {at}")));
            let known = |key: &&Key| peers.contains_key(*key);
            let strange = seen.peers.keys().chain(&seen.others).filter(|key| !known(key)).count();
            if strange > 0 {
                wrong.push(format!("{} without WireGuard peers that are no nodes", self.device));
            }
        }
        Ok(wrong)
    }

    /// What the kernel has to have of the device.
    pub(crate) fn wanted(&self, links: &BTreeMap<String, Link>) -> Vec<Object> {
        let link = links.get(&self.device).filter(|_| self.is_on());
        let Some(link) = link else { return Vec::new() };
        let (interface, name) = (link.index, &link.name);
        let setting = Object::Setting {
            interface,
            name: name.clone(),
            setting: Conf::RpFilter,
            value: link::RP_FILTER_LOOSE,
        };
        vec![
            Object::Up { interface, name: name.clone() },
            Object::Address { interface, address: GATEWAY.into() },
            setting,
        ]
    }

    /// Removes the device. The key goes with the state folder's other files: nobody knows the node by it any more.
    pub(crate) fn teardown(&mut self, state_dir: &Path) -> Result<(), Error> {
        self.peers = None;
        let mut errors: Vec<Error> = self.take_down().err().into_iter().collect();
        self.tell(None);
        let path = state_dir.join("wireguard.key");
        if let Err(source) = std::fs::remove_file(&path)
            && source.kind() != std::io::ErrorKind::NotFound
        {
            errors.push(Error::State { path, operation: "remove", source });
        }
        Error::all(errors)
    }
}

/// Changes what differs: one peer that comes, goes or moves touches no other's session.
fn update_kernel(
    kernel: &mut WireGuard,
    device: &str,
    keys: &KeyPair,
    peers: &BTreeMap<Key, Ipv4Addr>,
) -> Result<(), Error> {
    let seen = kernel.look(device, PORT)?;
    if seen.public != *keys.public.as_bytes() || seen.port != PORT {
        kernel.set_key(device, keys.secret.as_bytes(), PORT)?;
    }
    for key in seen.peers.keys().chain(&seen.others).filter(|key| !peers.contains_key(*key)) {
        kernel.remove(device, key)?;
    }
    for (key, at) in peers.iter().filter(|(key, at)| seen.peers.get(*key) != Some(*at)) {
        kernel.put(device, key, *at, PORT)?;
    }
    Ok(())
}
