//! Layouts and archives, good and bad, through `Store::load`; naming and removing what was loaded.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::HashSet;
use std::fs;

use rorqual_image::{Digest, Error, Reference, Store};
use serde_json::json;
use support::{Image, Layer, archive, chain, count, descriptor, gzip, layout, put, store, zstd};

/// Names and contents.
type Files = Vec<(String, Vec<u8>)>;

fn small() -> Image {
    Image::new(&[Layer::new().dir("etc/", 0o755).file("etc/motd", b"hello\n").tar()])
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

#[test]
fn a_layout_loads_from_tar_and_folder_and_compressed() {
    let image = small();
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in image.layout(Some("docker.io/library/motd:1")) {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let tar = image.layout_tar(Some("docker.io/library/motd:1"));
    for kind in ["folder", "tar", "gzip", "zstd"] {
        let (_folder, store) = store();
        let loaded = match kind {
            "folder" => store.load(folder.path()),
            "tar" => store.load_stream(&tar[..], "motd.tar"),
            "gzip" => store.load_stream(&gzip(&tar)[..], "motd.tar.gz"),
            _ => store.load_stream(&zstd(&tar)[..], "motd.tar.zst"),
        }
        .unwrap_or_else(|error| panic!("{kind}: {}", chain(&error)));
        assert_eq!(loaded.len(), 1, "{kind}");
        assert_eq!(loaded[0].digest, image.manifest, "{kind}");
        assert_eq!(store.resolve(&reference("motd:1")), Some(image.manifest.clone()), "{kind}");
        let record = &store.list()[0];
        assert_eq!(record.created.as_deref(), Some("2024-01-02T03:04:05Z"), "{kind}");
        let expected = image.bytes(&image.config).len() + image.bytes(&image.layers[0]).len();
        assert_eq!(record.size_bytes, expected as u64, "{kind}");
        assert_eq!(
            store.config(&image.manifest).unwrap().config().as_ref().unwrap().cmd().as_ref().unwrap()[0],
            "/bin/true"
        );
        let prepared = store.prepare(&image.manifest).unwrap();
        assert_eq!(fs::read(prepared.layers[0].join("etc/motd")).unwrap(), b"hello\n", "{kind}");
    }
}

#[test]
fn a_docker_archive_loads_under_every_tag_and_always_as_the_same_image() {
    let image = small();
    let tar = archive(&image.docker(&["motd:1", "registry.example/motd:2"]));
    let mut digests = HashSet::new();
    for _ in 0..2 {
        let (_folder, store) = store();
        let loaded = store.load_stream(&tar[..], "motd.tar").unwrap();
        let names: Vec<String> =
            loaded.iter().map(|one| one.reference.as_ref().unwrap().familiar()).collect();
        assert_eq!(names, ["motd:1", "registry.example/motd:2"]);
        digests.insert(loaded[0].digest.clone());
        let prepared = store.prepare(&loaded[0].digest).unwrap();
        assert_eq!(fs::read(prepared.layers[0].join("etc/motd")).unwrap(), b"hello\n");
        // Nothing but the image: no VERSION file became a blob.
        assert_eq!(count(&store, "content/sha256"), 3);
        assert_eq!(count(&store, "content/tmp"), 0);
    }
    assert_eq!(digests.len(), 1);
}

#[test]
fn equal_layers_of_a_docker_archive_may_be_links() {
    let layer = Layer::new().file("a", b"a").tar();
    let image = Image::new(&[layer.clone(), layer]);
    let files = image.docker(&["twice:1"]);
    let mut tar = Layer::new().symlink("other/layer.tar", &format!("../{}/layer.tar", image.layers[0].hex()));
    for (name, bytes) in &files {
        let bytes = match name.as_str() {
            "manifest.json" => String::from_utf8(bytes.clone())
                .unwrap()
                .replacen(&format!("{}/layer.tar", image.layers[0].hex()), "other/layer.tar", 1)
                .into_bytes(),
            _ => bytes.clone(),
        };
        tar = tar.file(name, &bytes);
    }
    let (_folder, store) = store();
    let loaded = store.load_stream(&tar.tar()[..], "links.tar").unwrap();
    assert_eq!(store.manifest(&loaded[0].digest).unwrap().layers.len(), 2);
}

#[test]
fn an_archive_of_both_kinds_keeps_all_its_tags() {
    let image = small();
    let mut files = image.layout(Some("docker.io/library/motd:1"));
    let config = format!("blobs/sha256/{}", image.config.hex());
    let layer = format!("blobs/sha256/{}", image.layers[0].hex());
    let manifest = json!([{ "Config": config, "RepoTags": ["motd:1", "motd:latest"], "Layers": [layer] }]);
    files.push(("manifest.json".into(), serde_json::to_vec(&manifest).unwrap()));
    let (_folder, store) = store();
    store.load_stream(&archive(&files)[..], "both.tar").unwrap();
    assert_eq!(store.resolve(&reference("motd:1")), Some(image.manifest.clone()));
    assert_eq!(store.resolve(&reference("motd")), Some(image.manifest));
}

#[test]
fn of_an_index_the_right_platform_is_taken() {
    let mine = small();
    let other = Image::with(
        &[Layer::new().tar()],
        |tar| tar.to_vec(),
        |config| config["architecture"] = json!("vax"),
        |_| {},
    );
    let mut blobs = mine.blobs.clone();
    let mut entries = Vec::new();
    for (image, architecture) in
        [(&other, "vax".to_owned()), (&mine, rorqual_image::Platform::host().architecture)]
    {
        let mut entry = descriptor(support::OCI_MANIFEST, &image.manifest, &image.blobs);
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entries.push(entry);
    }
    let index = json!({ "schemaVersion": 2, "mediaType": support::OCI_INDEX, "manifests": entries });
    let index = put(&mut blobs, serde_json::to_vec(&index).unwrap());
    let mut top = descriptor(support::OCI_INDEX, &index, &blobs);
    top["annotations"] = json!({ "io.containerd.image.name": "docker.io/library/multi:1" });
    let (_folder, store) = store();
    // Only this platform's blobs are there, as Docker saves it.
    let loaded = store.load_stream(&archive(&layout(&blobs, json!([top])))[..], "multi.tar").unwrap();
    assert_eq!(loaded[0].digest, mine.manifest);
    let by_index = reference("multi").with_digest(index.clone());
    assert_eq!(store.resolve(&by_index), Some(mine.manifest.clone()));
    assert_eq!(store.prepare(&index).unwrap().digest, mine.manifest);
    // The index stays with the image, for peers that ask by its digest, and goes with it.
    store.sweep().unwrap();
    assert!(store.blob(&index).unwrap().is_some());
    let removed = store.remove(reference("multi:1"), &HashSet::new()).unwrap();
    assert!(removed.blobs.contains(&index), "{removed:?}");
}

#[test]
fn bad_archives_are_refused_and_leave_nothing() {
    let image = small();
    let tar = image.layout_tar(Some("motd:1"));
    let with = |change: &dyn Fn(&mut Files)| {
        let mut files = image.layout(Some("motd:1"));
        change(&mut files);
        archive(&files)
    };
    let layer_name = format!("blobs/sha256/{}", image.layers[0].hex());
    let flip = |files: &mut Files| {
        let (_, bytes) = files.iter_mut().find(|(name, _)| *name == layer_name).unwrap();
        bytes[600] ^= 1;
    };
    let mut docker_flipped = image.docker(&["motd:1"]);
    docker_flipped.iter_mut().find(|(name, _)| name.ends_with("layer.tar")).unwrap().1[600] ^= 1;
    let wrong_config = Image::with(
        &[Layer::new().tar()],
        |tar| tar.to_vec(),
        |config| config["rootfs"]["diff_ids"] = json!([]),
        |_| {},
    );
    let vax = Image::with(
        &[Layer::new().tar()],
        |tar| tar.to_vec(),
        |config| config["architecture"] = json!("vax"),
        |_| {},
    );
    let both = Image::with(
        &[Layer::new().tar()],
        |tar| tar.to_vec(),
        |_| {},
        |manifest| manifest["manifests"] = json!([]),
    );
    let lying_type = Image::with(
        &[Layer::new().tar()],
        |tar| tar.to_vec(),
        |_| {},
        |manifest| manifest["mediaType"] = json!(support::OCI_INDEX),
    );
    let lying_size = Image::with(
        &[Layer::new().tar()],
        |tar| tar.to_vec(),
        |_| {},
        |manifest| manifest["layers"][0]["size"] = json!(7),
    );
    let negative = Image::with(
        &[Layer::new().tar()],
        |tar| tar.to_vec(),
        |_| {},
        |manifest| manifest["layers"][0]["size"] = json!(-7),
    );
    let artifact = Image::with(
        &[Layer::new().tar()],
        |tar| tar.to_vec(),
        |_| {},
        |manifest| manifest["config"]["mediaType"] = json!("application/vnd.example+json"),
    );
    let volume = Image::with(
        &[Layer::new().tar()],
        |tar| tar.to_vec(),
        |config| config["config"]["Volumes"] = json!({"/../../etc": {}}),
        |_| {},
    );
    let nul = Image::with(
        &[Layer::new().tar()],
        |tar| tar.to_vec(),
        |config| config["config"]["Env"] = json!(["A=\u{0}"]),
        |_| {},
    );
    let user = Image::with(
        &[Layer::new().tar()],
        |tar| tar.to_vec(),
        |config| config["config"]["User"] = json!("0:../"),
        |_| {},
    );
    let huge = Image::with(
        &[Layer::new().tar()],
        |tar| tar.to_vec(),
        |config| config["config"]["Env"] = json!(["A".repeat(2 << 20)]),
        |_| {},
    );
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "neither `index.json`"),
        ("text", b"this is no archive".repeat(100), "not a tar archive"),
        ("truncated in a file", tar[..1800].to_vec(), "truncated or damaged"),
        ("truncated between files", tar[..1024].to_vec(), "neither `index.json`"),
        ("truncated gzip", gzip(&tar)[..200].to_vec(), "truncated or damaged"),
        ("tampered layer", with(&flip), "is corrupt: expected sha256:"),
        ("tampered docker layer", archive(&docker_flipped), "is corrupt: expected sha256:"),
        ("missing layer", with(&|files| files.retain(|(name, _)| *name != layer_name)), "may be truncated"),
        ("no marker", with(&|files| files.retain(|(name, _)| name != "oci-layout")), "no `oci-layout`"),
        (
            "future layout",
            with(&|files| files[0].1 = br#"{"imageLayoutVersion":"9.0"}"#.to_vec()),
            "`9.0` is unknown",
        ),
        ("bad index", with(&|files| files.last_mut().unwrap().1 = b"{".to_vec()), "`index.json` of"),
        ("bad name", image.layout_tar(Some("Bad Name")), "names an image wrongly"),
        ("an exported container", Layer::new().file("etc/passwd", b"root").tar(), "docker export"),
        ("layers differ", wrong_config.layout_tar(None), "names 0 layers, its manifest 1"),
        ("wrong platform", vax.layout_tar(None), "it needs linux/"),
        ("manifest and index", both.layout_tar(None), "both `manifests` and `layers`"),
        ("media type against body", lying_type.layout_tar(None), "its content is a manifest"),
        ("size in the manifest", lying_size.layout_tar(None), "wrong size: expected 7"),
        ("negative size", negative.layout_tar(None), "can't be read"),
        ("an artifact", artifact.layout_tar(None), "not a container image"),
        ("volume outside", volume.layout_tar(None), "`Volumes` holds `/../../etc`"),
        ("NUL in env", nul.layout_tar(None), "`Env` holds a NUL"),
        ("user is a path", user.layout_tar(None), "`User` is `0:../`"),
        ("huge environment", huge.layout_tar(None), "at most 1048576"),
    ];
    let (_folder, store) = store();
    let keep = Image::new(&[Layer::new().file("keep", b"me").tar()]);
    store.load_stream(&keep.layout_tar(Some("keep:1"))[..], "keep").unwrap();
    for (name, bytes, part) in cases {
        let error = store.load_stream(&bytes[..], "case.tar").expect_err(name);
        assert!(chain(&error).contains(part), "{name}: {}", chain(&error));
        assert_eq!(count(&store, "content/sha256"), 3, "{name} left a blob");
        assert_eq!(count(&store, "content/tmp"), 0, "{name} left a temporary file");
        assert_eq!(store.list().len(), 1, "{name} left a name");
    }
}

#[test]
fn indexes_that_nest_too_deep_are_refused() {
    let image = small();
    let mut blobs = image.blobs.clone();
    let mut top = descriptor(support::OCI_MANIFEST, &image.manifest, &blobs);
    for _ in 0..8 {
        let index =
            put(&mut blobs, serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [top] })).unwrap());
        top = descriptor(support::OCI_INDEX, &index, &blobs);
    }
    let (_folder, store) = store();
    let error = store.load_stream(&archive(&layout(&blobs, json!([top])))[..], "deep.tar").unwrap_err();
    assert!(chain(&error).contains("nested"), "{}", chain(&error));
}

