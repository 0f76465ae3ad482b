//! What the caller tells the fabric: options, attachments and changes of the desired state.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The network of containers that live on one node only and have an address of the local pool.
pub const LOCAL_NETWORK: &str = "local";

/// How a node's fabric is set up. Everything is fixed for the life of the [`crate::Fabric`].
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// Name of this node, `[a-z0-9-]`, at most 63 characters. Links and the nftables table carry it.
    pub node: String,
    /// Folder for namespace files (`netns/<id>`) and records. Has to survive the daemon, not the machine.
    pub state_dir: PathBuf,
    /// This node's address on the network between the nodes. Unspecified while it is in no cluster.
    pub underlay: Ipv4Addr,
    /// Addresses of the containers of all nodes, for example 10.213.0.0/16.
    pub cluster_pool: Ipv4Net,
    /// Virtual addresses of services, for example 10.214.0.0/16.
    pub vip_pool: Ipv4Net,
    /// Addresses of containers that only this node knows, for example 10.215.0.0/24.
    pub local_pool: Ipv4Net,
    /// Addresses beside those of the cluster's containers, services and nodes: a /96 or larger. The IPv4 address is the
    /// last 32 bits. `None`: containers in networks of the cluster have none.
    pub ipv6: Option<Ipv6Net>,
    /// Resolvers for names that are not ours. `None`: those of the host's `/etc/resolv.conf`.
    pub dns_upstreams: Option<Vec<SocketAddr>>,
    /// Names that mean this node in every network: containers reach its own services at [`crate::DNS`].
    pub own_names: Vec<String>,
    /// TCP ports of this node that its containers may not reach: those on which controllers and nodes talk.
    pub guarded_ports: Vec<u16>,
    /// Largest packet of a container's interface. `None`: what the underlay's interface has.
    pub mtu: Option<u32>,
    /// Network namespaces that are kept ready for containers to come, at least 2. Each costs the kernel some memory, and
    /// time when it goes.
    pub prepared: usize,
}

/// A transport protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// A port of this node that leads to one container of this node (`rctl run -p 8080:80`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    /// The node's address to publish on; `None`: all of them.
    pub address: Option<IpAddr>,
    /// Port of the node.
    pub published: u16,
    /// Port of the container.
    pub target: u16,
    /// Protocol of both.
    pub protocol: Protocol,
    /// Who may use it; empty: everybody.
    #[serde(default)]
    pub allow: Vec<IpNet>,
}

/// A container that wants to be on the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Id, `[A-Za-z0-9_.-]`, at most 128 characters.
    pub id: String,
    /// The name under which containers of the same networks find it.
    pub name: String,
    /// The networks, each once; an interface each. Its own connections have the first one's address, but for those
    /// into another of its networks, which have that one's.
    pub networks: Vec<Join>,
    /// Ports of this node that lead to it, at the first one's address.
    pub ports: Vec<HostPort>,
    /// Whom the node's resolver asks for it, in this order, for names that are not ours; empty: whom it asks for all.
    #[serde(default)]
    pub resolvers: Vec<IpAddr>,
}

/// A container in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The network. Containers that share none do not reach each other.
    pub network: String,
    /// Its address of a block of this node, or `None` for one of the local pool.
    pub address: Option<Ipv4Addr>,
    /// The IPv6 address beside it, where the network has IPv6 ranges of its own; else it follows from `address`.
    #[serde(default)]
    pub address6: Option<Ipv6Addr>,
    /// Names in this network besides the container's.
    pub aliases: Vec<String>,
}

impl Join {
    /// One without further names.
    pub fn new(network: &str, address: Option<Ipv4Addr>) -> Join {
        Join { network: network.to_owned(), address, address6: None, aliases: Vec::new() }
    }
}

/// A container that is on the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Id as given.
    pub id: String,
    /// DNS name as given.
    pub name: String,
    /// File to `setns` to. It stays until [`crate::Fabric::detach`], also without a daemon.
    pub netns: PathBuf,
    /// One for each network, in their order.
    pub interfaces: Vec<Interface>,
    /// Its default gateway, the same for all containers.
    pub gateway: Ipv4Addr,
    /// The resolver to write into its `resolv.conf`.
    pub dns: Ipv4Addr,
}

