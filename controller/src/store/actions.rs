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
        ActionKind::PutGuest(guest) => Kind::PutGuest((&**guest).into()),
        ActionKind::RemoveGuest(id) => Kind::RemoveGuest(id.to_string()),
        ActionKind::PutRecord(record) => Kind::PutRecord((&**record).into()),
        ActionKind::RemoveRecord(key) => Kind::RemoveRecord(key.clone()),
        ActionKind::ExpectRecord(key) => Kind::ExpectRecord(key.clone()),
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
                description: description.as_deref().map(Into::into),
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
        Kind::PutGuest(guest) => ActionKind::PutGuest(Box::new(guest.try_into().map_err(at("put_guest"))?)),
        Kind::RemoveGuest(id) => ActionKind::RemoveGuest(convert::id(&id, "remove_guest")?),
        Kind::PutRecord(record) => {
            ActionKind::PutRecord(Box::new(record.try_into().map_err(at("put_record"))?))
        }
        Kind::RemoveRecord(key) => ActionKind::RemoveRecord(key),
        Kind::ExpectRecord(key) => ActionKind::ExpectRecord(key),
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
            ActionKind::NodeStatus { node_id, status, description: description.map(Box::new), address }
        }
    })
}

#[cfg(test)]
mod tests {
    use rorqual_proto::model::{
        DesiredState, Guest, GuestId, Meta, NetworkId, NetworkJoin, NodeId, NodeState, NodeStatus, Record,
        ServiceId, TaskAddress, TaskId, TaskState, TaskStatus,
    };

    use super::*;

    fn returned(action: &Action) -> Action {
        use prost::Message as _;
        let bytes = to_wire(action).encode_to_vec();
        from_wire(wire::StoreAction::decode(bytes.as_slice()).unwrap()).unwrap()
    }

    #[test]
    fn small_writes_come_back_as_they_went() {
        let status = TaskStatus { state: TaskState::Failed, exit_code: Some(137), ..TaskStatus::new(5) };
        let suspect = NodeStatus { state: NodeState::Suspect, message: "silent".to_owned(), since_ms: 9 };
        let node_status = |status: Option<NodeStatus>, address: Option<&str>| ActionKind::NodeStatus {
            node_id: NodeId::from_bits(1),
            status,
            description: None,
            address: address.map(ToOwned::to_owned),
        };
        let kinds = [
            ActionKind::RemoveNode(NodeId::from_bits(1)),
            ActionKind::RemoveService(ServiceId::from_bits(2)),
            ActionKind::RemoveTask(TaskId::from_bits(3)),
            ActionKind::RemoveNetwork(NetworkId::from_bits(4)),
            ActionKind::TaskStatus { task_id: TaskId::from_bits(3), status },
            ActionKind::TaskDesired { task_id: TaskId::from_bits(3), desired_state: DesiredState::Shutdown },
            node_status(Some(suspect), None),
            node_status(None, Some("10.0.0.1:4780")),
            ActionKind::PutRecord(Box::new(Record { key: "a/b".into(), version: 7, value: vec![1, 2] })),
            ActionKind::PutGuest(Box::new(Guest {
                id: GuestId::from_bits(5),
                meta: Meta::default(),
                name: "calm_whale".to_owned(),
                node_id: NodeId::from_bits(1),
                joins: vec![NetworkJoin { aliases: vec!["db".to_owned()], ..NetworkJoin::plain("front") }],
                addresses: vec![TaskAddress {
                    network_id: NetworkId::from_bits(4),
                    address: [10, 20, 0, 7].into(),
                    address6: None,
                }],
                up: true,
            })),
            ActionKind::RemoveGuest(GuestId::from_bits(5)),
            ActionKind::RemoveRecord("a/b".to_owned()),
            ActionKind::ExpectRecord("a/b".to_owned()),
        ];
        for kind in kinds {
            for expected_version in [None, Some(0), Some(7)] {
                let action = Action { kind: kind.clone(), expected_version };
                assert_eq!(returned(&action), action);
            }
        }
    }

    #[test]
    fn an_action_of_a_later_version_is_an_error_and_not_nothing() {
        assert!(from_wire(wire::StoreAction { action: None, expected_version: None }).is_err());
        let action = Some(Kind::RemoveTask("short".to_owned()));
        let error = from_wire(wire::StoreAction { action, expected_version: None }).unwrap_err();
        assert!(error.to_string().contains("remove_task"), "{error}");
    }
}
