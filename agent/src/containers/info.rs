//! How a container shows itself on the wire.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use rorqual_network::Interface;
use rorqual_proto::model::{TaskState, TaskStatus};
use rorqual_proto::validate::{self, InvalidField};
use rorqual_proto::{model, wire};

use crate::store::ContainerRecord;
use crate::tasks::Entry as TaskEntry;

/// The first characters of an id, as people see and type it, and a plain container's host name.
pub(crate) fn short_id(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Published ports of a plain container: the node's own, so each has to be named.
pub(super) fn check_ports(ports: &[wire::PortSpec]) -> Result<(), InvalidField> {
    let mut specs = Vec::with_capacity(ports.len());
    for (index, port) in ports.iter().enumerate() {
        let spec = model::PortSpec::try_from(port.clone())
            .map_err(|error| error.within(&format!("ports[{index}]")))?;
        if spec.published == 0 {
            return Err(InvalidField::new(format!("ports[{index}].published"), "is missing")
                .remedy("name the node's port, as in 8080:80"));
        }
        specs.push(spec);
    }
    validate::port_specs(&specs, "ports")
}

/// A container without a network of its own publishes nothing, and sets nothing of it.
pub(super) fn check_network(
    mode: wire::NetworkMode,
    ports: &[wire::PortSpec],
    spec: &model::ContainerSpec,
) -> Result<(), InvalidField> {
    let asked = spec.health.as_ref().and_then(|check| check.probe.as_ref());
    if mode == wire::NetworkMode::None
        && matches!(asked, Some(model::Probe::Http { .. } | model::Probe::Tcp { .. }))
    {
        return Err(InvalidField::new("spec.health", "a container without a network can't be asked by it")
            .remedy("ask by a command (--health-cmd), or name another --network"));
    }
    let why = match mode {
        wire::NetworkMode::Unspecified => return Ok(()),
        wire::NetworkMode::Host => "a container in the node's own network has the node's ports already",
        wire::NetworkMode::None => "a container without a network can't be reached",
    };
    if !ports.is_empty() {
        return Err(InvalidField::new("ports", why).remedy("leave --publish out, or name another --network"));
    }
    if mode == wire::NetworkMode::None && spec.dns != model::DnsSpec::default() {
        return Err(InvalidField::new("spec.dns", "a container without a network asks nobody")
            .remedy("leave --dns, --dns-search and --dns-option out, or name another --network"));
    }
    let sysctl = spec.sysctls.keys().find(|name| name.starts_with("net."));
    if let Some(name) = sysctl.filter(|_| mode == wire::NetworkMode::Host) {
        return Err(InvalidField::new(format!("spec.sysctls.{name}"), "would be set for the whole node")
            .remedy("leave it out, or name another --network"));
    }
    Ok(())
}

fn status_of(record: &ContainerRecord) -> Option<TaskStatus> {
    record.status.clone().and_then(|status| TaskStatus::try_from(status).ok())
}

/// It has ended, and nothing starts it again.
pub(super) fn has_ended(record: &ContainerRecord) -> bool {
    status_of(record).is_some_and(|status| status.state.is_terminal())
}

fn state(status: Option<&TaskStatus>) -> wire::ContainerState {
    match status {
        Some(status) if status.state.is_terminal() => wire::ContainerState::Exited,
        Some(status) if status.state == TaskState::Running && status.pid > 0 => wire::ContainerState::Running,
        Some(status) if status.restarts > 0 => wire::ContainerState::Restarting,
        Some(_) | None => wire::ContainerState::Created,
    }
}

/// The interfaces of what is attached, by id.
pub(crate) type Addresses = BTreeMap<String, Vec<Interface>>;

fn first(addresses: &Addresses, id: &str) -> Option<Ipv4Addr> {
    addresses.get(id)?.first().map(|interface| interface.address)
}

/// A plain container.
pub(crate) fn of_record(record: &ContainerRecord, addresses: &Addresses) -> wire::ContainerInfo {
    let status = status_of(record);
    let mut info = wire::ContainerInfo {
        id: record.id.clone(),
        name: record.name.clone(),
        spec: record.spec.clone(),
        created_at_ms: record.created_at_ms,
        started_at_ms: record.started_at_ms,
        finished_at_ms: record.finished_at_ms,
        ports: record.ports.clone(),
        network_mode: record.network_mode,
        networks: super::guests::shown(record, first(addresses, &record.id)),
        ..wire::ContainerInfo::default()
    };
    fill(&mut info, status.as_ref(), addresses);
    info
}

/// A task's container.
pub(crate) fn of_task(entry: &TaskEntry, addresses: &Addresses) -> wire::ContainerInfo {
    let (task, status) = (&entry.task, entry.observed().status);
    let ended = status.state.is_terminal();
    let mut info = wire::ContainerInfo {
        id: task.id.to_string(),
        name: task.name(),
        spec: Some((&task.container).into()),
        created_at_ms: task.meta.created_at_ms,
        started_at_ms: if status.state == TaskState::Running { status.at_ms } else { 0 },
        finished_at_ms: if ended { status.at_ms } else { 0 },
        task_id: task.id.to_string(),
        service_name: task.service_name.clone(),
        ..wire::ContainerInfo::default()
    };
    fill(&mut info, Some(&status), addresses);
    info
}

fn fill(info: &mut wire::ContainerInfo, status: Option<&TaskStatus>, addresses: &Addresses) {
    info.set_state(state(status));
    info.address = first(addresses, &info.id).map(|address| address.to_string()).unwrap_or_default();
    let interfaces = addresses.get(&info.id).into_iter().flatten();
    info.ipv6_addresses = interfaces.filter_map(|one| Some(one.address6?.to_string())).collect();
    if let Some(status) = status {
        info.exit_code = status.exit_code.filter(|_| status.pid == 0);
        info.oom_killed = status.oom_killed;
        info.pid = status.pid;
        info.set_health(status.health.map_or(wire::Health::Unspecified, Into::into));
        info.restarts = status.restarts;
        info.message = status.message.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_follows_the_status() {
        let mut status = TaskStatus::new(0);
        assert_eq!(state(None), wire::ContainerState::Created);
        assert_eq!(state(Some(&status)), wire::ContainerState::Created);
        status.state = TaskState::Running;
        status.restarts = 1;
        assert_eq!(state(Some(&status)), wire::ContainerState::Restarting);
        status.pid = 7;
        assert_eq!(state(Some(&status)), wire::ContainerState::Running);
        status.state = TaskState::Failed;
        assert_eq!(state(Some(&status)), wire::ContainerState::Exited);
    }

    #[test]
    fn a_port_of_the_node_has_to_be_named() {
        let port = |published| wire::PortSpec { published, target: 80, protocol: 1, ..Default::default() };
        check_ports(&[port(8080)]).unwrap();
        let error = check_ports(&[port(8080), port(0)]).unwrap_err();
        assert!(error.to_string().starts_with("ports[1].published"), "{error}");
        assert!(check_ports(&[port(8080), port(8080)]).is_err());
        assert!(check_ports(&[port(70_000)]).is_err());
    }
}
