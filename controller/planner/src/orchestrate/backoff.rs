//! How long a slot waits before its next task, from the slot's dead tasks alone, so that a new leader goes
//! on where the old one stopped.
//!
//! The agent restarts in place with the policy's own waits; this is what follows when a task has ended for
//! good. The wait starts at the policy's `delay_ms` and grows fourfold with each failure in a row, up to
//! `max_delay_ms`: with the defaults 0.1, 0.4, 1.6, 6.4, 25.6 and then 60 seconds. Only tasks of the
//! present spec count, and a task that lived for longer than the longest wait ends the row. On top comes
//! up to a quarter, drawn from the dead task's id, so that replicas that failed together do not return
//! together.

use std::collections::BTreeMap;

use rorqual_proto::model::{NodeId, Service, Task, TaskState};

use crate::draft::mix;

/// The smallest first wait, so that a policy without one does not spin.
const MIN_DELAY_MS: u64 = 50;
const GROWTH: u64 = 4;

/// When the slot may get its next task after `dead` (the newest), given the older dead tasks of the slot.
pub(super) fn due_ms(service: &Service, dead: &Task, older: &[&Task]) -> i64 {
    let policy = &service.spec.restart;
    let longest_ms = policy.max_delay_ms.max(MIN_DELAY_MS);
    let mut row: u32 = 0;
    let mut tasks: Vec<&Task> = older.to_vec();
    tasks.sort_by(|a, b| (b.meta.created_at_ms, &b.id).cmp(&(a.meta.created_at_ms, &a.id)));
    for task in std::iter::once(dead).chain(tasks) {
        if !counts(service, task) || lived_ms(task) > longest_ms {
            break;
        }
        row += 1;
    }
    let first_ms = policy.delay_ms.max(MIN_DELAY_MS);
    let wait_ms = first_ms.saturating_mul(GROWTH.saturating_pow(row.saturating_sub(1))).min(longest_ms);
    let jitter_ms = mix(hash(dead.id.as_str())) % (wait_ms / 4 + 1);
    // The time of the leader, not of the node: the last write to the task was its end.
    dead.meta.updated_at_ms.saturating_add_unsigned(wait_ms + jitter_ms)
}

/// How often tasks of the present spec failed on each node: the scheduler looks elsewhere first.
pub(super) fn failures_by_node(service: &Service, tasks: &[&Task]) -> BTreeMap<NodeId, u32> {
    let mut failures = BTreeMap::new();
    for task in tasks.iter().filter(|task| counts(service, task)) {
        if let Some(node_id) = &task.node_id {
            *failures.entry(node_id.clone()).or_default() += 1;
        }
    }
    failures
}

fn counts(service: &Service, task: &Task) -> bool {
    let ended = matches!(task.status.state, TaskState::Failed | TaskState::Rejected | TaskState::Complete);
    ended && task.spec_version == service.spec_version
}

fn lived_ms(task: &Task) -> u64 {
    u64::try_from(task.status.at_ms.saturating_sub(task.meta.created_at_ms)).unwrap_or_default()
}

/// FNV-1a, 64 bits.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
