//! What it answers about a cluster.

use rorqual_proto::wire::control_server::Control;
use rorqual_proto::wire::membership_server::Membership;
use rorqual_proto::wire::*;
use tonic::{Request, Response, Status};

use super::{Answer, Fake, Sent, forever, unknown};

#[tonic::async_trait]
impl Membership for Fake {
    async fn info(&self, _: Request<InfoRequest>) -> Answer<InfoResponse> {
        self.ask("info");
        // The session stands with the third look.
        let looks = self.script(|script| script.asked.iter().filter(|asked| *asked == "info").count());
        let session = if looks >= 3 { "connected" } else { "connecting" };
        Ok(Response::new(InfoResponse {
            version: "0.1.0".into(),
            hostname: "n1".into(),
            node_id: "n".into(),
            cluster_id: "c".into(),
            role: Role::Controller.into(),
            address: "10.0.0.1:4780".into(),
            session: session.into(),
            ..Default::default()
        }))
    }

    async fn init_cluster(&self, request: Request<InitClusterRequest>) -> Answer<InitClusterResponse> {
        let address = format!("{}:4780", request.into_inner().advertise);
        Ok(Response::new(InitClusterResponse {
            cluster_id: "c".into(),
            node_id: "n".into(),
            worker_token: "RQTKN-1-w".into(),
            controller_token: "RQTKN-1-c".into(),
            address,
        }))
    }

    async fn join_cluster(&self, request: Request<JoinClusterRequest>) -> Answer<JoinClusterResponse> {
        self.ask(format!("join {}", request.into_inner().controller_address));
        Err(Status::permission_denied(
            "the token was rotated; `rctl cluster token worker` shows the present one",
        ))
    }

    async fn leave_cluster(&self, _: Request<LeaveClusterRequest>) -> Answer<LeaveClusterResponse> {
        unknown()
    }
}

#[tonic::async_trait]
impl Control for Fake {
    async fn get_cluster(&self, _: Request<GetClusterRequest>) -> Answer<GetClusterResponse> {
        Ok(Response::new(GetClusterResponse {
            id: "c".into(),
            worker_token: "RQTKN-1-w".into(),
            controller_token: "RQTKN-1-c".into(),
            ..Default::default()
        }))
    }

    async fn rotate_token(&self, request: Request<RotateTokenRequest>) -> Answer<GetClusterResponse> {
        self.ask(format!("rotate {:?}", request.into_inner().role()));
        let new = GetClusterResponse { worker_token: "RQTKN-1-new".into(), ..Default::default() };
        Ok(Response::new(new))
    }

    async fn update_cluster(&self, request: Request<UpdateClusterRequest>) -> Answer<UpdateClusterResponse> {
        self.ask(format!("update_cluster {:?}", request.into_inner().edge_http_port));
        Ok(Response::new(UpdateClusterResponse::default()))
    }

    async fn list_routes(&self, _: Request<ListRoutesRequest>) -> Answer<ListRoutesResponse> {
        let route = RouteSpec { host: "app.example".into(), path: "/".into(), ..Default::default() };
        let view = RouteView { service: "web".into(), route: Some(route), counters: None };
        let problem = EdgeProblem { node_hostname: "n2".into(), port: 80, problem: "taken".into() };
        Ok(Response::new(ListRoutesResponse { edge: None, routes: vec![view], problems: vec![problem] }))
    }

    async fn create_certificate(
        &self,
        _: Request<CreateCertificateRequest>,
    ) -> Answer<CreateCertificateResponse> {
        unknown()
    }

    async fn list_certificates(
        &self,
        _: Request<ListCertificatesRequest>,
    ) -> Answer<ListCertificatesResponse> {
        unknown()
    }

    async fn remove_certificates(
        &self,
        _: Request<RemoveCertificatesRequest>,
    ) -> Answer<RemoveCertificatesResponse> {
        unknown()
    }

    async fn examine_cluster(&self, _: Request<ExamineClusterRequest>) -> Answer<ExamineClusterResponse> {
        let (node, peer) = ("n1".to_owned(), "n2".to_owned());
        let (what, remedy) = ("too large".to_owned(), "make it smaller".to_owned());
        let finding = Finding { node, peer, check: "mtu".into(), what, remedy };
        Ok(Response::new(ExamineClusterResponse { findings: vec![finding], checks: 28, nodes: 2 }))
    }

    async fn list_nodes(&self, _: Request<ListNodesRequest>) -> Answer<ListNodesResponse> {
        unknown()
    }

    async fn update_node(&self, request: Request<UpdateNodeRequest>) -> Answer<UpdateNodeResponse> {
        let request = request.into_inner();
        self.ask(format!("update {} {:?}", request.name, request.availability()));
        Ok(Response::new(UpdateNodeResponse::default()))
    }

