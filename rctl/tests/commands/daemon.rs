//! A daemon that answers what a test has put into it, and remembers what it was asked.

mod cluster;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rorqual_proto::wire::control_server::ControlServer;
use rorqual_proto::wire::engine_server::{Engine, EngineServer};
use rorqual_proto::wire::membership_server::MembershipServer;
use rorqual_proto::wire::*;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

type Answer<T> = Result<Response<T>, Status>;
pub(crate) type Sent<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the daemon answers.
#[derive(Default)]
pub(crate) struct Script {
    /// Each WatchService stream takes one list, sends it, and stays open; the last one ends only with the test.
    pub(crate) watches: VecDeque<Vec<Result<ServiceView, Status>>>,
    pub(crate) services: Vec<ServiceView>,
    pub(crate) start: Option<Status>,
    pub(crate) exit: Option<ContainerInfo>,
    pub(crate) lines: Vec<LogLine>,
    /// The container ends only when it is asked to.
    pub(crate) runs_until_stopped: bool,
    pub(crate) load_fails_after_bytes: Option<usize>,
    pub(crate) conflicts: u32,
    pub(crate) asked: Vec<String>,
    pub(crate) created_service: Option<ServiceSpec>,
    pub(crate) updated_service: Option<ServiceSpec>,
    pub(crate) created_container: Option<CreateContainerRequest>,
    pub(crate) loaded_bytes: usize,
    pub(crate) attach: Option<Status>,
    pub(crate) executed: Option<ExecStart>,
    /// What Build was asked for, what the client answered about its files, and how it is to end.
    pub(crate) build: Option<BuildStart>,
    pub(crate) build_answers: Vec<ContextAnswer>,
    pub(crate) build_fails: Option<Status>,
}

#[derive(Clone)]
struct Fake {
    script: Arc<Mutex<Script>>,
    stopped: watch::Sender<bool>,
}

