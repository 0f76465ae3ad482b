//! Registries that have something else than images, stop midway, or lead elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use rorqual_image::{
    Credentials, Digest, Platform, Reference, RegistryClient, RegistryOptions, Store, pull, push,
};
use serde_json::{Value, json};
use support::registry::{Fault, Registry};
use support::{Image, Layer, OCI_INDEX, OCI_MANIFEST, chain, count, descriptor, put, store};

fn options() -> RegistryOptions {
    let (backoff, idle_timeout) = (Duration::from_millis(5), Duration::from_secs(1));
    RegistryOptions { backoff, idle_timeout, attempts: 3, ..RegistryOptions::default() }
}

async fn fetch(
    store: &Store,
    reference: &Reference,
    client: &RegistryClient,
) -> rorqual_image::Result<Digest> {
    let pulling = pull(store, reference, &[], Some(client), |_| {});
    tokio::time::timeout(Duration::from_secs(60), pulling).await.expect("the pull hangs")
}

fn small() -> Image {
    Image::new(&[Layer::new().file("f", b"content").tar()])
}

fn image(change: impl FnOnce(&mut Value)) -> Image {
    Image::with(&[Layer::new().file("f", b"content").tar()], |tar| tar.to_vec(), |_| {}, change)
}

/// A document of a registry, with the blobs that it points to.
struct Case {
    name: &'static str,
    blobs: BTreeMap<Digest, Vec<u8>>,
    top: Digest,
    kind: &'static str,
    words: &'static str,
}

fn case(
    name: &'static str,
    kind: &'static str,
    words: &'static str,
    document: &Value,
    image: &Image,
) -> Case {
    bytes(name, kind, words, serde_json::to_vec(document).unwrap(), image)
}

fn bytes(name: &'static str, kind: &'static str, words: &'static str, bytes: Vec<u8>, image: &Image) -> Case {
    let mut blobs = image.blobs.clone();
    let top = put(&mut blobs, bytes);
    Case { name, blobs, top, kind, words }
}

fn whole(name: &'static str, kind: &'static str, words: &'static str, image: Image) -> Case {
    Case { name, top: image.manifest.clone(), blobs: image.blobs, kind, words }
}

/// An index of an index of an index, so deep.
fn nested(depth: usize) -> Case {
    let image = small();
    let (mut blobs, mut top, mut kind) = (image.blobs.clone(), image.manifest.clone(), OCI_MANIFEST);
    for _ in 0..depth {
        let mut entry = descriptor(kind, &top, &blobs);
        let Platform { architecture, os, .. } = Platform::host();
        entry["platform"] = json!({ "os": os, "architecture": architecture });
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] });
        top = put(&mut blobs, serde_json::to_vec(&index).unwrap());
        kind = OCI_INDEX;
    }
    Case { name: "indexes without end", blobs, top, kind, words: "more than 4 indexes are nested" }
}

