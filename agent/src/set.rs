//! The assignment set: what this node has to do and to know, numbered by the leader.
//!
//! Pure: [`AssignmentSet::take`] says what a message changes, and what of it has to be written to disk before
//! it is acknowledged. A message is refused where it is older than the set, or builds on another one.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use rorqual_proto::wire::{
    Assignments, Controller, EdgeConfig, NetworkBlock, NodeNetwork, NodePeer, ServiceEndpoints, Task,
};

use crate::store::SetWrite;

const NUMBER: &str = "number";
const CONTAINER_POOL: &str = "container_pool";
const VIP_POOL: &str = "vip_pool";
const CONTROLLERS: &str = "controllers";
const EDGE: &str = "edge";

/// The controllers of a cluster, as they are kept.
#[derive(Clone, PartialEq, Message)]
struct Controllers {
    #[prost(message, repeated, tag = "1")]
    list: Vec<Controller>,
}

/// Everything that the leader has told this node, by id.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct AssignmentSet {
    pub(crate) number: u64,
    pub(crate) tasks: BTreeMap<String, Task>,
    /// By [`view_key`].
    pub(crate) services: BTreeMap<String, ServiceEndpoints>,
    pub(crate) networks: BTreeMap<String, NodeNetwork>,
    pub(crate) blocks: BTreeMap<String, NetworkBlock>,
    pub(crate) peers: BTreeMap<String, NodePeer>,
    pub(crate) controllers: Vec<Controller>,
    pub(crate) edge: EdgeConfig,
    pub(crate) container_pool: String,
    pub(crate) vip_pool: String,
}

/// Why a message was not taken. Both end the session: the next Hello brings a full set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("set {given} is older than set {own}, which is on disk")]
    Older { own: u64, given: u64 },
    #[error("set {given} builds on set {base}, but set {own} is on disk")]
    OtherBase { own: u64, base: u64, given: u64 },
}

/// What a message changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct SetChange {
    pub(crate) number: u64,
    /// For the network: this is the whole truth.
    pub(crate) full: bool,
    pub(crate) tasks: Vec<Task>,
    pub(crate) removed_tasks: Vec<String>,
    pub(crate) services: Vec<ServiceEndpoints>,
    /// By [`view_key`].
    pub(crate) removed_services: Vec<String>,
    /// By [`view_key`]: those that the message has, also where they are as they were.
    pub(crate) named_services: Vec<String>,
    pub(crate) networks: Vec<NodeNetwork>,
    pub(crate) removed_networks: Vec<String>,
    pub(crate) blocks: Vec<NetworkBlock>,
    pub(crate) removed_blocks: Vec<String>,
    pub(crate) peers: Vec<NodePeer>,
    pub(crate) removed_peers: Vec<String>,
    /// How the HTTP edge has to be, where that is new.
    pub(crate) edge: Option<EdgeConfig>,
    /// What has to be durable before the set is acknowledged.
    pub(crate) writes: Vec<SetWrite>,
}

impl AssignmentSet {
    /// The set as it was kept, and the keys that could not be read (they come again with the next full set).
    pub(crate) fn load(entries: Vec<(String, Vec<u8>)>) -> (Self, Vec<String>) {
        let mut set = Self::default();
        let unreadable = entries
            .into_iter()
            .filter_map(|(key, value)| set.load_entry(&key, &value).is_none().then_some(key))
            .collect();
        (set, unreadable)
    }

    fn load_entry(&mut self, key: &str, value: &[u8]) -> Option<()> {
        match key.split_once('/') {
            Some(("task", id)) => drop(self.tasks.insert(id.to_owned(), Task::decode(value).ok()?)),
            Some(("service", id)) => {
                self.services.insert(id.to_owned(), ServiceEndpoints::decode(value).ok()?);
            }
            Some(("network", id)) => {
                self.networks.insert(id.to_owned(), NodeNetwork::decode(value).ok()?);
            }
            Some(("block", net)) => {
                self.blocks.insert(net.to_owned(), NetworkBlock::decode(value).ok()?);
            }
            Some(("peer", id)) => drop(self.peers.insert(id.to_owned(), NodePeer::decode(value).ok()?)),
            _ => match key {
                NUMBER => self.number = u64::from_be_bytes(value.try_into().ok()?),
                CONTAINER_POOL => self.container_pool = String::from_utf8(value.to_vec()).ok()?,
                VIP_POOL => self.vip_pool = String::from_utf8(value.to_vec()).ok()?,
                EDGE => self.edge = EdgeConfig::decode(value).ok()?,
                CONTROLLERS => self.controllers = Controllers::decode(value).ok()?.list,
                _ => return None,
            },
        }
        Some(())
    }

