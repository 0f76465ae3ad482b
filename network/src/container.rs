//! Containers on the network: their namespace files, links, addresses and records.
//!
//! A record (`attachments/<id>.json` in the state directory) is written before anything else is done and removed
//! after everything else is undone. So whatever the daemon was doing when it died, the next start finds every
//! namespace file and link by a record and either takes it over or removes it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{FsType, statfs};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::fabric::{DNS, GATEWAY};
use crate::model::{Attach, Attachment, HostPort, Protocol};
use crate::netlink::link::{self, Link, Mac};
use crate::netlink::route::{self, Route};
use crate::netlink::{Netlink, Request};
use crate::pool::{Pool, Prepared};

/// linux/magic.h
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// What is kept of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) attach: Attach,
    pub(crate) address: Ipv4Addr,
    interface: String,
    mac: Mac,
}

/// All containers of this node.
#[derive(Debug)]
pub(crate) struct Containers {
    netlink: Netlink,
    pool: Pool,
    folder: PathBuf,
    local_pool: Ipv4Net,
    /// The node's address towards its containers.
    source: Ipv4Addr,
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
    /// First characters of the names of the node's veths.
    pub(crate) prefix: String,
    pub(crate) mtu: u32,
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
            pool: Pool::start(settings.prefix.clone(), settings.mtu)?,
            folder,
            local_pool: settings.local_pool,
            source: settings.source,
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
            let whole = record.filter(|r| ours.contains_key(&r.interface) && is_namespace(&self.netns(id)));
            match whole {
                Some(record) => {
                    let index = ours.remove(&record.interface).unwrap_or_default();
                    self.netlink.run(self.host_side(&record, index))?;
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
    pub(crate) fn with_port(&self, port: u16, protocol: Protocol, address: Option<Ipv4Addr>) -> Option<&str> {
        let meets = |p: &HostPort| {
            p.published == port
                && p.protocol == protocol
                && (p.address.is_none() || address.is_none() || p.address == address)
        };
        self.records.values().find(|r| r.attach.ports.iter().any(meets)).map(|r| r.attach.id.as_str())
    }

    /// What the caller gets to know of a container.
    pub(crate) fn describe(&self, record: &Record) -> Attachment {
        Attachment {
            id: record.attach.id.clone(),
            name: record.attach.name.clone(),
            network: record.attach.network.clone(),
            netns: self.netns(&record.attach.id),
            address: record.address,
            gateway: GATEWAY,
            dns: DNS,
        }
    }

    /// Puts a container on the network, or brings the record of one that is there up to date.
    pub(crate) fn attach(&mut self, attach: Attach) -> Result<Record, Error> {
        if let Some(known) = self.records.get(&attach.id) {
            if let Some(wanted) = attach.address.filter(|wanted| *wanted != known.address) {
                return Err(Error::AddressChanged { id: attach.id, have: known.address, wanted });
            }
            let record = Record { attach, ..known.clone() };
            if record.attach != known.attach {
                self.write(&record)?;
                self.insert(record.clone());
            }
            return Ok(record);
        }
        let address = match attach.address {
            Some(address) => match self.by_address.get(&address) {
                Some(holder) => return Err(Error::AddressTaken { address, holder: holder.clone() }),
                None => address,
            },
            None => self.free_local_address()?,
        };
        let mut prepared = self.pool.take()?;
        let record = Record { attach, address, interface: prepared.interface.clone(), mac: prepared.mac };
        if let Err(error) = self.connect(&record, &mut prepared) {
            let undone = self.drop_files(&record.attach.id);
            return Err(match undone {
                Ok(()) => error,
                Err(other) => Error::Many(vec![error, other]),
            });
        }
        self.insert(record.clone());
        Ok(record)
    }

    fn connect(&mut self, record: &Record, prepared: &mut Prepared) -> Result<(), Error> {
        self.write(record)?;
        prepared.inside.run(vec![route::add_address(prepared.inside_index, record.address, false)])?;
        let mut requests = self.host_side(record, prepared.index);
        requests.push(link::set_alias(prepared.index, &record.attach.id));
        self.netlink.run(requests)?;
        self.keep(&record.attach.id, prepared)
    }

    /// Binds the namespace to a file, so that it outlives everyone who has it open.
    fn keep(&self, id: &str, prepared: &Prepared) -> Result<(), Error> {
        let path = self.netns(id);
        let state = |source| Error::State { path: path.clone(), operation: "create", source };
        fs::File::create(&path).map_err(state)?;
        let source = format!("/proc/self/fd/{}", prepared.netns.as_raw_fd());
        mount(Some(source.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|e| {
            Error::Namespace { operation: format!("bind to {}", path.display()), source: e.into() }
        })
    }

    /// Route and neighbour on the node's side.
    fn host_side(&self, record: &Record, index: u32) -> Vec<Request> {
        vec![
            route::add_neighbour(index, record.address, record.mac),
            self.route(record.address, index).replace(),
        ]
    }

    fn route(&self, address: Ipv4Addr, interface: u32) -> Route {
        Route {
            to: address.into(),
            table: route::MAIN_TABLE,
            interface,
            via: None,
            source: Some(self.source),
        }
    }

    /// Takes a container off the network; fine if it is not there.
    pub(crate) fn detach(&mut self, id: &str) -> Result<Option<Record>, Error> {
        let Some(record) = self.records.get(id).cloned() else { return Ok(None) };
        // The route first: from here on the address is answered by the node, with a reset.
        if let Some(link) = link::find(&mut self.netlink, &record.interface)? {
            self.netlink.run(vec![self.route(record.address, link.index).delete()])?;
        }
        self.drop_files(id)?;
        self.pool.remove_later(record.interface.clone());
        self.records.remove(id);
        self.by_address.remove(&record.address);
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
        self.by_address.insert(record.address, record.attach.id.clone());
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