fn cases() -> Vec<Case> {
    let image_of = small();
    let entry = |platform: Value, kind: &str| {
        let mut entry = descriptor(kind, &image_of.manifest, &image_of.blobs);
        entry["platform"] = platform;
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] })
    };
    let host = json!({ "os": "linux", "architecture": Platform::host().architecture });
    let nowhere = json!({ "os": "unknown", "architecture": "unknown" });
    let old = json!({ "schemaVersion": 1, "name": "app", "fsLayers": [{ "blobSum": image_of.layers[0] }] });
    let config = |kind: &'static str| image(move |manifest| manifest["config"]["mediaType"] = kind.into());
    let layer = |kind: &'static str| image(move |manifest| manifest["layers"][0]["mediaType"] = kind.into());
    let page = b"<!doctype html><title>Log in to the hotel's network</title>".to_vec();
    vec![
        case(
            "schema 1",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "schema 1",
            &old,
            &image_of,
        ),
        bytes("a page", "text/html", "can't be read", page, &image_of),
        bytes("nothing", OCI_MANIFEST, "can't be read", Vec::new(), &image_of),
        case("no document of a kind", OCI_MANIFEST, "neither", &json!({ "schemaVersion": 2 }), &image_of),
        case("a version to come", OCI_MANIFEST, "must be 2", &json!({ "schemaVersion": 3 }), &image_of),
        whole("a kind to come", "application/vnd.example.manifest.v9+json", "is unknown", small()),
        whole("a chart", OCI_MANIFEST, "not a container", config("application/vnd.cncf.helm.config.v1+json")),
        whole("an artifact", OCI_MANIFEST, "not a container", config("application/vnd.oci.empty.v1+json")),
        whole(
            "an encrypted layer",
            OCI_MANIFEST,
            "tar+encrypted`: expected",
            layer("application/vnd.oci.image.layer.v1.tar+encrypted"),
        ),
        whole("an index that is none", OCI_INDEX, "its content is a manifest, but", small()),
        case(
            "a manifest that is none",
            OCI_MANIFEST,
            "its content is an index, but",
            &entry(host.clone(), OCI_MANIFEST),
            &image_of,
        ),
        case(
            "an index that lies",
            OCI_INDEX,
            "its content is a manifest, but",
            &entry(host, OCI_INDEX),
            &image_of,
        ),
        case("attestations alone", OCI_INDEX, "no platform at all", &entry(nowhere, OCI_MANIFEST), &image_of),
        bytes("a manifest of 5 MiB", OCI_MANIFEST, "longer than 4194304", vec![b' '; 5 << 20], &image_of),
        nested(6),
    ]
}

#[tokio::test]
async fn what_is_no_image_is_told_and_leaves_nothing() {
    let (_folder, store) = store();
    for Case { name, blobs, top, kind, words } in cases() {
        let registry = Registry::start().await;
        registry.add_document(&blobs, &top, kind, "1");
        let reference = registry.reference("app:1");
        let client = RegistryClient::new(options());
        let text = chain(&fetch(&store, &reference, &client).await.expect_err(name));
        assert!(text.contains(words), "{name}: {text}");
        assert!(store.list().is_empty(), "{name}");
        for folder in ["content/sha256", "content/tmp", "layers/sha256", "layers/tmp"] {
            assert_eq!(count(&store, folder), 0, "{name}: {folder}");
        }
        assert_eq!(registry.count(image_layer(&blobs).hex()), 0, "{name}: a layer was fetched");
    }
}

/// The layer that every case has.
fn image_layer(blobs: &BTreeMap<Digest, Vec<u8>>) -> Digest {
    let layer = small().layers[0].clone();
    assert!(blobs.contains_key(&layer));
    layer
}

#[tokio::test]
async fn a_transfer_that_stands_still_is_ended_and_goes_on_where_it_stopped() {
    let (_open, gate) = tokio::sync::watch::channel(false);
    let image = Image::new(&[Layer::new().file("f", &[7; 100_000]).tar()]);
    for (times, comes) in [(1, true), (99, false)] {
        let (registry, (_folder, store)) = (Registry::start().await, store());
        registry.add(&image, "1");
        registry.fault(image.layers[0].hex(), times, Fault::Gate(30_000, gate.clone()));
        let fetched = fetch(&store, &registry.reference("app:1"), &RegistryClient::new(options())).await;
        if comes {
            assert_eq!(fetched.unwrap(), image.manifest);
            let ranges: Vec<_> = registry.seen().into_iter().filter_map(|seen| seen.range).collect();
            assert_eq!(ranges, ["bytes=30000-"]);
        } else {
            let text = chain(&fetched.unwrap_err());
            assert!(text.contains("within 1 s") && text.contains("reading the blob"), "{text}");
            assert_eq!(count(&store, "content/tmp"), 0);
        }
    }
}

/// A client with a password for that registry.
fn with_password(registry: &Registry) -> RegistryClient {
    let credentials = Credentials::Password { username: "me".into(), password: "secret".into() };
    let credentials = HashMap::from([(registry.address.to_string(), credentials)]);
    RegistryClient::new(RegistryOptions { credentials, ..options() })
}

