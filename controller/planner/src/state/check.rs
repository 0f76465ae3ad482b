//! What is asked before a batch is applied: versions that writers saw, and that nothing is given twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use rorqual_proto::model::{
    Cluster, DesiredState, Guest, Network, NetworkId, NodeId, PortClaim, Protocol, Service, ServiceId, Task,
    TaskAddress, TaskId,
};

use super::State;
use super::index::{Owner, is_holder};
use crate::action::{Action, ActionKind, Conflict};
use crate::prepare::range;

impl State {
    /// Whether an action fits the state. A batch is applied whole or not at all: every action is checked
    /// against the state before the batch.
    pub fn check(&self, action: &Action) -> Result<(), Conflict> {
        if let Some(expected) = action.expected_version {
            let (actual, object) = self.version_of(&action.kind);
            if actual != expected {
                return Err(Conflict::Version { object, expected, actual });
            }
        }
        match &action.kind {
            ActionKind::PutCluster(cluster) => self.check_cluster(cluster),
            ActionKind::PutService(service) => self.check_service(service),
            ActionKind::PutTask(task) => self.check_task(task),
            ActionKind::PutNetwork(network) => self.check_network(network),
            ActionKind::RemoveNetwork(id) if self.addresses_in(id) > 0 => {
                Err(Conflict::NetworkInUse { network: self.name_of_network(id) })
            }
            ActionKind::PutGuest(guest) => self.check_guest(guest),
            _ => Ok(()),
        }
    }

    /// Whether all actions of a batch fit the state, and each other: the first conflict otherwise.
    pub fn check_all(&self, actions: &[Action]) -> Result<(), Conflict> {
        let mut batch = Batch::default();
        actions.iter().for_each(|action| batch.note_stopped(&action.kind));
        actions.iter().try_for_each(|action| {
            self.check(action)?;
            batch.check(&action.kind)?;
            self.check_slot(&action.kind, &mut batch)
        })
    }

    /// A plan that was thought lost and was committed after all must not fill a slot a second time.
    fn check_slot(&self, kind: &ActionKind, batch: &mut Batch) -> Result<(), Conflict> {
        let ActionKind::PutTask(task) = kind else { return Ok(()) };
        if !is_holder(task) {
            return Ok(());
        }
        let mut others = self.tasks_in_slot(&task.service_id, task.slot);
        let stays =
            others.any(|other| other.id != task.id && is_holder(other) && !batch.stopped.contains(&other.id));
        let twice = batch.slots.insert((task.service_id.clone(), task.slot), task.id.clone());
        if stays || twice.is_some_and(|other| other != task.id) {
            return Err(Conflict::SlotTaken { task: task.name() });
        }
        Ok(())
    }

    /// The version of the object that an action writes (0 where there is none), and what people call it.
    fn version_of(&self, kind: &ActionKind) -> (u64, String) {
        match kind {
            ActionKind::PutCluster(cluster) => {
                (self.cluster.as_ref().map_or(0, |old| old.meta.version), format!("cluster {}", cluster.name))
            }
            ActionKind::PutNode(node) => self.version_of_node(&node.id),
            ActionKind::RemoveNode(id) | ActionKind::NodeStatus { node_id: id, .. } => {
                self.version_of_node(id)
            }
            ActionKind::PutService(service) => {
                let version = self.services.get(&service.id).map_or(0, |old| old.meta.version);
                (version, format!("service {}", service.spec.name))
            }
            ActionKind::RemoveService(id) => {
                self.services.get(id).map_or((0, format!("service {id}")), |old| {
                    (old.meta.version, format!("service {}", old.spec.name))
                })
            }
            ActionKind::PutTask(task) => {
                (self.tasks.get(&task.id).map_or(0, |old| old.meta.version), format!("task {}", task.name()))
            }
            ActionKind::RemoveTask(id)
            | ActionKind::TaskStatus { task_id: id, .. }
            | ActionKind::TaskDesired { task_id: id, .. } => self
                .tasks
                .get(id)
                .map_or((0, format!("task {id}")), |old| (old.meta.version, format!("task {}", old.name()))),
            ActionKind::PutNetwork(network) => {
                let version = self.networks.get(&network.id).map_or(0, |old| old.meta.version);
                (version, format!("network {}", network.spec.name))
            }
            ActionKind::PutGuest(guest) => (
                self.guests.get(&guest.id).map_or(0, |old| old.meta.version),
                format!("container {}", guest.name),
            ),
            ActionKind::RemoveGuest(id) => {
                (self.guests.get(id).map_or(0, |old| old.meta.version), format!("container {id}"))
            }
            ActionKind::PutRecord(record) => self.version_of_record(&record.key),
            ActionKind::RemoveRecord(key) | ActionKind::ExpectRecord(key) => self.version_of_record(key),
            ActionKind::RemoveNetwork(id) => {
                self.networks.get(id).map_or((0, format!("network {id}")), |old| {
                    (old.meta.version, format!("network {}", old.spec.name))
                })
            }
        }
    }

