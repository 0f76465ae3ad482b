//! [`model::Network`] and its blocks.

use super::{InvalidField, id, ipv4_net, list};
use crate::{model, wire};

impl From<&model::NetworkSpec> for wire::NetworkSpec {
    fn from(spec: &model::NetworkSpec) -> Self {
        Self { name: spec.name.clone(), labels: spec.labels.clone() }
    }
}

impl From<wire::NetworkSpec> for model::NetworkSpec {
    fn from(spec: wire::NetworkSpec) -> Self {
        Self { name: spec.name, labels: spec.labels }
    }
}

impl From<&model::BlockLease> for wire::BlockLease {
    fn from(lease: &model::BlockLease) -> Self {
        Self { block: lease.block.to_string(), node_id: lease.node_id.to_string() }
    }
}

impl TryFrom<wire::BlockLease> for model::BlockLease {
    type Error = InvalidField;

    fn try_from(lease: wire::BlockLease) -> Result<Self, InvalidField> {
        Ok(Self { block: ipv4_net(&lease.block, "block")?, node_id: id(&lease.node_id, "node_id")? })
    }
}

impl From<&model::Network> for wire::Network {
    fn from(network: &model::Network) -> Self {
        Self {
            id: network.id.to_string(),
            meta: Some((&network.meta).into()),
            spec: Some((&network.spec).into()),
            blocks: network.blocks.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::Network> for model::Network {
    type Error = InvalidField;

    fn try_from(network: wire::Network) -> Result<Self, InvalidField> {
        Ok(Self {
            id: id(&network.id, "id")?,
            meta: network.meta.map(Into::into).unwrap_or_default(),
            spec: network.spec.ok_or_else(|| InvalidField::missing("spec"))?.into(),
            blocks: list(network.blocks, "blocks")?,
        })
    }
}
