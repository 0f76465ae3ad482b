//! Disks that fill up midway: the error names the remedy, nothing half-done stays, and the next try works as soon as
//! there is room. (Builds: `build.rs`.)
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use rorqual_image::diff::Folders;
use rorqual_image::serve::Options;
use rorqual_image::{Commit, Digest, Reference, RegistryClient, RegistryOptions, Store, pull, push};
use support::disk::Disk;
use support::registry::Registry;
use support::served::{Served, Shared};
use support::{Image, Layer, chain, count, gzip, noise, store};

fn store_on(disk: &Disk) -> Store {
    Store::open(disk.as_ref().join("store")).unwrap()
}

/// All that the store keeps, and what it has forgotten to take away.
fn kept(store: &Store) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in ["content/sha256", "content/tmp", "layers/sha256", "layers/tmp"] {
        for entry in fs::read_dir(store.root().join(folder)).unwrap() {
            found.insert(format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap()));
        }
    }
    found.extend(store.list().iter().map(|record| format!("image {}", record.digest)));
    found
}

#[track_caller]
fn names_the_remedy(text: &str) {
    assert!(text.contains("no space left for") && text.contains("rctl image rm"), "{text}");
}

fn client() -> RegistryClient {
    let backoff = Duration::from_millis(5);
    RegistryClient::new(RegistryOptions { backoff, attempts: 3, ..RegistryOptions::default() })
}

fn load(store: &Store, image: &Image, name: &str) -> rorqual_image::Result<Digest> {
    Ok(store.load_stream(&image.layout_tar(Some(name))[..], "test.tar")?[0].digest.clone())
}

/// Something that is there before.
fn small() -> Image {
    Image::new(&[Layer::new().file("etc/motd", b"hello").tar()])
}

fn large() -> Image {
    Image::new(&[Layer::new().file("big", &noise(1, 2 << 20)).tar()])
}

#[test]
fn while_an_archive_is_loaded_and_while_its_layer_is_unpacked() {
    let disk = Disk::new(1);
    let store = store_on(&disk);
    load(&store, &small(), "small:1").unwrap();
    let before = kept(&store);
    names_the_remedy(&chain(&load(&store, &large(), "large:1").unwrap_err()));
    assert_eq!(kept(&store), before);
    disk.resize(6);
    let digest = load(&store, &large(), "large:1").unwrap();
    disk.resize(3);
    let before = kept(&store);
    let text = chain(&store.prepare(&digest).unwrap_err());
    assert!(text.contains("disk is full at entry `big`") && text.contains("rctl image rm"), "{text}");
    assert_eq!(kept(&store), before);
    disk.resize(6);
    let prepared = store.prepare(&digest).unwrap();
    assert_eq!(fs::read(prepared.layers[0].join("big")).unwrap(), noise(1, 2 << 20));
}

#[tokio::test]
async fn while_an_image_is_pulled() {
    let (disk, registry) = (Disk::new(3), Registry::start().await);
    let store = store_on(&disk);
    load(&store, &small(), "small:1").unwrap();
    let before = kept(&store);
    // While a blob comes; and while its content, which is a thousand times as much, is unpacked.
    let swelling = [Layer::new().file("zeros", &vec![0; 8 << 20]).tar()];
    for (tag, image) in [("large", large_pair()), ("swelling", Image::with(&swelling, gzip, |_| {}, |_| {}))]
    {
        registry.add(&image, tag);
        let reference = registry.reference(&format!("app:{tag}"));
        let text = chain(&pull(&store, &reference, &[], Some(&client()), |_| {}).await.unwrap_err());
        assert!(text.contains("no space left for") || text.contains("disk is full at entry"), "{text}");
        assert!(text.contains("rctl image rm"), "{text}");
        assert_eq!(kept(&store), before, "{tag}");
        disk.resize(20);
        let pulled = pull(&store, &reference, &[], Some(&client()), |_| {}).await.unwrap();
        assert_eq!(pulled, image.manifest);
        store.prepare(&pulled).unwrap();
        store.remove(&reference, &Default::default()).unwrap();
        assert_eq!(kept(&store), before, "{tag}");
        disk.resize(3);
    }
}

/// Two layers, of which only one has room.
fn large_pair() -> Image {
    let tars = [2, 3].map(|seed| Layer::new().file("big", &noise(seed, 2 << 20)).tar());
    Image::new(&tars)
}

#[tokio::test]
async fn while_an_image_is_pushed_to_our_registry() {
    let disk = Arc::new(Disk::new(3));
    let served = Served::on(disk.clone(), Options::default(), Shared::default(), true).await;
    served.push_image("small", &small(), "1").await;
    let before = kept(&served.store);
    let (_folder, source) = store();
    let name = |tag: &str| format!("{}/app:{tag}", served.address).parse::<Reference>().unwrap();
    let image = large_pair();
    let digest = load(&source, &image, &name("1").to_string()).unwrap();
    let error = push(&source, &digest, &name("1"), &client(), |_| {}).await.unwrap_err();
    let text = chain(&error);
    assert!(text.contains("the registry's disk is full"), "{text}");
    // What came of it does not keep the disk full; one layer may have arrived, and waits for its manifest.
    assert_eq!(count(&served.store, "uploads"), 0);
    assert!(before.is_subset(&kept(&served.store)));
    assert_eq!(served.ask("GET", "/v2/small/manifests/1").await.status, 200);
    served.ask("GET", "/v2/app/manifests/1").await.is(404, "NAME_UNKNOWN");
    disk.resize(20);
    assert_eq!(push(&source, &digest, &name("1"), &client(), |_| {}).await.unwrap().digest, image.manifest);
    for layer in &image.layers {
        let answer = served.ask("GET", &format!("/v2/app/blobs/{layer}")).await;
        assert_eq!(Digest::of(&answer.body), *layer);
    }
}

#[test]
fn while_a_container_is_committed() {
    let disk = Disk::new(1);
    let store = store_on(&disk);
    let base = load(&store, &small(), "small:1").unwrap();
    let lowers = store.prepare(&base).unwrap().layers.clone();
    let upper = tempfile::tempdir().unwrap();
    fs::write(upper.path().join("big"), noise(1, 2 << 20)).unwrap();
    let folders = Folders { upper: upper.path().to_owned(), lowers, mount_points: Vec::new() };
    let before = kept(&store);
    let commit = || store.commit(&base, &folders, Commit { created_by: "sh".into(), ..Commit::default() });
    names_the_remedy(&chain(&commit().unwrap_err()));
    assert_eq!(kept(&store), before);
    disk.resize(10);
    let prepared = store.prepare(&commit().unwrap()).unwrap();
    assert_eq!(fs::read(prepared.layers[0].join("big")).unwrap(), noise(1, 2 << 20));
}