    fn version_of_record(&self, key: &str) -> (u64, String) {
        (self.records.get(key).map_or(0, |old| old.version), format!("record {key}"))
    }

    fn version_of_node(&self, id: &NodeId) -> (u64, String) {
        match self.nodes.get(id) {
            Some(old) => (old.meta.version, format!("node {}", old.description.hostname)),
            None => (0, format!("node {id}")),
        }
    }

    fn check_service(&self, service: &Service) -> Result<(), Conflict> {
        let taken = |owner: &ServiceId| *owner != service.id;
        if self.index.service_names.get(&service.spec.name).is_some_and(taken) {
            return Err(Conflict::NameTaken { kind: "service", name: service.spec.name.clone() });
        }
        let name_of = |id| self.services.get(id).map_or_else(String::new, |other| other.spec.name.clone());
        for route in &service.spec.routes {
            let key = (route.host.clone(), route.path.clone());
            if let Some(owner) = self.index.routes.get(&key).filter(|id| taken(id)) {
                return Err(Conflict::RouteTaken { route: route.address(), service: name_of(owner) });
            }
        }
        for port in &service.ports {
            if self.has_edge_port(port.protocol, port.published) {
                return Err(Conflict::EdgePort { port: port.published });
            }
            let claim = port.claim();
            if let Some(owner) = claim.holders(&self.index.ports).find(|id| taken(id)) {
                return Err(Conflict::PortTaken { port: claim, service: name_of(owner) });
            }
        }
        for vip in &service.vips {
            if let Some(owner) = self.index.vips.get(&vip.address).filter(|id| taken(id)) {
                let owner = format!("service {}", name_of(owner));
                return Err(Conflict::AddressTaken { address: vip.address, owner });
            }
        }
        Ok(())
    }

    fn check_cluster(&self, cluster: &Cluster) -> Result<(), Conflict> {
        let owner = |published| {
            let claim = PortClaim { protocol: Protocol::Tcp, published, address: None };
            Some((claim, claim.holders(&self.index.ports).next()?))
        };
        let Some((port, owner)) = cluster.edge.ports().find_map(owner) else { return Ok(()) };
        let service = self.services.get(owner).map_or_else(String::new, |other| other.spec.name.clone());
        Err(Conflict::PortTaken { port, service })
    }

    /// The HTTP edge listens on the port, on every node.
    pub(crate) fn has_edge_port(&self, protocol: Protocol, port: u16) -> bool {
        let edge = self.cluster.as_ref().map(|cluster| &cluster.edge);
        protocol == Protocol::Tcp && edge.is_some_and(|edge| edge.ports().any(|own| own == port))
    }

    fn check_task(&self, task: &Task) -> Result<(), Conflict> {
        for given in &task.addresses {
            let taken = |owner: &&Owner| **owner != Owner::Task(task.id.clone());
            if let Some(owner) = self.index.addresses.get(&given.address).filter(taken) {
                return Err(Conflict::AddressTaken { address: given.address, owner: self.name_of(owner) });
            }
        }
        Ok(())
    }

    /// Nothing else has its addresses, and its networks are still there.
    fn check_guest(&self, guest: &Guest) -> Result<(), Conflict> {
        for given in &guest.addresses {
            let taken = |owner: &&Owner| **owner != Owner::Guest(guest.id.clone());
            if let Some(owner) = self.index.addresses.get(&given.address).filter(taken) {
                return Err(Conflict::AddressTaken { address: given.address, owner: self.name_of(owner) });
            }
            if !self.networks.contains_key(&given.network_id) {
                let object = format!("network {}", given.network_id);
                return Err(Conflict::Version { object, expected: 1, actual: 0 });
            }
        }
        Ok(())
    }

