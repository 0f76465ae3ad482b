//! The builder without containers: RUN is a function of the test that changes the upper folder itself.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::sys::stat::{Mode, SFlag, mknod};
use rorqual_image::build::{BuildError, BuildOptions, Cancel, RunCommand, build, folder_files};
use rorqual_image::{Digest, Store};
use support::builder::{Fake, World};
use support::disk::Disk;
use support::{Image, Layer};

/// Everything that an unpacked layer says, times to the nanosecond.
fn facts(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(folder) = ahead.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let content = match stat.file_type() {
                kind if kind.is_dir() => {
                    ahead.push(path.clone());
                    String::new()
                }
                kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
                kind if kind.is_file() => Digest::of(&fs::read(&path).unwrap()).to_string(),
                _ => stat.rdev().to_string(),
            };
            let opaque = attribute(&path, c"trusted.overlay.opaque");
            let is_whiteout = stat.mode() & 0o170_000 == 0o020_000 && stat.rdev() == 0;
            let times = if is_whiteout { (0, 0) } else { (stat.mtime(), stat.mtime_nsec()) };
            let links = if stat.is_dir() { 0 } else { stat.nlink() };
            let said = (stat.mode(), stat.uid(), stat.gid(), links, times, content, opaque);
            found.insert(path.strip_prefix(root).unwrap().to_owned(), format!("{said:?}"));
        }
    }
    found
}

fn attribute(path: &Path, name: &std::ffi::CStr) -> bool {
    let output = std::process::Command::new("getfattr")
        .args(["-h", "--only-values", "-n", name.to_str().unwrap()])
        .arg(path)
        .output()
        .unwrap();
    output.status.success()
}

#[test]
fn a_layer_is_in_place_what_it_is_unpacked() {
    let world = World::new();
    let built = world.build_with(
        "FROM base:1\nRUN change\n",
        |_| {},
        |command| {
            let upper = &command.upper;
            fs::create_dir_all(upper.join("new/deep")).unwrap();
            fs::write(upper.join("new/deep/file"), vec![7; 3_000_000]).unwrap();
            fs::set_permissions(upper.join("new/deep/file"), fs::Permissions::from_mode(0o4751)).unwrap();
            std::os::unix::fs::chown(upper.join("new/deep"), Some(70_000), Some(3_000_000)).unwrap();
            fs::hard_link(upper.join("new/deep/file"), upper.join("new/hard")).unwrap();
            symlink("x".repeat(300), upper.join("new/long-link")).unwrap();
            fs::write(upper.join("new").join("n".repeat(200)), "long name").unwrap();
            mknod(&upper.join("lower"), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
            mknod(&upper.join("new/pipe"), SFlag::S_IFIFO, Mode::from_bits_truncate(0o640), 0).unwrap();
            std::os::unix::net::UnixListener::bind(upper.join("new/socket")).unwrap();
            fs::create_dir(upper.join("etc")).unwrap();
            let set = std::process::Command::new("setfattr")
                .args(["-n", "trusted.overlay.opaque", "-v", "y"])
                .arg(upper.join("etc"))
                .status();
            assert!(set.unwrap().success());
            let set = std::process::Command::new("setfattr")
                .args(["-n", "trusted.overlay.origin", "-v", "z"])
                .arg(upper.join("new"))
                .status();
            assert!(set.unwrap().success());
            0
        },
    );
    let built = built.unwrap();
    let in_place = facts(&world.top(&built));
    let (_other, unpacked) = world.unpacked(&built);
    assert_eq!(in_place, facts(&unpacked));
    assert!(in_place.len() > 8 && !in_place.contains_key(Path::new("new/socket")));
    assert!(!attribute(&world.top(&built).join("new"), c"trusted.overlay.origin"));
}

#[test]
fn copies_stay_inside_of_context_and_image() {
    let world = World::new();
    world.file("src/a", "a").file("src/sub/b", "b");
    symlink("/etc/passwd", world.context().join("host")).unwrap();
    symlink("/src/a", world.context().join("own")).unwrap();
    // A link of the context leads where it leads with the context as `/`.
    let refused = world.refused("FROM base:1\nCOPY host /x\n");
    assert!(refused.contains("Dockerfile:2") && refused.contains("`host` is not there"), "{refused}");
    for escape in ["../../../etc/passwd", "/../etc/passwd", "src/../../etc/passwd"] {
        assert!(
            world.refused(&format!("FROM base:1\nCOPY {escape} /x\n")).contains("is not there"),
            "{escape}"
        );
    }
    let built = world
        .build("FROM base:1\nCOPY own /link/here\nCOPY src /out/etc/\nCOPY src/a /out/new/x/\n")
        .unwrap();
    let prepared = world.store.prepare(&built.digest).unwrap();
    let find = |path: &str| prepared.layers.iter().map(|layer| layer.join(path)).find(|path| path.exists());
    assert_eq!(fs::read_to_string(find("real/here").unwrap()).unwrap(), "a");
    assert_eq!(fs::read_to_string(find("etc/sub/b").unwrap()).unwrap(), "b");
    assert_eq!(fs::read_to_string(find("new/x/a").unwrap()).unwrap(), "a");
    let owned = world.build("FROM base:1\nCOPY --chown=web --chmod=0640 src/a /owned/\n").unwrap();
    let stat = fs::metadata(world.top(&owned).join("owned/a")).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (33, 34, 0o640));
    let refused = world.refused("FROM base:1\nCOPY src/a /lower\nCOPY src /lower/file\n");
    assert!(
        refused.contains("Dockerfile:3") && refused.contains("it, or something above it, is a file"),
        "{refused}"
    );
}

