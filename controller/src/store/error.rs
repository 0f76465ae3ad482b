//! Why a write was not done.

use rorqual_planner::Conflict;

use crate::raft::{RaftPeer, Refusal};

/// A proposal, a change of membership or a barrier that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Only the leader writes. Nothing was written.
    #[error("this controller does not lead{}", leader_words(.leader.as_ref()))]
    NotLeader {
        /// Who leads, as far as this controller knows.
        leader: Option<RaftPeer>,
    },
    /// The batch met a newer state. Nothing was written.
    #[error("the write does not fit the present state any more")]
    Conflict {
        /// The first action that was refused, counted from 0.
        action: usize,
        /// What is in its way.
        #[source]
        conflict: Conflict,
    },
    /// Too much is in flight. Nothing was written; repeat.
    #[error("too many writes are in flight: repeat in a moment")]
    Busy,
    /// Leadership was lost while the proposal was in flight: it may still be committed, or not.
    #[error(
        "this controller lost leadership, or stopped, while the write was in flight; it may or may not have \
         been done"
    )]
    Lost,
    /// No answer within the time that is given to a proposal: it may still be committed, or not.
    #[error("no majority of controllers confirmed the write in time; it may or may not have been done")]
    Timeout,
    /// More than one log entry may carry. Nothing was written.
    #[error("the batch has {size_bytes} bytes and may have {limit_bytes}: split it")]
    TooLarge {
        /// The batch's size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// A change of membership that would do harm. Nothing was changed.
    #[error("{problem}")]
    Refused {
        /// What it would do, and what to do instead.
        problem: String,
    },
    /// The Raft member has ended.
    #[error("the controller has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

fn leader_words(leader: Option<&RaftPeer>) -> String {
    match leader {
        Some(peer) => format!(" (node {} at {} does)", peer.node_id, peer.address),
        None => ", and none is known to lead".to_owned(),
    }
}

impl From<Refusal> for ProposeError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotLeader { leader } => Self::NotLeader { leader },
            Refusal::Busy => Self::Busy,
            Refusal::Lost => Self::Lost,
            Refusal::Timeout => Self::Timeout,
            Refusal::TooLarge { size_bytes, limit_bytes } => Self::TooLarge { size_bytes, limit_bytes },
            Refusal::Harmful { problem } => Self::Refused { problem },
            Refusal::Stopped { reason } => Self::Stopped { reason },
        }
    }
}
