//! The replicated store, as the rest of the controller sees it.
//!
//! [`Store`] reads the state that this controller has applied, proposes batches of actions (on the leader),
//! and gives watches on what each applied batch changed. `machine.rs` is what Raft applies entries to,
//! `actions.rs` their form on the wire. How entries get replicated is `crate::raft`'s business.
//!
//! ```text
//! propose(actions) ─▶ Batch bytes ─▶ raft ─▶ StateMachine::apply ─▶ State ─▶ Watch
//!        ▲                                         │
//!        └──────────── index or conflict ──────────┘
//! ```

mod actions;
mod error;
mod machine;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rorqual_planner::{Action, State};
use tokio::sync::watch::Receiver;

pub use error::ProposeError;
pub use watch::{Applied, Watch, WatchError};

pub(crate) use machine::{Outcome, Shared, StateMachine, founding_state};

use crate::clock;
use crate::raft::Handle;
pub use crate::raft::{Leadership, MemberStatus, RaftPeer};

/// The replicated store on this controller. Clones share it.
#[derive(Clone)]
pub struct Store {
    shared: Shared,
    raft: Handle<Outcome>,
    /// Numbers this process' proposals.
    sequence: Arc<AtomicU64>,
}

impl Store {
    pub(crate) fn new(shared: Shared, raft: Handle<Outcome>) -> Self {
        Self { shared, raft, sequence: Arc::new(AtomicU64::new(1)) }
    }

    /// Looks at the state as this controller has applied it. Writers wait meanwhile: be short.
    pub fn read<R>(&self, f: impl FnOnce(&State) -> R) -> R {
        self.shared.read(f)
    }

    /// Commits the actions, all or none, and returns the index at which they were applied here. Several
    /// proposals may be in flight; they share disk syncs.
    ///
    /// # Errors
    /// [`ProposeError::Lost`] and [`ProposeError::Timeout`] leave open whether the batch was committed;
    /// every other error says that it was not.
    pub async fn propose(&self, actions: Vec<Action>) -> Result<u64, ProposeError> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let at_ms = clock::now_ms().max(self.shared.latest_at_ms.load(Ordering::Relaxed));
        let data = machine::encode_batch(self.raft.proposer(), sequence, at_ms, &actions);
        drop(actions);
        match self.raft.propose(sequence, data).await? {
            Ok(index) => Ok(index),
            Err((action, conflict)) => Err(ProposeError::Conflict { action, conflict }),
        }
    }

    /// Gets every batch that is applied from now on.
    pub fn watch(&self) -> Watch {
        self.shared.feed.watch()
    }

    /// On the leader: everything that was committed before the call is applied when it returns, and this
    /// controller was still the leader meanwhile. Returns that index.
    pub async fn barrier(&self) -> Result<u64, ProposeError> {
        Ok(self.raft.barrier().await?)
    }

    /// Who leads. The receiver is woken when leader, term or membership change, not with each entry that is
    /// applied; `applied_index` is up to date whenever it is looked at.
    pub fn leadership(&self) -> Receiver<Leadership> {
        self.raft.leadership()
    }

    /// Counts this leader's heartbeats to the others; it stands still while another controller leads.
    pub fn pulse(&self) -> Receiver<u64> {
        self.raft.pulse()
    }

    /// Takes a controller in. It is a learner at first, and gets its vote by itself as soon as it has caught
    /// up; the call returns when it is a learner. Repeating it does no harm.
    pub async fn add_member(&self, peer: RaftPeer) -> Result<(), ProposeError> {
        Ok(self.raft.add_member(peer).await?)
    }

    /// Takes a controller out; its id is never used again. A leader asked to remove itself hands leadership
    /// over and answers [`ProposeError::NotLeader`]: ask the new one.
    pub async fn remove_member(&self, raft_id: u64) -> Result<(), ProposeError> {
        Ok(self.raft.remove_member(raft_id).await?)
    }

    /// Voters and learners, by Raft id.
    pub fn members(&self) -> Vec<RaftPeer> {
        self.raft.member_statuses().into_iter().map(|status| status.peer).collect()
    }

    /// Members and how they are; whether one is reachable only the leader knows.
    pub fn member_statuses(&self) -> Vec<MemberStatus> {
        self.raft.member_statuses()
    }

    /// Hands leadership to another controller that is up to date, if there is one.
    pub async fn transfer_leadership(&self) -> Result<(), ProposeError> {
        Ok(self.raft.transfer_leadership().await?)
    }
}

#[cfg(test)]
mod tests;
