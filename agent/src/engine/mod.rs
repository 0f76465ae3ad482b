//! The node's local API: images and plain containers, for `rctl` on this machine.
//!
//! [`EngineApi`] translates: requests are read and checked here, done in [`crate::containers`] and
//! [`crate::images`], and every error becomes a status whose text says what to do. A container that could not
//! be started says in the metadata `rorqual-exit-code` what a shell would have ended with.

mod archives;
mod distribute;
mod files;
mod images;
mod import;
mod places;
mod registry;
mod select;
mod streams;
mod usage;

use rorqual_proto::model::{ContainerSpec, RestartCondition, RestartPolicy};
use rorqual_proto::validate::InvalidField;
use rorqual_proto::wire::{self, engine_server};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use crate::agent::Agent;
use crate::containers::{ContainerError, NewContainer, info};
use crate::error::one_line;
use crate::images::{Asker, ImageError, read_credentials};
use crate::logs::{Lines, Wanted};
use crate::store::ContainerRecord;

/// Name of the metadata that carries 125, 126 or 127.
pub const EXIT_CODE_METADATA: &str = "rorqual-exit-code";

/// The `Engine` service of this node.
#[derive(Clone)]
pub struct EngineApi {
    agent: Agent,
}

impl EngineApi {
    pub(crate) fn new(agent: Agent) -> Self {
        Self { agent }
    }

    async fn addresses(&self) -> info::Addresses {
        let attached = self.agent.network().attached().await;
        attached.into_iter().map(|one| (one.id, one.interfaces)).collect()
    }

    /// Plain containers and those of tasks, the newest first; without `all` those that run.
    async fn containers(&self, all: bool) -> Vec<wire::ContainerInfo> {
        let addresses = self.addresses().await;
        let records = self.agent.containers().records();
        let plain = records.iter().map(|(record, _)| info::of_record(record, &addresses));
        let tasks = self.agent.tasks().entries();
        let tasks = tasks.iter().map(|entry| info::of_task(entry, &addresses));
        let shown = |container: &wire::ContainerInfo| {
            use wire::ContainerState::{Restarting, Running};
            all || matches!(container.state(), Running | Restarting)
        };
        let mut containers: Vec<_> = plain.chain(tasks).filter(shown).collect();
        containers.sort_by(|a, b| b.created_at_ms.cmp(&a.created_at_ms).then_with(|| a.id.cmp(&b.id)));
        containers
    }

    async fn answer(&self, record: &ContainerRecord) -> Response<wire::ContainerResponse> {
        let container = Some(info::of_record(record, &self.addresses().await));
        Response::new(wire::ContainerResponse { container })
    }

    fn new_container(request: wire::CreateContainerRequest) -> Result<NewContainer, InvalidField> {
        let network_mode = request.network_mode();
        let wire::CreateContainerRequest { name, spec, ports, restart, auto_remove, networks, .. } = request;
        let spec = spec.ok_or_else(|| InvalidField::missing("spec"))?;
        let spec = ContainerSpec::try_from(spec).map_err(|error| error.within("spec"))?;
        let restart = match restart {
            Some(policy) => RestartPolicy::try_from(policy).map_err(|error| error.within("restart"))?,
            None => RestartPolicy { condition: RestartCondition::None, ..RestartPolicy::default() },
        };
        if auto_remove && restart.condition != RestartCondition::None {
            return Err(InvalidField::new("auto_remove", "can't be combined with a restart policy"));
        }
        Ok(NewContainer { name, spec, ports, restart, auto_remove, network_mode, networks })
    }
}

#[tonic::async_trait]
impl engine_server::Engine for EngineApi {
    type PullImageStream = ReceiverStream<Result<wire::PullProgress, Status>>;
    type PushImageStream = ReceiverStream<Result<wire::PullProgress, Status>>;
    type ContainerLogsStream = Lines;
    type BuildStream = crate::build::Responses;
    type AttachStream = streams::Responses;
    type ExecStream = streams::Responses;
    type SaveImagesStream = archives::Pieces;
    type ExportContainerStream = archives::Pieces;