#[test]
fn names_move_and_removal_takes_only_what_nobody_needs() {
    let shared = Layer::new().file("shared", b"s").tar();
    let one = Image::new(&[shared.clone(), Layer::new().file("one", b"1").tar()]);
    let two = Image::new(&[shared, Layer::new().file("two", b"2").tar()]);
    let (folder, store) = store();
    store.load_stream(&one.layout_tar(Some("app:1"))[..], "one").unwrap();
    store.load_stream(&two.layout_tar(Some("app:1"))[..], "two").unwrap();
    // The name moved; the first image stays without one, as containers may run on it.
    assert_eq!(store.resolve(&reference("app:1")), Some(two.manifest.clone()));
    assert_eq!(store.record(&one.manifest).unwrap().reference, None);
    store.tag(&two.manifest, reference("app:2")).unwrap();
    store.prepare(&one.manifest).unwrap();
    store.prepare(&two.manifest).unwrap();

    let in_use = HashSet::from([one.manifest.clone(), two.manifest.clone()]);
    assert!(matches!(store.remove(&one.manifest, &in_use), Err(Error::InUse { .. })));
    assert!(matches!(store.remove(&two.manifest, &HashSet::new()), Err(Error::SeveralNames { .. })));
    assert!(matches!(store.remove(reference("nope"), &in_use), Err(Error::NoSuchImage(_))));
    // A name that isn't the last may go at any time, and takes nothing with it.
    let removed = store.remove(reference("app:2"), &in_use).unwrap();
    assert_eq!((removed.untagged.len(), removed.images.len(), removed.blobs.len()), (1, 0, 0));
    assert!(matches!(store.remove(reference("app:1"), &in_use), Err(Error::InUse { .. })));

    let removed = store.remove(&one.manifest, &HashSet::from([two.manifest.clone()])).unwrap();
    let blobs: HashSet<Digest> = removed.blobs.iter().cloned().collect();
    assert_eq!(blobs, HashSet::from([one.manifest.clone(), one.config.clone(), one.layers[1].clone()]));
    assert!(removed.layers.contains(&one.diff_ids[1]) && !removed.layers.contains(&one.diff_ids[0]));
    assert!(store.prepare(&two.manifest).is_ok());

    // All of it is there after a restart as well.
    let root = folder.path().join("store");
    let before = store.list();
    drop(store);
    let store = Store::open(&root).unwrap();
    assert_eq!(store.list(), before);
    store.remove(reference("app:1"), &HashSet::new()).unwrap();
    for folder in ["content/sha256", "content/tmp", "layers/sha256", "layers/tmp"] {
        assert_eq!(count(&store, folder), 0, "{folder}");
    }
}

