//! Layers are unpacked while they download, and appear only when both digests hold.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rorqual_image::{
    Algorithm, Digest, Error, Limits, Options, Progress, Reference, RegistryClient, RegistryOptions, Store,
    pull,
};
use serde_json::json;
use support::registry::{Fault, Registry};
use support::{Image, Layer, chain, count, gzip, noise, put, store, zstd};

fn client() -> RegistryClient {
    RegistryClient::new(RegistryOptions {
        backoff: Duration::from_millis(5),
        attempts: 3,
        ..RegistryOptions::default()
    })
}

async fn fetch(store: &Store, reference: &Reference) -> rorqual_image::Result<Digest> {
    let client = client();
    let pulling = pull(store, reference, &[], Some(&client), |_| {});
    tokio::time::timeout(Duration::from_secs(60), pulling).await.expect("the pull hangs")
}

/// One layer of two files, the first of which is small.
fn two_files() -> Vec<u8> {
    Layer::new().file("first", b"1").file("second", &noise(1, 2 << 20)).tar()
}

/// What the store holds, temporary things included.
fn everything(store: &Store) -> [usize; 4] {
    ["content/sha256", "content/tmp", "layers/sha256", "layers/tmp"].map(|folder| count(store, folder))
}

/// The file `name` of a layer that is being unpacked.
fn half_way(store: &Store, name: &str) -> Option<PathBuf> {
    let layers = std::fs::read_dir(store.root().join("layers/tmp")).unwrap();
    layers.map(|entry| entry.unwrap().path().join("fs").join(name)).find(|path| path.exists())
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn files_appear_before_the_layer_has_come_and_the_layer_after_it_was_verified() {
    let (registry, (_folder, store)) = (Registry::start().await, store());
    let image = Image::with(&[two_files()], gzip, |_| {}, |_| {});
    registry.add(&image, "1");
    let (open, gate) = tokio::sync::watch::channel(false);
    registry.fault(image.layers[0].hex(), 1, Fault::Gate(1 << 20, gate));
    let pulling = tokio::spawn({
        let (store, reference) = (store.clone(), registry.reference("app:1"));
        async move { fetch(&store, &reference).await }
    });
    until("nothing is unpacked while the layer comes", || half_way(&store, "first").is_some()).await;
    assert_eq!(count(&store, "layers/sha256"), 0);
    assert!(!pulling.is_finished());
    open.send(true).unwrap();
    let digest = pulling.await.unwrap().unwrap();
    assert_eq!(count(&store, "layers/sha256"), 1);
    assert_eq!(count(&store, "layers/tmp"), 0);
    let top = store.prepare(&digest).unwrap().layers[0].clone();
    assert_eq!(std::fs::read(top.join("second")).unwrap(), noise(1, 2 << 20));
}

#[tokio::test]
async fn a_pull_that_is_dropped_takes_the_half_unpacked_layer_along() {
    let (registry, (_folder, store)) = (Registry::start().await, store());
    let image = Image::with(&[two_files()], gzip, |_| {}, |_| {});
    registry.add(&image, "1");
    let (_open, gate) = tokio::sync::watch::channel(false);
    registry.fault(image.layers[0].hex(), 1, Fault::Gate(1 << 20, gate));
    let pulling = tokio::spawn({
        let (store, reference) = (store.clone(), registry.reference("app:1"));
        async move { fetch(&store, &reference).await }
    });
    until("nothing is unpacked while the layer comes", || half_way(&store, "first").is_some()).await;
    pulling.abort();
    until("something half-unpacked stays", || count(&store, "layers/tmp") == 0).await;
    assert_eq!(count(&store, "layers/sha256"), 0);
}

#[tokio::test]
async fn a_transfer_that_breaks_is_one_layer_all_the_same() {
    for (is_resumed, then) in [(true, None), (false, Some(Fault::NoRange))] {
        let (registry, (_folder, store)) = (Registry::start().await, store());
        let image = Image::with(&[two_files()], zstd, |_| {}, |_| {});
        registry.add(&image, "1");
        registry.fault(image.layers[0].hex(), 1, Fault::BreakAfter(1 << 20));
        if let Some(fault) = then {
            registry.fault(image.layers[0].hex(), 1, fault);
        }
        let digest = fetch(&store, &registry.reference("app:1")).await.unwrap();
        let asked: Vec<_> =
            registry.seen().into_iter().filter(|seen| seen.path.contains(image.layers[0].hex())).collect();
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[1].range.as_deref(), Some("bytes=1048576-"), "{is_resumed}");
        // All of it was unpacked by the pull.
        assert_eq!((count(&store, "layers/sha256"), count(&store, "layers/tmp")), (1, 0));
        let top = store.prepare(&digest).unwrap().layers[0].clone();
        assert_eq!(std::fs::read(top.join("second")).unwrap(), noise(1, 2 << 20));
    }
}

