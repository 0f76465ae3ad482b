//! Images of the node's own store in the registry, alone and with their index.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use rorqual_image::Platform;
use serde_json::json;
use support::served::Served;
use support::{Image, Layer, OCI_INDEX, OCI_MANIFEST, archive, descriptor, gzip, layout, put};

fn image(architecture: &str) -> Image {
    let layer = Layer::new().file("for", architecture.as_bytes()).tar();
    Image::with(&[layer], gzip, |config| config["architecture"] = json!(architecture), |_| {})
}

#[tokio::test]
async fn an_index_goes_with_all_of_its_platforms_or_not_at_all() {
    let served = Served::start().await;
    let host = Platform::host().architecture;
    let (own, other) = (image(&host), image("vax"));
    let mut blobs = own.blobs.clone();
    let entries = [(&own, host.as_str()), (&other, "vax")].map(|(image, architecture)| {
        let mut entry = descriptor(OCI_MANIFEST, &image.manifest, &image.blobs);
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    });
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
    let index = put(&mut blobs, serde_json::to_vec(&index).unwrap());
    for is_whole in [false, true] {
        if is_whole {
            blobs.extend(other.blobs.clone());
        }
        let loaded = archive(&layout(&blobs, json!([descriptor(OCI_INDEX, &index, &blobs)])));
        served.store.load_stream(&loaded[..], "test").unwrap();
        let published = served.registry.publish("team/app", "all", &index).await;
        if !is_whole {
            let refused = published.unwrap_err().to_string();
            assert!(refused.contains(&other.manifest.to_string()), "{refused}");
            assert!(served.shared.keys().is_empty(), "nothing of it is written: {:?}", served.shared.keys());
            continue;
        }
        published.unwrap();
    }
    let by_tag = "/v2/team/app/manifests/all";
    let whole = served.send("GET", by_tag, &[("accept", OCI_INDEX)], b"").await;
    assert_eq!((whole.status, whole.header("docker-content-digest")), (200, index.to_string().as_str()));
    for image in [&own, &other] {
        assert_eq!(
            served.ask("GET", &format!("/v2/team/app/manifests/{}", image.manifest)).await.status,
            200
        );
        assert_eq!(served.ask("HEAD", &format!("/v2/team/app/blobs/{}", image.layers[0])).await.status, 200);
    }
    // One platform of it alone, and names that can be none.
    served.registry.publish("team/app", "one", &own.manifest).await.unwrap();
    let one = served.ask("GET", "/v2/team/app/manifests/one").await;
    assert_eq!(one.header("docker-content-digest"), own.manifest.to_string());
    for (repository, tag) in [("Team", "x"), ("team/app", "a b")] {
        assert!(served.registry.publish(repository, tag, &own.manifest).await.is_err(), "{repository}:{tag}");
    }
}
