//! What is acceptable in specs: semantic checks on the model, for controllers and for the command line
//! alike. Each function checks one object and names the first bad field relative to it; nothing here needs
//! to know what else is in the cluster (that a port or name is free is the planner's to say).

mod container;
mod dns;
mod edge;
mod health;
mod network;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::Ipv4Net;

pub use crate::InvalidField;
pub use container::{
    MAX_NANO_CPUS, MIN_MEMORY_BYTES, MIN_NANO_CPUS, SIGNALS, container_spec, mounts, signal_number,
};

pub use edge::edge_settings;
pub use network::{block_prefix, network_joins, network_spec};

use crate::model::{
    Constraint, NodeSpec, Placement, PortSpec, RestartCondition, RestartPolicy, ServiceMode, ServiceSpec,
    node,
};

/// The most slots that a service may have.
pub const MAX_REPLICAS: u32 = 10_000;

/// The most elements of a list, and labels of an object.
pub const MAX_ELEMENTS: usize = 512;

/// The most ranges of clients of one published port: each new connection is compared with them one by one.
pub const MAX_ALLOWED: usize = 64;

/// The longest wait that a policy may name.
pub const MAX_WAIT_MS: u64 = 24 * 3600 * 1000;

/// Blocks of this length are leased out of the container pool.
pub const BLOCK_PREFIX: u8 = 26;

/// A whole service spec.
pub fn service_spec(spec: &ServiceSpec) -> Result<(), InvalidField> {
    dns_label(&spec.name, "name")?;
    labels(&spec.labels, "labels")?;
    container_spec(&spec.container).map_err(|error| error.within("container"))?;
    mode(&spec.mode)?;
    port_specs(&spec.ports, "ports")?;
    network_joins(&spec.networks, "networks")?;
    if let Some(index) =
        spec.networks.iter().position(|join| join.address.is_some() || join.address6.is_some())
    {
        return Err(InvalidField::new(
            format!("networks[{index}].address"),
            "a service has many containers, so none of its networks can give it one address",
        )
        .remedy("leave it out; the service's virtual address stays the same for its life"));
    }
    edge::routes(spec, "routes")?;
    if spec.dnsrr && spec.client_affinity && spec.ports.is_empty() {
        return Err(InvalidField::new(
            "client_affinity",
            "the node does not choose the replica where names stand for the addresses of all of them",
        )
        .remedy("let the service have a virtual address (--endpoint-mode vip), or a published port"));
    }
    restart_policy(&spec.restart).map_err(|error| error.within("restart"))?;
    placement(&spec.placement).map_err(|error| error.within("placement"))
}

/// The number of tasks that a service asks for.
pub fn mode(mode: &ServiceMode) -> Result<(), InvalidField> {
    match *mode {
        ServiceMode::Replicated { replicas } if replicas > MAX_REPLICAS => Err(InvalidField::new(
            "mode.replicated.replicas",
            format!("{replicas} are too many: at most {MAX_REPLICAS} replicas"),
        )),
        ServiceMode::Replicated { .. } => Ok(()),
    }
}

/// A name that can be a DNS label: 1 to 63 of a–z, 0–9 and `-`, a letter or digit at both ends.
pub fn dns_label(name: &str, path: &str) -> Result<(), InvalidField> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let problem = match name {
        "" => "is empty".to_owned(),
        name if name.len() > 63 => format!("`{name}` has {} characters, at most 63 are allowed", name.len()),
        name if !name.chars().all(allowed) || name.starts_with('-') || name.ends_with('-') => {
            format!("`{name}` is not a DNS label")
        }
        _ => return Ok(()),
    };
    Err(InvalidField::new(path, problem)
        .remedy("use 1 to 63 of a–z, 0–9 and `-`, with a letter or digit at both ends"))
}

/// Labels: names of printable characters without spaces and `=`, values without control characters.
pub fn labels(labels: &BTreeMap<String, String>, path: &str) -> Result<(), InvalidField> {
    at_most(labels.len(), path)?;
    for (name, value) in labels {
        let field = format!("{path}.{name}");
        let bad = |c: char| c.is_whitespace() || c.is_control() || c == '=';
        if name.is_empty() || name.len() > 255 || name.chars().any(bad) {
            return Err(InvalidField::new(field, format!("`{name}` is not the name of a label"))
                .remedy("use 1 to 255 characters without spaces and `=`"));
        }
        if value.len() > 4096 || value.contains('\0') {
            return Err(InvalidField::new(field, "the value has more than 4096 bytes or contains a NUL"));
        }
    }
    Ok(())
}

/// Published ports: targets of 1 to 65535, no published port twice on one transport.
pub fn port_specs(ports: &[PortSpec], path: &str) -> Result<(), InvalidField> {
    at_most(ports.len(), path)?;
    for (index, port) in ports.iter().enumerate() {
        if port.target == 0 {
            return Err(InvalidField::new(format!("{path}[{index}].target"), "is 0")
                .remedy("give the port inside the container, 1 to 65535"));
        }
        bound_and_allowed(port).map_err(|error| error.within(&format!("{path}[{index}]")))?;
        let mut earlier = ports.iter().take(index);
        if port.published != 0 && earlier.any(|other| other.meets(port)) {
            let field = format!("{path}[{index}].published");
            return Err(InvalidField::new(field, format!("port {} is published twice", port.published))
                .remedy("publish each port once"));
        }
    }
    Ok(())
}

