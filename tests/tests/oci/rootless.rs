//! Podman by an ordinary user: a user namespace, no rights over control groups.

use rorqual_tests::{Output, images};

use crate::world::{IMAGE, World};

#[track_caller]
fn podman(world: &World, words: &[&str]) -> Output {
    world.run_as_user(&[&["podman", "--runtime", world.runtime()], words].concat())
}

#[test]
fn an_ordinary_user_runs_containers() {
    let world = World::new();
    let archive = world.archive(&images::archive("busybox"));
    podman(&world, &["load", "--quiet", "--input", &archive]).ok();
    let run = |options: &[&str], command: &[&str]| {
        podman(&world, &[&["run", "--rm"], options, &[IMAGE], command].concat())
    };
    let offline = ["--network", "none"];
    let map = run(&offline, &["cat", "/proc/self/uid_map"]).ok();
    let words: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(words, ["0", "4242", "1", "1", "300000", "65536"]);
    assert_eq!(run(&offline, &["sh", "-c", "exit 7"]).code, 7);
    assert_eq!(run(&["--network", "none", "--user", "33"], &["id", "-u"]).ok(), "33\n");
    assert_eq!(run(&["--network", "none", "--userns", "keep-id"], &["id", "-u"]).ok(), "4242\n");
    assert_eq!(run(&["--network", "none", "--tty"], &["tty"]).ok(), "/dev/pts/0\r\n");
    run(&offline, &["no-such-command"]).fails(127, &["no-such-command"]);
    // Its own network, through slirp4netns.
    let told = run(&[], &["ip", "address", "show", "tap0"]).ok();
    assert!(told.contains("10.0.2.100/24"), "{told}");
}

#[test]
fn an_ordinary_user_looks_after_containers() {
    let world = World::new();
    let archive = world.archive(&images::archive("busybox"));
    podman(&world, &["load", "--quiet", "--input", &archive]).ok();
    let start = ["run", "--detach", "--name", "box", "--network", "host", IMAGE, "sleep", "1000"];
    podman(&world, &start).ok();
    assert_eq!(podman(&world, &["exec", "box", "id", "-u"]).ok(), "0\n");
    assert_eq!(podman(&world, &["exec", "--user", "33", "box", "sh", "-c", "id -u; exit 3"]).stdout, "33\n");
    assert_eq!(podman(&world, &["exec", "--tty", "box", "tty"]).ok(), "/dev/pts/0\r\n");
    podman(&world, &["stop", "--time", "0", "box"]).ok();
    assert_eq!(podman(&world, &["wait", "box"]).ok(), "137\n");
    podman(&world, &["start", "box"]).ok();
    podman(&world, &["kill", "box"]).ok();
    podman(&world, &["rm", "--force", "box"]).ok();
    assert_eq!(podman(&world, &["ps", "--all", "--quiet"]).ok(), "");
}
