//! One session, from Hello to its end.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use rorqual_proto::model::HeldPort;
use rorqual_proto::wire::{self, from_agent, to_agent};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{End, Parts};
use crate::edge;
use crate::error::one_line;
use crate::set::AssignmentSet;
use crate::store::StoreError;

/// How long a controller may take to answer a Hello.
const ANSWER: Duration = Duration::from_secs(3);

/// Unless the leader says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// So many heartbeats late, and the leader is given up: it has missed three.
const MISSED: f32 = 3.5;

/// How often it is looked whether the leader knows all addresses of the machine.
const ADDRESSES_LOOK: Duration = Duration::from_secs(10);

/// Messages that wait for a slow connection.
const OUTBOX: usize = 64;

/// The largest assignment set: every task of a node that runs thousands.
const MOST_BYTES: usize = 64 << 20;

type Outbox = mpsc::Sender<wire::FromAgent>;

/// Opens a session with the controller at `address` and stays in it.
pub(super) async fn open(parts: &Parts, set: &mut AssignmentSet, address: &str) -> End {
    let channel = match parts.link.channel_to(address) {
        Ok(channel) => channel,
        Err(error) => return End::Failed(one_line(&error)),
    };
    let mut client = wire::dispatcher_client::DispatcherClient::new(channel.clone())
        .max_decoding_message_size(MOST_BYTES)
        .max_encoding_message_size(MOST_BYTES);
    let (outbox, messages) = mpsc::channel(OUTBOX);
    let mut images = parts.images.changes();
    images.mark_unchanged();
    let mut held = parts.network.held_ports();
    held.mark_unchanged();
    let mut in_effect = parts.network.in_effect();
    in_effect.mark_unchanged();
    // Before the Hello tells them.
    let (addresses, looked) = (addresses().unwrap_or_default(), Instant::now());
    // The Hello names every status, so what waited until now needs not be sent again.
    parts.tasks.reports().clear();
    let hello = wire::Hello {
        description: Some(parts.description().await),
        address: parts.address.clone(),
        set: set.number,
        statuses: parts.tasks.statuses(),
        images: Some(parts.images.report()),
    };
    if send(&outbox, from_agent::Message::Hello(hello)).await.is_err() {
        return End::Failed("the stream ended at once".to_owned());
    }
    let opened = tokio::time::timeout(ANSWER, async {
        let mut inbox = client.session(ReceiverStream::new(messages)).await?.into_inner();
        let first = inbox.message().await?;
        Ok::<_, tonic::Status>((inbox, first))
    });
    let (inbox, first) = match opened.await {
        Err(_) => return End::Failed("no answer to the hello".to_owned()),
        Ok(Err(status)) => return End::Failed(one_line(&status)),
        Ok(Ok((inbox, first))) => (inbox, first.and_then(|message| message.message)),
    };
    match first {
        Some(to_agent::Message::Welcome(welcome)) => {
            parts.link.set_controllers(welcome.controllers);
            parts.link.set_leader(Some(channel));
            parts.say("connected", address);
            tracing::info!(%address, set = set.number, "session with the leader opened");
            let beat = Duration::from_millis(welcome.heartbeat_ms);
            let beat = if beat.is_zero() { HEARTBEAT } else { beat };
            let writing = None;
            Open { parts, set, outbox, images, held, in_effect, beat, addresses, looked, writing }
                .run(inbox)
                .await
        }
        Some(to_agent::Message::Redirect(redirect)) => redirected(parts, redirect),
        Some(_) => End::Failed("the controller did not answer the hello".to_owned()),
        None => End::Failed("the controller hung up".to_owned()),
    }
}

fn redirected(parts: &Parts, redirect: wire::Redirect) -> End {
    parts.link.set_controllers(redirect.controllers);
    End::Redirected(Some(redirect.leader_address))
}

async fn send(outbox: &Outbox, message: from_agent::Message) -> Result<(), ()> {
    outbox.send(wire::FromAgent { message: Some(message) }).await.map_err(drop)
}

