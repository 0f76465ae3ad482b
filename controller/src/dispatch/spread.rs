//! How a blob spreads over the cluster: soft state of the leader, about blobs that nodes want just now.
//!
//! ```text
//! registry ──► first to ask ──► second ──► fourth …      each sends on what it has, as it comes
//!                        └────► third
//! ```
//!
//! Nobody is asked by more than [`CHILDREN`] at a time while there is a choice, and nobody asks a node that waits for
//! it, directly or through others. Who has been named and did not deliver is forgotten for this blob; a node whose
//! session ends is forgotten altogether. A new leader begins with nothing: at worst a blob is fetched from outside
//! once more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rorqual_proto::model::NodeId;

/// How many get a blob from one node at a time. A link that two share takes twice as long, and so does no more.
const CHILDREN: usize = 2;

/// Holders that are named at once, for a blob to come from in parts.
const HOLDERS: usize = 3;

/// Blobs that are remembered; the oldest are forgotten first.
const BLOBS: usize = 4_096;

/// Who got a blob is named for so long; after that its own report of images tells.
const KEPT: Duration = Duration::from_secs(60);

/// A node that wants a blob, or has got it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    node: NodeId,
    /// Whom it was told to ask.
    asks: Vec<NodeId>,
    /// Since when it has the blob.
    has_it: Option<Instant>,
}

/// Claims in the order in which they came.
type Claims = Vec<Claim>;

/// What a node is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Advice {
    pub(super) holders: Vec<NodeId>,
    pub(super) parent: Option<NodeId>,
}

/// Which blobs are on their way where. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Spread {
    board: Arc<Mutex<Board>>,
}

#[derive(Default)]
struct Board {
    blobs: BTreeMap<String, (u64, Claims)>,
    sequence: u64,
}

impl Spread {
    fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `holders` are the nodes that report the image that the blob is of.
    pub(super) fn find(&self, digest: &str, node: &NodeId, failed: &[NodeId], holders: &[NodeId]) -> Advice {
        self.board().find(digest, node, failed, holders)
    }

    /// The node wants it no more: it has it, or gave it up.
    pub(super) fn end(&self, digest: &str, node: &NodeId, has_it: bool) {
        let mut board = self.board();
        let Some((_, claims)) = board.blobs.get_mut(digest) else { return };
        if has_it {
            for claim in claims.iter_mut().filter(|claim| claim.node == *node) {
                claim.has_it = Some(Instant::now());
                claim.asks.clear();
            }
        } else {
            claims.retain(|claim| claim.node != *node);
        }
    }

    /// Nothing comes from it for now.
    pub(super) fn forget(&self, node: &NodeId) {
        let mut board = self.board();
        for (_, claims) in board.blobs.values_mut() {
            claims.retain(|claim| claim.node != *node);
        }
        board.blobs.retain(|_, (_, claims)| !claims.is_empty());
    }
}

impl Board {
    fn find(&mut self, digest: &str, node: &NodeId, failed: &[NodeId], holders: &[NodeId]) -> Advice {
        self.sequence += 1;
        let sequence = self.sequence;
        let (_, claims) = self.blobs.entry(digest.to_owned()).or_insert((sequence, Claims::new()));
        claims.retain(|claim| {
            !failed.contains(&claim.node) && claim.has_it.is_none_or(|since| since.elapsed() < KEPT)
        });
        let place = claims.iter().position(|claim| claim.node == *node).unwrap_or_else(|| {
            claims.push(Claim { node: node.clone(), asks: Vec::new(), has_it: None });
            claims.len() - 1
        });
        claims[place].asks.clear();
        claims[place].has_it = None;
        let advice = advise(claims, place, failed, holders);
        claims[place].asks = advice.holders.iter().chain(&advice.parent).cloned().collect();
        if self.blobs.len() > BLOBS
            && let Some(oldest) = self.blobs.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| key.clone())
        {
            self.blobs.remove(&oldest);
        }
        advice
    }
}

/// Whom the node at `place` shall ask.
fn advise(claims: &Claims, place: usize, failed: &[NodeId], holders: &[NodeId]) -> Advice {
    let own = &claims[place].node;
    let load = |node: &NodeId| claims.iter().filter(|claim| claim.asks.contains(node)).count();
    // Whoever wants it has it no more, whatever it reported before.
    let wants = |node: &NodeId| claims.iter().any(|claim| claim.node == *node && claim.has_it.is_none());
    let whole: BTreeSet<&NodeId> = holders
        .iter()
        .chain(claims.iter().filter(|claim| claim.has_it.is_some()).map(|claim| &claim.node))
        .collect();
    let mut whole: Vec<&NodeId> =
        whole.into_iter().filter(|node| *node != own && !failed.contains(node) && !wants(node)).collect();
    whole.sort_by_key(|node| load(node));
    let free: Vec<NodeId> =
        whole.iter().filter(|node| load(node) < CHILDREN).take(HOLDERS).map(|node| (*node).clone()).collect();
    if !free.is_empty() {
        return Advice { holders: free, parent: None };
    }
    // Who came earlier and is still getting it; the least asked, then the earliest.
    let earlier = claims[..place].iter().filter(|claim| {
        claim.has_it.is_none() && !failed.contains(&claim.node) && !waits_for(claims, &claim.node, own)
    });
    let parent = earlier.map(|claim| &claim.node).min_by_key(|node| load(node));
    match (parent, whole.first()) {
        (Some(parent), _) => Advice { holders: Vec::new(), parent: Some(parent.clone()) },
        (None, Some(busy)) => Advice { holders: vec![(*busy).clone()], parent: None },
        (None, None) => Advice::default(),
    }
}