#[tokio::test]
async fn passwords_stay_with_their_registry_wherever_it_leads() {
    const BASIC: &str = "Basic bWU6c2VjcmV0";
    let image = small();
    // A host that asks for a password as well, once politely and once for a token.
    for challenge in ["Basic realm=\"mine\"", "token"] {
        let (registry, elsewhere) = (Registry::start().await, Registry::start().await);
        registry.add(&image, "1");
        elsewhere.add(&image, "1");
        registry.demand("Basic realm=\"x\"", BASIC);
        let asks = match challenge {
            "token" => format!("Bearer realm=\"{}/token\"", elsewhere.url()),
            basic => basic.to_owned(),
        };
        elsewhere.demand(&asks, "Basic something else");
        let layer = &image.layers[0];
        registry.fault(layer.hex(), 99, Fault::Redirect(format!("{}/v2/app/blobs/{layer}", elsewhere.url())));
        let (_folder, target) = store();
        let client = with_password(&registry);
        let text = chain(&fetch(&target, &registry.reference("app:1"), &client).await.unwrap_err());
        assert!(text.contains("denies access") || text.contains("credentials"), "{text}");
        assert!(registry.seen().iter().any(|seen| seen.authorization.as_deref() == Some(BASIC)));
        let asked = elsewhere.seen();
        assert_eq!(asked.len(), 1, "a challenge of another host is answered: {asked:?}");
        assert_eq!(asked[0].authorization, None);
    }
}

#[tokio::test]
async fn an_upload_that_is_sent_elsewhere_takes_no_password_along() {
    let (registry, elsewhere, image) = (Registry::start().await, Registry::start().await, small());
    let (_folder, source) = store();
    let name = registry.reference("app:1");
    let loaded = source.load_stream(&image.layout_tar(Some(&name.to_string()))[..], "test").unwrap();
    registry.demand("Basic realm=\"x\"", "Basic bWU6c2VjcmV0");
    registry.fault("/blobs/uploads/", 99, Fault::Upload(format!("{}/elsewhere", elsewhere.url())));
    let error = push(&source, &loaded[0].digest, &name, &with_password(&registry), |_| {}).await;
    assert!(error.is_err());
    let asked = elsewhere.seen();
    assert!(asked.iter().any(|seen| seen.method == "PUT"), "{asked:?}");
    assert!(asked.iter().all(|seen| seen.authorization.is_none()), "{asked:?}");
}

#[tokio::test]
async fn what_is_being_pushed_is_not_swept_when_its_image_is_removed() {
    let (served, (_folder, source)) = (support::served::Served::start().await, store());
    let image = Image::new(&[Layer::new().file("f", &support::noise(1, 8 << 20)).tar()]);
    let name: Reference = format!("{}/app:1", served.address).parse().unwrap();
    let loaded = source.load_stream(&image.layout_tar(Some(&name.to_string()))[..], "test").unwrap();
    let (first, begun) = std::sync::mpsc::channel();
    let client = RegistryClient::new(RegistryOptions::default());
    let digest = loaded[0].digest.clone();
    let pushing = push(&source, &digest, &name, &client, move |_| {
        // A push that goes on although the test has ended is no failure.
        let _ = first.send(());
    });
    let (store, image_name) = (source.clone(), name.clone());
    let removing = tokio::task::spawn_blocking(move || {
        begun.recv().unwrap();
        store.remove(&image_name, &Default::default()).unwrap()
    });
    let (pushed, removed) = tokio::join!(pushing, removing);
    assert_eq!(pushed.unwrap().digest, image.manifest);
    assert_eq!(removed.unwrap().blobs, [], "what is pushed was taken away");
    let answer = served.ask("GET", &format!("/v2/app/blobs/{}", image.layers[0])).await;
    assert_eq!(Digest::of(&answer.body), image.layers[0]);
    // Afterwards it goes.
    assert_eq!(source.sweep().unwrap().blobs.len(), 3);
}
