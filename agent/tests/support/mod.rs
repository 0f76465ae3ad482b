//! The world of a test: namespaces of its own (network, mounts, processes), folders, control groups, an image of
//! busybox, and an agent in it. Everything goes when the test ends, however it ends.
//!
//! [`inside`] runs the test program once more in fresh namespaces, for one test; with the first process of the
//! process namespace go all monitors and containers.
#![allow(dead_code)]

pub(crate) mod leader;

use std::future::Future;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rorqual_agent::{Agent, AgentOptions};
use rorqual_image::Digest;
use rorqual_proto::wire::engine_client::EngineClient;
use rorqual_proto::wire::engine_server::EngineServer;
use rorqual_proto::{model, wire};
use rorqual_runtime::spec::{ContainerSettings, default_spec};
use rorqual_runtime::{Launch, LogPolicy, Rootfs, Runtime, RuntimeOptions};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};

/// Longer than anything here takes, even on a busy machine.
pub(crate) fn deadline() -> Duration {
    Duration::from_secs(30) * slowness()
}

/// Longer than a whole test.
fn test_seconds() -> String {
    (120 * slowness()).to_string()
}

/// How many times longer everything may take: more than one time on an emulated machine.
fn slowness() -> u32 {
    std::env::var("RORQUAL_TEST_SLOWNESS").map_or(1, |text| text.parse().unwrap())
}

/// The name of the test image.
pub(crate) const IMAGE: &str = "docker.io/library/box:latest";

const FOLDER: &str = "RQT_FOLDER";

/// The node's address in the test's network namespace.
pub(crate) const UNDERLAY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// Runs `body` in namespaces of its own; `test` is the test's name in its program.
pub(crate) fn inside<F: Future<Output = ()>>(test: &str, body: impl FnOnce(World) -> F) {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let world = World { folder: folder.into() };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(body(world));
        return;
    }
    let outer = Outer::new();
    let script = "ip link set lo up && ip link add u0 type veth peer name u1 && ip link set u1 up && \
                  ip addr add 10.99.0.1/24 dev u0 && ip link set u0 up && exec \"$@\"";
    let status = Command::new("timeout")
        .args(["--kill-after=5", &test_seconds()])
        .args(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--include-ignored", "--nocapture"])
        .env(FOLDER, outer.folder.path())
        .status()
        .unwrap();
    assert!(status.success(), "{test}: {status}");
}

/// What is outside of the namespaces, and has to be taken away.
struct Outer {
    folder: tempfile::TempDir,
}

impl Outer {
    fn new() -> Self {
        Self { folder: tempfile::Builder::new().prefix("rqt-agent-").tempdir_in("/var/tmp").unwrap() }
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        // The processes are gone with their namespace; the empty control groups are left.
        let runtime = Runtime::new(World { folder: self.folder.path().to_owned() }.runtime_options());
        if let Ok(runtime) = runtime {
            for (id, _) in runtime.list().unwrap_or_default() {
                let _ = runtime.delete(&id);
            }
            let removed = runtime.remove_node();
            if !std::thread::panicking() {
                removed.unwrap();
            }
        }
    }
}

/// One node.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) folder: PathBuf,
}

impl World {
    fn cgroup_parent(&self) -> String {
        let name = self.folder.file_name().unwrap().to_string_lossy().into_owned();
        name.trim_start_matches('.').to_owned()
    }

