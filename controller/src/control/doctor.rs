//! Lets every node look for what is wrong with its network, and puts together what they find.

use std::time::Duration;

use futures_util::future::join_all;
use rorqual_proto::model::{NodeId, NodeState};
use rorqual_proto::tls::{self, CredentialStore, Expect};
use rorqual_proto::wire;
use rorqual_proto::wire::peer_client::PeerClient;
use tonic::Status;

use super::Control;

/// How long a node may take. Packets that don't come back are waited for.
const ANSWER: Duration = Duration::from_secs(40);

struct Place {
    node: NodeId,
    hostname: String,
    address: String,
    state: NodeState,
}

impl Control {
    pub(super) async fn examine(&self) -> wire::ExamineClusterResponse {
        let places: Vec<Place> = self.store.read(|state| {
            let place = |node: &rorqual_proto::model::Node| Place {
                node: node.id.clone(),
                hostname: node.description.hostname.clone(),
                address: node.address.clone(),
                state: node.status.state,
            };
            state.nodes().map(|node| place(node)).collect()
        });
        let asked = places.iter().map(|place| ask(place, &places, self.credentials.clone()));
        let answers = join_all(asked).await;
        let nodes = u32::try_from(places.len()).unwrap_or(u32::MAX);
        let mut all = wire::ExamineClusterResponse { nodes, ..Default::default() };
        for (place, answer) in places.iter().zip(answers) {
            match answer {
                Ok(answer) => {
                    all.checks += answer.checks;
                    all.findings.extend(answer.findings);
                }
                Err(status) => all.findings.push(silent(place, &status)),
            }
        }
        all.findings.sort_by(|a, b| (&a.node, &a.peer, &a.check).cmp(&(&b.node, &b.peer, &b.check)));
        all
    }
}

/// Nodes that are down are no ways to look at: that they are down is told once.
async fn ask(
    place: &Place,
    places: &[Place],
    credentials: CredentialStore,
) -> Result<wire::ExamineResponse, Status> {
    if !is_there(place) {
        return Err(Status::unavailable("it is down"));
    }
    let others = places.iter().filter(|other| other.node != place.node && is_there(other));
    let peers = others.map(|other| wire::ExaminePeer {
        node_id: other.node.to_string(),
        hostname: other.hostname.clone(),
        address: other.address.clone(),
    });
    let request = wire::ExamineRequest { peers: peers.collect() };
    let asked = async {
        let channel = tls::connect(&place.address, credentials, &Expect::Node(place.node.clone()))
            .map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(PeerClient::new(channel).examine(request).await?.into_inner())
    };
    tokio::time::timeout(ANSWER, asked).await.unwrap_or_else(|_| Err(Status::unavailable("no answer")))
}

fn is_there(place: &Place) -> bool {
    matches!(place.state, NodeState::Ready | NodeState::Suspect)
}

fn silent(place: &Place, status: &Status) -> wire::Finding {
    wire::Finding {
        node: place.hostname.clone(),
        check: "reachability".to_owned(),
        what: format!("the node does not answer at {}: {}", place.address, status.message()),
        remedy: format!(
            "see that the machine is on and that rorquald runs there (systemctl status rorquald), and open its TCP \
             port ({}) to all nodes of the cluster",
            place.address
        ),
        ..Default::default()
    }
}