    /// Who has an address, in words.
    pub(crate) fn name_of(&self, owner: &Owner) -> String {
        match owner {
            Owner::Task(id) => {
                format!("task {}", self.tasks.get(id).map_or_else(|| id.to_string(), |task| task.name()))
            }
            Owner::Guest(id) => {
                let guest = self.guests.get(id);
                format!("container {}", guest.map_or_else(|| id.to_string(), |guest| guest.name.clone()))
            }
        }
    }

    fn name_of_network(&self, id: &NetworkId) -> String {
        self.networks.get(id).map_or_else(|| id.to_string(), |network| network.spec.name.clone())
    }

    fn check_network(&self, network: &Network) -> Result<(), Conflict> {
        let name = &network.spec.name;
        if self.index.network_names.get(name).is_some_and(|owner| *owner != network.id) {
            return Err(Conflict::NameTaken { kind: "network", name: name.clone() });
        }
        if !self.networks.contains_key(&network.id) {
            for subnet in range::all(&network.spec) {
                if let Some((_, other)) = range::other_network(self, subnet) {
                    return Err(Conflict::BlockTaken { block: subnet, network: other.to_owned() });
                }
            }
        }
        for lease in &network.blocks {
            if let Some(owner) = self.index.leased.get(&lease.block).filter(|id| **id != network.id) {
                let network =
                    self.networks.get(owner).map_or_else(String::new, |other| other.spec.name.clone());
                return Err(Conflict::BlockTaken { block: lease.block.into(), network });
            }
        }
        Ok(())
    }
}

/// What the actions of one batch give, so that they do not give it twice.
#[derive(Default)]
struct Batch {
    names: BTreeMap<String, ServiceId>,
    ports: BTreeMap<PortClaim, (ServiceId, String)>,
    vips: BTreeMap<Ipv4Addr, (ServiceId, String)>,
    addresses: BTreeMap<Ipv4Addr, String>,
    slots: BTreeMap<(ServiceId, u32), TaskId>,
    /// Tasks that this batch tells to stop, or removes.
    stopped: BTreeSet<TaskId>,
}

impl Batch {
    fn note_stopped(&mut self, kind: &ActionKind) {
        match kind {
            ActionKind::RemoveTask(id) => drop(self.stopped.insert(id.clone())),
            ActionKind::TaskDesired { task_id, desired_state } if *desired_state > DesiredState::Running => {
                self.stopped.insert(task_id.clone());
            }
            _ => {}
        }
    }

    fn check(&mut self, kind: &ActionKind) -> Result<(), Conflict> {
        match kind {
            ActionKind::PutService(service) => self.check_service(service),
            ActionKind::PutTask(task) => self.give(&task.addresses, format!("task {}", task.name())),
            ActionKind::PutGuest(guest) => self.give(&guest.addresses, format!("container {}", guest.name)),
            _ => Ok(()),
        }
    }

    fn give(&mut self, addresses: &[TaskAddress], to: String) -> Result<(), Conflict> {
        for given in addresses {
            if let Some(owner) = self.addresses.insert(given.address, to.clone()) {
                return Err(Conflict::AddressTaken { address: given.address, owner });
            }
        }
        Ok(())
    }

    fn check_service(&mut self, service: &Service) -> Result<(), Conflict> {
        let own = || (service.id.clone(), service.spec.name.clone());
        let other = |owner: Option<(ServiceId, String)>| owner.filter(|(id, _)| *id != service.id);
        let same_name = self.names.insert(service.spec.name.clone(), service.id.clone());
        if same_name.is_some_and(|owner| owner != service.id) {
            return Err(Conflict::NameTaken { kind: "service", name: service.spec.name.clone() });
        }
        for port in &service.ports {
            let claim = port.claim();
            if let Some((_, name)) = claim.holders(&self.ports).find(|(id, _)| *id != service.id) {
                return Err(Conflict::PortTaken { port: claim, service: name.clone() });
            }
            self.ports.insert(claim, own());
        }
        for vip in &service.vips {
            if let Some((_, name)) = other(self.vips.insert(vip.address, own())) {
                let owner = format!("service {name}");
                return Err(Conflict::AddressTaken { address: vip.address, owner });
            }
        }
        Ok(())
    }
}
