//! The membership API on the local socket.

use rorqual_proto::model::Role;
use rorqual_proto::wire::{self, membership_server};
use tonic::{Request, Response, Status};

use crate::node::Node;

/// Answers for the node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct MembershipApi {
    node: Node,
}

impl MembershipApi {
    pub(crate) fn new(node: Node) -> Self {
        Self { node }
    }
}

#[tonic::async_trait]
impl membership_server::Membership for MembershipApi {
    async fn info(
        &self,
        _request: Request<wire::InfoRequest>,
    ) -> Result<Response<wire::InfoResponse>, Status> {
        let record = self.node.record().await;
        let description = self.node.agent.description();
        let session = self.node.agent.session_status();
        let mut leader_address = self.node.leader_address().await;
        if leader_address.is_empty() {
            leader_address = session.leader_address;
        }
        let mut info = wire::InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: description.hostname,
            kernel: description.kernel,
            arch: description.arch,
            cgroup_version: description.cgroup_version,
            nano_cpus: description.nano_cpus,
            memory_bytes: description.memory_bytes,
            data_dir: self.node.config.data_dir.display().to_string(),
            leader_address,
            session: session.state,
            ..wire::InfoResponse::default()
        };
        if let Some(record) = record {
            let role = if record.raft_id.is_some() { Role::Controller } else { Role::Worker };
            info.set_role(wire::Role::from(role));
            info.node_id = record.node_id;
            info.cluster_id = record.cluster_id;
            info.address = record.address.to_string();
        }
        Ok(Response::new(info))
    }

    async fn init_cluster(
        &self,
        request: Request<wire::InitClusterRequest>,
    ) -> Result<Response<wire::InitClusterResponse>, Status> {
        let done = self.node.init(request.get_ref()).await.map_err(failed)?;
        Ok(Response::new(wire::InitClusterResponse {
            cluster_id: done.record.cluster_id,
            node_id: done.record.node_id,
            worker_token: done.worker_token,
            controller_token: done.controller_token,
            address: done.record.address.to_string(),
        }))
    }

    async fn join_cluster(
        &self,
        request: Request<wire::JoinClusterRequest>,
    ) -> Result<Response<wire::JoinClusterResponse>, Status> {
        let (record, role) = self.node.join(request.get_ref()).await.map_err(failed)?;
        Ok(Response::new(wire::JoinClusterResponse {
            cluster_id: record.cluster_id,
            node_id: record.node_id,
            role: wire::Role::from(role).into(),
        }))
    }

    async fn leave_cluster(
        &self,
        request: Request<wire::LeaveClusterRequest>,
    ) -> Result<Response<wire::LeaveClusterResponse>, Status> {
        self.node.leave(request.get_ref().force).await.map_err(failed)?;
        Ok(Response::new(wire::LeaveClusterResponse {}))
    }
}

fn failed(error: anyhow::Error) -> Status {
    Status::failed_precondition(format!("{error:#}"))
}
