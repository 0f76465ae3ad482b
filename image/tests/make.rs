//! Images that are made, saved and read again.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::HashSet;

use rorqual_image::{Compression, Digest, Import, Reference, SaveFormat, Saved, Store};
use serde_json::{Value, json};
use support::{Image, Layer, archive, chain, count, gzip, store, zstd};

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

fn load(store: &Store, image: &Image, as_name: &str) -> Digest {
    store.load_stream(&image.layout_tar(Some(as_name))[..], "test").unwrap()[0].digest.clone()
}

fn saved(store: &Store, images: &[(&Digest, &[&str])], format: SaveFormat) -> Vec<u8> {
    let images: Vec<Saved> = images
        .iter()
        .map(|(digest, names)| Saved {
            digest: (*digest).clone(),
            names: names.iter().map(|text| name(text)).collect(),
        })
        .collect();
    let mut bytes = Vec::new();
    store.save(&images, format, &mut bytes).unwrap();
    bytes
}

fn document(bytes: &[u8], wanted: &str) -> Option<Value> {
    let mut archive = tar::Archive::new(bytes);
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        if entry.path().unwrap().to_str() == Some(wanted) {
            return Some(serde_json::from_reader(entry).unwrap());
        }
    }
    None
}

#[test]
fn what_is_saved_loads_as_the_same_images() {
    let (_folder, first) = store();
    let shared = Layer::new().file("shared", &[7; 100_000]).tar();
    let one = Image::with(std::slice::from_ref(&shared), gzip, |_| {}, |_| {});
    let two = Image::with(&[shared, Layer::new().file("own", b"2").tar()], zstd, |_| {}, |_| {});
    let (one, two) = (load(&first, &one, "one:1"), load(&first, &two, "two:2"));
    let bytes =
        saved(&first, &[(&one, &["one:1", "reg.example:5000/one:x"]), (&two, &[])], SaveFormat::Docker);
    let again =
        saved(&first, &[(&one, &["one:1", "reg.example:5000/one:x"]), (&two, &[])], SaveFormat::Docker);
    assert_eq!(bytes, again, "the same bytes each time");

    let manifest = document(&bytes, "manifest.json").unwrap();
    assert_eq!(manifest[0]["RepoTags"], json!(["one:1", "reg.example:5000/one:x"]));
    assert_eq!(manifest[1]["RepoTags"], json!(null));
    let (_other_folder, second) = store();
    let loaded = second.load_stream(&bytes[..], "saved").unwrap();
    let mut found: Vec<(Option<String>, Digest)> =
        loaded.into_iter().map(|image| (image.reference.map(|name| name.familiar()), image.digest)).collect();
    found.sort();
    let expected = vec![
        (None, two.clone()),
        (Some("one:1".to_owned()), one.clone()),
        (Some("reg.example:5000/one:x".to_owned()), one.clone()),
    ];
    assert_eq!(found, expected);
    for digest in [&one, &two] {
        second.prepare(digest).unwrap();
    }

    let oci = saved(&first, &[(&one, &["one:1"])], SaveFormat::Oci);
    assert!(document(&oci, "manifest.json").is_none());
    let index = document(&oci, "index.json").unwrap();
    assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "docker.io/library/one:1");
    assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "1");
}

/// Compressed layers go into the archive byte by byte as they are in the store.
#[test]
fn blobs_are_saved_as_they_are() {
    let (_folder, store) = store();
    let image = Image::with(&[Layer::new().file("f", b"x").tar()], gzip, |_| {}, |_| {});
    let digest = load(&store, &image, "one:1");
    let bytes = saved(&store, &[(&digest, &["one:1"])], SaveFormat::Docker);
    let layer = image.bytes(&image.layers[0]);
    assert!(bytes.windows(layer.len()).any(|window| window == layer));
}

