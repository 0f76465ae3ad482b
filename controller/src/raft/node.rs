//! A running member: opened, started, stopped.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use raft::eraftpb::{ConfState, HardState, SnapshotMetadata};
use rorqual_planner::{Action, Conflict};

use super::core::{Core, RaftError, Start, Transport};
use super::handle::{Handle, View};
use super::service::RaftService;
use super::transport::GrpcTransport;
use super::{MemberRecord, RaftOptions, RaftPeer, SnapshotBody, Tuning, pump};
use crate::storage::{DiskStore, Durability, LogChange, LogStore, Position, Recovered, StorageError};
use crate::store::{Outcome, Shared, StateMachine, Store, founding_state};

/// How long the disk may take at the end, beyond the handover of leadership.
const LAST_SYNC: Duration = Duration::from_secs(10);

/// Why a member did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The disk.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A new cluster was to be made where one is.
    #[error("{} holds a cluster already: leave that first, or choose another data folder", dir.display())]
    Occupied {
        /// The store's folder.
        dir: PathBuf,
    },
    /// The first batch of a new cluster contradicts itself.
    #[error("action {action} of the cluster's first batch is refused")]
    Founding {
        /// Counted from 0.
        action: usize,
        /// What is in its way.
        #[source]
        conflict: Conflict,
    },
    /// What is on disk is no state to start from.
    #[error("the Raft store in {} can't be started from", dir.display())]
    Raft {
        /// The store's folder.
        dir: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pump's thread.
    #[error("cannot start the Raft pump's thread")]
    Thread(#[source] std::io::Error),
}

/// A running member of the Raft group. Dropped, it ends as after [`RaftNode::shutdown`], unwatched.
pub struct RaftNode {
    handle: Handle<Outcome>,
    store: Store,
    service: RaftService,
    tuning: Tuning,
}

impl RaftNode {
    /// Opens the store and starts the pump. Runs inside a tokio runtime.
    ///
    /// # Errors
    /// A store that is in use, corrupt or somebody else's; the error names the folder and the way out.
    pub async fn start(options: RaftOptions) -> Result<Self, StartError> {
        let RaftOptions { dir, own, founding, credentials, tuning } = options;
        let cluster_id = credentials.identity().cluster_id;
        let runtime = tokio::runtime::Handle::current();
        let (sender, transport_own) = (tuning.clone(), own.clone());
        let make = move |handle: &Handle<Outcome>| {
            GrpcTransport::new(transport_own, credentials, handle.clone(), runtime)
        };
        let raft_id = own.raft_id;
        let opened = tokio::task::spawn_blocking({
            let dir = dir.clone();
            move || launch(&dir, own, founding, sender, make)
        });
        let (handle, store) = match opened.await {
            Ok(launched) => launched?,
            Err(panic) => return Err(StartError::Raft { dir, source: Box::new(panic) }),
        };
        let service = RaftService::new(cluster_id, raft_id, handle.clone());
        Ok(Self { handle, store, service, tuning })
    }

    /// The replicated store on top of it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What other members talk to, to be mounted on the TLS port.
    pub fn service(&self) -> RaftService {
        self.service.clone()
    }

    /// Hands leadership over if this member leads and another one can, makes everything durable, and ends.
    pub async fn shutdown(self) {
        self.handle.shut_down(self.tuning.handover_deadline + LAST_SYNC).await;
    }
}

impl Drop for RaftNode {
    fn drop(&mut self) {
        // After `shutdown` nobody is there to hear it.
        self.handle.end();
    }
}

/// Opens the store in `dir` and starts a pump on it. Blocks on the disk.
pub(super) fn launch<T: Transport>(
    dir: &Path,
    own: RaftPeer,
    founding: Option<Vec<Action>>,
    tuning: Tuning,
    make_transport: impl FnOnce(&Handle<Outcome>) -> T,
) -> Result<(Handle<Outcome>, Store), StartError> {
    let (mut store, mut recovered) = DiskStore::open(dir)?;
    store.claim(&format!("member {} on node {}", own.raft_id, own.node_id))?;
    if let Some(actions) = founding {
        if recovered.snapshot.is_some() || !recovered.entries.is_empty() {
            return Err(StartError::Occupied { dir: dir.to_owned() });
        }
        recovered = found(&mut store, &own, &actions)?;
    }
    let (sender, events) = mpsc::sync_channel(pump::QUEUE);
    let view = View::new();
    let proposer = rand::random();
    let handle = Handle::new(sender.clone(), view.clone(), proposer, tuning.propose_deadline);
    let transport = make_transport(&handle);
    let shared = Shared::new();
    let core = Core::new(Start {
        own,
        proposer,
        machine: StateMachine::new(shared.clone()),
        store,
        recovered,
        transport,
        view: view.clone(),
        spawn: pump::snapshot_threads(sender),
        tuning,
    })
    .map_err(|error| not_started(dir, error))?;
    pump::start(core, events, view).map_err(StartError::Thread)?;
    Ok((handle.clone(), Store::new(shared, handle)))
}

fn not_started(dir: &Path, error: RaftError) -> StartError {
    match error {
        RaftError::Storage(error) => error.into(),
        error => StartError::Raft { dir: dir.to_owned(), source: Box::new(error) },
    }
}

/// Makes the first state of a cluster: a snapshot at index 1, in which this member votes alone and the first
/// batch is applied. A cluster is there whole or not at all.
fn found<S: LogStore>(store: &mut S, own: &RaftPeer, actions: &[Action]) -> Result<Recovered, StartError> {
    let state = founding_state(actions, crate::clock::now_ms())
        .map_err(|(action, conflict)| StartError::Founding { action, conflict })?;
    Ok(found_group(store, own, state)?)
}

pub(super) fn found_group<S: LogStore>(
    store: &mut S,
    own: &RaftPeer,
    state: Vec<u8>,
) -> Result<Recovered, StorageError> {
    let base = Position { index: 1, term: 1 };
    let mut conf_state = ConfState::default();
    conf_state.voters.push(own.raft_id);
    let mut metadata = SnapshotMetadata { index: base.index, term: base.term, ..SnapshotMetadata::default() };
    metadata.set_conf_state(conf_state);
    let body = SnapshotBody { members: vec![MemberRecord::from(own)], highest_raft_id: own.raft_id, state };
    let data = prost::Message::encode_to_vec(&body);
    let saved = store.snapshots().save(metadata, &data)?;
    let hard_state = HardState { term: base.term, commit: base.index, ..HardState::default() };
    let change = LogChange {
        hard_state: Some(&hard_state),
        base: Some(base),
        snapshot: Some(&saved),
        ..LogChange::default()
    };
    store.write(&change, Durability::Now)?;
    Ok(Recovered { hard_state, base, entries: Vec::new(), snapshot: Some((saved, data)) })
}
