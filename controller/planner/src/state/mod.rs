//! The replicated objects and the indices over them.
//!
//! [`State::apply`] is the only way in (and [`State::restore`] from a snapshot). It cannot fail and reads
//! no clock, so that every controller comes to the same state from the same log. [`State::check`] is asked
//! first, for the whole batch, against the state before the batch.
//!
//! `apply.rs` writes, `check.rs` refuses, `index.rs` keeps what the planner's stages ask for.

mod apply;
mod check;
pub(crate) mod index;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use rorqual_proto::model::{
    Cluster, Guest, GuestId, Network, NetworkId, Node, NodeId, Record, Service, ServiceId, Task, TaskId,
};

use index::Indices;

/// Everything that the controllers agree on. A clone shares the objects.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) nodes: BTreeMap<NodeId, Arc<Node>>,
    pub(crate) services: BTreeMap<ServiceId, Arc<Service>>,
    pub(crate) tasks: BTreeMap<TaskId, Arc<Task>>,
    pub(crate) networks: BTreeMap<NetworkId, Arc<Network>>,
    pub(crate) guests: BTreeMap<GuestId, Arc<Guest>>,
    records: BTreeMap<String, Arc<Record>>,
    records_bytes: u64,
    pub(crate) index: Indices,
    applied: u64,
}

/// All objects of a state, as a snapshot carries them.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// The place in the log of the last write that is in here.
    pub index: u64,
    /// The cluster, once there is one.
    pub cluster: Option<Cluster>,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// All services.
    pub services: Vec<Service>,
    /// All tasks.
    pub tasks: Vec<Task>,
    /// All networks.
    pub networks: Vec<Network>,
    /// All records.
    pub records: Vec<Record>,
    /// All plain containers in networks.
    pub guests: Vec<Guest>,
}

impl State {
    /// The state that a snapshot describes. Every `meta` stays as it is.
    pub fn restore(objects: Objects) -> Self {
        let Objects { index, cluster, nodes, mut services, mut tasks, networks, records, guests } = objects;
        let mut state = Self { cluster: cluster.map(Arc::new), applied: index, ..Self::default() };
        for node in nodes {
            state.set_node(Arc::new(node));
        }
        for network in networks {
            state.set_network(Arc::new(network));
        }
        for record in records {
            state.set_record(Arc::new(record));
        }
        // In the order of creation, so that addresses go on behind the one that was given last.
        services.sort_by(|a, b| (a.meta.created_at_ms, &a.id).cmp(&(b.meta.created_at_ms, &b.id)));
        for service in services {
            state.set_service(Arc::new(service));
        }
        tasks.sort_by(|a, b| (a.meta.created_at_ms, &a.id).cmp(&(b.meta.created_at_ms, &b.id)));
        for task in tasks {
            state.set_task(Arc::new(task));
        }
        for guest in guests {
            state.set_guest(Arc::new(guest));
        }
        state
    }

    /// Copies of all objects, for a snapshot.
    pub fn objects(&self) -> Objects {
        Objects {
            index: self.applied,
            cluster: self.cluster.as_deref().cloned(),
            nodes: self.nodes.values().map(|node| Node::clone(node)).collect(),
            services: self.services.values().map(|service| Service::clone(service)).collect(),
            tasks: self.tasks.values().map(|task| Task::clone(task)).collect(),
            networks: self.networks.values().map(|network| Network::clone(network)).collect(),
            records: self.records.values().map(|record| Record::clone(record)).collect(),
            guests: self.guests.values().map(|guest| Guest::clone(guest)).collect(),
        }
    }

    /// The place in the log of the last write; 0 before the first.
    pub fn index(&self) -> u64 {
        self.applied
    }

    /// The cluster object; none before `cluster init` was applied.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// One node.
    pub fn node(&self, id: &NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(id)
    }