    /// Takes a message, or refuses it and stays as it is.
    pub(crate) fn take(&mut self, given: Assignments) -> Result<SetChange, Refused> {
        if given.set < self.number {
            return Err(Refused::Older { own: self.number, given: given.set });
        }
        if !given.full && given.base != self.number {
            return Err(Refused::OtherBase { own: self.number, base: given.base, given: given.set });
        }
        let mut change = SetChange { number: given.set, full: given.full, ..SetChange::default() };
        let full = given.full;
        self.number = given.set;
        change.writes.push((NUMBER.to_owned(), Some(given.set.to_be_bytes().to_vec())));
        let writes = &mut change.writes;
        let tasks = given.tasks.into_iter().map(|task| (task.id.clone(), task));
        let part = Part { prefix: "task", full, writes };
        (change.tasks, change.removed_tasks) = part.merge(&mut self.tasks, tasks, given.removed_tasks);
        let removed = views_gone(&self.services, &given.services, &given.removed_services);
        change.named_services = given.services.iter().map(view_key).collect();
        let services = given.services.into_iter().map(|service| (view_key(&service), service));
        let part = Part { prefix: "service", full, writes };
        (change.services, change.removed_services) = part.merge(&mut self.services, services, removed);
        let networks = given.networks.into_iter().map(|network| (network.network_id.clone(), network));
        let part = Part { prefix: "network", full, writes };
        (change.networks, change.removed_networks) =
            part.merge(&mut self.networks, networks, given.removed_networks);
        let blocks = given.blocks.into_iter().map(|block| (block.block.clone(), block));
        let part = Part { prefix: "block", full, writes };
        (change.blocks, change.removed_blocks) = part.merge(&mut self.blocks, blocks, given.removed_blocks);
        let peers = given.peers.into_iter().map(|peer| (peer.node_id.clone(), peer));
        let part = Part { prefix: "peer", full, writes };
        (change.peers, change.removed_peers) = part.merge(&mut self.peers, peers, given.removed_peers);
        if !given.controllers.is_empty() && given.controllers != self.controllers {
            let list = Controllers { list: given.controllers.clone() };
            writes.push((CONTROLLERS.to_owned(), Some(list.encode_to_vec())));
            self.controllers = given.controllers;
        }
        if let Some(edge) = given.edge.filter(|edge| *edge != self.edge) {
            writes.push((EDGE.to_owned(), Some(edge.encode_to_vec())));
            self.edge.clone_from(&edge);
            change.edge = Some(edge);
        }
        for (key, pool, own) in [
            (CONTAINER_POOL, given.container_pool, &mut self.container_pool),
            (VIP_POOL, given.vip_pool, &mut self.vip_pool),
        ] {
            if !pool.is_empty() && pool != *own {
                writes.push((key.to_owned(), Some(pool.clone().into_bytes())));
                *own = pool;
            }
        }
        Ok(change)
    }

    /// The whole set as one change, with nothing to write: what a daemon starts with.
    pub(crate) fn as_change(&self) -> SetChange {
        SetChange {
            number: self.number,
            full: true,
            tasks: self.tasks.values().cloned().collect(),
            services: self.services.values().cloned().collect(),
            networks: self.networks.values().cloned().collect(),
            blocks: self.blocks.values().cloned().collect(),
            peers: self.peers.values().cloned().collect(),
            edge: Some(self.edge.clone()),
            ..SetChange::default()
        }
    }
}

/// A service stands in the set once for each of its networks.
pub(crate) fn view_key(view: &ServiceEndpoints) -> String {
    format!("{}/{}", view.service_id, view.network_id)
}

/// The views of services that a message removes, and of those that it names with others.
fn views_gone(
    own: &BTreeMap<String, ServiceEndpoints>,
    given: &[ServiceEndpoints],
    removed: &[String],
) -> Vec<String> {
    let named: BTreeSet<&str> =
        given.iter().map(|view| view.service_id.as_str()).chain(removed.iter().map(String::as_str)).collect();
    let stays: BTreeSet<String> = given.iter().map(view_key).collect();
    // The views of one service stand side by side: this costs what is named, not what there is.
    let all = named.into_iter().flat_map(|id| {
        let first = format!("{id}/");
        own.range(first.clone()..).map(|(key, _)| key).take_while(move |key| key.starts_with(&first))
    });
    all.filter(|key| !stays.contains(*key)).cloned().collect()
}

/// One kind of object of a message.
struct Part<'a> {
    prefix: &'static str,
    full: bool,
    writes: &'a mut Vec<SetWrite>,
}

