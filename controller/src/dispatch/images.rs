//! Which node has which image: soft state of the leader, rebuilt from what agents report.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use rorqual_proto::model::NodeId;
use rorqual_proto::wire;

/// The most holders that an answer names; a node needs a few, not all.
const MOST_HOLDERS: usize = 8;

/// Per node, the images that it last reported. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct ImageCatalogue {
    nodes: Arc<RwLock<BTreeMap<NodeId, Vec<wire::ImageHave>>>>,
}

impl ImageCatalogue {
    /// A node's whole list.
    pub(crate) fn report(&self, node: NodeId, images: wire::Images) {
        let mut nodes = self.nodes.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        nodes.insert(node, images.images);
    }

    /// Its session has ended: nobody can fetch from it for now.
    pub(crate) fn forget(&self, node: &NodeId) {
        let mut nodes = self.nodes.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        nodes.remove(node);
    }

    /// What each node has, without what only others may fetch from it.
    pub(crate) fn all(&self) -> Vec<(NodeId, Vec<wire::ImageHave>)> {
        let nodes = self.nodes.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let own =
            |images: &Vec<wire::ImageHave>| images.iter().filter(|image| !image.is_part).cloned().collect();
        nodes.iter().map(|(id, images)| (id.clone(), own(images))).collect()
    }

    /// The digest that is meant and the nodes that have it. A reference that nodes resolve differently
    /// takes the digest that most of them have, the lowest where that is a tie.
    pub(crate) fn locate(&self, reference: &str, digest: &str) -> (String, Vec<NodeId>) {
        let nodes = self.nodes.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut found: BTreeMap<&str, Vec<&NodeId>> = BTreeMap::new();
        for (node, images) in nodes.iter() {
            for image in images {
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
