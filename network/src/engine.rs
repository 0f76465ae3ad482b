//! The thread that owns the node's network. It reads one closed set of events, one after the other; changes that wait
//! at the same time are put together, so that ten of them cost one transaction.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::container::{self, Containers, Record};
use crate::desired::{Desired, Dirty};
use crate::dns::names::{Names, Owner};
use crate::error::Error;
use crate::fabric::GATEWAY;
use crate::host;
use crate::model::{
    Attach, Attachment, Block, Change, HostPort, LOCAL_NETWORK, NetworkOptions, PublishedPort,
};
use crate::naming;
use crate::netlink::{Netlink, conntrack, link, nftables};
use crate::nft;
use crate::publish;
use crate::random;
use crate::routes::{self, Routes};
use crate::ruleset::{Fixed, Item, Parts, Ruleset, Transaction, parts};

/// How many requests may wait. More than that is a caller gone wild.
const QUEUE: usize = 1024;
/// How many changes are put together at most.
const BATCH: usize = 256;
/// How often neighbours are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// The same, while a peer's Ethernet address is still unknown.
const LOOK_SOON: Duration = Duration::from_millis(20);

pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What the thread can be asked.
#[derive(Debug)]
pub(crate) enum Event {
    Attach(Attach, Reply<Attachment>),
    Detach(String, Reply<()>),
    Attached(Reply<Vec<Attachment>>),
    Apply(Change, Reply<()>),
    Teardown(Reply<()>),
}

