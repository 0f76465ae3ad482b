//! Pushing to Debian's docker-registry, with passwords, TLS and broken connections; and what others read there.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rorqual_image::{
    Credentials, Digest, Error, Platform, PushProgress, Pushed, Reference, RegistryClient, RegistryError,
    RegistryOptions, RegistrySettings, Store, pull, push,
};
use serde_json::json;
use support::debian::{DebianRegistry, Tls, Wire};
use support::served::Served;
use support::{Image, Layer, OCI_MANIFEST, chain, descriptor, gzip, layout, noise, put, store};

fn options() -> RegistryOptions {
    RegistryOptions { backoff: Duration::from_millis(10), attempts: 4, ..RegistryOptions::default() }
}

fn password(word: &str) -> Credentials {
    Credentials::Password { username: "user".to_owned(), password: word.to_owned() }
}

fn image() -> Image {
    let tars: Vec<_> =
        (1..5).map(|at| Layer::new().file(&format!("f{at}"), &noise(at, 300_000)).tar()).collect();
    Image::with(&tars, gzip, |_| {}, |_| {})
}

fn load(store: &Store, image: &Image, name: &Reference) -> Digest {
    store.load_stream(&image.layout_tar(Some(&name.to_string()))[..], "test").unwrap()[0].digest.clone()
}

async fn send(
    store: &Store,
    digest: &Digest,
    to: &Reference,
    client: &RegistryClient,
) -> rorqual_image::Result<(Pushed, Vec<PushProgress>)> {
    let reports = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&reports);
    let pushing = push(store, digest, to, client, move |report| sink.lock().unwrap().push(report));
    let pushed = tokio::time::timeout(Duration::from_secs(120), pushing).await.expect("the push hangs")?;
    let reports = reports.lock().unwrap().clone();
    Ok((pushed, reports))
}

fn name(registry: &str, rest: &str) -> Reference {
    format!("{registry}/{rest}").parse().unwrap()
}

#[tokio::test]
async fn what_is_pushed_is_pulled_by_us_and_by_others() {
    let (registry, (_folder, store), image) = (DebianRegistry::start(false, None), store(), image());
    let client = RegistryClient::new(options());
    let first = name(&registry.address, "team/app:1");
    let digest = load(&store, &image, &first);
    let (pushed, reports) = send(&store, &digest, &first, &client).await.unwrap();
    assert_eq!(pushed, Pushed { digest: image.manifest.clone(), is_part: false });
    let sent = |reports: &[PushProgress]| {
        reports.iter().filter(|report| matches!(report, PushProgress::Sent { .. })).count()
    };
    assert_eq!(sent(&reports), 5);
    assert!(reports.iter().any(|report| matches!(report, PushProgress::Blobs { blobs } if blobs.len() == 5)));

    // Once more: nothing is sent. Elsewhere: everything is mounted.
    let (_, again) = send(&store, &digest, &first, &client).await.unwrap();
    assert_eq!(again.iter().filter(|report| matches!(report, PushProgress::Present { .. })).count(), 5);
    let second = name(&registry.address, "other:2");
    let (_, mounted) = send(&store, &digest, &second, &client).await.unwrap();
    let mount =
        |report: &&PushProgress| matches!(report, PushProgress::Mounted { from, .. } if from == "team/app");
    assert_eq!((mounted.iter().filter(mount).count(), sent(&mounted)), (5, 0));

    let (_other, fresh) = support::store();
    assert_eq!(pull(&fresh, &second, &[], Some(&client), |_| {}).await.unwrap(), image.manifest);
    assert_eq!(fresh.prepare(&image.manifest).unwrap().layers.len(), 4);
    let read = Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", "--format", "{{.Digest}} {{len .Layers}}"])
        .arg(format!("docker://{first}"))
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&read.stdout).trim(),
        format!("{} 4", image.manifest),
        "{}",
        String::from_utf8_lossy(&read.stderr)
    );

    store.tag(&digest, name(&registry.address, "team/app:0")).unwrap();
    send(&store, &digest, &name(&registry.address, "team/app:0"), &client).await.unwrap();
    let mut tags = client.tags(&first).await.unwrap();
    tags.sort();
    assert_eq!(tags, ["0", "1"]);
    let hits = client.search(&registry.address, "team", 10).await.unwrap();
    assert_eq!(hits.len(), 1);
    assert_eq!(hits[0].name, format!("{}/team/app", registry.address));
    let none = client.tags(&name(&registry.address, "nothing")).await.unwrap_err();
    assert!(
        matches!(none, Error::Registry { source: RegistryError::NotFound { .. }, .. }),
        "{}",
        chain(&none)
    );
}

