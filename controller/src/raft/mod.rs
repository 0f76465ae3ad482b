//! Hosting tikv's `raft`: one pump owns the raw node, everything else talks to it through a [`Handle`].
//!
//! Start with [`RaftNode`] (the running member) and `core.rs` (what the pump does with each event);
//! `ready.rs` is the one function that handles a `Ready`, in the documented order.
//!
//! ```text
//! Store ── Event::Propose ──┐                          ┌─▶ LogStore (storage.rs): entries, barrier
//! RaftService ── Message ───┼─▶ bounded queue ─▶ pump ─┼─▶ Machine: committed entries
//! ticks of 100 ms ───────────┘     (its own thread)     └─▶ Transport: one stream a peer
//! ```
//!
//! - `pump.rs`: the thread, its queue and its clock. Blocking disk I/O happens there and on the thread that
//!   writes a snapshot, never on a runtime worker.
//! - `core.rs`, `ready.rs`, `reads.rs`, `membership.rs`, `snapshotting.rs`: the state that the pump owns.
//!   No clock and no thread in there: tests drive it step by step (`sim`).
//! - `log.rs`: the log as the raw node reads it, in memory over a [`crate::storage::LogStore`].
//! - `members.rs`: who belongs to the group, kept in configuration changes and snapshots.
//! - `transport.rs`, `outbox.rs`, `service.rs`, `streams.rs`: messages over gRPC. They are opaque bytes on the
//!   wire; `codec.rs` alone knows what is in them. `answers.rs` has those that need not wake the pump.
//! - `node.rs`: opening, starting and stopping the whole.

mod answers;
mod codec;
mod core;
#[cfg(test)]
mod grpc_tests;
mod handle;
mod log;
mod logging;
mod machine;
mod members;
mod membership;
mod node;
mod options;
mod outbox;
mod pump;
mod reads;
mod ready;
mod service;
#[cfg(test)]
mod sim;
mod snapshotting;
mod streams;
#[cfg(test)]
pub(crate) mod testing;
mod transport;

use rorqual_proto::model::NodeId;

pub(crate) use codec::{MemberRecord, SnapshotBody};
pub(crate) use handle::{Handle, Refusal};
pub(crate) use machine::{Answer, Frozen, Machine, MachineError};
pub use node::{RaftNode, StartError};
pub use options::{RaftOptions, Tuning};
pub use service::RaftService;

/// A member of the Raft group: an id in the group that is never used twice, the node that has it, and
/// where it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftPeer {
    /// At least 1.
    pub raft_id: u64,
    /// As in its certificate.
    pub node_id: NodeId,
    /// `host:port` of its TLS port. A hint: the certificate is what identifies it.
    pub address: String,
}

/// Who leads, as this controller sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The leader; none during an election, and while a new leader has not yet applied what was committed
    /// before its time.
    pub leader: Option<RaftPeer>,
    /// Raft's term.
    pub term: u64,
    /// This controller leads, and its state holds everything that was committed before.
    pub is_leader: bool,
    /// This controller belongs to the group, as voter or learner. False before a joining controller has got
    /// its first snapshot, and once it was removed.
    pub is_member: bool,
    /// The last entry that was applied here.
    pub applied_index: u64,
    /// The Raft member has ended, and why.
    pub stopped: Option<String>,
}

/// A member and how it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Who.
    pub peer: RaftPeer,
    /// It votes. A learner does not yet.
    pub voter: bool,
    /// It answered the leader within about the last second and a half. Only the leader knows: elsewhere
    /// this is true of the controller itself and the leader alone.
    pub reachable: bool,
}
