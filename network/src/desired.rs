//! What is wanted, put together from changes, and what has to be looked at because of them.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::model::{Block, Change, Endpoint, Network, Peer, ServiceView};
use crate::netlink::conntrack::Kind;
use crate::ruleset::Item;

/// The desired state of this node's network, except for its containers.
#[derive(Debug, Default)]
pub(crate) struct Desired {
    pub(crate) services: BTreeMap<String, ServiceView>,
    pub(crate) blocks: BTreeMap<Ipv4Net, Block>,
    pub(crate) peers: BTreeMap<String, Peer>,
    pub(crate) networks: BTreeMap<String, Network>,
    /// Number of blocks of every network.
    leased: BTreeMap<String, usize>,
    dirty: Dirty,
}

/// What has to be looked at.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// Everything else in the kernel has to go.
    pub(crate) full: bool,
    pub(crate) services: BTreeSet<String>,
    pub(crate) blocks: BTreeSet<Ipv4Net>,
    pub(crate) peers: BTreeSet<String>,
    pub(crate) networks: BTreeSet<String>,
    /// Addresses whose connections are to be forgotten.
    pub(crate) forget: BTreeMap<Ipv4Net, Kind>,
}

impl Dirty {
    /// Whether routes and rules may have to change.
    pub(crate) fn routing(&self) -> bool {
        self.full || !self.blocks.is_empty() || !self.peers.is_empty() || !self.networks.is_empty()
    }
}

impl Desired {
    /// Takes a change in.
    pub(crate) fn merge(&mut self, change: Change) {
        let Change {
            full,
            peers,
            removed_peers,
            networks,
            removed_networks,
            blocks,
            removed_blocks,
            services,
            removed_services,
        } = change;
        if full {
            self.dirty.full = true;
            let new: BTreeSet<&String> = services.iter().map(|s| &s.id).collect();
            let gone: Vec<String> = self.services.keys().filter(|id| !new.contains(id)).cloned().collect();
            gone.iter().for_each(|id| self.remove_service(id));
            let new: BTreeSet<Ipv4Net> = blocks.iter().map(|b| b.block.trunc()).collect();
            let gone: Vec<Ipv4Net> = self.blocks.keys().filter(|b| !new.contains(b)).copied().collect();
            gone.into_iter().for_each(|block| self.remove_block(block));
            let new: BTreeSet<&String> = networks.iter().map(|n| &n.id).collect();
            let gone: Vec<String> = self.networks.keys().filter(|id| !new.contains(id)).cloned().collect();
            gone.iter().for_each(|id| self.remove_network(id));
            let new: BTreeSet<&String> = peers.iter().map(|p| &p.node).collect();
            let gone: Vec<String> = self.peers.keys().filter(|n| !new.contains(n)).cloned().collect();
            gone.iter().for_each(|node| self.remove_peer(node));
        }
        removed_services.iter().for_each(|id| self.remove_service(id));
        removed_peers.iter().for_each(|node| self.remove_peer(node));
        removed_blocks.into_iter().for_each(|block| self.remove_block(block.trunc()));
        for peer in peers {
            self.dirty.peers.insert(peer.node.clone());
            let known = self.peers.get(&peer.node);
            if known.is_none_or(|known| known.ipv6 != peer.ipv6) {
                // Its endpoints may have IPv6 now, or no longer.
                let there = |s: &&ServiceView| s.endpoints.iter().any(|e| e.node == peer.node);
                let concerned = self.services.values().filter(there).map(|s| s.id.clone());
                self.dirty.services.extend(concerned);
            }
            self.peers.insert(peer.node.clone(), peer);
        }
        removed_networks.iter().for_each(|id| self.remove_network(id));
        for network in networks {
            self.dirty.networks.insert(network.id.clone());
            let known = self.networks.get(&network.id).map_or(&[] as &[_], |known| &known.subnets6);
            if known != network.subnets6 {
                // Its endpoints have other IPv6 addresses.
                let there = |s: &&ServiceView| s.network == network.id;
                let concerned = self.services.values().filter(there).map(|s| s.id.clone());
                self.dirty.services.extend(concerned);
            }
            self.networks.insert(network.id.clone(), network);
        }
        for mut block in blocks {
            block.block = block.block.trunc();
            self.remove_block(block.block);
            *self.leased.entry(block.network.clone()).or_default() += 1;
            self.dirty.networks.insert(block.network.clone());
            self.dirty.blocks.insert(block.block);
            self.blocks.insert(block.block, block);
        }
        for service in services {
            self.leave(&service.id, &service.endpoints);
            self.dirty.services.insert(service.id.clone());
            self.services.insert(service.id.clone(), service);
        }
    }

    /// What has to be looked at; nothing is left to look at.
    pub(crate) fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    /// It could not be done: the next change tries again.
    pub(crate) fn put_back(&mut self, dirty: Dirty) {
        self.dirty = dirty;
    }

    /// Whether an item is wanted.
    pub(crate) fn has(&self, item: &Item) -> bool {
        match item {
            Item::Service(id) => self.services.contains_key(id),
            Item::Network(name) => self.networks.contains_key(name) || self.leased.contains_key(name),
            Item::Block(block) => self.blocks.contains_key(block),
            Item::Peer(node) => self.peers.contains_key(node),
            Item::Ports(_) | Item::Several(_) => true,
        }
    }

    fn remove_service(&mut self, id: &str) {
        self.leave(id, &[]);
        self.services.remove(id);
        self.dirty.services.insert(id.to_owned());
    }

