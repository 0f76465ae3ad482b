//! Pulling from a registry on loopback that can misbehave, and from peers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use rorqual_image::{
    BlobSource, BlobWriter, Credentials, Digest, Error, Progress, Reference, RegistryClient, RegistryOptions,
    SourceError, Store, pull,
};
use serde_json::json;
use support::registry::{Fault, Registry};
use support::{Image, Layer, chain, count, descriptor, gzip, put, store};

fn image() -> Image {
    let layers: Vec<Vec<u8>> =
        (0..5u8).map(|at| Layer::new().file(&format!("f{at}"), &vec![at; 100_000]).tar()).collect();
    Image::with(&layers, |tar| if tar[520] % 2 == 0 { tar.to_vec() } else { gzip(tar) }, |_| {}, |_| {})
}

fn quick() -> RegistryOptions {
    RegistryOptions {
        backoff: Duration::from_millis(5),
        idle_timeout: Duration::from_secs(5),
        attempts: 3,
        ..RegistryOptions::default()
    }
}

fn client() -> RegistryClient {
    RegistryClient::new(quick())
}

/// Pulls from the registry alone.
async fn fetch(
    store: &Store,
    reference: &Reference,
    client: &RegistryClient,
) -> rorqual_image::Result<Digest> {
    let pulling = pull(store, reference, &[], Some(client), |_| {});
    tokio::time::timeout(Duration::from_secs(30), pulling).await.expect("the pull hangs")
}

#[tokio::test]
async fn a_tag_is_pulled_once_and_reported() {
    let (registry, image, (_folder, store)) = (Registry::start().await, image(), store());
    registry.add(&image, "1");
    let reference = registry.reference("team/app:1");
    let reports = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&reports);
    let digest =
        pull(&store, &reference, &[], Some(&client()), move |report| sink.lock().unwrap().push(report))
            .await
            .unwrap();
    assert_eq!(digest, image.manifest);
    assert_eq!(store.resolve(&reference), Some(image.manifest.clone()));
    assert_eq!(store.prepare(&digest).unwrap().layers.len(), 5);
    let reports = reports.lock().unwrap().clone();
    assert_eq!(reports[0], Progress::Resolved { digest: digest.clone() });
    let fetched: HashSet<&Digest> = reports
        .iter()
        .filter_map(|report| match report {
            Progress::Fetched { digest, from, .. } => {
                assert_eq!(*from, registry.address.to_string());
                Some(digest)
            }
            _ => None,
        })
        .collect();
    assert_eq!(fetched.len(), 6);
    assert!(reports.iter().any(|report| matches!(report, Progress::Layers { layers } if layers.len() == 5)));
    // Again: only the tag is asked for.
    let before = registry.count("/blobs/");
    fetch(&store, &reference, &client()).await.unwrap();
    assert_eq!(registry.count("/blobs/"), before);
    assert_eq!(client().resolve(&reference).await.unwrap(), image.manifest);
    assert_eq!(registry.seen().last().unwrap().method, "HEAD");
}

#[tokio::test]
async fn several_pulls_at_once_fetch_a_blob_once() {
    let (registry, image, (_folder, store)) = (Registry::start().await, image(), store());
    registry.add(&image, "1");
    let reference = registry.reference("app:1");
    let pulls: Vec<_> = (0..6)
        .map(|_| {
            let (store, reference) = (store.clone(), reference.clone());
            tokio::spawn(async move { fetch(&store, &reference, &client()).await.unwrap() })
        })
        .collect();
    for pull in pulls {
        assert_eq!(pull.await.unwrap(), image.manifest);
    }
    assert_eq!(registry.count("/blobs/"), 6);
    assert_eq!(count(&store, "content/tmp"), 0);
}

#[tokio::test]
async fn an_index_is_resolved_and_a_wrong_platform_is_said_early() {
    let (registry, image, (_folder, store)) = (Registry::start().await, image(), store());
    let host = rorqual_image::Platform::host();
    for (architecture, works) in [(host.architecture.as_str(), true), ("vax", false)] {
        let mut blobs = image.blobs.clone();
        let mut entry = descriptor(support::OCI_MANIFEST, &image.manifest, &blobs);
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        let index = json!({ "schemaVersion": 2, "mediaType": support::OCI_INDEX, "manifests": [entry] });
        let index = put(&mut blobs, serde_json::to_vec(&index).unwrap());
        registry.add_index(&blobs, &index, "multi");
        let reference = registry.reference("app:multi");
        if works {
            assert_eq!(fetch(&store, &reference, &client()).await.unwrap(), image.manifest);
            assert_eq!(store.resolve(&reference.with_digest(index)), Some(image.manifest.clone()));
        } else {
            let before = registry.count("/blobs/");
            let text = chain(&fetch(&store, &reference, &client()).await.unwrap_err());
            assert!(text.contains("the image has linux/vax"), "{text}");
            assert_eq!(registry.count("/blobs/"), before);
        }
    }
    // One manifest alone: its configuration tells, before any layer is fetched.
    let vax = Image::with(
        &[Layer::new().tar()],
        |tar| tar.to_vec(),
        |config| config["architecture"] = json!("vax"),
        |_| {},
    );
    registry.add(&vax, "vax");
    let text = chain(&fetch(&store, &registry.reference("app:vax"), &client()).await.unwrap_err());
    assert!(text.contains("the image has linux/vax"), "{text}");
    assert_eq!(registry.count(vax.layers[0].hex()), 0);
}

