//! Puts image, network and runtime together: a [`Workload`] is made ready, started, watched, taken away.
//!
//! Making ready does three things at once (image, network, folder), because the time to ten healthy replicas
//! is what users see. Calls of the runtime wait for the kernel, so they run on tokio's blocking threads; how
//! many containers start at the same moment is bounded.

mod drain;
pub(crate) mod folder;
mod health;
mod mounts;
mod place;
mod process;
mod signals;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::LinuxNamespaceType;
use rorqual_proto::model::Resources;
use rorqual_runtime::spec::{ContainerSettings, Limits, default_spec};
use rorqual_runtime::{ContainerState, Launch, LaunchError, LogPolicy, Rootfs, Runtime, Started};
use tokio::io::AsyncReadExt;
use tokio::sync::{Semaphore, mpsc};

use crate::clock;
use crate::error::{AgentError, one_line};
use crate::health::Check;
use crate::images::Images;
use crate::network::Network;
use crate::workload::{Event, Exit, Failure, Networking, Workload};
use folder::{Folder, Identity};
use place::Place;
use process::Process;

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// The exit code of "the engine failed".
const ENGINE_FAILED: i32 = 125;

/// What is told of a container whose monitor is gone: the kernel killed it with SIGKILL.
const LOST_CODE: i32 = 137;

/// Between two looks at a monitor that let go of its watcher although the container runs.
const WATCH_AGAIN: Duration = Duration::from_millis(200);

/// Between two looks at a process that has no handler for its stop signal yet.
const HANDLER_YET: Duration = Duration::from_millis(50);

/// How long a container may take to end after SIGKILL.
const KILLED: Duration = Duration::from_secs(5);

/// More than an exit status never has.
const MOST_EXIT_BYTES: u64 = 64 * 1024;

/// What the runtime makes in a container's file system to mount upon, where the image does not have it.
pub(crate) const MOUNT_POINTS: [&str; 9] = [
    "dev",
    "dev/pts",
    "dev/shm",
    "dev/mqueue",
    "proc",
    "sys",
    "etc/hosts",
    "etc/hostname",
    "etc/resolv.conf",
];

/// A container that has everything that a start needs.
#[derive(Debug)]
pub(crate) struct Prepared {
    image: Arc<rorqual_image::Prepared>,
    place: Place,
    process: Process,
    check: Option<Check>,
}

impl Prepared {
    /// Whether somebody asks how it is.
    pub(crate) fn is_checked(&self) -> bool {
        self.check.is_some()
    }
}

/// What a container could not do because of the machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecutorError {
    #[error(transparent)]
    Runtime(#[from] rorqual_runtime::Error),
    #[error("the agent is shutting down")]
    Interrupted,
}

/// The node's executor. Clones share it.
#[derive(Clone)]
pub(crate) struct Executor {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Arc<Runtime>,
    images: Images,
    network: Network,
    containers: PathBuf,
    volumes: PathBuf,
    node: String,
    launches: Semaphore,
}

