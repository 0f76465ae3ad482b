//! Model ↔ wire.
//!
//! Model to wire is `From<&model::X> for wire::X` and can't fail; wire to model is
//! `TryFrom<wire::X> for model::X` and names the bad field, relative to X: a caller that found X in a
//! field of something else adds that with [`InvalidField::within`]. What is unset on the wire (an absent
//! message, 0 or "" where these mean nothing) becomes the model's default here, and only here.
//!
//! Enums that stand alone on the wire as numbers have a function each ([`role`], [`task_state`], …): it
//! gives `None` for UNSPECIFIED and refuses a number that this version does not know.

mod cluster;
mod container;
mod edge;
mod enums;
mod health;
mod network;
mod node;
mod record;
mod service;
mod task;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use crate::InvalidField;
pub use container::DEFAULT_STOP_GRACE_MS;
pub use enums::{
    availability, desired_state, health, mount_kind, node_state, on_unhealthy, protocol, restart_condition,
    role, task_state, update_order,
};
pub use network::texts_of;
pub use node::{NodeStatusChange, node_status_update};
pub use task::{reported_status, task_desired_update, task_status_update};

use crate::{model, wire};

impl From<&model::Meta> for wire::Meta {
    fn from(meta: &model::Meta) -> Self {
        Self { version: meta.version, created_at_ms: meta.created_at_ms, updated_at_ms: meta.updated_at_ms }
    }
}

impl From<wire::Meta> for model::Meta {
    fn from(meta: wire::Meta) -> Self {
        Self { version: meta.version, created_at_ms: meta.created_at_ms, updated_at_ms: meta.updated_at_ms }
    }
}

/// An id of any kind; the target type chooses the kind.
pub fn id<T>(text: &str, path: &str) -> Result<T, InvalidField>
where
    T: FromStr<Err = model::id::InvalidId>,
{
    text.parse().map_err(|error: model::id::InvalidId| InvalidField::new(path, error.to_string()))
}

/// An IPv4 address.
pub fn address(text: &str, path: &str) -> Result<Ipv4Addr, InvalidField> {
    text.parse().map_err(|_| InvalidField::new(path, format!("`{text}` is not an IPv4 address")))
}

/// An IPv4 network with its host bits zero: `10.213.0.0/16`.
pub fn ipv4_net(text: &str, path: &str) -> Result<Ipv4Net, InvalidField> {
    let problem = |problem: String| {
        Err(InvalidField::new(path, problem).remedy("write it as address/length, as 10.213.0.0/16"))
    };
    match text.parse::<Ipv4Net>() {
        Ok(net) if net.addr() == net.network() => Ok(net),
        Ok(net) => problem(format!("`{text}` has host bits set (its network is {})", net.trunc())),
        Err(_) => problem(format!("`{text}` is not an IPv4 network")),
    }
}

/// A network of either family with its host bits zero.
pub fn ip_net(text: &str, path: &str) -> Result<IpNet, InvalidField> {
    match text.parse::<Ipv6Net>() {
        Ok(net) if net.addr() == net.network() => Ok(net.into()),
        Ok(net) => {
            let problem = format!("`{text}` has host bits set (its network is {})", net.trunc());
            Err(InvalidField::new(path, problem).remedy("write it as address/length, as fd00:1::/64"))
        }
        Err(_) if text.contains(':') => {
            let problem = format!("`{text}` is not an IPv6 network");
            Err(InvalidField::new(path, problem).remedy("write it as address/length, as fd00:1::/64"))
        }
        Err(_) => ipv4_net(text, path).map(IpNet::from),
    }
}

/// An IPv6 address, or nothing.
fn ipv6_address(text: &str, path: &str) -> Result<Option<Ipv6Addr>, InvalidField> {
    let parse =
        || text.parse().map_err(|_| InvalidField::new(path, format!("`{text}` is not an IPv6 address")));
    (!text.is_empty()).then(parse).transpose()
}

fn optional(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn or_default(value: u64, default: u64) -> u64 {
    if value == 0 { default } else { value }
}

/// Converts each element and names the index of the one that fails.
fn list<T, W>(wires: Vec<W>, path: &str) -> Result<Vec<T>, InvalidField>
where
    T: TryFrom<W, Error = InvalidField>,
{
    let one =
        |(index, wire)| T::try_from(wire).map_err(|error| error.within(&format!("[{index}]")).within(path));
    wires.into_iter().enumerate().map(one).collect()
}

fn required<T, W>(value: Option<W>, path: &str) -> Result<T, InvalidField>
where
    T: TryFrom<W, Error = InvalidField>,
{
    let wire = value.ok_or_else(|| InvalidField::missing(path))?;
    T::try_from(wire).map_err(|error| error.within(path))
}

fn or_absent<T, W>(value: Option<W>, path: &str) -> Result<T, InvalidField>
where
    T: TryFrom<W, Error = InvalidField> + Default,
{
    value.map_or_else(|| Ok(T::default()), |wire| T::try_from(wire).map_err(|error| error.within(path)))
}

#[cfg(test)]
mod tests;