impl Attachment {
    /// The address of its own connections; `None` where it is in no network.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.interfaces.first().map(|interface| interface.address)
    }
}

/// An interface of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name inside: `eth0`, `eth1`, …
    pub name: String,
    /// Its network.
    pub network: String,
    /// Its address, a /32.
    pub address: Ipv4Addr,
    /// The one beside it, a /128; `None` where the machine has no IPv6.
    pub address6: Option<Ipv6Addr>,
}

impl Interface {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        std::iter::once(self.address.into()).chain(self.address6.map(IpAddr::from))
    }
}

/// A network, as far as a node treats it otherwise than another. A network that only blocks name is one of the
/// cluster pool's, and open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// What blocks and attachments refer to.
    pub id: String,
    /// Its own ranges; empty: its blocks are the cluster pool's.
    pub subnets: Vec<Ipv4Net>,
    /// The IPv6 ranges beside these, one for each, each with as much room; empty: they are parts of the cluster's.
    pub subnets6: Vec<Ipv6Net>,
    /// Its containers reach nothing outside of it, and no names outside of the cluster.
    pub internal: bool,
    /// Its containers reach link-local addresses of the node's surroundings.
    pub link_local: bool,
    /// Its names mean IPv6 addresses as well. The addresses are there either way.
    pub ipv6_names: bool,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name or id; what blocks and endpoints refer to.
    pub node: String,
    /// Its address on the network between the nodes.
    pub underlay: Ipv4Addr,
    /// Further IPv4 addresses of its machine.
    pub others: Vec<Ipv4Addr>,
    /// What goes to it has to be encrypted, as with all others then.
    pub encrypted: bool,
    /// Its public key. Without one nothing gets there that has to be encrypted.
    pub key: Option<[u8; 32]>,
    /// IPv6 addresses of its machine. Only with the one beside `underlay` its containers have such, too.
    pub ipv6: Vec<Ipv6Addr>,
}

/// A range of a pool that belongs to one network on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The range.
    pub block: Ipv4Net,
    /// Its network.
    pub network: String,
    /// Its node; this node's own blocks have [`NetworkOptions::node`].
    pub node: String,
}

/// A port that every node publishes for a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishedPort {
    /// The node's address to publish on, where the node has it; `None`: all of them.
    pub address: Option<IpAddr>,
    /// Port of the nodes.
    pub published: u16,
    /// Port of the containers.
    pub target: u16,
    /// Protocol of both.
    pub protocol: Protocol,
    /// Who may use it; empty: everybody.
    pub allow: Vec<IpNet>,
    /// It leads to the replicas of this node alone, and is not published while there are none.
    pub local: bool,
}

impl PublishedPort {
    /// One that is open to everybody on all addresses.
    pub fn new(published: u16, target: u16, protocol: Protocol) -> PublishedPort {
        PublishedPort { address: None, published, target, protocol, allow: Vec::new(), local: false }
    }
}

/// One healthy task of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Task id.
    pub id: String,
    /// Its DNS name, for example `web.1`.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// The node that it runs on.
    pub node: String,
    /// How many new connections it gets beside the others, at least 1.
    pub weight: u32,
}

/// The tasks of a service that run and are not healthy, and by which names they are found all the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unready {
    /// DNS names of these and the healthy ones together; empty: none are found.
    pub aliases: Vec<String>,
    /// The tasks.
    pub tasks: Vec<Endpoint>,
}

/// What a node has to know of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    /// Service id, `[A-Za-z0-9_.-]`, at most 128 characters.
    pub id: String,
    /// DNS name.
    pub name: String,
    /// Further DNS names, for the same as the name.
    pub aliases: Vec<String>,
    /// The network whose containers may use name and VIP.
    pub network: String,
    /// Its virtual address; `None`: the name resolves to all endpoints.
    pub vip: Option<Ipv4Addr>,
    /// Its published ports.
    pub ports: Vec<PublishedPort>,
    /// Each client (an address) has an endpoint of its own for as long as that is there, the same on all nodes.
    pub sticky: bool,
    /// The healthy tasks, of all nodes.
    pub endpoints: Vec<Endpoint>,
    /// The others, where they are to be found.
    pub unready: Unready,
    /// It is no service but a plain container of some node: its names don't go before those of services, and mean all
    /// the containers that are called so.
    pub guest: bool,
}

