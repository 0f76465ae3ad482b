//! One agent's session with the leader.
//!
//! ```text
//! Hello ──leads──▶ Welcome, full set ──▶ [ sets, heartbeats down | answers, statuses, images up ] ──▶ end
//!   └──follows──▶ Redirect, end
//! ```
//! The session ends when the agent hangs up or falls silent, when this controller no longer leads, or when
//! the agent is too slow to take its sets; the agent comes back with a Hello and gets a full set.
//!
//! Heartbeats go down together with those to the other controllers: the daemon is awake then, and the answers come
//! together as well.

use std::time::Duration;

use rorqual_planner::{Action, ActionKind};
use rorqual_proto::model::{NodeDescription, NodeId};
use rorqual_proto::wire::{self, from_agent, to_agent};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::fanout::{self, Evicted};
use super::{Dispatch, HEARTBEAT};

/// How long an agent may take to say Hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// An agent that is silent for so long has lost its session.
const SILENCE: Duration = Duration::from_secs(5);

/// A heartbeat goes out even if the Raft pump hangs on a slow disk: after so long.
const WITHOUT_PULSE: Duration = Duration::from_millis(1500);

/// Messages that may wait for a slow agent before its session ends.
const OUTBOX: usize = 64;

type Outbox = mpsc::Sender<Result<wire::ToAgent, Status>>;

