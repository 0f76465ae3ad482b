//! Debian's skopeo, podman, buildah and umoci push to our registry and pull from it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

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
