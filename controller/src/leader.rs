//! The leader's control loop: looks at what changed, plans, proposes.
//!
//! One task, started once a controller. While another controller leads it only waits. When this one comes
//! to lead it waits for the barrier (everything that was committed before is applied), looks at the whole
//! state once, and from then on at what the watch names. A batch whose versions moved is simply planned
//! again. There is no second path for start-up.
//!
//! ```text
//! follower ──leads──▶ barrier ──▶ look at everything ──▶ plan ⇄ propose ──lost leadership──▶ follower
//!                                        ▲                 │
//!                                        └──── lagged ─────┘
//! ```

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rorqual_planner::liveness::Liveness;
use rorqual_planner::{Action, ActionKind, Change, Planner};
use rorqual_proto::model::{NodeId, NodeStatus};
use tokio::sync::Notify;

use crate::clock;
use crate::store::{ProposeError, Store, Watch, WatchError};

/// The loop looks by itself this often, whatever it was told.
const LOOK_AROUND: Duration = Duration::from_secs(10);

/// The wait after a proposal that failed for want of a leader or of room.
const PAUSE: Duration = Duration::from_millis(20);

/// What the loop shares with the dispatcher: who was heard.
#[derive(Clone, Default)]
pub(crate) struct LeaderShared {
    liveness: Arc<Mutex<Liveness>>,
    wake: Arc<Notify>,
}

impl LeaderShared {
    fn liveness(&self) -> MutexGuard<'_, Liveness> {
        self.liveness.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A sign of life of a node. Wakes the loop only when the node was not thought alive.
    pub(crate) fn heard(&self, node: &NodeId) {
        let news = self.liveness().heard(node, clock::now_ms());
        if news {
            self.wake.notify_one();
        }
    }

    /// A node's session broke off. Wakes the loop only when the node was thought alive.
    pub(crate) fn hung_up(&self, node: &NodeId) {
        let news = self.liveness().hung_up(node);
        if news {
            self.wake.notify_one();
        }
    }
}

/// Runs until the store's watch closes, that is until this controller shuts down.
pub(crate) async fn run(store: Store, shared: LeaderShared) {
    let mut leadership = store.leadership();
    loop {
        if leadership.wait_for(|now| now.is_leader).await.is_err() {
            return;
        }
        let term = leadership.borrow().term;
        match store.barrier().await {
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "no barrier yet");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        }
        tracing::info!(term, "leading");
        if lead(&store, &shared).await.is_err() {
            return;
        }
        tracing::info!(term, "no longer leading");
    }
}

/// The watch has closed: the controller shuts down.
struct Closed;

async fn lead(store: &Store, shared: &LeaderShared) -> Result<(), Closed> {
    let mut leadership = store.leadership();
    let mut watch = store.watch();
    let mut planner = Planner::new();
    store.read(|state| {
        planner.observe_all(state);
        shared.liveness().reset(state, clock::now_ms());
    });
    let mut wake_at_ms = None;
    loop {
        if !leadership.borrow_and_update().is_leader {
            return Ok(());
        }
        let more = plan_once(store, shared, &mut planner, &mut wake_at_ms).await;
        drain(store, shared, &mut watch, &mut planner)?;
        if more {
            continue;
        }
        let pause = pause_ms(wake_at_ms, shared.liveness().next_wake_ms());
        // Each arm is cancel-safe: the watch keeps what was not taken, a notification stays stored, and
        // the leadership's value is read anew at the top.
        tokio::select! {
            changes = watch.recv() => observe(store, shared, &mut planner, changes)?,
            () = shared.wake.notified() => {}
            changed = leadership.changed() => if changed.is_err() { return Err(Closed) },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Takes what is there already, so that one plan answers a burst.
fn drain(
    store: &Store,
    shared: &LeaderShared,
    watch: &mut Watch,
    planner: &mut Planner,
) -> Result<(), Closed> {
    while let Some(changes) = watch.try_recv() {
        observe(store, shared, planner, changes)?;
    }
    Ok(())
}

fn observe(
    store: &Store,
    shared: &LeaderShared,
    planner: &mut Planner,
    changes: Result<crate::store::Applied, WatchError>,
) -> Result<(), Closed> {
    match changes {
        Ok(applied) => {
            let mut liveness = shared.liveness();
            for change in applied.changes.iter() {
                planner.observe(change);
                if let Change::Node(id) = change {
                    store.read(|state| liveness.follow(id, state.node(id), clock::now_ms()));
                }
            }
            Ok(())
        }
        Err(WatchError::Lagged) => {
            store.read(|state| {
                planner.observe_all(state);
                let mut liveness = shared.liveness();
                for node in state.nodes() {
                    liveness.follow(&node.id, Some(node), clock::now_ms());
                }
            });
            Ok(())
        }
        Err(WatchError::Closed) => Err(Closed),
    }
}

/// Plans and proposes one bounded batch; true while there is more to do at once.
async fn plan_once(
    store: &Store,
    shared: &LeaderShared,
    planner: &mut Planner,
    wake_at_ms: &mut Option<i64>,
) -> bool {
    let now_ms = clock::now_ms();
    let mut actions = node_states(shared, now_ms);
    let mut plan = store.read(|state| planner.plan(state, now_ms, rand::random()));
    *wake_at_ms = plan.wake_at_ms;
    actions.append(&mut plan.actions);
    if actions.is_empty() {
        return !plan.idle;
    }
    match store.propose(actions).await {
        Ok(_) => !plan.idle,
        Err(error) => {
            tracing::debug!(%error, "plan was not committed; looking again");
            planner.retry(&plan);
            if !matches!(error, ProposeError::Conflict { .. }) {
                tokio::time::sleep(PAUSE).await;
            }
            true
        }
    }
}

/// Nodes that came back or fell silent, as writes.
fn node_states(shared: &LeaderShared, now_ms: i64) -> Vec<Action> {
    let news = shared.liveness().tick(now_ms);
    news.into_iter()
        .map(|(node_id, state, message)| {
            tracing::info!(node = %node_id, ?state, message, "node state");
            Action::new(ActionKind::NodeStatus {
                node_id,
                status: Some(NodeStatus { state, message, since_ms: now_ms }),
                description: None,
                address: None,
            })
        })
        .collect()
}

fn pause_ms(plan: Option<i64>, liveness: Option<i64>) -> Duration {
    let soonest = plan.into_iter().chain(liveness).min();
    match soonest {
        None => LOOK_AROUND,
        Some(at_ms) => {
            let wait = (at_ms - clock::now_ms()).max(1).unsigned_abs();
            Duration::from_millis(wait).min(LOOK_AROUND)
        }
    }
}
