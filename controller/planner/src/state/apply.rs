//! Writes. Nothing here fails: what makes no sense any more (a late status, an object that is gone)
//! changes nothing.

use std::sync::Arc;

use rorqual_proto::model::{
    DesiredState, Guest, Meta, Network, NetworkId, Node, NodeId, Record, Service, ServiceId, Task, TaskId,
    TaskStatus,
};

use super::State;
use crate::action::{Action, ActionKind, Change};
use crate::assign;

impl State {
    /// Writes one action. `index` is its place in the log and becomes the object's version; `at_ms` is the
    /// leader's time, milliseconds since the Unix epoch.
    ///
    /// A status (of a task or a node) moves `meta.updated_at_ms` and leaves `meta.version` alone, so that
    /// observing an object never gets in the way of writing its desired side.
    pub fn apply(&mut self, action: &Action, index: u64, at_ms: i64) -> Change {
        let stamp = Stamp { index, at_ms };
        self.applied = index;
        match &action.kind {
            ActionKind::PutCluster(cluster) => {
                let mut cluster = (**cluster).clone();
                cluster.meta = stamp.meta(self.cluster.as_ref().map(|old| &old.meta));
                self.cluster = Some(Arc::new(cluster));
                Change::Cluster
            }
            ActionKind::PutNode(node) => self.put_node(node, stamp),
            ActionKind::PutService(service) => {
                let mut service = (**service).clone();
                service.meta = stamp.meta(self.services.get(&service.id).map(|old| &old.meta));
                let id = service.id.clone();
                let old = self.services.get(&id);
                let seen = old.is_none_or(|old| !assign::looks_same(old, &service));
                let auths = old.is_some_and(|old| old.sealed_auths != service.sealed_auths);
                self.set_service(Arc::new(service));
                Change::Service { id, seen, auths }
            }
            ActionKind::PutTask(task) => self.put_task(task, stamp),
            ActionKind::PutNetwork(network) => {
                let mut network = (**network).clone();
                network.meta = stamp.meta(self.networks.get(&network.id).map(|old| &old.meta));
                let id = network.id.clone();
                self.set_network(Arc::new(network));
                Change::Network(id)
            }
            ActionKind::RemoveNode(id) => self.remove_node(id),
            ActionKind::RemoveService(id) => self.remove_service(id),
            ActionKind::RemoveTask(id) => self.remove_task(id),
            ActionKind::RemoveNetwork(id) => self.remove_network(id),
            ActionKind::PutGuest(guest) => {
                let mut guest = (**guest).clone();
                guest.meta = stamp.meta(self.guests.get(&guest.id).map(|old| &old.meta));
                let after = Arc::new(guest);
                let before = self.set_guest(Arc::clone(&after));
                Change::Guest { id: after.id.clone(), before, after: Some(after) }
            }
            ActionKind::RemoveGuest(id) => {
                let Some(guest) = self.guests.remove(id) else { return Change::Nothing };
                self.index.unlink_guest(&guest);
                Change::Guest { id: id.clone(), before: Some(guest), after: None }
            }
            ActionKind::PutRecord(record) => {
                self.set_record(Arc::new(Record { version: index, ..(**record).clone() }));
                record_change(&record.key)
            }
            ActionKind::RemoveRecord(key) => {
                if let Some(old) = self.records.remove(key) {
                    self.records_bytes -= old.size_bytes();
                }
                record_change(key)
            }
            ActionKind::ExpectRecord(_) => Change::Nothing,
            ActionKind::TaskStatus { task_id, status } => self.task_status(task_id, status, stamp),
            ActionKind::TaskDesired { task_id, desired_state } => {
                self.task_desired(task_id, *desired_state, stamp)
            }
            ActionKind::NodeStatus { node_id, status, description, address } => {
                let Some(old) = self.nodes.get(node_id) else { return Change::Nothing };
                let mut node = Node::clone(old);
                if let Some(status) = status {
                    node.status = status.clone();
                }
                if let Some(description) = description {
                    node.description = description.as_ref().clone();
                }
                if let Some(address) = address {
                    node.address = address.clone();
                }
                if node == **old {
                    return Change::Nothing;
                }
                node.meta.updated_at_ms = at_ms;
                self.set_node(Arc::new(node));
                Change::Node(node_id.clone())
            }
        }
    }

    fn put_node(&mut self, given: &Node, stamp: Stamp) -> Change {
        let mut node = match self.nodes.get(&given.id) {
            Some(old) => Node { spec: given.spec.clone(), raft_id: given.raft_id, ..Node::clone(old) },
            None => given.clone(),
        };
        node.meta = stamp.meta(self.nodes.get(&given.id).map(|old| &old.meta));
        let id = node.id.clone();
        self.set_node(Arc::new(node));
        Change::Node(id)
    }

    fn put_task(&mut self, given: &Task, stamp: Stamp) -> Change {
        let mut task = given.clone();
        let old = self.tasks.get(&task.id);
        task.meta = stamp.meta(old.map(|old| &old.meta));
        if let Some(old) = old {
            task.service_id = old.service_id.clone();
            task.slot = old.slot;
            task.desired_state = task.desired_state.max(old.desired_state);
            if old.node_id.is_some() {
                task.node_id = old.node_id.clone();
                task.addresses = old.addresses.clone();
            }
            if !supersedes(&task.status, &old.status) {
                task.status = old.status.clone();
            }
        }
        self.replace_task(task)
    }

