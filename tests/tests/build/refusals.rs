//! What can't be built: each with its file, line and text, and the store as it was before.

use std::fs;

use super::world::World;

#[test]
fn bad_input_is_refused_where_it_stands() {
    let world = World::new("bldx");
    let cases: &[(&str, &[&str])] = &[
        (
            "FROM busybox\nRUNN x\n",
            &["Dockerfile:2", "unknown instruction `RUNN`", "did you mean RUN?", "2 | RUNN x"],
        ),
        (
            "FROM busybox AS a\nCOPY --from=b x y\nFROM a AS b\n",
            &["Dockerfile:2", "the stage `b` stands further below (line 3)"],
        ),
        ("FROM busybox AS a\nCOPY --from=a x y\n", &["Dockerfile:2", "needs itself"]),
        (
            "FROM busybox\nCOPY no/such /x\n",
            &["Dockerfile:2", "`no/such` is not there", "2 | COPY no/such /x"],
        ),
        ("FROM busybox\nCOPY ../../etc/passwd /x\n", &["Dockerfile:2", "does not lead out of the context"]),
        ("FROM busybox\nCOPY ignored /x\n", &["Dockerfile:2", "`ignored` is not there"]),
        ("FROM busybox\nSHELL [\"a\", b]\n", &["Dockerfile:2", "JSON array"]),
        ("FROM busybox\nCOPY a b c\n", &["Dockerfile:2", "has to end in `/`"]),
        ("FROM busybox\nRUN exit 3\n", &["Dockerfile:2", "exit code 3", "2 | RUN exit 3"]),
        ("FROM busybox\nRUN [\"/no/such\"]\n", &["Dockerfile:2", "exit code 127"]),
        (
            "FROM busybox\nRUN --mount=type=disk,target=/x true\n",
            &["Dockerfile:2", "can't be of type `disk`"],
        ),
        ("FROM busybox\nCOPY --chown=nosuch a /x\n", &["Dockerfile:2", "no user `nosuch`"]),
        ("FROM busybox\nADD --checksum=sha256:00 http://127.0.0.1:1/x /x\n", &["Dockerfile:2", "--checksum"]),
        (
            "FROM --platform=linux/s390x busybox\nCOPY a /\nRUN x\n",
            &["Dockerfile:3", "this stage is for linux/s390x", "3 | RUN x"],
        ),
        ("FROM Not/A/Name\n", &["Dockerfile:1", "is not the name of an image"]),
        ("FROM busybox\nADD https://example.org/x.git?ref=main /x\n", &["Dockerfile:2", "has no `?`"]),
        ("FROM busybox\nEXPOSE http\n", &["Dockerfile:2", "`http` is not a port"]),
        ("FROM busybox\nSTOPSIGNAL NOW\n", &["Dockerfile:2", "`NOW` is not a signal"]),
        ("RUN x\n", &["Dockerfile:1", "only ARG may stand"]),
        ("", &["Dockerfile", "has no FROM"]),
    ];
    for (text, parts) in cases {
        let context = world.context(
            "context",
            &[("Dockerfile", text), ("a", "1"), ("b", "2"), ("ignored", ""), (".dockerignore", "ignored\n")],
        );
        let refused = world.build(&[], &context).fails(1, &[]);
        for part in *parts {
            assert!(refused.contains(part), "{text:?}: {part:?} in {refused}");
        }
    }
    let context = world.context("options", &[("Dockerfile", "FROM busybox AS one\n")]);
    for (args, part) in [
        (&["--target", "two"][..], "there is no stage `two`: there are one"),
        (&["--platform", "linux/s390x/x/y"], "`linux/s390x/x/y` is not a platform"),
        (&["-t", "Bad Name"], "--tag"),
        (&["--network", "bridge"], "--network"),
    ] {
        let refused = world.build(args, &context).fails(1, &[]);
        assert!(refused.contains(part), "{args:?}: {refused}");
    }
    // What failed has left nothing that counts.
    let images = world.node().rctl(&["image", "ls", "-q"]).ok();
    assert_eq!(images.lines().count(), 1, "{images}");
    let scratch = world.node().data_dir().join("images/layers/tmp");
    assert_eq!(fs::read_dir(scratch).unwrap().count(), 0, "folders of steps that failed");
    world.finish();
}

#[test]
fn a_build_ends_with_its_client() {
    let world = World::new("blde");
    let context = world.context("context", &[("Dockerfile", "FROM busybox\nRUN echo begun && sleep 1000\n")]);
    let mut command = world.node().rctl_command();
    command.args(["build", "-q"]).arg(&context);
    let mut child = command.spawn().unwrap();
    rorqual_tests::wait_until("the command runs", super::world::BUILD, || {
        if world.node().container_processes().is_empty() { Err("no process".to_owned()) } else { Ok(()) }
    });
    child.kill().unwrap();
    child.wait().unwrap();
    rorqual_tests::wait_until("the command is gone", super::world::BUILD, || {
        let left = world.node().container_processes();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    world.finish();
}
