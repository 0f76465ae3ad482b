//! Network namespaces, prepared ahead of time: making one is half of what a container's start costs.
//!
//! A prepared namespace has its veth (`eth0` inside), its routes and its gateway's neighbour; only the address is
//! missing. It exists through open files alone, so a daemon that dies leaves none behind. Its thread changes namespaces and
//! comes back (`interface` has one that stays where it went, and ends). It also removes the links of detached containers, which the kernel is slow at.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use crate::error::Error;
use crate::host;
use crate::interface::{self, Inside};
use crate::netlink::link::{self, Mac, VethEnd};
use crate::netlink::route;
use crate::netlink::{EXCLUSIVE, Netlink};
use crate::random;

/// Below this, more are made at once instead of waiting for a quiet moment.
const LOW: usize = 2;
/// No container was attached for this long: a quiet moment.
const QUIET: Duration = Duration::from_millis(150);
/// Making one takes a millisecond or two; longer than this is a failure.
const TAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The node's end of every veth has this address, so that containers need no ARP.
pub(crate) const GATEWAY_MAC: Mac = [0x02, 0x72, 0x71, 0, 0, 1];

/// A namespace with everything but an address.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) inside: Inside,
    /// The node's end.
    pub(crate) interface: String,
    /// Ethernet address of the container's end.
    pub(crate) mac: Mac,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Prepared>,
    remove: VecDeque<String>,
    /// Someone is waiting now.
    wanted: bool,
    failed: Option<Error>,
    last_take: Option<Instant>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Namespaces that wait for a container when nothing else happens.
    enough: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pool. Dropping it ends its thread and the namespaces that nobody took.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    /// Of the socket through which links are made.
    port: u32,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Pool {
    /// Starts the pool in this thread's network namespace.
    pub(crate) fn start(prefix: String, mtu: u32, ipv6: bool, enough: usize) -> Result<Pool, Error> {
        let shared = Arc::new(Shared { enough, ..Shared::default() });
        let maker = Maker { home: open_own_namespace()?, outside: Netlink::route()?, prefix, mtu, ipv6 };
        let port = maker.outside.port()?;
        let work = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("rorqual-netns".to_owned())
            .spawn(move || maker.run(&work))
            .map_err(|source| Error::Namespace { operation: "start the pool's thread".to_owned(), source })?;
        Ok(Pool { shared, port, thread: Some(thread) })
    }

    /// A prepared namespace; waits for one to be made if none is ready.
    pub(crate) fn take(&self) -> Result<Prepared, Error> {
        let deadline = Instant::now() + TAKE_TIMEOUT;
        let mut state = self.shared.lock();
        state.last_take = Some(Instant::now());
        loop {
            if let Some(prepared) = state.ready.pop_front() {
                self.shared.changed.notify_all();
                return Ok(prepared);
            }
            if let Some(error) = state.failed.take() {
                return Err(error);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.closed {
                let source = std::io::ErrorKind::TimedOut.into();
                return Err(Error::Namespace { operation: "wait for a new namespace".to_owned(), source });
            }
            state.wanted = true;
            self.shared.changed.notify_all();
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// By which the kernel calls who makes the links.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// The node's ends of all that is prepared.
    pub(crate) fn interfaces(&self) -> Vec<String> {
        self.shared.lock().ready.iter().map(|prepared| prepared.interface.clone()).collect()
    }

    /// Lets go of what was prepared with this interface.
    pub(crate) fn forget(&self, interface: &str) {
        self.shared.lock().ready.retain(|prepared| prepared.interface != interface);
        self.shared.changed.notify_all();
    }

    /// Removes a link when there is time.
    pub(crate) fn remove_later(&self, interface: String) {
        self.shared.lock().remove.push_back(interface);
        self.shared.changed.notify_all();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Pool {
    /// Ends the thread and lets go of the namespaces that nobody took.
    pub(crate) fn close(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.ready.clear();
        drop(state);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the pool of network namespaces ended in a panic");
        }
    }
}

struct Maker {
    home: File,
    outside: Netlink,
    prefix: String,
    mtu: u32,
    ipv6: bool,
}

enum Job {
    Make,
    Remove(String),
}

impl Maker {
    fn run(mut self, shared: &Shared) {
        while let Some(job) = next_job(shared) {
            match job {
                Job::Make => {
                    let made = self.make();
                    let mut state = shared.lock();
                    state.wanted = false;
                    match made {
                        Ok(prepared) => state.ready.push_back(prepared),
                        Err(error) => {
                            tracing::warn!(%error, "cannot prepare a network namespace");
                            state.failed = Some(error);
                        }
                    }
                    shared.changed.notify_all();
                }
                Job::Remove(interface) => {
                    if let Err(error) = self.outside.run(vec![link::delete(&interface)]) {
                        tracing::warn!(%error, "a detached container's link stays");
                    }
                }
            }
        }
    }

    fn make(&mut self) -> Result<Prepared, Error> {
        let (netns, mut inside) = self.enter_new()?;
        let interface = interface::outside_name(&self.prefix);
        let mac = random::mac();
        let here = VethEnd { name: &interface, mac: GATEWAY_MAC };
        let there = VethEnd { name: "eth0", mac };
        self.outside.run(vec![link::add_veth(&here, &there, netns.as_fd(), self.mtu)])?;
        let missing = |name: &str| Error::Namespace {
            operation: format!("find the new interface {name}"),
            source: std::io::ErrorKind::NotFound.into(),
        };
        let inner = link::find(&mut inside, "eth0")?.ok_or_else(|| missing("eth0"))?;
        let outer = link::find(&mut self.outside, &interface)?.ok_or_else(|| missing(&interface))?;
        self.outside.run(vec![link::up_veth(outer.index, true, host::has_ipv6())])?;
        let mut requests = vec![link::up(1), link::up_veth(inner.index, false, host::has_ipv6())];
        requests.extend(interface::meet_gateway(inner.index, self.ipv6));
        let routes = interface::to_gateway(inner.index, route::MAIN_TABLE, self.ipv6);
        requests.extend(routes.iter().map(|route| route.set(EXCLUSIVE)));
        inside.run(requests)?;
        Ok(Prepared { inside: Inside { netns, netlink: inside }, interface, mac })
    }

    /// Makes a namespace and comes back. This thread is worth nothing elsewhere, so a failed return ends it.
    fn enter_new(&self) -> Result<(File, Netlink), Error> {
        let failed = |operation: &str, e: nix::Error| Error::Namespace {
            operation: operation.to_owned(),
            source: e.into(),
        };
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| failed("make a namespace", e))?;
        let inside = self.quieten().and_then(|()| Ok((open_own_namespace()?, Netlink::route()?)));
        setns(self.home.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|e| failed("return to the node's namespace", e))?;
        inside
    }

    /// In the new namespace: what its interfaces are to do by themselves in IPv6 is nothing, whatever the machine's
    /// defaults are.
    fn quieten(&self) -> Result<(), Error> {
        if !self.ipv6 {
            return Ok(());
        }
        for (name, value) in [("disable_ipv6", "0"), ("accept_ra", "0")] {
            let path = Path::new("/proc/sys/net/ipv6/conf/default").join(name);
            std::fs::write(&path, value).map_err(|source| Error::Sysctl {
                path,
                value: value.to_owned(),
                source,
            })?;
        }
        Ok(())
    }
}

fn next_job(shared: &Shared) -> Option<Job> {
    let mut state = shared.lock();
    loop {
        if state.closed {
            return None;
        }
        let wait = if state.failed.is_some() {
            Duration::from_secs(1)
        } else if state.ready.len() < LOW || state.wanted {
            return Some(Job::Make);
        } else {
            let quiet = state.last_take.map_or(QUIET, |at| at.elapsed());
            if quiet >= QUIET {
                if let Some(interface) = state.remove.pop_front() {
                    return Some(Job::Remove(interface));
                }
                if state.ready.len() < shared.enough {
                    return Some(Job::Make);
                }
            }
            if quiet >= QUIET { Duration::from_secs(3600) } else { QUIET - quiet }
        };
        let (next, timeout) =
            shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
        state = next;
        if timeout.timed_out() {
            state.failed = None;
        }
    }
}

/// The network namespace of this thread.
fn open_own_namespace() -> Result<File, Error> {
    File::open("/proc/thread-self/ns/net")
        .map_err(|source| Error::Namespace { operation: "open the own namespace".to_owned(), source })
}
