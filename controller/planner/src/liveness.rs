//! Which nodes are silent. The leader feeds it with what it hears and asks it what has become of whom.
//!
//! ```text
//!            heard                  silent 2 s            silent 5 s
//! Unknown ────────▶ Ready ────────────────────▶ Suspect ────────────▶ Down
//!                     ▲─────────────── heard ──────┴───────────────────┘
//! ```
//!
//! A suspect gets no new tasks and loses none; what runs on a node that is down is replaced. A new leader
//! has heard of nobody yet, so it grants everybody the whole time again.

use std::collections::{BTreeMap, BTreeSet};

use rorqual_proto::model::{NodeId, NodeState};

/// Silence after which a node is suspected.
pub const SUSPECT_AFTER_MS: i64 = 2_000;
/// Silence after which a node counts as down.
pub const DOWN_AFTER_MS: i64 = 5_000;

/// A node's state has changed: what the leader is to write into its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// Whose.
    pub node_id: NodeId,
    /// What it is now.
    pub state: NodeState,
    /// Why, in words.
    pub message: String,
    /// Since when, milliseconds since the Unix epoch.
    pub at_ms: i64,
}

/// See the module. All times are the leader's, milliseconds since the Unix epoch (or of any clock that
/// only goes forward, as long as it is always the same).
#[derive(Debug, Clone, Default)]
pub struct Liveness {
    nodes: BTreeMap<NodeId, Entry>,
    /// When to look at a node next.
    due: BTreeSet<(i64, NodeId)>,
}

#[derive(Debug, Clone)]
struct Entry {
    heard_at_ms: i64,
    state: NodeState,
}

impl Liveness {
    /// The start of a term: everybody counts as heard of now, and is what the store says. Nodes that have
    /// left are not watched.
    pub fn new<'a>(nodes: impl IntoIterator<Item = (&'a NodeId, NodeState)>, now_ms: i64) -> Self {
        let mut liveness = Self::default();
        for (id, state) in nodes {
            liveness.watch(id, state, now_ms);
        }
        liveness
    }

    /// A node that joined, or whose state was written by somebody else. One that is watched already keeps
    /// its time.
    pub fn watch(&mut self, node_id: &NodeId, state: NodeState, now_ms: i64) {
        if state == NodeState::Left {
            return self.forget(node_id);
        }
        if self.nodes.contains_key(node_id) {
            return;
        }
        self.set(node_id, Entry { heard_at_ms: now_ms, state });
    }

    /// The node was removed or has left.
    pub fn forget(&mut self, node_id: &NodeId) {
        if let Some(entry) = self.nodes.remove(node_id)
            && let Some(due) = next_look(&entry)
        {
            self.due.remove(&(due, node_id.clone()));
        }
    }

    /// A message came from the node. Says what it has become, if that is something else.
    pub fn heard(&mut self, node_id: &NodeId, now_ms: i64) -> Option<Transition> {
        let before = self.nodes.get(node_id)?.clone();
        let heard_at_ms = now_ms.max(before.heard_at_ms);
        self.set(node_id, Entry { heard_at_ms, state: NodeState::Ready });
        (before.state != NodeState::Ready).then(|| Transition {
            node_id: node_id.clone(),
            state: NodeState::Ready,
            message: String::new(),
            at_ms: now_ms,
        })
    }

    /// Who has been silent for too long.
    pub fn tick(&mut self, now_ms: i64) -> Vec<Transition> {
        let mut transitions = Vec::new();
        while let Some((due_ms, id)) = self.due.first().cloned()
            && due_ms <= now_ms
        {
            self.due.remove(&(due_ms, id.clone()));
            let Some(entry) = self.nodes.get(&id).cloned() else { continue };
            let silent_ms = now_ms - entry.heard_at_ms;
            let state = if silent_ms >= DOWN_AFTER_MS { NodeState::Down } else { NodeState::Suspect };
            self.set(&id, Entry { state, ..entry });
            let message = format!("silent for {}.{} s", silent_ms / 1000, silent_ms % 1000 / 100);
            transitions.push(Transition { node_id: id, state, message, at_ms: now_ms });
        }
        transitions
    }

    /// When to call [`Self::tick`] next; never while all nodes that there are are down.
    pub fn wake_at_ms(&self) -> Option<i64> {
        self.due.first().map(|(due_ms, _)| *due_ms)
    }

    /// When the node was heard of last.
    pub fn heard_at_ms(&self, node_id: &NodeId) -> Option<i64> {
        self.nodes.get(node_id).map(|entry| entry.heard_at_ms)
    }

    fn set(&mut self, node_id: &NodeId, entry: Entry) {
        self.forget(node_id);
        if let Some(due_ms) = next_look(&entry) {
            self.due.insert((due_ms, node_id.clone()));
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
    use super::*;

    fn node(bits: u128) -> NodeId {
        NodeId::from_bits(bits)
    }

    fn states(transitions: &[Transition]) -> Vec<(NodeId, NodeState)> {
        transitions.iter().map(|transition| (transition.node_id.clone(), transition.state)).collect()
    }

    #[test]
    fn silence_makes_a_suspect_and_then_a_node_that_is_down() {
        let a = node(1);
        let mut liveness = Liveness::new([(&a, NodeState::Ready)], 1_000);
        assert_eq!(liveness.wake_at_ms(), Some(3_000));
        assert!(liveness.tick(2_999).is_empty());
        assert_eq!(states(&liveness.tick(3_000)), [(a.clone(), NodeState::Suspect)]);
        assert_eq!(liveness.wake_at_ms(), Some(6_000));
        let down = liveness.tick(6_100);
        assert_eq!(states(&down), [(a.clone(), NodeState::Down)]);
        assert_eq!(down[0].message, "silent for 5.1 s");
        assert_eq!(liveness.wake_at_ms(), None);
        assert_eq!(liveness.heard(&a, 9_000).map(|transition| transition.state), Some(NodeState::Ready));
        assert_eq!(liveness.heard(&a, 9_100), None);
    }

    #[test]
    fn a_word_in_time_changes_nothing() {
        let (a, b) = (node(1), node(2));
        let mut liveness = Liveness::new([(&a, NodeState::Ready), (&b, NodeState::Ready)], 0);
        for second in 1..20 {
            assert!(liveness.heard(&a, second * 1_000).is_none());
        }
        assert_eq!(states(&liveness.tick(20_000)), [(b, NodeState::Down)]);
    }

    #[test]
    fn a_new_leader_grants_the_whole_time_and_leaves_down_what_is_down() {
        let (a, b, c) = (node(1), node(2), node(3));
        let mut liveness = Liveness::new(
            [(&a, NodeState::Suspect), (&b, NodeState::Down), (&c, NodeState::Unknown)],
            100_000,
        );
        assert!(liveness.tick(104_999).is_empty());
        assert_eq!(states(&liveness.tick(105_000)), [(a, NodeState::Down), (c, NodeState::Down)]);
        assert_eq!(liveness.heard(&b, 105_001).map(|transition| transition.state), Some(NodeState::Ready));
    }

    #[test]
    fn who_left_is_not_watched() {
        let a = node(1);
        let mut liveness = Liveness::new([(&a, NodeState::Ready)], 0);
        liveness.watch(&a, NodeState::Left, 10);
        assert_eq!(liveness.wake_at_ms(), None);
        assert_eq!(liveness.heard(&a, 20), None);
    }
}
