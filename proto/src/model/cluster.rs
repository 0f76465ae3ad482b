//! The cluster itself: identity, certificate authority, tokens and address pools.

use std::fmt;

use ipnet::Ipv4Net;

use super::{ClusterId, EdgeSettings, Meta};

/// The one object that says what cluster this is.
#[derive(Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// Version and times.
    pub meta: Meta,
    /// For people.
    pub name: String,
    /// The root certificate, DER.
    pub ca_certificate: Vec<u8>,
    /// Its private key, PKCS#8 DER. Never logged.
    pub ca_key: Vec<u8>,
    /// The join token of workers, whole: `RQTKN-1-<hash of the CA>-<secret>`. Never logged.
    pub worker_token: String,
    /// The join token of controllers.
    pub controller_token: String,
    /// Container addresses.
    pub container_pool: Ipv4Net,
    /// Virtual addresses of services.
    pub vip_pool: Ipv4Net,
    /// The highest Raft member id ever given.
    pub last_raft_id: u64,
    /// The HTTP edge.
    pub edge: EdgeSettings,
    /// What goes between nodes is encrypted.
    pub encrypt: bool,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Cluster").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}
