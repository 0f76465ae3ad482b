//! Secrets, reproducibility, the cache, and what stays behind.

use std::fs;
use std::process::Command;

use rorqual_tests::command;

use super::world::{BUILD, World};

/// A string that no other file holds.
const SECRET: &str = "4c1f-this-must-never-be-in-a-layer";

#[test]
fn secrets_are_seen_by_their_command_and_are_in_no_layer() {
    let world = World::new("blds");
    let context = world.context(
        "context",
        &[(
            "Dockerfile",
            "FROM busybox\nRUN --mount=type=secret,id=tok,mode=0440,gid=7 \\\n  grep -q never /run/secrets/tok && stat -c '%a %g' /run/secrets/tok > /seen && mount | grep /run/secrets >> /mounts\n\
             RUN --mount=type=secret,id=tok,env=TOK --mount=type=secret,id=tok,target=/etc/tok test -n \"$TOK\" && test -s /etc/tok\n\
             RUN test ! -e /etc/tok && test ! -e /run/secrets/tok && test -z \"$TOK\"\n\
             RUN --mount=type=secret,id=absent test ! -e /run/secrets/absent\n",
        )],
    );
    let secret = world.folder.path().join("secret");
    fs::write(&secret, SECRET).unwrap();
    let option = format!("id=tok,src={}", secret.display());
    let args = ["--secret", option.as_str(), "-t", "secret:1"];
    let files = world.files(&args, &context);
    assert_eq!(fs::read_to_string(files.join("seen")).unwrap(), "440 7\n");
    assert!(!files.join("run/secrets").exists() && !files.join("etc/tok").exists());
    // Neither in a layer, nor anywhere else in the node's data.
    let mut grep = Command::new("grep");
    let found = command::run(grep.args(["-rl", "--text", SECRET]).arg(world.node().data_dir()), BUILD);
    assert_eq!(found.stdout, "", "the secret is on the disk");
    // Layers are compressed: looked at from inside as well.
    let (_, manifest) = world.documents(&args, &context);
    assert!(manifest["layers"].as_array().unwrap().len() > 2);
    let unpacked = world.folder.path().join("ours");
    let found = command::run(Command::new("grep").args(["-rl", "--text", SECRET]).arg(&unpacked), BUILD);
    assert_eq!(found.stdout, "");
    // Another secret makes no difference to the cache, and a missing one that is needed is named.
    fs::write(&secret, format!("{SECRET}-changed")).unwrap();
    let again = world.build(&args, &context);
    assert_eq!(again.stderr.matches("CACHED").count(), 4, "{}", again.stderr);
    let needy = world.context(
        "needy",
        &[("Dockerfile", "FROM busybox\nRUN --mount=type=secret,id=tok,required=true true\n")],
    );
    let refused = world.build(&[], &needy).fails(1, &[]);
    assert!(refused.contains("Dockerfile:2") && refused.contains("--secret id=tok,src=FILE"), "{refused}");
    world.finish();
}

#[test]
fn a_build_done_anew_gives_the_same_digest() {
    let world = World::new("bldr");
    let context = world.context(
        "context",
        &[
            (
                "Dockerfile",
                "FROM busybox AS one\nRUN mkdir /x && for i in 1 2 3 4 5 6 7 8 9; do echo $i > /x/$i; done && ln /x/1 /x/hard && rm /etc/group\n\
                 FROM busybox\nWORKDIR /made\nCOPY --from=one /x /x\nCOPY . /all\nRUN touch -d '2001-01-01 00:00:00' /old && touch /new\nLABEL a=b\n",
            ),
            ("file", "content"),
        ],
    );
    let build = |extra: &[&str]| {
        let args = [&["-q", "--build-arg", "SOURCE_DATE_EPOCH=1700000000"][..], extra].concat();
        world.build(&args, &context).ok()
    };
    let first = build(&["--no-cache"]);
    assert_eq!(build(&["--no-cache"]), first, "two builds differ");
    assert_eq!(build(&[]), first, "a cached build differs");
    let files = world.files(&["--build-arg", "SOURCE_DATE_EPOCH=1700000000"], &context);
    let time =
        |name: &str| std::os::unix::fs::MetadataExt::mtime(&fs::symlink_metadata(files.join(name)).unwrap());
    assert_eq!((time("new"), time("made"), time("old")), (1_700_000_000, 1_700_000_000, 978_307_200));
    // Without the epoch an unchanged build is the same one, too.
    let plain = world.build(&["-q"], &context).ok();
    assert_eq!(world.build(&["-q"], &context).ok(), plain);
    world.finish();
}

#[test]
fn only_what_changed_is_done_again() {
    let world = World::new("bldk");
    let dockerfile = "FROM busybox\nCOPY deps /deps\nRUN cat /deps > /installed\nCOPY . /app\nRUN --mount=type=cache,target=/c date +%s%N >> /c/runs; cp /c/runs /runs\n";
    let context = world.context("context", &[("Dockerfile", dockerfile), ("deps", "1"), ("main", "1")]);
    let cached = |args: &[&str]| {
        let output = world.build(args, &context);
        output.clone().ok();
        output.stderr.matches("CACHED").count()
    };
    assert_eq!(cached(&[]), 0);
    assert_eq!(cached(&[]), 4);
    fs::write(context.join("main"), "2").unwrap();
    assert_eq!(cached(&[]), 2, "what stands before the change is used again");
    // The same bytes at another time are no change.
    fs::write(context.join("deps"), "1").unwrap();
    assert_eq!(cached(&[]), 4);
    assert_eq!(cached(&["--no-cache"]), 0);
    // The cache mount has lived through all of it: three runs so far.
    let runs = fs::read_to_string(world.files(&[], &context).join("runs")).unwrap();
    assert_eq!(runs.lines().count(), 3, "{runs}");
    // What is kept for that is told, and goes when it is asked to.
    let kept = || {
        let rows = world.node().rctl(&["system", "df", "--format", "json"]).json();
        rows.iter().find(|row| row["Type"] == "Build Cache").unwrap()["TotalCount"].as_u64().unwrap()
    };
    assert!(kept() > 4);
    world.node().rctl(&["system", "prune", "-f", "--filter", "until=10000h"]).ok();
    assert_eq!(cached(&[]), 4);
    world.node().rctl(&["system", "prune", "-f"]).ok();
    assert_eq!((kept(), cached(&[])), (0, 0));
    // Nothing of the containers stays.
    assert!(world.node().container_processes().is_empty());
    let left: Vec<_> = fs::read_dir(world.node().data_dir().join("containers")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    world.finish();
}