#[tokio::test]
async fn tokens_and_passwords_go_where_they_belong() {
    let (registry, service, image) = (Registry::start().await, Registry::start().await, image());
    registry.add(&image, "1");
    let reference = registry.reference("team/app:1");
    let challenge = format!(
        r#"Bearer realm="{}/token",service="the registry",scope="repository:team/app:pull""#,
        service.url()
    );
    registry.demand(&challenge, "Bearer t0ken");

    // Anonymous.
    service.give_token(None, "t0ken");
    let (_folder, target) = store();
    fetch(&target, &reference, &client()).await.unwrap();
    let asked = service.seen();
    assert_eq!(asked.len(), 1, "the token was not kept: {asked:?}");
    assert_eq!(asked[0].path, "/token?service=the%20registry&scope=repository%3Ateam%2Fapp%3Apull");
    assert_eq!(asked[0].authorization, None);

    // With a password, which the token service sees and the registry does not.
    service.give_token(Some("Basic bWU6c2VjcmV0"), "t0ken");
    let with = |password: &str| {
        let credentials = Credentials::Password { username: "me".into(), password: password.into() };
        RegistryClient::new(RegistryOptions {
            credentials: HashMap::from([(registry.address.to_string(), credentials)]),
            ..quick()
        })
    };
    let (_folder, target) = store();
    fetch(&target, &reference, &with("secret")).await.unwrap();
    assert!(
        registry.seen().iter().all(|seen| !seen.authorization.as_deref().unwrap_or("").starts_with("Basic"))
    );
    let (_folder, target) = store();
    let text = chain(&fetch(&target, &reference, &with("wrong")).await.unwrap_err());
    assert!(
        text.contains("denies access") && text.contains("wrong password") && !text.contains("wrong\""),
        "{text}"
    );

    // A refresh token, as RFC 6749 has it; and an access token, which nobody has to give.
    service.give_token(None, "t0ken");
    let as_holder = |credentials| client().with_credentials(&registry.address.to_string(), credentials);
    let (_folder, target) = store();
    let identity = Credentials::Identity { token: "r3fresh".into() };
    fetch(&target, &reference, &as_holder(identity)).await.unwrap();
    let asked = service.seen().pop().unwrap();
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/token"));
    let before = service.seen().len();
    let (_folder, target) = store();
    let bearer = Credentials::Bearer { token: "t0ken".into() };
    fetch(&target, &reference, &as_holder(bearer)).await.unwrap();
    assert_eq!(service.seen().len(), before);

    // Basic authentication.
    registry.demand("Basic realm=\"x\"", "Basic bWU6c2VjcmV0");
    let (_folder, target) = store();
    fetch(&target, &reference, &with("secret")).await.unwrap();
    let text = chain(&fetch(&target, &reference, &client()).await.unwrap_err());
    assert!(text.contains("credentials are missing or wrong"), "{text}");
}

#[tokio::test]
async fn a_redirect_is_followed_without_credentials() {
    let (registry, elsewhere, image) = (Registry::start().await, Registry::start().await, image());
    registry.add(&image, "1");
    elsewhere.add(&image, "1");
    registry.give_token(None, "t0ken");
    registry.demand(&format!("Bearer realm=\"{}/token\"", registry.url()), "Bearer t0ken");
    let layer = &image.layers[2];
    registry.fault(
        layer.hex(),
        9,
        Fault::Redirect(format!("{}/v2/x/blobs/{layer}?signature=abc", elsewhere.url())),
    );
    let (_folder, target) = store();
    fetch(&target, &registry.reference("app:1"), &client()).await.unwrap();
    let asked = elsewhere.seen();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].authorization, None);
    assert!(registry.seen().iter().any(|seen| seen.authorization.as_deref() == Some("Bearer t0ken")));

    let (_folder, target) = store();
    registry.fault("/manifests/", 99, Fault::Redirect(format!("{}/v2/app/manifests/1", registry.url())));
    let text = chain(&fetch(&target, &registry.reference("app:1"), &client()).await.unwrap_err());
    assert!(text.contains("more than 5 redirects"), "{text}");
    let registry = Registry::start().await;
    registry.fault("/manifests/", 99, Fault::Redirect("file:///etc/passwd".into()));
    let text = chain(&fetch(&target, &registry.reference("app:1"), &client()).await.unwrap_err());
    assert!(text.contains("not a web address"), "{text}");
}

