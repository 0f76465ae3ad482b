//! The control API on the local socket: the controller's where this node is one, else a refusal that says
//! where to ask.

use std::pin::Pin;
use std::sync::{Arc, RwLock};

use rorqual_controller::Control;
use rorqual_proto::wire::{self, control_server};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// What stands behind the gate.
#[derive(Clone, Default)]
pub(crate) enum Behind {
    /// The node is in no cluster.
    #[default]
    Nothing,
    /// The node is a worker; the controllers' addresses.
    Worker(Vec<String>),
    /// The node is a controller.
    Controller(Box<Control>),
}

/// The gate. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct ControlGate {
    behind: Arc<RwLock<Behind>>,
}

impl ControlGate {
    pub(crate) fn set(&self, behind: Behind) {
        *self.behind.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = behind;
    }

    fn control(&self) -> Result<Control, Status> {
        let behind = self.behind.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*behind {
            Behind::Controller(control) => Ok(Control::clone(control)),
            Behind::Worker(controllers) => Err(Status::failed_precondition(format!(
                "this node is a worker: ask on a controller ({})",
                controllers.join(", ")
            ))),
            Behind::Nothing => Err(Status::failed_precondition(
                "this node is in no cluster: `rctl cluster init` starts one, `rctl cluster join` joins one",
            )),
        }
    }
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Each call goes to the controller as it is.
macro_rules! pass {
    ($($method:ident: $request:ident => $response:ty;)+) => {
        #[tonic::async_trait]
        impl control_server::Control for ControlGate {
            type WatchServiceStream = Messages<wire::ServiceView>;
            type ServiceLogsStream = Messages<wire::LogLine>;
            $(async fn $method(&self, request: Request<wire::$request>) -> Result<Response<$response>, Status> {
                self.control()?.$method(request).await
            })+
        }
    };
}

pass! {
    get_cluster: GetClusterRequest => wire::GetClusterResponse;
    rotate_token: RotateTokenRequest => wire::GetClusterResponse;
    update_cluster: UpdateClusterRequest => wire::UpdateClusterResponse;
    list_routes: ListRoutesRequest => wire::ListRoutesResponse;
    create_certificate: CreateCertificateRequest => wire::CreateCertificateResponse;
    list_certificates: ListCertificatesRequest => wire::ListCertificatesResponse;
    remove_certificates: RemoveCertificatesRequest => wire::RemoveCertificatesResponse;
    examine_cluster: ExamineClusterRequest => wire::ExamineClusterResponse;
    list_nodes: ListNodesRequest => wire::ListNodesResponse;
    update_node: UpdateNodeRequest => wire::UpdateNodeResponse;
    remove_node: RemoveNodeRequest => wire::RemoveNodeResponse;
    create_service: CreateServiceRequest => wire::CreateServiceResponse;
    update_service: UpdateServiceRequest => wire::UpdateServiceResponse;
    rollback_service: RollbackServiceRequest => wire::RollbackServiceResponse;
    scale_services: ScaleServicesRequest => wire::ScaleServicesResponse;
    remove_service: RemoveServiceRequest => wire::RemoveServiceResponse;
    list_services: ListServicesRequest => wire::ListServicesResponse;
    watch_service: WatchServiceRequest => Self::WatchServiceStream;
    list_tasks: ListTasksRequest => wire::ListTasksResponse;
    service_logs: ServiceLogsRequest => Self::ServiceLogsStream;
    create_network: CreateNetworkRequest => wire::CreateNetworkResponse;
    list_networks: ListNetworksRequest => wire::ListNetworksResponse;
    remove_network: RemoveNetworkRequest => wire::RemoveNetworkResponse;
    prune_networks: PruneNetworksRequest => wire::PruneNetworksResponse;
    list_registry_users: ListRegistryUsersRequest => wire::ListRegistryUsersResponse;
    put_registry_user: PutRegistryUserRequest => wire::PutRegistryUserResponse;
    remove_registry_user: RemoveRegistryUserRequest => wire::RemoveRegistryUserResponse;
    grant_registry: GrantRegistryRequest => wire::GrantRegistryResponse;
}