    async fn remove_node(&self, _: Request<RemoveNodeRequest>) -> Answer<RemoveNodeResponse> {
        unknown()
    }

    async fn create_network(&self, _: Request<CreateNetworkRequest>) -> Answer<CreateNetworkResponse> {
        unknown()
    }

    async fn list_networks(&self, _: Request<ListNetworksRequest>) -> Answer<ListNetworksResponse> {
        unknown()
    }

    async fn remove_network(&self, _: Request<RemoveNetworkRequest>) -> Answer<RemoveNetworkResponse> {
        unknown()
    }

    async fn prune_networks(&self, _: Request<PruneNetworksRequest>) -> Answer<PruneNetworksResponse> {
        unknown()
    }

    async fn create_service(&self, request: Request<CreateServiceRequest>) -> Answer<CreateServiceResponse> {
        let request = request.into_inner();
        self.told_auths(&request.auths);
        self.script(|script| script.created_service = request.spec);
        Ok(Response::new(CreateServiceResponse { service: Some(self.service()) }))
    }

    async fn update_service(&self, request: Request<UpdateServiceRequest>) -> Answer<UpdateServiceResponse> {
        let request = request.into_inner();
        let conflicts = self.script(|script| {
            script.conflicts = script.conflicts.saturating_sub(1);
            script.updated_service = request.spec;
            script.conflicts
        });
        self.told_auths(&request.auths);
        if request.forget_auths {
            self.ask("forget auths");
        }
        self.ask(format!("update at {}", request.version));
        if conflicts > 0 {
            return Err(Status::aborted("service web was changed meanwhile"));
        }
        Ok(Response::new(UpdateServiceResponse { service: Some(self.service()) }))
    }

    async fn rollback_service(
        &self,
        request: Request<RollbackServiceRequest>,
    ) -> Answer<RollbackServiceResponse> {
        self.ask(format!("roll back {}", request.into_inner().name));
        Ok(Response::new(RollbackServiceResponse { service: Some(self.service()) }))
    }

    async fn scale_services(&self, request: Request<ScaleServicesRequest>) -> Answer<ScaleServicesResponse> {
        for scale in request.into_inner().scales {
            if scale.name == "nope" {
                return Err(Status::not_found("there is no service nope; nothing was scaled"));
            }
            self.ask(format!("scale {}={}", scale.name, scale.replicas));
        }
        Ok(Response::new(ScaleServicesResponse { services: vec![self.service()] }))
    }

    async fn remove_service(&self, _: Request<RemoveServiceRequest>) -> Answer<RemoveServiceResponse> {
        Ok(Response::new(RemoveServiceResponse { ids: vec!["s".into()] }))
    }

    async fn list_services(&self, _: Request<ListServicesRequest>) -> Answer<ListServicesResponse> {
        Ok(Response::new(ListServicesResponse { services: self.script(|script| script.services.clone()) }))
    }

    type WatchServiceStream = Sent<ServiceView>;
    async fn watch_service(&self, _: Request<WatchServiceRequest>) -> Answer<Self::WatchServiceStream> {
        self.ask("watch");
        let (views, last) = self.script(|script| {
            let views = script.watches.pop_front();
            (views.unwrap_or_default(), script.watches.is_empty())
        });
        match last {
            true => Ok(Response::new(forever(views))),
            false => Ok(Response::new(Box::pin(tokio_stream::iter(views)))),
        }
    }

    async fn list_tasks(&self, _: Request<ListTasksRequest>) -> Answer<ListTasksResponse> {
        unknown()
    }

    type ServiceLogsStream = Sent<LogLine>;
    async fn service_logs(&self, request: Request<ServiceLogsRequest>) -> Answer<Self::ServiceLogsStream> {
        let request = request.into_inner();
        self.ask(format!("logs {} {:?}", request.name, request.tail));
        let lines: Vec<_> = self.script(|script| script.lines.clone()).into_iter().map(Ok).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(lines))))
    }
    async fn list_registry_users(
        &self,
        _: Request<ListRegistryUsersRequest>,
    ) -> Answer<ListRegistryUsersResponse> {
        unknown()
    }

    async fn put_registry_user(&self, _: Request<PutRegistryUserRequest>) -> Answer<PutRegistryUserResponse> {
        unknown()
    }

    async fn remove_registry_user(
        &self,
        _: Request<RemoveRegistryUserRequest>,
    ) -> Answer<RemoveRegistryUserResponse> {
        unknown()
    }

    async fn grant_registry(&self, _: Request<GrantRegistryRequest>) -> Answer<GrantRegistryResponse> {
        unknown()
    }
}

impl Fake {
    /// Whose credentials for which registry came.
    fn told_auths(&self, auths: &[RegistryAuth]) {
        for auth in auths {
            let user = auth.credentials.clone().unwrap_or_default().username;
            self.ask(format!("auth {user} {}", auth.registry));
        }
    }
}
