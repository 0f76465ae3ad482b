//! The registry when something is away, cut off, hostile, or many at once.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, join_all};
use rorqual_image::serve::Options;
use rorqual_image::{BlobSource, BlobWriter, Digest, SourceError, Store};
use serde_json::json;
use support::served::{Served, Shared};
use support::{Image, Layer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

fn image(seed: u8) -> Image {
    Image::new(&[Layer::new().file("f", &vec![seed; 50_000]).tar()])
}

/// Waits until something holds.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Begins a request with a body of a hundred bytes, sends three of them, and leaves it there.
async fn half(served: &Served, method: &str, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
async fn uploads_and_all_that_was_pushed_survive_a_restart() {
    let served = Served::start().await;
    let image = image(1);
    served.push_image("app", &image, "1").await;
    let loose = served.push_blob("app", b"no manifest names it yet").await;
    let bytes: Vec<u8> = (0..100_000u32).map(|at| (at % 241) as u8).collect();
    let location = served.begin("app").await;
    let untouched = served.begin("app").await;
    served.send("PATCH", &location, &[("content-range", "0-39999")], &bytes[..40_000]).await;

    let served = served.restart().await;
    let status = served.ask("GET", &location).await;
    assert_eq!((status.status, status.header("range")), (204, "0-39999"));
    assert_eq!(served.ask("GET", &untouched).await.status, 204);
    served.send("PATCH", &location, &[("content-range", "40000-59999")], &bytes[40_000..60_000]).await;
    let served = served.restart().await;
    let digest = Digest::of(&bytes);
    let done = served.send("PUT", &format!("{location}?digest={digest}"), &[], &bytes[60_000..]).await;
    assert_eq!(done.status, 201, "{}", done.text());
    assert!(served.ask("GET", &format!("/v2/app/blobs/{digest}")).await.body == bytes);
    // No sweep takes what was pushed or is being pushed.
    served.registry.collect().await.unwrap();
    for digest in [&loose, &digest, &image.layers[0]] {
        assert_eq!(served.ask("GET", &format!("/v2/app/blobs/{digest}")).await.status, 200, "{digest}");
    }
    assert_eq!(served.ask("GET", "/v2/app/manifests/1").await.body, image.bytes(&image.manifest));
    assert_eq!(served.ask("DELETE", &untouched).await.status, 204);
}

#[tokio::test]
async fn a_sweep_never_takes_what_is_being_pushed() {
    let served = Arc::new(Served::start().await);
    let sweeping = {
        let served = Arc::clone(&served);
        tokio::spawn(async move {
            loop {
                served.registry.collect().await.unwrap();
                tokio::task::yield_now().await;
            }
        })
    };
    let pushes = (0..24u8).map(|seed| {
        let served = Arc::clone(&served);
        async move {
            let image = image(seed);
            let pushed = served.push_image(&format!("app{}", seed % 5), &image, &seed.to_string()).await;
            assert_eq!(pushed.status, 201, "{}", pushed.text());
            image
        }
    });
    let images = join_all(pushes).await;
    assert!(!sweeping.is_finished(), "a sweep has failed");
    sweeping.abort();
    for (seed, image) in images.iter().enumerate() {
        let repository = format!("app{}", seed % 5);
        for digest in image.layers.iter().chain([&image.config]) {
            let pulled = served.ask("GET", &format!("/v2/{repository}/blobs/{digest}")).await;
            assert_eq!(Digest::of(&pulled.body), *digest);
        }
        let pulled = served.ask("GET", &format!("/v2/{repository}/manifests/{seed}")).await;
        assert_eq!(Digest::of(&pulled.body), image.manifest);
    }
}

#[tokio::test]
async fn what_is_not_finished_expires() {
    let options = Options { upload_life: Duration::ZERO, settle: Duration::ZERO, ..Options::default() };
    let served = Served::with(options, Shared::default(), true).await;
    let location = served.begin("app").await;
    served.send("PATCH", &location, &[], b"some").await;
    served.push_blob("app", b"loose").await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let image = image(1);
    served.push_image("app", &image, "1").await;
    served.registry.collect().await.unwrap();
    served.ask("GET", &location).await.is(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(support::count(&served.store, "uploads"), 0);
    assert_eq!(support::count(&served.store, "content/sha256"), 3, "what the manifest names");

    // A manifest that was taken away at another node.
    let elsewhere = Served::with(Options::default(), served.shared.clone(), true).await;
    let answer = elsewhere.ask("DELETE", &format!("/v2/app/manifests/{}", image.manifest)).await;
    assert_eq!(answer.status, 202);
    let swept = served.registry.collect().await.unwrap();
    assert_eq!((swept.manifests, swept.blobs), (1, 3));
    assert_eq!(support::count(&served.store, "content/sha256"), 0);
}

#[tokio::test]
async fn who_goes_on_with_an_upload_takes_it_over() {
    let served = Served::start().await;
    let location = served.begin("app").await;
    let cut = half(&served, "PATCH", &location).await;
    // The client of the first request says nothing more; the status waits until it has let go, or not at all.
    until("the first bytes come", async || {
        let done = served.send("PATCH", &location, &[("content-range", "3-5")], b"def").await;
        done.status == 202
    })
    .await;
    drop(cut);
    let digest = Digest::of(b"abcdef");
    let done = served.ask("PUT", &format!("{location}?digest={digest}")).await;
    assert_eq!(done.status, 201, "{}", done.text());
}

#[tokio::test]
async fn a_thousand_aborted_uploads_leave_no_descriptor() {
    let served = Served::start().await;
    served.push_blob("app", b"warm").await;
    let before = descriptors();
    for _ in 0..20 {
        let aborted = (0..50).map(async |number| {
            let location = served.begin("app").await;
            let (method, path) = match number % 4 {
                0 => ("PUT", format!("{location}?digest={}", Digest::of(b"x"))),
                1 => ("POST", format!("/v2/app/blobs/uploads/?digest={}", Digest::of(b"x"))),
                2 => ("PUT", "/v2/app/manifests/1".to_owned()),
                _ => ("PATCH", location),
            };
            drop(half(&served, method, &path).await);
        });
        join_all(aborted).await;
    }
    until("descriptors are closed", async || descriptors() <= before + 2).await;
    // And it goes on to work.
    assert_eq!(served.push_image("app", &image(1), "1").await.status, 201);
}

#[tokio::test]
async fn a_client_that_says_nothing_is_cut_off() {
    let options = Options { idle_timeout: Duration::from_millis(200), ..Options::default() };
    let served = Served::with(options, Shared::default(), true).await;
    let location = served.begin("app").await;
    let mut request =
        format!("PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc").into_bytes();
    let answer = served.raw(&request).await;
    answer.is(408, "BLOB_UPLOAD_INVALID");
    assert_eq!(served.ask("GET", &location).await.header("range"), "0-2", "what came stays");
    request = b"PUT /v2/app/manifests/1 HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{".to_vec();
    assert_eq!(served.raw(&request).await.status, 408);
}

#[tokio::test]
async fn more_than_there_are_places_for_is_refused() {
    let options = Options { uploads_max: 3, requests_max: 4, ..Options::default() };
    let served = Served::with(options, Shared::default(), true).await;
    let mut locations = Vec::new();
    for _ in 0..3 {
        locations.push(served.begin("app").await);
    }
    let refused = served.ask("POST", "/v2/app/blobs/uploads/").await;
    refused.is(429, "TOOMANYREQUESTS");
    assert_eq!(refused.header("retry-after"), "1");
    let open = [
        half(&served, "PATCH", &locations[0]).await,
        half(&served, "PATCH", &locations[1]).await,
        half(&served, "PATCH", &locations[2]).await,
        half(&served, "PUT", "/v2/app/manifests/1").await,
    ];
    until("all places are taken", async || served.ask("GET", "/v2/").await.status == 429).await;
    drop(open);
    until("places are free", async || served.ask("GET", "/v2/").await.status == 200).await;
    served.ask("DELETE", &locations[0]).await;
    served.begin("app").await;
}

#[tokio::test]
async fn a_table_that_is_away_is_no_missing_image() {
    let options = Options { settle: Duration::ZERO, ..Options::default() };
    let served = Served::with(options, Shared::default(), true).await;
    served.push_image("app", &image(1), "1").await;
    served.shared.0.is_away.store(true, Ordering::Relaxed);
    for (method, path) in [
        ("GET", "/v2/app/manifests/1".to_owned()),
        ("GET", "/v2/_catalog".to_owned()),
        ("GET", format!("/v2/app/blobs/{}", image(1).layers[0])),
        ("DELETE", "/v2/app/manifests/1".to_owned()),
    ] {
        let answer = served.ask(method, &path).await;
        answer.is(503, "UNAVAILABLE");
        assert_eq!(answer.header("retry-after"), "1");
    }
    assert!(served.registry.collect().await.is_err());
    served.shared.0.is_away.store(false, Ordering::Relaxed);
    served.registry.collect().await.unwrap();
    assert_eq!(served.ask("GET", "/v2/app/manifests/1").await.status, 200, "nothing was given up");
}

#[tokio::test]
async fn hostile_names_reach_no_file() {
    let served = Served::start().await;
    served.push_image("app", &image(1), "1").await;
    let long = "a/".repeat(200);
    for name in
        ["..", "app/..", "../app", "%2e%2e", "app%2f..%2f..", "APP", "a__%00", ".a", "a.", "a//b", &long]
    {
        for rest in ["tags/list", "manifests/1", "blobs/uploads/", "referrers/sha256:00"] {
            for method in ["GET", "POST", "PUT", "DELETE"] {
                let answer = served.send(method, &format!("/v2/{name}/{rest}"), &[], b"{}").await;
                assert!((400..500).contains(&answer.status), "{method} {name} {rest}: {}", answer.status);
            }
        }
    }
    let zeros = "0".repeat(64);
    for digest in [
        "sha256:..",
        "sha256:",
        ":",
        "sha256:%2e%2e",
        "sha1:00",
        &format!("SHA256:{zeros}"),
        &format!("sha256:{zeros}0"),
    ] {
        for (method, path) in [
            ("GET", format!("/v2/app/blobs/{digest}")),
            ("GET", format!("/v2/app/manifests/{digest}")),
            ("POST", format!("/v2/app/blobs/uploads/?digest={digest}")),
            ("POST", format!("/v2/app/blobs/uploads/?mount={digest}&from=app")),
        ] {
            served.ask(method, &path).await.is(400, "DIGEST_INVALID");
        }
    }
    for id in ["..", "../../images.json", "x%00", "%2e%2e%2fimages"] {
        let answer = served.ask("GET", &format!("/v2/app/blobs/uploads/{id}")).await;
        assert_eq!(answer.status, 404, "{id}");
    }
    assert_eq!(served.ask("GET", "/v2/_catalog").await.json(), json!({ "repositories": ["app"] }));
}

#[tokio::test]
async fn many_write_to_one_repository_at_once() {
    let served = Served::start().await;
    let image = image(1);
    served.push_image("app", &image, "first").await;
    let pushes = (0..30).map(async |number| {
        let answer = served.put_manifest("app", &format!("t{number}"), image.bytes(&image.manifest)).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
    });
    join_all(pushes).await;
    let tags = served.ask("GET", "/v2/app/tags/list").await.json();
    assert_eq!(tags["tags"].as_array().unwrap().len(), 31);
    // A manifest that is taken away takes every tag along, also one that comes just then.
    let manifest = format!("/v2/app/manifests/{}", image.manifest);
    let (deleted, put) = tokio::join!(
        served.ask("DELETE", &manifest),
        served.put_manifest("app", "late", image.bytes(&image.manifest)),
    );
    assert_eq!(deleted.status, 202);
    let tags = served.ask("GET", "/v2/app/tags/list").await.json();
    let manifest = served.ask("GET", &manifest).await.status;
    match tags["tags"].as_array().unwrap().as_slice() {
        [] => assert_eq!(manifest, 404),
        [late] => assert_eq!((late, manifest, put.status), (&json!("late"), 200, 201)),
        more => panic!("tags without a manifest: {more:?}"),
    }
}

/// Another node, which counts how often it is asked.
struct Node {
    store: Store,
    asked: AtomicUsize,
    lies: bool,
}

impl BlobSource for Node {
    fn name(&self) -> String {
        "other".to_owned()
    }

    fn fetch<'a>(
        &'a self,
        digest: &'a Digest,
        _size: Option<u64>,
        to: &'a mut BlobWriter,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if self.lies {
                to.write(b"something else")?;
                return Ok(());
            }
            let blob = self.store.blob(digest)?.ok_or("it does not have it")?;
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut { blob.file }, &mut bytes)?;
            to.write(&bytes)?;
            Ok(())
        })
    }
}