    async fn load_image(
        &self,
        request: Request<Streaming<wire::LoadImageRequest>>,
    ) -> Result<Response<wire::LoadImageResponse>, Status> {
        archives::load(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn pull_image(
        &self,
        request: Request<wire::PullImageRequest>,
    ) -> Result<Response<Self::PullImageStream>, Status> {
        Ok(Response::new(distribute::pull(&self.agent, request.into_inner())))
    }

    async fn push_image(
        &self,
        request: Request<wire::PushImageRequest>,
    ) -> Result<Response<Self::PushImageStream>, Status> {
        Ok(Response::new(distribute::push(&self.agent, request.into_inner())))
    }

    async fn login(
        &self,
        request: Request<wire::LoginRequest>,
    ) -> Result<Response<wire::LoginResponse>, Status> {
        distribute::login(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn search_images(
        &self,
        request: Request<wire::SearchImagesRequest>,
    ) -> Result<Response<wire::SearchImagesResponse>, Status> {
        distribute::search(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn list_tags(
        &self,
        request: Request<wire::ListTagsRequest>,
    ) -> Result<Response<wire::ListTagsResponse>, Status> {
        distribute::tags(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn list_images(
        &self,
        request: Request<wire::ListImagesRequest>,
    ) -> Result<Response<wire::ListImagesResponse>, Status> {
        images::list(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn inspect_image(
        &self,
        request: Request<wire::ImageRequest>,
    ) -> Result<Response<wire::InspectImageResponse>, Status> {
        images::inspect(&self.agent, &request.into_inner().name).await.map(Response::new)
    }

    async fn tag_image(
        &self,
        request: Request<wire::TagImageRequest>,
    ) -> Result<Response<wire::TagImageResponse>, Status> {
        images::tag(&self.agent, &request.into_inner()).await?;
        Ok(Response::new(wire::TagImageResponse {}))
    }

    async fn save_images(
        &self,
        request: Request<wire::SaveImagesRequest>,
    ) -> Result<Response<archives::Pieces>, Status> {
        archives::save(&self.agent, &request.into_inner()).map(Response::new)
    }

    async fn import_image(
        &self,
        request: Request<Streaming<wire::ImportImageRequest>>,
    ) -> Result<Response<wire::LoadedImage>, Status> {
        import::import(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn prune_images(
        &self,
        request: Request<wire::PruneImagesRequest>,
    ) -> Result<Response<wire::PruneResponse>, Status> {
        usage::prune_images(&self.agent, &request.into_inner()).await.map(Response::new)
    }

    async fn examine_node(
        &self,
        request: Request<wire::ExamineRequest>,
    ) -> Result<Response<wire::ExamineResponse>, Status> {
        Ok(Response::new(self.agent.examine(request.into_inner().peers).await))
    }

    async fn disk_usage(
        &self,
        _request: Request<wire::DiskUsageRequest>,
    ) -> Result<Response<wire::DiskUsageResponse>, Status> {
        usage::usage(self).await.map(Response::new)
    }

    async fn commit_container(
        &self,
        request: Request<wire::CommitContainerRequest>,
    ) -> Result<Response<wire::LoadedImage>, Status> {
        files::commit(self, request.into_inner()).await.map(Response::new)
    }

    async fn export_container(
        &self,
        request: Request<wire::ContainerRequest>,
    ) -> Result<Response<archives::Pieces>, Status> {
        files::export(self, &request.into_inner().name).await.map(Response::new)
    }

    async fn container_changes(
        &self,
        request: Request<wire::ContainerRequest>,
    ) -> Result<Response<wire::ContainerChangesResponse>, Status> {
        files::changes(self, &request.into_inner().name).await.map(Response::new)
    }

    async fn prune_containers(
        &self,
        request: Request<wire::PruneContainersRequest>,
    ) -> Result<Response<wire::PruneResponse>, Status> {
        usage::prune_containers(&self.agent, &request.into_inner()).await.map(Response::new)
    }

    async fn prune_build_cache(
        &self,
        request: Request<wire::PruneBuildCacheRequest>,
    ) -> Result<Response<wire::PruneResponse>, Status> {
        usage::prune_build_cache(&self.agent, &request.into_inner()).await.map(Response::new)
    }

    async fn remove_image(
        &self,
        request: Request<wire::RemoveImageRequest>,
    ) -> Result<Response<wire::RemoveImageResponse>, Status> {
        let wire::RemoveImageRequest { name, force } = request.into_inner();
        images::remove(&self.agent, &name, force).await.map(Response::new)
    }

    async fn resolve_image(
        &self,
        request: Request<wire::ResolveImageRequest>,
    ) -> Result<Response<wire::ResolveImageResponse>, Status> {
        let wire::ResolveImageRequest { reference: wanted, credentials } = request.into_inner();
        let credentials = credentials.and_then(read_credentials);
        let resolved = self.agent.images().resolve(&wanted, credentials).await;
        let (reference, digest) = resolved.map_err(|error| image_status(&wanted, &error))?;
        let answer =
            wire::ResolveImageResponse { reference: reference.to_string(), digest: digest.to_string() };
        Ok(Response::new(answer))
    }

    async fn build(
        &self,
        request: Request<Streaming<wire::BuildRequest>>,
    ) -> Result<Response<Self::BuildStream>, Status> {
        crate::build::start(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn registry_status(
        &self,
        _request: Request<wire::RegistryStatusRequest>,
    ) -> Result<Response<wire::RegistryStatusResponse>, Status> {
        registry::status(&self.agent).await.map(Response::new)
    }

    async fn list_repositories(
        &self,
        request: Request<wire::ListRepositoriesRequest>,
    ) -> Result<Response<wire::ListRepositoriesResponse>, Status> {
        registry::list(&self.agent, &request.into_inner().name).await.map(Response::new)
    }

    async fn remove_from_registry(
        &self,
        request: Request<wire::RemoveFromRegistryRequest>,
    ) -> Result<Response<wire::RemoveFromRegistryResponse>, Status> {
        registry::remove(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn collect_registry(
        &self,
        _request: Request<wire::CollectRegistryRequest>,
    ) -> Result<Response<wire::CollectRegistryResponse>, Status> {
        registry::collect(&self.agent).await.map(Response::new)
    }

    async fn publish_image(
        &self,
        request: Request<wire::PublishImageRequest>,
    ) -> Result<Response<wire::PublishImageResponse>, Status> {
        registry::publish(&self.agent, request.into_inner()).await.map(Response::new)
    }

    async fn create_container(
        &self,
        request: Request<wire::CreateContainerRequest>,
    ) -> Result<Response<wire::CreateContainerResponse>, Status> {
        let request = request.into_inner();
        let asker = Asker::caller(request.credentials.clone().and_then(read_credentials));
        let new = Self::new_container(request).map_err(ContainerError::from);
        let mut new = new.map_err(|error| status(&error))?;
        let (image, digest) = (new.spec.image.clone(), new.spec.image_digest.clone());
        // The image is here before the container is: an error of its name is one of `create`.
        let found = self.agent.images().ensure(&image, digest.as_deref(), &asker, |_| {}).await;
        let digest = found.map_err(|error| image_status(&image, &error))?;
        new.spec.image_digest = Some(digest.to_string());
        let id = self.agent.containers().create(new).await.map_err(|error| status(&error))?;
        Ok(Response::new(wire::CreateContainerResponse { id }))
    }

    async fn start_container(
        &self,
        request: Request<wire::ContainerRequest>,
    ) -> Result<Response<wire::ContainerResponse>, Status> {
        let started = self.agent.containers().start(&request.into_inner().name).await;
        Ok(self.answer(&started.map_err(|error| status(&error))?).await)
    }

    async fn stop_container(
        &self,
        request: Request<wire::StopContainerRequest>,
    ) -> Result<Response<wire::ContainerResponse>, Status> {
        let wire::StopContainerRequest { name, grace_ms } = request.into_inner();
        self.refuse_task(&name)?;
        let stopped = self.agent.containers().stop(&name, grace_ms).await;
        Ok(self.answer(&stopped.map_err(|error| status(&error))?).await)
    }

    async fn kill_container(
        &self,
        request: Request<wire::KillContainerRequest>,
    ) -> Result<Response<wire::ContainerResponse>, Status> {
        let wire::KillContainerRequest { name, signal } = request.into_inner();
        self.refuse_task(&name)?;
        let killed = self.agent.containers().kill(&name, &signal).await;
        Ok(self.answer(&killed.map_err(|error| status(&error))?).await)
    }

    async fn remove_container(
        &self,
        request: Request<wire::RemoveContainerRequest>,
    ) -> Result<Response<wire::RemoveContainerResponse>, Status> {
        let wire::RemoveContainerRequest { name, force } = request.into_inner();
        self.refuse_task(&name)?;
        let id = self.agent.containers().remove(&name, force).await.map_err(|error| status(&error))?;
        Ok(Response::new(wire::RemoveContainerResponse { id }))
    }

    async fn connect_container(
        &self,
        request: Request<wire::ConnectContainerRequest>,
    ) -> Result<Response<wire::ContainerResponse>, Status> {
        let wire::ConnectContainerRequest { name, network } = request.into_inner();
        self.refuse_task(&name)?;
        let network = network.ok_or_else(|| Status::invalid_argument("network: expected a network"))?;
        let connected = self.agent.containers().connect(&name, network).await;
        Ok(self.answer(&connected.map_err(|error| status(&error))?).await)
    }

    async fn disconnect_container(
        &self,
        request: Request<wire::DisconnectContainerRequest>,
    ) -> Result<Response<wire::ContainerResponse>, Status> {
        let wire::DisconnectContainerRequest { name, network } = request.into_inner();
        self.refuse_task(&name)?;
        let left = self.agent.containers().disconnect(&name, &network).await;
        Ok(self.answer(&left.map_err(|error| status(&error))?).await)
    }

    async fn list_containers(
        &self,
        request: Request<wire::ListContainersRequest>,
    ) -> Result<Response<wire::ListContainersResponse>, Status> {
        let containers = self.containers(request.into_inner().all).await;
        Ok(Response::new(wire::ListContainersResponse { containers }))
    }

    async fn wait_container(
        &self,
        request: Request<wire::ContainerRequest>,
    ) -> Result<Response<wire::ContainerResponse>, Status> {
        let ended = self.agent.containers().wait(&request.into_inner().name).await;
        Ok(self.answer(&ended.map_err(|error| status(&error))?).await)
    }

    async fn container_logs(
        &self,
        request: Request<wire::ContainerLogsRequest>,
    ) -> Result<Response<Lines>, Status> {
        // Every line carries its time: whether it is shown is the client's to decide.
        let wire::ContainerLogsRequest { name, follow, tail, since_ms, timestamps: _ } = request.into_inner();
        let wanted = Wanted { follow, tail, since_ms };
        if let Some(id) = self.task_named(&name)
            && let Some(lines) = self.agent.tasks().logs(&id, wanted, self.agent.hostname())
        {
            return Ok(Response::new(lines));
        }
        let lines = self.agent.containers().logs(&name, wanted, self.agent.hostname());
        lines.map(Response::new).map_err(|error| status(&error))
    }

    async fn attach(
        &self,
        request: Request<Streaming<wire::StreamRequest>>,
    ) -> Result<Response<streams::Responses>, Status> {
        streams::attach(self, request.into_inner()).await.map(Response::new)
    }

    async fn exec(
        &self,
        request: Request<Streaming<wire::StreamRequest>>,
    ) -> Result<Response<streams::Responses>, Status> {
        streams::exec(self, request.into_inner()).await.map(Response::new)
    }
}

impl EngineApi {
    /// The id of the container that is meant, a service's or a plain one, and whether it has a terminal.
    fn running(&self, name: &str) -> Result<(String, bool), Status> {
        if let Some(id) = self.task_named(name) {
            let entries = self.agent.tasks().entries();
            let task = entries.iter().find(|entry| entry.task.id.as_str() == id);
            return Ok((id, task.is_some_and(|entry| entry.task.container.tty)));
        }
        let record = self.agent.containers().record(name).map_err(|error| status(&error))?;
        Ok((record.id, record.spec.is_some_and(|spec| spec.tty)))
    }

    /// The id of the task that is meant, by id or name; plain containers go before.
    fn task_named(&self, name: &str) -> Option<String> {
        if self.agent.containers().record(name).is_ok() {
            return None;
        }
        let tasks = self.agent.tasks().entries();
        let mut named = tasks.iter().filter(|entry| {
            let id = entry.task.id.as_str();
            entry.task.name() == name || (name.len() >= 4 && id.starts_with(name))
        });
        // Of several tasks of one slot the one that lives.
        let first = named.clone().find(|entry| !entry.observed().status.state.is_terminal());
        first.or_else(|| named.next()).map(|entry| entry.task.id.to_string())
    }

    /// A task's container is its service's: what is done to it by hand would be undone.
    fn refuse_task(&self, name: &str) -> Result<(), Status> {
        match self.task_named(name) {
            Some(id) => Err(Status::failed_precondition(format!(
                "container {name} belongs to task {id} of a service: scale, update or remove the service"
            ))),
            None => Ok(()),
        }
    }
}

fn status(error: &ContainerError) -> Status {
    let message = one_line(error);
    match error {
        ContainerError::NotFound(_) => Status::not_found(message),
        ContainerError::Ambiguous { .. } | ContainerError::Invalid(_) => Status::invalid_argument(message),
        ContainerError::NameTaken { .. } => Status::already_exists(message),
        ContainerError::State(_) => Status::failed_precondition(message),
        ContainerError::TooMany => Status::resource_exhausted(message),
        ContainerError::Network(status) => Status::new(status.code(), message),
        ContainerError::Store(_) => Status::internal(message),
        ContainerError::Interrupted => Status::unavailable(message),
        ContainerError::NotStarted { exit_code, .. } => {
            let mut status = Status::failed_precondition(message);
            status.metadata_mut().insert(EXIT_CODE_METADATA, MetadataValue::from(*exit_code));
            status
        }
    }
}

fn image_status(reference: &str, error: &ImageError) -> Status {
    use rorqual_image::Error as Store;
    let text = one_line(error);
    let message = if text.contains(reference) { text } else { format!("image {reference}: {text}") };
    match error {
        ImageError::Name { .. } => Status::invalid_argument(message),
        ImageError::Nowhere { .. } | ImageError::Store(Store::NoSuchImage(_)) => Status::not_found(message),
        ImageError::Denied { .. } => Status::permission_denied(message),
        ImageError::Store(Store::InUse { .. } | Store::SeveralNames { .. }) => {
            Status::failed_precondition(message)
        }
        ImageError::Store(Store::Document { .. } | Store::Archive { .. } | Store::ArchiveRead { .. }) => {
            Status::invalid_argument(message)
        }
        ImageError::Store(Store::DiskFull { .. }) => Status::resource_exhausted(message),
        ImageError::Interrupted | ImageError::Own(_) => Status::unavailable(message),
        ImageError::Store(_) => Status::failed_precondition(message),
    }
}