/// A running daemon; it ends when dropped.
pub(crate) struct Daemon {
    fake: Fake,
    folder: tempfile::TempDir,
    serving: tokio::task::AbortHandle,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Daemon {
    pub(crate) async fn with(script: Script) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake { script: Arc::new(Mutex::new(script)), stopped: watch::channel(false).0 };
        let listener = UnixListener::bind(folder.path().join("r.sock")).unwrap();
        let server = Server::builder()
            .add_service(EngineServer::new(fake.clone()))
            .add_service(MembershipServer::new(fake.clone()))
            .add_service(ControlServer::new(fake.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        let serving = tokio::spawn(server).abort_handle();
        Self { fake, folder, serving }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("r.sock")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn script<T>(&self, look: impl FnOnce(&mut Script) -> T) -> T {
        look(&mut self.fake.script.lock().unwrap())
    }

    pub(crate) fn asked(&self, what: &str) -> bool {
        self.script(|script| script.asked.iter().any(|asked| asked == what))
    }

    /// Waits until it was asked.
    pub(crate) async fn until_asked(&self, what: &str) {
        let deadline = tokio::time::Instant::now() + super::DEADLINE;
        while !self.asked(what) {
            assert!(tokio::time::Instant::now() < deadline, "never asked: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Fake {
    fn ask(&self, what: impl Into<String>) {
        self.script.lock().unwrap().asked.push(what.into());
    }

    fn script<T>(&self, look: impl FnOnce(&mut Script) -> T) -> T {
        look(&mut self.script.lock().unwrap())
    }

    async fn until_stopped(&self) {
        self.stopped.subscribe().wait_for(|stopped| *stopped).await.unwrap();
    }

    fn service(&self) -> Service {
        self.script(|script| script.services[0].service.clone().unwrap())
    }
}

fn unknown<T>() -> Answer<T> {
    Err(Status::unimplemented("not in the script"))
}

fn forever<T: Send + 'static>(items: Vec<Result<T, Status>>) -> Sent<T> {
    Box::pin(tokio_stream::iter(items).chain(tokio_stream::pending()))
}

#[tonic::async_trait]
impl Engine for Fake {
    async fn load_image(&self, request: Request<Streaming<LoadImageRequest>>) -> Answer<LoadImageResponse> {
        let mut stream = request.into_inner();
        let limit = self.script(|script| script.load_fails_after_bytes).unwrap_or(usize::MAX);
        while let Some(piece) = stream.message().await? {
            let bytes = self.script(|script| {
                script.loaded_bytes += piece.data.len();
                script.loaded_bytes
            });
            if bytes >= limit {
                return Err(Status::invalid_argument("layer 2 is corrupted: its digest is another one"));
            }
        }
        let image =
            LoadedImage { reference: "docker.io/library/nginx:demo".into(), digest: "sha256:00".into() };
        Ok(Response::new(LoadImageResponse { images: vec![image] }))
    }

    type PullImageStream = Sent<PullProgress>;
    async fn pull_image(&self, _: Request<PullImageRequest>) -> Answer<Self::PullImageStream> {
        let messages = [
            PullProgress {
                item: "sha256:aa".into(),
                status: "fetching".into(),
                done_bytes: 1,
                total_bytes: 2,
                ..Default::default()
            },
            PullProgress { digest: "sha256:00".into(), ..Default::default() },
        ];
        Ok(Response::new(Box::pin(tokio_stream::iter(messages.map(Ok)))))
    }

    type PushImageStream = Sent<PullProgress>;
    async fn push_image(&self, request: Request<PushImageRequest>) -> Answer<Self::PushImageStream> {
        let PushImageRequest { reference, credentials } = request.into_inner();
        let user = credentials.map(|found| format!("{}:{}", found.username, found.password));
        self.ask(format!("push {reference} as {}", user.unwrap_or_default()));
        let messages = [
            PullProgress {
                item: "sha256:aa".into(),
                status: "mounted from other".into(),
                ..Default::default()
            },
            PullProgress { digest: "sha256:00".into(), status: "done, alone".into(), ..Default::default() },
        ];
        Ok(Response::new(Box::pin(tokio_stream::iter(messages.map(Ok)))))
    }

    async fn login(&self, request: Request<LoginRequest>) -> Answer<LoginResponse> {
        let LoginRequest { registry, credentials } = request.into_inner();
        let password = credentials.unwrap_or_default().password;
        self.ask(format!("login {registry}"));
        match password.as_str() {
            "right" => Ok(Response::new(LoginResponse::default())),
            "offline" => Ok(Response::new(LoginResponse { identity_token: "t0ken".into() })),
            _ => Err(Status::failed_precondition("it denies access")),
        }
    }

    async fn search_images(&self, request: Request<SearchImagesRequest>) -> Answer<SearchImagesResponse> {
        let SearchImagesRequest { registry, term, limit, .. } = request.into_inner();
        self.ask(format!("search {registry} {term} {limit}"));
        let description = "long ".repeat(40);
        let hit = SearchHit { name: "nginx".into(), description, stars: 7, official: true };
        Ok(Response::new(SearchImagesResponse { hits: vec![hit] }))
    }

    async fn list_tags(&self, request: Request<ListTagsRequest>) -> Answer<ListTagsResponse> {
        self.ask(format!("tags {}", request.into_inner().reference));
        Ok(Response::new(ListTagsResponse { tags: vec!["1".into(), "2".into()] }))
    }

    async fn list_images(&self, _: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let image = |index: u32| ImageInfo {
            reference: format!("docker.io/library/i{index}:1"),
            ..Default::default()
        };
        Ok(Response::new(ListImagesResponse { images: (0..5000).map(image).collect(), ..Default::default() }))
    }

    async fn inspect_image(&self, _: Request<ImageRequest>) -> Answer<InspectImageResponse> {
        Err(Status::unimplemented(""))
    }

    async fn tag_image(&self, request: Request<TagImageRequest>) -> Answer<TagImageResponse> {
        let TagImageRequest { name, reference } = request.into_inner();
        self.ask(format!("tag {name} {reference}"));
        Ok(Response::new(TagImageResponse {}))
    }

    type SaveImagesStream = Sent<ArchivePiece>;
    async fn save_images(&self, request: Request<SaveImagesRequest>) -> Answer<Self::SaveImagesStream> {
        let request = request.into_inner();
        let piece = |data: &'static [u8]| Ok(ArchivePiece { data: data.into() });
        let last = match request.names.iter().any(|name| name == "broken") {
            true => Err(Status::internal("blob sha256:00 is missing")),
            false => piece(b"chive"),
        };
        Ok(Response::new(Box::pin(tokio_stream::iter([piece(b"ar"), last]))))
    }

    async fn import_image(&self, request: Request<Streaming<ImportImageRequest>>) -> Answer<LoadedImage> {
        let mut pieces = request.into_inner();
        let mut bytes = 0;
        while let Some(piece) = pieces.message().await? {
            if let Some(settings) = piece.settings {
                if settings.fetch {
                    self.ask(format!("fetch {}", settings.source));
                }
                self.ask(format!("import {} {:?}", settings.reference, settings.changes));
            }
            bytes += piece.data.len();
        }
        self.script.lock().unwrap().loaded_bytes = bytes;
        Ok(Response::new(LoadedImage { reference: String::new(), digest: "sha256:00".into() }))
    }

    async fn prune_images(&self, request: Request<PruneImagesRequest>) -> Answer<PruneResponse> {
        let request = request.into_inner();
        self.ask(format!("prune images {} {}", request.all, request.filters.len()));
        let untagged = vec!["docker.io/library/a:1".into()];
        Ok(Response::new(PruneResponse { untagged, deleted: vec!["sha256:00".into()], freed_bytes: 2_000 }))
    }

    async fn examine_node(&self, _: Request<ExamineRequest>) -> Answer<ExamineResponse> {
        Ok(Response::new(ExamineResponse { findings: vec![], checks: 4 }))
    }

    async fn disk_usage(&self, _: Request<DiskUsageRequest>) -> Answer<DiskUsageResponse> {
        Ok(Response::new(DiskUsageResponse::default()))
    }

    async fn commit_container(&self, request: Request<CommitContainerRequest>) -> Answer<LoadedImage> {
        let request = request.into_inner();
        self.ask(format!("commit {} {} {}", request.name, request.reference, request.pause));
        Ok(Response::new(LoadedImage { reference: String::new(), digest: "sha256:00".into() }))
    }

    type ExportContainerStream = Sent<ArchivePiece>;
    async fn export_container(&self, _: Request<ContainerRequest>) -> Answer<Self::ExportContainerStream> {
        Err(Status::unimplemented(""))
    }

    async fn container_changes(&self, _: Request<ContainerRequest>) -> Answer<ContainerChangesResponse> {
        let change = |kind: ChangeKind, path: &'static [u8]| ContainerChange {
            kind: kind.into(),
            path: path.to_vec(),
        };
        let changes = vec![change(ChangeKind::Changed, b"/etc"), change(ChangeKind::Added, b"/etc/a\n")];
        Ok(Response::new(ContainerChangesResponse { changes }))
    }

    async fn prune_containers(&self, _: Request<PruneContainersRequest>) -> Answer<PruneResponse> {
        self.ask("prune containers".to_owned());
        Ok(Response::new(PruneResponse {
            deleted: vec!["c1".into()],
            freed_bytes: 1_000,
            ..Default::default()
        }))
    }

    async fn prune_build_cache(&self, request: Request<PruneBuildCacheRequest>) -> Answer<PruneResponse> {
        self.ask(format!("prune the build cache {}", request.into_inner().filters.len()));
        Ok(Response::new(PruneResponse { freed_bytes: 4_000, ..Default::default() }))
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let name = request.into_inner().name;
        if name == "used" {
            return Err(Status::failed_precondition(
                "container a uses it; remove that first, or use --force",
            ));
        }
        Ok(Response::new(RemoveImageResponse { untagged: vec![name], deleted: vec!["sha256:00".into()] }))
    }

    async fn registry_status(&self, _: Request<RegistryStatusRequest>) -> Answer<RegistryStatusResponse> {
        unknown()
    }

    async fn list_repositories(
        &self,
        _: Request<ListRepositoriesRequest>,
    ) -> Answer<ListRepositoriesResponse> {
        unknown()
    }

    async fn remove_from_registry(
        &self,
        _: Request<RemoveFromRegistryRequest>,
    ) -> Answer<RemoveFromRegistryResponse> {
        unknown()
    }

    async fn collect_registry(&self, _: Request<CollectRegistryRequest>) -> Answer<CollectRegistryResponse> {
        unknown()
    }

    async fn publish_image(&self, _: Request<PublishImageRequest>) -> Answer<PublishImageResponse> {
        unknown()
    }

    async fn resolve_image(&self, request: Request<ResolveImageRequest>) -> Answer<ResolveImageResponse> {
        let reference = request.into_inner().reference;
        if reference == "nope" {
            return Err(Status::not_found("there is no image docker.io/library/nope:latest"));
        }
        let digest = format!("sha256:{}", "0".repeat(64));
        Ok(Response::new(ResolveImageResponse {
            reference: format!("docker.io/library/{reference}"),
            digest,
        }))
    }

    type BuildStream = Sent<BuildResponse>;
    async fn build(&self, request: Request<Streaming<BuildRequest>>) -> Answer<Self::BuildStream> {
        Ok(Response::new(super::build::conversation(self.script.clone(), request.into_inner()).await))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        self.ask("create");
        self.script(|script| script.created_container = Some(request.into_inner()));
        Ok(Response::new(CreateContainerResponse { id: "c1".into() }))
    }

    async fn start_container(&self, _: Request<ContainerRequest>) -> Answer<ContainerResponse> {
        self.ask("start");
        match self.script(|script| script.start.clone()) {
            Some(status) => Err(status),
            None => Ok(Response::new(ContainerResponse::default())),
        }
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<ContainerResponse> {
        let request = request.into_inner();
        self.ask(format!("stop {} {:?}", request.name, request.grace_ms));
        self.stopped.send_replace(true);
        if request.name == "gone" {
            return Err(Status::not_found("there is no container gone"));
        }
        Ok(Response::new(ContainerResponse::default()))
    }

    async fn kill_container(&self, request: Request<KillContainerRequest>) -> Answer<ContainerResponse> {
        self.ask(format!("kill {}", request.into_inner().signal));
        Ok(Response::new(ContainerResponse::default()))
    }

    async fn remove_container(&self, _: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        self.ask("remove");
        Ok(Response::new(RemoveContainerResponse { id: "c1".into() }))
    }

    async fn connect_container(
        &self,
        request: Request<ConnectContainerRequest>,
    ) -> Answer<ContainerResponse> {
        let ConnectContainerRequest { name, network } = request.into_inner();
        let NetworkJoin { network, aliases, address, .. } = network.unwrap_or_default();
        self.ask(format!("connect {name} to {network} as {aliases:?} at {address}"));
        Ok(Response::new(ContainerResponse::default()))
    }

    async fn disconnect_container(
        &self,
        request: Request<DisconnectContainerRequest>,
    ) -> Answer<ContainerResponse> {
        let DisconnectContainerRequest { name, network } = request.into_inner();
        self.ask(format!("disconnect {name} from {network}"));
        match network.as_str() {
            "other" => Err(Status::failed_precondition("container a is not in network `other`")),
            _ => Ok(Response::new(ContainerResponse::default())),
        }
    }

    async fn list_containers(&self, _: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
        Ok(Response::new(ListContainersResponse::default()))
    }

    async fn wait_container(&self, _: Request<ContainerRequest>) -> Answer<ContainerResponse> {
        self.ask("wait");
        if self.script(|script| script.runs_until_stopped) {
            self.until_stopped().await;
        }
        let container = self.script(|script| script.exit.clone());
        Ok(Response::new(ContainerResponse { container }))
    }

    type ContainerLogsStream = Sent<LogLine>;
    async fn container_logs(&self, _: Request<ContainerLogsRequest>) -> Answer<Self::ContainerLogsStream> {
        self.ask("logs");
        let lines: Vec<_> = self.script(|script| script.lines.clone()).into_iter().map(Ok).collect();
        if self.script(|script| script.runs_until_stopped) {
            let fake = self.clone();
            let end =
                futures_util::stream::once(async move { fake.until_stopped().await }).filter_map(|()| None);
            return Ok(Response::new(Box::pin(tokio_stream::iter(lines).chain(end))));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(lines))))
    }

    type AttachStream = Sent<StreamResponse>;
    async fn attach(&self, request: Request<Streaming<StreamRequest>>) -> Answer<Self::AttachStream> {
        self.ask("attach");
        match self.script(|script| script.attach.clone()) {
            Some(status) => Err(status),
            None => Ok(Response::new(self.echo(request.into_inner()))),
        }
    }

    type ExecStream = Sent<StreamResponse>;
    async fn exec(&self, request: Request<Streaming<StreamRequest>>) -> Answer<Self::ExecStream> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|request| request.kind);
        let Some(stream_request::Kind::Exec(start)) = first else { return unknown() };
        self.script(|script| script.executed = Some(start));
        match self.script(|script| script.start.clone()) {
            Some(status) => Err(status),
            None => Ok(Response::new(self.echo(requests))),
        }
    }
}

impl Fake {
    /// Gives input back as output, and ends with 7 when the input has ended.
    fn echo(&self, requests: Streaming<StreamRequest>) -> Sent<StreamResponse> {
        use stream_response::Kind;
        let started = Kind::Started(StreamStarted { tty: false });
        let input = requests.filter_map(|request| match request.ok()?.kind? {
            stream_request::Kind::Input(bytes) => Some(Kind::Output(bytes)),
            stream_request::Kind::EndOfInput(_) => Some(Kind::ExitCode(7)),
            _ => None,
        });
        let first = tokio_stream::iter([started, Kind::ErrorOutput(b"ready\n".to_vec())]);
        Box::pin(first.chain(input).map(|kind| Ok(StreamResponse { kind: Some(kind) })))
    }
}
