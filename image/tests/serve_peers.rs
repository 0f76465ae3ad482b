//! Debian's skopeo, podman, buildah, umoci and docker push to our registry and pull from it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rorqual_image::serve::{Options, Right};
use rorqual_image::{Digest, Reference, RegistryClient, RegistryOptions, Store, pull};
use support::served::{Served, Shared};
use support::{Image, Layer, gzip};

/// Runs a program that must succeed, and says what it printed.
async fn run(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let mut command = tokio::process::Command::new(program);
    // Their own places for everything, so that nothing of this machine is touched.
    let state = folder.join("state");
    std::fs::create_dir_all(&state).unwrap();
    let credentials = state.join("auth.json");
    if !credentials.exists() {
        std::fs::write(&credentials, "{}").unwrap();
    }
    command.args(arguments).env("HOME", &state).env("XDG_RUNTIME_DIR", &state).env("TMPDIR", &state);
    command.env("REGISTRY_AUTH_FILE", credentials).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(120), command.output()).await.expect("it hangs");
    let output = output.unwrap_or_else(|error| panic!("{program} ({error}): apt-get install {program}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {out}{err}");
    out.into_owned()
}

fn image() -> Image {
    let layers = [
        Layer::new().dir("etc", 0o755).file("etc/motd", b"hello").tar(),
        Layer::new().file("large", &vec![3; 2_000_000]).tar(),
    ];
    let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    Image::with(
        &layers,
        gzip,
        |_| {},
        |manifest| {
            for layer in manifest["layers"].as_array_mut().unwrap() {
                layer["mediaType"] = kind.into();
            }
        },
    )
}