/// What was written, and how that ended.
type Written = (Writing, Result<Result<(), StoreError>, JoinError>);

/// Waits until the set is on disk; where none is being written, for ever. Cancel-safe: it is taken out only at its end.
async fn written(writing: &mut Option<Writing>) -> Written {
    let outcome = match writing {
        Some(set) => (&mut set.write).await,
        None => return std::future::pending().await,
    };
    match writing.take() {
        Some(set) => (set, outcome),
        None => std::future::pending().await,
    }
}

/// An open session.
struct Open<'a> {
    parts: &'a Parts,
    set: &'a mut AssignmentSet,
    outbox: Outbox,
    images: watch::Receiver<u64>,
    held: watch::Receiver<Vec<HeldPort>>,
    in_effect: watch::Receiver<u64>,
    beat: Duration,
    /// The machine's addresses as the leader knows them, and since when they are known to be those.
    addresses: Addresses,
    looked: Instant,
    /// The set that is being written to disk.
    writing: Option<Writing>,
}

/// A set on its way to disk, and what waits for that.
struct Writing {
    write: JoinHandle<Result<(), StoreError>>,
    full: bool,
    tasks: Vec<wire::Task>,
    removed_tasks: Vec<String>,
    auths: Vec<wire::ServiceAuths>,
    removed_auths: Vec<String>,
}

type Addresses = (Vec<Ipv4Addr>, Vec<Ipv6Addr>);

/// None where they can't be listed.
fn addresses() -> Option<Addresses> {
    Some((rorqual_network::own_addresses().ok()?, rorqual_network::own_ipv6_addresses().ok()?))
}

