//! The planner: what has changed since it looked last, and the plan that follows.
//!
//! It keeps nothing that matters: dirty sets are filled from [`Change`]s (or, by a new leader, with
//! everything), and timers and what is stuck are found again by looking. What it decides comes from the [`State`], the time
//! and the seed alone.

use std::collections::BTreeSet;

use rorqual_proto::model::{NodeId, ServiceId, Task, TaskState};

use crate::State;
use crate::action::{Action, Change};
use crate::draft::{Draft, Finished};
use crate::orchestrate;
use crate::schedule;

/// Something to look at, now or at a certain time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Look {
    Service(ServiceId),
    Slot(ServiceId, u32),
}

/// What has to be looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Dirty {
    services: BTreeSet<ServiceId>,
    slots: BTreeSet<(ServiceId, u32)>,
    nodes: BTreeSet<NodeId>,
    /// Services whose waiting tasks are tried again.
    waiting: BTreeSet<ServiceId>,
    /// Something became free, or a node changed: whoever waits is tried again.
    capacity: bool,
}

/// A bounded batch of writes, to be committed whole.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// At most [`crate::MAX_ACTIONS`]; empty where there is nothing to write.
    pub actions: Vec<Action>,
    /// When to call [`Planner::plan`] again although nothing has changed, milliseconds since the epoch.
    pub wake_at_ms: Option<i64>,
    /// Everything has been looked at. Otherwise plan again as soon as these actions are applied.
    pub idle: bool,
    looked: Dirty,
}

/// See the module.
///
/// The leader's loop is: `observe` each applied change (or `observe_all` at the start of a term and after
/// changes were missed), `plan`, commit the actions, wait until they are applied and observed, and `plan`
/// again unless the plan was empty and idle. When the commit is refused: [`Planner::retry`]. One plan is
/// under way at a time.
#[derive(Debug, Clone, Default)]
pub struct Planner {
    dirty: Dirty,
    timers: BTreeSet<(i64, Look)>,
    /// Slots whose task would be better off on another node: tried again when whoever waits is.
    stuck: BTreeSet<(ServiceId, u32)>,
}

impl Planner {
    /// A planner that has nothing to look at.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing is waiting to be looked at (timers aside).
    pub fn is_idle(&self) -> bool {
        self.dirty == Dirty::default()
    }

    /// Takes note of one applied change.
    pub fn observe(&mut self, change: &Change) {
        match change {
            Change::Cluster | Change::Network(_) => self.dirty.capacity = true,
            Change::Node(id) => {
                self.dirty.nodes.insert(id.clone());
                self.dirty.capacity = true;
            }
            Change::Service { id, .. } => {
                self.dirty.services.insert(id.clone());
                // A port or an address may have become free for another service.
                self.dirty.capacity = true;
            }
            Change::Task { before, after, .. } => self.observe_task(before.as_deref(), after.as_deref()),
            Change::Guest { before, after, .. } => {
                let Some(guest) = before.as_ref().filter(|_| after.is_none()) else { return };
                // A block may have become free, or its node may be gone and have others.
                self.dirty.capacity = true;
                self.dirty.nodes.insert(guest.node_id.clone());
            }
            Change::Edge | Change::Nothing => {}
        }
    }

    fn observe_task(&mut self, before: Option<&Task>, after: Option<&Task>) {
        if let (Some(before), Some(after)) = (before, after)
            && aspects(before) == aspects(after)
        {
            return;
        }
        let Some(task) = after.or(before) else { return };
        self.dirty.slots.insert((task.service_id.clone(), task.slot));
        self.dirty.services.insert(task.service_id.clone());
        let lives = |task: &Task| task.node_id.is_some() && !task.status.state.is_terminal();
        let lived = before.is_some_and(lives);
        if lived && !after.is_some_and(lives) {
            self.dirty.capacity = true;
        }
        let forgotten_alive = lived && after.is_none();
        if let Some(node_id) = &task.node_id
            && (forgotten_alive || task.status.state == TaskState::Orphaned)
        {
            // Its node may be gone: with the last task the node's blocks can be taken back.
            self.dirty.nodes.insert(node_id.clone());
        }
    }

    /// Everything is to be looked at: at the start of a term, and when changes were missed.
    pub fn observe_all(&mut self, state: &State) {
        self.dirty.services.extend(state.services().map(|service| service.id.clone()));
        for (id, index) in &state.index.services {
            self.dirty.slots.extend(index.slots.keys().map(|slot| (id.clone(), *slot)));
        }
        self.dirty.nodes.extend(state.nodes().map(|node| node.id.clone()));
        self.dirty.nodes.extend(state.index.nodes.keys().cloned());
        self.dirty.nodes.extend(state.index.leases.keys().map(|(node, _)| node.clone()));
        self.dirty.capacity = true;
    }

