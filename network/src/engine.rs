//! The thread that owns the node's network. It reads one closed set of events, one after the other; changes that wait
//! at the same time are put together, so that ten of them cost one transaction.

mod apply;
mod forget;
mod mend;
mod survey;
mod table;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net};
use tokio::sync::oneshot;

use self::forget::Forgetter;
use crate::container::{self, Containers, Record};
use crate::desired::Desired;
use crate::dns::names::{Names, Owner};
use crate::encryption::{Sealing, Told};
use crate::error::Error;
use crate::fabric::GATEWAY;
use crate::host;
use crate::interface::Interface;
use crate::model::{Attach, Attachment, Change, HostPort, NetworkOptions};
use crate::naming;
use crate::netlink::{Netlink, conntrack, link, nftables};
use crate::nft;
use crate::random;
use crate::reconcile::{Patience, Rounds};
use crate::routes::{self, Routes};
use crate::ruleset::{Fixed, Item, Ruleset};
use crate::survey::Survey;
use crate::twins::Twins;
use crate::watch::{self, Changes, Kinds, Watch};

/// How many requests may wait here. More of them wait with whoever makes them: each container of a node may have one.
pub(crate) const QUEUE: usize = 1024;
/// How many changes are put together at most.
pub(crate) const BATCH: usize = 256;

pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What the thread can be asked.
#[derive(Debug)]
pub(crate) enum Event {
    Attach(Attach, Reply<Attachment>),
    Detach(String, Reply<()>),
    Attached(Reply<Vec<Attachment>>),
    Apply(Change, Reply<()>),
    /// Answered when the connections of all that is gone are forgotten.
    Forgotten(Reply<()>),
    Teardown(Reply<()>),
    Survey(Reply<Survey>),
    /// Somebody changed something: [`Changes`] tells what.
    Changed,
}