impl Executor {
    pub(crate) fn new(
        runtime: Arc<Runtime>,
        images: Images,
        network: Network,
        data_dir: &Path,
        node: &str,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let inner = Inner {
            runtime,
            images,
            network,
            containers: data_dir.join("containers"),
            volumes: data_dir.join("volumes"),
            node: node.to_owned(),
            launches: Semaphore::new(cores * 2),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn folder(&self, id: &str) -> Folder {
        Folder::new(&self.inner.containers, id)
    }

    /// Where the node's volumes are, each a folder.
    pub(crate) fn volumes(&self) -> &Path {
        &self.inner.volumes
    }

    pub(crate) fn runtime(&self) -> &Arc<Runtime> {
        &self.inner.runtime
    }

    /// Image, network and folder, at the same time.
    pub(crate) async fn prepare(&self, workload: &Workload) -> Result<Prepared, Failure> {
        if workload.spec.init {
            return Err(refused(
                "init: this version has no init process of its own; use an image that brings one (tini)",
            ));
        }
        let folder = self.folder(&workload.id);
        let make = {
            let folder = folder.clone();
            blocking(move || folder.make().map_err(|error| engine(&error, false)))
        };
        let (image, place, ()) =
            tokio::try_join!(self.image(workload), self.place(&workload.network), make,)?;
        let process = process::merge(&workload.spec, image.config.config().as_ref()).map_err(refused)?;
        let check = self.check(workload).await.map_err(refused)?;
        let hostname = self.inner.hostname(workload).to_owned();
        let (hosts, resolver) = (place.hosts(&hostname), place.resolver(&workload.spec.dns));
        let top = image.layers.first().cloned();
        blocking(move || {
            let identity = Identity { hostname: &hostname, hosts: &hosts, resolver: &resolver };
            folder.write_identity(&identity).map_err(|error| engine(&error, false))?;
            top.map_or(Ok(()), |top| folder.adopt_root(&top)).map_err(|error| engine(&error, false))
        })
        .await?;
        Ok(Prepared { image, place, process, check })
    }

    async fn image(&self, workload: &Workload) -> Result<Arc<rorqual_image::Prepared>, Failure> {
        let spec = &workload.spec;
        let (digest, service) = (spec.image_digest.as_deref(), workload.service.as_deref());
        let prepared = self.inner.images.prepare(&spec.image, digest, service).await;
        prepared.map_err(|error| Failure {
            message: format!("image {}: {}", spec.image, one_line(&error)),
            exit_code: ENGINE_FAILED,
            permanent: error.is_permanent(),
        })
    }

    async fn place(&self, network: &Networking) -> Result<Place, Failure> {
        use rorqual_network::Error as Net;
        let attach = match network {
            Networking::Attached(attached) => attached.get(),
            Networking::Host => return Ok(Place::Host),
            Networking::Alone => return Ok(Place::Alone),
        };
        self.inner.network.attach(attach).await.map(Place::Attached).map_err(|error| {
            let permanent = matches!(
                error,
                Net::Invalid { .. }
                    | Net::PortTaken { .. }
                    | Net::PortConflict { .. }
                    | Net::ProtocolMissing { .. }
            );
            engine(&error, permanent)
        })
    }

    /// Other networks for a container that runs.
    pub(crate) async fn reattach(
        &self,
        attach: rorqual_network::Attach,
    ) -> Result<(), rorqual_network::Error> {
        self.inner.network.attach(attach).await.map(drop)
    }

    /// The network of a container that an earlier daemon started: there already, and made sure of.
    pub(crate) async fn readopt(&self, workload: &Workload) {
        let Networking::Attached(attached) = &workload.network else { return };
        if let Err(error) = self.inner.network.attach(attached.get()).await {
            tracing::warn!(container = %workload.id, error = %one_line(&error), "network of a running container");
        }
    }

    /// Starts the container's process, in place of one that has ended.
    pub(crate) async fn start(&self, workload: &Workload, prepared: &Prepared) -> Result<Started, Failure> {
        let launch = {
            let (workload, inner) = (workload.clone(), self.inner.clone());
            let folder = self.folder(&workload.id);
            let process = prepared.process.clone();
            let (netns, lowers) = (prepared.place.netns(), prepared.image.layers.clone());
            let shares = prepared.place.is_host();
            move || inner.launch(&workload, &folder, process, (netns, shares), lowers)
        };
        let Ok(_place) = self.inner.launches.acquire().await else { return Err(interrupted()) };
        blocking(launch).await
    }

    /// Waits for the end of a container's process. `dead` is told as soon as there is none, some milliseconds before it is
    /// known for good how it ended.
    pub(crate) async fn exit(&self, id: &str, dead: Option<&mpsc::Sender<Event>>) -> Exit {
        loop {
            if let Some(exit) = self.watch(id, dead).await {
                return exit;
            }
            let (runtime, name) = (self.inner.runtime.clone(), id.to_owned());
            match tokio::task::spawn_blocking(move || runtime.state(&name)).await {
                Ok(Ok(ContainerState::Exited(status))) => return exit_of(status),
                Ok(Ok(ContainerState::Running(_) | ContainerState::Starting)) => {}
                Ok(Ok(ContainerState::Lost | ContainerState::Unknown)) | Err(_) => return lost(),
                Ok(Err(error)) => {
                    tracing::warn!(container = id, error = %one_line(&error), "state of a container");
                    return lost();
                }
            }
            tokio::time::sleep(WATCH_AGAIN).await;
        }
    }

    async fn watch(&self, id: &str, dead: Option<&mpsc::Sender<Event>>) -> Option<Exit> {
        let (runtime, name) = (self.inner.runtime.clone(), id.to_owned());
        let stream = tokio::task::spawn_blocking(move || runtime.watch(&name)).await.ok()?.ok()?;
        stream.set_nonblocking(true).ok()?;
        let mut stream = tokio::net::UnixStream::from_std(stream).ok()?;
        // White space before JSON, or its beginning: nothing is said before the end.
        let mut line = vec![stream.read_u8().await.ok()?];
        if let Some(driver) = dead {
            // One that has ended needs not know.
            let _ = driver.send(Event::Dead).await;
        }
        stream.take(MOST_EXIT_BYTES).read_to_end(&mut line).await.ok()?;
        serde_json::from_slice(&line).ok().map(exit_of)
    }

    /// Sends the stop signal; once more where the process could not take it yet, as soon as it can. Returns
    /// after that, or when there is nobody left to ask.
    pub(crate) async fn stop(
        &self,
        workload: &Workload,
        prepared: Option<&Prepared>,
    ) -> Result<(), ExecutorError> {
        let signal = match prepared {
            Some(prepared) => prepared.process.stop_signal,
            // An earlier daemon started it: the image says it again.
            None => self.stop_signal(workload).await,
        };
        let pid = self.first_process(&workload.id).await;
        // Looked at first: a handler that is set in between takes the signal twice rather than never.
        let could_take_it = pid.and_then(|pid| takes(pid, signal));
        self.signal(&workload.id, signal).await?;
        let (Some(pid), Some(false)) = (pid, could_take_it) else { return Ok(()) };
        loop {
            tokio::time::sleep(HANDLER_YET).await;
            match takes(pid, signal) {
                Some(false) => {}
                Some(true) => return self.signal(&workload.id, signal).await,
                None => return Ok(()),
            }
        }
    }

    async fn first_process(&self, id: &str) -> Option<i32> {
        let (runtime, name) = (self.inner.runtime.clone(), id.to_owned());
        match tokio::task::spawn_blocking(move || runtime.state(&name)).await {
            Ok(Ok(ContainerState::Running(started))) => Some(started.pid),
            _ => None,
        }
    }

    async fn stop_signal(&self, workload: &Workload) -> i32 {
        let spec = &workload.spec;
        let config = self.inner.images.config(&spec.image, spec.image_digest.as_deref()).await;
        let merged = process::merge(spec, config.as_ref().and_then(|image| image.config().as_ref()));
        merged.map_or(SIGTERM, |process| process.stop_signal)
    }

    /// Ends every process of the container.
    pub(crate) async fn kill(&self, id: &str) -> Result<(), ExecutorError> {
        self.signal(id, SIGKILL).await
    }

    /// Sends any signal.
    pub(crate) async fn signal(&self, id: &str, signal: i32) -> Result<(), ExecutorError> {
        let (runtime, id) = (self.inner.runtime.clone(), id.to_owned());
        let sent = tokio::task::spawn_blocking(move || runtime.kill(&id, signal)).await;
        Ok(sent.map_err(|_| ExecutorError::Interrupted)??)
    }

    /// Takes away what a container that has ended leaves, but for its folder; goes on after an error and logs
    /// every one, since nothing more can be done about them here.
    pub(crate) async fn clean(&self, id: &str) {
        let (runtime, name) = (self.inner.runtime.clone(), id.to_owned());
        let delete = tokio::task::spawn_blocking(move || runtime.delete(&name));
        let (deleted, detached) = tokio::join!(delete, self.inner.network.detach(id));
        if let Ok(Err(error)) = deleted {
            tracing::warn!(container = id, error = %one_line(&error), "can't take the container away");
        }
        if let Err(error) = detached {
            tracing::warn!(container = id, error = %one_line(&error), "can't take the network away");
        }
    }

    /// Kills and takes away a container that nobody wants any more, with its folder.
    pub(crate) async fn discard(&self, id: &str) {
        if self.kill(id).await.is_ok() {
            self.exit(id, None).await;
        }
        self.clean(id).await;
        self.remove_folder(id).await;
    }

    /// Removes the container's folder, its logs too.
    pub(crate) async fn remove_folder(&self, id: &str) {
        self.with_folder(id, Folder::remove).await;
    }

    /// Removes the container's changes to its file system and keeps its logs.
    pub(crate) async fn remove_changes(&self, id: &str) {
        self.with_folder(id, Folder::remove_changes).await;
    }

    async fn with_folder(&self, id: &str, remove: fn(&Folder) -> Result<(), AgentError>) {
        let folder = self.folder(id);
        let removed = tokio::task::spawn_blocking(move || remove(&folder)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(container = id, error = %one_line(&error), "can't remove files");
        }
    }
}

impl Inner {
    /// Its own where it has one; in the node's network, the node's.
    fn hostname<'a>(&'a self, workload: &'a Workload) -> &'a str {
        let own = match workload.network {
            Networking::Host => &self.node,
            Networking::Attached(_) | Networking::Alone => &workload.hostname,
        };
        workload.spec.hostname.as_deref().unwrap_or(own)
    }

    /// Blocks until the process has been executed.
    fn launch(
        &self,
        workload: &Workload,
        folder: &Folder,
        process: Process,
        (netns, shares_network): (Option<PathBuf>, bool),
        lowers: Vec<PathBuf>,
    ) -> Result<Started, Failure> {
        let spec = &workload.spec;
        let places = mounts::Places { volumes: &self.volumes, node: &self.node, folder };
        let settings = ContainerSettings {
            args: process.args,
            env: process.env,
            cwd: process.workdir,
            hostname: self.hostname(workload).to_owned(),
            terminal: spec.tty,
            read_only_rootfs: spec.read_only,
            mounts: mounts::resolve(&spec.mounts, &places).map_err(refused)?,
            netns_path: netns,
            limits: limits(&spec.limits),
            cap_add: spec.cap_add.clone(),
            cap_drop: spec.cap_drop.clone(),
            sysctls: spec.sysctls.clone().into_iter().collect(),
            ..ContainerSettings::default()
        };
        self.take_leftover(&workload.id).map_err(|error| engine(&error, false))?;
        folder.reset_work().map_err(|error| engine(&error, false))?;
        let mut runtime_spec = default_spec(&settings).map_err(|error| launch_failure(&error))?;
        if shares_network
            && let Some(namespaces) =
                runtime_spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut())
        {
            namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
        }
        let launch = Launch {
            id: workload.id.clone(),
            dir: folder.path().to_owned(),
            spec: runtime_spec,
            rootfs: Rootfs::Overlay { lowers, upper: folder.upper(), work: folder.work() },
            user: process.user,
            log: LogPolicy::default(),
            stdin: spec.open_stdin,
        };
        self.runtime.launch(launch).map_err(|error| launch_failure(&error))
    }
}

impl Inner {
    /// What an earlier run of the same container left; nothing, most of the time. A launch that the daemon's end
    /// has cut off may still have come about: it is ended, nobody knows of it.
    fn take_leftover(&self, id: &str) -> Result<(), rorqual_runtime::Error> {
        match self.runtime.delete(id) {
            Err(rorqual_runtime::Error::StillRunning { .. }) => {}
            deleted => return deleted,
        }
        self.runtime.kill(id, SIGKILL)?;
        if let Ok(mut stream) = self.runtime.watch(id) {
            // Its end, or the deadline: `delete` tells which.
            let _ = stream.set_read_timeout(Some(KILLED));
            let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
        }
        self.runtime.delete(id)
    }
}

/// Whether a process can take a signal; `None` where it is gone. The kernel answers at once.
fn takes(pid: i32, signal: i32) -> Option<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(signals::takes(&status, signal))
}

