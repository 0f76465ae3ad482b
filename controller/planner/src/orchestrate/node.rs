//! What a change of a node touches: the slots of its tasks, and once it is gone its guests and, last, its blocks.

use std::collections::BTreeSet;

use rorqual_proto::model::{NodeId, ServiceId};

use super::is_gone;
use crate::action::ActionKind;
use crate::allocate::address;
use crate::draft::Draft;

/// Adds the slots that have to be looked at to `slots`; takes back what a node that is gone was given.
pub(crate) fn look(draft: &mut Draft<'_>, node_id: &NodeId, slots: &mut BTreeSet<(ServiceId, u32)>) {
    let state = draft.state;
    let mut runs = false;
    for task in state.tasks_on_node(node_id) {
        runs |= !task.status.state.is_terminal();
        slots.insert((task.service_id.clone(), task.slot));
    }
    if !is_gone(state, node_id) {
        return;
    }
    for guest in state.guests_on_node(node_id) {
        // What does not fit is looked at again when those before it are gone.
        if !draft.fits(1) {
            return;
        }
        draft.push(ActionKind::RemoveGuest(guest.id.clone()));
        runs = true;
    }
    if !runs {
        address::release_blocks(draft, node_id);
    }
}
