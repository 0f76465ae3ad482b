//! The cluster itself: what it is, who leads, its join tokens.

use std::sync::Arc;

use ipnet::IpNet;
use rorqual_planner::{State, prepare};
use rorqual_proto::model::{EdgeSettings, Node, Role};
use rorqual_proto::{InvalidField, wire};
use tonic::Status;

use super::Control;
use crate::status;

impl Control {
    pub(super) async fn cluster_view(
        &self,
        _request: wire::GetClusterRequest,
    ) -> Result<wire::GetClusterResponse, Status> {
        let leadership = self.store.leadership().borrow().clone();
        self.store.read(|state| {
            let cluster = state.cluster().ok_or_else(|| {
                Status::unavailable("this controller has not caught up with its cluster yet")
            })?;
            let controllers = state.nodes().filter(|node| node.spec.role == Role::Controller).count();
            Ok(wire::GetClusterResponse {
                id: cluster.id.to_string(),
                name: cluster.name.clone(),
                created_at_ms: cluster.meta.created_at_ms,
                worker_token: cluster.worker_token.clone(),
                controller_token: cluster.controller_token.clone(),
                container_pool: cluster.container_pool.to_string(),
                vip_pool: cluster.vip_pool.to_string(),
                leader_node_id: leadership.leader.map(|peer| peer.node_id.to_string()).unwrap_or_default(),
                raft_term: leadership.term,
                raft_applied_index: state.index(),
                controllers: u32::try_from(controllers).unwrap_or(u32::MAX),
                nodes: u32::try_from(state.nodes().count()).unwrap_or(u32::MAX),
                edge: Some((&cluster.edge).into()),
                encrypt: cluster.encrypt,
                encrypting_kernel: count(state, "kernel"),
                encrypting_userspace: count(state, "userspace"),
                encryption_problems: encryption_problems(state),
            })
        })
    }

    pub(super) async fn change_cluster(
        &self,
        request: wire::UpdateClusterRequest,
    ) -> Result<wire::UpdateClusterResponse, Status> {
        let action = self.store.read(|state| {
            let mut edge = state.cluster().map(|cluster| cluster.edge.clone()).unwrap_or_default();
            edge.http_port = changed(edge.http_port, request.edge_http_port, "edge_http_port")?;
            edge.https_port = changed(edge.https_port, request.edge_https_port, "edge_https_port")?;
            edge.access_log = request.edge_access_log.unwrap_or(edge.access_log);
            edge.acme_directory = request.edge_acme_directory.unwrap_or(edge.acme_directory);
            edge.acme_contact = request.edge_acme_contact.unwrap_or(edge.acme_contact);
            edge.acme_ca = request.edge_acme_ca.unwrap_or(edge.acme_ca);
            if let Some(list) = &request.edge_trusted {
                edge.trusted = trusted(list).map_err(status::from_field)?;
            }
            prepare::cluster::set(state, edge, request.encrypt).map_err(status::from_refusal)
        })?;
        self.store.propose(vec![action]).await.map_err(status::from_propose)?;
        let edge = self.store.read(|state| state.cluster().map(|cluster| (&cluster.edge).into()));
        Ok(wire::UpdateClusterResponse { edge })
    }

    pub(super) async fn rotate(
        &self,
        request: wire::RotateTokenRequest,
    ) -> Result<wire::GetClusterResponse, Status> {
        let role = match request.role() {
            wire::Role::Worker => Role::Worker,
            wire::Role::Controller => Role::Controller,
            wire::Role::Unspecified => {
                return Err(Status::invalid_argument("role: expected `worker` or `controller`"));
            }
        };
        self.membership.rotate(role).await?;
        self.cluster_view(wire::GetClusterRequest {}).await
    }
}

/// How many nodes encrypt in this way.
fn count(state: &State, kind: &str) -> u32 {
    let nodes = state.nodes().filter(|node| node.description.encryption.kind == kind);
    u32::try_from(nodes.count()).unwrap_or(u32::MAX)
}

fn encryption_problems(state: &State) -> Vec<String> {
    let tell = |node: &Arc<Node>| {
        let problem = &node.description.encryption.problem;
        (!problem.is_empty()).then(|| format!("{}: {problem}", node.description.hostname))
    };
    state.nodes().filter_map(tell).collect()
}

/// Of a list with commas.
fn trusted(list: &str) -> Result<Vec<IpNet>, InvalidField> {
    let networks = list.split(',').map(str::trim).filter(|network| !network.is_empty());
    let given =
        wire::EdgeSettings { trusted: networks.map(ToOwned::to_owned).collect(), ..Default::default() };
    Ok(EdgeSettings::try_from(given)?.trusted)
}

/// A port as it is from now on: what is absent stays, 0 closes.
fn changed(old: Option<u16>, given: Option<u32>, path: &str) -> Result<Option<u16>, Status> {
    let Some(given) = given else { return Ok(old) };
    let port = u16::try_from(given).map_err(|_| {
        Status::invalid_argument(format!("{path}: {given} is not a port: expected at most 65535"))
    })?;
    Ok(Some(port).filter(|port| *port != 0))
}
