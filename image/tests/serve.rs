//! The registry against the distribution specification, rule by rule, over plain HTTP.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use rorqual_image::Digest;
use serde_json::{Value, json};
use support::served::{Served, artifact};
use support::{Image, Layer, OCI_INDEX, OCI_MANIFEST};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

fn image(seed: u8) -> Image {
    Image::new(&[Layer::new().file("f", &vec![seed; 5000]).tar(), Layer::new().file("g", b"same").tar()])
}

fn sha512(bytes: &[u8]) -> Digest {
    Digest::of_with(rorqual_image::Algorithm::Sha512, bytes)
}

#[tokio::test]
async fn the_base_says_what_it_is() {
    let served = Served::start().await;
    for path in ["/v2/", "/v2"] {
        let answer = served.ask("GET", path).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
    }
    served.ask("GET", "/v2/a/b").await.is(404, "UNSUPPORTED");
    let refused = served.ask("POST", "/v2/").await;
    refused.is(405, "UNSUPPORTED");
    assert_eq!(refused.header("allow"), "GET");
}

#[tokio::test]
async fn a_blob_is_pushed_in_one_request_and_in_two() {
    let served = Served::start().await;
    let bytes = vec![7; 300_000];
    let digest = served.push_blob("team/app", &bytes).await;
    let answer = served.ask("GET", &format!("/v2/team/app/blobs/{digest}")).await;
    assert_eq!((answer.status, answer.body == bytes), (200, true));
    assert_eq!(answer.header("docker-content-digest"), digest.to_string());
    assert_eq!(answer.header("content-type"), "application/octet-stream");

    let other = b"another";
    let location = served.begin("team/app").await;
    let answer = served.send("PUT", &format!("{location}?digest={}", Digest::of(other)), &[], other).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(answer.header("location"), format!("/v2/team/app/blobs/{}", Digest::of(other)));
    assert_eq!(answer.header("docker-content-digest"), Digest::of(other).to_string());
    let answer = served.ask("HEAD", answer.header("location")).await;
    assert_eq!((answer.status, answer.header("content-length"), answer.body.len()), (200, "7", 0));
    // An empty blob is one as well.
    let empty = served.push_blob("team/app", b"").await;
    assert_eq!(served.ask("GET", &format!("/v2/team/app/blobs/{empty}")).await.body, b"");
}

