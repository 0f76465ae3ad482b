//! Nodes: listing them, changing what they may do, taking them out.

use std::sync::Arc;

use rorqual_planner::{Action, ActionKind, State};
use rorqual_proto::model::{Availability, Node, NodeState, Role, TaskState};
use rorqual_proto::{validate, wire};
use tonic::Status;

use super::Control;
use super::ipv6::Ipv6;
use crate::status;

impl Control {
    pub(super) async fn node_views(
        &self,
        request: wire::ListNodesRequest,
    ) -> Result<wire::ListNodesResponse, Status> {
        let leader = self.store.leadership().borrow().leader.clone().map(|peer| peer.node_id);
        self.store.read(|state| {
            let nodes: Vec<Arc<Node>> = if request.names.is_empty() {
                state.nodes().cloned().collect()
            } else {
                request.names.iter().map(|name| find(state, name)).collect::<Result<_, _>>()?
            };
            let views = nodes.into_iter().map(|node| wire::NodeView {
                leader: leader.as_ref() == Some(&node.id),
                controller: node.spec.role == Role::Controller,
                reachable: node.status.state == NodeState::Ready,
                running_tasks: running(state, &node),
                ipv6_address: Ipv6::new(state).of_node(&node),
                node: Some(wire::Node::from(&*node)),
            });
            Ok(wire::ListNodesResponse { nodes: views.collect() })
        })
    }

    pub(super) async fn change_node(
        &self,
        request: wire::UpdateNodeRequest,
    ) -> Result<wire::UpdateNodeResponse, Status> {
        let availability = match request.availability() {
            wire::Availability::Unspecified => None,
            wire::Availability::Active => Some(Availability::Active),
            wire::Availability::Pause => Some(Availability::Pause),
            wire::Availability::Drain => Some(Availability::Drain),
        };
        let (id, action) = self.store.read(|state| {
            let node = find(state, &request.name)?;
            if let Some(label) =
                request.label_remove.iter().find(|label| !node.spec.labels.contains_key(*label))
            {
                return Err(Status::not_found(format!(
                    "label_remove: node {} has no label `{label}`",
                    node.description.hostname
                )));
            }
            let mut changed = Node::clone(&node);
            changed.spec.availability = availability.unwrap_or(changed.spec.availability);
            changed.spec.labels.retain(|label, _| !request.label_remove.contains(label));
            changed.spec.labels.extend(request.label_add.clone());
            validate::node_spec(&changed.spec).map_err(status::from_field)?;
            let put = ActionKind::PutNode(Box::new(changed));
            let action = Action::expecting(put, node.meta.version);
            Ok((node.id.clone(), action))
        })?;
        self.store.propose(vec![action]).await.map_err(status::from_propose)?;
        let node = self.store.read(|state| state.node(&id).map(|node| wire::Node::from(&**node)));
        Ok(wire::UpdateNodeResponse { node })
    }

    pub(super) async fn drop_node(
        &self,
        request: wire::RemoveNodeRequest,
    ) -> Result<wire::RemoveNodeResponse, Status> {
        let node = self.store.read(|state| find(state, &request.name))?;
        self.membership.remove(&node.id, !request.force).await?;
        Ok(wire::RemoveNodeResponse {})
    }
}

fn running(state: &State, node: &Node) -> u32 {
    let running =
        state.tasks_on_node(&node.id).filter(|task| task.status.state == TaskState::Running).count();
    u32::try_from(running).unwrap_or(u32::MAX)
}

/// The node that an id, a unique prefix of one, or a host name means.
fn find(state: &State, name: &str) -> Result<Arc<Node>, Status> {
    let mut found: Vec<_> = state.nodes_by_hostname(name).collect();
    if found.is_empty() && !name.is_empty() {
        found = state.nodes().filter(|node| node.id.as_str().starts_with(name)).collect();
    }
    match found.as_slice() {
        [node] => Ok(Arc::clone(node)),
        [] => Err(Status::not_found(format!("no node `{name}`: `rctl node ls` lists them"))),
        several => Err(Status::invalid_argument(format!(
            "`{name}` means {} nodes: give the id ({})",
            several.len(),
            several.iter().map(|node| node.id.as_str()).collect::<Vec<_>>().join(", ")
        ))),
    }
}
