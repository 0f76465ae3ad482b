//! The replicated state machine: log entries in, the state and its changes out.
//!
//! An entry is an encoded [`wire::Batch`]. The versions of all its actions are checked first; the batch is
//! then applied whole or refused whole, the same way on every controller.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use prost::Message as _;
use rorqual_planner::{Action, Change, Conflict, Objects, State};
use rorqual_proto::convert::InvalidField;
use rorqual_proto::wire;

use super::actions;
use super::watch::{Applied, Feed};
use crate::raft::{Answer, Frozen, Machine, MachineError};

/// What became of a batch: its index, or the action (counted from 0) that was refused and why.
pub(crate) type Outcome = Result<u64, (usize, Conflict)>;

/// What readers and the machine share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) state: Arc<RwLock<State>>,
    pub(crate) feed: Feed,
    /// The latest time that a batch was stamped with: stamps never go back, not even with another leader.
    pub(crate) latest_at_ms: Arc<AtomicI64>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::new(RwLock::new(State::default())),
            feed: Feed::new(),
            latest_at_ms: Arc::new(AtomicI64::new(0)),
        }
    }

    pub(crate) fn read<R>(&self, f: impl FnOnce(&State) -> R) -> R {
        f(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Applies entries to the state that [`Shared`] gives to readers.
pub(crate) struct StateMachine {
    shared: Shared,
}

impl StateMachine {
    pub(crate) fn new(shared: Shared) -> Self {
        Self { shared }
    }
}

impl Drop for StateMachine {
    fn drop(&mut self) {
        self.shared.feed.close();
    }
}

/// The snapshot of a cluster that begins with these actions at index 1.
pub(crate) fn founding_state(actions: &[Action], at_ms: i64) -> Result<Vec<u8>, (usize, Conflict)> {
    let mut state = State::default();
    check(&state, actions)?;
    for action in actions {
        state.apply(action, 1, at_ms);
    }
    Ok(encode(&state))
}

/// A batch as a log entry carries it.
pub(crate) fn encode_batch(proposer: u64, sequence: u64, at_ms: i64, actions: &[Action]) -> Vec<u8> {
    let actions = actions.iter().map(actions::to_wire).collect();
    wire::Batch { proposer, sequence, at_ms, actions }.encode_to_vec()
}

fn check(state: &State, actions: &[Action]) -> Result<(), (usize, Conflict)> {
    // The batch as a whole knows more than each action (two services of one name in it); which one is to
    // blame is asked only once it is refused.
    state.check_all(actions).map_err(|conflict| {
        let blamed = actions.iter().position(|action| state.check(action).is_err());
        (blamed.unwrap_or_default(), conflict)
    })
}

fn encode(state: &State) -> Vec<u8> {
    let wire = wire::StoreSnapshot {
        index: state.index(),
        cluster: state.cluster().map(|cluster| (&**cluster).into()),
        nodes: state.nodes().map(|node| (&**node).into()).collect(),
        services: state.services().map(|service| (&**service).into()).collect(),
        tasks: state.tasks().map(|task| (&**task).into()).collect(),
        networks: state.networks().map(|network| (&**network).into()).collect(),
        records: state.records().map(|record| (&**record).into()).collect(),
        guests: state.guests().map(|guest| (&**guest).into()).collect(),
    };
    wire.encode_to_vec()
}

fn decode(data: &[u8]) -> Result<State, MachineError> {
    let unreadable = |problem: String| MachineError { problem };
    let snapshot =
        wire::StoreSnapshot::decode(data).map_err(|error| unreadable(format!("snapshot: {error}")))?;
    let field = |error: InvalidField| unreadable(format!("snapshot: {error}"));
    let objects = Objects {
        index: snapshot.index,
        cluster: snapshot.cluster.map(TryInto::try_into).transpose().map_err(field)?,
        nodes: convert_all(snapshot.nodes).map_err(field)?,
        services: convert_all(snapshot.services).map_err(field)?,
        tasks: convert_all(snapshot.tasks).map_err(field)?,
        networks: convert_all(snapshot.networks).map_err(field)?,
        records: convert_all(snapshot.records).map_err(field)?,
        guests: convert_all(snapshot.guests).map_err(field)?,
    };
    Ok(State::restore(objects))
}

fn convert_all<W, T: TryFrom<W, Error = InvalidField>>(wires: Vec<W>) -> Result<Vec<T>, InvalidField> {
    wires.into_iter().map(TryInto::try_into).collect()
}

impl Machine for StateMachine {
    type Outcome = Outcome;

    fn apply(&mut self, index: u64, data: &[u8]) -> Result<Answer<Outcome>, MachineError> {
        let batch = wire::Batch::decode(data).map_err(|error| MachineError { problem: error.to_string() })?;
        let actions: Vec<Action> = batch
            .actions
            .into_iter()
            .map(actions::from_wire)
            .collect::<Result<_, _>>()
            .map_err(|error| MachineError { problem: error.to_string() })?;
        self.shared.latest_at_ms.fetch_max(batch.at_ms, Ordering::Relaxed);
        let outcome = self.apply_all(index, batch.at_ms, &actions);
        Ok(Answer { proposer: batch.proposer, sequence: batch.sequence, outcome })
    }

    fn freeze(&self) -> Frozen {
        let state = self.shared.read(State::clone);
        Box::new(move || encode(&state))
    }

    fn restore(&mut self, data: &[u8]) -> Result<(), MachineError> {
        let state = decode(data)?;
        *self.shared.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        self.shared.feed.everything();
        Ok(())
    }
}

impl StateMachine {
    fn apply_all(&mut self, index: u64, at_ms: i64, actions: &[Action]) -> Outcome {
        let changes: Vec<Change> = {
            let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
            check(&state, actions)?;
            actions
                .iter()
                .map(|action| state.apply(action, index, at_ms))
                .filter(|change| *change != Change::Nothing)
                .collect()
        };
        if !changes.is_empty() {
            self.shared.feed.batch(Applied { index, changes: changes.into() });
        }
        Ok(index)
    }
}