#[tokio::test]
async fn passing_trouble_is_waited_out() {
    let image = image();
    for (fault, times) in [
        (Fault::Status(500), 2),
        (Fault::Status(429), 2),
        (Fault::RetryAfter(429, "0"), 2),
        (Fault::RetryAfter(503, "Wed, 21 Oct 2015 07:28:00 GMT"), 1),
    ] {
        let (registry, (_folder, store)) = (Registry::start().await, store());
        registry.add(&image, "1");
        registry.fault("/manifests/1", times, fault.clone());
        registry.fault(image.layers[1].hex(), times, fault.clone());
        fetch(&store, &registry.reference("app:1"), &client())
            .await
            .unwrap_or_else(|error| panic!("{fault:?}: {}", chain(&error)));
        assert_eq!(registry.count("/manifests/1"), times + 1, "{fault:?}");
    }
    // What it asks for is waited.
    let (registry, (_folder, store)) = (Registry::start().await, store());
    registry.add(&image, "1");
    registry.fault("/manifests/1", 1, Fault::RetryAfter(429, "1"));
    let start = Instant::now();
    fetch(&store, &registry.reference("app:1"), &client()).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn lasting_trouble_is_told() {
    let image = image();
    let layer = image.layers[1].hex();
    let cases: Vec<(&str, Fault, &str, usize)> = vec![
        ("/manifests/", Fault::Status(500), "it answered 500 Internal Server Error (OOPS on purpose)", 3),
        ("/manifests/", Fault::Status(404), "check the name and the tag", 1),
        ("/manifests/", Fault::Status(403), "denies access", 1),
        ("/manifests/", Fault::Status(418), "it answered 418", 1),
        ("/manifests/", Fault::RetryAfter(429, "86400"), "asks to wait 86400 s", 1),
        ("/manifests/", Fault::Tampered, "is corrupt: expected sha256:", 1),
        ("/manifests/", Fault::Hang, "no answer within 1 s", 3),
        (layer, Fault::Tampered, "is corrupt: expected sha256:", 1),
        (layer, Fault::Short(50), "wrong size: expected", 1),
        (layer, Fault::Long, "wrong size: expected", 1),
        (layer, Fault::Status(404), "it has no blob", 1),
        (layer, Fault::BreakAfter(0), "the connection broke", 3),
    ];
    for (part, fault, expected, attempts) in cases {
        let (registry, (_folder, store)) = (Registry::start().await, store());
        registry.add(&image, "1");
        registry.fault(part, 99, fault.clone());
        let client = RegistryClient::new(RegistryOptions { idle_timeout: Duration::from_secs(1), ..quick() });
        let error = fetch(&store, &registry.reference("app:1"), &client).await.expect_err(expected);
        let text = chain(&error);
        assert!(text.contains(expected), "{fault:?}: {text}");
        assert_eq!(registry.count(part), attempts, "{fault:?}");
        assert!(store.list().is_empty());
        assert_eq!(count(&store, "content/tmp"), 0, "{fault:?}");
        assert!(store.blob(&image.layers[1]).unwrap().is_none(), "{fault:?}");
    }
    let (_folder, store) = store();
    let nobody: Reference = "127.0.0.1:1/app".parse().unwrap();
    let text = chain(&fetch(&store, &nobody, &client()).await.unwrap_err());
    assert!(text.contains("can't connect to 127.0.0.1:1"), "{text}");
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_stopped() {
    let (registry, image, (_folder, store)) = (Registry::start().await, image(), store());
    registry.add(&image, "1");
    let large = image.layers.iter().find(|layer| image.bytes(layer).len() > 50_000).unwrap();
    registry.fault(large.hex(), 1, Fault::BreakAfter(40_000));
    fetch(&store, &registry.reference("app:1"), &client()).await.unwrap();
    let ranges: Vec<_> = registry
        .seen()
        .into_iter()
        .filter(|seen| seen.path.contains(large.hex()))
        .map(|seen| seen.range)
        .collect();
    assert_eq!(ranges, [None, Some("bytes=40000-".to_owned())]);
}

/// A peer that has some blobs, and may lie about them.
struct Peer {
    name: &'static str,
    blobs: BTreeMap<Digest, Vec<u8>>,
    asked: AtomicUsize,
}

impl Peer {
    fn new(name: &'static str, blobs: BTreeMap<Digest, Vec<u8>>) -> Arc<Peer> {
        Arc::new(Peer { name, blobs, asked: AtomicUsize::new(0) })
    }
}

impl BlobSource for Peer {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn fetch<'a>(
        &'a self,
        digest: &'a Digest,
        _size: Option<u64>,
        to: &'a mut BlobWriter,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let bytes = self.blobs.get(digest).ok_or("it does not have the blob")?;
            for chunk in bytes.chunks(7_000) {
                to.write(chunk)?;
                tokio::task::yield_now().await;
            }
            Ok(())
        })
    }
}

