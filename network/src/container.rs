//! Containers on the network: their namespace files, links, addresses and records.
//!
//! A record (`attachments/<id>.json` in the state directory) is written before anything else is done and removed
//! after everything else is undone. So whatever the daemon was doing when it died, the next start finds every
//! namespace file and link by a record and either takes it over or removes it.

mod mend;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{FsType, statfs};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::fabric::{DNS, GATEWAY};
use crate::interface::{self, Inside, Interface, Pair, Source};
use crate::model::{self, Attach, Attachment, HostPort, Join, Protocol};
use crate::netlink::Netlink;
use crate::netlink::link::{self, Link};
use crate::netlink::route::Route;
use crate::pool::Pool;
use crate::random;
use crate::twins::Twins;

/// linux/magic.h
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// What is kept of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) attach: Attach,
    /// One for each network, in their order.
    pub(crate) interfaces: Vec<Interface>,
}

impl Record {
    fn in_network(&self, network: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.network == network)
    }
}

/// All containers of this node.
#[derive(Debug)]
pub(crate) struct Containers {
    netlink: Netlink,
    pool: Pool,
    folder: PathBuf,
    local_pool: Ipv4Net,
    /// The node's addresses towards its containers.
    source: Source,
    twins: Twins,
    prefix: String,
    pair: Pair,
    records: BTreeMap<String, Record>,
    by_address: HashMap<Ipv4Addr, String>,
    /// The local address given last: an address rests as long as possible before it is given again.
    last: Ipv4Addr,
}

/// How to look after containers.
pub(crate) struct Settings {
    pub(crate) state_dir: PathBuf,
    pub(crate) local_pool: Ipv4Net,
    pub(crate) source: Ipv4Addr,
    pub(crate) twins: Twins,
    /// First characters of the names of the node's veths.
    pub(crate) prefix: String,
    pub(crate) mtu: u32,
    pub(crate) prepared: usize,
}

impl Containers {
    /// Takes over the containers that are whole and removes what is left of others.
    pub(crate) fn start(settings: Settings) -> Result<Containers, Error> {
        let folder = settings.state_dir;
        for name in ["netns", "attachments"] {
            let path = folder.join(name);
            fs::create_dir_all(&path).map_err(|source| Error::State { path, operation: "create", source })?;
        }
        let mut netlink = Netlink::route()?;
        // Before the pool makes any.
        let links = link::list(&mut netlink)?;
        let mut containers = Containers {
            netlink,
            pool: Pool::start(settings.prefix.clone(), settings.mtu, settings.twins.on(), settings.prepared)?,
            folder,
            local_pool: settings.local_pool,
            source: Source { v4: settings.source, v6: settings.twins.source(settings.source) },
            pair: Pair { mtu: settings.mtu, ipv6: settings.twins.on() },
            twins: settings.twins,
            prefix: settings.prefix.clone(),
            records: BTreeMap::new(),
            by_address: HashMap::new(),
            last: settings.local_pool.network(),
        };
        containers.adopt(links, &settings.prefix)?;
        Ok(containers)
    }

