//! What the engine's state means for the table, how transactions get to the kernel, and what is done when the table is not
//! as it was left.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use super::Engine;
use crate::container::Record;
use crate::desired::Dirty;
use crate::error::Error;
use crate::model::{Block, Endpoint, LOCAL_NETWORK};
use crate::netlink::nftables;
use crate::nft;
use crate::ruleset::{Item, Parts, Transaction, parts};

impl Engine {
    /// Runs one transaction. A table that is not as it was left is replaced as a whole; one that an earlier process left
    /// as it has to be stays as it is.
    pub(super) fn transact(
        &mut self,
        changes: BTreeMap<Item, Option<Parts>>,
        full: bool,
    ) -> Result<(), Error> {
        if full && !self.ruleset.is_exact() {
            let transaction = self.ruleset.replace(changes);
            return self.make_so(transaction).map(|_| ());
        }
        let transaction = self.ruleset.change(changes.clone());
        match self.commit(transaction) {
            Err(error @ Error::Nft { .. }) if self.ruleset.is_exact() => {
                tracing::warn!(%error, "the table is not as it was left; replacing it");
                let transaction = self.ruleset.replace(changes);
                self.commit(transaction)
            }
            // What was taken over is not there: it is set, and then changed.
            Err(Error::Nft { .. }) => {
                let known = self.ruleset.again();
                self.commit(known)?;
                let transaction = self.ruleset.change(changes);
                self.commit(transaction)
            }
            outcome => outcome,
        }
    }

    /// Runs a transaction that makes the table anew, unless the table is what it would become. Says whether it was
    /// not.
    pub(super) fn make_so(&mut self, transaction: Transaction) -> Result<bool, Error> {
        let right = nft::is_made_by(&transaction.script(), self.ruleset.table()).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot tell whether the table is right; replacing it");
            false
        });
        if right {
            self.ruleset.commit(transaction);
        } else {
            self.commit(transaction)?;
        }
        Ok(!right)
    }

    /// Without the `nft` program where that can be: what it does costs more than what the kernel does.
    pub(super) fn commit(&mut self, transaction: Transaction) -> Result<(), Error> {
        if !transaction.is_empty() {
            match transaction.requests() {
                Some(requests) => nftables::transact(&mut self.nftables, requests)?,
                None => nft::run_known(&transaction.script(), |pid| self.changes.expect_nft(pid))?,
            }
        }
        self.ruleset.commit(transaction);
        Ok(())
    }

    /// What a container has in the table, and the networks that this leads to.
    pub(super) fn container_changes(&self, record: &Record) -> BTreeMap<Item, Option<Parts>> {
        let id = &record.attach.id;
        let first = record.interfaces.first().filter(|_| !record.attach.ports.is_empty());
        let ports = first
            .map(|first| parts::host_ports(&first.addresses().collect::<Vec<_>>(), &record.attach.ports));
        let networks: Vec<parts::Place<'_>> =
            record.interfaces.iter().map(|i| (i.network.as_str(), i.address, i.address6)).collect();
        let several = (networks.len() > 1)
            .then(|| parts::several(id, &networks, |network| self.desired.is_internal(network)));
        let mut changes = match several {
            // A rule may lead to the network's set before anything else does.
            Some(_) => self.network_changes(networks.iter().map(|(network, ..)| *network)),
            None => BTreeMap::new(),
        };
        changes.insert(Item::Ports(id.clone()), ports);
        changes.insert(Item::Several(id.clone()), several);
        changes
    }

    /// Networks in the table: those that are wanted, and those that a container of this node is in already.
    pub(super) fn network_changes<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
    ) -> BTreeMap<Item, Option<Parts>> {
        let mut changes = BTreeMap::new();
        for name in names.filter(|name| *name != LOCAL_NETWORK) {
            let item = Item::Network(name.to_owned());
            let used = self.desired.has(&item) || self.containers.any_in(name);
            let parts = used.then(|| parts::network(name, self.desired.networks.get(name), &self.twins));
            changes.insert(item, parts);
        }
        changes
    }

    pub(super) fn routing_changes(&self, dirty: &Dirty) -> BTreeMap<Item, Option<Parts>> {
        let mut changes = BTreeMap::new();
        let block_parts = |block: &Block| {
            let node = self.addresses_of(&block.node);
            parts::block(block, &node, self.desired.networks.get(&block.network), &self.twins)
        };
        for block in &dirty.blocks {
            changes.insert(Item::Block(*block), self.desired.blocks.get(block).map(block_parts));
        }
        for node in &dirty.peers {
            changes.insert(Item::Peer(node.clone()), self.peer_parts(node));
            for block in self.desired.blocks.values().filter(|b| b.node == *node) {
                changes.insert(Item::Block(block.block), Some(block_parts(block)));
            }
        }
        if dirty.networks.is_empty() {
            return changes;
        }
        changes.extend(self.network_changes(dirty.networks.iter().map(String::as_str)));
        for block in self.desired.blocks.values().filter(|b| dirty.networks.contains(&b.network)) {
            changes.insert(Item::Block(block.block), Some(block_parts(block)));
        }
        let inside = |record: &&Record| record.interfaces.iter().any(|i| dirty.networks.contains(&i.network));
        for record in self.containers.records().filter(inside) {
            changes.extend(self.container_changes(record));
        }
        changes
    }

    /// A peer that is not reached, since no way leads there or since it can't be encrypted, is closed to containers all
    /// the same.
    pub(super) fn peer_parts(&self, node: &str) -> Option<Parts> {
        let mac = self.routes.peer(node).and_then(|(_, mac)| mac);
        Some(parts::peer(self.desired.peers.get(node)?, mac, self.routes.number_of(node)?))
    }

    /// Those of a peer's machine; none of the node itself.
    fn addresses_of(&self, node: &str) -> Vec<IpAddr> {
        let Some((underlay, _)) = self.routes.peer(node) else { return Vec::new() };
        let ipv6 = self.desired.peers.get(node).map(|peer| peer.ipv6.as_slice()).unwrap_or_default();
        std::iter::once(underlay.into()).chain(ipv6.iter().copied().map(IpAddr::from)).collect()
    }

    /// The IPv6 address of an endpoint, where its node has IPv6.
    pub(super) fn twin(&self, endpoint: &Endpoint) -> Option<Ipv6Addr> {
        let has = endpoint.node == self.options.node
            || self.desired.peers.get(&endpoint.node).is_some_and(|peer| {
                self.twins.of(peer.underlay).is_some_and(|twin| peer.ipv6.contains(&twin))
            });
        has.then(|| self.twins.of(endpoint.address)).flatten()
    }
}
