//! [`model::Task`] and the writes of one side of it.

use super::{InvalidField, address, id, ipv6_address, list, or_absent, required};
use crate::{model, wire};

impl From<&model::TaskStatus> for wire::TaskStatus {
    fn from(status: &model::TaskStatus) -> Self {
        Self {
            state: wire::TaskState::from(status.state).into(),
            message: status.message.clone(),
            at_ms: status.at_ms,
            exit_code: status.exit_code,
            oom_killed: status.oom_killed,
            restarts: status.restarts,
            pid: status.pid,
            healthy: status.healthy,
            health: status.health.map_or(wire::Health::Unspecified, Into::into).into(),
        }
    }
}

impl TryFrom<wire::TaskStatus> for model::TaskStatus {
    type Error = InvalidField;

    fn try_from(status: wire::TaskStatus) -> Result<Self, InvalidField> {
        Ok(Self {
            state: super::task_state(status.state, "state")?.ok_or_else(|| InvalidField::missing("state"))?,
            message: status.message,
            at_ms: status.at_ms,
            exit_code: status.exit_code,
            oom_killed: status.oom_killed,
            restarts: status.restarts,
            pid: status.pid,
            healthy: status.healthy,
            health: super::health(status.health, "health")?,
        })
    }
}

impl From<&model::TaskAddress> for wire::TaskAddress {
    fn from(address: &model::TaskAddress) -> Self {
        Self {
            network_id: address.network_id.to_string(),
            address: address.address.to_string(),
            ipv6_address: address.address6.map(|address| address.to_string()).unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::TaskAddress> for model::TaskAddress {
    type Error = InvalidField;

    fn try_from(given: wire::TaskAddress) -> Result<Self, InvalidField> {
        Ok(Self {
            network_id: id(&given.network_id, "network_id")?,
            address: address(&given.address, "address")?,
            address6: ipv6_address(&given.ipv6_address, "ipv6_address")?,
        })
    }
}

impl From<&model::Task> for wire::Task {
    fn from(task: &model::Task) -> Self {
        Self {
            id: task.id.to_string(),
            meta: Some((&task.meta).into()),
            service_id: task.service_id.to_string(),
            service_name: task.service_name.clone(),
            slot: task.slot,
            spec_version: task.spec_version,
            container: Some((&task.container).into()),
            restart: Some((&task.restart).into()),
            placement: Some((&task.placement).into()),
            node_id: task.node_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            desired_state: wire::DesiredState::from(task.desired_state).into(),
            status: Some((&task.status).into()),
            addresses: task.addresses.iter().map(Into::into).collect(),
            networks: task.networks.clone(),
        }
    }
}

impl TryFrom<wire::Task> for model::Task {
    type Error = InvalidField;

    fn try_from(task: wire::Task) -> Result<Self, InvalidField> {
        Ok(Self {
            id: id(&task.id, "id")?,
            meta: task.meta.map(Into::into).unwrap_or_default(),
            service_id: id(&task.service_id, "service_id")?,
            service_name: task.service_name,
            slot: task.slot,
            spec_version: task.spec_version,
            container: required(task.container, "container")?,
            restart: or_absent(task.restart, "restart")?,
            placement: task.placement.map(Into::into).unwrap_or_default(),
            networks: task.networks,
            node_id: match task.node_id.as_str() {
                "" => None,
                text => Some(id(text, "node_id")?),
            },
            desired_state: desired(task.desired_state)?,
            status: required(task.status, "status")?,
            addresses: list(task.addresses, "addresses")?,
        })
    }
}

fn desired(number: i32) -> Result<model::DesiredState, InvalidField> {
    super::desired_state(number, "desired_state")?.ok_or_else(|| InvalidField::missing("desired_state"))
}

/// The parts of a write of a task's observed side.
pub fn task_status_update(
    update: wire::TaskStatusUpdate,
) -> Result<(model::TaskId, model::TaskStatus), InvalidField> {
    Ok((id(&update.task_id, "task_id")?, required(update.status, "status")?))
}

/// The parts of a write of a task's desired state.
pub fn task_desired_update(
    update: &wire::TaskDesiredUpdate,
) -> Result<(model::TaskId, model::DesiredState), InvalidField> {
    Ok((id(&update.task_id, "task_id")?, desired(update.desired_state)?))
}

/// The parts of what an agent reports about one task.
pub fn reported_status(
    report: wire::ReportedStatus,
) -> Result<(model::TaskId, model::TaskStatus), InvalidField> {
    Ok((id(&report.task_id, "task_id")?, required(report.status, "status")?))
}