#[test]
fn an_incomplete_image_is_not_begun_to_be_saved() {
    let (folder, store) = store();
    let image = Image::new(&[Layer::new().file("f", b"x").tar()]);
    let digest = load(&store, &image, "one:1");
    let layer = &image.layers[0];
    std::fs::remove_file(folder.path().join("store/content/sha256").join(layer.hex())).unwrap();
    let mut bytes = Vec::new();
    let error = store.save(&[Saved { digest, names: Vec::new() }], SaveFormat::Oci, &mut bytes).unwrap_err();
    assert!(error.to_string().contains(layer.hex()), "{error}");
    assert!(bytes.is_empty());
}

#[test]
fn an_archive_of_files_becomes_an_image() {
    let tar = Layer::new().dir("bin/", 0o755).file("bin/true", b"#!").tar();
    for (kind, bytes) in [("plain", tar.clone()), ("gzip", gzip(&tar)), ("zstd", zstd(&tar))] {
        let (_folder, store) = store();
        let import = Import {
            reference: Some(name("made:1")),
            message: "why".into(),
            created: "2024-01-02T03:04:05Z".into(),
            changes: vec!["CMD [\"/bin/true\"]".parse().unwrap(), "ENV A=1".parse().unwrap()],
            ..Import::default()
        };
        let digest = store.import(&bytes[..], "test", import).unwrap();
        assert_eq!(store.resolve(&name("made:1")), Some(digest.clone()), "{kind}");
        let config = store.config_json(&digest).unwrap();
        assert_eq!(config["config"], json!({ "Cmd": ["/bin/true"], "Env": ["A=1"] }));
        assert_eq!(config["rootfs"]["diff_ids"][0], Digest::of(&tar).to_string());
        assert_eq!(config["history"][0]["comment"], "why");
        let prepared = store.prepare(&digest).unwrap();
        assert_eq!(std::fs::read(prepared.layers[0].join("bin/true")).unwrap(), b"#!");
        if kind != "plain" {
            // Not compressed anew.
            assert_eq!(store.manifest(&digest).unwrap().layers[0].digest, Digest::of(&bytes));
        }
    }
}

#[test]
fn what_is_no_archive_of_files_leaves_nothing() {
    let (_folder, store) = store();
    let evil = Layer::new().file("../out", b"x").tar();
    for bytes in
        [&b"not a tar archive at all, but long enough to be read as one"[..], b"", &evil, &gzip(&evil)[..40]]
    {
        let import = Import { reference: Some(name("made:1")), ..Import::default() };
        let error = store.import(bytes, "test", import).unwrap_err();
        assert!(!chain(&error).is_empty());
        assert!(store.list().is_empty(), "{error}");
        store.sweep().unwrap();
        assert_eq!(count(&store, "content/sha256"), 0);
    }
}

#[test]
fn a_layer_is_measured_while_it_is_written() {
    let (_folder, store) = store();
    let tar = Layer::new().file("f", &[1; 300_000]).tar();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let (layer, answer) = store
            .make_layer(compression, |out| {
                out.write_all(&tar).unwrap();
                Ok(42)
            })
            .unwrap();
        assert_eq!(answer, 42);
        assert_eq!(layer.diff_id, Digest::of(&tar));
        // It stays while somebody has it, and no longer.
        store.sweep().unwrap();
        assert!(
            store
                .blob(&layer.descriptor.digest)
                .unwrap()
                .is_some_and(|blob| blob.size_bytes == layer.descriptor.size)
        );
        drop(layer);
        store.sweep().unwrap();
        assert_eq!(count(&store, "content/sha256"), 0, "{compression:?}");
    }
}

/// The loader takes whatever the archive is compressed with.
#[test]
fn saved_archives_load_compressed() {
    let (_folder, first) = store();
    let digest = load(&first, &Image::new(&[Layer::new().file("f", b"x").tar()]), "one:1");
    let bytes = saved(&first, &[(&digest, &["one:1"])], SaveFormat::Docker);
    for packed in [gzip(&bytes), zstd(&bytes)] {
        let (_folder, second) = store();
        assert_eq!(second.load_stream(&packed[..], "saved").unwrap()[0].digest, digest);
        second.remove(name("one:1"), &HashSet::new()).unwrap();
        assert_eq!(count(&second, "content/sha256"), 0);
    }
    assert!(archive(&[]).len() >= 1024);
}