#[tokio::test]
async fn what_does_not_hold_leaves_the_store_as_it_was() {
    let forged = Image::with(
        &[two_files(), Layer::new().file("x", b"x").tar()],
        gzip,
        |config| config["rootfs"]["diff_ids"][1] = json!(Digest::of(b"something else")),
        |_| {},
    );
    let hostile = Image::new(&[two_files(), Layer::new().file("../x", b"x").tar()]);
    let torn = Image::with(&[two_files()], |tar| gzip(tar)[..1000].to_vec(), |_| {}, |_| {});
    let fine = Image::with(&[two_files()], gzip, |_| {}, |_| {});
    let cases: [(&Image, Option<Fault>, &str); 7] = [
        (&forged, None, "the image is damaged or forged"),
        (&hostile, None, "`..` leads out of the layer"),
        (&torn, None, "truncated or damaged"),
        (&fine, Some(Fault::Tampered), "is corrupt: expected"),
        (&fine, Some(Fault::Short(1 << 20)), "wrong size"),
        (&fine, Some(Fault::Long), "wrong size"),
        (&fine, Some(Fault::Status(404)), "check the name"),
    ];
    for (image, fault, part) in cases {
        let (registry, (_folder, store)) = (Registry::start().await, store());
        registry.add(image, "1");
        if let Some(fault) = fault.clone() {
            registry.fault(image.layers[0].hex(), 9, fault);
        }
        let error = fetch(&store, &registry.reference("app:1")).await.unwrap_err();
        assert!(chain(&error).contains(part), "{part}: {}", chain(&error));
        assert!(store.list().is_empty());
        assert_eq!((count(&store, "content/tmp"), count(&store, "layers/tmp")), (0, 0), "{part}");
        if matches!(error, Error::Registry { .. }) {
            // What is complete stays for the next attempt.
            store.sweep().unwrap();
        }
        assert_eq!(everything(&store), [0; 4], "{part}");
    }
}

#[tokio::test]
async fn a_bomb_is_stopped_while_it_comes() {
    let (registry, folder) = (Registry::start().await, tempfile::tempdir().unwrap());
    let limits = Limits { ratio: 10, ratio_free_bytes: 1 << 20, ..Limits::default() };
    let store = Store::open_with(folder.path(), Options { limits, ..Options::default() }).unwrap();
    let bomb = Image::with(&[Layer::new().file("zeros", &vec![0; 32 << 20]).tar()], gzip, |_| {}, |_| {});
    registry.add(&bomb, "1");
    let text = chain(&fetch(&store, &registry.reference("app:1")).await.unwrap_err());
    assert!(text.contains("raise the limit `ratio`"), "{text}");
    assert_eq!(everything(&store), [0; 4]);
}

#[tokio::test]
async fn digests_by_sha512_and_layers_that_come_twice_are_fine() {
    let (registry, (_folder, store)) = (Registry::start().await, store());
    let tar = two_files();
    let packed = gzip(&tar);
    let (layer, diff_id) =
        (Digest::of_with(Algorithm::Sha512, &packed), Digest::of_with(Algorithm::Sha512, &tar));
    let mut blobs = BTreeMap::from([(layer.clone(), packed)]);
    let config = put(&mut blobs, support::config(&[diff_id.clone(), diff_id]).to_string().into_bytes());
    let kind = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let entry = support::descriptor(kind, &layer, &blobs);
    let manifest = json!({
        "schemaVersion": 2,
        "config": support::descriptor("application/vnd.docker.container.image.v1+json", &config, &blobs),
        "layers": [entry, entry],
    });
    let manifest = put(&mut blobs, manifest.to_string().into_bytes());
    registry.add(&Image { blobs, manifest: manifest.clone(), config, layers: vec![], diff_ids: vec![] }, "1");
    assert_eq!(fetch(&store, &registry.reference("app:1")).await.unwrap(), manifest);
    assert_eq!((count(&store, "content/sha512"), count(&store, "layers/sha512")), (1, 1));
    assert_eq!(store.prepare(&manifest).unwrap().layers.len(), 2);
}

#[tokio::test]
async fn every_layer_is_reported_when_it_is_unpacked() {
    let (registry, (_folder, store)) = (Registry::start().await, store());
    let tars: Vec<_> =
        (0..12).map(|at| Layer::new().file(&format!("f{at}"), &noise(1, 5000)).tar()).collect();
    let image = Image::with(&tars, gzip, |_| {}, |_| {});
    registry.add(&image, "1");
    let (reports, mut queue) = tokio::sync::mpsc::unbounded_channel();
    pull(&store, &registry.reference("app:1"), &[], Some(&client()), move |report| {
        if let Progress::Unpacked { digest } = report {
            reports.send(digest).unwrap();
        }
    })
    .await
    .unwrap();
    let mut unpacked = Vec::new();
    while let Some(digest) = queue.recv().await {
        unpacked.push(digest);
    }
    unpacked.sort();
    let mut expected = image.layers.clone();
    expected.sort();
    assert_eq!(unpacked, expected);
    assert_eq!(count(&store, "layers/sha256"), 12);
}
