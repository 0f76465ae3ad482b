//! The control API: what `rctl` asks, answered by the leader.
//!
//! [`Control`] is mounted twice: on the local socket, which belongs to root and the group `rorqual`, and on
//! the TLS port, where only controllers may call (followers forward). The answers themselves stand in
//! `cluster`, `nodes`, `services`, `networks`, `routes`, `certificates`, `doctor`, `registry`, `watch` and `logs`.

mod certificates;
mod cluster;
mod doctor;
mod ipv6;
mod logs;
mod networks;
mod nodes;
mod ports;
mod registry;
pub(crate) mod routes;
mod services;
mod watch;

use std::pin::Pin;

use rorqual_proto::tls::CredentialStore;
use rorqual_proto::wire::control_client::ControlClient;
use rorqual_proto::wire::{self, control_server};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::access;
use crate::auths::Auths;
use crate::forward::{FORWARD_DEADLINE, LeaderRoute, Route, route};
use crate::membership::Membership;
use crate::store::Store;

/// Where a control API listens, which decides whose calls it takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// The Unix socket: file permissions have decided.
    Local,
    /// The TLS port: the certificate decides.
    Tls,
}

/// The control API at one entrance. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    pub(crate) entrance: Entrance,
    pub(crate) store: Store,
    pub(crate) leader: LeaderRoute,
    pub(crate) membership: Membership,
    pub(crate) credentials: CredentialStore,
    pub(crate) auths: Auths,
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Control {
    fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        match self.entrance {
            Entrance::Local => Ok(()),
            Entrance::Tls => access::controller(&self.store, request).map(drop),
        }
    }

    async fn route(&self) -> Result<Route, Status> {
        self.leader.find(tokio::time::Instant::now() + FORWARD_DEADLINE).await
    }

    /// There is no leader just now: a reader is better served by what this controller knows.
    fn leaderless(&self) -> bool {
        self.store.leadership().borrow().leader.is_none()
    }
}

/// A call that the leader answers: admitted, then answered here or forwarded.
macro_rules! by_leader {
    ($self:ident, $request:ident, $method:ident, $answer:ident) => {{
        $self.admit(&$request)?;
        route!($self.leader, $request.into_inner(), ControlClient::$method, |message| $self.$answer(message))
    }};
}

/// A call that only reads: as [`by_leader`], but without a leader this controller tells what it knows.
macro_rules! by_leader_or_here {
    ($self:ident, $request:ident, $method:ident, $answer:ident) => {{
        $self.admit(&$request)?;
        if $self.leaderless() {
            return $self.$answer($request.into_inner()).await.map(Response::new);
        }
        route!($self.leader, $request.into_inner(), ControlClient::$method, |message| $self.$answer(message))
    }};
}

#[tonic::async_trait]
impl control_server::Control for Control {
    type WatchServiceStream = Messages<wire::ServiceView>;
    type ServiceLogsStream = Messages<wire::LogLine>;

    async fn get_cluster(
        &self,
        request: Request<wire::GetClusterRequest>,
    ) -> Result<Response<wire::GetClusterResponse>, Status> {
        by_leader_or_here!(self, request, get_cluster, cluster_view)
    }

    async fn rotate_token(
        &self,
        request: Request<wire::RotateTokenRequest>,
    ) -> Result<Response<wire::GetClusterResponse>, Status> {
        by_leader!(self, request, rotate_token, rotate)
    }

    async fn update_cluster(
        &self,
        request: Request<wire::UpdateClusterRequest>,
    ) -> Result<Response<wire::UpdateClusterResponse>, Status> {
        by_leader!(self, request, update_cluster, change_cluster)
    }

    /// Answered by the controller that was asked: the counts come straight from the nodes.
    async fn list_routes(
        &self,
        request: Request<wire::ListRoutesRequest>,
    ) -> Result<Response<wire::ListRoutesResponse>, Status> {
        self.admit(&request)?;
        Ok(Response::new(self.routes().await))
    }

    /// Answered by the controller that was asked, for the same reason.
    async fn examine_cluster(
        &self,
        request: Request<wire::ExamineClusterRequest>,
    ) -> Result<Response<wire::ExamineClusterResponse>, Status> {
        self.admit(&request)?;
        Ok(Response::new(self.examine().await))
    }

    async fn list_nodes(
        &self,
        request: Request<wire::ListNodesRequest>,
    ) -> Result<Response<wire::ListNodesResponse>, Status> {
        by_leader_or_here!(self, request, list_nodes, node_views)
    }

    async fn update_node(
        &self,
        request: Request<wire::UpdateNodeRequest>,
    ) -> Result<Response<wire::UpdateNodeResponse>, Status> {
        by_leader!(self, request, update_node, change_node)
    }

    async fn remove_node(
        &self,
        request: Request<wire::RemoveNodeRequest>,
    ) -> Result<Response<wire::RemoveNodeResponse>, Status> {
        by_leader!(self, request, remove_node, drop_node)
    }