    fn adopt(&mut self, links: Vec<Link>, prefix: &str) -> Result<(), Error> {
        let mut ours: HashMap<String, u32> =
            links.into_iter().filter(|l| l.name.starts_with(prefix)).map(|l| (l.name, l.index)).collect();
        for id in file_names(&self.folder.join("attachments"))? {
            let Some(id) = id.strip_suffix(".json") else {
                remove_file(&self.folder.join("attachments").join(&id))?;
                continue;
            };
            let record = self.read(id);
            let there = |r: &Record| r.interfaces.iter().all(|i| ours.contains_key(&i.outside));
            let whole = record.filter(|record| there(record) && is_namespace(&self.netns(id)));
            match whole {
                Some(record) => {
                    ours.retain(|name, _| !record.interfaces.iter().any(|i| i.outside == *name));
                    self.insert(record);
                }
                None => {
                    tracing::info!(container = id, "removing what is left of a container's network");
                    self.drop_files(id)?;
                }
            }
        }
        for id in file_names(&self.folder.join("netns"))? {
            if !self.records.contains_key(&id) {
                self.drop_files(&id)?;
            }
        }
        // A namespace that was prepared for an earlier process goes by itself, perhaps at this very moment.
        self.netlink.run(ours.into_keys().map(|name| link::delete(&name)).collect())
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Record> {
        self.records.get(id)
    }

    /// A container that publishes this port of the node, on an address that meets this one.
    pub(crate) fn with_port(&self, port: u16, protocol: Protocol, address: Option<IpAddr>) -> Option<&str> {
        let meets = |p: &HostPort| {
            p.published == port
                && p.protocol == protocol
                && (p.address.is_none() || address.is_none() || p.address == address)
        };
        self.records.values().find(|r| r.attach.ports.iter().any(meets)).map(|r| r.attach.id.as_str())
    }

    /// Whether a container of this node is in a network.
    pub(crate) fn any_in(&self, network: &str) -> bool {
        self.records.values().any(|record| record.in_network(network).is_some())
    }

    /// What the caller gets to know of a container.
    pub(crate) fn describe(&self, record: &Record) -> Attachment {
        let interfaces = record.interfaces.iter().map(|interface| model::Interface {
            name: interface.name(),
            network: interface.network.clone(),
            address: interface.address,
            address6: interface.address6,
        });
        Attachment {
            id: record.attach.id.clone(),
            name: record.attach.name.clone(),
            netns: self.netns(&record.attach.id),
            interfaces: interfaces.collect(),
            gateway: GATEWAY,
            dns: DNS,
        }
    }

    /// Puts a container on its networks, or brings one that is there up to date: an interface comes or goes with
    /// each network that does.
    pub(crate) fn attach(&mut self, attach: Attach) -> Result<Record, Error> {
        match self.records.get(&attach.id).cloned() {
            Some(known) => self.attach_again(attach, known),
            None => self.attach_new(attach),
        }
    }

    fn attach_new(&mut self, attach: Attach) -> Result<Record, Error> {
        let mut addresses = Vec::with_capacity(attach.networks.len());
        for join in &attach.networks {
            addresses.push(self.address_for(join)?);
        }
        let mut prepared = self.pool.take()?;
        let mut record = Record { attach, interfaces: Vec::new() };
        for (join, address) in record.attach.networks.iter().zip(addresses) {
            let number = u32::try_from(record.interfaces.len()).unwrap_or(u32::MAX);
            let mut interface = self.new_interface(join, address, number);
            if number == 0 {
                (interface.outside, interface.mac) = (prepared.interface.clone(), prepared.mac);
            }
            record.interfaces.push(interface);
        }
        if let Err(error) = self.connect(&record, &mut prepared.inside, &prepared.interface) {
            let mut errors = vec![error];
            errors.extend(self.drop_files(&record.attach.id).err());
            return Err(if errors.len() == 1 { errors.remove(0) } else { Error::Many(errors) });
        }
        self.insert(record.clone());
        Ok(record)
    }

    fn connect(&mut self, record: &Record, inside: &mut Inside, prepared: &str) -> Result<(), Error> {
        self.write(record)?;
        for interface in &record.interfaces {
            let own_table = interface.number != 0;
            if own_table {
                inside.add_pair(&mut self.netlink, interface, self.pair)?;
            }
            inside.set_address(interface, own_table)?;
            self.lead_to(interface, &record.attach.id)?;
        }
        if record.interfaces.is_empty() {
            self.netlink.run(vec![link::delete(prepared)])?;
        }
        self.keep(&record.attach.id, inside)
    }

    /// Route, neighbour and owner of the node's end.
    fn lead_to(&mut self, interface: &Interface, id: &str) -> Result<(), Error> {
        let Some(link) = link::find(&mut self.netlink, &interface.outside)? else {
            let source = io::ErrorKind::NotFound.into();
            return Err(Error::Namespace { operation: format!("find {}", interface.outside), source });
        };
        let mut requests = interface.node_side(link.index, self.source);
        requests.push(link::set_alias(link.index, id));
        self.netlink.run(requests)
    }

    fn attach_again(&mut self, attach: Attach, known: Record) -> Result<Record, Error> {
        let mut interfaces = Vec::with_capacity(attach.networks.len());
        let mut fresh = Vec::new();
        for join in &attach.networks {
            match known.in_network(&join.network) {
                Some(have) => {
                    if let Some(wanted) = join.address.filter(|wanted| *wanted != have.address) {
                        return Err(Error::AddressChanged { id: attach.id, have: have.address, wanted });
                    }
                    interfaces.push(have.clone());
                }
                None => {
                    let used = |number: &u32| {
                        !known.interfaces.iter().chain(&interfaces).any(|i: &Interface| i.number == *number)
                    };
                    let number = (0..).find(used).unwrap_or(u32::MAX);
                    let address = self.address_for(join)?;
                    let interface = self.new_interface(join, address, number);
                    fresh.push(interface.network.clone());
                    interfaces.push(interface);
                }
            }
        }
        let record = Record { attach, interfaces };
        if record.attach == known.attach {
            return Ok(known);
        }
        self.write(&record)?;
        if let Err(error) = self.change(&known, &record, &fresh) {
            let mut errors = vec![error];
            errors.extend(self.write(&known).err());
            return Err(if errors.len() == 1 { errors.remove(0) } else { Error::Many(errors) });
        }
        for interface in &known.interfaces {
            self.by_address.remove(&interface.address);
        }
        self.insert(record.clone());
        Ok(record)
    }

    /// Adds and removes interfaces of a container that may be running.
    fn change(&mut self, before: &Record, after: &Record, fresh: &[String]) -> Result<(), Error> {
        let gone: Vec<&Interface> =
            before.interfaces.iter().filter(|i| after.in_network(&i.network).is_none()).collect();
        let first = |record: &Record| record.interfaces.first().map(|interface| interface.number);
        if gone.is_empty() && fresh.is_empty() && first(before) == first(after) {
            return Ok(());
        }
        let mut inside = Inside::open(&self.netns(&after.attach.id))?;
        for interface in after.interfaces.iter().filter(|i| fresh.contains(&i.network)) {
            let made = inside
                .add_pair(&mut self.netlink, interface, self.pair)
                .and_then(|()| inside.set_address(interface, true))
                .and_then(|()| self.lead_to(interface, &after.attach.id));
            if let Err(error) = made {
                self.netlink.run(vec![link::delete(&interface.outside)])?;
                return Err(error);
            }
        }
        for interface in gone {
            // Its routes go with it, on both sides.
            self.netlink.run(vec![link::delete(&interface.outside)])?;
            inside.drop_table(interface)?;
        }
        match after.interfaces.first() {
            Some(interface) => inside.set_default(interface),
            None => Ok(()),
        }
    }

    fn new_interface(&self, join: &Join, address: Ipv4Addr, number: u32) -> Interface {
        Interface {
            network: join.network.clone(),
            address,
            address6: join.address6.filter(|_| self.twins.on()).or_else(|| self.twins.of(address)),
            number,
            outside: interface::outside_name(&self.prefix),
            mac: random::mac(),
        }
    }

    fn address_for(&mut self, join: &Join) -> Result<Ipv4Addr, Error> {
        match join.address {
            Some(address) => match self.by_address.get(&address) {
                Some(holder) => Err(Error::AddressTaken { address, holder: holder.clone() }),
                None => Ok(address),
            },
            None => self.free_local_address(),
        }
    }

    /// Binds the namespace to a file, so that it outlives everyone who has it open.
    fn keep(&self, id: &str, inside: &Inside) -> Result<(), Error> {
        let path = self.netns(id);
        let state = |source| Error::State { path: path.clone(), operation: "create", source };
        fs::File::create(&path).map_err(state)?;
        let source = format!("/proc/self/fd/{}", inside.netns.as_raw_fd());
        mount(Some(source.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|e| {
            Error::Namespace { operation: format!("bind to {}", path.display()), source: e.into() }
        })
    }

    /// Takes a container off the network; fine if it is not there.
    pub(crate) fn detach(&mut self, id: &str) -> Result<Option<Record>, Error> {
        let Some(record) = self.records.get(id).cloned() else { return Ok(None) };
        // The route first: from here on the address is answered by the node, with a reset.
        for interface in &record.interfaces {
            if let Some(link) = link::find(&mut self.netlink, &interface.outside)? {
                let routes = interface.routes(link.index, self.source);
                self.netlink.run(routes.iter().map(Route::delete).collect())?;
            }
        }
        self.drop_files(id)?;
        for interface in &record.interfaces {
            self.pool.remove_later(interface.outside.clone());
            self.by_address.remove(&interface.address);
        }
        self.records.remove(id);
        Ok(Some(record))
    }

    /// Ends the pool: its namespaces go, and with them their links.
    pub(crate) fn close_pool(&mut self) {
        self.pool.close();
    }

    /// Removes all containers and their folders.
    pub(crate) fn teardown(&mut self) -> Result<(), Error> {
        let ids: Vec<String> = self.records.keys().cloned().collect();
        let mut errors: Vec<Error> = ids.iter().filter_map(|id| self.detach(id).err()).collect();
        for name in ["netns", "attachments"] {
            let path = self.folder.join(name);
            if let Err(source) = fs::remove_dir(&path)
                && source.kind() != io::ErrorKind::NotFound
            {
                errors.push(Error::State { path, operation: "remove", source });
            }
        }
        Error::all(errors)
    }

    fn insert(&mut self, record: Record) {
        for interface in &record.interfaces {
            self.by_address.insert(interface.address, record.attach.id.clone());
        }
        self.records.insert(record.attach.id.clone(), record);
    }

    fn free_local_address(&mut self) -> Result<Ipv4Addr, Error> {
        let after = self.local_pool.hosts().filter(|a| *a > self.last);
        let before = self.local_pool.hosts().filter(|a| *a <= self.last);
        let free = after.chain(before).find(|a| !self.by_address.contains_key(a));
        let address = free.ok_or(Error::PoolExhausted { pool: self.local_pool })?;
        self.last = address;
        Ok(address)
    }

    fn netns(&self, id: &str) -> PathBuf {
        self.folder.join("netns").join(id)
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.folder.join("attachments").join(format!("{id}.json"))
    }

    fn read(&self, id: &str) -> Option<Record> {
        let bytes = fs::read(self.record_path(id)).ok()?;
        let record: Record = serde_json::from_slice(&bytes).ok()?;
        (record.attach.id == id).then_some(record)
    }

    /// Not synced to disk: a record is of use only while the kernel has what it describes.
    fn write(&self, record: &Record) -> Result<(), Error> {
        let path = self.record_path(&record.attach.id);
        let fresh = path.with_extension("new");
        let write = || -> io::Result<()> {
            fs::write(&fresh, serde_json::to_vec(record)?)?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|source| Error::State { path: path.clone(), operation: "write", source })
    }

    fn drop_files(&self, id: &str) -> Result<(), Error> {
        let netns = self.netns(id);
        match umount2(&netns, MntFlags::MNT_DETACH) {
            // Not mounted, or not there: the machine was started anew since.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(e) => {
                let operation = format!("unmount {}", netns.display());
                return Err(Error::Namespace { operation, source: e.into() });
            }
        }
        remove_file(&netns)?;
        remove_file(&self.record_path(id))
    }
}

fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == FsType(NSFS_MAGIC))
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::State { path: path.to_owned(), operation: "remove", source })
        }
        _ => Ok(()),
    }
}

fn file_names(folder: &Path) -> Result<Vec<String>, Error> {
    let read = || -> io::Result<Vec<String>> {
        let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    };
    read().map_err(|source| Error::State { path: folder.to_owned(), operation: "list", source })
}
