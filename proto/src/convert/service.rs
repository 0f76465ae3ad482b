//! [`model::Service`], its spec, ports and policies.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{InvalidField, address, id, list, optional, or_absent, or_default, required};
use crate::{model, wire};

impl From<&model::ServiceSpec> for wire::ServiceSpec {
    fn from(spec: &model::ServiceSpec) -> Self {
        Self {
            name: spec.name.clone(),
            labels: spec.labels.clone(),
            container: Some((&spec.container).into()),
            mode: Some((&spec.mode).into()),
            ports: spec.ports.iter().map(Into::into).collect(),
            networks: spec.networks.iter().map(Into::into).collect(),
            restart: Some((&spec.restart).into()),
            placement: Some((&spec.placement).into()),
            force_update: spec.force_update,
            routes: spec.routes.iter().map(Into::into).collect(),
            update_order: spec.update_order.map_or(wire::UpdateOrder::Unspecified, Into::into).into(),
            dnsrr: spec.dnsrr,
            client_affinity: spec.client_affinity,
        }
    }
}

impl TryFrom<wire::ServiceSpec> for model::ServiceSpec {
    type Error = InvalidField;

    fn try_from(spec: wire::ServiceSpec) -> Result<Self, InvalidField> {
        Ok(Self {
            name: spec.name,
            labels: spec.labels,
            container: required(spec.container, "container")?,
            mode: spec.mode.map(Into::into).unwrap_or(model::ServiceMode::Replicated { replicas: 1 }),
            ports: list(spec.ports, "ports")?,
            networks: list(spec.networks, "networks")?,
            restart: or_absent(spec.restart, "restart")?,
            placement: spec.placement.map(Into::into).unwrap_or_default(),
            force_update: spec.force_update,
            routes: list(spec.routes, "routes")?,
            update_order: super::update_order(spec.update_order, "update_order")?,
            dnsrr: spec.dnsrr,
            client_affinity: spec.client_affinity,
        })
    }
}

impl From<&model::ServiceMode> for wire::service_spec::Mode {
    fn from(mode: &model::ServiceMode) -> Self {
        match *mode {
            model::ServiceMode::Replicated { replicas } => Self::Replicated(wire::Replicated { replicas }),
        }
    }
}

impl From<wire::service_spec::Mode> for model::ServiceMode {
    fn from(mode: wire::service_spec::Mode) -> Self {
        match mode {
            wire::service_spec::Mode::Replicated(wire::Replicated { replicas }) => {
                Self::Replicated { replicas }
            }
        }
    }
}

impl From<&model::PortSpec> for wire::PortSpec {
    fn from(port: &model::PortSpec) -> Self {
        Self {
            published: port.published.into(),
            target: port.target.into(),
            protocol: wire::Protocol::from(port.protocol).into(),
            address: port.address.map(|address| address.to_string()).unwrap_or_default(),
            allow: port.allow.iter().map(ToString::to_string).collect(),
            local: port.local,
        }
    }
}

impl TryFrom<wire::PortSpec> for model::PortSpec {
    type Error = InvalidField;

    fn try_from(port: wire::PortSpec) -> Result<Self, InvalidField> {
        let number = |value: u32, path: &str| {
            u16::try_from(value).map_err(|_| {
                InvalidField::new(path, format!("{value} is not a port: expected at most 65535"))
            })
        };
        let allowed = port.allow.iter().enumerate();
        let allowed = allowed.map(|(index, text)| clients(text, &format!("allow[{index}]")));
        Ok(Self {
            published: number(port.published, "published")?,
            target: number(port.target, "target")?,
            protocol: super::protocol(port.protocol, "protocol")?.unwrap_or(model::Protocol::Tcp),
            address: bind_address(&port.address)?,
            allow: allowed.collect::<Result<_, _>>()?,
            local: port.local,
        })
    }
}

/// An address of a node. Those of all of them, `0.0.0.0` and `::`, are none.
fn bind_address(text: &str) -> Result<Option<IpAddr>, InvalidField> {
    if text.is_empty() {
        return Ok(None);
    }
    let given: IpAddr =
        text.parse().map_err(|_| InvalidField::new("address", format!("`{text}` is not an IP address")))?;
    Ok((!given.is_unspecified()).then_some(given))
}