#[test]
fn steps_are_used_again_until_they_are_pruned() {
    let world = World::new();
    world.file("a", "1");
    let text = "FROM base:1\nWORKDIR /w\nCOPY a .\nRUN x\nADD http://h/file.txt /url/\n";
    let work = |command: &RunCommand| {
        fs::write(command.upper.join("ran"), "x").unwrap();
        0
    };
    let first = world.build_with(text, |_| {}, work).unwrap();
    assert_eq!(world.cached(), 0);
    assert_eq!(fs::metadata(world.top(&first).join("url/file.txt")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(world.build_with(text, |_| {}, work).unwrap(), first);
    assert_eq!(world.cached(), 4);
    // Another store on the same folder knows them too, and keeps their layers when the image goes.
    let in_use = std::collections::HashSet::new();
    world.store.remove(&first.digest, &in_use).unwrap();
    assert_eq!(world.build_with(text, |_| {}, work).unwrap().config, first.config);
    assert_eq!(world.cached(), 4);
    let usage = world.store.build_cache_usage().unwrap();
    assert!(usage.steps >= 4 && usage.steps_bytes > 0, "{usage:?}");
    let old = world.store.prune_build_cache(Some(std::time::SystemTime::UNIX_EPOCH)).unwrap();
    assert_eq!(old.steps, 0, "nothing is that old");
    let pruned = world.store.prune_build_cache(None).unwrap();
    assert_eq!((pruned.steps, world.store.build_cache_usage().unwrap().steps), (usage.steps, 0));
    world.build_with(text, |_| {}, work).unwrap();
    assert_eq!(world.cached(), 0);
}

#[test]
fn what_makes_no_difference_is_not_in_the_key() {
    let world = World::new();
    world.file("a", "1").file("b", "1");
    let text = "FROM base:1\nARG V\nCOPY a /a\nRUN x\n";
    let build = |args: &[(&str, &str)]| {
        let args: BTreeMap<String, String> =
            args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        world
            .build_with(text, |options| options.args = args, |command| i32::from(command.env.is_empty()))
            .unwrap();
        world.cached()
    };
    assert_eq!(build(&[("V", "1")]), 0);
    assert_eq!(build(&[("V", "1"), ("HTTP_PROXY", "p")]), 2, "proxies");
    assert_eq!(build(&[("V", "2")]), 1, "COPY does not see the ARG, RUN does");
    world.file("b", "2");
    assert_eq!(build(&[("V", "2")]), 2, "a file that is not copied");
    world.file("a", "2");
    assert_eq!(build(&[("V", "2")]), 0, "one that is");
}

#[test]
fn stages_wait_for_each_other_and_a_failure_ends_them() {
    let world = World::new();
    let text = "FROM base:1 AS one\nRUN one\nFROM base:1 AS two\nRUN two\nFROM base:1\nCOPY --from=one /made /one\nCOPY --from=two /made /two\n";
    let make = |command: &RunCommand| {
        fs::write(command.upper.join("made"), command.args.last().unwrap()).unwrap();
        0
    };
    let built = world.build_with(text, |_| {}, make).unwrap();
    assert_eq!(fs::read_to_string(world.top(&built).join("two")).unwrap(), "two");
    let failed = world.build_with(
        text,
        |options| options.no_cache = true,
        move |command| {
            if command.args.last().is_some_and(|arg| arg == "two") { 5 } else { make(command) }
        },
    );
    let Err(BuildError::Command { place, code }) = failed else { panic!("{failed:?}") };
    assert_eq!((place.first, code), (4, 5));
    assert_eq!(support::count(&world.store, "layers/tmp"), 0, "folders of steps stay behind");
}

#[test]
fn a_mount_point_is_below_the_changes() {
    let world = World::new();
    world.file("src/a", "a");
    let text = "FROM base:1\nRUN --mount=type=bind,source=src,target=/not/there --mount=type=cache,target=/lower/cache x\n";
    let seen: Arc<Mutex<Vec<PathBuf>>> = Arc::default();
    let told = Arc::clone(&seen);
    let built = world.build_with(
        text,
        |_| {},
        move |command| {
            let has = |path: &str| command.lowers.iter().any(|lower| lower.join(path).exists());
            assert!(has("not/there") && has("lower/cache") && has("etc/hosts") && has("proc"));
            let access = fs::metadata(command.lowers[0].join("lower")).unwrap();
            assert_eq!(access.mode() & 0o7777, 0o750, "a folder of the image looks as it did");
            for mount in &command.mounts {
                if let rorqual_image::build::CommandMountKind::Bind { source, .. } = &mount.kind {
                    told.lock().unwrap().push(source.clone());
                }
            }
            assert_eq!(fs::read_to_string(told.lock().unwrap()[0].join("a")).unwrap(), "a");
            fs::write(told.lock().unwrap()[1].join("kept"), "").unwrap();
            0
        },
    );
    let config = world.store.config(&built.unwrap().digest).unwrap();
    assert_eq!(config.rootfs().diff_ids().len(), 1, "the command has changed nothing");
    let seen = seen.lock().unwrap();
    assert!(!seen[0].exists() && seen[1].join("kept").exists());
}

#[test]
fn a_full_disk_is_told_and_leaves_the_store_as_it_was() {
    let (world, disk) = (World::new(), Disk::new(4));
    let store = Store::open(disk.as_ref().join("store")).unwrap();
    let archive = Image::new(&[Layer::new().file("f", b"1").tar()]).layout_tar(Some("base:1"));
    store.load_stream(archive.as_slice(), "base").unwrap();
    let kept = || (support::count(&store, "content/sha256"), support::count(&store, "layers/sha256"));
    let before = kept();
    fs::write(world.context().join("large"), vec![1; 8 << 20]).unwrap();
    let host = Fake { store: store.clone(), work: Box::new(|_| 0) };
    let options = BuildOptions {
        file_name: "Dockerfile".into(),
        file: "FROM base:1\nCOPY large /\n".into(),
        ..BuildOptions::default()
    };
    let report: rorqual_image::build::Report = Arc::new(|_| {});
    let context = folder_files(&world.context()).unwrap();
    let attempt = || build(&store, &host, &context, &options, &report, &Cancel::default());
    let text = support::chain(&attempt().unwrap_err());
    assert!(text.contains("Dockerfile:2") && text.contains("no space left"), "{text}");
    store.sweep().unwrap();
    // The base image was unpacked on the way, which is no loss.
    assert_eq!((before.0, before.1 + 1), kept());
    assert_eq!(support::count(&store, "layers/tmp"), 0);
    disk.resize(64);
    let prepared = store.prepare(&attempt().unwrap().digest).unwrap();
    assert_eq!(fs::metadata(prepared.layers[0].join("large")).unwrap().len(), 8 << 20);
}

#[test]
fn a_cancelled_build_stops() {
    let world = World::new();
    let cancel = Cancel::default();
    cancel.cancel();
    let host = Fake { store: world.store.clone(), work: Box::new(|_| panic!("nothing is run")) };
    let options = BuildOptions {
        file_name: "Dockerfile".into(),
        file: "FROM base:1\nRUN x\n".into(),
        ..BuildOptions::default()
    };
    let report: rorqual_image::build::Report = Arc::new(|_| {});
    let context = folder_files(&world.context()).unwrap();
    let outcome = build(&world.store, &host, &context, &options, &report, &cancel);
    assert!(matches!(outcome, Err(BuildError::Cancelled)), "{outcome:?}");
}