/// An address that a node can have, and ranges of clients that mean something.
fn bound_and_allowed(port: &PortSpec) -> Result<(), InvalidField> {
    let never = |address: &IpAddr| match address {
        IpAddr::V4(address) => {
            address.is_multicast()
                || address.is_broadcast()
                || address.octets()[0] == 0
                || address.is_link_local()
        }
        IpAddr::V6(address) => {
            address.is_multicast() || address.is_unicast_link_local() || address.to_ipv4_mapped().is_some()
        }
    };
    if let Some(address) = port.address.filter(never) {
        return Err(InvalidField::new("address", format!("no port is published on {address}")).remedy(
            "give an address of a node, 127.0.0.1 or ::1 for the nodes themselves alone, or leave it out",
        ));
    }
    if port.allow.len() > MAX_ALLOWED {
        let problem = format!("{} ranges are too many: at most {MAX_ALLOWED}", port.allow.len());
        return Err(InvalidField::new("allow", problem));
    }
    for (index, range) in port.allow.iter().enumerate() {
        if range.addr() != range.network() {
            return Err(InvalidField::new(format!("allow[{index}]"), format!("{range} has host bits set"))
                .remedy(format!("its network is {}", range.trunc())));
        }
    }
    Ok(())
}

/// A restart policy: waits in their bounds and in order.
pub fn restart_policy(policy: &RestartPolicy) -> Result<(), InvalidField> {
    let waits = [
        ("delay_ms", policy.delay_ms),
        ("max_delay_ms", policy.max_delay_ms),
        ("window_ms", policy.window_ms),
    ];
    for (path, wait_ms) in waits {
        if wait_ms > MAX_WAIT_MS {
            return Err(InvalidField::new(path, format!("{wait_ms} ms are too long: at most 24 h")));
        }
    }
    if policy.condition != RestartCondition::None && policy.delay_ms == 0 {
        return Err(InvalidField::new("delay_ms", "is 0").remedy("give at least 1 ms"));
    }
    if policy.max_delay_ms < policy.delay_ms {
        let problem = format!("{} ms is less than delay_ms, {} ms", policy.max_delay_ms, policy.delay_ms);
        return Err(InvalidField::new("max_delay_ms", problem));
    }
    Ok(())
}

/// Placement: each constraint can be read.
pub fn placement(placement: &Placement) -> Result<(), InvalidField> {
    at_most(placement.constraints.len(), "constraints")?;
    for (index, text) in placement.constraints.iter().enumerate() {
        if let Err(error) = text.parse::<Constraint>() {
            return Err(InvalidField::new(format!("constraints[{index}]"), error.to_string()));
        }
    }
    Ok(())
}

/// A node spec.
pub fn node_spec(spec: &NodeSpec) -> Result<(), InvalidField> {
    labels(&spec.labels, "labels")?;
    match spec.labels.get(node::WEIGHT_LABEL) {
        Some(text) if node::parse_weight(text).is_none() => {
            let field = format!("labels.{}", node::WEIGHT_LABEL);
            let most = node::MAX_WEIGHT;
            Err(InvalidField::new(field, format!("`{text}` is not a weight: expected 1 to {most}"))
                .remedy(format!("{} is what other nodes have", node::DEFAULT_WEIGHT)))
        }
        _ => Ok(()),
    }
}

/// The cluster's address pools: private enough, large enough, and apart from each other.
pub fn pools(container_pool: Ipv4Net, vip_pool: Ipv4Net) -> Result<(), InvalidField> {
    for (path, pool, longest) in
        [("container_pool", container_pool, 24), ("vip_pool", vip_pool, BLOCK_PREFIX)]
    {
        if pool.addr() != pool.network() {
            return Err(InvalidField::new(path, format!("{pool} has host bits set"))
                .remedy(format!("its network is {}", pool.trunc())));
        }
        if pool.prefix_len() < 8 || pool.prefix_len() > longest {
            let problem = format!("{pool} is not of a size that works: expected /8 to /{longest}");
            return Err(InvalidField::new(path, problem));
        }
        let address = pool.addr();
        if address.is_loopback()
            || address.is_multicast()
            || address.is_link_local()
            || address.octets()[0] == 0
        {
            return Err(InvalidField::new(path, format!("{pool} can't be given to containers"))
                .remedy("choose a private network that nothing else uses, as 10.213.0.0/16"));
        }
    }
    if container_pool.contains(&vip_pool) || vip_pool.contains(&container_pool) {
        let problem = format!("{vip_pool} overlaps the container pool, {container_pool}");
        return Err(InvalidField::new("vip_pool", problem).remedy("choose two networks that don't overlap"));
    }
    Ok(())
}

fn at_most(count: usize, path: &str) -> Result<(), InvalidField> {
    if count > MAX_ELEMENTS {
        return Err(InvalidField::new(path, format!("{count} are too many: at most {MAX_ELEMENTS}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