#[tokio::test]
async fn a_blob_is_pushed_in_chunks_in_order() {
    let served = Served::start().await;
    let bytes: Vec<u8> = (0..250_000u32).map(|at| (at % 251) as u8).collect();
    let location = served.begin("app").await;
    let chunk = async |from: usize, to: usize| {
        let range = format!("{from}-{}", to - 1);
        served.send("PATCH", &location, &[("content-range", &range)], &bytes[from..to]).await
    };
    let first = chunk(0, 100_000).await;
    assert_eq!((first.status, first.header("range")), (202, "0-99999"));
    assert_eq!(first.header("location"), location);

    // Out of order, and one that came already: 416, and how far it is.
    for (from, to) in [(150_000, 250_000), (0, 100_000), (99_999, 150_000)] {
        let refused = chunk(from, to).await;
        refused.is(416, "BLOB_UPLOAD_INVALID");
        assert_eq!((refused.header("range"), refused.header("location")), ("0-99999", location.as_str()));
    }
    let status = served.ask("GET", &location).await;
    assert_eq!((status.status, status.header("range")), (204, "0-99999"));
    assert_eq!(chunk(100_000, 200_000).await.header("range"), "0-199999");
    // The last one comes with the end.
    let digest = Digest::of(&bytes);
    let end = format!("{location}?digest={digest}");
    let refused = served.send("PUT", &end, &[("content-range", "0-49999")], &bytes[200_000..]).await;
    refused.is(416, "BLOB_UPLOAD_INVALID");
    let done = served.send("PUT", &end, &[("content-range", "200000-249999")], &bytes[200_000..]).await;
    assert_eq!(done.status, 201, "{}", done.text());
    assert!(served.ask("GET", &format!("/v2/app/blobs/{digest}")).await.body == bytes);
    served.ask("GET", &location).await.is(404, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn what_is_wrong_with_an_upload_has_its_code() {
    let served = Served::start().await;
    let location = served.begin("app").await;
    let patch =
        async |headers: &[(&str, &str)], body: &[u8]| served.send("PATCH", &location, headers, body).await;
    for range in ["x-5", "5", "bytes 0-4/5", "9-3", "+0-4"] {
        patch(&[("content-range", range)], b"12345").await.is(400, "BLOB_UPLOAD_INVALID");
    }
    patch(&[("content-range", "0-9")], b"12345").await.is(400, "SIZE_INVALID");
    assert_eq!(patch(&[], b"12345").await.status, 202, "a stream needs no range");

    served.ask("PUT", &location).await.is(400, "DIGEST_INVALID");
    served.ask("PUT", &format!("{location}?digest=sha256:12")).await.is(400, "DIGEST_INVALID");
    let wrong = Digest::of(b"something else");
    served.ask("PUT", &format!("{location}?digest={wrong}")).await.is(400, "DIGEST_INVALID");
    served.ask("GET", &location).await.is(404, "BLOB_UPLOAD_UNKNOWN");
    let answer = served.send("POST", &format!("/v2/app/blobs/uploads/?digest={wrong}"), &[], b"x").await;
    answer.is(400, "DIGEST_INVALID");
    served.ask("GET", &format!("/v2/app/blobs/{wrong}")).await.is(404, "NAME_UNKNOWN");

    // An upload belongs to its repository.
    let location = served.begin("app").await;
    served.ask("GET", &location.replace("/v2/app/", "/v2/other/")).await.is(404, "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(served.ask("DELETE", &location).await.status, 204);
    served.ask("DELETE", &location).await.is(404, "BLOB_UPLOAD_UNKNOWN");
    served.ask("POST", &location).await.is(405, "UNSUPPORTED");
    assert_eq!(support::count(&served.store, "uploads"), 0);
    assert_eq!(support::count(&served.store, "content/tmp"), 0);
}

#[tokio::test]
async fn sha512_is_as_good_as_sha256() {
    let served = Served::start().await;
    let bytes = b"content".to_vec();
    let digest = sha512(&bytes);
    let location = served.begin("app").await;
    served.send("PATCH", &location, &[], &bytes[..3]).await;
    let done = served.send("PUT", &format!("{location}?digest={digest}"), &[], &bytes[3..]).await;
    assert_eq!(done.status, 201, "{}", done.text());
    assert_eq!(done.header("docker-content-digest"), digest.to_string());
    let once = sha512(b"once");
    let done = served.send("POST", &format!("/v2/app/blobs/uploads/?digest={once}"), &[], b"once").await;
    assert_eq!(done.status, 201, "{}", done.text());
    let manifest = json!({
        "schemaVersion": 2,
        "config": { "mediaType": "application/vnd.example", "digest": digest, "size": bytes.len() },
        "layers": [{ "mediaType": "application/vnd.example", "digest": once, "size": 4 }],
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let named = sha512(&manifest).to_string();
    let done = served.put_manifest("app", &named, &manifest).await;
    assert_eq!((done.status, done.header("docker-content-digest")), (201, named.as_str()));
    let pulled = served.ask("GET", &format!("/v2/app/manifests/{named}")).await;
    assert_eq!((pulled.status, pulled.body), (200, manifest));
}

#[tokio::test]
async fn parts_of_blobs_are_sent() {
    let served = Served::start().await;
    let bytes: Vec<u8> = (0..1000u32).map(|at| (at % 250) as u8).collect();
    let digest = served.push_blob("app", &bytes).await;
    let path = format!("/v2/app/blobs/{digest}");
    let part = async |range: &str| served.send("GET", &path, &[("range", range)], b"").await;
    for (range, from, to) in [("bytes=0-99", 0, 100), ("bytes=900-", 900, 1000), ("bytes=-10", 990, 1000)] {
        let answer = part(range).await;
        assert_eq!((answer.status, &answer.body[..]), (206, &bytes[from..to]), "{range}");
        assert_eq!(answer.header("content-range"), format!("bytes {from}-{}/1000", to - 1));
    }
    let answer = part("bytes=1000-").await;
    answer.is(416, "SIZE_INVALID");
    assert_eq!(answer.header("content-range"), "bytes */1000");
    assert_eq!(part("bytes=5-2").await.status, 200, "what is no range is ignored");
    let head = served.send("HEAD", &path, &[("range", "bytes=0-9")], b"").await;
    assert_eq!((head.status, head.header("content-length")), (206, "10"));

    let tag = served.ask("HEAD", &path).await.header("etag").to_owned();
    let same = served.send("GET", &path, &[("range", "bytes=0-9"), ("if-range", &tag)], b"").await;
    assert_eq!(same.status, 206);
    let changed = served.send("GET", &path, &[("range", "bytes=0-9"), ("if-range", "\"x\"")], b"").await;
    assert_eq!(changed.status, 200);
    let known = served.send("GET", &path, &[("if-none-match", &tag)], b"").await;
    assert_eq!((known.status, known.body.len()), (304, 0));
}

#[tokio::test]
async fn blobs_are_mounted_from_where_they_are() {
    let served = Served::start().await;
    let digest = served.push_blob("first", b"layer").await;
    let mount = async |name: &str, query: &str| {
        served.ask("POST", &format!("/v2/{name}/blobs/uploads/?mount={query}")).await
    };
    let answer = mount("second", &format!("{digest}&from=first")).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(answer.header("location"), format!("/v2/second/blobs/{digest}"));
    assert_eq!(served.ask("GET", answer.header("location")).await.body, b"layer");
    // What is not there, or not in that repository, becomes an upload.
    let unknown = Digest::of(b"unknown");
    for query in [format!("{unknown}&from=first"), format!("{digest}&from=none"), unknown.to_string()] {
        let answer = mount("third", &query).await;
        assert_eq!(answer.status, 202, "{query}");
        assert!(answer.header("location").starts_with("/v2/third/blobs/uploads/"));
    }
    mount("third", "sha256:zz").await.is(400, "DIGEST_INVALID");
    // Without `from`, once a manifest says who has it.
    let image = image(1);
    served.push_image("first", &image, "1").await;
    assert_eq!(mount("fourth", &image.layers[0].to_string()).await.status, 201);
}

#[tokio::test]
async fn manifests_come_back_as_they_went() {
    let served = Served::start().await;
    let image = image(1);
    let pushed = served.push_image("team/app", &image, "1.0").await;
    assert_eq!(pushed.status, 201, "{}", pushed.text());
    assert_eq!(pushed.header("location"), format!("/v2/team/app/manifests/{}", image.manifest));
    assert_eq!(pushed.header("docker-content-digest"), image.manifest.to_string());
    for named in ["1.0".to_owned(), image.manifest.to_string()] {
        let path = format!("/v2/team/app/manifests/{named}");
        let head = served.ask("HEAD", &path).await;
        let pulled = served.ask("GET", &path).await;
        assert_eq!((head.status, pulled.status), (200, 200));
        assert_eq!(pulled.body, image.bytes(&image.manifest));
        for answer in [&head, &pulled] {
            assert_eq!(answer.header("content-type"), OCI_MANIFEST);
            assert_eq!(answer.header("docker-content-digest"), image.manifest.to_string());
            assert_eq!(answer.header("content-length"), pulled.body.len().to_string());
        }
        assert!(head.body.is_empty());
        let tag = head.header("etag");
        assert_eq!(served.send("GET", &path, &[("if-none-match", tag)], b"").await.status, 304);
    }
    served.ask("GET", "/v2/team/app/manifests/2.0").await.is(404, "MANIFEST_UNKNOWN");
    let unknown = Digest::of(b"x");
    served.ask("GET", &format!("/v2/team/app/manifests/{unknown}")).await.is(404, "MANIFEST_UNKNOWN");
    served.ask("GET", &format!("/v2/team/app/blobs/{unknown}")).await.is(404, "BLOB_UNKNOWN");
    served.ask("GET", "/v2/nobody/manifests/1").await.is(404, "NAME_UNKNOWN");
    served.ask("HEAD", "/v2/nobody/manifests/1").await;
    // A blob is read through a repository that has it, and no other.
    served.push_image("other", &crate::image(2), "1").await;
    served.ask("GET", &format!("/v2/other/blobs/{}", image.layers[0])).await.is(404, "BLOB_UNKNOWN");
}

#[tokio::test]
async fn the_client_gets_a_kind_that_it_takes() {
    let served = Served::start().await;
    let image = image(1);
    served.push_image("app", &image, "1").await;
    let get = async |named: &str, accept: &[(&str, &str)]| {
        served.send("GET", &format!("/v2/app/manifests/{named}"), accept, b"").await
    };
    assert_eq!(get("1", &[("accept", "*/*")]).await.status, 200);
    assert_eq!(get("1", &[("accept", "text/html")]).await.status, 200, "it names no kind of manifest");
    let both = format!("{DOCKER_MANIFEST};q=0.5, {OCI_MANIFEST}");
    assert_eq!(get("1", &[("accept", &both)]).await.status, 200);
    get("1", &[("accept", DOCKER_MANIFEST)]).await.is(404, "MANIFEST_UNKNOWN");

    let host = rorqual_image::Platform::host();
    let mut entry = support::descriptor(OCI_MANIFEST, &image.manifest, &image.blobs);
    entry["platform"] = json!({ "architecture": host.architecture, "os": host.os });
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] });
    let index = serde_json::to_vec(&index).unwrap();
    assert_eq!(served.put_manifest("app", "all", &index).await.status, 201);
    let whole = get("all", &[("accept", OCI_INDEX), ("accept", OCI_MANIFEST)]).await;
    assert_eq!((whole.header("content-type"), &whole.body), (OCI_INDEX, &index));
    // One that is older than indexes gets the image for the registry's own platform, by tag.
    let one = get("all", &[("accept", OCI_MANIFEST)]).await;
    assert_eq!(one.header("docker-content-digest"), image.manifest.to_string());
    let named = Digest::of(&index).to_string();
    get(&named, &[("accept", OCI_MANIFEST)]).await.is(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn manifests_that_are_none_are_refused() {
    let served = Served::start().await;
    let config = served.push_blob("app", b"{}").await;
    let valid: Value = serde_json::from_slice(&artifact(&config, None, None, "")).unwrap();
    let put = async |change: &dyn Fn(&mut Value), kind: Option<&str>| {
        let mut manifest = valid.clone();
        change(&mut manifest);
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let headers: Vec<(&str, &str)> = kind.into_iter().map(|kind| ("content-type", kind)).collect();
        served.send("PUT", "/v2/app/manifests/x", &headers, &bytes).await
    };
    let missing = Digest::of(b"missing");
    assert_eq!(
        put(&|_| {}, Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8")).await.status,
        201
    );
    put(&|_| {}, Some(DOCKER_MANIFEST)).await.is(400, "MANIFEST_INVALID");
    put(&|_| {}, Some(OCI_INDEX)).await.is(400, "MANIFEST_INVALID");
    put(&|m| m["mediaType"] = OCI_INDEX.into(), None).await.is(400, "MANIFEST_INVALID");
    put(&|m| m["mediaType"] = "text/plain".into(), None).await.is(400, "MANIFEST_INVALID");
    put(&|m| m["schemaVersion"] = 1.into(), None).await.is(400, "MANIFEST_INVALID");
    put(&|m| m["schemaVersion"] = 3.into(), None).await.is(400, "MANIFEST_INVALID");
    put(&|m| m["fsLayers"] = json!([]), None).await.is(400, "MANIFEST_INVALID");
    put(&|m| m["manifests"] = json!([]), None).await.is(400, "MANIFEST_INVALID");
    put(&|m| drop(m.as_object_mut().unwrap().remove("config")), None).await.is(400, "MANIFEST_INVALID");
    put(&|m| m["config"]["size"] = 3.into(), None).await.is(400, "MANIFEST_INVALID");
    put(&|m| m["config"]["size"] = (-1).into(), None).await.is(400, "MANIFEST_INVALID");
    put(&|m| m["config"]["digest"] = "sha256:../x".into(), None).await.is(400, "MANIFEST_INVALID");
    let schema_1 = Some("application/vnd.docker.distribution.manifest.v1+prettyjws");
    put(&|_| {}, schema_1).await.is(400, "MANIFEST_INVALID");
    let answer = put(&|m| m["config"]["digest"] = json!(missing), None).await;
    answer.is(404, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(answer.json()["errors"][0]["detail"]["digest"], missing.to_string());
    let layer = json!([{ "mediaType": "application/x", "digest": missing, "size": 1 }]);
    put(&|m| m["layers"] = layer.clone(), None).await.is(404, "MANIFEST_BLOB_UNKNOWN");

    served.put_manifest("app", "x", b"no json").await.is(400, "MANIFEST_INVALID");
    served.put_manifest("app", "x", b"").await.is(400, "MANIFEST_INVALID");
    let twice = br#"{"schemaVersion":2,"schemaVersion":2,"layers":[]}"#;
    served.put_manifest("app", "x", twice).await.is(400, "MANIFEST_INVALID");
    let bytes = artifact(&config, None, None, "");
    served.put_manifest("app", &missing.to_string(), &bytes).await.is(400, "DIGEST_INVALID");
    served.put_manifest("app", "-x", &bytes).await.is(400, "MANIFEST_INVALID");
    // Of a layer that its maker lets nobody distribute only the name comes.
    let foreign = json!([{
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "digest": missing, "size": 1, "urls": ["https://elsewhere.example/layer"],
    }]);
    assert_eq!(put(&|m| m["layers"] = foreign.clone(), None).await.status, 201);
    // A manifest in an index has to be there as well.
    let index = json!({ "schemaVersion": 2, "manifests": [
        { "mediaType": OCI_MANIFEST, "digest": missing, "size": 1 },
    ]});
    let index = serde_json::to_vec(&index).unwrap();
    served.put_manifest("app", "all", &index).await.is(404, "MANIFEST_BLOB_UNKNOWN");
}

#[tokio::test]
async fn a_manifest_may_have_four_mebibytes() {
    let served = Served::start().await;
    let config = served.push_blob("app", b"{}").await;
    let of_size = |size: usize| {
        let rest = artifact(&config, None, None, "").len();
        artifact(&config, None, None, &"x".repeat(size - rest))
    };
    assert_eq!(served.put_manifest("app", "large", &of_size(4 << 20)).await.status, 201);
    served.put_manifest("app", "larger", &of_size((4 << 20) + 1)).await.is(413, "MANIFEST_INVALID");
    // Also if it does not say how large it is.
    let mut request = b"PUT /v2/app/manifests/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
        transfer-encoding: chunked\r\n\r\n"
        .to_vec();
    let body = of_size(5 << 20);
    request.extend(format!("{:x}\r\n", body.len()).into_bytes());
    request.extend(body);
    request.extend(b"\r\n0\r\n\r\n");
    served.raw(&request).await.is(413, "MANIFEST_INVALID");
}
