//! Builds for a platform whose programs can't run here.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;

use rorqual_image::build::{BuildError, BuildOptions, Built};
use rorqual_image::{Digest, Error, Platform, SaveFormat, Saved};
use serde_json::json;
use support::builder::World;
use support::{Image, Layer, archive, descriptor, gzip, layout, put};

/// Nobody has one.
const VAX: &str = "linux/vax";

/// A world with `multi:1`, an index for this machine and for a VAX.
fn world() -> World {
    let world = World::new();
    let host = Platform::host().architecture;
    let image = |architecture: &str| {
        let layer = Layer::new().file("arch", architecture.as_bytes()).dir("work/", 0o750).tar();
        let architecture = architecture.to_owned();
        Image::with(&[layer], gzip, move |config| config["architecture"] = json!(architecture), |_| {})
    };
    let (mine, other) = (image(&host), image("vax"));
    let mut blobs = mine.blobs.clone();
    blobs.extend(other.blobs.clone());
    let entries: Vec<_> = [(&mine, host.as_str()), (&other, "vax")]
        .into_iter()
        .map(|(image, architecture)| {
            let mut entry = descriptor(support::OCI_MANIFEST, &image.manifest, &image.blobs);
            entry["platform"] = json!({ "os": "linux", "architecture": architecture });
            entry
        })
        .collect();
    let index = json!({ "schemaVersion": 2, "mediaType": support::OCI_INDEX, "manifests": entries });
    let index = put(&mut blobs, serde_json::to_vec(&index).unwrap());
    let mut top = descriptor(support::OCI_INDEX, &index, &blobs);
    top["annotations"] = json!({ "io.containerd.image.name": "docker.io/library/multi:1" });
    world.store.load_stream(&archive(&layout(&blobs, json!([top])))[..], "multi.tar").unwrap();
    world.file("f", "file");
    world
}

fn build(world: &World, text: &str) -> Result<Built, BuildError> {
    let vax = |options: &mut BuildOptions| {
        options.platform = Some(VAX.to_owned());
        options.tags = vec!["app:vax".parse().unwrap()];
    };
    world.build_with(text, vax, |command| {
        let name = command.args.last().unwrap().split(' ').next_back().unwrap();
        let told: Vec<&String> = command.env.iter().filter(|entry| entry.contains("PLATFORM=")).collect();
        fs::write(command.upper.join("made"), format!("{name} {told:?}")).unwrap();
        0
    })
}

/// What is at a path in the image, whatever it is for.
fn text(world: &World, digest: &Digest, path: &str) -> Option<String> {
    let prepared = world.store.prepare_any(digest).unwrap();
    prepared.layers.iter().find_map(|layer| fs::read_to_string(layer.join(path)).ok())
}

#[test]
fn what_needs_no_command_is_built_for_another_platform() {
    let world = world();
    let built = build(
        &world,
        "FROM --platform=$BUILDPLATFORM multi:1 AS tool\nARG TARGETPLATFORM\nARG BUILDPLATFORM\nRUN make it\n\
         FROM multi:1\nWORKDIR /work/sub\nCOPY f .\nCOPY --from=tool /made /arch /tool/\nCOPY --from=multi:1 /arch /theirs\nCMD [\"x\"]\n",
    )
    .unwrap();
    let own = Platform::host();
    assert_eq!(text(&world, &built.digest, "arch").unwrap(), "vax");
    assert_eq!(text(&world, &built.digest, "theirs").unwrap(), "vax");
    assert_eq!(text(&world, &built.digest, "tool/arch").unwrap(), own.architecture);
    assert_eq!(
        text(&world, &built.digest, "tool/made").unwrap(),
        format!("it [\"BUILDPLATFORM={own}\", \"TARGETPLATFORM={VAX}\"]")
    );
    let config = world.store.config_json(&built.digest).unwrap();
    assert_eq!((&config["architecture"], &config["os"]), (&json!("vax"), &json!("linux")));
    // It is an image like others, but for running it.
    assert_eq!(world.store.resolve(&"app:vax".parse().unwrap()), Some(built.digest.clone()));
    assert!(matches!(world.store.prepare(&built.digest), Err(Error::Platform { .. })));
    world.store.sweep().unwrap();
    world.store.usage().unwrap();
    let mut saved = Vec::new();
    let one = Saved { digest: built.digest.clone(), names: Vec::new() };
    world.store.save(&[one], SaveFormat::Oci, &mut saved).unwrap();
    // Again it is the same, without doing anything.
    let scratch = build(&world, "FROM scratch\nCOPY f /\n").unwrap();
    assert_eq!(world.store.config_json(&scratch.digest).unwrap()["architecture"], "vax");
    assert_eq!(build(&world, "FROM scratch\nCOPY f /\n").unwrap(), scratch);
}

#[test]
fn a_command_for_another_platform_is_refused_before_anything_is_done() {
    let world = world();
    for (text, line) in [
        ("FROM multi:1\nCOPY f /\nRUN x\n", 3),
        ("FROM multi:1 AS a\nCOPY f /\nFROM a\nRUN x\n", 4),
        ("FROM scratch AS a\nFROM --platform=$TARGETPLATFORM a\nRUN x\n", 3),
    ] {
        let refused = support::chain(&build(&world, text).unwrap_err());
        let expected = format!("Dockerfile:{line}: this stage is for {VAX}");
        assert!(refused.contains(&expected) && refused.contains("$BUILDPLATFORM"), "{refused}");
        assert!(world.events.lock().unwrap().is_empty(), "something was done: {refused}");
    }
    // A stage that is not needed does no harm.
    let unused = "FROM multi:1 AS unused\nRUN x\nFROM multi:1\nCOPY f /\n";
    build(&world, unused).unwrap();
    let none = support::chain(&build(&world, "FROM --platform=linux/pdp multi:1\nCOPY f /\n").unwrap_err());
    assert!(none.contains("Dockerfile:1") && none.contains("linux/pdp"), "{none}");
    let single = support::chain(&build(&world, "FROM base:1\nCOPY f /\n").unwrap_err());
    assert!(single.contains("Dockerfile:1"), "{single}");
    let odd = support::chain(&build(&world, "FROM --platform=a/b/c/d multi:1\n").unwrap_err());
    assert!(odd.contains("`a/b/c/d` is not a platform"), "{odd}");
}
