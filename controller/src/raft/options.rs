//! What a member needs to start, and the numbers that it runs by.

use std::path::PathBuf;
use std::time::Duration;

use rorqual_planner::Action;
use rorqual_proto::tls::CredentialStore;

use super::RaftPeer;

/// What a member needs to start.
pub struct RaftOptions {
    /// Where log and snapshots are kept. Nobody else may write there.
    pub dir: PathBuf,
    /// This member. The address may differ from the last start's: the group learns the new one.
    pub own: RaftPeer,
    /// The first batch of a new cluster, whose only member this is. `None` resumes what `dir` holds; where
    /// that is nothing, the member waits to be taken in by a leader.
    pub founding: Option<Vec<Action>>,
    /// Certificate and key for connections to other members.
    pub credentials: CredentialStore,
    /// Waits and limits.
    pub tuning: Tuning,
}

impl RaftOptions {
    /// With the usual waits and limits.
    pub fn new(
        dir: PathBuf,
        own: RaftPeer,
        founding: Option<Vec<Action>>,
        credentials: CredentialStore,
    ) -> Self {
        Self { dir, own, founding, credentials, tuning: Tuning::default() }
    }
}

/// Waits and limits of a member.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Raft's unit of time.
    pub tick: Duration,
    /// Ticks between two heartbeats of a leader.
    pub heartbeat_ticks: usize,
    /// Ticks without a majority after which a leader steps down, and for which a follower stays loyal to a
    /// silent leader when others want its vote. A multiple of the heartbeat's, so that a leader wakes for both at
    /// once.
    pub loyalty_ticks: usize,
    /// Ticks of silence after which a follower calls an election: drawn from this range each time. It
    /// begins above `loyalty_ticks`, so that the first candidate finds the others ready to vote.
    pub election_ticks: std::ops::Range<usize>,
    /// Entries that are applied between two snapshots.
    pub snapshot_entries: u64,
    /// Bytes of entries that are applied between two snapshots, if that comes first.
    pub snapshot_log_bytes: u64,
    /// Entries that stay in the log behind a snapshot, for followers that lag a little.
    pub margin_entries: u64,
    /// Ticks after which a leader sends a snapshot again to a follower that has not said anything about it.
    /// Nothing else ends that wait when the word of a lost snapshot is lost itself.
    pub snapshot_patience_ticks: u64,
    /// Proposals in flight; more are answered `Busy`.
    pub in_flight: usize,
    /// The largest log entry.
    pub entry_bytes: usize,
    /// How long a proposer waits for an answer.
    pub propose_deadline: Duration,
    /// How long shutting down waits for another controller to take over leadership.
    pub handover_deadline: Duration,
    /// Election timeouts follow from this, the member's id and the term, instead of chance: for tests that
    /// have to be repeatable.
    pub election_seed: Option<u64>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(100),
            heartbeat_ticks: 5,
            loyalty_ticks: 10,
            election_ticks: 11..15,
            snapshot_entries: 1000,
            snapshot_log_bytes: 8 << 20,
            margin_entries: 500,
            snapshot_patience_ticks: 100,
            in_flight: 1024,
            entry_bytes: 4 << 20,
            propose_deadline: Duration::from_secs(5),
            handover_deadline: Duration::from_secs(1),
            election_seed: None,
        }
    }
}

impl Tuning {
    /// The raw node's configuration. `applied` is the index of the state that was restored.
    pub(super) fn config(&self, raft_id: u64, applied: u64) -> raft::Config {
        raft::Config {
            id: raft_id,
            election_tick: self.loyalty_ticks,
            heartbeat_tick: self.heartbeat_ticks,
            min_election_tick: self.election_ticks.start,
            max_election_tick: self.election_ticks.end,
            applied,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            read_only_option: raft::ReadOnlyOption::Safe,
            batch_append: true,
            max_uncommitted_size: 32 << 20,
            max_committed_size_per_ready: 8 << 20,
            ..raft::Config::default()
        }
    }
}
