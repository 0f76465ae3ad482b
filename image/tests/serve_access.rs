//! Who may do what at the registry, and how clients find out.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rorqual_image::Digest;
use rorqual_image::serve::{Options, Right, Rights};
use serde_json::json;
use support::served::{Answer, Served, Shared};
use support::{Image, Layer};

fn image(seed: u8) -> Image {
    Image::new(&[Layer::new().file("f", &[seed; 100]).tar()])
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// `dev` may push to `team/…`, `reader` may pull from there; everybody may pull from `public/…`.
async fn guarded() -> Served {
    let shared = Shared::default();
    shared.allow("admin", "a", "*", &Right::ALL);
    shared.allow("dev", "d", "team/*", &[Right::Pull, Right::Push]);
    shared.allow("reader", "r", "team/*", &[Right::Pull]);
    shared.allow("", "", "public/*", &[Right::Pull]);
    shared.0.users.lock().unwrap().insert(("nobody".to_owned(), "n".to_owned()), Rights::default());
    let served = Served::with(Options::default(), shared, false).await;
    for name in ["team/app", "public/app", "secret"] {
        let image = image(1);
        for bytes in image.blobs.iter().filter(|(digest, _)| **digest != image.manifest).map(|(_, b)| b) {
            let path = format!("/v2/{name}/blobs/uploads/?digest={}", Digest::of(bytes));
            let answer = served.send("POST", &path, &[("authorization", &basic("admin", "a"))], bytes).await;
            assert_eq!(answer.status, 201, "{}", answer.text());
        }
        let (path, auth) = (format!("/v2/{name}/manifests/1"), basic("admin", "a"));
        let bytes = image.bytes(&image.manifest);
        assert_eq!(served.send("PUT", &path, &[("authorization", &auth)], bytes).await.status, 201);
    }
    served
}

async fn as_user(served: &Served, user: (&str, &str), method: &str, path: &str) -> Answer {
    served.send(method, path, &[("authorization", &basic(user.0, user.1))], b"").await
}

/// A token for a user (or nobody), with these scopes.
async fn token(served: &Served, user: Option<(&str, &str)>, scopes: &[&str]) -> Answer {
    let query: String = scopes.iter().map(|scope| format!("&scope={scope}")).collect();
    let auth = user.map(|(user, password)| basic(user, password));
    let headers: Vec<(&str, &str)> = auth.iter().map(|auth| ("authorization", auth.as_str())).collect();
    served.send("GET", &format!("/v2/token?service=rorqual-registry{query}"), &headers, b"").await
}

async fn with_token(served: &Served, token: &Answer, method: &str, path: &str) -> Answer {
    let bearer = format!("Bearer {}", token.json()["token"].as_str().unwrap());
    served.send(method, path, &[("authorization", &bearer)], b"").await
}

const DEV: (&str, &str) = ("dev", "d");
const READER: (&str, &str) = ("reader", "r");

#[tokio::test]
async fn whoever_shows_nothing_is_told_where_to_log_in() {
    let served = guarded().await;
    let answer = served.ask("GET", "/v2/").await;
    answer.is(401, "UNAUTHORIZED");
    let realm = format!("Bearer realm=\"http://{}/v2/token\",service=\"rorqual-registry\"", served.address);
    assert_eq!(answer.header("www-authenticate"), realm);
    assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
    let answer = served.ask("POST", "/v2/team/app/blobs/uploads/").await;
    answer.is(401, "UNAUTHORIZED");
    let scope = format!("{realm},scope=\"repository:team/app:pull,push\"");
    assert_eq!(answer.header("www-authenticate"), scope);
    // What is not there looks the same as what may not be seen.
    for name in ["secret", "no/such"] {
        served.ask("GET", &format!("/v2/{name}/manifests/1")).await.is(401, "UNAUTHORIZED");
    }
    assert_eq!(served.ask("GET", "/v2/public/app/manifests/1").await.status, 200);
    served.ask("DELETE", "/v2/public/app/manifests/1").await.is(401, "UNAUTHORIZED");
}

#[tokio::test]
async fn a_password_gives_the_rights_of_its_user() {
    let served = guarded().await;
    for (user, method, path, status) in [
        (DEV, "GET", "/v2/", 200),
        (DEV, "GET", "/v2/team/app/manifests/1", 200),
        (DEV, "POST", "/v2/team/app/blobs/uploads/", 202),
        (DEV, "DELETE", "/v2/team/app/manifests/1", 403),
        (DEV, "GET", "/v2/secret/manifests/1", 403),
        (READER, "GET", "/v2/team/app/tags/list", 200),
        (READER, "POST", "/v2/team/app/blobs/uploads/", 403),
        (("reader", "wrong"), "GET", "/v2/team/app/tags/list", 401),
        (("", ""), "GET", "/v2/public/app/tags/list", 401),
        (("nobody", "n"), "GET", "/v2/", 200),
        (("nobody", "n"), "GET", "/v2/secret/tags/list", 403),
        (("nobody", "n"), "GET", "/v2/public/app/tags/list", 200),
        (("admin", "a"), "DELETE", "/v2/secret/manifests/1", 202),
    ] {
        let answer = as_user(&served, user, method, path).await;
        assert_eq!(answer.status, status, "{user:?} {method} {path}: {}", answer.text());
    }
    as_user(&served, READER, "DELETE", "/v2/team/app/manifests/1").await.is(403, "DENIED");
    for malformed in ["Basic", "Basic !!!", "Basic ZGV2", "Digest x", "Bearer", "x"] {
        let answer = served.send("GET", "/v2/", &[("authorization", malformed)], b"").await;
        answer.is(401, "UNAUTHORIZED");
    }
    let listed = as_user(&served, DEV, "GET", "/v2/_catalog").await.json();
    assert_eq!(listed, json!({ "repositories": ["public/app", "team/app"] }), "what the user may pull");
}

#[tokio::test]
async fn a_token_gives_what_it_was_asked_for_and_the_user_may() {
    let served = guarded().await;
    let pull = token(&served, Some(DEV), &["repository:team/app:pull"]).await;
    assert_eq!((pull.status, pull.json()["expires_in"].as_u64()), (200, Some(300)));
    assert_eq!(with_token(&served, &pull, "GET", "/v2/").await.status, 200);
    assert_eq!(with_token(&served, &pull, "GET", "/v2/team/app/manifests/1").await.status, 200);
    let refused = with_token(&served, &pull, "POST", "/v2/team/app/blobs/uploads/").await;
    refused.is(401, "UNAUTHORIZED");
    let challenge = refused.header("www-authenticate");
    assert!(
        challenge.contains("scope=\"repository:team/app:pull,push\",error=\"insufficient_scope\""),
        "{challenge}"
    );
    let both = "repository:team/app:pull,push%20repository:secret:pull";
    let push = token(&served, Some(DEV), &[both]).await;
    assert_eq!(with_token(&served, &push, "POST", "/v2/team/app/blobs/uploads/").await.status, 202);
    with_token(&served, &push, "GET", "/v2/secret/manifests/1").await.is(401, "UNAUTHORIZED");

    token(&served, Some(("dev", "wrong")), &[]).await.is(401, "UNAUTHORIZED");
    let anyone = token(&served, None, &["repository:public/app:pull,push", "repository:team/app:pull"]).await;
    assert_eq!(with_token(&served, &anyone, "GET", "/v2/public/app/manifests/1").await.status, 200);
    for (method, path) in [("POST", "/v2/public/app/blobs/uploads/"), ("GET", "/v2/team/app/manifests/1")] {
        with_token(&served, &anyone, method, path).await.is(401, "UNAUTHORIZED");
    }
    let list = token(&served, Some(READER), &["registry:catalog:*"]).await;
    let listed = with_token(&served, &list, "GET", "/v2/_catalog").await;
    assert_eq!(listed.json(), json!({ "repositories": ["public/app", "team/app"] }));
    with_token(&served, &pull, "GET", "/v2/_catalog").await.is(401, "UNAUTHORIZED");
    let forged = served.send("GET", "/v2/", &[("authorization", "Bearer AAAA")], b"").await;
    forged.is(401, "UNAUTHORIZED");
    assert!(forged.header("www-authenticate").contains("error=\"invalid_token\""));
}

#[tokio::test]
async fn a_blob_is_mounted_only_from_where_the_user_may_pull() {
    let served = guarded().await;
    let layer = &image(1).layers[0];
    let secret = image(9);
    let bytes = secret.bytes(&secret.layers[0]);
    let auth = basic("admin", "a");
    let path = format!("/v2/secret/blobs/uploads/?digest={}", secret.layers[0]);
    assert_eq!(served.send("POST", &path, &[("authorization", &auth)], bytes).await.status, 201);
    for (digest, from, status) in [
        (layer, "&from=team/app", 201),
        (layer, "", 201),
        (&secret.layers[0], "&from=secret", 202),
        (&secret.layers[0], "", 202),
    ] {
        let path = format!("/v2/team/mine/blobs/uploads/?mount={digest}{from}");
        assert_eq!(as_user(&served, DEV, "POST", &path).await.status, status, "{path}");
    }
    as_user(&served, DEV, "GET", &format!("/v2/team/app/blobs/{}", secret.layers[0]))
        .await
        .is(404, "BLOB_UNKNOWN");
}

#[tokio::test]
async fn a_host_header_can_not_write_the_challenge() {
    let served = guarded().await;
    let request = b"GET /v2/ HTTP/1.1\r\nhost: x\",realm=\"http://evil.example\r\nconnection: close\r\n\r\n";
    let answer = served.raw(request).await;
    assert!(!answer.headers.get("www-authenticate").is_some_and(|text| text.contains("evil")), "{answer:?}");
}
