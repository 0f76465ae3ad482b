//! What a caller decides about this node's worker, read whole before anything is opened.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use rorqual_image::{Limits, RegistrySettings};
use rorqual_proto::model::{ClusterId, NodeId};
use rorqual_proto::tls::CredentialStore;
use rorqual_proto::wire;

/// Addresses of containers in a cluster, unless the cluster says otherwise.
pub const DEFAULT_CONTAINER_POOL: &str = "10.213.0.0/16";
/// Virtual addresses of services, unless the cluster says otherwise.
pub const DEFAULT_VIP_POOL: &str = "10.214.0.0/16";
/// Addresses of containers that only their node knows, unless the daemon's settings say otherwise.
pub const DEFAULT_LOCAL_POOL: &str = "10.215.0.0/24";

/// How the agent of one node is set up.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// Where everything lies that survives the machine: `node/`, `containers/`, `volumes/`, `images/`, `certs/`.
    pub data_dir: PathBuf,
    /// Sockets and state of running containers; a tmpfs.
    pub run_dir: PathBuf,
    /// The node's name; the cluster shows it.
    pub hostname: String,
    /// Labels of the node from the daemon's configuration.
    pub labels: BTreeMap<String, String>,
    /// The parent group of this node's containers, on every cgroup hierarchy.
    pub cgroup_parent: String,
    /// The `rorqual-runtime` executable.
    pub runtime_binary: PathBuf,
    /// Where other nodes would reach this one's TLS port, if that is known. A cluster's own address goes before.
    pub advertise: Option<SocketAddr>,
    /// Addresses of plain containers.
    pub local_pool: Ipv4Net,
    /// The port of the cluster's registry on this node: plain HTTP on loopback, TLS on the node's address and for
    /// its containers. Absent: this node does not serve it.
    pub registry_port: Option<u16>,
    /// Registries (`host[:port]`) that are spoken to without TLS, beside those on loopback.
    pub insecure_registries: Vec<String>,
    /// Mirrors, certificates and the like, by registry as references name it.
    pub registries: HashMap<String, RegistrySettings>,
    /// What a layer may cost while it is unpacked.
    pub image_limits: Limits,
    /// When images are removed by themselves.
    pub gc: crate::gc::GcThresholds,
}

/// This node's place in a cluster.
#[derive(Clone)]
pub struct ClusterMembership {
    /// The node's id, the same as in its certificate.
    pub node_id: NodeId,
    /// The cluster's id.
    pub cluster_id: ClusterId,
    /// Where the other nodes reach this one's TLS port; its host is the node's underlay address.
    pub address: SocketAddr,
    /// Certificate and key; renewed in place and saved under `<data>/certs`.
    pub credentials: CredentialStore,
    /// Controllers to ask first. Newer lists come with the session and are kept on disk.
    pub controllers: Vec<wire::Controller>,
    /// Addresses of the cluster's containers.
    pub container_pool: Ipv4Net,
    /// Virtual addresses of the cluster's services.
    pub vip_pool: Ipv4Net,
}

/// A constant of this module; the fallback is never taken, and a daemon does not panic for it.
pub(crate) fn pool(text: &str) -> Ipv4Net {
    text.parse().unwrap_or_default()
}

/// The node's name as links and tables carry it: `[a-z0-9-]`, at most 63 characters.
pub(crate) fn network_name(hostname: &str) -> String {
    let text: String = hostname
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .take(63)
        .collect();
    if text.is_empty() { "node".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_fit_for_links() {
        assert_eq!(network_name("Node.One_x"), "node-one-x");
        assert_eq!(network_name(""), "node");
        assert_eq!(network_name(&"a".repeat(80)).len(), 63);
    }

    #[test]
    fn the_default_pools_do_not_overlap() {
        let pools = [pool(DEFAULT_CONTAINER_POOL), pool(DEFAULT_VIP_POOL), pool(DEFAULT_LOCAL_POOL)];
        for (index, one) in pools.iter().enumerate() {
            assert!(one.prefix_len() >= 16);
            assert!(pools.iter().skip(index + 1).all(|other| !one.contains(other) && !other.contains(one)));
        }
    }
}