    async fn create_service(
        &self,
        request: Request<wire::CreateServiceRequest>,
    ) -> Result<Response<wire::CreateServiceResponse>, Status> {
        by_leader!(self, request, create_service, create)
    }

    async fn update_service(
        &self,
        request: Request<wire::UpdateServiceRequest>,
    ) -> Result<Response<wire::UpdateServiceResponse>, Status> {
        by_leader!(self, request, update_service, update)
    }

    async fn rollback_service(
        &self,
        request: Request<wire::RollbackServiceRequest>,
    ) -> Result<Response<wire::RollbackServiceResponse>, Status> {
        by_leader!(self, request, rollback_service, roll_back)
    }

    async fn scale_services(
        &self,
        request: Request<wire::ScaleServicesRequest>,
    ) -> Result<Response<wire::ScaleServicesResponse>, Status> {
        by_leader!(self, request, scale_services, scale)
    }

    async fn remove_service(
        &self,
        request: Request<wire::RemoveServiceRequest>,
    ) -> Result<Response<wire::RemoveServiceResponse>, Status> {
        by_leader!(self, request, remove_service, remove)
    }

    async fn list_services(
        &self,
        request: Request<wire::ListServicesRequest>,
    ) -> Result<Response<wire::ListServicesResponse>, Status> {
        by_leader_or_here!(self, request, list_services, service_views)
    }

    async fn watch_service(
        &self,
        request: Request<wire::WatchServiceRequest>,
    ) -> Result<Response<Self::WatchServiceStream>, Status> {
        self.admit(&request)?;
        match self.route().await? {
            Route::Here => self.watch(request.into_inner()).map(Response::new),
            Route::There(channel) => {
                let answer = ControlClient::new(channel).watch_service(request.into_inner()).await?;
                Ok(Response::new(Box::pin(answer.into_inner())))
            }
        }
    }

    async fn list_tasks(
        &self,
        request: Request<wire::ListTasksRequest>,
    ) -> Result<Response<wire::ListTasksResponse>, Status> {
        by_leader_or_here!(self, request, list_tasks, task_views)
    }

    /// Answered by the controller that was asked: it knows where the tasks are, and the lines come straight
    /// from their nodes.
    async fn service_logs(
        &self,
        request: Request<wire::ServiceLogsRequest>,
    ) -> Result<Response<Self::ServiceLogsStream>, Status> {
        self.admit(&request)?;
        self.logs(request.into_inner()).map(Response::new)
    }

    async fn create_network(
        &self,
        request: Request<wire::CreateNetworkRequest>,
    ) -> Result<Response<wire::CreateNetworkResponse>, Status> {
        by_leader!(self, request, create_network, make_network)
    }

    async fn list_networks(
        &self,
        request: Request<wire::ListNetworksRequest>,
    ) -> Result<Response<wire::ListNetworksResponse>, Status> {
        by_leader_or_here!(self, request, list_networks, network_views)
    }

    async fn remove_network(
        &self,
        request: Request<wire::RemoveNetworkRequest>,
    ) -> Result<Response<wire::RemoveNetworkResponse>, Status> {
        by_leader!(self, request, remove_network, drop_network)
    }

    async fn prune_networks(
        &self,
        request: Request<wire::PruneNetworksRequest>,
    ) -> Result<Response<wire::PruneNetworksResponse>, Status> {
        by_leader!(self, request, prune_networks, drop_unused)
    }

    async fn create_certificate(
        &self,
        request: Request<wire::CreateCertificateRequest>,
    ) -> Result<Response<wire::CreateCertificateResponse>, Status> {
        by_leader!(self, request, create_certificate, make_certificate)
    }

    async fn list_certificates(
        &self,
        request: Request<wire::ListCertificatesRequest>,
    ) -> Result<Response<wire::ListCertificatesResponse>, Status> {
        by_leader_or_here!(self, request, list_certificates, certificate_views)
    }

    async fn remove_certificates(
        &self,
        request: Request<wire::RemoveCertificatesRequest>,
    ) -> Result<Response<wire::RemoveCertificatesResponse>, Status> {
        by_leader!(self, request, remove_certificates, drop_certificates)
    }

    async fn list_registry_users(
        &self,
        request: Request<wire::ListRegistryUsersRequest>,
    ) -> Result<Response<wire::ListRegistryUsersResponse>, Status> {
        by_leader_or_here!(self, request, list_registry_users, registry_users)
    }

    async fn put_registry_user(
        &self,
        request: Request<wire::PutRegistryUserRequest>,
    ) -> Result<Response<wire::PutRegistryUserResponse>, Status> {
        by_leader!(self, request, put_registry_user, put_user)
    }

    async fn remove_registry_user(
        &self,
        request: Request<wire::RemoveRegistryUserRequest>,
    ) -> Result<Response<wire::RemoveRegistryUserResponse>, Status> {
        by_leader!(self, request, remove_registry_user, remove_users)
    }

    async fn grant_registry(
        &self,
        request: Request<wire::GrantRegistryRequest>,
    ) -> Result<Response<wire::GrantRegistryResponse>, Status> {
        by_leader!(self, request, grant_registry, grant)
    }
}