impl Dispatch {
    pub(super) async fn open_session(
        &self,
        node: NodeId,
        mut inbox: Streaming<wire::FromAgent>,
    ) -> Result<Response<ReceiverStream<Result<wire::ToAgent, Status>>>, Status> {
        let hello = hello(&mut inbox).await?;
        let (outbox, messages) = mpsc::channel(OUTBOX);
        if !self.leader.is_here() {
            send(&outbox, to_agent::Message::Redirect(self.redirect())).await?;
            return Ok(Response::new(ReceiverStream::new(messages)));
        }
        self.shared.heard(&node);
        let description = hello.description.unwrap_or_default();
        self.describe(&node, description, Some(&hello.address)).await?;
        self.images.report(node.clone(), hello.images.unwrap_or_default());
        let welcome = wire::Welcome {
            heartbeat_ms: u64::try_from(HEARTBEAT.as_millis()).unwrap_or(u64::MAX),
            controllers: self.store.read(fanout::controllers),
        };
        send(&outbox, to_agent::Message::Welcome(welcome)).await?;
        self.statuses.report(&node, hello.statuses).await?;
        let (session, evicted) = self.fanout.register(node.clone(), outbox.clone()).await?;
        self.copies.enter(node.clone(), session, outbox.clone());
        let dispatch = self.clone();
        tracing::info!(%node, "agent session opened");
        // Ends with the session; nothing waits for it.
        tokio::spawn(async move {
            let why = dispatch.serve((&node, session), inbox, &outbox, evicted).await;
            tracing::info!(%node, why, "agent session ended");
            dispatch.fanout.unregister(node.clone(), session).await;
            dispatch.copies.leave(&node, session);
            dispatch.images.forget(&node);
            dispatch.spread.forget(&node);
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    fn redirect(&self) -> wire::Redirect {
        let leader = self.store.leadership().borrow().leader.clone();
        wire::Redirect {
            leader_address: leader.map(|peer| peer.address).unwrap_or_default(),
            controllers: self.store.read(fanout::controllers),
        }
    }

    /// Writes what the agent says about its machine, where that is news.
    async fn describe(
        &self,
        node: &NodeId,
        description: wire::NodeDescription,
        address: Option<&str>,
    ) -> Result<(), Status> {
        let description = NodeDescription::from(description);
        let news = self.store.read(|state| {
            state.node(node).is_some_and(|known| {
                known.description != description || address.is_some_and(|address| known.address != address)
            })
        });
        if !news {
            return Ok(());
        }
        let action = Action::new(ActionKind::NodeStatus {
            node_id: node.clone(),
            status: None,
            description: Some(Box::new(description)),
            address: address.map(str::to_owned),
        });
        self.store.propose(vec![action]).await.map_err(crate::status::from_propose)?;
        Ok(())
    }

    async fn serve(
        &self,
        (node, session): (&NodeId, u64),
        mut inbox: Streaming<wire::FromAgent>,
        outbox: &Outbox,
        mut evicted: oneshot::Receiver<Evicted>,
    ) -> &'static str {
        let mut leadership = self.store.leadership();
        let mut beats = Beats::new(self.store.pulse());
        let mut heard = Instant::now();
        loop {
            // Each arm is cancel-safe: a stream keeps what it has not yielded, a oneshot and a watch lose
            // nothing, a heartbeat that was not sent stays due, and silence ends at a fixed time.
            let message = tokio::select! {
                message = inbox.message() => message,
                () = beats.due() => {
                    // A full outbox means that the agent does not read: the fan-out ends the session.
                    let beat = to_agent::Message::Heartbeat(wire::Heartbeat {});
                    let _ = outbox.try_send(Ok(wire::ToAgent { message: Some(beat) }));
                    continue;
                }
                _ = &mut evicted => return "replaced, or too slow to take its assignments",
                changed = leadership.wait_for(|now| !now.is_leader) => {
                    if changed.is_ok() {
                        let redirect = to_agent::Message::Redirect(self.redirect());
                        let _ = outbox.try_send(Ok(wire::ToAgent { message: Some(redirect) }));
                    }
                    return "this controller no longer leads";
                }
                () = tokio::time::sleep_until(heard + SILENCE) => return "silent for too long",
            };
            let Ok(Some(message)) = message else {
                // Unless it has opened another one since.
                if matches!(evicted.try_recv(), Err(TryRecvError::Empty)) {
                    self.shared.hung_up(node);
                }
                return "the agent hung up";
            };
            heard = Instant::now();
            self.shared.heard(node);
            if let Err(status) = self.take(node, session, message).await {
                let _ = outbox.try_send(Err(status));
                return "the agent sent what can't be read";
            }
        }
    }

    async fn take(&self, node: &NodeId, session: u64, message: wire::FromAgent) -> Result<(), Status> {
        match message.message {
            // That it came is all that it says.
            Some(from_agent::Message::Heartbeat(_)) => Ok(()),
            Some(from_agent::Message::Statuses(batch)) => self.statuses.report(node, batch.statuses).await,
            Some(from_agent::Message::Images(images)) => {
                self.images.report(node.clone(), images);
                self.copies.look();
                Ok(())
            }
            Some(from_agent::Message::Description(description)) => {
                self.describe(node, description, None).await
            }
            Some(from_agent::Message::AcknowledgedSet(set)) => {
                self.fanout.acknowledged(node.clone(), session, set).await;
                Ok(())
            }
            Some(from_agent::Message::Hello(_)) => {
                Err(Status::invalid_argument("a second hello in one session"))
            }
            None => Err(Status::invalid_argument("a message without content")),
        }
    }
}

/// When to send an agent a heartbeat.
struct Beats {
    pulse: watch::Receiver<u64>,
    last: Instant,
}

impl Beats {
    fn new(pulse: watch::Receiver<u64>) -> Self {
        Self { pulse, last: Instant::now() }
    }

    /// Waits for the first of this leader's pulses by which a heartbeat is as good as due. Cancel-safe.
    async fn due(&mut self) {
        loop {
            let patience = tokio::time::timeout_at(self.last + WITHOUT_PULSE, self.pulse.changed());
            match patience.await {
                Ok(Ok(())) if self.last.elapsed() < HEARTBEAT.mul_f32(0.9) => {}
                // The pump has ended; so does the session.
                Ok(Err(_)) => return std::future::pending().await,
                Ok(Ok(())) | Err(_) => {
                    self.last = Instant::now();
                    return;
                }
            }
        }
    }
}

async fn hello(inbox: &mut Streaming<wire::FromAgent>) -> Result<wire::Hello, Status> {
    let first = tokio::time::timeout(HELLO_DEADLINE, inbox.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no hello within 5 s"))??;
    match first.and_then(|message| message.message) {
        Some(from_agent::Message::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("a session starts with a hello")),
    }
}

async fn send(outbox: &Outbox, message: to_agent::Message) -> Result<(), Status> {
    let message = Ok(wire::ToAgent { message: Some(message) });
    outbox.send(message).await.map_err(|_| Status::cancelled("the agent hung up"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn heartbeats_go_with_the_pulse_that_is_next_to_their_time() {
        let sender = watch::Sender::new(0);
        let mut beats = Beats::new(sender.subscribe());
        beats.last -= HEARTBEAT;
        sender.send_modify(|beats| *beats += 1);
        tokio::time::timeout(SOON, beats.due()).await.expect("it was due");
        // The next comes with a pulse, and not with the first one.
        let began = Instant::now();
        let pulses = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(300)).await;
                sender.send_modify(|beats| *beats += 1);
            }
        });
        tokio::time::timeout(SOON, beats.due()).await.expect("a pulse came");
        assert!(began.elapsed() >= HEARTBEAT.mul_f32(0.9), "{:?}", began.elapsed());
        pulses.abort();
    }

    #[tokio::test]
    async fn a_pump_that_hangs_does_not_keep_heartbeats_back() {
        let sender = watch::Sender::new(0);
        let mut beats = Beats::new(sender.subscribe());
        let began = Instant::now();
        tokio::time::timeout(SOON, beats.due()).await.expect("it comes by itself");
        assert!(began.elapsed() >= HEARTBEAT, "{:?}", began.elapsed());
    }
}
