//! [`model::Network`], its blocks, and joining it.

use ipnet::IpNet;

use super::{InvalidField, address, id, ip_net, ipv4_net, ipv6_address, list, required};
use crate::{model, wire};

impl From<&model::NetworkSpec> for wire::NetworkSpec {
    fn from(spec: &model::NetworkSpec) -> Self {
        Self {
            name: spec.name.clone(),
            labels: spec.labels.clone(),
            subnets: texts_of(&spec.subnets, &spec.subnets6),
            internal: spec.internal,
            options: spec.options.clone(),
        }
    }
}

impl TryFrom<wire::NetworkSpec> for model::NetworkSpec {
    type Error = InvalidField;

    fn try_from(spec: wire::NetworkSpec) -> Result<Self, InvalidField> {
        let (mut subnets, mut subnets6) = (Vec::new(), Vec::new());
        for (index, text) in spec.subnets.iter().enumerate() {
            match ip_net(text, &format!("subnets[{index}]"))? {
                IpNet::V4(net) => subnets.push(net),
                IpNet::V6(net) => subnets6.push(net),
            }
        }
        Ok(Self {
            name: spec.name,
            labels: spec.labels,
            subnets,
            subnets6,
            internal: spec.internal,
            options: spec.options,
        })
    }
}

/// The ranges of both families in one list, as users give them.
pub fn texts_of(subnets: &[ipnet::Ipv4Net], subnets6: &[ipnet::Ipv6Net]) -> Vec<String> {
    subnets.iter().map(ToString::to_string).chain(subnets6.iter().map(ToString::to_string)).collect()
}

impl From<&model::NetworkJoin> for wire::NetworkJoin {
    fn from(join: &model::NetworkJoin) -> Self {
        Self {
            network: join.network.clone(),
            aliases: join.aliases.clone(),
            address: join.address.map(|address| address.to_string()).unwrap_or_default(),
            unready_aliases: join.unready_aliases.clone(),
            ipv6_address: join.address6.map(|address| address.to_string()).unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::NetworkJoin> for model::NetworkJoin {
    type Error = InvalidField;

    fn try_from(join: wire::NetworkJoin) -> Result<Self, InvalidField> {
        let wanted = (!join.address.is_empty()).then(|| address(&join.address, "address")).transpose()?;
        let address6 = ipv6_address(&join.ipv6_address, "ipv6_address")?;
        let wire::NetworkJoin { network, aliases, unready_aliases, .. } = join;
        Ok(Self { network, aliases, address: wanted, address6, unready_aliases })
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
            spec: required(network.spec, "spec")?,
            blocks: list(network.blocks, "blocks")?,
        })
    }
}

impl From<&model::Guest> for wire::Guest {
    fn from(guest: &model::Guest) -> Self {
        Self {
            id: guest.id.to_string(),
            meta: Some((&guest.meta).into()),
            name: guest.name.clone(),
            node_id: guest.node_id.to_string(),
            joins: guest.joins.iter().map(Into::into).collect(),
            addresses: guest.addresses.iter().map(Into::into).collect(),
            up: guest.up,
        }
    }
}

impl TryFrom<wire::Guest> for model::Guest {
    type Error = InvalidField;

    fn try_from(guest: wire::Guest) -> Result<Self, InvalidField> {
        Ok(Self {
            id: id(&guest.id, "id")?,
            meta: guest.meta.map(Into::into).unwrap_or_default(),
            name: guest.name,
            node_id: id(&guest.node_id, "node_id")?,
            joins: list(guest.joins, "joins")?,
            addresses: list(guest.addresses, "addresses")?,
            up: guest.up,
        })
    }
}