#[test]
fn leftovers_of_a_crash_go_and_a_torn_list_names_the_remedy() {
    let (folder, store) = store();
    let image = small();
    store.load_stream(&image.layout_tar(Some("motd:1"))[..], "motd").unwrap();
    let root = folder.path().join("store");
    drop(store);
    fs::write(root.join("content/tmp/7"), b"half a blob").unwrap();
    fs::create_dir_all(root.join("layers/tmp/8/fs/etc")).unwrap();
    fs::write(root.join("layers/tmp/8/fs/etc/x"), b"half a layer").unwrap();
    fs::write(root.join("images.json.tmp"), b"{\"vers").unwrap();
    let store = Store::open(&root).unwrap();
    assert_eq!((count(&store, "content/tmp"), count(&store, "layers/tmp")), (0, 0));
    assert_eq!(store.resolve(&reference("motd:1")), Some(image.manifest));
    drop(store);

    let whole = fs::read(root.join("images.json")).unwrap();
    fs::write(root.join("images.json"), &whole[..whole.len() / 2]).unwrap();
    let error = Store::open(&root).unwrap_err();
    assert!(
        matches!(error, Error::Index { .. }) && chain(&error).contains("move the file away"),
        "{}",
        chain(&error)
    );
    fs::write(root.join("images.json"), b"{\"version\":9}").unwrap();
    assert!(matches!(Store::open(&root), Err(Error::IndexVersion { version: 9, .. })));
    // The remedy works.
    fs::rename(root.join("images.json"), root.join("images.json.damaged")).unwrap();
    assert!(Store::open(&root).unwrap().list().is_empty());
}

