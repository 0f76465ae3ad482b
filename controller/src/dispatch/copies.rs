//! What was pushed to the registry lies on the node that took it. Here a second one is asked to keep a copy, so that
//! a node that is lost takes no image along.
//!
//! ```text
//! a node reports what it has ─► wait a moment ─► pushed, and on one node only? ─► another one: "keep a copy"
//!            ▲                                                                            │
//!            └──────────────────────── it has it, and says so ◄───────────────────────────┘
//! ```
//! One task a controller; it does nothing while another one leads, or while nodes that are alive have not yet said
//! what they have. Nothing is remembered but what was asked just now: who does not deliver is passed over next time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rorqual_planner::State;
use rorqual_proto::model::{Availability, NodeId, NodeState};
use rorqual_proto::wire::{self, to_agent};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tonic::Status;

use super::images::ImageCatalogue;
use crate::store::Store;

type Outbox = mpsc::Sender<Result<wire::ToAgent, Status>>;

/// A push of an image of several platforms, or of several images, is one look.
const SETTLE: Duration = Duration::from_millis(500);

/// The task looks by itself this often.
const LOOK_AROUND: Duration = Duration::from_secs(60);

/// How long a node may take to get a copy before another one is asked.
const PATIENCE: Duration = Duration::from_secs(120);

/// Copies that nodes are asked for at a time.
const UNDER_WAY: usize = 64;

/// The sessions that are open, and what wakes the task. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Copies {
    sessions: Arc<Mutex<BTreeMap<NodeId, (u64, Outbox)>>>,
    wake: Arc<Notify>,
}

impl Copies {
    /// Starts the task; it ends when the store does.
    pub(super) fn start(store: Store, images: ImageCatalogue) -> Self {
        let copies = Self::default();
        tokio::spawn(copies.clone().run(store, images));
        copies
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, (u64, Outbox)>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session has opened.
    pub(super) fn enter(&self, node: NodeId, session: u64, outbox: Outbox) {
        self.sessions().insert(node, (session, outbox));
        self.look();
    }

    /// It has ended, unless another one of the node has taken its place.
    pub(super) fn leave(&self, node: &NodeId, session: u64) {
        let mut sessions = self.sessions();
        if sessions.get(node).is_some_and(|(number, _)| *number == session) {
            sessions.remove(node);
        }
    }

    /// A node has reported what it has.
    pub(super) fn look(&self) {
        self.wake.notify_one();
    }

    async fn run(self, store: Store, images: ImageCatalogue) {
        let mut leadership = store.leadership();
        let mut orders = Orders::default();
        loop {
            if leadership.wait_for(|now| now.is_leader).await.is_err() {
                return;
            }
            // Each arm is cancel-safe: a notification stays stored, and the leadership is read anew at the top.
            tokio::select! {
                () = self.wake.notified() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(LOOK_AROUND) => {}
                changed = leadership.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            }
            let open: BTreeSet<NodeId> = self.sessions().keys().cloned().collect();
            let Some(takers) = store.read(|state| takers(state, &open)) else { continue };
            for (node, digest) in orders.decide(&images.pushed(), &takers, Instant::now()) {
                tracing::info!(%node, digest, "asked to keep a second copy of what the registry was given");
                let message = to_agent::Message::KeepCopy(wire::KeepCopy { digest });
                if let Some((_, outbox)) = self.sessions().get(&node) {
                    // Full or closed: then another one is asked in a while.
                    let _ = outbox.try_send(Ok(wire::ToAgent { message: Some(message) }));
                }
            }
        }
    }
}

/// Nodes that can be asked; `None` while one that is alive has not said what it has.
fn takers(state: &State, open: &BTreeSet<NodeId>) -> Option<Vec<NodeId>> {
    let is_alive = |state: NodeState| matches!(state, NodeState::Ready | NodeState::Suspect);
    if state.nodes().any(|node| is_alive(node.status.state) && !open.contains(&node.id)) {
        return None;
    }
    let active = state.nodes().filter(|node| node.spec.availability == Availability::Active);
    Some(active.map(|node| node.id.clone()).filter(|id| open.contains(id)).collect())
}

/// What was asked for and is not there yet, by the manifest's digest.
#[derive(Default)]
struct Orders(BTreeMap<String, Order>);

struct Order {
    /// Who was asked, the latest last.
    asked: Vec<NodeId>,
    at: Instant,
}

impl Orders {
    /// Who has to be asked for what, now.
    fn decide(
        &mut self,
        pushed: &BTreeMap<String, BTreeSet<NodeId>>,
        takers: &[NodeId],
        now: Instant,
    ) -> Vec<(NodeId, String)> {
        let is_alone = |digest: &String| pushed.get(digest).is_some_and(|holders| holders.len() == 1);
        self.0.retain(|digest, _| is_alone(digest));
        let is_fresh = |order: &Order| now.duration_since(order.at) < PATIENCE;
        let mut room = UNDER_WAY.saturating_sub(self.0.values().filter(|order| is_fresh(order)).count());
        let mut load: BTreeMap<&NodeId, usize> = takers.iter().map(|node| (node, 0)).collect();
        for node in pushed.values().flatten() {
            if let Some(count) = load.get_mut(node) {
                *count += 1;
            }
        }
        let mut decided = Vec::new();
        for (digest, holders) in pushed.iter().filter(|(_, holders)| holders.len() == 1) {
            let order = self.0.get(digest);
            if room == 0 || order.is_some_and(is_fresh) {
                continue;
            }
            // Who was never asked, then whoever was asked longest ago.
            let asked =
                |node: &NodeId| order.and_then(|order| order.asked.iter().position(|one| one == node));
            let free = load.iter().filter(|(node, _)| !holders.contains(**node));
            let best = free.min_by_key(|(node, count)| (asked(node), **count)).map(|(node, _)| *node);
            let Some(node) = best else { continue };
            load.entry(node).and_modify(|count| *count += 1);
            room -= 1;
            let order = self.0.entry(digest.clone()).or_insert(Order { asked: Vec::new(), at: now });
            order.at = now;
            order.asked.retain(|known| known != node);
            order.asked.push(node.clone());
            decided.push((node.clone(), digest.clone()));
        }
        decided
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u128) -> NodeId {
        NodeId::from_bits(number)
    }

