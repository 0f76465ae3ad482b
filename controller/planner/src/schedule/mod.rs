//! Chooses nodes: filters first, each with its refusal in words, then spread.
//!
//! Among the nodes that may take a task the one wins on which the slot failed least, then the one with the
//! fewest replicas of the service, then with the fewest tasks, then with the smallest share of its memory
//! reserved, then by id. The tasks of one service are placed together: nodes are filtered once for all of
//! them.

pub(crate) mod filter;

use std::collections::{BTreeMap, BTreeSet};

use rorqual_proto::model::{
    DesiredState, Meta, NetworkId, Node, NodeId, Service, ServiceId, Task, TaskAddress, TaskState, TaskStatus,
};

use crate::action::ActionKind;
use crate::allocate::{address, network_names};
use crate::draft::{Draft, Request};
use filter::{Needs, Refusal, Refusals};

/// Places what was requested for a service, and its tasks that wait for a node. False: no room was left.
pub(crate) fn service(draft: &mut Draft<'_>, service_id: &ServiceId) -> bool {
    let requests = draft.take_requests(service_id);
    let Some(service) = draft.state.service(service_id).cloned() else { return true };
    if service.removing {
        return true;
    }
    let waiting = waiting_tasks(draft, &service);
    if requests.is_empty() && waiting.is_empty() {
        return true;
    }
    let mut group = Group::new(draft, &service);
    // Requests were counted when they were made: they have room. Those that wait have it as far as it goes.
    for request in requests {
        let id = draft.new_task_id();
        let mut task = new_task(&service, request.slot, id, draft.now_ms);
        group.place(draft, &mut task, &request.avoid);
        draft.push_expecting(ActionKind::PutTask(Box::new(task)), 0);
    }
    for mut task in waiting {
        if draft.room() == 0 {
            return false;
        }
        let version = task.meta.version;
        let before = task.status.message.clone();
        task.status.at_ms = draft.now_ms;
        group.place(draft, &mut task, &BTreeMap::new());
        if task.node_id.is_some() {
            draft.push_expecting(ActionKind::PutTask(Box::new(task)), version);
        } else if task.status.message != before {
            draft.push(ActionKind::TaskStatus { task_id: task.id, status: task.status });
        }
    }
    true
}

/// Whether a node could take a replacement of `old`, once `old` has stopped or beside it; why not otherwise.
pub(crate) fn could_replace(
    draft: &mut Draft<'_>,
    service: &Service,
    old: &Task,
    stopped: bool,
) -> Result<(), String> {
    let state = draft.state;
    let needs = Needs::new(state, service);
    if let Some(name) = &needs.missing_network {
        return Err(missing_network(name));
    }
    let mut refusals = Refusals::default();
    let own = old.node_id.as_ref().and_then(|id| state.node(id));
    // Its own node first: that is where there will be room most surely, and an address.
    for node in own.into_iter().chain(state.nodes()) {
        let leaving = (stopped && old.node_id.as_ref() == Some(&node.id)).then_some(old);
        let refusal = filter::refuse(draft, &needs, node, leaving).or_else(|| {
            let fits = leaving.is_some() || address::is_there_one(draft, &needs.networks, &node.id);
            (!fits).then(|| no_address(draft, &needs.networks))
        });
        match refusal {
            None => return Ok(()),
            Some(refusal) => refusals.add(&node.id, refusal),
        }
    }
    Err(refusals.to_string())
}

/// Tasks of the present spec that have no node yet.
fn waiting_tasks(draft: &Draft<'_>, service: &Service) -> Vec<Task> {
    let index = draft.state.index.services.get(&service.id);
    let slots = index.and_then(|index| index.holders.get(&service.spec_version));
    let slots = slots.into_iter().flat_map(|holders| &holders.waiting);
    slots
        .filter(|slot| !draft.is_handled(&service.id, **slot))
        .flat_map(|slot| draft.state.tasks_in_slot(&service.id, *slot))
        .filter(|task| {
            task.node_id.is_none()
                && task.desired_state <= DesiredState::Running
                && !task.status.state.is_terminal()
        })
        .map(|task| Task::clone(task))
        .collect()
}

fn new_task(service: &Service, slot: u32, id: rorqual_proto::model::TaskId, now_ms: i64) -> Task {
    Task {
        id,
        meta: Meta::default(),
        service_id: service.id.clone(),
        service_name: service.spec.name.clone(),
        slot,
        spec_version: service.spec_version,
        container: service.spec.container.clone(),
        restart: service.spec.restart,
        placement: service.spec.placement.clone(),
        networks: network_names(&service.spec).into_iter().map(str::to_owned).collect(),
        node_id: None,
        desired_state: DesiredState::Running,
        status: TaskStatus::new(now_ms),
        addresses: Vec::new(),
    }
}

