//! One service: as many slots as asked for, its ports and addresses, its update, its end.

use std::collections::{BTreeMap, BTreeSet};

use rorqual_proto::model::{NodeId, Service, ServiceId, ServiceMode};

use super::{retire, update};
use crate::action::ActionKind;
use crate::allocate;
use crate::draft::Draft;
use crate::schedule::plain_request;
use crate::state::index::{ServiceIndex, is_holder};

/// Looks at one service; adds slots that have to be looked at to `slots`. False: no room was left.
pub(crate) fn look(
    draft: &mut Draft<'_>,
    service_id: &ServiceId,
    slots: &mut BTreeSet<(ServiceId, u32)>,
) -> bool {
    let state = draft.state;
    let index = state.index.services.get(service_id);
    let Some(service) = state.service(service_id) else {
        slots
            .extend(index.into_iter().flat_map(|index| index.slots.keys()).map(|s| (service_id.clone(), *s)));
        return true;
    };
    if service.removing {
        match index {
            None => draft.push(ActionKind::RemoveService(service_id.clone())),
            Some(index) => slots.extend(index.slots.keys().map(|slot| (service_id.clone(), *slot))),
        }
        return true;
    }
    let none = ServiceIndex::default();
    let index = index.unwrap_or(&none);
    let complete = resize(draft, service, index);
    let (updated, held_back) = update::step(draft, service, index, slots);
    allocate(draft, service, held_back);
    complete && updated
}

/// Makes slots, or takes some away.
fn resize(draft: &mut Draft<'_>, service: &Service, index: &ServiceIndex) -> bool {
    let ServiceMode::Replicated { replicas } = service.spec.mode;
    let wanted = usize::try_from(replicas).unwrap_or(usize::MAX);
    let present = index.wanted.len();
    if present < wanted {
        for slot in free_slots(&index.wanted).take(wanted - present) {
            if draft.room() == 0 {
                return false;
            }
            draft.request(&service.id, plain_request(slot));
            draft.handle(&service.id, slot);
        }
    } else if present > wanted {
        for slot in victims(draft, &service.id, index, present - wanted) {
            let tasks = index.slots.get(&slot).map_or(0, |slot| slot.tasks.len());
            if !draft.fits(tasks) {
                return false;
            }
            retire(draft, &service.id, slot, false);
        }
    }
    true
}

/// The lowest numbers, from 1 on, that are not in use.
fn free_slots(wanted: &BTreeSet<u32>) -> impl Iterator<Item = u32> {
    // Without gaps, which is the rule, the walk starts behind the last one.
    let dense =
        wanted.last().is_none_or(|last| usize::try_from(*last).is_ok_and(|last| last == wanted.len()));
    let start = if dense { wanted.last().map_or(1, |last| last + 1) } else { 1 };
    (start..=u32::MAX).filter(|slot| !wanted.contains(slot))
}

/// Slots to give up: those that don't serve first, then from the nodes with the most replicas, each time
/// the highest number.
fn victims(draft: &Draft<'_>, service_id: &ServiceId, index: &ServiceIndex, count: usize) -> Vec<u32> {
    let mut settled = BTreeSet::new();
    let mut idle: Vec<(u8, u32)> = Vec::new();
    let mut seen = BTreeSet::new();
    for holders in index.holders.values() {
        idle.extend(holders.waiting.iter().map(|slot| (0, *slot)));
        idle.extend(holders.moving.iter().map(|slot| (2, *slot)));
        idle.extend(holders.shaky.iter().map(|slot| (3, *slot)));
        settled.extend(holders.settled.iter().map(|(_, slot)| *slot));
    }
    seen.extend(idle.iter().map(|(_, slot)| *slot));
    let between = index.wanted.iter().filter(|slot| !seen.contains(slot) && !settled.contains(slot));
    idle.extend(between.map(|slot| (1, *slot)));
    idle.sort_by_key(|(class, slot)| (*class, std::cmp::Reverse(*slot)));
    let mut victims: Vec<u32> = idle.into_iter().map(|(_, slot)| slot).take(count).collect();
    victims.extend(most_crowded(draft, service_id, &settled, count - victims.len()));
    victims
}

fn most_crowded(
    draft: &Draft<'_>,
    service_id: &ServiceId,
    settled: &BTreeSet<u32>,
    count: usize,
) -> Vec<u32> {
    if count == 0 {
        return Vec::new();
    }
    let mut by_node: BTreeMap<Option<NodeId>, BTreeSet<u32>> = BTreeMap::new();
    for slot in settled {
        let holder = draft.state.tasks_in_slot(service_id, *slot).find(|task| is_holder(task));
        by_node.entry(holder.and_then(|task| task.node_id.clone())).or_default().insert(*slot);
    }
    let mut ranks: BTreeSet<(usize, Option<u32>, Option<NodeId>)> =
        by_node.iter().map(|(node, slots)| (slots.len(), slots.last().copied(), node.clone())).collect();
    let mut victims = Vec::with_capacity(count);
    while victims.len() < count {
        let Some((_, _, node)) = ranks.pop_last() else { break };
        let Some(slots) = by_node.get_mut(&node) else { break };
        let Some(slot) = slots.pop_last() else { continue };
        victims.push(slot);
        if let Some(last) = slots.last() {
            ranks.insert((slots.len(), Some(*last), node));
        }
    }
    victims
}

/// Writes ports, addresses and the problem where they are not what they should be.
fn allocate(draft: &mut Draft<'_>, service: &Service, held_back: Option<String>) {
    let allocation = allocate::service(draft.state, &mut draft.given, service);
    let problems: Vec<String> = allocation.problems.into_iter().chain(held_back).collect();
    let problem = (!problems.is_empty()).then(|| problems.join("; "));
    if service.vips == allocation.vips && service.ports == allocation.ports && service.problem == problem {
        return;
    }
    let put = Service { vips: allocation.vips, ports: allocation.ports, problem, ..service.clone() };
    draft.push_expecting(ActionKind::PutService(Box::new(put)), service.meta.version);
}