#[test]
fn content_that_rotted_is_found_and_can_be_loaded_again() {
    let image = small();
    let tar = image.layout_tar(Some("motd:1"));
    for (victim, expected) in
        [(&image.manifest, "manifest"), (&image.config, "configuration"), (&image.layers[0], "layer")]
    {
        let (_folder, store) = store();
        store.load_stream(&tar[..], "motd").unwrap();
        let path = store.root().join("content/sha256").join(victim.hex());
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        let error = store.prepare(&image.manifest).unwrap_err();
        let text = chain(&error);
        assert!(
            text.contains("corrupt") && text.contains(expected) && text.contains("load or pull"),
            "{text}"
        );
        assert_eq!(count(&store, "layers/tmp"), 0);
        store.load_stream(&tar[..], "motd").unwrap();
        store.prepare(&image.manifest).unwrap();
    }
}

#[test]
fn a_forged_diff_id_is_refused() {
    let image = Image::with(
        &[Layer::new().file("a", b"a").tar()],
        gzip,
        |config| config["rootfs"]["diff_ids"] = json!([Digest::of(b"something else")]),
        |_| {},
    );
    let (_folder, store) = store();
    let loaded = store.load_stream(&image.layout_tar(None)[..], "forged").unwrap();
    let text = chain(&store.prepare(&loaded[0].digest).unwrap_err());
    assert!(text.contains("configuration says"), "{text}");
    assert_eq!((count(&store, "layers/sha256"), count(&store, "layers/tmp")), (0, 0));
}
