//! The registry's lists (tags, repositories, referrers), and what is deleted from them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use rorqual_image::Digest;
use serde_json::{Value, json};
use support::served::{Served, artifact};
use support::{Image, Layer, OCI_INDEX, OCI_MANIFEST};

fn image(seed: u8) -> Image {
    Image::new(&[Layer::new().file("f", &vec![seed; 5000]).tar(), Layer::new().file("g", b"same").tar()])
}

#[tokio::test]
async fn tags_are_listed_in_order_and_in_pages() {
    let served = Served::start().await;
    let image = image(1);
    served.push_image("app", &image, "latest").await;
    for tag in ["b", "B", "a", "10", "2", "_x"] {
        served.put_manifest("app", tag, image.bytes(&image.manifest)).await;
    }
    let list = async |query: &str| {
        let answer = served.ask("GET", &format!("/v2/app/tags/list{query}")).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        assert_eq!(answer.header("content-type"), "application/json");
        let tags = answer.json();
        assert_eq!(tags["name"], "app");
        (tags["tags"].clone(), answer.headers.get("link").cloned())
    };
    let all = json!(["10", "2", "B", "_x", "a", "b", "latest"]);
    assert_eq!(list("").await, (all.clone(), None));
    let (page, link) = list("?n=3").await;
    assert_eq!(page, json!(["10", "2", "B"]));
    assert_eq!(link.unwrap(), "</v2/app/tags/list?n=3&last=B>; rel=\"next\"");
    assert_eq!(list("?n=3&last=B").await.0, json!(["_x", "a", "b"]));
    assert_eq!(list("?n=3&last=b").await, (json!(["latest"]), None));
    assert_eq!(list("?last=a").await.0, json!(["b", "latest"]));
    assert_eq!(list("?last=azz").await.0, json!(["b", "latest"]), "the last one need not exist");
    assert_eq!(list("?n=7").await, (all.clone(), None));
    assert_eq!(list("?n=0").await, (json!([]), None));
    assert_eq!(list("?n=100000").await.0, all);
    served.ask("GET", "/v2/app/tags/list?n=x").await.is(400, "UNSUPPORTED");
    served.ask("GET", "/v2/app/tags/list?n=-1").await.is(400, "UNSUPPORTED");
    served.ask("GET", "/v2/nobody/tags/list").await.is(404, "NAME_UNKNOWN");
}

#[tokio::test]
async fn repositories_are_listed() {
    let served = Served::start().await;
    let image = image(1);
    for name in ["b", "a/x", "a"] {
        served.push_image(name, &image, "1").await;
    }
    let answer = served.ask("GET", "/v2/_catalog").await;
    assert_eq!(answer.json(), json!({ "repositories": ["a", "a/x", "b"] }));
    let answer = served.ask("GET", "/v2/_catalog?n=2").await;
    assert_eq!(answer.json(), json!({ "repositories": ["a", "a/x"] }));
    assert_eq!(answer.header("link"), "</v2/_catalog?n=2&last=a/x>; rel=\"next\"");
    let answer = served.ask("GET", "/v2/_catalog?n=2&last=a/x").await;
    assert_eq!(answer.json(), json!({ "repositories": ["b"] }));
    assert!(!answer.headers.contains_key("link"));
}

#[tokio::test]
async fn referrers_are_found_with_what_they_say_of_themselves() {
    let served = Served::start().await;
    let image = image(1);
    let subject = (&image.manifest, image.bytes(&image.manifest).len());
    let config = served.push_blob("app", b"{}").await;
    let list = async |query: &str| {
        let answer = served.ask("GET", &format!("/v2/app/referrers/{}{query}", image.manifest)).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, OCI_INDEX), "{}", answer.text());
        let index = answer.json();
        assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&json!(2), &json!(OCI_INDEX)));
        (index["manifests"].as_array().unwrap().clone(), answer.headers.get("oci-filters-applied").cloned())
    };
    assert_eq!(list("").await, (vec![], None), "also for a repository that is not there");

    // Before the subject is there.
    let signature = artifact(&config, Some("application/vnd.example.signature"), Some(subject), "one");
    let pushed = served.put_manifest("app", &Digest::of(&signature).to_string(), &signature).await;
    assert_eq!((pushed.status, pushed.header("oci-subject")), (201, image.manifest.to_string().as_str()));
    served.push_image("app", &image, "1").await;
    let plain = artifact(&config, None, Some(subject), "two");
    served.put_manifest("app", "about", &plain).await;
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "annotations": { "note": "three" },
        "subject": { "mediaType": OCI_MANIFEST, "digest": subject.0, "size": subject.1 },
    });
    let index = serde_json::to_vec(&index).unwrap();
    served.put_manifest("app", &Digest::of(&index).to_string(), &index).await;

    let (found, filters) = list("").await;
    assert_eq!((found.len(), filters), (3, None));
    let of = |bytes: &[u8]| {
        let digest = Digest::of(bytes).to_string();
        found.iter().find(|entry| entry["digest"] == digest).unwrap().clone()
    };
    assert_eq!(
        of(&signature),
        json!({
            "mediaType": OCI_MANIFEST, "digest": Digest::of(&signature), "size": signature.len(),
            "artifactType": "application/vnd.example.signature", "annotations": { "note": "one" },
        })
    );
    assert_eq!(of(&plain)["artifactType"], "application/vnd.example.config", "the configuration's type");
    assert_eq!(of(&index).get("artifactType"), None);
    assert_eq!(of(&index)["annotations"]["note"], "three");
    let (found, filters) = list("?artifactType=application/vnd.example.signature").await;
    assert_eq!(found, [of(&signature)]);
    assert_eq!(filters.as_deref(), Some("artifactType"));
    assert_eq!(list("?artifactType=nothing").await.0, [] as [Value; 0]);

    served.ask("GET", "/v2/app/referrers/sha256:zz").await.is(400, "DIGEST_INVALID");
    served.ask("DELETE", &format!("/v2/app/manifests/{}", Digest::of(&signature))).await;
    assert_eq!(list("").await.0.len(), 2);
    // A client that does not know all this keeps a list under a tag of its own, which is one like any other.
    let tag = image.manifest.to_string().replace(':', "-");
    let empty = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [] })).unwrap();
    assert_eq!(served.put_manifest("app", &tag, &empty).await.status, 201);
    assert_eq!(served.ask("GET", &format!("/v2/app/manifests/{tag}")).await.body, empty);
}

