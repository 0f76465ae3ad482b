//! Which node has which image: soft state of the leader, rebuilt from what agents report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use rorqual_proto::model::NodeId;
use rorqual_proto::wire;

/// The most holders that an answer names; a node needs a few, not all.
const MOST_HOLDERS: usize = 8;

/// A node whose session has ended comes back with what it had, most likely: for so long.
const COMES_BACK: Duration = Duration::from_secs(300);

/// Per node, the images that it last reported. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct ImageCatalogue {
    nodes: Arc<RwLock<BTreeMap<NodeId, Reported>>>,
}

struct Reported {
    images: Vec<wire::ImageHave>,
    /// When its session ended.
    left: Option<Instant>,
}

impl ImageCatalogue {
    /// A node's whole list.
    pub(crate) fn report(&self, node: NodeId, images: wire::Images) {
        let mut nodes = self.nodes.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        nodes.insert(node, Reported { images: images.images, left: None });
    }

    /// Its session has ended: nobody can fetch from it for now.
    pub(crate) fn forget(&self, node: &NodeId) {
        let mut nodes = self.nodes.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(reported) = nodes.get_mut(node) {
            reported.left = Some(Instant::now());
        }
        nodes.retain(|_, reported| reported.left.is_none_or(|left| left.elapsed() < COMES_BACK));
    }

    /// The manifests that the registry was given, and the nodes that have them; those too that will be back soon.
    pub(crate) fn pushed(&self) -> BTreeMap<String, BTreeSet<NodeId>> {
        let nodes = self.nodes.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let counts = |reported: &Reported| reported.left.is_none_or(|left| left.elapsed() < COMES_BACK);
        let counted = || nodes.iter().filter(|(_, reported)| counts(reported));
        let mut pushed: BTreeMap<String, BTreeSet<NodeId>> = BTreeMap::new();
        for (_, reported) in counted() {
            let held = reported.images.iter().filter(|image| image.pushed);
            pushed.extend(held.map(|image| (image.digest.clone(), BTreeSet::new())));
        }
        for (node, reported) in counted() {
            // Of the index of an image that was pulled, other platforms may not be there.
            for image in reported.images.iter().filter(|image| image.pushed || !image.is_part) {
                if let Some(holders) = pushed.get_mut(&image.digest) {
                    holders.insert(node.clone());
                }
            }
        }
        pushed
    }

    /// What each node has, without what only others may fetch from it.
    pub(crate) fn all(&self) -> Vec<(NodeId, Vec<wire::ImageHave>)> {
        let nodes = self.nodes.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let own =
            |images: &Vec<wire::ImageHave>| images.iter().filter(|image| !image.is_part).cloned().collect();
        let here = nodes.iter().filter(|(_, reported)| reported.left.is_none());
        here.map(|(id, reported)| (id.clone(), own(&reported.images))).collect()
    }

    /// The digest that is meant and the nodes that have it. A reference that nodes resolve differently
    /// takes the digest that most of them have, the lowest where that is a tie.
    pub(crate) fn locate(&self, reference: &str, digest: &str) -> (String, Vec<NodeId>) {
        let nodes = self.nodes.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut found: BTreeMap<&str, Vec<&NodeId>> = BTreeMap::new();
        for (node, reported) in nodes.iter().filter(|(_, reported)| reported.left.is_none()) {
            for image in &reported.images {
                let meant = if digest.is_empty() {
                    !reference.is_empty() && image.reference == reference
                } else {
                    image.digest == digest
                };
                let holders = found.entry(&image.digest).or_default();
                if meant && holders.last() != Some(&node) {
                    holders.push(node);
                }
            }
        }
        let best = found.into_iter().rev().max_by_key(|(_, holders)| holders.len());
        match best {
            Some((digest, holders)) if !holders.is_empty() => {
                let holders = holders.into_iter().take(MOST_HOLDERS).cloned().collect();
                (digest.to_owned(), holders)
            }
            _ => (String::new(), Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn have(reference: &str, digest: &str) -> wire::Images {
        let image =
            wire::ImageHave { reference: reference.into(), digest: digest.into(), ..Default::default() };
        wire::Images { images: vec![image] }
    }

    #[test]
    fn what_was_pushed_is_where_any_node_has_it_or_will_have_it_again() {
        let catalogue = ImageCatalogue::default();
        let nodes: Vec<_> = (0..3).map(NodeId::from_bits).collect();
        let mut pushed = have("", "sha256:1");
        pushed.images[0].pushed = true;
        catalogue.report(nodes[0].clone(), pushed);
        catalogue.report(nodes[1].clone(), have("a", "sha256:1"));
        let mut part = have("", "sha256:1");
        part.images[0].is_part = true;
        catalogue.report(nodes[2].clone(), part);
        let expected =
            BTreeMap::from([("sha256:1".to_owned(), BTreeSet::from([nodes[0].clone(), nodes[1].clone()]))]);
        assert_eq!(catalogue.pushed(), expected);
        catalogue.forget(&nodes[1]);
        assert_eq!(catalogue.pushed(), expected, "it may be back at once");
        let named = catalogue.locate("", "sha256:1").1;
        assert_eq!(named, [nodes[0].clone(), nodes[2].clone()], "and nothing comes from it now");
    }

    #[test]
    fn the_digest_that_most_nodes_have_is_meant() {
        let catalogue = ImageCatalogue::default();
        let nodes: Vec<_> = (0..3).map(NodeId::from_bits).collect();
        catalogue.report(nodes[0].clone(), have("a", "sha256:1"));
        catalogue.report(nodes[1].clone(), have("a", "sha256:2"));
        catalogue.report(nodes[2].clone(), have("a", "sha256:2"));
        let (digest, holders) = catalogue.locate("a", "");
        assert_eq!(digest, "sha256:2");
        assert_eq!(holders, nodes[1..]);
        assert_eq!(catalogue.locate("", "sha256:1").1, nodes[..1]);
    }

    #[test]
    fn an_unknown_image_has_no_digest_and_no_holder() {
        let catalogue = ImageCatalogue::default();
        let node = NodeId::from_bits(1);
        catalogue.report(node.clone(), have("a", "sha256:1"));
        assert_eq!(catalogue.locate("b", ""), (String::new(), Vec::new()));
        assert_eq!(catalogue.locate("", ""), (String::new(), Vec::new()));
        catalogue.forget(&node);
        assert_eq!(catalogue.locate("a", ""), (String::new(), Vec::new()));
    }
}