    fn pushed(of: &[(&str, &[u128])]) -> BTreeMap<String, BTreeSet<NodeId>> {
        let holders = |numbers: &[u128]| numbers.iter().map(|number| node(*number)).collect();
        of.iter().map(|(digest, numbers)| ((*digest).to_owned(), holders(numbers))).collect()
    }

    fn said(decided: &[(NodeId, String)]) -> Vec<(NodeId, &str)> {
        decided.iter().map(|(node, digest)| (node.clone(), digest.as_str())).collect()
    }

    #[test]
    fn what_is_on_one_node_only_goes_to_the_one_that_has_least() {
        let (mut orders, now) = (Orders::default(), Instant::now());
        let takers = [1, 2, 3].map(node);
        let all = pushed(&[("a", &[1]), ("b", &[1, 2]), ("c", &[1]), ("d", &[2]), ("e", &[])]);
        let decided = orders.decide(&all, &takers, now);
        assert_eq!(said(&decided), [(node(3), "a"), (node(3), "c"), (node(3), "d")]);
        assert_eq!(orders.decide(&all, &takers, now + PATIENCE / 2), [], "they are at it");
        // One has come, one was taken away.
        let all = pushed(&[("a", &[1, 3]), ("d", &[2])]);
        assert_eq!(orders.decide(&all, &takers, now + PATIENCE / 2), []);
        assert_eq!(orders.0.len(), 1);
    }

    #[test]
    fn who_does_not_deliver_is_passed_over_while_there_is_another() {
        let (mut orders, now) = (Orders::default(), Instant::now());
        let (all, takers) = (pushed(&[("a", &[1])]), [1, 2, 3].map(node));
        let mut asked = Vec::new();
        for turn in 0..4 {
            let decided = orders.decide(&all, &takers, now + PATIENCE * turn);
            asked.extend(decided.into_iter().map(|(node, _)| node));
        }
        assert_eq!(asked, [2, 3, 2, 3].map(node));
        assert_eq!(orders.decide(&all, &takers[..1], now + PATIENCE * 9), [], "there is nobody else");
    }

    #[test]
    fn not_everything_is_asked_for_at_once() {
        let (mut orders, now) = (Orders::default(), Instant::now());
        let names: Vec<String> = (0..100).map(|number| format!("{number:03}")).collect();
        let all = names.iter().map(|name| (name.clone(), BTreeSet::from([node(1)]))).collect();
        let takers = [1, 2].map(node);
        assert_eq!(orders.decide(&all, &takers, now).len(), UNDER_WAY);
        assert_eq!(orders.decide(&all, &takers, now).len(), 0);
    }
}
