//! Where images are: what the leader knows of the cluster's nodes, with this node's own list in place of what the
//! leader was told of it.

use std::time::Duration;

use rorqual_image::ImageRecord;
use rorqual_proto::wire;
use tonic::Status;

use super::select::glob;
use crate::agent::Agent;
use crate::error::one_line;

/// How long the leader may take; a list of this node's images does not wait for an election.
const ANSWER: Duration = Duration::from_secs(1);

/// The images of each node, this one first.
pub(super) struct Places {
    nodes: Vec<Place>,
    /// Why the others are not known.
    pub(super) problem: String,
}

struct Place {
    id: String,
    hostname: String,
    is_own: bool,
    images: Vec<ImageRecord>,
}

impl Places {
    /// Asks the leader, in a cluster.
    pub(super) async fn look(agent: &Agent) -> Places {
        let own = |id: String| Place {
            id,
            hostname: agent.hostname().to_owned(),
            is_own: true,
            images: agent.images().store().list(),
        };
        let Some(cluster) = agent.images().cluster() else {
            return Places { nodes: vec![own(String::new())], problem: String::new() };
        };
        let mut places = Places { nodes: vec![own(cluster.own_id().to_string())], problem: String::new() };
        match tokio::time::timeout(ANSWER, cluster.node_images()).await {
            Ok(Ok(nodes)) => {
                let others = nodes.into_iter().filter(|node| node.node_id != places.nodes[0].id);
                let others: Vec<Place> = others.map(place).collect();
                places.nodes.extend(others);
                places.nodes[1..].sort_by(|a, b| (&a.hostname, &a.id).cmp(&(&b.hostname, &b.id)));
            }
            Ok(Err(status)) => places.problem = one_line(&status),
            Err(_) => places.problem = "the leader did not answer".to_owned(),
        }
        places
    }

    /// Host names of the nodes that have the image, this one first.
    pub(super) fn of(&self, record: &ImageRecord) -> Vec<String> {
        let has = |place: &&Place| place.images.iter().any(|other| other.digest == record.digest);
        self.nodes.iter().filter(has).map(|place| place.hostname.clone()).collect()
    }

    /// The images of the nodes that any of the patterns fits, each name once; and whether this node has it.
    pub(super) fn on(&self, patterns: &[String]) -> Result<Vec<(ImageRecord, bool)>, Status> {
        let fits = |place: &Place, pattern: &String| {
            glob(pattern.as_bytes(), place.hostname.as_bytes())
                || (!place.id.is_empty() && *pattern == place.id)
        };
        let mut found: Vec<(ImageRecord, bool)> = Vec::new();
        for pattern in patterns {
            let mut nodes = self.nodes.iter().filter(|place| fits(place, pattern)).peekable();
            if nodes.peek().is_none() {
                return Err(match self.problem.as_str() {
                    "" => Status::not_found(format!(
                        "filter node={pattern}: no node of that name has a session; `rctl node ls` lists the nodes"
                    )),
                    problem => Status::unavailable(format!("filter node={pattern}: {problem}")),
                });
            }
            for place in nodes {
                for record in &place.images {
                    let is_same = |(known, _): &&mut (ImageRecord, bool)| {
                        known.reference == record.reference && known.digest == record.digest
                    };
                    match found.iter_mut().find(|known| is_same(known)) {
                        Some((_, is_own)) => *is_own |= place.is_own,
                        None => found.push((record.clone(), place.is_own)),
                    }
                }
            }
        }
        Ok(found)
    }
}

/// As the leader tells it; what can't be read is left out.
fn place(node: wire::NodeImages) -> Place {
    let record = |have: wire::ImageHave| {
        Some(ImageRecord {
            reference: match have.reference.as_str() {
                "" => None,
                name => Some(name.parse().ok()?),
            },
            digest: have.digest.parse().ok()?,
            index_digest: have.index_digest.parse().ok(),
            size_bytes: have.size_bytes,
            created: Some(have.created).filter(|time| !time.is_empty()),
            fetched: false,
        })
    };
    Place {
        id: node.node_id,
        hostname: node.hostname,
        is_own: false,
        images: node.images.into_iter().filter_map(record).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn have(name: &str, digit: &str) -> wire::ImageHave {
        wire::ImageHave {
            reference: name.to_owned(),
            digest: format!("sha256:{}", digit.repeat(64)),
            size_bytes: 7,
            ..wire::ImageHave::default()
        }
    }

    fn node(hostname: &str, images: Vec<wire::ImageHave>) -> Place {
        let id = format!("id-{hostname}");
        place(wire::NodeImages { node_id: id, hostname: hostname.to_owned(), images })
    }

    fn places() -> Places {
        let own = Place { is_own: true, ..node("n1", vec![have("docker.io/library/a:1", "1")]) };
        let second = node("n2", vec![have("docker.io/library/a:2", "1"), have("", "2"), have("Bad/x", "3")]);
        let third = node("web3", vec![have("docker.io/library/a:1", "1")]);
        Places { nodes: vec![own, second, third], problem: String::new() }
    }

    #[test]
    fn an_image_is_where_its_content_is_whatever_it_is_called_there() {
        let places = places();
        assert_eq!(places.of(&places.nodes[0].images[0]), ["n1", "n2", "web3"]);
        assert_eq!(places.of(&places.nodes[1].images[1]), ["n2"]);
        assert_eq!(places.nodes[1].images.len(), 2, "a name that can't be read is left out");
    }

    #[test]
    fn nodes_are_named_by_patterns_and_ids() {
        let places = places();
        let on = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|text| (*text).to_owned()).collect();
            places.on(&patterns)
        };
        assert_eq!(on(&["n*"]).unwrap().len(), 3);
        let all = on(&["*"]).unwrap();
        assert_eq!((all.len(), all.iter().filter(|(_, is_own)| *is_own).count()), (3, 1));
        assert_eq!(on(&["id-n2"]).unwrap().len(), 2);
        assert_eq!(on(&["web3", "n1"]).unwrap().len(), 1);
        assert!(on(&["n9"]).unwrap_err().message().contains("node=n9"));
    }
}