/// Whether what `node` gets comes, or would come, through `other`. Each of two such would have the other's word that the
/// blob is on its way, and wait for ever.
fn waits_for(claims: &Claims, node: &NodeId, other: &NodeId) -> bool {
    let mut seen = vec![node];
    let mut next = 0;
    while let Some(node) = seen.get(next).copied() {
        for asked in claims.iter().filter(|claim| claim.node == *node).flat_map(|claim| &claim.asks) {
            if asked == other {
                return true;
            }
            if !seen.contains(&asked) {
                seen.push(asked);
            }
        }
        next += 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: u128) -> Vec<NodeId> {
        (1..=count).map(NodeId::from_bits).collect()
    }

    fn parent(of: &NodeId) -> Advice {
        Advice { holders: Vec::new(), parent: Some(of.clone()) }
    }

    #[test]
    fn one_fetches_and_the_others_pass_it_on() {
        let (spread, n) = (Spread::default(), nodes(10));
        let advice: Vec<Advice> = n.iter().map(|node| spread.find("b", node, &[], &[])).collect();
        assert_eq!(advice[0], Advice::default(), "the first goes outside");
        let outside = advice.iter().filter(|advice| **advice == Advice::default()).count();
        assert_eq!(outside, 1, "and nobody else: {advice:?}");
        for (place, told) in advice.iter().enumerate().skip(1) {
            let parent = told.parent.as_ref().unwrap();
            assert!(n[..place].contains(parent), "{place} waits for one that came later");
        }
        for node in &n {
            let children = advice.iter().filter(|told| told.parent.as_ref() == Some(node)).count();
            assert!(children <= CHILDREN, "{node} has {children}");
        }
        // Another blob is another story: whoever asks first.
        assert_eq!(spread.find("c", &n[5], &[], &[]), Advice::default());
    }

    #[test]
    fn who_has_it_is_asked_first_and_several_share_the_work() {
        let (spread, n) = (Spread::default(), nodes(8));
        let told = spread.find("b", &n[0], &[], &n[4..7]);
        assert_eq!(told.holders, n[4..7]);
        // Six children are enough for three: then those that are getting it pass it on.
        spread.find("b", &n[1], &[], &n[4..7]);
        assert_eq!(spread.find("b", &n[2], &[], &n[4..7]), parent(&n[0]));
        // One that got it is a holder as good as any, and its sources are free again.
        spread.end("b", &n[0], true);
        let told = spread.find("b", &n[3], &[], &n[4..7]);
        assert!(told.holders.contains(&n[0]), "{told:?}");
    }

    #[test]
    fn who_does_not_deliver_is_replaced() {
        let (spread, n) = (Spread::default(), nodes(3));
        spread.find("b", &n[0], &[], &[]);
        assert_eq!(spread.find("b", &n[1], &[], &[]), parent(&n[0]));
        spread.find("b", &n[2], &[], &[]);
        // The first one did not send: the second takes its place, and nobody waits for a later one.
        assert_eq!(spread.find("b", &n[1], &n[..1], &[]), Advice::default());
        assert_eq!(spread.find("b", &n[2], &n[..1], &[]), parent(&n[1]));
        // It comes again, behind the others.
        assert_eq!(spread.find("b", &n[0], &[], &[]), parent(&n[2]));
        // Sessions that end, and nodes that give up.
        spread.forget(&n[1]);
        assert_eq!(spread.find("b", &n[2], &[], &[]), Advice::default());
        spread.end("b", &n[2], false);
        assert_eq!(spread.find("b", &n[0], &[], &[]), Advice::default());
    }

    #[test]
    fn nobody_asks_a_node_that_waits_for_it() {
        let (spread, n) = (Spread::default(), nodes(4));
        spread.find("b", &n[0], &[], &[]);
        assert_eq!(spread.find("b", &n[1], &[], &[]), parent(&n[0]));
        // A third one did not get it from the first, which therefore comes again behind the second.
        spread.find("b", &n[2], &n[..1], &[]);
        assert_eq!(spread.find("b", &n[0], &[], &[]), Advice::default(), "the second waits for it");
        assert_eq!(spread.find("b", &n[3], &n[1..3], &[]), parent(&n[0]));
    }

    #[test]
    fn who_asks_has_it_no_more_whatever_it_reported() {
        let (spread, n) = (Spread::default(), nodes(3));
        // All have removed it just now, and nobody has heard of that.
        let first = spread.find("b", &n[0], &[], &n);
        let second = spread.find("b", &n[1], &[], &n);
        let third = spread.find("b", &n[2], &[], &n);
        assert_eq!((first.holders, second.holders), (n[1..].to_vec(), n[2..].to_vec()));
        assert_eq!(third, Advice::default(), "the others wait for it");
    }

    #[test]
    fn a_holder_that_failed_is_not_named_again() {
        let (spread, n) = (Spread::default(), nodes(3));
        assert_eq!(spread.find("b", &n[0], &n[1..2], &n[1..2]), Advice::default());
        assert_eq!(spread.find("b", &n[0], &[], &n[..1]), Advice::default(), "itself neither");
    }
}
