//! The thread that owns the node's network. It reads one closed set of events, one after the other; changes that wait
//! at the same time are put together, so that ten of them cost one transaction.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::container::{self, Containers, Record};
use crate::desired::{Desired, Dirty};
use crate::dns::names::{Entry, Names, Owner};
use crate::error::Error;
use crate::fabric::GATEWAY;
use crate::host;
use crate::model::{Attach, Attachment, Change, HostPort, NetworkOptions, PublishedPort};
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
            announce(&self.names, record);
            if !record.attach.ports.is_empty() {
                changes.insert(Item::Ports(record.attach.id.clone()), Some(port_parts(record)));
            }
        }
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
        let was_there = self.containers.get(&id).is_some();
        let record = self.containers.attach(attach)?;
        if !record.attach.ports.is_empty() || !known.is_empty() {
            let parts = (!record.attach.ports.is_empty()).then(|| port_parts(&record));
            if let Err(error) = self.transact(BTreeMap::from([(Item::Ports(id.clone()), parts)]), false) {
                let undone = if was_there { Ok(None) } else { self.containers.detach(&id) };
                return Err(match undone {
                    Ok(_) => error,
                    Err(other) => Error::Many(vec![error, other]),
                });
            }
        }
        announce(&self.names, &record);
        Ok(self.containers.describe(&record))
    }

    fn check_host_port(&self, id: &str, port: &HostPort) -> Result<(), Error> {
        let HostPort { published: number, protocol, address, .. } = *port;
        let service =
            self.ruleset.holder(&parts::published_at(number, protocol), &Item::Ports(id.to_owned()));
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
        if !record.attach.ports.is_empty() {
            self.transact(BTreeMap::from([(Item::Ports(id.to_owned()), None)]), false)?;
        }
        self.names.remove(&Owner::Container(id.to_owned()));
        self.names.remove_client(record.address);
        self.containers.detach(id)?;
        Ok(())
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
            let gone: Vec<Item> = self.ruleset.items().filter(|i| !self.desired.has(i)).cloned().collect();
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
        for block in &dirty.blocks {
            let parts = self.desired.blocks.get(block).map(|b| parts::block(b, underlay(&b.node)));
            changes.insert(Item::Block(*block), parts);
        }
        for node in &dirty.peers {
            changes.insert(Item::Peer(node.clone()), self.peer_parts(node));
            for block in self.desired.blocks.values().filter(|b| b.node == *node) {
                changes.insert(Item::Block(block.block), Some(parts::block(block, underlay(node))));
            }
        }
        let NetworkOptions { cluster_pool, vip_pool, local_pool, .. } = self.options;
        for name in &dirty.networks {
            let used = self.desired.has(&Item::Network(name.clone()));
            let parts = used.then(|| parts::network(name, cluster_pool, vip_pool, local_pool));
            changes.insert(Item::Network(name.clone()), parts);
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
        for id in &dirty.services {
            let owner = Owner::Service(id.clone());
            let Some(service) = self.desired.services.get(id) else {
                self.names.remove(&owner);
                continue;
            };
            let all: Vec<_> = service.endpoints.iter().map(|e| e.address).collect();
            let named = |endpoint: &crate::model::Endpoint| Entry {
                name: endpoint.name.clone(),
                addresses: vec![endpoint.address],
            };
            let mut entries: Vec<Entry> = service.endpoints.iter().map(named).collect();
            entries.push(Entry { name: format!("tasks.{}", service.name), addresses: all.clone() });
            let addresses = service.vip.map_or(all, |vip| vec![vip]);
            entries.push(Entry { name: service.name.clone(), addresses });
            self.names.set(owner, &service.network, entries);
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

fn port_parts(record: &Record) -> Parts {
    parts::host_ports(record.address, &record.attach.ports)
}

/// Makes a container known to the resolver.
fn announce(names: &Names, record: &Record) {
    let Attach { id, name, network, .. } = &record.attach;
    let entry = Entry { name: name.clone(), addresses: vec![record.address] };
    names.set(Owner::Container(id.clone()), network, vec![entry]);
    names.set_client(record.address, network);
}

/// An item in words for people.
fn describe(item: &Item) -> String {
    match item {
        Item::Service(id) => format!("service {id}"),
        Item::Ports(id) => format!("container {id}"),
        Item::Network(name) | Item::Peer(name) => name.clone(),
        Item::Block(block) => block.to_string(),
    }
}
