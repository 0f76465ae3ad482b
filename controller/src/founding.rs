//! `cluster init`: a new cluster's authority, its first node, and the first entry of its log.

use std::net::SocketAddrV4;

use ipnet::Ipv4Net;
use rorqual_planner::{Action, ActionKind};
use rorqual_proto::model::network::DEFAULT_NETWORK;
use rorqual_proto::model::{
    Availability, Cluster, ClusterId, Meta, Network, NetworkId, NetworkSpec, Node, NodeDescription, NodeId,
    NodeSpec, NodeState, NodeStatus, Role,
};
use rorqual_proto::tls::{CertificateAuthority, Credentials, Identity, generate_csr};

use crate::membership::{CERTIFICATE_VALIDITY, new_token};

/// The Raft id of the node that founds a cluster.
pub const FIRST_RAFT_ID: u64 = 1;

/// What a new cluster is founded on.
#[derive(Debug, Clone)]
pub struct Founding {
    /// The founding node's host name.
    pub hostname: String,
    /// Where the other nodes will reach it.
    pub address: SocketAddrV4,
    /// Addresses of containers.
    pub container_pool: Ipv4Net,
    /// Virtual addresses of services.
    pub vip_pool: Ipv4Net,
    /// What goes between nodes is encrypted.
    pub encrypt: bool,
}

/// Why a cluster can't be founded.
#[derive(Debug, thiserror::Error)]
pub enum FoundingError {
    /// Two pools share addresses.
    #[error("container_pool {containers} and vip_pool {vips} overlap: give pools that are apart")]
    PoolsOverlap {
        /// The container pool.
        containers: Ipv4Net,
        /// The VIP pool.
        vips: Ipv4Net,
    },
    /// The pool can't be cut into blocks.
    #[error("{field} {pool} is too small: it must be a /{longest} or larger")]
    PoolTooSmall {
        /// Which pool.
        field: &'static str,
        /// What was given.
        pool: Ipv4Net,
        /// The longest prefix that will do.
        longest: u8,
    },
    /// The authority or the node's certificate could not be made.
    #[error("cannot make the cluster's certificates")]
    Certificates(#[source] rorqual_proto::tls::TlsError),
}

/// A cluster that was founded but is not running yet.
pub struct Founded {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The founding node.
    pub node_id: NodeId,
    /// The founding node's certificate and key.
    pub credentials: Credentials,
    /// Join token of workers.
    pub worker_token: String,
    /// Join token of controllers.
    pub controller_token: String,
    /// The first entry of the log.
    pub actions: Vec<Action>,
}

/// The longest container pool prefix: 16 blocks of 64 addresses.
const LONGEST_CONTAINER_POOL: u8 = 22;

/// The longest VIP pool prefix.
const LONGEST_VIP_POOL: u8 = 26;

/// Makes everything that a new cluster starts with; touches no disk.
///
/// # Errors
/// Pools that overlap or are too small, and failures of the key generation.
pub fn found(founding: &Founding, now_ms: i64) -> Result<Founded, FoundingError> {
    check_pools(founding)?;
    let cluster_id = ClusterId::from_bits(rand::random());
    let node_id = NodeId::from_bits(rand::random());
    let authority = CertificateAuthority::generate(&cluster_id).map_err(FoundingError::Certificates)?;
    let (key, csr) = generate_csr().map_err(FoundingError::Certificates)?;
    let identity =
        Identity { cluster_id: cluster_id.clone(), node_id: node_id.clone(), role: Role::Controller };
    let certificate =
        authority.issue(&csr, &identity, CERTIFICATE_VALIDITY).map_err(FoundingError::Certificates)?;
    let ca_certificate = authority.certificate().to_vec();
    let credentials = Credentials::from_der(ca_certificate.clone(), certificate.to_vec(), key);
    let cluster = Cluster {
        id: cluster_id.clone(),
        meta: Meta::default(),
        name: "rorqual".to_owned(),
        worker_token: new_token(&ca_certificate),
        controller_token: new_token(&ca_certificate),
        ca_certificate,
        ca_key: authority.key_der().to_vec(),
        container_pool: founding.container_pool,
        vip_pool: founding.vip_pool,
        last_raft_id: FIRST_RAFT_ID,
        edge: Default::default(),
        encrypt: founding.encrypt,
    };
    let (worker_token, controller_token) = (cluster.worker_token.clone(), cluster.controller_token.clone());
    let network = Network {
        id: NetworkId::from_bits(rand::random()),
        meta: Meta::default(),
        spec: NetworkSpec { name: DEFAULT_NETWORK.to_owned(), ..NetworkSpec::default() },
        blocks: Vec::new(),
    };
    let actions = vec![
        Action::new(ActionKind::PutCluster(cluster.into())),
        Action::new(ActionKind::PutNode(first_node(founding, &node_id, now_ms).into())),
        Action::new(ActionKind::PutNetwork(network.into())),
    ];
    Ok(Founded { cluster_id, node_id, credentials, worker_token, controller_token, actions })
}

fn check_pools(founding: &Founding) -> Result<(), FoundingError> {
    let (containers, vips) = (founding.container_pool, founding.vip_pool);
    if containers.contains(&vips) || vips.contains(&containers) {
        return Err(FoundingError::PoolsOverlap { containers, vips });
    }
    for (field, pool, longest) in
        [("container_pool", containers, LONGEST_CONTAINER_POOL), ("vip_pool", vips, LONGEST_VIP_POOL)]
    {
        if pool.prefix_len() > longest {
            return Err(FoundingError::PoolTooSmall { field, pool, longest });
        }
    }
    Ok(())
}

fn first_node(founding: &Founding, node_id: &NodeId, now_ms: i64) -> Node {
    Node {
        id: node_id.clone(),
        meta: Meta::default(),
        spec: NodeSpec {
            role: Role::Controller,
            availability: Availability::Active,
            labels: Default::default(),
        },
        description: NodeDescription { hostname: founding.hostname.clone(), ..Default::default() },
        status: NodeStatus { state: NodeState::Unknown, message: String::new(), since_ms: now_ms },
        address: founding.address.to_string(),
        raft_id: Some(FIRST_RAFT_ID),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn founding(containers: &str, vips: &str) -> Founding {
        Founding {
            hostname: "n1".to_owned(),
            address: "10.0.0.1:4780".parse().unwrap(),
            container_pool: containers.parse().unwrap(),
            vip_pool: vips.parse().unwrap(),
            encrypt: false,
        }
    }

    #[test]
    fn pools_that_overlap_or_are_too_small_are_refused() {
        assert!(matches!(
            found(&founding("10.0.0.0/8", "10.214.0.0/16"), 0),
            Err(FoundingError::PoolsOverlap { .. })
        ));
        let error = found(&founding("10.213.0.0/24", "10.214.0.0/16"), 0).map(drop).unwrap_err();
        assert!(error.to_string().contains("container_pool 10.213.0.0/24 is too small"), "{error}");
    }

    #[test]
    fn a_founded_cluster_has_its_first_node_and_network() {
        let founded = found(&founding("10.213.0.0/16", "10.214.0.0/16"), 5).unwrap();
        assert_eq!(founded.actions.len(), 3);
        assert_ne!(founded.worker_token, founded.controller_token);
    }
}