    fn runtime_options(&self) -> RuntimeOptions {
        RuntimeOptions {
            runtime_dir: self.folder.join("run/containers"),
            cgroup_parent: self.cgroup_parent(),
            binary: runtime_binary(),
        }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub(crate) fn options(&self) -> AgentOptions {
        AgentOptions {
            data_dir: self.data(),
            run_dir: self.folder.join("run"),
            hostname: "n1".to_owned(),
            labels: [("disk".to_owned(), "ssd".to_owned())].into(),
            cgroup_parent: self.cgroup_parent(),
            runtime_binary: runtime_binary(),
            advertise: None,
            local_pool: "10.215.0.0/24".parse().unwrap(),
            registry_port: None,
            insecure_registries: Vec::new(),
            registries: Default::default(),
            image_limits: Default::default(),
            gc: rorqual_agent::GcThresholds::default(),
        }
    }

    /// Starts a container behind the agent's back; returns its process.
    pub(crate) fn stray(&self, id: &str) -> u32 {
        let (root, dir) = (self.folder.join("root"), self.data().join("containers").join(id));
        for folder in ["bin", "proc", "sys", "dev"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        // By another process: what one of ours has open for writing, a child that another test forks has too, and then
        // nobody can execute it (ETXTBSY).
        let copy = Command::new("cp").arg("/bin/busybox").arg(root.join("bin")).status();
        assert!(copy.unwrap().success());
        std::fs::create_dir_all(&dir).unwrap();
        let settings = ContainerSettings {
            args: ["/bin/busybox", "sleep", "1000"].map(str::to_owned).to_vec(),
            ..ContainerSettings::default()
        };
        let launch = Launch {
            id: id.to_owned(),
            dir,
            spec: default_spec(&settings).unwrap(),
            rootfs: Rootfs::Directory(root),
            user: None,
            log: LogPolicy::default(),
            stdin: false,
        };
        let started = Runtime::new(self.runtime_options()).unwrap().launch(launch).unwrap();
        started.pid.try_into().unwrap()
    }

    /// A running node; one before it may take a moment to let go of its folders.
    pub(crate) async fn start(&self) -> Node {
        let agent = eventually("the folders are free", || {
            let options = self.options();
            async move { Agent::start(options).await.ok() }
        })
        .await;
        let (engine, server) = engine(&agent).await;
        Node { agent, engine, server }
    }

    /// A running node with the test image loaded.
    pub(crate) async fn with_image(&self) -> Node {
        let mut node = self.start().await;
        let archive = archive();
        let pieces: Vec<wire::LoadImageRequest> = archive
            .chunks(1 << 20)
            .map(|piece| wire::LoadImageRequest { data: piece.to_vec().into() })
            .collect();
        let loaded = node.engine.load_image(tokio_stream::iter(pieces)).await.unwrap().into_inner();
        assert_eq!(loaded.images[0].reference, IMAGE);
        node
    }
}

/// A node that runs.
pub(crate) struct Node {
    pub(crate) agent: Agent,
    pub(crate) engine: EngineClient<Channel>,
    /// Ends with the node.
    server: JoinSet<Result<(), tonic::transport::Error>>,
}

impl Node {
    /// Ends the agent as its daemon would; containers stay.
    pub(crate) async fn end(mut self) {
        self.server.shutdown().await;
        self.agent.shutdown().await;
    }
}

/// A client of the agent's engine API, over TCP in the test's own network namespace.
async fn engine(agent: &Agent) -> (EngineClient<Channel>, JoinSet<Result<(), tonic::transport::Error>>) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = JoinSet::new();
    server.spawn(
        Server::builder()
            .add_service(EngineServer::new(agent.engine()))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (EngineClient::connect(format!("http://{address}")).await.unwrap(), server)
}

fn runtime_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("RORQUAL_RUNTIME") {
        return path.into();
    }
    // target/debug/deps/node-… → target/debug/rorqual-runtime
    let own = std::env::current_exe().unwrap();
    let path = own.parent().and_then(Path::parent).unwrap().join("rorqual-runtime");
    assert!(path.exists(), "{} is missing: cargo build -p rorqual-runtime", path.display());
    path
}

fn header() -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// `docker save` of one layer with busybox.
fn archive() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let folder = |layer: &mut tar::Builder<Vec<u8>>, path: &str, mode| {
        let mut header = header();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        layer.append_data(&mut header, path, std::io::empty()).unwrap();
    };
    for path in ["bin/", "etc/", "proc/", "sys/", "dev/", "www/"] {
        folder(&mut layer, path, 0o755);
    }
    folder(&mut layer, "tmp/", 0o1777);
    let file = |layer: &mut tar::Builder<Vec<u8>>, path: &str, mode, content: &[u8]| {
        let mut header = header();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        layer.append_data(&mut header, path, content).unwrap();
    };
    file(&mut layer, "bin/busybox", 0o755, &std::fs::read("/bin/busybox").unwrap());
    file(&mut layer, "etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n");
    file(&mut layer, "etc/group", 0o644, b"root:x:0:\n");
    file(&mut layer, "etc/broken", 0o644, b"no program\n");
    for applet in
        "sh cat echo sleep true false hostname httpd kill id env printf mkdir touch ls seq".split(' ')
    {
        let mut header = header();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    let layer = layer.into_inner().unwrap();
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Env":["PATH=/bin","GREETING=hello"],"Cmd":["sleep","1000"]}},
           "rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        Digest::of(&layer),
    );
    let manifest = r#"[{"Config":"config.json","RepoTags":["box:latest"],"Layers":["layer.tar"]}]"#;
    let mut archive = tar::Builder::new(Vec::new());
    file(&mut archive, "layer.tar", 0o644, &layer);
    file(&mut archive, "config.json", 0o644, config.as_bytes());
    file(&mut archive, "manifest.json", 0o644, manifest.as_bytes());
    archive.into_inner().unwrap()
}

/// A container of the test image that runs a shell script.
pub(crate) fn shell(script: &str) -> model::ContainerSpec {
    model::ContainerSpec {
        image: IMAGE.to_owned(),
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        stop_grace_ms: 5_000,
        ..model::ContainerSpec::default()
    }
}

pub(crate) fn named(name: &str) -> wire::ContainerRequest {
    wire::ContainerRequest { name: name.to_owned() }
}

/// Makes and starts a container; returns its id.
pub(crate) async fn run(
    engine: &mut EngineClient<Channel>,
    name: &str,
    spec: &model::ContainerSpec,
    restart: Option<model::RestartPolicy>,
) -> String {
    let request = wire::CreateContainerRequest {
        name: name.to_owned(),
        spec: Some(spec.into()),
        restart: restart.as_ref().map(Into::into),
        ..Default::default()
    };
    let id = engine.create_container(request).await.unwrap().into_inner().id;
    engine.start_container(named(&id)).await.unwrap();
    id
}

/// The end of a container.
pub(crate) async fn wait(engine: &mut EngineClient<Channel>, name: &str) -> wire::ContainerInfo {
    let ended = tokio::time::timeout(deadline(), engine.wait_container(named(name))).await;
    ended.expect("it does not end").unwrap().into_inner().container.unwrap()
}

/// A container as `ps --all` shows it.
pub(crate) async fn look(engine: &mut EngineClient<Channel>, name: &str) -> Option<wire::ContainerInfo> {
    let all = engine.list_containers(wire::ListContainersRequest { all: true }).await.unwrap();
    all.into_inner().containers.into_iter().find(|container| container.name == name || container.id == name)
}

/// Everything that a container wrote.
pub(crate) async fn log(engine: &mut EngineClient<Channel>, name: &str, follow: bool) -> String {
    let request = wire::ContainerLogsRequest { name: name.to_owned(), follow, ..Default::default() };
    let mut lines = engine.container_logs(request).await.unwrap().into_inner();
    let mut text = String::new();
    while let Some(line) = lines.next().await {
        text.push_str(&String::from_utf8_lossy(&line.unwrap().data));
    }
    text
}

/// Waits until `look` gives something.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < deadline(), "{what}: not within {:?}", deadline());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process exists.
pub(crate) fn lives(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