/// Starts the thread in the caller's network namespace and waits until the node is set up.
pub(crate) async fn spawn(options: NetworkOptions, names: Arc<Names>) -> Result<SyncSender<Event>, Error> {
    let (events, queue) = sync_channel(QUEUE);
    let (ready, started) = oneshot::channel();
    let run = move || match Engine::start(options, names) {
        Ok(engine) => {
            // Nobody waits any more: the queue is closed too, and the thread ends at once.
            let _ = ready.send(Ok(()));
            engine.run(&queue);
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    };
    std::thread::Builder::new()
        .name("rorqual-network".to_owned())
        .spawn(run)
        .map_err(|source| Error::Namespace { operation: "start the network's thread".to_owned(), source })?;
    started.await.map_err(|_| Error::Stopped)??;
    Ok(events)
}

struct Engine {
    options: NetworkOptions,
    netlink: Netlink,
    nftables: Netlink,
    conntrack: Netlink,
    containers: Containers,
    routes: Routes,
    ruleset: Ruleset,
    desired: Desired,
    names: Arc<Names>,
    veth_prefix: String,
    torn_down: bool,
}

impl Engine {
    fn start(options: NetworkOptions, names: Arc<Names>) -> Result<Engine, Error> {
        let mut netlink = Netlink::route()?;
        let underlay = host::prepare(&mut netlink, options.underlay)?;
        let source = underlay.address.unwrap_or(GATEWAY);
        let state_dir: PathBuf = options.state_dir.clone();
        let short = random::digest(&options.node, 5);
        let (veth_prefix, tunnel) = (format!("rqc{short}"), format!("rqx{short}"));
        let containers = Containers::start(container::Settings {
            state_dir: state_dir.clone(),
            local_pool: options.local_pool,
            source,
            prefix: veth_prefix.clone(),
            mtu: options.mtu.unwrap_or(underlay.mtu),
        })?;
        let routes = Routes::start(routes::Settings {
            node: options.node.clone(),
            tunnel: tunnel.clone(),
            underlay: options.underlay,
            underlay_mtu: underlay.mtu,
            source,
            pools: vec![options.cluster_pool, options.vip_pool, options.local_pool],
            state_dir: &state_dir,
        })?;
        let ruleset = Ruleset::new(Fixed {
            table: format!("rorqual_{}", options.node.replace('-', "_")),
            veth_prefix: veth_prefix.clone(),
            tunnel,
            tunnel_port: routes::TUNNEL_PORT,
            guarded_ports: options.guarded_ports.clone(),
            cluster_pool: options.cluster_pool,
            vip_pool: options.vip_pool,
            local_pool: options.local_pool,
        });
        let mut engine = Engine {
            desired: Desired::default(),
            nftables: nftables::open()?,
            conntrack: conntrack::open()?,
            options,
            netlink,
            containers,
            routes,
            ruleset,
            names,
            veth_prefix,
            torn_down: false,
        };
        engine.take_over()?;
        Ok(engine)
    }

    /// Names and ports of the containers that are there. A table of an earlier process keeps balancing as it is
    /// until the first full change; without one the fixed part is set up.
    fn take_over(&mut self) -> Result<(), Error> {
        let mut changes = BTreeMap::new();
        for record in self.containers.records() {
            naming::announce(&self.names, record);
            changes.extend(self.container_changes(record));
        }
        changes.retain(|_, parts| parts.is_some());
        let transaction = if nft::has_table(self.ruleset.table())? {
            self.ruleset.change(changes)
        } else {
            self.ruleset.replace(changes)
        };
        self.commit(transaction)
    }

    fn run(mut self, queue: &Receiver<Event>) {
        let mut waiting = None;
        while !self.torn_down {
            let event = match waiting.take() {
                Some(event) => event,
                None => match queue.recv_timeout(self.look_in()) {
                    Ok(event) => event,
                    Err(RecvTimeoutError::Timeout) => {
                        if let Err(error) = self.look() {
                            tracing::warn!(%error, "cannot look after the neighbours");
                        }
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                },
            };
            // Whoever does not wait for the answer any more does not need it: a closed reply is fine.
            match event {
                Event::Attach(attach, reply) => drop(reply.send(self.attach(attach))),
                Event::Detach(id, reply) => drop(reply.send(self.detach(&id))),
                Event::Attached(reply) => drop(reply.send(Ok(self.attached()))),
                Event::Teardown(reply) => drop(reply.send(self.teardown())),
                Event::Apply(change, reply) => {
                    let mut batch = vec![(change, reply)];
                    while batch.len() < BATCH
                        && let Ok(event) = queue.try_recv()
                    {
                        match event {
                            Event::Apply(change, reply) => batch.push((change, reply)),
                            other => {
                                waiting = Some(other);
                                break;
                            }
                        }
                    }
                    self.apply(batch);
                }
            }
        }
    }

    fn look_in(&self) -> Duration {
        match self.routes.unresolved() {
            Some(true) => LOOK_SOON,
            Some(false) => LOOK,
            None => Duration::from_secs(3600),
        }
    }

    /// Finds Ethernet addresses of peers that are new or have changed.
    fn look(&mut self) -> Result<(), Error> {
        let peers = self.routes.look()?;
        let changes = peers.iter().map(|node| (Item::Peer(node.clone()), self.peer_parts(node))).collect();
        self.transact(changes, false)
    }

    fn attached(&self) -> Vec<Attachment> {
        self.containers.records().map(|record| self.containers.describe(record)).collect()
    }

    fn attach(&mut self, attach: Attach) -> Result<Attachment, Error> {
        attach.validate(&self.options)?;
        let id = attach.id.clone();
        let known = self.containers.get(&id).map(|r| r.attach.ports.clone()).unwrap_or_default();
        for port in attach.ports.iter().filter(|port| !known.contains(port)) {
            self.check_host_port(&id, port)?;
        }
        let before = self.containers.get(&id).cloned();
        let record = self.containers.attach(attach)?;
        let mut changes = self.container_changes(&record);
        let left = before.iter().flat_map(|before| &before.attach.networks).map(|join| join.network.as_str());
        changes.extend(self.network_changes(left));
        if let Err(error) = self.transact(changes, false) {
            let undone = if before.is_some() { Ok(None) } else { self.containers.detach(&id) };
            return Err(match undone {
                Ok(_) => error,
                Err(other) => Error::Many(vec![error, other]),
            });
        }
        if let Some(before) = &before {
            self.withdraw(before, &record)?;
        }
        naming::announce(&self.names, &record);
        Ok(self.containers.describe(&record))
    }

    /// Addresses that a container had and has no more: who asks from them, and connections that are left.
    fn withdraw(&mut self, before: &Record, now: &Record) -> Result<(), Error> {
        let stays = |address: &Ipv4Addr| now.interfaces.iter().any(|i| i.address == *address);
        let gone: Vec<Ipv4Addr> =
            before.interfaces.iter().map(|i| i.address).filter(|address| !stays(address)).collect();
        self.names.remove_client(&gone);
        let mut errors = Vec::new();
        for address in gone {
            errors.extend(conntrack::forget(&mut self.conntrack, address.into(), conntrack::Kind::All).err());
        }
        Error::all(errors)
    }

    /// What a container has in the table, and the networks that this leads to.
    fn container_changes(&self, record: &Record) -> BTreeMap<Item, Option<Parts>> {
        let id = &record.attach.id;
        let ports = record.address().filter(|_| !record.attach.ports.is_empty());
        let ports = ports.map(|address| parts::host_ports(address, &record.attach.ports));
        let networks: Vec<(&str, Ipv4Addr)> =
            record.interfaces.iter().map(|i| (i.network.as_str(), i.address)).collect();
        let several = (networks.len() > 1)
            .then(|| parts::several(id, &networks, |network| self.desired.is_internal(network)));
        let mut changes = match several {
            // A rule may lead to the network's set before anything else does.
            Some(_) => self.network_changes(networks.iter().map(|(network, _)| *network)),
            None => BTreeMap::new(),
        };
        changes.insert(Item::Ports(id.clone()), ports);
        changes.insert(Item::Several(id.clone()), several);
        changes
    }

    /// Networks in the table: those that are wanted, and those that a container of this node is in already.
    fn network_changes<'a>(&self, names: impl Iterator<Item = &'a str>) -> BTreeMap<Item, Option<Parts>> {
        let mut changes = BTreeMap::new();
        for name in names.filter(|name| *name != LOCAL_NETWORK) {
            let item = Item::Network(name.to_owned());
            let used = self.desired.has(&item) || self.containers.any_in(name);
            let parts = used.then(|| parts::network(name, self.desired.networks.get(name)));
            changes.insert(item, parts);
        }
        changes
    }

    fn check_host_port(&self, id: &str, port: &HostPort) -> Result<(), Error> {
        let HostPort { published: number, protocol, address, .. } = *port;
        if let Some(address) = address.filter(|address| !host::has_address(*address).unwrap_or(true)) {
            return Err(Error::Invalid {
                field: "attach.ports.address",
                value: address.to_string(),
                expected: "expected an address that this node has",
            });
        }
        let service = self.ruleset.publisher((protocol, number, address), &Item::Ports(id.to_owned()));
        let container = self.containers.with_port(number, protocol, address).filter(|other| *other != id);
        let holder = container.map(|id| format!("container {id}")).or(service.map(describe));
        if let Some(holder) = holder {
            return Err(Error::PortConflict { port: number, protocol, holder });
        }
        match host::port_taken(number, protocol, address)? {
            None => Ok(()),
            Some(holder) => Err(Error::PortTaken { port: number, protocol, holder }),
        }
    }

    fn detach(&mut self, id: &str) -> Result<(), Error> {
        let Some(record) = self.containers.get(id).cloned() else { return Ok(()) };
        let items = [Item::Ports(id.to_owned()), Item::Several(id.to_owned())];
        self.transact(items.into_iter().map(|item| (item, None)).collect(), false)?;
        self.names.remove(&Owner::Container(id.to_owned()));
        let addresses: Vec<Ipv4Addr> = record.interfaces.iter().map(|i| i.address).collect();
        self.names.remove_client(&addresses);
        self.containers.detach(id)?;
        let left = self.network_changes(record.interfaces.iter().map(|i| i.network.as_str()));
        self.transact(left, false)
    }

    /// Puts the valid changes together, brings the kernel up to date in one go, and answers everyone.
    fn apply(&mut self, batch: Vec<(Change, Reply<()>)>) {
        let mut callers = Vec::new();
        for (change, reply) in batch {
            if let Err(error) = change.validate(&self.options) {
                drop(reply.send(Err(error)));
                continue;
            }
            let services: Vec<String> = change.services.iter().map(|s| s.id.clone()).collect();
            self.desired.merge(change);
            callers.push((services, reply));
        }
        if callers.is_empty() {
            return;
        }
        let dirty = self.desired.take_dirty();
        let mut admitted =
            publish::admit(dirty.services.iter(), &self.desired, &self.ruleset, &self.containers);
        let failure = match self.bring_up_to_date(&dirty, &admitted.ports) {
            Ok(()) => None,
            Err(error) => {
                self.desired.put_back(dirty);
                Some(Arc::new(error))
            }
        };
        for (services, reply) in callers {
            let mut errors: Vec<Error> =
                services.iter().flat_map(|id| admitted.errors.remove(id).unwrap_or_default()).collect();
            errors.extend(failure.iter().map(|source| Error::Apply { source: Arc::clone(source) }));
            drop(reply.send(Error::all(errors)));
        }
    }

    fn bring_up_to_date(
        &mut self,
        dirty: &Dirty,
        ports: &BTreeMap<String, Vec<PublishedPort>>,
    ) -> Result<(), Error> {
        let mut errors = Vec::new();
        let mut removals = Vec::new();
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
            let parts = service.map(|service| parts::service(service, ports, &self.options.node));
            changes.insert(Item::Service(id.clone()), parts);
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
        for (range, kind) in &dirty.forget {
            errors.extend(conntrack::forget(&mut self.conntrack, *range, *kind).err());
        }
        Error::all(errors)
    }

    fn routing_changes(&self, dirty: &Dirty) -> BTreeMap<Item, Option<Parts>> {
        let mut changes = BTreeMap::new();
        let underlay = |node: &str| self.routes.peer(node).map(|(underlay, ..)| underlay);
        let block_parts = |block: &Block| {
            parts::block(block, underlay(&block.node), self.desired.networks.get(&block.network))
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

    fn peer_parts(&self, node: &str) -> Option<Parts> {
        self.routes.peer(node).map(|(underlay, mac, number)| parts::peer(underlay, mac, number))
    }

    /// Runs one transaction. A table that is not as it was left is replaced as a whole.
    fn transact(&mut self, changes: BTreeMap<Item, Option<Parts>>, full: bool) -> Result<(), Error> {
        if full && !self.ruleset.is_exact() {
            let transaction = self.ruleset.replace(changes);
            return self.commit(transaction);
        }
        let transaction = self.ruleset.change(changes.clone());
        match self.commit(transaction) {
            Err(error @ Error::Nft { .. }) if self.ruleset.is_exact() => {
                tracing::warn!(%error, "the table is not as it was left; replacing it");
                let transaction = self.ruleset.replace(changes);
                self.commit(transaction)
            }
            outcome => outcome,
        }
    }

    /// Without the `nft` program where that can be: what it does costs more than what the kernel does.
    fn commit(&mut self, transaction: Transaction) -> Result<(), Error> {
        if !transaction.is_empty() {
            match transaction.requests() {
                Some(requests) => nftables::transact(&mut self.nftables, requests)?,
                None => nft::run(&transaction.script())?,
            }
        }
        self.ruleset.commit(transaction);
        Ok(())
    }

    fn rename(&self, dirty: &Dirty) {
        for network in &dirty.networks {
            self.names.set_internal(network, self.desired.is_internal(network));
        }
        for id in &dirty.services {
            let owner = Owner::Service(id.clone());
            let Some(service) = self.desired.services.get(id) else {
                self.names.remove(&owner);
                continue;
            };
            self.names.set(owner, naming::of_service(service));
        }
    }

    /// Goes on after an error, so that as much as possible is gone.
    fn teardown(&mut self) -> Result<(), Error> {
        self.torn_down = true;
        let mut errors = Vec::new();
        errors.extend(self.containers.teardown().err());
        let table = self.ruleset.table();
        errors.extend(nft::run(&format!("add table inet {table}\ndelete table inet {table}\n")).err());
        errors.extend(self.routes.teardown().err());
        errors.extend(self.remove_links().err());
        errors.extend(host::release(&mut self.netlink).err());
        Error::all(errors)
    }

    /// Links of containers and of prepared namespaces. Those of the pool go with its namespaces, but not at once.
    fn remove_links(&mut self) -> Result<(), Error> {
        self.containers.close_pool();
        let links = link::list(&mut self.netlink)?;
        let ours = links.iter().filter(|l| l.name.starts_with(&self.veth_prefix));
        let requests = ours.map(|l| link::delete(&l.name)).collect();
        self.netlink.run(requests)
    }
}

/// An item in words for people.
fn describe(item: &Item) -> String {
    match item {
        Item::Service(id) => format!("service {id}"),
        Item::Ports(id) | Item::Several(id) => format!("container {id}"),
        Item::Network(name) | Item::Peer(name) => name.clone(),
        Item::Block(block) => block.to_string(),
    }
}
