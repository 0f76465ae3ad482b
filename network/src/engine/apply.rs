//! Brings the kernel up to date with what changes say of peers, blocks, networks and services.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Engine, Reply};
use crate::desired::Dirty;
use crate::dns::names::Owner;
use crate::error::Error;
use crate::model::{Block, Change, PublishedPort};
use crate::naming;
use crate::netlink::conntrack;
use crate::publish;
use crate::ruleset::{Item, parts};

impl Engine {
    /// Puts what is valid of the changes together, brings the kernel up to date in one go, and answers everyone.
    pub(super) fn apply(&mut self, batch: Vec<(Change, Reply<()>)>) {
        let mut callers = Vec::new();
        for (mut change, reply) in batch {
            let left_out = change.sift(&self.options);
            let services: Vec<String> = change.services.iter().map(|s| s.id.clone()).collect();
            self.desired.merge(change);
            callers.push((services, left_out, reply));
        }
        let dirty = self.desired.take_dirty();
        self.told |= dirty.full;
        let mut admitted = publish::admit(
            dirty.services.iter(),
            &self.desired,
            &self.ruleset,
            &self.containers,
            &self.options.node,
        );
        let failure = match self.bring_up_to_date(&dirty, &admitted.ports) {
            Ok(()) => None,
            Err(error) => {
                self.desired.put_back(dirty);
                Some(Arc::new(error))
            }
        };
        for (services, mut errors, reply) in callers {
            errors.extend(services.iter().flat_map(|id| admitted.errors.remove(id).unwrap_or_default()));
            errors.extend(failure.iter().map(|source| Error::Apply { source: Arc::clone(source) }));
            drop(reply.send(Error::all(errors)));
        }
    }

    fn bring_up_to_date(
        &mut self,
        dirty: &Dirty,
        ports: &BTreeMap<String, Vec<PublishedPort>>,
    ) -> Result<(), Error> {
        self.wait_for_what_comes(dirty);
        let mut errors = Vec::new();
        let mut removals = Vec::new();
        if dirty.full || !dirty.peers.is_empty() {
            self.seal()?;
        }
        let before = self.twins.clone();
        if dirty.full || !dirty.networks.is_empty() {
            self.twins.set_own(self.desired.pairs());
            self.routes.set_twins(self.twins.clone());
        }
        if dirty.routing() {
            let (later, failed) = self.routes.update(&self.desired.peers, &self.desired.blocks);
            removals = later;
            errors.extend(failed);
            match self.routes.set_subnets(self.desired.subnets()) {
                Ok(gone) => removals.extend(gone),
                Err(error) => errors.push(error),
            }
            // An address that the kernel knows already spares a second transaction.
            errors.extend(self.routes.look().err());
        }
        let mut changes = self.routing_changes(dirty);
        for id in &dirty.services {
            let ports = ports.get(id).map(Vec::as_slice).unwrap_or_default();
            let service = self.desired.services.get(id);
            let item = Item::Service(id.clone());
            let parts = service.map(|service| {
                let before = |map: &str| self.ruleset.places(&item, map);
                let twin = |endpoint: &crate::model::Endpoint| self.twin(endpoint);
                parts::service(service, ports, &self.options.node, &self.twins, twin, before)
            });
            changes.insert(item, parts);
        }
        if dirty.full {
            let used = |item: &Item| match item {
                Item::Network(name) => self.desired.has(item) || self.containers.any_in(name),
                _ => self.desired.has(item),
            };
            let gone: Vec<Item> = self.ruleset.items().filter(|item| !used(item)).cloned().collect();
            changes.extend(gone.into_iter().map(|item| (item, None)));
        }
        self.transact(changes, dirty.full)?;
        self.rename(dirty);
        errors.extend(self.routes.remove(removals).err());
        let both = |(range, kind): (&ipnet::Ipv4Net, &conntrack::Kind)| {
            let kind = *kind;
            // What a network had that is gone, too.
            let former =
                before.of_range(*range).filter(|range6| self.twins.of_range(*range) != Some(*range6));
            self.twins.both_ranges(*range).chain(former.map(Into::into)).map(move |range| (range, kind))
        };
        // The rules lead there no more: only now nothing comes back.
        self.forgetter.ask(dirty.forget.iter().flat_map(both));
        Error::all(errors)
    }

    /// An endpoint or a node that left a moment ago and is back already gets new connections: they must not be forgotten with
    /// the old. It happens seldom, so the thread may stand still for it. Where the kernel forgets nothing there
    /// is nothing to wait for: whoever is back is of more use than the old connections do harm.
    fn wait_for_what_comes(&self, dirty: &Dirty) {
        if self.forgetter.is_idle() {
            return;
        }
        let desired = &self.desired;
        let services = dirty.services.iter().filter_map(|id| desired.services.get(id));
        let endpoints = services.flat_map(|service| &service.endpoints).map(|e| IpNet::V4(e.address.into()));
        let comes = |block: &&Block| {
            desired.peers.contains_key(&block.node)
                && (dirty.blocks.contains(&block.block) || dirty.peers.contains(&block.node))
        };
        let blocks = desired.blocks.values().filter(comes).map(|block| IpNet::V4(block.block));
        drop(self.forgetter.wait_for(&endpoints.chain(blocks).collect::<Vec<_>>()));
    }

    fn rename(&self, dirty: &Dirty) {
        for network in &dirty.networks {
            self.names.set_internal(network, self.desired.is_internal(network));
            let known = self.desired.networks.get(network);
            self.names.set_ipv6(network, known.is_some_and(|network| network.ipv6_names));
        }
        for id in &dirty.services {
            let Some(service) = self.desired.services.get(id) else {
                self.names.remove(&Owner::Service(id.clone()));
                self.names.remove(&Owner::Guest(id.clone()));
                continue;
            };
            let (owner, entries) = naming::of_service(service, &self.twins, |endpoint| self.twin(endpoint));
            self.names.set(owner.clone(), entries);
            if let Some((called, offer)) = naming::offer_of(service) {
                self.names.set_offer(&owner, &service.network, &called, offer);
            }
        }
    }
}