/// Starts the thread in the caller's network namespace and waits until the node is set up.
pub(crate) async fn spawn(
    options: NetworkOptions,
    names: Arc<Names>,
    told: Told,
) -> Result<Arc<SyncSender<Event>>, Error> {
    let (events, queue) = sync_channel(QUEUE);
    let events = Arc::new(events);
    let (ready, started) = oneshot::channel();
    // Only handles keep the queue open.
    let wake = Arc::downgrade(&events);
    let run = move || match Engine::start(options, names, told, wake, queue) {
        Ok(engine) => {
            // Nobody waits any more: the queue is closed too, and the thread ends at once.
            let _ = ready.send(Ok(()));
            engine.run();
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
    forgetter: Forgetter,
    containers: Containers,
    routes: Routes,
    sealing: Sealing,
    ruleset: Ruleset,
    desired: Desired,
    names: Arc<Names>,
    twins: Twins,
    veth_prefix: String,
    /// The first full change has come: what is not wanted is not only not known yet.
    told: bool,
    changes: Arc<Changes>,
    /// What was changed and not looked at yet.
    suspect: Kinds,
    rounds: Rounds,
    /// When peers whose Ethernet address is unknown are asked for it again.
    ask_at: Option<Instant>,
    patience: Patience,
    /// Ends with the engine.
    _watch: Watch,
    torn_down: bool,
    queue: Receiver<Event>,
    /// What was taken from the queue and is not done yet.
    waiting: VecDeque<Event>,
}

impl Engine {
    fn start(
        options: NetworkOptions,
        names: Arc<Names>,
        told: Told,
        wake: Weak<SyncSender<Event>>,
        queue: Receiver<Event>,
    ) -> Result<Engine, Error> {
        let mut netlink = Netlink::route()?;
        let underlay = host::prepare(&mut netlink, options.underlay)?;
        let source = underlay.address.unwrap_or(GATEWAY);
        let twins = Twins::new(host::uses_ipv6(&underlay), options.ipv6, options.local_pool);
        if !twins.on() {
            tracing::info!(
                "containers have no IPv6 here: the kernel has none, or it is turned off (disable_ipv6 of all, lo or the \
                 interface to the other nodes)"
            );
        }
        host::give_addresses(&mut netlink, options.underlay, &twins)?;
        let state_dir: PathBuf = options.state_dir.clone();
        let short = random::digest(&options.node, 5);
        let [veth_prefix, tunnel, sealed] = ["rqc", "rqx", "rqw"].map(|kind| format!("{kind}{short}"));
        let containers = Containers::start(container::Settings {
            state_dir: state_dir.clone(),
            local_pool: options.local_pool,
            source,
            twins: twins.clone(),
            prefix: veth_prefix.clone(),
            mtu: options.mtu.unwrap_or(underlay.mtu),
            prepared: options.prepared,
        })?;
        let routes = Routes::start(routes::Settings {
            node: options.node.clone(),
            tunnel: tunnel.clone(),
            underlay: options.underlay,
            underlay_mtu: underlay.mtu,
            source,
            twins: twins.clone(),
            pools: vec![options.cluster_pool, options.vip_pool, options.local_pool],
            state_dir: &state_dir,
        })?;
        let sealing = Sealing::new(sealed, options.underlay, underlay.mtu, &state_dir, told)?;
        let ruleset = Ruleset::new(Fixed {
            table: format!("rorqual_{}", options.node.replace('-', "_")),
            veth_prefix: veth_prefix.clone(),
            tunnel,
            tunnel_port: routes::TUNNEL_PORT,
            sealed: None,
            guarded_ports: options.guarded_ports.clone(),
            cluster_pool: options.cluster_pool,
            vip_pool: options.vip_pool,
            local_pool: options.local_pool,
            twins: twins.clone(),
        });
        let nftables = nftables::open()?;
        let changes = Arc::new(Changes::default());
        let mut own = containers.ports()?;
        own.extend([netlink.port()?, routes.port()?, sealing.port()?]);
        let settings = watch::Settings {
            own,
            own_nftables: nftables.port()?,
            table: ruleset.table().to_owned(),
            folders: host::setting_folders(&underlay),
            changes: Arc::clone(&changes),
        };
        let watch = Watch::start(settings, move || {
            // A full queue is one in which somebody reads.
            if let Some(events) = wake.upgrade() {
                let _ = events.try_send(Event::Changed);
            }
        })?;
        let mut table = conntrack::open()?;
        let forgetter = Forgetter::start(move |ranges| conntrack::forget(&mut table, ranges))?;
        let mut engine = Engine {
            desired: Desired::default(),
            nftables,
            forgetter,
            options,
            netlink,
            containers,
            routes,
            sealing,
            ruleset,
            names,
            twins,
            veth_prefix,
            told: false,
            changes,
            suspect: Kinds::NOTHING,
            rounds: Rounds::new(Instant::now()),
            ask_at: None,
            patience: Patience::default(),
            _watch: watch,
            torn_down: false,
            queue,
            waiting: VecDeque::new(),
        };
        engine.mend(Instant::now(), true)?;
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
        if nft::has_table(self.ruleset.table())? {
            self.ruleset.take_over(nft::places(self.ruleset.table())?);
            let as_it_should_be = self.ruleset.change(changes);
            self.ruleset.commit(as_it_should_be);
            return Ok(());
        }
        let transaction = self.ruleset.replace(changes);
        self.commit(transaction)
    }

    /// Changes go first: an endpoint that is gone must not wait for a hundred containers that start or end.
    fn run(mut self) {
        while !self.torn_down {
            let look_in = self.make_rounds(Instant::now());
            if self.waiting.is_empty() {
                // Who wakes us may have come while we looked, and was taken with the changes.
                if self.changes.is_news() {
                    continue;
                }
                match self.queue.recv_timeout(look_in) {
                    Ok(event) => self.waiting.push_back(event),
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            if self.apply_what_waits() {
                continue;
            }
            // Whoever does not wait for the answer any more does not need it: a closed reply is fine.
            match self.waiting.pop_front() {
                Some(Event::Attach(attach, reply)) => drop(reply.send(self.attach(attach))),
                Some(Event::Detach(id, reply)) => drop(reply.send(self.detach(&id))),
                Some(Event::Attached(reply)) => drop(reply.send(Ok(self.attached()))),
                Some(Event::Forgotten(reply)) => self.forgetter.tell(reply),
                Some(Event::Teardown(reply)) => drop(reply.send(self.teardown())),
                Some(Event::Survey(reply)) => drop(reply.send(self.survey())),
                Some(Event::Apply(..) | Event::Changed) | None => {}
            }
        }
    }

    /// Applies the changes that have come, as many as are put together; whether there were any.
    fn apply_what_waits(&mut self) -> bool {
        self.waiting.extend(self.queue.try_iter().take(QUEUE));
        let batch = take_changes(&mut self.waiting);
        let any = !batch.is_empty();
        if any {
            self.apply(batch);
        }
        any
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
        self.wait_until_forgotten(&attach)?;
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
            self.withdraw(before, &record);
        }
        naming::announce(&self.names, &record);
        Ok(self.containers.describe(&record))
    }

    /// Addresses that are new to a container: what is left of an earlier owner's connections would be its own. One that the
    /// pool of local addresses is to choose may be any of that.
    fn wait_until_forgotten(&self, attach: &Attach) -> Result<(), Error> {
        let known = self.containers.get(&attach.id).map(|record| &record.interfaces[..]).unwrap_or_default();
        let fresh = attach.networks.iter().filter(|join| known.iter().all(|i| i.network != join.network));
        let wanted = fresh.flat_map(|join| {
            let address = join.address.map_or(self.options.local_pool, Ipv4Net::from);
            let address6 = join.address6.map(|address| IpNet::V6(address.into()));
            address6.into_iter().chain([IpNet::V4(address)])
        });
        self.forgetter.wait_for(&wanted.collect::<Vec<_>>())
    }

    /// Addresses that a container had and has no more: who asks from them, and connections that are left. Nobody waits for
    /// the end of those: before such an address is given again, [`Self::wait_until_forgotten`] does.
    fn withdraw(&mut self, before: &Record, now: &Record) {
        let stays = |one: &&Interface| now.interfaces.iter().any(|i| i.address == one.address);
        let gone: Vec<&Interface> = before.interfaces.iter().filter(|one| !stays(one)).collect();
        self.names.remove_client(&gone.iter().map(|one| one.address).collect::<Vec<_>>());
        let addresses = gone.into_iter().flat_map(Interface::addresses);
        self.forgetter.ask(addresses.map(|address| (address.into(), conntrack::Kind::All)));
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
        let service =
            self.ruleset.publisher((protocol, number, address), &Item::Ports(id.to_owned()), |_, _| true);
        let container = self.containers.with_port(number, protocol, address).filter(|other| *other != id);
        let holder = container.map(|id| format!("container {id}")).or(service.map(describe));
        if let Some(holder) = holder {
            return Err(Error::PortConflict { port: number, protocol, address, holder });
        }
        if !host::has_protocol(protocol) {
            return Err(Error::ProtocolMissing { port: number, protocol, address });
        }
        match host::port_taken(number, protocol, address)? {
            None => Ok(()),
            Some(holder) => Err(Error::PortTaken { port: number, protocol, address, holder }),
        }
    }

    fn detach(&mut self, id: &str) -> Result<(), Error> {
        let Some(record) = self.containers.get(id).cloned() else { return Ok(()) };
        let items = [Item::Ports(id.to_owned()), Item::Several(id.to_owned())];
        self.transact(items.into_iter().map(|item| (item, None)).collect(), false)?;
        self.names.remove(&Owner::Container(id.to_owned()));
        let addresses: Vec<_> = record.interfaces.iter().map(|i| i.address).collect();
        self.names.remove_client(&addresses);
        self.containers.detach(id)?;
        let left = self.network_changes(record.interfaces.iter().map(|i| i.network.as_str()));
        self.transact(left, false)
    }

    /// Goes on after an error, so that as much as possible is gone.
    fn teardown(&mut self) -> Result<(), Error> {
        self.torn_down = true;
        let mut errors = Vec::new();
        errors.extend(self.containers.teardown().err());
        // What comes next here may have the same addresses.
        errors.extend(self.forgetter.finish().err());
        let table = self.ruleset.table();
        errors.extend(nft::run(&format!("add table inet {table}\ndelete table inet {table}\n")).err());
        errors.extend(self.routes.teardown().err());
        errors.extend(self.sealing.teardown(&self.options.state_dir).err());
        errors.extend(self.remove_links().err());
        errors.extend(host::release(&mut self.netlink, self.options.underlay, &self.twins).err());
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

/// Takes the changes out of what waits, as many as are put together.
fn take_changes(waiting: &mut VecDeque<Event>) -> Vec<(Change, Reply<()>)> {
    let mut changes = Vec::new();
    for event in std::mem::take(waiting) {
        match event {
            Event::Apply(change, reply) if changes.len() < BATCH => changes.push((change, reply)),
            Event::Changed => {}
            other => waiting.push_back(other),
        }
    }
    changes
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
