//! Routes through the HTTP edge, with what the edges of all nodes have counted.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use rorqual_planner::State;
use rorqual_proto::model::{Node, NodeId, NodeState};
use rorqual_proto::tls::{self, CredentialStore, Expect};
use rorqual_proto::wire;
use rorqual_proto::wire::peer_client::PeerClient;
use tonic::Status;

use super::Control;

/// How long a node may take to answer.
const ANSWER: Duration = Duration::from_secs(3);

/// A node that may answer.
pub(crate) struct Place {
    node: NodeId,
    hostname: String,
    address: String,
}

/// The nodes that should answer.
pub(crate) fn places(state: &State) -> Vec<Place> {
    let alive =
        state.nodes().filter(|node| matches!(node.status.state, NodeState::Ready | NodeState::Suspect));
    let place = |node: &std::sync::Arc<Node>| Place {
        node: node.id.clone(),
        hostname: node.description.hostname.clone(),
        address: node.address.clone(),
    };
    alive.map(place).collect()
}

impl Control {
    pub(super) async fn routes(&self) -> wire::ListRoutesResponse {
        let (mut answer, places) = self.store.read(|state| {
            let routes = state.services().flat_map(|service| {
                let view = |route| wire::RouteView {
                    service: service.spec.name.clone(),
                    route: Some(wire::RouteSpec::from(route)),
                    counters: None,
                };
                service.spec.routes.iter().map(view)
            });
            let edge = state.cluster().map(|cluster| wire::EdgeSettings::from(&cluster.edge));
            let answer = wire::ListRoutesResponse { edge, routes: routes.collect(), problems: Vec::new() };
            (answer, places(state))
        });
        let is_off = answer.edge.as_ref().is_none_or(|edge| *edge == wire::EdgeSettings::default());
        if !is_off {
            let reports = join_all(places.iter().map(|place| report(place, self.credentials.clone()))).await;
            take(&mut answer, places.iter().zip(reports));
        }
        answer.routes.sort_by(|a, b| key(a).cmp(&key(b)));
        answer
    }
}

fn key(view: &wire::RouteView) -> Option<(&str, &str)> {
    view.route.as_ref().map(|route| (route.host.as_str(), route.path.as_str()))
}

/// How a node's edge is.
pub(crate) async fn report(
    place: &Place,
    credentials: CredentialStore,
) -> Result<wire::EdgeReportResponse, Status> {
    let asked = async {
        let channel = tls::connect(&place.address, credentials, &Expect::Node(place.node.clone()))
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let answer = PeerClient::new(channel).edge_report(wire::EdgeReportRequest {}).await?;
        Ok(answer.into_inner())
    };
    tokio::time::timeout(ANSWER, asked).await.unwrap_or_else(|_| Err(Status::unavailable("no answer")))
}

/// Adds what the nodes say.
fn take<'a>(
    answer: &mut wire::ListRoutesResponse,
    reports: impl Iterator<Item = (&'a Place, Result<wire::EdgeReportResponse, Status>)>,
) {
    let mut sums: BTreeMap<(String, String), wire::RouteCounters> = BTreeMap::new();
    for (place, report) in reports {
        let told = |port, problem| wire::EdgeProblem { node_hostname: place.hostname.clone(), port, problem };
        match report {
            Ok(report) => {
                answer.problems.extend(report.problems.into_iter().map(|one| told(one.port, one.problem)));
                for counters in report.routes {
                    add(sums.entry((counters.host.clone(), counters.path.clone())).or_default(), &counters);
                }
            }
            Err(status) => answer.problems.push(told(0, status.message().to_owned())),
        }
    }
    for view in &mut answer.routes {
        let route = view.route.clone().unwrap_or_default();
        view.counters = sums.remove(&(route.host, route.path));
    }
}

fn add(sum: &mut wire::RouteCounters, counters: &wire::RouteCounters) {
    let add_all = |sums: &mut Vec<u64>, more: &[u64]| {
        sums.resize(sums.len().max(more.len()), 0);
        sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    };
    sum.host.clone_from(&counters.host);
    sum.path.clone_from(&counters.path);
    // Every node sees the same replicas; which of them it leaves out is its own affair.
    sum.endpoints = sum.endpoints.max(counters.endpoints);
    sum.ejected = sum.ejected.max(counters.ejected);
    add_all(&mut sum.by_class, &counters.by_class);
    sum.failed += counters.failed;
    sum.retried += counters.retried;
    sum.in_flight += counters.in_flight;
    sum.received_bytes += counters.received_bytes;
    sum.sent_bytes += counters.sent_bytes;
    add_all(&mut sum.latency, &counters.latency);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nodes_count_is_added_and_what_they_lack_is_told() {
        let view = |host: &str| wire::RouteView {
            route: Some(wire::RouteSpec { host: host.into(), path: "/".into(), ..Default::default() }),
            ..Default::default()
        };
        let counters = |two: u64, latency: &[u64]| wire::RouteCounters {
            host: "a".into(),
            path: "/".into(),
            endpoints: 3,
            by_class: vec![0, two, 0, 0, 1],
            latency: latency.to_vec(),
            ..Default::default()
        };
        let place = |name: &str| Place {
            node: NodeId::from_bits(1),
            hostname: name.to_owned(),
            address: String::new(),
        };
        let problem = wire::EdgeProblem { port: 80, problem: "taken".into(), ..Default::default() };
        let places = [place("n1"), place("n2"), place("n3")];
        let reports = [
            Ok(wire::EdgeReportResponse { routes: vec![counters(5, &[1])], ..Default::default() }),
            Ok(wire::EdgeReportResponse {
                routes: vec![counters(7, &[2, 3])],
                problems: vec![problem],
                ..Default::default()
            }),
            Err(Status::unavailable("away")),
        ];
        let mut answer =
            wire::ListRoutesResponse { routes: vec![view("a"), view("b")], ..Default::default() };
        take(&mut answer, places.iter().zip(reports));
        let sum = answer.routes[0].counters.as_ref().unwrap();
        assert_eq!((sum.endpoints, sum.by_class[1], sum.by_class[4]), (3, 12, 2));
        assert_eq!(sum.latency, [3, 3]);
        assert_eq!(answer.routes[1].counters, None);
        let told: Vec<_> = answer.problems.iter().map(|one| (one.node_hostname.as_str(), one.port)).collect();
        assert_eq!(told, [("n2", 80), ("n3", 0)]);
    }
}