    /// The nodes that call themselves so: host names need not be unique.
    pub fn nodes_by_hostname<'a>(&'a self, hostname: &str) -> impl Iterator<Item = &'a Arc<Node>> {
        self.index.hostnames.get(hostname).into_iter().flatten().filter_map(|id| self.nodes.get(id))
    }

    /// All services, by id.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// One service.
    pub fn service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id)
    }

    /// The service of that name.
    pub fn service_by_name(&self, name: &str) -> Option<&Arc<Service>> {
        self.services.get(self.index.service_names.get(name)?)
    }

    /// All tasks, by id.
    pub fn tasks(&self) -> impl ExactSizeIterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    /// One task.
    pub fn task(&self, id: &TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(id)
    }

    /// The tasks of a service by slot, dead ones too.
    pub fn tasks_of_service<'a>(&'a self, id: &ServiceId) -> impl Iterator<Item = &'a Arc<Task>> {
        let slots = self.index.services.get(id).map(|service| &service.slots);
        slots
            .into_iter()
            .flat_map(|slots| slots.values())
            .flat_map(|slot| &slot.tasks)
            .filter_map(|id| self.tasks.get(id))
    }

    /// The tasks of one slot, dead ones too.
    pub fn tasks_in_slot<'a>(&'a self, id: &ServiceId, slot: u32) -> impl Iterator<Item = &'a Arc<Task>> {
        let slot = self.index.services.get(id).and_then(|service| service.slots.get(&slot));
        slots_tasks(slot).filter_map(|id| self.tasks.get(id))
    }

    /// The tasks bound to a node, dead ones too.
    pub fn tasks_on_node<'a>(&'a self, id: &NodeId) -> impl Iterator<Item = &'a Arc<Task>> {
        let tasks = self.index.nodes.get(id).map(|node| &node.tasks);
        tasks.into_iter().flatten().filter_map(|id| self.tasks.get(id))
    }

    /// The tasks of a service that run, are meant to run, and may get traffic. A node that is down does
    /// not count here: see [`crate::assign`].
    pub fn endpoints_of_service<'a>(&'a self, id: &ServiceId) -> impl Iterator<Item = &'a Arc<Task>> {
        let tasks = self.index.services.get(id).map(|service| &service.endpoints);
        tasks.into_iter().flatten().filter_map(|id| self.tasks.get(id))
    }

    /// All networks, by id.
    pub fn networks(&self) -> impl ExactSizeIterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    /// One network.
    pub fn network(&self, id: &NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(id)
    }

    /// The network of that name.
    pub fn network_by_name(&self, name: &str) -> Option<&Arc<Network>> {
        self.networks.get(self.index.network_names.get(name)?)
    }

    /// How many addresses of a network are in use.
    pub fn addresses_in(&self, id: &NetworkId) -> u32 {
        self.index.nodes.values().filter_map(|node| node.networks.get(id)).sum()
    }

    /// All records, by key.
    pub fn records(&self) -> impl ExactSizeIterator<Item = &Arc<Record>> {
        self.records.values()
    }

    /// One record.
    pub fn record(&self, key: &str) -> Option<&Arc<Record>> {
        self.records.get(key)
    }

    /// The records whose keys begin with `prefix` and lie behind `prefix` + `after`, in order.
    pub fn records_behind<'a>(
        &'a self,
        prefix: &'a str,
        after: &str,
    ) -> impl Iterator<Item = &'a Arc<Record>> {
        let from = format!("{prefix}{after}");
        let start = if after.is_empty() { Bound::Included(from) } else { Bound::Excluded(from) };
        let behind = self.records.range((start, Bound::Unbounded));
        behind.take_while(move |(key, _)| key.starts_with(prefix)).map(|(_, record)| record)
    }

    /// All plain containers in networks, by id.
    pub fn guests(&self) -> impl ExactSizeIterator<Item = &Arc<Guest>> {
        self.guests.values()
    }

    /// One of them.
    pub fn guest(&self, id: &GuestId) -> Option<&Arc<Guest>> {
        self.guests.get(id)
    }

    /// Those of one node.
    pub fn guests_on_node<'a>(&'a self, id: &NodeId) -> impl Iterator<Item = &'a Arc<Guest>> {
        let ids = self.index.nodes.get(id).into_iter().flat_map(|node| &node.guests);
        ids.filter_map(|id| self.guests.get(id))
    }

    /// What all records take, roughly.
    pub fn records_bytes(&self) -> u64 {
        self.records_bytes
    }

    /// How many wanted tasks of a service there are, and how many of those run and are healthy.
    pub fn replica_counts(&self, id: &ServiceId) -> ReplicaCounts {
        let Some(index) = self.index.services.get(id) else { return ReplicaCounts::default() };
        let version = self.services.get(id).map_or(0, |service| service.spec_version);
        let running = index.holders.values().map(|holders| holders.settled.len()).sum();
        let updated = index.holders.get(&version).map_or(0, |holders| holders.settled.len());
        ReplicaCounts { slots: index.wanted.len(), running, updated }
    }
}

/// How far a service is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplicaCounts {
    /// Slots that are filled or are being filled.
    pub slots: usize,
    /// Slots with a task that runs and is healthy (or has done its work and is not to run again).
    pub running: usize,
    /// Those of them that run the present spec.
    pub updated: usize,
}

fn slots_tasks(slot: Option<&index::Slot>) -> impl Iterator<Item = &rorqual_proto::model::TaskId> {
    slot.into_iter().flat_map(|slot| &slot.tasks)
}
