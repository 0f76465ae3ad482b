//! The handle to the node's network. Every call is an event for the engine's thread and waits for its answer.

use std::net::Ipv4Addr;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use crate::dns::{self, names::Names};
use crate::encryption::{Encryption, Told};
use crate::engine::{self, Event};
use crate::error::Error;
use crate::host;
use crate::model::{Attach, Attachment, Change, NetworkOptions, Protocol};
use crate::survey::Survey;

/// The default gateway of every container: link-local, answered by the node at the other end of the veth.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The node's resolver, on `lo` of every node.
pub const DNS: Ipv4Addr = Ipv4Addr::new(169, 254, 53, 53);

/// The network of this node. Clones share it; when the last is dropped, its threads and the resolver end, and
/// containers, routes and balancing stay as they are.
#[derive(Debug, Clone)]
pub struct Fabric {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    events: Arc<SyncSender<Event>>,
    /// Places in the engine's queue: those of changes, and those of everything else. One more is for the watch.
    changes: Semaphore,
    others: Arc<Semaphore>,
    encryption: Told,
    /// The resolver: its tasks end with the last handle.
    resolver: Mutex<JoinSet<()>>,
}

impl Fabric {
    /// Takes over what an earlier fabric left in this network namespace, or sets it up. Works in no cluster too:
    /// then only the local pool is used.
    pub async fn start(options: NetworkOptions) -> Result<Fabric, Error> {
        options.validate()?;
        let names = Arc::new(Names::new(&options.own_names));
        let upstreams = options.dns_upstreams.clone();
        let encryption = Told::default();
        let events = engine::spawn(options, Arc::clone(&names), Arc::clone(&encryption)).await?;
        let resolver = Mutex::new(dns::start(names, upstreams).await?);
        let changes = Semaphore::new(engine::BATCH);
        let others = Arc::new(Semaphore::new(engine::QUEUE - engine::BATCH - 1));
        Ok(Fabric { inner: Arc::new(Inner { events, changes, others, encryption, resolver }) })
    }

    /// Gives a container its namespace, address and ports. The same id again returns what it has, with its name,
    /// network and ports brought up to date.
    pub async fn attach(&self, attach: Attach) -> Result<Attachment, Error> {
        self.ask(|reply| Event::Attach(attach, reply)).await
    }

    /// Removes a container's ports, link and namespace. An id that is not attached is fine.
    pub async fn detach(&self, id: &str) -> Result<(), Error> {
        let id = id.to_owned();
        self.ask(|reply| Event::Detach(id, reply)).await
    }

    /// All containers that are attached, also those that an earlier process attached.
    pub async fn attached(&self) -> Vec<Attachment> {
        self.ask(Event::Attached).await.unwrap_or_default()
    }

    /// Brings peers, blocks and services up to date. Changes that wait at the same time become one transaction.
    ///
    /// What can't be ([`Error::Invalid`]) is left out, and the rest of the change is in effect. An error that names a port ([`Error::PortTaken`], [`Error::PortConflict`]) concerns that port alone, on this
    /// node alone: the rest of the change is in effect. It is tried again when its service changes. One that leads to a node's
    /// own replicas alone is named also where there are none.
    pub async fn apply(&self, change: Change) -> Result<(), Error> {
        self.ask(|reply| Event::Apply(change, reply)).await
    }

    /// Waits until the connections of all that left with earlier changes are forgotten: [`Self::apply`] returns as soon as new
    /// ones are led elsewhere, a moment before UDP clients that talk to what left are. Whoever ends an endpoint after its
    /// leaving waits for this. While the kernel refuses, it is tried again, and this does not return;
    /// [`Survey::forget_problem`] says why.
    ///
    /// The future does not keep the fabric from ending, and ends with it.
    pub fn forgotten(&self) -> impl Future<Output = Result<(), Error>> + Send + Sync + use<> {
        let (events, places) = (Arc::downgrade(&self.inner.events), Arc::clone(&self.inner.others));
        async move {
            // As in `ask`.
            let _place = places.acquire().await.map_err(|_| Error::Stopped)?;
            let (reply, answer) = oneshot::channel();
            send(&*events.upgrade().ok_or(Error::Stopped)?, Event::Forgotten(reply))?;
            answer.await.map_err(|_| Error::Stopped)?
        }
    }

    /// Removes everything of ours from the kernel and the state directory. The fabric is of no use afterwards.
    pub async fn teardown(&self) -> Result<(), Error> {
        self.inner.resolver.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        self.ask(Event::Teardown).await
    }

    /// What the fabric knows of the node's network, and what is wrong with it.
    pub async fn survey(&self) -> Result<Survey, Error> {
        self.ask(Event::Survey).await
    }

    /// The node's public key, and how traffic to other nodes is encrypted.
    pub fn encryption(&self) -> Encryption {
        self.inner.encryption.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who holds this port of the node, if a process listens on it (in words for people). Asked in the network
    /// namespace of the calling thread, which in a daemon is the fabric's.
    pub fn port_taken(&self, port: u16, protocol: Protocol) -> Option<String> {
        host::port_taken(port, protocol, None).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot tell whether a port is taken");
            None
        })
    }

    async fn ask<T>(
        &self,
        event: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Event,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let event = event(reply);
        let places = if matches!(event, Event::Apply(..)) { &self.inner.changes } else { &self.inner.others };
        // Until it is answered: so the queue always has room. Fails never, since nobody closes it.
        let _place = places.acquire().await.map_err(|_| Error::Stopped)?;
        send(&self.inner.events, event)?;
        answer.await.map_err(|_| Error::Stopped)?
    }
}

fn send(events: &SyncSender<Event>, event: Event) -> Result<(), Error> {
    events.try_send(event).map_err(|error| match error {
        TrySendError::Full(_) => Error::Busy,
        TrySendError::Disconnected(_) => Error::Stopped,
    })
}