    fn task_status(&mut self, id: &TaskId, status: &TaskStatus, stamp: Stamp) -> Change {
        let Some(old) = self.tasks.get(id) else { return Change::Nothing };
        if !supersedes(status, &old.status) {
            return Change::Nothing;
        }
        let mut task = Task::clone(old);
        task.status = status.clone();
        task.meta.updated_at_ms = stamp.at_ms;
        self.replace_task(task)
    }

    fn task_desired(&mut self, id: &TaskId, desired_state: DesiredState, stamp: Stamp) -> Change {
        let Some(old) = self.tasks.get(id) else { return Change::Nothing };
        if desired_state <= old.desired_state {
            return Change::Nothing;
        }
        let mut task = Task::clone(old);
        task.desired_state = desired_state;
        task.meta = stamp.meta(Some(&old.meta));
        self.replace_task(task)
    }

    fn replace_task(&mut self, task: Task) -> Change {
        let after = Arc::new(task);
        let before = self.set_task(Arc::clone(&after));
        Change::Task {
            id: after.id.clone(),
            service_id: after.service_id.clone(),
            node_id: after.node_id.clone(),
            before,
            after: Some(after),
        }
    }

    fn remove_node(&mut self, id: &NodeId) -> Change {
        let Some(node) = self.nodes.remove(id) else { return Change::Nothing };
        self.index.unlink_node(&node);
        Change::Node(id.clone())
    }

    fn remove_service(&mut self, id: &ServiceId) -> Change {
        let Some(service) = self.services.remove(id) else { return Change::Nothing };
        self.index.unlink_service(&service);
        Change::Service { id: id.clone(), seen: true, auths: false }
    }

    fn remove_task(&mut self, id: &TaskId) -> Change {
        let Some(task) = self.tasks.remove(id) else { return Change::Nothing };
        self.index.unlink_task(&task, &self.tasks);
        Change::Task {
            id: id.clone(),
            service_id: task.service_id.clone(),
            node_id: task.node_id.clone(),
            before: Some(task),
            after: None,
        }
    }

    fn remove_network(&mut self, id: &NetworkId) -> Change {
        let Some(network) = self.networks.remove(id) else { return Change::Nothing };
        self.index.unlink_network(&network);
        Change::Network(id.clone())
    }

    pub(super) fn set_node(&mut self, node: Arc<Node>) {
        if let Some(old) = self.nodes.insert(node.id.clone(), Arc::clone(&node)) {
            self.index.unlink_node(&old);
        }
        self.index.link_node(&node);
    }

    pub(super) fn set_service(&mut self, service: Arc<Service>) {
        let old = self.services.insert(service.id.clone(), Arc::clone(&service));
        if let Some(old) = &old {
            self.index.unlink_service(old);
        }
        self.index.link_service(&service);
        let given = |vip: &Ipv4| old.iter().any(|old| old.vips.iter().any(|had| had.address == *vip));
        let fresh = service.vips.iter().map(|vip| vip.address).rfind(|vip| !given(vip));
        self.index.last_vip = fresh.or(self.index.last_vip);
    }

    pub(super) fn set_network(&mut self, network: Arc<Network>) {
        if let Some(old) = self.networks.insert(network.id.clone(), Arc::clone(&network)) {
            self.index.unlink_network(&old);
        }
        self.index.link_network(&network);
    }

    pub(super) fn set_guest(&mut self, guest: Arc<Guest>) -> Option<Arc<Guest>> {
        let old = self.guests.insert(guest.id.clone(), Arc::clone(&guest));
        if let Some(old) = &old {
            self.index.unlink_guest(old);
        }
        self.index.link_guest(&guest, old.as_deref());
        old
    }

    /// Nothing is planned by records, so nobody is told.
    pub(super) fn set_record(&mut self, record: Arc<Record>) {
        self.records_bytes += record.size_bytes();
        if let Some(old) = self.records.insert(record.key.clone(), record) {
            self.records_bytes -= old.size_bytes();
        }
    }

    pub(super) fn set_task(&mut self, task: Arc<Task>) -> Option<Arc<Task>> {
        let old = self.tasks.remove(&task.id);
        if let Some(old) = &old {
            self.index.unlink_task(old, &self.tasks);
        }
        let is_new = old.as_ref().is_none_or(|old| old.node_id.is_none());
        self.tasks.insert(task.id.clone(), Arc::clone(&task));
        self.index.link_task(&task, is_new, &self.tasks);
        old
    }
}

type Ipv4 = std::net::Ipv4Addr;

/// Nodes are told of the edge's records, and of no others.
fn record_change(key: &str) -> Change {
    if key.starts_with(assign::EDGE_RECORDS) { Change::Edge } else { Change::Nothing }
}

#[derive(Clone, Copy)]
struct Stamp {
    index: u64,
    at_ms: i64,
}

impl Stamp {
    fn meta(self, old: Option<&Meta>) -> Meta {
        Meta {
            version: self.index,
            created_at_ms: old.map_or(self.at_ms, |old| old.created_at_ms),
            updated_at_ms: self.at_ms,
        }
    }
}

/// Observed state only moves forward. Within one state the count of restarts does; what is terminal stays.
fn supersedes(new: &TaskStatus, old: &TaskStatus) -> bool {
    if old.state.is_terminal() {
        return false;
    }
    new.state > old.state || (new.state == old.state && new.restarts >= old.restarts && new != old)
}