fn limits(limits: &Resources) -> Limits {
    let some = |amount: u64| (amount > 0).then_some(amount);
    Limits {
        memory_bytes: some(limits.memory_bytes),
        nano_cpus: some(limits.nano_cpus),
        pids: some(limits.pids),
        ..Limits::default()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(interrupted()))
}

fn interrupted() -> Failure {
    Failure { message: "the agent is shutting down".to_owned(), exit_code: ENGINE_FAILED, permanent: false }
}

/// What is asked for can't be done here, however often it is tried.
fn refused(error: impl ToString) -> Failure {
    Failure { message: error.to_string(), exit_code: ENGINE_FAILED, permanent: true }
}

fn engine(error: &(dyn std::error::Error + 'static), permanent: bool) -> Failure {
    Failure { message: one_line(error), exit_code: ENGINE_FAILED, permanent }
}

fn launch_failure(error: &LaunchError) -> Failure {
    let permanent = matches!(
        error,
        LaunchError::InvalidSpec { .. }
            | LaunchError::CommandNotFound { .. }
            | LaunchError::CommandNotExecutable { .. }
            | LaunchError::UnknownUser { .. }
            | LaunchError::WorkingDirectory { .. }
    );
    Failure { message: one_line(error), exit_code: error.exit_code(), permanent }
}

fn exit_of(status: rorqual_runtime::ExitStatus) -> Exit {
    Exit {
        code: status.code,
        oom_killed: status.oom_killed,
        finished_at_ms: status.finished_at_ms,
        note: None,
    }
}

fn lost() -> Exit {
    Exit {
        code: LOST_CODE,
        oom_killed: false,
        finished_at_ms: clock::wall_ms(),
        note: Some("the container's monitor died, and the container with it".to_owned()),
    }
}

/// Makes `path` and everything above it.
pub(crate) fn make_folder(path: &Path) -> Result<(), AgentError> {
    match std::fs::create_dir_all(path) {
        Err(source) if source.kind() != ErrorKind::AlreadyExists => {
            Err(AgentError::Folder { operation: "create", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
