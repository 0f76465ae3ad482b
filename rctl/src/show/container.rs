//! `ps`.

use rorqual_proto::wire::{ContainerInfo, ContainerState, NetworkJoin};
use serde::Serialize;

use super::ports;
use super::service_inspect::mount_word;
use super::task::health_word;
use crate::human;
use crate::table::Table;

/// As much of a command as fits a column.
const COMMAND_LENGTH: usize = 20;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Row {
    #[serde(rename = "ID")]
    id: String,
    image: String,
    command: String,
    created_at: String,
    running_for: String,
    state: &'static str,
    status: String,
    ports: String,
    names: String,
    labels: String,
    mounts: String,
    address: String,
    #[serde(rename = "IPv6Addresses", skip_serializing_if = "String::is_empty")]
    ipv6_addresses: String,
    networks: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    health: &'static str,
    restarts: u32,
    #[serde(rename = "OOMKilled")]
    oom_killed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(rename = "TaskID", skip_serializing_if = "String::is_empty")]
    task_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    service: String,
}

pub(crate) fn row(container: &ContainerInfo, now_ms: i64, no_trunc: bool) -> Row {
    let spec = container.spec.clone().unwrap_or_default();
    let command = [spec.entrypoint.clone(), spec.args.clone()].concat();
    let mounts = spec.mounts.iter().map(|mount| {
        if mount.source.is_empty() { mount_word(mount.kind()).to_owned() } else { mount.source.clone() }
    });
    Row {
        id: container.id.clone(),
        image: ports::image(&spec.image, &spec.image_digest, no_trunc),
        command: human::quoted_command(&command, (!no_trunc).then_some(COMMAND_LENGTH)),
        created_at: human::rfc3339_ms(container.created_at_ms),
        running_for: human::ago(container.created_at_ms, now_ms),
        state: state_word(container.state()),
        status: status(container, now_ms),
        ports: ports::cell(&container.ports, "0.0.0.0"),
        names: container.name.clone(),
        labels: spec
            .labels
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
            .join(","),
        mounts: mounts.collect::<Vec<_>>().join(","),
        address: container.address.clone(),
        ipv6_addresses: container.ipv6_addresses.join(","),
        networks: container.networks.iter().map(network).collect::<Vec<_>>().join(","),
        health: health_word(container.health()),
        restarts: container.restarts,
        oom_killed: container.oom_killed,
        exit_code: container.exit_code,
        task_id: container.task_id.clone(),
        service: container.service_name.clone(),
    }
}

pub(crate) fn table(rows: Vec<Row>, no_trunc: bool) -> String {
    let mut table = Table::new(&["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]);
    for row in rows {
        table.row(vec![
            if no_trunc { row.id } else { human::short_id(&row.id) },
            row.image,
            row.command,
            row.running_for,
            row.status,
            row.ports,
            row.names,
        ]);
    }
    table.render()
}

/// `front=10.20.0.7`; the name alone where there is no address yet.
fn network(join: &NetworkJoin) -> String {
    match join.address.as_str() {
        "" => join.network.clone(),
        address => format!("{}={address}", join.network),
    }
}

fn state_word(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Unspecified => "unknown",
        ContainerState::Created => "created",
        ContainerState::Running => "running",
        ContainerState::Restarting => "restarting",
        ContainerState::Exited => "exited",
    }
}

fn status(container: &ContainerInfo, now_ms: i64) -> String {
    let code = container.exit_code.map(|code| format!(" ({code})")).unwrap_or_default();
    let why = match (container.oom_killed, container.message.as_str()) {
        (true, "") => ", killed for want of memory".to_owned(),
        (_, "") => String::new(),
        (_, message) => format!(", {message}"),
    };
    match container.state() {
        ContainerState::Unspecified => "Unknown".to_owned(),
        ContainerState::Created => format!("Created{why}"),
        ContainerState::Running => {
            let health = match health_word(container.health()) {
                "" => String::new(),
                "starting" => " (health: starting)".to_owned(),
                word => format!(" ({word})"),
            };
            format!("Up {}{health}{why}", human::lasting(now_ms - container.started_at_ms))
        }
        ContainerState::Restarting => {
            format!("Restarting{code} {}{why}", human::ago(container.finished_at_ms, now_ms))
        }
        ContainerState::Exited => {
            format!("Exited{code} {}{why}", human::ago(container.finished_at_ms, now_ms))
        }
    }
}

#[cfg(test)]
mod tests {
    use rorqual_proto::wire::{ContainerSpec, PortSpec};

    use super::*;

    fn container(state: ContainerState) -> ContainerInfo {
        ContainerInfo {
            id: "k3x0a9b8c7d6e5f4g3h2i1j0z".into(),
            name: "calm-whale".into(),
            spec: Some(ContainerSpec {
                image: "docker.io/library/busybox:latest".into(),
                args: vec!["sleep".into(), "1000000000000000000".into()],
                ..ContainerSpec::default()
            }),
            state: state.into(),
            created_at_ms: 1000,
            started_at_ms: 1000,
            finished_at_ms: 60_000,
            ports: vec![PortSpec { published: 8080, target: 80, protocol: 1, ..Default::default() }],
            ..ContainerInfo::default()
        }
    }

    #[test]
    fn golden() {
        let running = container(ContainerState::Running);
        let mut killed = container(ContainerState::Exited);
        (killed.exit_code, killed.oom_killed) = (Some(137), true);
        let rows = [running, killed].iter().map(|one| row(one, 121_000, false)).collect();
        let expected = "\
CONTAINER ID   IMAGE            COMMAND                  CREATED         STATUS                                                       PORTS                  NAMES
k3x0a9b8c7d6   busybox:latest   \"sleep 1000000000000…\"   2 minutes ago   Up 2 minutes                                                 0.0.0.0:8080->80/tcp   calm-whale
k3x0a9b8c7d6   busybox:latest   \"sleep 1000000000000…\"   2 minutes ago   Exited (137) About a minute ago, killed for want of memory   0.0.0.0:8080->80/tcp   calm-whale
";
        assert_eq!(table(rows, false), expected);
    }

    #[test]
    fn json_has_dockers_names() {
        let json = serde_json::to_value(row(&container(ContainerState::Running), 121_000, true)).unwrap();
        assert_eq!(json["ID"], "k3x0a9b8c7d6e5f4g3h2i1j0z");
        assert_eq!(json["Names"], "calm-whale");
        assert_eq!(json["State"], "running");
        assert_eq!(json["RunningFor"], "2 minutes ago");
        assert_eq!(json["Command"], "\"sleep 1000000000000000000\"");
        assert!(json.get("TaskID").is_none());
    }
}