#[tokio::test]
async fn an_index_is_pushed_with_all_of_its_platforms_or_not_at_all() {
    let (registry, (_folder, store), one) = (DebianRegistry::start(false, None), store(), image());
    let client = RegistryClient::new(options());
    let mut blobs = one.blobs.clone();
    let other = Image::with(
        &[Layer::new().file("x", b"vax").tar()],
        gzip,
        |config| config["architecture"] = json!("vax"),
        |_| {},
    );
    let host = Platform::host();
    let entries: Vec<_> = [(&one, host.architecture.as_str()), (&other, "vax")]
        .into_iter()
        .map(|(image, architecture)| {
            let mut entry = descriptor(OCI_MANIFEST, &image.manifest, &image.blobs);
            entry["platform"] = json!({ "os": "linux", "architecture": architecture });
            entry
        })
        .collect();
    let index = json!({ "schemaVersion": 2, "mediaType": support::OCI_INDEX, "manifests": entries });
    let index = put(&mut blobs, serde_json::to_vec(&index).unwrap());
    let to = name(&registry.address, "multi:1");
    for is_whole in [false, true] {
        if is_whole {
            blobs.extend(other.blobs.clone());
        }
        let mut entry = descriptor(support::OCI_INDEX, &index, &blobs);
        entry["annotations"] = json!({ "io.containerd.image.name": to.to_string() });
        let archive = support::archive(&layout(&blobs, json!([entry])));
        let digest = store.load_stream(&archive[..], "test").unwrap()[0].digest.clone();
        let (pushed, _) = send(&store, &digest, &to, &client).await.unwrap();
        let expected = if is_whole { &index } else { &one.manifest };
        assert_eq!(pushed, Pushed { digest: expected.clone(), is_part: !is_whole });
        assert_eq!(client.resolve(&to).await.unwrap(), *expected);
    }
}

#[tokio::test]
async fn a_password_is_asked_for_and_checked() {
    let (registry, (_folder, store), image) = (DebianRegistry::start(true, None), store(), image());
    let to = name(&registry.address, "app:1");
    let digest = load(&store, &image, &to);
    let nobody = RegistryClient::new(options());
    for (client, works) in [
        (nobody.clone(), false),
        (nobody.with_credentials(&registry.address, password("wrong")), false),
        (nobody.with_credentials("elsewhere.example", password("secret")), false),
        (nobody.with_credentials(&registry.address, password("secret")), true),
    ] {
        let login = client.login(&registry.address).await;
        let pushed = send(&store, &digest, &to, &client).await;
        if works {
            assert_eq!(login.unwrap(), None);
            assert_eq!(pushed.unwrap().0.digest, image.manifest);
            let (_other, fresh) = support::store();
            pull(&fresh, &to, &[], Some(&client), |_| {}).await.unwrap();
            continue;
        }
        for error in [login.unwrap_err(), pushed.unwrap_err()] {
            assert!(
                matches!(error, Error::Registry { source: RegistryError::Denied { .. }, .. }),
                "{}",
                chain(&error)
            );
        }
    }
}

/// An authority, and a certificate of it for this machine's loopback address.
fn certificates(folder: &Path) -> Tls<'static> {
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let certificate = authority.self_signed(&authority_key).unwrap();
    std::fs::write(folder.join("ca.pem"), certificate.pem()).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let own = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let own = own.signed_by(&key, &issuer).unwrap();
    std::fs::write(folder.join("own.pem"), own.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    // The test's folder outlives the registry, and both end with the test.
    let leak = |name: &str| -> &'static Path { Box::leak(folder.join(name).into_boxed_path()) };
    Tls { certificate: leak("own.pem"), key: leak("key.pem") }
}