impl Part<'_> {
    /// Brings `own` up to date; returns what is new or changed, and what is gone.
    fn merge<T: Message + Clone + PartialEq>(
        self,
        own: &mut BTreeMap<String, T>,
        given: impl Iterator<Item = (String, T)>,
        removed: Vec<String>,
    ) -> (Vec<T>, Vec<String>) {
        let given: BTreeMap<String, T> = given.collect();
        let gone: Vec<String> = if self.full {
            own.keys().filter(|key| !given.contains_key(*key)).cloned().collect()
        } else {
            removed.into_iter().filter(|key| own.contains_key(key)).collect()
        };
        for key in &gone {
            own.remove(key);
            self.writes.push((format!("{}/{key}", self.prefix), None));
        }
        let mut changed = Vec::new();
        for (key, item) in given {
            if own.get(&key) == Some(&item) {
                continue;
            }
            self.writes.push((format!("{}/{key}", self.prefix), Some(item.encode_to_vec())));
            changed.push(item.clone());
            own.insert(key, item);
        }
        (changed, gone)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap as Disk;

    use proptest::prelude::*;

    use super::*;

    fn task(id: u8, version: u64) -> Task {
        Task { id: format!("t{id}"), spec_version: version, ..Task::default() }
    }

    fn full(set: u64, tasks: Vec<Task>) -> Assignments {
        Assignments { set, full: true, tasks, ..Assignments::default() }
    }

    #[test]
    fn older_sets_and_other_bases_are_refused() {
        let mut set = AssignmentSet::default();
        set.take(full(10, vec![task(1, 1)])).unwrap();
        let before = set.clone();
        assert_eq!(set.take(full(9, vec![])).unwrap_err(), Refused::Older { own: 10, given: 9 });
        let change = Assignments { set: 12, base: 11, ..Assignments::default() };
        assert_eq!(set.take(change).unwrap_err(), Refused::OtherBase { own: 10, base: 11, given: 12 });
        assert_eq!(set, before);
        // The same number again is what a reconnecting agent gets.
        assert!(set.take(full(10, vec![task(1, 1)])).unwrap().tasks.is_empty());
    }

    #[test]
    fn a_full_set_removes_what_it_does_not_name() {
        let mut set = AssignmentSet::default();
        set.take(full(1, vec![task(1, 1), task(2, 1)])).unwrap();
        let change = set.take(full(2, vec![task(2, 2)])).unwrap();
        assert_eq!(change.removed_tasks, ["t1"]);
        assert_eq!(change.tasks, [task(2, 2)]);
    }

    #[test]
    fn a_service_that_is_named_is_replaced_in_all_its_networks() {
        let view = |service: &str, network: &str| ServiceEndpoints {
            service_id: service.into(),
            network_id: network.into(),
            ..ServiceEndpoints::default()
        };
        let mut set = AssignmentSet::default();
        let services = vec![view("s1", "a"), view("s1", "b"), view("s11", "a")];
        set.take(Assignments { set: 1, full: true, services, ..Assignments::default() }).unwrap();
        assert_eq!(set.services.len(), 3);
        let change = |set: u64, services: Vec<ServiceEndpoints>, removed: &[&str]| Assignments {
            set,
            base: set - 1,
            services,
            removed_services: removed.iter().map(|id| (*id).to_owned()).collect(),
            ..Assignments::default()
        };
        let taken = set.take(change(2, vec![view("s1", "b"), view("s1", "c")], &[])).unwrap();
        assert_eq!(taken.removed_services, ["s1/a"]);
        assert_eq!(taken.services, [view("s1", "c")], "the other one is as it was");
        let taken = set.take(change(3, vec![], &["s1"])).unwrap();
        assert_eq!(taken.removed_services, ["s1/b", "s1/c"]);
        assert_eq!(set.services.keys().collect::<Vec<_>>(), ["s11/a"]);
    }

    #[derive(Debug, Clone)]
    struct Step {
        full: bool,
        put: Vec<(u8, u64)>,
        remove: Vec<u8>,
        skip: u64,
    }

    fn step() -> impl Strategy<Value = Step> {
        let put = prop::collection::vec((0u8..6, 0u64..3), 0..4);
        let remove = prop::collection::vec(0u8..6, 0..3);
        (any::<bool>(), put, remove, 1u64..5).prop_map(|(full, put, remove, skip)| Step {
            full,
            put,
            remove,
            skip,
        })
    }

    proptest! {
        /// Whatever comes, what lies on disk is what is in memory.
        #[test]
        fn the_disk_follows_the_set(steps in prop::collection::vec(step(), 1..20)) {
            let mut set = AssignmentSet::default();
            let mut disk: Disk<String, Vec<u8>> = Disk::new();
            for step in steps {
                let given = Assignments {
                    set: set.number + step.skip,
                    full: step.full,
                    base: set.number,
                    tasks: step.put.iter().map(|(id, version)| task(*id, *version)).collect(),
                    removed_tasks: step.remove.iter().map(|id| format!("t{id}")).collect(),
                    ..Assignments::default()
                };
                for (key, value) in set.take(given).unwrap().writes {
                    match value {
                        Some(value) => drop(disk.insert(key, value)),
                        None => drop(disk.remove(&key)),
                    }
                }
                let (loaded, unreadable) = AssignmentSet::load(disk.clone().into_iter().collect());
                prop_assert!(unreadable.is_empty());
                prop_assert_eq!(&loaded, &set);
            }
        }
    }
}