/// A change of the desired state. Items replace those with the same key (node, network, block, service id).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// This is the whole truth: what is not in it goes.
    pub full: bool,
    /// New or changed nodes.
    pub peers: Vec<Peer>,
    /// Names of nodes that are gone.
    pub removed_peers: Vec<String>,
    /// New or changed networks.
    pub networks: Vec<Network>,
    /// Ids of networks that are gone.
    pub removed_networks: Vec<String>,
    /// New or changed blocks.
    pub blocks: Vec<Block>,
    /// Blocks that are no longer leased.
    pub removed_blocks: Vec<Ipv4Net>,
    /// New or changed services, each complete.
    pub services: Vec<ServiceView>,
    /// Ids of services that are gone.
    pub removed_services: Vec<String>,
}

impl NetworkOptions {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let node_ok = (1..=63).contains(&self.node.len())
            && self.node.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !node_ok {
            return Err(Error::Invalid {
                field: "options.node",
                value: self.node.clone(),
                expected: "expected 1 to 63 characters of a-z, 0-9 and -",
            });
        }
        let pools = [
            ("options.vip_pool", self.vip_pool, [self.cluster_pool, self.local_pool]),
            ("options.local_pool", self.local_pool, [self.cluster_pool, self.vip_pool]),
        ];
        for (field, pool, others) in pools {
            if others.iter().any(|other| overlap(*other, pool)) {
                return Err(Error::Invalid {
                    field,
                    value: pool.to_string(),
                    expected: "overlaps another pool; choose ranges that do not overlap",
                });
            }
        }
        if self.local_pool.prefix_len() > 30 {
            return Err(Error::Invalid {
                field: "options.local_pool",
                value: self.local_pool.to_string(),
                expected: "expected at least a /30",
            });
        }
        let unfit = |range: &Ipv6Net| range.prefix_len() > 96 || !range.network().is_unique_local();
        if let Some(range) = self.ipv6.filter(unfit) {
            return Err(Error::Invalid {
                field: "options.ipv6",
                value: range.to_string(),
                expected: "expected a range of fc00::/7, of /96 or larger",
            });
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !(576..=65535).contains(mtu)) {
            return Err(Error::Invalid {
                field: "options.mtu",
                value: mtu.to_string(),
                expected: "expected 576 to 65535 bytes",
            });
        }
        Ok(())
    }
}

impl Attach {
    pub(crate) fn validate(&self, options: &NetworkOptions) -> Result<(), Error> {
        validate_id("attach.id", &self.id)?;
        for (at, join) in self.networks.iter().enumerate() {
            if self.networks.iter().take(at).any(|earlier| earlier.network == join.network) {
                return Err(Error::Invalid {
                    field: "attach.networks",
                    value: join.network.clone(),
                    expected: "is named twice; expected each network once",
                });
            }
            // Which network has which range is not known here yet, perhaps: what can never be one is.
            let never = |address: &Ipv4Addr| {
                options.vip_pool.contains(address) || !is_unicast(*address) || address.is_link_local()
            };
            if let Some(address) = join.address.filter(never) {
                return Err(Error::Invalid {
                    field: "attach.networks.address",
                    value: address.to_string(),
                    expected: "expected an address of one of the network's ranges",
                });
            }
        }
        for port in &self.ports {
            validate_port("attach.ports.published", port.published)?;
            validate_port("attach.ports.target", port.target)?;
        }
        Ok(())
    }
}

