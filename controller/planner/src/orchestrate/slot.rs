//! One slot: replaces its task when that has ended, lost its node or was told to stop, and forgets what is
//! over.

use std::sync::Arc;

use rorqual_proto::model::{
    Availability, DesiredState, Node, NodeState, RestartCondition, Service, ServiceId, Task, TaskState,
};

use super::{HISTORY, RETIRE_MS, backoff, desire, is_gone, is_lost, is_over, orphaned, retire};
use crate::action::ActionKind;
use crate::draft::{Draft, Request};
use crate::planner::Look;
use crate::schedule;
use crate::state::index::is_holder;

/// Looks at one slot.
pub(crate) fn look(draft: &mut Draft<'_>, service_id: &ServiceId, slot: u32) {
    let state = draft.state;
    let service = state.service(service_id).filter(|service| !service.removing);
    let Some(service) = service else { return retire(draft, service_id, slot, true) };
    for task in state.tasks_in_slot(service_id, slot) {
        let gone = task.node_id.as_ref().is_some_and(|node| is_gone(state, node));
        if task.desired_state == DesiredState::Remove && is_over(state, task) {
            draft.push(ActionKind::RemoveTask(task.id.clone()));
        } else if gone && !task.status.state.is_terminal() {
            let status = orphaned(task, draft.now_ms);
            draft.push(ActionKind::TaskStatus { task_id: task.id.clone(), status });
        }
    }
    let kept: Vec<&Task> = state
        .tasks_in_slot(service_id, slot)
        .map(AsRef::as_ref)
        .filter(|task| task.desired_state < DesiredState::Remove)
        .collect();
    if kept.is_empty() {
        return;
    }
    let (holders, old): (Vec<&Task>, Vec<&Task>) = kept.iter().partition(|task| is_holder(task));
    match newest(&holders) {
        Some(holder) => {
            for other in holders.iter().filter(|task| task.id != holder.id) {
                desire(draft, other, DesiredState::Shutdown);
            }
            retire_old(draft, holder, &old);
            look_at_holder(draft, service, holder, &old);
        }
        None if old.iter().all(|task| is_out_of_the_way(draft, task)) => replace(draft, service, slot, &old),
        None => {}
    }
    forget(draft, old);
}

fn newest<'a>(tasks: &[&'a Task]) -> Option<&'a Task> {
    tasks.iter().copied().max_by_key(|task| (task.meta.created_at_ms, task.id.clone()))
}

/// Stops what ran on only until the holder serves. A node that is drained is to become empty: there, what has no node
/// to go to is not waited for, and what does not come up not without end.
fn retire_old(draft: &mut Draft<'_>, holder: &Task, old: &[&Task]) {
    for task in old.iter().filter(|task| task.desired_state == DesiredState::Retiring) {
        let node = task.node_id.as_ref().and_then(|id| draft.state.node(id));
        let drained = node.is_some_and(|node| node.spec.availability == Availability::Drain);
        let due_ms = holder.meta.created_at_ms.saturating_add_unsigned(RETIRE_MS);
        let waited = drained && (holder.node_id.is_none() || due_ms <= draft.now_ms);
        if holder.is_endpoint() || task.status.state.is_terminal() || waited {
            desire(draft, task, DesiredState::Shutdown);
        } else if drained {
            draft.timers.push((due_ms, Look::Slot(task.service_id.clone(), task.slot)));
        }
    }
}

fn look_at_holder(draft: &mut Draft<'_>, service: &Service, holder: &Task, old: &[&Task]) {
    let ended = holder.status.state.is_terminal();
    if ended && !returns(service, holder) {
        return;
    }
    let node = holder.node_id.as_ref().and_then(|id| draft.state.node(id));
    let lost = holder.node_id.as_ref().is_some_and(|id| is_lost(draft.state, id));
    let drained = node.is_some_and(|node| node.spec.availability == Availability::Drain);
    if ended && !lost && !drained && holder.spec_version == service.spec_version {
        let due_ms = backoff::due_ms(service, holder, old);
        if due_ms > draft.now_ms {
            draft.timers.push((due_ms, Look::Slot(service.id.clone(), holder.slot)));
            return;
        }
    }
    let misplaced = !ended && !lost && is_misplaced(draft, service, node, holder);
    if ended || lost || drained || misplaced || is_stranded(node, holder) {
        // It serves on until the other one does, unless the service wants it otherwise.
        let stays = !ended && !lost && holder.is_endpoint() && service.spec.starts_first(true);
        desire(draft, holder, if stays { DesiredState::Retiring } else { DesiredState::Shutdown });
        let history: Vec<&Task> = old.iter().copied().chain([holder]).collect();
        replace(draft, service, holder.slot, &history);
    }
}

/// It was sent to a node that fell silent before it took it: nobody has to wait for what has not begun.
fn is_stranded(node: Option<&Arc<Node>>, task: &Task) -> bool {
    task.status.state < TaskState::Accepted
        && node.is_some_and(|node| node.status.state == NodeState::Suspect)
}

/// The node's kernel lacks a protocol of which the service publishes a port, or something else has a port there that would
/// lead to it, and another node would do. Where none does, it goes on: its other ports may be of use.
fn is_misplaced(draft: &mut Draft<'_>, service: &Service, node: Option<&Arc<Node>>, task: &Task) -> bool {
    let unfit =
        |node: &Arc<Node>| service.ports.iter().any(|port| node.lacks(port.protocol) || node.is_barred(port));
    if !node.is_some_and(unfit) {
        return false;
    }
    let could_move = schedule::could_replace(draft, service, task, false).is_ok();
    if !could_move {
        draft.stuck.push((service.id.clone(), task.slot));
    }
    could_move
}

/// Whether a task that has ended is followed by another one in its slot.
fn returns(service: &Service, task: &Task) -> bool {
    if task.spec_version != service.spec_version {
        return true;
    }
    match task.status.state {
        TaskState::Complete => task.restart.condition == RestartCondition::Any,
        TaskState::Failed => task.restart.condition != RestartCondition::None,
        _ => true,
    }
}

/// The old task has stopped, can't be waited for, or runs on until there is another one.
fn is_out_of_the_way(draft: &Draft<'_>, task: &Task) -> bool {
    task.status.state.is_terminal()
        || task.desired_state == DesiredState::Retiring
        || task.node_id.as_ref().is_none_or(|id| is_lost(draft.state, id))
}

fn replace(draft: &mut Draft<'_>, service: &Service, slot: u32, history: &[&Task]) {
    let avoid = backoff::failures_by_node(service, history);
    draft.request(&service.id, Request { slot, avoid });
    draft.handle(&service.id, slot);
}

/// Keeps the newest dead tasks.
fn forget(draft: &mut Draft<'_>, old: Vec<&Task>) {
    let mut dead: Vec<&Task> = old.into_iter().filter(|task| is_over(draft.state, task)).collect();
    dead.sort_by(|a, b| (b.meta.created_at_ms, &b.id).cmp(&(a.meta.created_at_ms, &a.id)));
    for task in dead.into_iter().skip(HISTORY) {
        draft.push(ActionKind::RemoveTask(task.id.clone()));
    }
}