#[tokio::test]
async fn a_private_authority_is_trusted_when_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let tls = certificates(folder.path());
    let registry = DebianRegistry::start(true, Some(&tls));
    let ((_folder, store), image, to) = (store(), image(), name(&registry.address, "app:1"));
    let digest = load(&store, &image, &to);
    let with = |settings: RegistrySettings| {
        let registries = HashMap::from([(registry.address.clone(), settings)]);
        RegistryClient::new(RegistryOptions { registries, ..options() })
            .with_credentials(&registry.address, password("secret"))
    };
    let ca = RegistrySettings { ca: vec![folder.path().join("ca.pem")], ..RegistrySettings::default() };
    let blind = RegistrySettings { skip_verify: true, ..RegistrySettings::default() };
    let wrong = RegistrySettings { ca: vec![folder.path().join("key.pem")], ..RegistrySettings::default() };
    // An authority that is not the one.
    let other = tempfile::tempdir().unwrap();
    certificates(other.path());
    let stranger = RegistrySettings { ca: vec![other.path().join("ca.pem")], ..RegistrySettings::default() };
    for works in [ca, blind] {
        assert_eq!(send(&store, &digest, &to, &with(works)).await.unwrap().0.digest, image.manifest);
    }
    let error = chain(&send(&store, &digest, &to, &with(wrong)).await.unwrap_err());
    assert!(error.contains("key.pem can't be used"), "{error}");
    let error = chain(&send(&store, &digest, &to, &with(stranger)).await.unwrap_err());
    assert!(error.contains("is not trusted") && error.contains("registries.toml"), "{error}");
}

#[tokio::test]
async fn an_upload_that_breaks_goes_on_where_it_stopped_or_begins_anew() {
    // Ours tells how far an upload is; Debian's forgets one that broke.
    let (ours, debians) = (Served::start().await, DebianRegistry::start(false, None));
    let image = Image::new(&[Layer::new().file("big", &noise(7, 8 << 20)).tar()]);
    for (address, is_resumed) in [(ours.address.to_string(), true), (debians.address.clone(), false)] {
        let (wire, (_folder, store)) = (Wire::to(&address).await, store());
        let to = name(&wire.address, "app:1");
        let digest = load(&store, &image, &to);
        wire.cut_after(5 << 20);
        let (pushed, reports) = send(&store, &digest, &to, &RegistryClient::new(options())).await.unwrap();
        assert_eq!(pushed.digest, image.manifest);
        let done = reports.iter().filter_map(|report| match report {
            PushProgress::Bytes { digest, done_bytes, .. } if *digest == image.layers[0] => Some(*done_bytes),
            _ => None,
        });
        let done: Vec<u64> = done.collect();
        // A piece is noted when it is handed over, so where it goes on lies a little before what was noted last.
        let back = done.iter().skip(1).any(|now| *now <= 1 << 20);
        assert_eq!((wire.was_cut(), wire.saw("content-range: "), back), (true, is_resumed, !is_resumed));
        let (_other, fresh) = support::store();
        let direct = name(&address, "app:1");
        pull(&fresh, &direct, &[], Some(&RegistryClient::new(options())), |_| {}).await.unwrap();
        assert_eq!(fresh.list()[0].digest, image.manifest);
    }
}

#[tokio::test]
async fn mirrors_are_asked_first_and_the_registry_last() {
    let (mirror, (_folder, store), image) = (DebianRegistry::start(false, None), store(), image());
    let client = RegistryClient::new(options());
    let there = name(&mirror.address, "library/app:1");
    let digest = load(&store, &image, &there);
    send(&store, &digest, &there, &client).await.unwrap();
    // A mirror that nobody answers at, and one that has it. The registry itself does not exist.
    let mirrors = vec!["127.0.0.1:1".to_owned(), format!("http://{}", mirror.address)];
    let settings = RegistrySettings { mirrors, ..RegistrySettings::default() };
    let registries = HashMap::from([("registry.invalid".to_owned(), settings)]);
    let client = RegistryClient::new(RegistryOptions { registries, attempts: 1, ..options() });
    let (_other, fresh) = support::store();
    let wanted: Reference = "registry.invalid/library/app:1".parse().unwrap();
    assert_eq!(pull(&fresh, &wanted, &[], Some(&client), |_| {}).await.unwrap(), image.manifest);
    assert_eq!(fresh.resolve(&wanted), Some(image.manifest.clone()));
    // What no mirror has is asked of the registry, and its word is the one that is told.
    let error = pull(&fresh, &"registry.invalid/x:1".parse().unwrap(), &[], Some(&client), |_| {}).await;
    let error = chain(&error.unwrap_err());
    assert!(error.contains("can't connect to registry.invalid:443"), "{error}");
}