    /// Endpoints that a service no longer has: who talks to them by UDP has to find another.
    fn leave(&mut self, id: &str, staying: &[Endpoint]) {
        let staying: BTreeSet<_> = staying.iter().map(|e| e.address).collect();
        let before = self.services.get(id).into_iter().flat_map(|s| &s.endpoints);
        for endpoint in before.filter(|e| !staying.contains(&e.address)) {
            self.dirty.forget.entry(endpoint.address.into()).or_insert(Kind::Datagrams);
        }
    }

    fn remove_block(&mut self, block: Ipv4Net) {
        let Some(old) = self.blocks.remove(&block) else { return };
        self.dirty.blocks.insert(block);
        if let Some(count) = self.leased.get_mut(&old.network) {
            *count -= 1;
            if *count == 0 {
                self.leased.remove(&old.network);
            }
        }
        self.dirty.networks.insert(old.network);
    }

    fn remove_network(&mut self, id: &str) {
        if self.networks.remove(id).is_some() {
            self.dirty.networks.insert(id.to_owned());
        }
    }

    /// The network's own ranges, of all networks.
    pub(crate) fn subnets(&self) -> BTreeSet<Ipv4Net> {
        self.networks.values().flat_map(|network| &network.subnets).map(Ipv4Net::trunc).collect()
    }

    /// The ranges that stand beside each other because networks have IPv6 ranges of their own.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (Ipv4Net, Ipv6Net)> {
        self.networks.values().flat_map(Network::pairs)
    }

    /// Whether a network has no way out.
    pub(crate) fn is_internal(&self, network: &str) -> bool {
        self.networks.get(network).is_some_and(|network| network.internal)
    }

    fn remove_peer(&mut self, node: &str) {
        if self.peers.remove(node).is_none() {
            return;
        }
        self.dirty.peers.insert(node.to_owned());
        // Nobody there will answer: not even TCP has anything to end in peace.
        for block in self.blocks.values().filter(|block| block.node == node) {
            self.dirty.forget.insert(block.block, Kind::All);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(range: &str, network: &str, node: &str) -> Block {
        Block { block: range.parse().unwrap(), network: network.into(), node: node.into() }
    }

    fn service(id: &str, addresses: &[&str]) -> ServiceView {
        let endpoint = |a: &&str| Endpoint {
            id: (*a).into(),
            name: (*a).into(),
            address: a.parse().unwrap(),
            node: "n1".into(),
            weight: 100,
        };
        ServiceView {
            id: id.into(),
            name: id.into(),
            aliases: vec![],
            network: "default".into(),
            vip: None,
            sticky: false,
            ports: vec![],
            endpoints: addresses.iter().map(endpoint).collect(),
            guest: false,
            unready: Default::default(),
        }
    }

    #[test]
    fn a_full_change_drops_what_it_does_not_name() {
        let mut desired = Desired::default();
        let peers = vec![Peer {
            node: "n2".into(),
            underlay: [10, 0, 0, 2].into(),
            others: vec![],
            ipv6: vec![],
            encrypted: false,
            key: None,
        }];
        let blocks = vec![block("10.213.0.0/26", "a", "n2"), block("10.213.0.64/26", "b", "n1")];
        let services = vec![service("s", &["10.213.0.1", "10.213.0.2"])];
        desired.merge(Change { peers, blocks, services, ..Change::default() });
        desired.take_dirty();
        let blocks = vec![block("10.213.0.64/26", "b", "n1")];
        desired.merge(Change { full: true, blocks, ..Change::default() });
        let dirty = desired.take_dirty();
        assert!(desired.services.is_empty() && desired.peers.is_empty() && desired.blocks.len() == 1);
        assert!(!desired.has(&Item::Network("a".into())) && desired.has(&Item::Network("b".into())));
        assert!(dirty.services.contains("s") && dirty.peers.contains("n2"));
        assert!(dirty.networks.contains("a") && dirty.forget.len() == 2);
    }

    #[test]
    fn only_endpoints_that_left_are_forgotten_and_only_their_datagrams() {
        let mut desired = Desired::default();
        let change =
            |addresses: &[&str]| Change { services: vec![service("s", addresses)], ..Change::default() };
        desired.merge(change(&["10.213.0.1", "10.213.0.2"]));
        assert!(desired.take_dirty().forget.is_empty());
        desired.merge(change(&["10.213.0.2", "10.213.0.3"]));
        let forget = desired.take_dirty().forget;
        assert_eq!(
            forget.into_iter().collect::<Vec<_>>(),
            [("10.213.0.1/32".parse().unwrap(), Kind::Datagrams)]
        );
    }

    #[test]
    fn a_lost_node_counts_more_than_a_left_endpoint_and_order_does_not_matter() {
        let mut desired = Desired::default();
        desired.merge(Change {
            peers: vec![Peer {
                node: "n2".into(),
                underlay: [10, 0, 0, 2].into(),
                others: vec![],
                ipv6: vec![],
                encrypted: false,
                key: None,
            }],
            blocks: vec![block("10.213.0.0/26", "a", "n2")],
            ..Change::default()
        });
        desired.take_dirty();
        desired.merge(Change {
            removed_peers: vec!["n2".into()],
            removed_blocks: vec!["10.213.0.0/26".parse().unwrap()],
            ..Change::default()
        });
        assert_eq!(desired.take_dirty().forget.values().copied().collect::<Vec<_>>(), [Kind::All]);
        assert!(!desired.has(&Item::Network("a".into())));
    }
}
