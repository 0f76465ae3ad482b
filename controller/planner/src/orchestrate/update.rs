//! Replaces the tasks of an older spec, one slot at a time: stop first, or start first where that is asked for or
//! needed ([`ServiceSpec::starts_first`](rorqual_proto::model::ServiceSpec::starts_first)).
//!
//! - Tasks that don't run yet (waiting for a node, being prepared, ended) have nothing to lose: they are
//!   replaced at once.
//! - Of those that run, one is stopped at a time; its slot gets the new task when the old one has stopped, or the old
//!   one stops when the new one serves. Where the user did not ask for the latter it is done only if there is room.
//!   The next follows when every slot of the new spec serves, the first of them for [`TRIAL_MS`] and the
//!   newest for [`SETTLE_MS`]. So a spec that does not come up, or not for long, costs one replica, and
//!   the others keep serving.
//! - Nothing is stopped while no node could take its replacement.
//! - Each failure of a task of the new spec (rejected, failed, or restarted in place again and again)
//!   makes both times four times longer, up to [`MAX_SETTLE_MS`]; from [`FAILURES`] on the
//!   service's `problem` says that the update is held back. A new spec starts afresh.

use std::collections::BTreeSet;

use rorqual_proto::model::{DesiredState, Service, ServiceId, ServiceMode, Task, UpdateOrder};

use super::desire;
use crate::action::ActionKind;
use crate::draft::Draft;
use crate::planner::Look;
use crate::schedule::{could_replace, plain_request};
use crate::state::index::{Holders, ServiceIndex, is_holder};

/// Slots that may be without a serving task because of an update.
pub(super) const PARALLELISM: usize = 1;
/// How long the first task of the new spec serves before a second one is replaced.
pub(super) const TRIAL_MS: u64 = 3_000;
/// How long each new task serves before the next one is replaced.
pub(super) const SETTLE_MS: u64 = 500;
/// The longest such time, after failures.
pub(super) const MAX_SETTLE_MS: u64 = 60_000;
/// Failed tasks of the new spec from which on the user is told that the update is held back.
pub(super) const FAILURES: u32 = 3;

/// Takes the next step of an update. False: no room was left. The text says why the update does not go on.
pub(super) fn step(
    draft: &mut Draft<'_>,
    service: &Service,
    index: &ServiceIndex,
    slots: &mut BTreeSet<(ServiceId, u32)>,
) -> (bool, Option<String>) {
    let outdated: usize = index.holders.range(..service.spec_version).map(|(_, holders)| holders.len()).sum();
    let none = Holders::default();
    let current = index.holders.get(&service.spec_version).unwrap_or(&none);
    // Slots on their way: without a holder, or with one that is meant to come up.
    let accounted = outdated + current.settled.len() + current.waiting.len();
    let on_the_way = index.wanted.len().saturating_sub(accounted);
    if outdated == 0 {
        return (true, None);
    }
    if !replace_idle(draft, service, index, slots) {
        return (false, None);
    }
    let failures = index.failures.get(&service.spec_version).copied().unwrap_or_default();
    let held_back = (failures >= FAILURES).then(|| {
        format!(
            "the update is held back: tasks of the new spec fail again and again (see the tasks of `{}`), the \
             replicas that run keep the old spec; update again with a spec that works",
            service.spec.name
        )
    });
    if on_the_way >= PARALLELISM {
        return (true, held_back);
    }
    if let (Some((first_ms, _)), Some((newest_ms, _))) = (current.settled.first(), current.settled.last()) {
        let factor = 4_u64.saturating_pow(failures);
        let after = |since_ms: &i64, wait_ms: u64| {
            since_ms.saturating_add_unsigned(wait_ms.saturating_mul(factor).min(MAX_SETTLE_MS))
        };
        let due_ms = after(first_ms, TRIAL_MS).max(after(newest_ms, SETTLE_MS));
        if due_ms > draft.now_ms {
            draft.timers.push((due_ms, Look::Service(service.id.clone())));
            return (true, held_back);
        }
    }
    let mut problem = held_back;
    for old in candidates(draft, service, index).into_iter().take(PARALLELISM - on_the_way) {
        let alone = matches!(service.spec.mode, ServiceMode::Replicated { replicas: 1 });
        let start_first = service.spec.starts_first(alone) && old.is_endpoint();
        let room_for_both = start_first.then(|| could_replace(draft, service, &old, false));
        if matches!(room_for_both, Some(Ok(()))) {
            if draft.room() < 2 {
                return (false, problem);
            }
            desire(draft, &old, DesiredState::Retiring);
            draft.request(&service.id, plain_request(old.slot));
            draft.handle(&service.id, old.slot);
            continue;
        }
        let asked = service.spec.update_order == Some(UpdateOrder::StartFirst);
        let possible = match room_for_both.filter(|_| asked) {
            Some(refused) => refused,
            None => could_replace(draft, service, &old, true),
        };
        if let Err(reason) = possible {
            let waits = format!("the update waits, for nothing is stopped that can't be replaced: {reason}");
            problem = Some(problem.map_or_else(|| waits.clone(), |held| format!("{held}; {waits}")));
            break;
        }
        desire(draft, &old, DesiredState::Shutdown);
        draft.handle(&service.id, old.slot);
    }
    (true, problem)
}

/// Replaces outdated tasks that don't run; their slots lose nothing.
fn replace_idle(
    draft: &mut Draft<'_>,
    service: &Service,
    index: &ServiceIndex,
    slots: &mut BTreeSet<(ServiceId, u32)>,
) -> bool {
    for holders in index.holders.range(..service.spec_version).map(|(_, holders)| holders) {
        for slot in holders.waiting.iter().chain(&holders.moving) {
            if draft.is_handled(&service.id, *slot) {
                continue;
            }
            if draft.room() < 2 {
                return false;
            }
            let Some(task) = holder_of(draft, service, *slot) else { continue };
            if task.status.state.is_terminal() {
                // The slot's own rules replace what has ended.
                slots.insert((service.id.clone(), *slot));
                continue;
            }
            if task.node_id.is_none() {
                draft.push(ActionKind::RemoveTask(task.id.clone()));
                draft.request(&service.id, plain_request(*slot));
            } else {
                desire(draft, &task, DesiredState::Shutdown);
            }
            draft.handle(&service.id, *slot);
        }
    }
    true
}

/// Outdated tasks that run, those without traffic first, then the ones that have run for longest.
fn candidates(draft: &Draft<'_>, service: &Service, index: &ServiceIndex) -> Vec<Task> {
    let outdated = || index.holders.range(..service.spec_version).map(|(_, holders)| holders);
    let shaky = outdated().flat_map(|holders| holders.shaky.iter().copied());
    let settled = outdated().flat_map(|holders| holders.settled.iter().map(|(_, slot)| *slot));
    shaky
        .chain(settled)
        .filter(|slot| !draft.is_handled(&service.id, *slot))
        .filter_map(|slot| holder_of(draft, service, slot))
        .take(PARALLELISM)
        .collect()
}

fn holder_of(draft: &Draft<'_>, service: &Service, slot: u32) -> Option<Task> {
    draft.state.tasks_in_slot(&service.id, slot).find(|task| is_holder(task)).map(|task| Task::clone(task))
}
