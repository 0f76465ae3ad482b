//! Which nodes are silent. The leader feeds it with what it hears and asks it what has become of whom.
//!
//! ```text
//!            heard            hung up, or silent 2 s      silent 5 s
//! Unknown ────────▶ Ready ────────────────────▶ Suspect ────────────▶ Down
//!                     ▲─────────────── heard ──────┴───────────────────┘
//! ```
//!
//! A suspect gets no new tasks and loses none; what runs on a node that is down is replaced. A new leader
//! has heard of nobody yet, so it grants everybody the whole time again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rorqual_proto::model::{Node, NodeId, NodeState};

use crate::State;

/// Silence after which a node is suspected.
pub const SUSPECT_AFTER_MS: i64 = 2_000;
/// Silence after which a node counts as down.
pub const DOWN_AFTER_MS: i64 = 5_000;

/// See the module. All times are the leader's, milliseconds since the Unix epoch.
///
/// It keeps what it thinks of a node and what the store says; where they differ, [`Self::tick`] says so,
/// again and again until [`Self::follow`] has seen it written. So a write that was lost is repeated.
#[derive(Debug, Clone, Default)]
pub struct Liveness {
    nodes: BTreeMap<NodeId, Entry>,
    /// When a node's silence turns it into something else.
    due: BTreeSet<(i64, NodeId)>,
    /// Nodes of which the store says something else.
    news: BTreeSet<NodeId>,
}

#[derive(Debug, Clone)]
struct Entry {
    heard_at_ms: i64,
    state: NodeState,
    stored: NodeState,
}

impl Liveness {
    /// Watches nobody yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The start of a term: every node counts as heard of now, and is what the store says.
    pub fn reset(&mut self, state: &State, now_ms: i64) {
        *self = Self::default();
        for node in state.nodes() {
            self.follow(&node.id, Some(node), now_ms);
        }
    }

    /// Takes note of a node's record as it is now: a new node is watched, one that is gone is forgotten.
    pub fn follow(&mut self, node_id: &NodeId, node: Option<&Arc<Node>>, now_ms: i64) {
        let stored = node.map_or(NodeState::Left, |node| node.status.state);
        if stored == NodeState::Left {
            self.forget(node_id);
            return;
        }
        let entry = match self.nodes.get(node_id) {
            Some(entry) => Entry { stored, ..entry.clone() },
            None => Entry { heard_at_ms: now_ms, state: stored, stored },
        };
        self.set(node_id, entry);
    }

    /// A message came from the node. True where that is news to the store: ask [`Self::tick`] at once.
    pub fn heard(&mut self, node_id: &NodeId, now_ms: i64) -> bool {
        let Some(entry) = self.nodes.get(node_id) else { return false };
        let heard_at_ms = now_ms.max(entry.heard_at_ms);
        let stored = entry.stored;
        self.set(node_id, Entry { heard_at_ms, state: NodeState::Ready, stored });
        stored != NodeState::Ready
    }

    /// Its connection broke, as happens when its daemon ends: a suspect at once, so that nothing new is sent where
    /// nobody takes it. Down it is no sooner for that. True where it is news to the store.
    pub fn hung_up(&mut self, node_id: &NodeId) -> bool {
        let Some(entry) = self.nodes.get(node_id).filter(|entry| entry.state == NodeState::Ready) else {
            return false;
        };
        let suspect = Entry { state: NodeState::Suspect, ..entry.clone() };
        let news = suspect.stored != NodeState::Suspect;
        self.set(node_id, suspect);
        news
    }

    /// What has to be written: nodes that are something else than the store says, and why.
    pub fn tick(&mut self, now_ms: i64) -> Vec<(NodeId, NodeState, String)> {
        while let Some((due_ms, id)) = self.due.first().cloned()
            && due_ms <= now_ms
        {
            self.due.remove(&(due_ms, id.clone()));
            let Some(entry) = self.nodes.get(&id).cloned() else { continue };
            let silent_ms = now_ms - entry.heard_at_ms;
            let state = if silent_ms >= DOWN_AFTER_MS { NodeState::Down } else { NodeState::Suspect };
            self.set(&id, Entry { state, ..entry });
        }
        let news = self.news.iter().filter_map(|id| {
            let entry = self.nodes.get(id)?;
            let silent_ms = now_ms.saturating_sub(entry.heard_at_ms);
            let message = match entry.state {
                NodeState::Suspect if silent_ms < SUSPECT_AFTER_MS => "its daemon hung up".to_owned(),
                NodeState::Suspect | NodeState::Down => {
                    format!("silent for {}.{} s", silent_ms / 1000, silent_ms % 1000 / 100)
                }
                _ => String::new(),
            };
            Some((id.clone(), entry.state, message))
        });
        news.collect()
    }

    /// When to call [`Self::tick`] next; none while all nodes that there are are down.
    pub fn next_wake_ms(&self) -> Option<i64> {
        self.due.first().map(|(due_ms, _)| *due_ms)
    }

    fn forget(&mut self, node_id: &NodeId) {
        if let Some(due_ms) = self.nodes.remove(node_id).and_then(|entry| next_look(&entry)) {
            self.due.remove(&(due_ms, node_id.clone()));
        }
        self.news.remove(node_id);
    }

    fn set(&mut self, node_id: &NodeId, entry: Entry) {
        self.forget(node_id);
        if let Some(due_ms) = next_look(&entry) {
            self.due.insert((due_ms, node_id.clone()));
        }
        if entry.state != entry.stored {
            self.news.insert(node_id.clone());
        }
        self.nodes.insert(node_id.clone(), entry);
    }
}