#[tokio::test]
async fn many_referrers_come_in_pages() {
    let served = Served::start().await;
    let config = served.push_blob("app", b"{}").await;
    let subject = Digest::of(b"subject");
    let mut wanted: Vec<String> = Vec::new();
    for number in 0..120 {
        let manifest = artifact(&config, Some("a/b"), Some((&subject, 7)), &number.to_string());
        let digest = Digest::of(&manifest).to_string();
        assert_eq!(served.put_manifest("app", &digest, &manifest).await.status, 201);
        wanted.push(digest);
    }
    wanted.sort();
    let mut path = format!("/v2/app/referrers/{subject}?artifactType=a/b");
    let mut found: Vec<String> = Vec::new();
    loop {
        let answer = served.ask("GET", &path).await;
        let index = answer.json();
        let page = index["manifests"].as_array().unwrap();
        found.extend(page.iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()));
        let Some(link) = answer.headers.get("link") else { break };
        path = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned();
    }
    assert_eq!(found, wanted);
}

#[tokio::test]
async fn what_is_deleted_is_gone() {
    let served = Served::start().await;
    let image = image(1);
    served.push_image("app", &image, "1").await;
    served.put_manifest("app", "2", image.bytes(&image.manifest)).await;
    let manifest = format!("/v2/app/manifests/{}", image.manifest);
    let layer = format!("/v2/app/blobs/{}", image.layers[0]);

    served.ask("DELETE", &layer).await.is(405, "UNSUPPORTED");
    assert_eq!(served.ask("DELETE", "/v2/app/manifests/1").await.status, 202);
    served.ask("DELETE", "/v2/app/manifests/1").await.is(404, "MANIFEST_UNKNOWN");
    served.ask("GET", "/v2/app/manifests/1").await.is(404, "MANIFEST_UNKNOWN");
    assert_eq!(served.ask("GET", "/v2/app/manifests/2").await.status, 200, "a tag is not its manifest");
    assert_eq!(served.ask("DELETE", &manifest).await.status, 202);
    for path in [&manifest, "/v2/app/manifests/2"] {
        served.ask("GET", path).await.is(404, "MANIFEST_UNKNOWN");
    }
    served.ask("DELETE", &manifest).await.is(404, "MANIFEST_UNKNOWN");
    // What the manifest named is for the client to delete, or for the next look at the holds.
    assert_eq!(served.ask("GET", &layer).await.status, 200);
    assert_eq!(served.ask("DELETE", &layer).await.status, 202);
    served.ask("GET", &layer).await.is(404, "BLOB_UNKNOWN");
    served.ask("DELETE", &layer).await.is(404, "BLOB_UNKNOWN");
    served.ask("DELETE", "/v2/nobody/manifests/1").await.is(404, "NAME_UNKNOWN");
    assert_eq!(served.ask("GET", "/v2/app/tags/list").await.json()["tags"], json!([]));
    // A blob that no manifest names.
    let loose = served.push_blob("app", b"loose").await;
    assert_eq!(served.ask("DELETE", &format!("/v2/app/blobs/{loose}")).await.status, 202);
    served.ask("DELETE", &format!("/v2/app/blobs/{loose}")).await.is(404, "BLOB_UNKNOWN");
    assert_eq!(served.shared.keys(), ["repository/app"], "nothing is left over");
    // And nothing is left in the store.
    served.registry.collect().await.unwrap();
    assert_eq!(support::count(&served.store, "content/sha256"), 0);
    assert_eq!(support::count(&served.store, "holds"), 0);
}