impl Open<'_> {
    /// Until the session ends; a set that is being written then is written, so that the next one comes after it.
    async fn run(mut self, inbox: Streaming<wire::ToAgent>) -> End {
        let end = self.converse(inbox).await;
        if self.writing.is_some() {
            let written = written(&mut self.writing).await;
            if let Err(End::Lost(reason)) = self.go_on(written).await {
                tracing::debug!(reason, "the last set of a session");
            }
        }
        end
    }

    async fn converse(&mut self, mut inbox: Streaming<wire::ToAgent>) -> End {
        let mut heard = Instant::now();
        loop {
            // Each arm is cancel-safe: stream, watch and reports keep what was not taken, silence ends at a fixed
            // time, and a set goes on being written.
            let sent = tokio::select! {
                message = inbox.message() => {
                    heard = Instant::now();
                    match message {
                        Ok(Some(message)) => match self.take(message).await {
                            Ok(()) => Ok(()),
                            Err(end) => return end,
                        },
                        Ok(None) => return End::Lost("the leader hung up".to_owned()),
                        Err(status) => return End::Lost(one_line(&status)),
                    }
                }
                batch = self.parts.tasks.reports().next_batch() => {
                    send(&self.outbox, from_agent::Message::Statuses(batch)).await
                }
                () = tokio::time::sleep_until(heard + self.beat.mul_f32(MISSED)) => {
                    return End::Lost("the leader is silent".to_owned());
                }
                Ok(()) = self.images.changed() => {
                    send(&self.outbox, from_agent::Message::Images(self.parts.images.report())).await
                }
                written = written(&mut self.writing) => match self.go_on(written).await {
                    Ok(()) => Ok(()),
                    Err(end) => return end,
                },
                Ok(()) = self.in_effect.changed(), if self.writing.is_none() => {
                    let set = *self.in_effect.borrow_and_update();
                    send(&self.outbox, from_agent::Message::AcknowledgedSet(set)).await
                }
                Ok(()) = self.held.changed() => {
                    send(&self.outbox, from_agent::Message::Description(self.parts.description().await)).await
                }
            };
            if sent.is_err() {
                return End::Lost("the connection broke".to_owned());
            }
        }
    }

    async fn take(&mut self, message: wire::ToAgent) -> Result<(), End> {
        match message.message {
            Some(to_agent::Message::Assignments(assignments)) => self.assign(assignments).await,
            Some(to_agent::Message::Redirect(redirect)) => Err(redirected(self.parts, redirect)),
            Some(to_agent::Message::Welcome(welcome)) => {
                self.parts.link.set_controllers(welcome.controllers);
                Ok(())
            }
            Some(to_agent::Message::Heartbeat(_)) => {
                self.say(from_agent::Message::Heartbeat(wire::Heartbeat {})).await?;
                self.look_at_addresses().await
            }
            Some(to_agent::Message::Everywhere(set)) => {
                self.parts.network.is_everywhere(set);
                Ok(())
            }
            Some(to_agent::Message::Withdrawal(withdrawal)) => {
                self.parts.network.withdraw(withdrawal.task_ids).await;
                Ok(())
            }
            Some(to_agent::Message::KeepCopy(copy)) => {
                self.parts.images.keep_copy(&copy.digest);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// An interface may have come, or an address that moves between machines.
    async fn look_at_addresses(&mut self) -> Result<(), End> {
        if self.looked.elapsed() < ADDRESSES_LOOK {
            return Ok(());
        }
        self.looked = Instant::now();
        match addresses() {
            Some(now) if now != self.addresses => {
                self.addresses = now;
                self.say(from_agent::Message::Description(self.parts.description().await)).await
            }
            _ => Ok(()),
        }
    }

    /// What balancers and routes have to be takes effect while the set is being written; what is to run begins once it is on
    /// disk ([`Self::go_on`]). It is acknowledged after both: by [`Self::converse`], which meanwhile hears and tells who is down.
    async fn assign(&mut self, mut assignments: wire::Assignments) -> Result<(), End> {
        if self.writing.is_some() {
            let written = written(&mut self.writing).await;
            self.go_on(written).await?;
        }
        let (full, auths) = (assignments.full, std::mem::take(&mut assignments.auths));
        let removed_auths = std::mem::take(&mut assignments.removed_auths);
        // Keys are never on disk. Here before the port that they are for is opened.
        if let Some(config) = &mut assignments.edge {
            edge::take_certificates(&self.parts.edge, config);
        }
        let mut change = self.set.take(assignments).map_err(|refused| End::Lost(refused.to_string()))?;
        let writes = std::mem::take(&mut change.writes);
        tracing::debug!(
            set = change.number,
            full = change.full,
            tasks = change.tasks.len(),
            services = change.services.len(),
            "assignment set"
        );
        let (tasks, removed_tasks) = (std::mem::take(&mut change.tasks), change.removed_tasks.clone());
        self.parts.containers.note_set(&change);
        self.parts.network.apply(change).await;
        let store = self.parts.store.clone();
        let write = tokio::task::spawn_blocking(move || store.write_set(writes));
        self.writing = Some(Writing { write, full, tasks, removed_tasks, auths, removed_auths });
        Ok(())
    }

    /// The set is on disk, or could not be written.
    async fn go_on(&mut self, (set, outcome): Written) -> Result<(), End> {
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(error = %one_line(&error), "can't keep the assignment set");
                self.reload();
                return Err(End::Lost("the set could not be kept".to_owned()));
            }
            Err(_) => return Err(End::Lost("the agent is shutting down".to_owned())),
        }
        self.parts.link.set_controllers(self.set.controllers.clone());
        // Never on disk, and there before the tasks that need it.
        self.parts.images.auths().take(set.full, set.auths, &set.removed_auths);
        self.parts.tasks.apply(set.tasks, set.removed_tasks).await;
        self.parts.tasks.release();
        Ok(())
    }

    async fn say(&self, message: from_agent::Message) -> Result<(), End> {
        send(&self.outbox, message).await.map_err(|()| End::Lost("the connection broke".to_owned()))
    }

    /// Memory follows the disk again.
    fn reload(&mut self) {
        match self.parts.store.read_set() {
            Ok(entries) => *self.set = AssignmentSet::load(entries).0,
            Err(error) => tracing::error!(error = %one_line(&error), "can't read the assignment set"),
        }
    }
}
