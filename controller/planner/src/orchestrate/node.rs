//! What a change of a node touches: the slots of its tasks, and its blocks once it is gone.

use std::collections::BTreeSet;

use rorqual_proto::model::{NodeId, ServiceId};

use super::is_gone;
use crate::allocate::address;
use crate::draft::Draft;

/// Adds the slots that have to be looked at to `slots`; takes the blocks of a node that is gone back.
pub(crate) fn look(draft: &mut Draft<'_>, node_id: &NodeId, slots: &mut BTreeSet<(ServiceId, u32)>) {
    let state = draft.state;
    let mut runs = false;
    for task in state.tasks_on_node(node_id) {
        runs |= !task.status.state.is_terminal();
        slots.insert((task.service_id.clone(), task.slot));
    }
    if !runs && is_gone(state, node_id) {
        address::release_blocks(draft, node_id);
    }
}