#[tokio::test]
async fn peers_are_enough_when_the_digest_is_known() {
    let (image, (_folder, store)) = (image(), store());
    let reference: Reference = format!("app:1@{}", image.manifest).parse().unwrap();
    // One lies, one has nothing, one has half, one the rest.
    let lies: BTreeMap<_, _> =
        image.blobs.iter().map(|(digest, bytes)| (digest.clone(), vec![7; bytes.len()])).collect();
    let (half, rest): (Vec<_>, Vec<_>) =
        image.blobs.clone().into_iter().enumerate().partition(|(at, _)| at % 2 == 0);
    let strip = |list: Vec<(usize, (Digest, Vec<u8>))>| {
        list.into_iter().map(|(_, blob)| blob).collect::<BTreeMap<_, _>>()
    };
    let peers: [Arc<dyn BlobSource>; 4] = [
        Peer::new("liar", lies),
        Peer::new("poor", BTreeMap::new()),
        Peer::new("half", strip(half)),
        Peer::new("rest", strip(rest)),
    ];
    let digest = pull(&store, &reference, &peers, None, |_| {}).await.unwrap();
    assert_eq!(digest, image.manifest);
    assert_eq!(store.resolve(&reference), Some(image.manifest.clone()));
    assert_eq!(store.prepare(&digest).unwrap().layers.len(), 5);
}

#[tokio::test]
async fn without_anyone_who_has_it_everyone_is_named() {
    let (image, (_folder, store)) = (image(), store());
    let reference: Reference = format!("app@{}", image.manifest).parse().unwrap();
    let mut some = image.blobs.clone();
    some.remove(&image.layers[3]);
    let peers: [Arc<dyn BlobSource>; 2] = [Peer::new("node-2", some), Peer::new("node-3", BTreeMap::new())];
    let error = pull(&store, &reference, &peers, None, |_| {}).await.unwrap_err();
    let text = chain(&error);
    assert!(matches!(&error, Error::Fetch { digest, .. } if *digest == image.layers[3]), "{text}");
    assert!(text.contains("node-2: it does not have the blob; node-3: it does not have"), "{text}");
    assert!(store.list().is_empty());
    assert_eq!(count(&store, "content/tmp"), 0);
    // What came is used by the next attempt, which has someone for the rest: the registry.
    let registry = Registry::start().await;
    registry.add(&image, "1");
    let reference = registry.reference("app:1");
    let pinned = reference.with_digest(image.manifest.clone());
    pull(&store, &pinned, &peers, Some(&client()), |_| {}).await.unwrap();
    assert_eq!(
        registry
            .seen()
            .iter()
            .map(|seen| seen.path.rsplit('/').next().unwrap().to_owned())
            .collect::<Vec<_>>(),
        [image.layers[3].to_string()]
    );

    let tag: Reference = "app:1".parse().unwrap();
    assert!(matches!(pull(&store, &tag, &peers, None, |_| {}).await, Err(Error::NeedsRegistry(_))));
}

#[tokio::test]
async fn a_pull_that_is_dropped_leaves_no_temporary_file() {
    let (registry, image, (_folder, store)) = (Registry::start().await, image(), store());
    registry.add(&image, "1");
    registry.fault(image.layers[0].hex(), 9, Fault::Hang);
    let reference = registry.reference("app:1");
    let task = tokio::spawn({
        let store = store.clone();
        async move { fetch(&store, &reference, &client()).await }
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    while registry.count(image.layers[0].hex()) == 0 {
        assert!(Instant::now() < deadline, "the layer was never asked for");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    // A blob that was being committed just then still becomes one, and is swept like the others.
    while count(&store, "content/tmp") + count(&store, "content/sha256") > 0 {
        assert!(Instant::now() < deadline, "something stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
        store.sweep().unwrap();
    }
}
