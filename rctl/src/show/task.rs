//! `service ps`.

use rorqual_proto::wire::{DesiredState, Health, Task, TaskAddress, TaskState, TaskStatus, TaskView};
use serde::Serialize;

use super::ports;
use crate::human;
use crate::table::Table;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Row {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    image: String,
    node: String,
    desired_state: &'static str,
    current_state: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    health: &'static str,
    restarts: u32,
    address: String,
    #[serde(rename = "IPv6Address", skip_serializing_if = "String::is_empty")]
    ipv6_address: String,
    error: String,
    /// An earlier task of the slot of the row above.
    #[serde(skip)]
    earlier: bool,
}

/// Rows by service and slot, the newest task of a slot first.
pub(crate) fn rows(mut views: Vec<TaskView>, now_ms: i64, no_trunc: bool) -> Vec<Row> {
    let key = |view: &TaskView| {
        let task = view.task.clone().unwrap_or_default();
        let created_at_ms = task.meta.unwrap_or_default().created_at_ms;
        (task.service_name, task.slot, std::cmp::Reverse(created_at_ms), task.id)
    };
    views.sort_by_cached_key(key);
    let mut above = None;
    let row = |view: TaskView| {
        let task = view.task.unwrap_or_default();
        let place = Some((task.service_name.clone(), task.slot));
        let earlier = place == above;
        above = place;
        let container = task.container.clone().unwrap_or_default();
        Row {
            name: format!("{}.{}", task.service_name, task.slot),
            image: ports::image(&container.image, &container.image_digest, no_trunc),
            node: if view.node_hostname.is_empty() { task.node_id.clone() } else { view.node_hostname },
            desired_state: desired_word(task.desired_state()),
            current_state: current_state(&task, now_ms),
            health: health_word(task.status.as_ref().map_or(Health::Unspecified, TaskStatus::health)),
            restarts: task.status.clone().unwrap_or_default().restarts,
            address: addresses(&task, |one| &one.address),
            ipv6_address: addresses(&task, |one| &one.ipv6_address),
            error: error(&task, &view.explanation),
            id: task.id,
            earlier,
        }
    };
    views.into_iter().map(row).collect()
}

/// In the order of its networks.
fn addresses(task: &Task, of: impl Fn(&TaskAddress) -> &str) -> String {
    task.addresses.iter().map(of).filter(|address| !address.is_empty()).collect::<Vec<_>>().join(",")
}

pub(crate) fn table(rows: Vec<Row>, no_trunc: bool) -> String {
    let header =
        ["ID", "NAME", "IMAGE", "NODE", "DESIRED STATE", "CURRENT STATE", "RESTARTS", "ADDRESS", "ERROR"];
    let mut table = Table::new(&header);
    for row in rows {
        table.row(vec![
            if no_trunc { row.id } else { human::short_id(&row.id) },
            if row.earlier { format!("\\_ {}", row.name) } else { row.name },
            row.image,
            row.node,
            row.desired_state.to_owned(),
            row.current_state,
            row.restarts.to_string(),
            row.address,
            row.error,
        ]);
    }
    table.render()
}

fn current_state(task: &Task, now_ms: i64) -> String {
    let status = task.status.clone().unwrap_or_default();
    let word = state_word(status.state());
    let word = match (status.state(), status.health()) {
        (TaskState::Running, Health::Starting) => "Running (starting)",
        (TaskState::Running, Health::Unhealthy) => "Running (unhealthy)",
        (TaskState::Running, _) if !status.healthy => "Running (not in the balancer)",
        (TaskState::Running, Health::Healthy) => "Running (healthy)",
        _ => word,
    };
    if status.at_ms == 0 { word.to_owned() } else { format!("{word} {}", human::ago(status.at_ms, now_ms)) }
}

/// Why it does not run, in the words of whoever knows best.
fn error(task: &Task, explanation: &str) -> String {
    let status: TaskStatus = task.status.clone().unwrap_or_default();
    let ended = status.state() >= TaskState::Complete;
    match (explanation, status.message.as_str(), status.exit_code) {
        (explanation, ..) if !explanation.is_empty() => explanation.to_owned(),
        (_, message, _) if !message.is_empty() => message.to_owned(),
        _ if status.oom_killed && ended => "killed for want of memory".to_owned(),
        (_, _, Some(code)) if ended && code != 0 => format!("ended with exit code {code}"),
        _ => String::new(),
    }
}