impl Change {
    /// Takes out what can't be, and says why. The rest is of use without it: a node whose own range is in the way of one
    /// network has all others.
    pub(crate) fn sift(&mut self, options: &NetworkOptions) -> Vec<Error> {
        let mut errors = Vec::new();
        let mut keeps = |checked: Result<(), Error>| checked.map_err(|error| errors.push(error)).is_ok();
        self.blocks.retain(|block| keeps(block.validate(options)));
        self.networks.retain(|network| keeps(network.validate(options)));
        self.services.retain(|service| keeps(service.validate(options)));
        self.peers.retain(|peer| keeps(peer.validate()));
        for service in &mut self.services {
            // Here that would be somebody else.
            let fits = |endpoint: &Endpoint| !options.local_pool.contains(&endpoint.address);
            service.endpoints.retain(fits);
            service.unready.tasks.retain(fits);
        }
        errors
    }
}

impl Block {
    fn validate(&self, options: &NetworkOptions) -> Result<(), Error> {
        if self.network == LOCAL_NETWORK {
            return Err(Error::Invalid {
                field: "change.blocks.network",
                value: self.network.clone(),
                expected: "names the node's own network; choose another name",
            });
        }
        if [options.vip_pool, options.local_pool].iter().any(|pool| overlap(*pool, self.block)) {
            return Err(Error::Invalid {
                field: "change.blocks.block",
                value: self.block.to_string(),
                expected: "expected a range of the cluster pool or of a network's own subnet",
            });
        }
        Ok(())
    }
}

impl Network {
    /// Its own ranges that stand beside each other.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (Ipv4Net, Ipv6Net)> {
        self.subnets.iter().copied().zip(self.subnets6.iter().copied())
    }

    fn validate(&self, options: &NetworkOptions) -> Result<(), Error> {
        let pools = [options.cluster_pool, options.vip_pool, options.local_pool];
        let taken = |subnet: &&Ipv4Net| pools.iter().any(|pool| overlap(*pool, **subnet));
        if let Some(subnet) = self.subnets.iter().find(taken) {
            return Err(Error::Invalid {
                field: "change.networks.subnets",
                value: subnet.to_string(),
                expected: "overlaps a pool of this node; choose ranges that do not overlap",
            });
        }
        let wrong = |value: String, expected| {
            Err(Error::Invalid { field: "change.networks.subnets6", value, expected })
        };
        if !self.subnets6.is_empty() && self.subnets6.len() != self.subnets.len() {
            return wrong(self.subnets6.len().to_string(), "expected one for each of the network's subnets");
        }
        match self.pairs().find(|(four, six)| six.prefix_len() > 96 + four.prefix_len()) {
            Some((_, six)) => wrong(six.to_string(), "has less room than the subnet beside which it stands"),
            None => Ok(()),
        }
    }
}

impl ServiceView {
    fn validate(&self, options: &NetworkOptions) -> Result<(), Error> {
        validate_id("change.services.id", &self.id)?;
        if let Some(vip) = self.vip.filter(|vip| !options.vip_pool.contains(vip)) {
            return Err(Error::Invalid {
                field: "change.services.vip",
                value: vip.to_string(),
                expected: "expected an address of the VIP pool",
            });
        }
        for port in &self.ports {
            validate_port("change.services.ports.published", port.published)?;
            validate_port("change.services.ports.target", port.target)?;
        }
        Ok(())
    }
}

impl Peer {
    fn validate(&self) -> Result<(), Error> {
        if is_unicast(self.underlay) {
            return Ok(());
        }
        Err(Error::Invalid {
            field: "change.peers.underlay",
            value: self.underlay.to_string(),
            expected: "expected an address at which the node can be reached",
        })
    }
}

/// Ids become file names and nftables comments, so they are held to a safe alphabet.
fn validate_id(field: &'static str, id: &str) -> Result<(), Error> {
    let ok = (1..=128).contains(&id.len())
        && !id.starts_with('.')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    if ok {
        return Ok(());
    }
    Err(Error::Invalid {
        field,
        value: id.to_owned(),
        expected: "expected 1 to 128 letters, digits, _, - and ., not starting with a dot",
    })
}

fn validate_port(field: &'static str, port: u16) -> Result<(), Error> {
    if port != 0 {
        return Ok(());
    }
    Err(Error::Invalid { field, value: "0".to_owned(), expected: "expected a port from 1 to 65535" })
}

fn is_unicast(address: Ipv4Addr) -> bool {
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() && !address.is_broadcast()
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}