#[tokio::test]
async fn any_node_answers_for_what_another_one_has() {
    let first = Served::start().await;
    let image = image(1);
    first.push_image("app", &image, "1").await;
    let second = Served::with(Options::default(), first.shared.clone(), true).await;
    let layer = format!("/v2/app/blobs/{}", image.layers[0]);
    assert_eq!(second.ask("HEAD", "/v2/app/manifests/1").await.status, 200, "needs no content");
    second.ask("GET", &layer).await.is(503, "UNAVAILABLE");

    let node = |lies| Arc::new(Node { store: first.store.clone(), asked: AtomicUsize::new(0), lies });
    let (liar, honest) = (node(true), node(false));
    *first.shared.0.holders.lock().unwrap() = vec![liar.clone(), honest.clone()];
    let pulls = (0..8).map(|_| second.ask("GET", &layer));
    for pulled in join_all(pulls).await {
        assert_eq!(Digest::of(&pulled.body), image.layers[0]);
    }
    assert_eq!(honest.asked.load(Ordering::Relaxed), 1, "a blob is fetched once");
    assert_eq!(liar.asked.load(Ordering::Relaxed), 1);
    let pulled = second.ask("GET", "/v2/app/manifests/1").await;
    assert_eq!(pulled.body, image.bytes(&image.manifest));
    // Whoever takes a manifest has all of it afterwards, though its client sent nothing but that.
    let tagged = second.put_manifest("app", "2", image.bytes(&image.manifest)).await;
    assert_eq!(tagged.status, 201, "{}", tagged.text());
    first.shared.0.holders.lock().unwrap().clear();
    second.registry.collect().await.unwrap();
    for digest in image.layers.iter().chain([&image.config]) {
        assert_eq!(second.ask("GET", &format!("/v2/app/blobs/{digest}")).await.status, 200);
    }
}
