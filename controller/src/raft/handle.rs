//! How everything else talks to the pump: bounded, and with a deadline on every answer.

use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use raft::eraftpb::Message;
use tokio::sync::{oneshot, watch};

use super::answers::Answers;
use super::members::Members;
use super::{Leadership, MemberStatus, RaftPeer};
use crate::storage::{SavedSnapshot, StorageError};

/// Why the pump did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    NotLeader { leader: Option<RaftPeer> },
    Busy,
    Lost,
    Timeout,
    TooLarge { size_bytes: usize, limit_bytes: usize },
    Harmful { problem: String },
    Stopped { reason: String },
}

/// Where an answer goes. Dropped unanswered, it means [`Refusal::Lost`].
pub(super) type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// A change of membership that somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    Add(RaftPeer),
    Remove(u64),
}

/// Everything that reaches the pump.
pub(super) enum Event<O> {
    Propose {
        sequence: u64,
        data: Vec<u8>,
        reply: Reply<O>,
    },
    Barrier {
        reply: Reply<u64>,
    },
    Member {
        wish: Wish,
        reply: Reply<()>,
    },
    Transfer {
        reply: Reply<()>,
    },
    /// From another member.
    Message(Box<Message>),
    /// Another member has opened its stream; this is who it says it is, proven but for the address.
    Heard(RaftPeer),
    /// Nothing can be sent to that member.
    Unreachable(u64),
    /// That member's stream has ended: its process died, or the connection to it broke.
    HungUp(u64),
    SnapshotSent {
        to: u64,
        delivered: bool,
    },
    SnapshotSaved(Result<SavedSnapshot, StorageError>),
    Shutdown {
        reply: oneshot::Sender<()>,
    },
}

/// What the pump shows to everybody, without being asked.
#[derive(Clone)]
pub(super) struct View {
    pub(super) leadership: Arc<watch::Sender<Leadership>>,
    pub(super) members: Arc<RwLock<Members>>,
    pub(super) statuses: Arc<RwLock<Vec<MemberStatus>>>,
    /// Counts a leader's heartbeats: whoever has something to send often does it then, in the same wake-up.
    pub(super) pulse: Arc<watch::Sender<u64>>,
    /// What the pump takes with it when it wakes.
    pub(super) answers: Answers,
    /// Set when the pump ends.
    pub(super) stopped: Arc<OnceLock<String>>,
}

impl View {
    pub(super) fn new() -> Self {
        Self {
            leadership: Arc::new(watch::Sender::new(Leadership::default())),
            members: Arc::default(),
            statuses: Arc::default(),
            pulse: Arc::new(watch::Sender::new(0)),
            answers: Answers::default(),
            stopped: Arc::default(),
        }
    }

    fn stop_refusal(&self) -> Refusal {
        let reason = self.stopped.get().cloned().unwrap_or_else(|| "it is shutting down".to_owned());
        Refusal::Stopped { reason }
    }
}

/// Talks to the pump. Clones share it.
pub(crate) struct Handle<O> {
    events: SyncSender<Event<O>>,
    view: View,
    proposer: u64,
    deadline: Duration,
}

impl<O> Clone for Handle<O> {
    fn clone(&self) -> Self {
        Self {
            events: self.events.clone(),
            view: self.view.clone(),
            proposer: self.proposer,
            deadline: self.deadline,
        }
    }
}

impl<O> Handle<O> {
    pub(super) fn new(events: SyncSender<Event<O>>, view: View, proposer: u64, deadline: Duration) -> Self {
        Self { events, view, proposer, deadline }
    }

    /// Names this process in its proposals.
    pub(crate) fn proposer(&self) -> u64 {
        self.proposer
    }

    pub(crate) async fn propose(&self, sequence: u64, data: Vec<u8>) -> Result<O, Refusal> {
        self.ask(|reply| Event::Propose { sequence, data, reply }).await
    }

    pub(crate) async fn barrier(&self) -> Result<u64, Refusal> {
        self.ask(|reply| Event::Barrier { reply }).await
    }

    pub(crate) async fn add_member(&self, peer: RaftPeer) -> Result<(), Refusal> {
        self.ask(|reply| Event::Member { wish: Wish::Add(peer), reply }).await
    }

    pub(crate) async fn remove_member(&self, raft_id: u64) -> Result<(), Refusal> {
        self.ask(|reply| Event::Member { wish: Wish::Remove(raft_id), reply }).await
    }

    pub(crate) async fn transfer_leadership(&self) -> Result<(), Refusal> {
        self.ask(|reply| Event::Transfer { reply }).await
    }

    pub(crate) fn leadership(&self) -> watch::Receiver<Leadership> {
        self.view.leadership.subscribe()
    }

    pub(crate) fn pulse(&self) -> watch::Receiver<u64> {
        self.view.pulse.subscribe()
    }

    pub(crate) fn member_statuses(&self) -> Vec<MemberStatus> {
        self.view.statuses.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives the pump something that may be lost, as messages between members may.
    pub(super) fn tell(&self, event: Event<O>) {
        if let Err(TrySendError::Full(_)) = self.events.try_send(event) {
            tracing::debug!("the Raft pump is behind: dropped a message");
        }
    }

    /// Gives the pump a message of another member, at once or with what wakes it next.
    pub(super) fn deliver(&self, message: Box<Message>) {
        if let Err(message) = self.view.answers.keep(message) {
            self.tell(Event::Message(message));
        }
    }

    async fn ask<T>(&self, event: impl FnOnce(Reply<T>) -> Event<O>) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        match self.events.try_send(event(reply)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(Refusal::Busy),
            Err(TrySendError::Disconnected(_)) => return Err(self.view.stop_refusal()),
        }
        match tokio::time::timeout(self.deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Refusal::Lost),
            Err(_) => Err(Refusal::Timeout),
        }
    }

    /// Ends the pump, after it has handed over what it led. Returns when it has ended or will not.
    pub(super) async fn shut_down(&self, deadline: Duration) {
        let (reply, done) = oneshot::channel();
        let mut event = Event::Shutdown { reply };
        let started = tokio::time::Instant::now();
        // The queue is full only while the pump works: it empties.
        while let Err(TrySendError::Full(back)) = self.events.try_send(event) {
            if started.elapsed() > deadline {
                tracing::warn!("the Raft pump takes no more events; it ends with the process");
                return;
            }
            event = back;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if tokio::time::timeout(deadline, done).await.is_err() {
            tracing::warn!("the Raft pump has not ended in time; it ends with the process");
        }
    }

    /// Ends the pump, without waiting for it.
    pub(super) fn end(&self) {
        let (reply, _) = oneshot::channel();
        let _ = self.events.try_send(Event::Shutdown { reply });
    }

    pub(super) fn view(&self) -> &View {
        &self.view
    }
}
