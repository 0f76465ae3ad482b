//! The planner's actions on the wire: what a log entry carries.

use rorqual_planner::{Action, ActionKind};
use rorqual_proto::convert::{self, InvalidField, NodeStatusChange};
use rorqual_proto::wire::{self, store_action::Action as Kind};

/// An action as a log entry carries it.
pub(crate) fn to_wire(action: &Action) -> wire::StoreAction {
    wire::StoreAction { action: Some(kind_to_wire(&action.kind)), expected_version: action.expected_version }
}

fn kind_to_wire(kind: &ActionKind) -> Kind {
    match kind {
        ActionKind::PutCluster(cluster) => Kind::PutCluster((&**cluster).into()),
        ActionKind::PutNode(node) => Kind::PutNode((&**node).into()),
        ActionKind::PutService(service) => Kind::PutService((&**service).into()),
        ActionKind::PutTask(task) => Kind::PutTask((&**task).into()),
        ActionKind::PutNetwork(network) => Kind::PutNetwork((&**network).into()),
        ActionKind::RemoveNode(id) => Kind::RemoveNode(id.to_string()),
        ActionKind::RemoveService(id) => Kind::RemoveService(id.to_string()),
        ActionKind::RemoveTask(id) => Kind::RemoveTask(id.to_string()),
        ActionKind::RemoveNetwork(id) => Kind::RemoveNetwork(id.to_string()),
        ActionKind::TaskStatus { task_id, status } => Kind::TaskStatus(wire::TaskStatusUpdate {
            task_id: task_id.to_string(),
            status: Some(status.into()),
        }),
        ActionKind::TaskDesired { task_id, desired_state } => Kind::TaskDesired(wire::TaskDesiredUpdate {
            task_id: task_id.to_string(),
            desired_state: wire::DesiredState::from(*desired_state).into(),
        }),
        ActionKind::NodeStatus { node_id, status, description, address } => {
            Kind::NodeStatus(wire::NodeStatusUpdate {
                node_id: node_id.to_string(),
                status: status.as_ref().map(Into::into),
                description: description.as_ref().map(Into::into),
                address: address.clone().unwrap_or_default(),
            })
        }
    }
}

/// The action that a log entry carries.
///
/// # Errors
/// A field that this version can't read; the error names it.
pub(crate) fn from_wire(action: wire::StoreAction) -> Result<Action, InvalidField> {
    let kind = action.action.ok_or_else(|| InvalidField::missing("action"))?;
    Ok(Action { kind: kind_from_wire(kind)?, expected_version: action.expected_version })
}

fn kind_from_wire(kind: Kind) -> Result<ActionKind, InvalidField> {
    let at = |path: &'static str| move |error: InvalidField| error.within(path);
    Ok(match kind {
        Kind::PutCluster(cluster) => {
            ActionKind::PutCluster(Box::new(cluster.try_into().map_err(at("put_cluster"))?))
        }
        Kind::PutNode(node) => ActionKind::PutNode(Box::new(node.try_into().map_err(at("put_node"))?)),
        Kind::PutService(service) => {
            ActionKind::PutService(Box::new(service.try_into().map_err(at("put_service"))?))
        }
        Kind::PutTask(task) => ActionKind::PutTask(Box::new(task.try_into().map_err(at("put_task"))?)),
        Kind::PutNetwork(network) => {
            ActionKind::PutNetwork(Box::new(network.try_into().map_err(at("put_network"))?))
        }
        Kind::RemoveNode(id) => ActionKind::RemoveNode(convert::id(&id, "remove_node")?),
        Kind::RemoveService(id) => ActionKind::RemoveService(convert::id(&id, "remove_service")?),
        Kind::RemoveTask(id) => ActionKind::RemoveTask(convert::id(&id, "remove_task")?),
        Kind::RemoveNetwork(id) => ActionKind::RemoveNetwork(convert::id(&id, "remove_network")?),
        Kind::TaskStatus(update) => {
            let (task_id, status) = convert::task_status_update(update).map_err(at("task_status"))?;
            ActionKind::TaskStatus { task_id, status }
        }
        Kind::TaskDesired(update) => {
            let (task_id, desired_state) =
                convert::task_desired_update(&update).map_err(at("task_desired"))?;
            ActionKind::TaskDesired { task_id, desired_state }
        }
        Kind::NodeStatus(update) => {
            let NodeStatusChange { node_id, status, description, address } =
                convert::node_status_update(update).map_err(at("node_status"))?;
            ActionKind::NodeStatus { node_id, status, description, address }
        }
    })
}