/// A range of clients; an address alone is a range of one.
fn clients(text: &str, path: &str) -> Result<IpNet, InvalidField> {
    if let Ok(one) = text.parse::<IpAddr>() {
        return Ok(one.into());
    }
    let range = text.parse::<IpNet>().map_err(|_| {
        InvalidField::new(path, format!("`{text}` is not an IP network"))
            .remedy("write it as address/length, as 10.0.0.0/8 or fd00::/8")
    })?;
    if range.addr() == range.network() {
        return Ok(range);
    }
    Err(InvalidField::new(path, format!("`{text}` has host bits set (its network is {})", range.trunc()))
        .remedy("write it as address/length, as 10.0.0.0/8 or fd00::/8"))
}

impl From<&model::RestartPolicy> for wire::RestartPolicy {
    fn from(policy: &model::RestartPolicy) -> Self {
        Self {
            condition: wire::restart_policy::Condition::from(policy.condition).into(),
            delay_ms: policy.delay_ms,
            max_delay_ms: policy.max_delay_ms,
            max_attempts: policy.max_attempts,
            window_ms: policy.window_ms,
        }
    }
}

impl TryFrom<wire::RestartPolicy> for model::RestartPolicy {
    type Error = InvalidField;

    fn try_from(policy: wire::RestartPolicy) -> Result<Self, InvalidField> {
        let default = Self::default();
        let delay_ms = or_default(policy.delay_ms, default.delay_ms);
        Ok(Self {
            condition: super::restart_condition(policy.condition, "condition")?.unwrap_or(default.condition),
            delay_ms,
            // A caller who gave a long first wait and no longest one means no shorter than the first.
            max_delay_ms: or_default(policy.max_delay_ms, default.max_delay_ms.max(delay_ms)),
            max_attempts: policy.max_attempts,
            window_ms: policy.window_ms,
        })
    }
}

impl From<&model::Placement> for wire::Placement {
    fn from(placement: &model::Placement) -> Self {
        Self {
            constraints: placement.constraints.clone(),
            max_replicas_per_node: placement.max_replicas_per_node,
        }
    }
}

impl From<wire::Placement> for model::Placement {
    fn from(placement: wire::Placement) -> Self {
        Self { constraints: placement.constraints, max_replicas_per_node: placement.max_replicas_per_node }
    }
}

impl From<&model::Vip> for wire::ServiceVip {
    fn from(vip: &model::Vip) -> Self {
        Self {
            network_id: vip.network_id.to_string(),
            address: vip.address.to_string(),
            ipv6_address: String::new(),
        }
    }
}

impl TryFrom<wire::ServiceVip> for model::Vip {
    type Error = InvalidField;

    fn try_from(vip: wire::ServiceVip) -> Result<Self, InvalidField> {
        Ok(Self {
            network_id: id(&vip.network_id, "network_id")?,
            address: address(&vip.address, "address")?,
        })
    }
}

impl From<&model::Service> for wire::Service {
    fn from(service: &model::Service) -> Self {
        Self {
            id: service.id.to_string(),
            meta: Some((&service.meta).into()),
            spec: Some((&service.spec).into()),
            spec_version: service.spec_version,
            vips: service.vips.iter().map(Into::into).collect(),
            ports: service.ports.iter().map(Into::into).collect(),
            removing: service.removing,
            problem: service.problem.clone().unwrap_or_default(),
            previous_spec: service.previous_spec.as_deref().map(Into::into),
            sealed_auths: service.sealed_auths.clone(),
        }
    }
}

impl TryFrom<wire::Service> for model::Service {
    type Error = InvalidField;

    fn try_from(service: wire::Service) -> Result<Self, InvalidField> {
        Ok(Self {
            id: id(&service.id, "id")?,
            meta: service.meta.map(Into::into).unwrap_or_default(),
            spec: required(service.spec, "spec")?,
            spec_version: service.spec_version,
            vips: list(service.vips, "vips")?,
            ports: list(service.ports, "ports")?,
            removing: service.removing,
            problem: optional(service.problem),
            previous_spec: service
                .previous_spec
                .map(|spec| spec.try_into().map(Box::new))
                .transpose()
                .map_err(|error: InvalidField| error.within("previous_spec"))?,
            sealed_auths: service.sealed_auths,
        })
    }
}