/// A task's state as people read it.
pub(crate) fn state_word(state: TaskState) -> &'static str {
    match state {
        TaskState::Unspecified => "Unknown",
        TaskState::New => "New",
        TaskState::Pending => "Pending",
        TaskState::Assigned => "Assigned",
        TaskState::Accepted => "Accepted",
        TaskState::Preparing => "Preparing",
        TaskState::Ready => "Ready",
        TaskState::Starting => "Starting",
        TaskState::Running => "Running",
        TaskState::Complete => "Complete",
        TaskState::Shutdown => "Shutdown",
        TaskState::Failed => "Failed",
        TaskState::Rejected => "Rejected",
        TaskState::Orphaned => "Orphaned",
    }
}

/// What a health check says, as Docker calls it; empty without one.
pub(crate) fn health_word(health: Health) -> &'static str {
    match health {
        Health::Unspecified => "",
        Health::Starting => "starting",
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
    }
}

fn desired_word(state: DesiredState) -> &'static str {
    match state {
        DesiredState::Unspecified => "",
        DesiredState::Ready => "Ready",
        DesiredState::Running => "Running",
        DesiredState::Retiring => "Retiring",
        DesiredState::Shutdown => "Shutdown",
        DesiredState::Remove => "Remove",
    }
}

#[cfg(test)]
mod tests {
    use rorqual_proto::wire::{ContainerSpec, Meta, TaskAddress};

    use super::*;

    fn view(id: &str, slot: u32, created_at_ms: i64, state: TaskState, message: &str) -> TaskView {
        let ended = state >= TaskState::Complete;
        let task = Task {
            id: format!("{id:0<25}"),
            meta: Some(Meta { created_at_ms, ..Meta::default() }),
            service_name: "web".into(),
            slot,
            container: Some(ContainerSpec {
                image: "docker.io/library/nginx:1".into(),
                image_digest: "sha256:00".into(),
                ..ContainerSpec::default()
            }),
            desired_state: if ended { DesiredState::Shutdown } else { DesiredState::Running }.into(),
            status: Some(TaskStatus {
                state: state.into(),
                message: message.into(),
                at_ms: 1_000_000,
                healthy: true,
                restarts: slot,
                ..TaskStatus::default()
            }),
            addresses: vec![TaskAddress {
                network_id: "n".into(),
                address: format!("10.213.0.{slot}"),
                ipv6_address: format!("fd5e::ad5:{slot}"),
            }],
            ..Task::default()
        };
        TaskView { task: Some(task), node_hostname: "n1".into(), explanation: String::new() }
    }

    #[test]
    fn golden() {
        let views = vec![
            view("c", 10, 3, TaskState::Running, ""),
            view("a", 2, 1, TaskState::Failed, "ended with exit code 1"),
            view("b", 2, 2, TaskState::Running, ""),
        ];
        let expected = "\
ID             NAME       IMAGE     NODE   DESIRED STATE   CURRENT STATE           RESTARTS   ADDRESS       ERROR
b00000000000   web.2      nginx:1   n1     Running         Running 2 minutes ago   2          10.213.0.2
a00000000000   \\_ web.2   nginx:1   n1     Shutdown        Failed 2 minutes ago    2          10.213.0.2    ended with exit code 1
c00000000000   web.10     nginx:1   n1     Running         Running 2 minutes ago   10         10.213.0.10
";
        assert_eq!(table(rows(views, 1_120_000, false), false), expected);
    }

    #[test]
    fn json() {
        let rows = rows(vec![view("a", 1, 1, TaskState::Pending, "")], 1_001_000, true);
        assert_eq!(
            serde_json::to_string(&rows[0]).unwrap(),
            r#"{"ID":"a000000000000000000000000","Name":"web.1","Image":"docker.io/library/nginx:1@sha256:00","Node":"n1","DesiredState":"Running","CurrentState":"Pending 1 second ago","Restarts":1,"Address":"10.213.0.1","IPv6Address":"fd5e::ad5:1","Error":""}"#
        );
    }

    #[test]
    fn the_reason_is_always_told() {
        let mut pending = view("a", 1, 1, TaskState::Pending, "");
        pending.explanation = "no suitable node".into();
        let error_of = |view: TaskView| rows(vec![view], 0, false).remove(0).error;
        assert_eq!(error_of(pending), "no suitable node");
        let mut failed = view("a", 1, 1, TaskState::Failed, "");
        failed.task.as_mut().unwrap().status.as_mut().unwrap().exit_code = Some(7);
        assert_eq!(error_of(failed.clone()), "ended with exit code 7");
        failed.task.as_mut().unwrap().status.as_mut().unwrap().oom_killed = true;
        assert_eq!(error_of(failed), "killed for want of memory");
    }
}
