//! Decides which tasks there are: `service.rs` compares the number of slots with what is asked for,
//! `update.rs` replaces outdated tasks one after the other, `slot.rs` replaces what died or lost its node
//! and forgets what is over, `backoff.rs` says how long a failing slot waits, and `node.rs` finds what a
//! node's change touches.
//!
//! A slot's life, told by the desired states of its tasks (the holder is the one with READY or RUNNING):
//!
//! ```text
//!   new slot ──▶ holder ──(outdated: SHUTDOWN)──▶ no holder, waits until the old one has stopped ──▶ holder
//!                  │  └──(node down, drained or gone; ended: SHUTDOWN + new task at once)────────────▶ ▲
//!                  ├──(drained, or outdated with start-first: RETIRING)──▶ holder; it stops when that one serves
//!                  └──(scaled down, service removed: all REMOVE)──▶ records go once nothing runs
//! ```

mod backoff;
pub(crate) mod node;
pub(crate) mod service;
pub(crate) mod slot;
mod update;

use rorqual_proto::model::{DesiredState, NodeId, NodeState, ServiceId, Task, TaskStatus};

use crate::State;
use crate::action::ActionKind;
use crate::draft::Draft;

/// Dead tasks that are kept in a slot, for people and for the backoff.
pub const HISTORY: usize = 5;

/// How long a task on a drained node may wait for its replacement to serve.
pub const RETIRE_MS: u64 = 60_000;

/// The node will never report again.
pub(crate) fn is_gone(state: &State, node_id: &NodeId) -> bool {
    state.node(node_id).is_none_or(|node| node.status.state == NodeState::Left)
}

/// The node does not answer, for now or for good.
pub(crate) fn is_lost(state: &State, node_id: &NodeId) -> bool {
    state.node(node_id).is_none_or(|node| matches!(node.status.state, NodeState::Left | NodeState::Down))
}

/// Nothing of the task runs any more, or nobody will ever say so.
fn is_over(state: &State, task: &Task) -> bool {
    task.status.state.is_terminal() || task.node_id.as_ref().is_none_or(|node| is_gone(state, node))
}

/// Takes a slot away: what runs is told to stop, what doesn't is forgotten at once.
fn retire(draft: &mut Draft<'_>, service_id: &ServiceId, slot: u32, service_goes: bool) {
    let state = draft.state;
    for task in state.tasks_in_slot(service_id, slot) {
        let unreachable = task.node_id.as_ref().is_some_and(|node| is_lost(state, node));
        if is_over(state, task) || (service_goes && unreachable) {
            draft.push(ActionKind::RemoveTask(task.id.clone()));
        } else if task.desired_state < DesiredState::Remove {
            desire(draft, task, DesiredState::Remove);
        }
    }
    draft.handle(service_id, slot);
}

fn desire(draft: &mut Draft<'_>, task: &Task, desired_state: DesiredState) {
    if task.desired_state < desired_state {
        draft.push(ActionKind::TaskDesired { task_id: task.id.clone(), desired_state });
    }
}

/// The status that says that nobody will ever report on a task again.
fn orphaned(task: &Task, now_ms: i64) -> TaskStatus {
    TaskStatus {
        state: rorqual_proto::model::TaskState::Orphaned,
        message: "its node has left the cluster".to_owned(),
        at_ms: now_ms,
        pid: 0,
        healthy: false,
        ..task.status.clone()
    }
}