    /// The plan could not be committed: what it looked at is to be looked at again.
    pub fn retry(&mut self, plan: &Plan) {
        self.dirty.services.extend(plan.looked.services.iter().cloned());
        self.dirty.slots.extend(plan.looked.slots.iter().cloned());
        self.dirty.nodes.extend(plan.looked.nodes.iter().cloned());
        self.dirty.waiting.extend(plan.looked.waiting.iter().cloned());
        self.dirty.capacity |= plan.looked.capacity;
    }

    /// Decides what follows from what was observed. `seed` makes the ids of new tasks: it has to be a
    /// fresh random number each time.
    pub fn plan(&mut self, state: &State, now_ms: i64, seed: u64) -> Plan {
        self.fire(now_ms);
        let mut looked = Dirty { capacity: self.dirty.capacity, ..Dirty::default() };
        if std::mem::take(&mut self.dirty.capacity) {
            self.dirty.waiting.extend(state.index.waiting.iter().cloned());
            self.dirty.services.extend(state.index.problems.iter().cloned());
            self.dirty.slots.append(&mut self.stuck);
        }
        let mut draft = Draft::new(state, now_ms, seed);
        self.look_at_nodes(&mut draft, &mut looked);
        self.look_at_services(&mut draft, &mut looked);
        self.look_at_slots(&mut draft, &mut looked);
        self.schedule(&mut draft, &mut looked);
        let Finished { actions, timers, stuck } = draft.finish();
        self.timers.extend(timers);
        self.stuck.extend(stuck);
        let wake_at_ms = self.timers.first().map(|(at_ms, _)| *at_ms);
        Plan { actions, wake_at_ms, idle: self.is_idle(), looked }
    }

    fn fire(&mut self, now_ms: i64) {
        while let Some((at_ms, _)) = self.timers.first()
            && *at_ms <= now_ms
        {
            match self.timers.pop_first() {
                Some((_, Look::Service(id))) => self.dirty.services.insert(id),
                Some((_, Look::Slot(id, slot))) => self.dirty.slots.insert((id, slot)),
                None => break,
            };
        }
    }

    fn look_at_nodes(&mut self, draft: &mut Draft<'_>, looked: &mut Dirty) {
        while let Some(id) = self.dirty.nodes.pop_first() {
            orchestrate::node::look(draft, &id, &mut self.dirty.slots);
            looked.nodes.insert(id);
        }
    }

    fn look_at_services(&mut self, draft: &mut Draft<'_>, looked: &mut Dirty) {
        let mut unfinished = BTreeSet::new();
        while let Some(id) = self.dirty.services.pop_first() {
            // Room for what a service writes of itself.
            if draft.room() < 2 {
                unfinished.insert(id);
                break;
            }
            if !orchestrate::service::look(draft, &id, &mut self.dirty.slots) {
                unfinished.insert(id.clone());
            }
            looked.services.insert(id);
        }
        self.dirty.services.append(&mut unfinished);
    }

    fn look_at_slots(&mut self, draft: &mut Draft<'_>, looked: &mut Dirty) {
        while let Some((id, slot)) = self.dirty.slots.pop_first() {
            // A slot writes about each task that it has at most twice, and makes one.
            let tasks = draft.state.tasks_in_slot(&id, slot).count();
            if !draft.fits(2 * tasks + 1) {
                self.dirty.slots.insert((id, slot));
                break;
            }
            if !draft.is_handled(&id, slot) {
                orchestrate::slot::look(draft, &id, slot);
            }
            looked.slots.insert((id, slot));
        }
    }

    fn schedule(&mut self, draft: &mut Draft<'_>, looked: &mut Dirty) {
        let mut services: BTreeSet<ServiceId> = draft.requests.keys().cloned().collect();
        services.append(&mut self.dirty.waiting);
        for id in services {
            if !schedule::service(draft, &id) {
                self.dirty.waiting.insert(id.clone());
            }
            looked.waiting.insert(id);
        }
    }
}

/// What of a task the planner decides by. A change of anything else touches nothing.
fn aspects(task: &Task) -> impl PartialEq + use<> {
    (task.desired_state, task.status.state, task.status.healthy, task.node_id.clone())
}