/// An image layout on the disk, which the programs read.
fn layout(folder: &Path, image: &Image) -> String {
    let root = folder.join("layout");
    for (name, bytes) in image.layout(None) {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let index = root.join("index.json");
    let mut text: serde_json::Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    text["manifests"][0]["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "1" });
    std::fs::write(&index, serde_json::to_vec(&text).unwrap()).unwrap();
    format!("oci:{}:1", root.display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_and_umoci() {
    let served = Served::start().await;
    let (folder, image) = (tempfile::tempdir().unwrap(), image());
    let there = format!("docker://{}/team/app:1", served.address);
    let plain = "--dest-tls-verify=false";
    run(folder.path(), "skopeo", &["copy", plain, &layout(folder.path(), &image), &there]).await;
    assert_eq!(served.registry.resolve("team/app", "1").await.unwrap(), Some(image.manifest.clone()));
    let inspected = run(folder.path(), "skopeo", &["inspect", "--tls-verify=false", &there]).await;
    assert!(inspected.contains(&image.manifest.to_string()), "{inspected}");
    let tags = format!("docker://{}/team/app", served.address);
    let listed = run(folder.path(), "skopeo", &["list-tags", "--tls-verify=false", &tags]).await;
    assert!(listed.contains("\"1\""), "{listed}");

    // Into another repository: layers are mounted. As Docker's formats, and back as a layout.
    let other = format!("docker://{}/other/app:2", served.address);
    run(folder.path(), "skopeo", &["copy", "--src-tls-verify=false", plain, &there, &other]).await;
    let docker = format!("docker://{}/docker/app:1", served.address);
    let kind = ["copy", "--format=v2s2", "--src-tls-verify=false", plain, &there, &docker];
    run(folder.path(), "skopeo", &kind).await;
    let back = format!("oci:{}:back", folder.path().join("back").display());
    run(folder.path(), "skopeo", &["copy", "--src-tls-verify=false", &docker, &back]).await;
    let bundle = folder.path().join("bundle");
    let unpack = ["unpack", "--image", back.strip_prefix("oci:").unwrap(), bundle.to_str().unwrap()];
    run(folder.path(), "umoci", &unpack).await;
    assert_eq!(std::fs::read(bundle.join("rootfs/etc/motd")).unwrap(), b"hello");
    let deleted = ["delete", "--tls-verify=false", &docker];
    run(folder.path(), "skopeo", &deleted).await;
    assert_eq!(served.registry.resolve("docker/app", "1").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logged_in_with_a_password() {
    let shared = Shared::default();
    shared.allow("dev", "se:cret", "team/*", &[Right::Pull, Right::Push]);
    let served = Served::with(Options::default(), shared, false).await;
    let (folder, image) = (tempfile::tempdir().unwrap(), image());
    let host = served.address.to_string();
    let login = ["login", "--tls-verify=false", "-u", "dev", "-p", "se:cret", &host];
    run(folder.path(), "skopeo", &login).await;
    let there = format!("docker://{host}/team/app:1");
    let layout = layout(folder.path(), &image);
    run(folder.path(), "skopeo", &["copy", "--dest-tls-verify=false", &layout, &there]).await;
    run(folder.path(), "skopeo", &["inspect", "--tls-verify=false", &there]).await;
    // Ours logs in the same way.
    let store = Store::open(folder.path().join("store")).unwrap();
    let credentials =
        rorqual_image::Credentials::Password { username: "dev".into(), password: "se:cret".into() };
    let options =
        RegistryOptions { credentials: [(host.clone(), credentials)].into(), ..RegistryOptions::default() };
    let reference: Reference = format!("{host}/team/app:1").parse().unwrap();
    let pulled = pull(&store, &reference, &[], Some(&RegistryClient::new(options)), |_| {}).await.unwrap();
    assert_eq!(pulled, image.manifest);
    let stranger = RegistryClient::new(RegistryOptions::default());
    let denied = pull(&store, &reference, &[], Some(&stranger), |_| {});
    let error = support::chain(&denied.await.unwrap_err());
    assert!(error.contains("denies access"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buildah_and_podman() {
    let served = Served::start().await;
    let (folder, image) = (tempfile::tempdir().unwrap(), image());
    let host = served.address.to_string();
    served.push_image("base", &image, "1").await;
    let roots = |program| {
        let place = |name: &str| folder.path().join(format!("{program}-{name}")).display().to_string();
        [
            "--root".to_owned(),
            place("root"),
            "--runroot".to_owned(),
            place("run"),
            "--storage-driver=vfs".to_owned(),
        ]
    };
    let call = async |program: &'static str, arguments: &[&str]| {
        let roots = roots(program);
        let all: Vec<&str> = roots.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        run(folder.path(), program, &all).await
    };
    let (base, built) = (format!("docker://{host}/base:1"), format!("docker://{host}/built:1"));
    let id = call("buildah", &["from", "--tls-verify=false", &base]).await;
    let id = id.trim();
    call("buildah", &["config", "--label", "made=here", id]).await;
    call("buildah", &["commit", "--tls-verify=false", "--disable-compression=false", id, &built]).await;
    let digest = served.registry.resolve("built", "1").await.unwrap().expect("it was pushed");
    assert_ne!(digest, image.manifest);

    let (name, again) = (format!("{host}/base:1"), format!("{host}/again:1"));
    call("podman", &["pull", "--tls-verify=false", &name]).await;
    call("podman", &["push", "--tls-verify=false", &name, &again]).await;
    let found = call("podman", &["search", "--tls-verify=false", &format!("{host}/")]).await;
    assert!(found.contains(&format!("{host}/again")), "{found}");
    let listed = ["search", "--tls-verify=false", "--list-tags", &format!("{host}/again")];
    assert!(call("podman", &listed).await.contains('1'));

    // What they have pushed runs here.
    let store = Store::open(folder.path().join("store")).unwrap();
    for repository in served.registry.repositories(None).await.unwrap() {
        let reference: Reference = format!("{host}/{}:1", repository.name).parse().unwrap();
        let client = RegistryClient::new(RegistryOptions::default());
        let digest: Digest = pull(&store, &reference, &[], Some(&client), |_| {}).await.unwrap();
        let prepared = store.prepare(&digest).unwrap();
        assert!(prepared.layers.iter().any(|layer| layer.join("etc/motd").exists()));
    }
}

/// Docker's daemon, in namespaces of its own but for the network; it ends with this.
struct Docker {
    daemon: tokio::process::Child,
    folder: tempfile::TempDir,
}

impl Docker {
    async fn start() -> Docker {
        let folder = tempfile::Builder::new().prefix("rqt-img-docker-").tempdir().unwrap();
        let place = |name: &str| folder.path().join(name).display().to_string();
        let log = std::fs::File::create(place("log")).unwrap();
        let mut command = tokio::process::Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "dockerd"]);
        command.args([
            "--data-root",
            &place("data"),
            "--exec-root",
            &place("exec"),
            "--pidfile",
            &place("pid"),
        ]);
        command.args(["--host", &format!("unix://{}", place("socket")), "--storage-driver", "vfs"]);
        command.args(["--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        let docker = Docker { daemon: command.spawn().expect("unshare"), folder };
        let deadline = Instant::now() + Duration::from_secs(120);
        while !docker.command(&["version"]).output().await.unwrap().status.success() {
            let log = || std::fs::read_to_string(docker.folder.path().join("log")).unwrap();
            assert!(Instant::now() < deadline, "dockerd does not start: {}", log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        docker
    }

    /// Waits until nothing of it is left, so that its folder can go.
    async fn end(mut self) {
        let unshare = self.daemon.id().unwrap();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
        let first = nix::unistd::Pid::from_raw(children.trim().parse().unwrap());
        // The first process of its namespace takes all others along.
        nix::sys::signal::kill(first, nix::sys::signal::Signal::SIGKILL).unwrap();
        self.daemon.wait().await.unwrap();
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let socket = format!("unix://{}", self.folder.path().join("socket").display());
        // The client of the same package: a newer one may want a newer daemon.
        let mut command = tokio::process::Command::new("/usr/bin/docker");
        command.env("DOCKER_CONFIG", self.folder.path()).args(["--host", &socket]).args(arguments);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> String {
        let mut command = self.command(arguments);
        let output = tokio::time::timeout(Duration::from_secs(120), command.output()).await.unwrap().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "docker {arguments:?}: {out}{err}");
        out.trim().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker() {
    let shared = Shared::default();
    shared.allow("dev", "secret", "team/*", &[Right::Pull, Right::Push]);
    let served = Served::with(Options::default(), shared, false).await;
    let (docker, image, host) = (Docker::start().await, image(), served.address.to_string());
    let archive = docker.folder.path().join("image.tar");
    std::fs::write(&archive, support::archive(&image.docker(&["app:1"]))).unwrap();
    docker.run(&["load", "--quiet", "--input", archive.to_str().unwrap()]).await;
    let (name, again) = (format!("{host}/team/docker:1"), format!("{host}/team/again:1"));
    docker.run(&["tag", "app:1", &name]).await;
    let denied = docker.command(&["push", &name]).output().await.unwrap();
    assert!(!denied.status.success(), "without a login");
    docker.run(&["login", "--username", "dev", "--password", "secret", &host]).await;
    docker.run(&["push", &name]).await;
    let pushed = served.registry.resolve("team/docker", "1").await.unwrap().expect("it was pushed");
    // Layers that the registry has in another repository are mounted.
    docker.run(&["tag", "app:1", &again]).await;
    docker.run(&["push", &again]).await;
    assert_eq!(served.registry.resolve("team/again", "1").await.unwrap(), Some(pushed.clone()));
    docker.run(&["image", "rm", "app:1", &name, &again]).await;
    docker.run(&["pull", &name]).await;
    let digests = docker.run(&["image", "inspect", "--format", "{{.RepoDigests}}", &name]).await;
    assert_eq!(digests, format!("[{host}/team/docker@{pushed}]"));
    docker.end().await;
}
