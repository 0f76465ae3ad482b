//! [`model::Cluster`].

use super::{InvalidField, id, ipv4_net, or_absent};
use crate::{model, wire};

impl From<&model::Cluster> for wire::Cluster {
    fn from(cluster: &model::Cluster) -> Self {
        Self {
            id: cluster.id.to_string(),
            meta: Some((&cluster.meta).into()),
            name: cluster.name.clone(),
            ca_certificate: cluster.ca_certificate.clone(),
            ca_key: cluster.ca_key.clone(),
            worker_token: cluster.worker_token.clone(),
            controller_token: cluster.controller_token.clone(),
            container_pool: cluster.container_pool.to_string(),
            vip_pool: cluster.vip_pool.to_string(),
            last_raft_id: cluster.last_raft_id,
            edge: Some((&cluster.edge).into()),
            encrypt: cluster.encrypt,
        }
    }
}

impl TryFrom<wire::Cluster> for model::Cluster {
    type Error = InvalidField;

    fn try_from(cluster: wire::Cluster) -> Result<Self, InvalidField> {
        Ok(Self {
            id: id(&cluster.id, "id")?,
            meta: cluster.meta.map(Into::into).unwrap_or_default(),
            name: cluster.name,
            ca_certificate: cluster.ca_certificate,
            ca_key: cluster.ca_key,
            worker_token: cluster.worker_token,
            controller_token: cluster.controller_token,
            container_pool: ipv4_net(&cluster.container_pool, "container_pool")?,
            vip_pool: ipv4_net(&cluster.vip_pool, "vip_pool")?,
            last_raft_id: cluster.last_raft_id,
            edge: or_absent(cluster.edge, "edge")?,
            encrypt: cluster.encrypt,
        })
    }
}