/// Replicas of the service, tasks, reserved memory in thousandths, id: the smallest wins.
type Rank = (u32, u32, u64, NodeId);

/// The nodes that may take tasks of one service, best first.
struct Group {
    needs: Needs,
    ranks: BTreeSet<Rank>,
    refusals: Refusals,
}

impl Group {
    fn new(draft: &Draft<'_>, service: &Service) -> Self {
        let needs = Needs::new(draft.state, service);
        let mut group = Self { needs, ranks: BTreeSet::new(), refusals: Refusals::default() };
        if group.needs.missing_network.is_some() {
            return group;
        }
        for node in draft.state.nodes() {
            match filter::refuse(draft, &group.needs, node, None) {
                None => {
                    group.ranks.insert(rank(draft, &service.id, node));
                }
                Some(refusal) => group.refusals.add(&node.id, refusal),
            }
        }
        group
    }

    /// Gives a task its node and addresses and makes it ASSIGNED; or leaves it PENDING, with the reason.
    fn place(&mut self, draft: &mut Draft<'_>, task: &mut Task, avoid: &BTreeMap<NodeId, u32>) {
        match self.choose(draft, task, avoid) {
            Some((node_id, addresses)) => {
                task.node_id = Some(node_id);
                task.addresses = addresses;
                task.status.state = TaskState::Assigned;
                task.status.message.clear();
                draft.place(task);
                self.rerank(draft, task);
            }
            None => {
                task.status.state = TaskState::Pending;
                task.status.message = match &self.needs.missing_network {
                    Some(name) => missing_network(name),
                    None => self.refusals.to_string(),
                };
            }
        }
    }

    fn choose(
        &mut self,
        draft: &mut Draft<'_>,
        task: &Task,
        avoid: &BTreeMap<NodeId, u32>,
    ) -> Option<(NodeId, Vec<TaskAddress>)> {
        loop {
            let failures = |rank: &Rank| avoid.get(&rank.3).copied().unwrap_or_default();
            let best = if avoid.is_empty() {
                self.ranks.first()
            } else {
                self.ranks.iter().min_by_key(|rank| (failures(rank), (*rank).clone()))
            };
            let best = best?.clone();
            let node_id = best.3.clone();
            let node = draft.state.node(&node_id)?;
            // What this plan placed before may have filled the node.
            let refusal = filter::refuse(draft, &self.needs, node, None);
            let networks: &[NetworkId] = &self.needs.networks;
            let given = match refusal {
                Some(refusal) => Err(refusal),
                None => address::give(draft, networks, &node_id).map_err(|id| no_address(draft, &[id])),
            };
            match given {
                Ok(addresses) => return Some((node_id, addresses)),
                Err(refusal) => {
                    debug_assert!(task.node_id.is_none());
                    self.ranks.remove(&best);
                    self.refusals.add(&node_id, refusal);
                }
            }
        }
    }

    fn rerank(&mut self, draft: &Draft<'_>, task: &Task) {
        let Some(node) = task.node_id.as_ref().and_then(|id| draft.state.node(id)) else { return };
        let after = rank(draft, &task.service_id, node);
        let mut before = after.clone();
        before.0 = before.0.saturating_sub(1);
        before.1 = before.1.saturating_sub(1);
        let mut usage = draft.usage(&node.id);
        usage.take(task);
        before.2 = reserved_share(usage.memory_bytes, node);
        self.ranks.remove(&before);
        self.ranks.insert(after);
    }
}

fn no_address(draft: &Draft<'_>, networks: &[NetworkId]) -> Refusal {
    let names = networks.iter().filter_map(|id| draft.state.network(id));
    let names: Vec<&str> = names.map(|network| network.spec.name.as_str()).collect();
    Refusal::Address(names.join("`, `"))
}

fn missing_network(name: &str) -> String {
    format!("network `{name}` does not exist: create it, or name another network")
}

fn rank(draft: &Draft<'_>, service_id: &ServiceId, node: &Node) -> Rank {
    let usage = draft.usage(&node.id);
    let share = reserved_share(usage.memory_bytes, node);
    (draft.replicas(service_id, &node.id), usage.tasks, share, node.id.clone())
}

fn reserved_share(memory_bytes: u64, node: &Node) -> u64 {
    memory_bytes.saturating_mul(1000) / node.description.memory_bytes.max(1)
}

/// A request for a slot without any failure to avoid.
pub(crate) fn plain_request(slot: u32) -> Request {
    Request { slot, avoid: BTreeMap::new() }
}