fn next_look(entry: &Entry) -> Option<i64> {
    match entry.state {
        NodeState::Ready => Some(entry.heard_at_ms + SUSPECT_AFTER_MS),
        // Somebody who was never heard of is no suspect: there is nothing to be interrupted.
        NodeState::Suspect | NodeState::Unknown => Some(entry.heard_at_ms + DOWN_AFTER_MS),
        NodeState::Down | NodeState::Left => None,
    }
}

#[cfg(test)]
mod tests {
    use rorqual_proto::model::{Availability, Meta, NodeDescription, NodeSpec, NodeStatus, Role};

    use super::*;

    fn node(bits: u128, state: NodeState) -> Arc<Node> {
        Arc::new(Node {
            id: NodeId::from_bits(bits),
            meta: Meta::default(),
            spec: NodeSpec {
                role: Role::Worker,
                availability: Availability::Active,
                labels: BTreeMap::new(),
            },
            description: NodeDescription::default(),
            status: NodeStatus { state, message: String::new(), since_ms: 0 },
            address: String::new(),
            raft_id: None,
        })
    }

    fn watching(nodes: &[&Arc<Node>], now_ms: i64) -> Liveness {
        let mut liveness = Liveness::new();
        for node in nodes {
            liveness.follow(&node.id, Some(node), now_ms);
        }
        liveness
    }

    /// What a tick says, as if it was then written.
    fn tick(liveness: &mut Liveness, now_ms: i64) -> Vec<(u128, NodeState)> {
        let news = liveness.tick(now_ms);
        let mut found = Vec::new();
        for (id, state, _) in news {
            let bits = (1..9).find(|bits| NodeId::from_bits(*bits) == id).unwrap();
            liveness.follow(&id, Some(&node(bits, state)), now_ms);
            found.push((bits, state));
        }
        found
    }

    #[test]
    fn silence_makes_a_suspect_and_then_a_node_that_is_down() {
        let a = node(1, NodeState::Ready);
        let mut liveness = watching(&[&a], 1_000);
        assert_eq!(liveness.next_wake_ms(), Some(3_000));
        assert!(liveness.tick(2_999).is_empty());
        assert_eq!(tick(&mut liveness, 3_000), [(1, NodeState::Suspect)]);
        assert_eq!(liveness.next_wake_ms(), Some(6_000));
        assert_eq!(liveness.tick(6_100)[0].2, "silent for 5.1 s");
        assert_eq!(tick(&mut liveness, 6_100), [(1, NodeState::Down)]);
        assert_eq!(liveness.next_wake_ms(), None);
        assert!(liveness.heard(&a.id, 9_000));
        assert_eq!(tick(&mut liveness, 9_000), [(1, NodeState::Ready)]);
        assert!(!liveness.heard(&a.id, 9_100));
    }

    #[test]
    fn who_hangs_up_is_a_suspect_at_once_and_down_no_sooner() {
        let (a, b) = (node(1, NodeState::Ready), node(2, NodeState::Down));
        let mut liveness = watching(&[&a, &b], 1_000);
        assert!(!liveness.heard(&a.id, 2_000));
        assert!(liveness.hung_up(&a.id));
        assert_eq!(liveness.tick(2_001)[0].2, "its daemon hung up");
        assert_eq!(tick(&mut liveness, 2_001), [(1, NodeState::Suspect)]);
        assert!(tick(&mut liveness, 6_999).is_empty());
        assert_eq!(tick(&mut liveness, 7_000), [(1, NodeState::Down)]);
        assert!(!liveness.hung_up(&a.id) && !liveness.hung_up(&b.id), "down is down");
        assert!(liveness.tick(7_001).is_empty());
    }

    #[test]
    fn who_is_back_before_it_was_written_is_as_before() {
        let a = node(1, NodeState::Ready);
        let mut liveness = watching(&[&a], 0);
        assert!(liveness.hung_up(&a.id));
        assert!(!liveness.heard(&a.id, 5), "the store never knew");
        assert!(liveness.tick(6).is_empty());
    }

    #[test]
    fn what_is_not_written_is_said_again() {
        let a = node(1, NodeState::Ready);
        let mut liveness = watching(&[&a], 0);
        assert_eq!(liveness.tick(7_000).len(), 1);
        assert_eq!(tick(&mut liveness, 7_001), [(1, NodeState::Down)]);
        assert!(liveness.tick(7_002).is_empty());
    }

    #[test]
    fn a_word_in_time_changes_nothing() {
        let (a, b) = (node(1, NodeState::Ready), node(2, NodeState::Ready));
        let mut liveness = watching(&[&a, &b], 0);
        for second in 1..20 {
            assert!(!liveness.heard(&a.id, second * 1_000));
        }
        assert_eq!(tick(&mut liveness, 20_000), [(2, NodeState::Down)]);
    }

    #[test]
    fn a_new_leader_grants_the_whole_time_and_leaves_down_what_is_down() {
        let nodes = [node(1, NodeState::Suspect), node(2, NodeState::Down), node(3, NodeState::Unknown)];
        let mut liveness = watching(&[&nodes[0], &nodes[1], &nodes[2]], 100_000);
        assert!(liveness.tick(104_999).is_empty());
        assert_eq!(tick(&mut liveness, 105_000), [(1, NodeState::Down), (3, NodeState::Down)]);
        assert!(liveness.heard(&nodes[1].id, 105_001));
    }

    #[test]
    fn who_left_is_not_watched() {
        let a = node(1, NodeState::Ready);
        let mut liveness = watching(&[&a], 0);
        liveness.follow(&a.id, Some(&node(1, NodeState::Left)), 10);
        assert_eq!(liveness.next_wake_ms(), None);
        assert!(!liveness.heard(&a.id, 20));
        liveness.follow(&a.id, None, 30);
        assert!(liveness.tick(99_000).is_empty());
    }
}
