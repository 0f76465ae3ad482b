//! What networks, ports, names and weights can't be is refused at once, with the reason on the object; nothing hangs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use rorqual_tests::view::Task;
use rorqual_tests::{Lab, Node, Output, images};

/// `rctl service create`: what can't come to run says why, and the command gives up by itself.
#[track_caller]
fn create(node: &Node, name: &str, args: &[&str]) -> Output {
    let options = ["--timeout", "20s", "--stop-grace-period", "100ms"];
    node.rctl(&[&["service", "create", "--name", name], &options[..], args].concat())
}

#[track_caller]
fn remove(node: &Node, service: &str) {
    node.rctl(&["service", "rm", service]).ok();
}

#[test]
fn wrong_networks_and_ports_are_refused_with_the_reason() {
    let lab = Lab::cluster("badnet", 1);
    let node = lab.node(1);
    node.load(&images::archive("busybox"));
    lacking_protocols(node);
    wrong_networks(node);
    let left = node.rctl(&["service", "ls", "--quiet"]).ok();
    assert!(left.trim().is_empty(), "what was refused is there all the same: {left}");
    lab.finish();
}

/// A port of SCTP on a kernel that has none: the command fails at once, and the service and its task say why.
fn lacking_protocols(node: &Node) {
    if fs::read_to_string("/proc/net/protocols").unwrap().lines().any(|line| line.starts_with("SCTP ")) {
        create(node, "x", &["--publish", "9000:9000/sctp", images::BUSYBOX, "sleep", "1000"]).ok();
    } else {
        let lacking =
            ["9000/sctp", "the kernel of node n1 has no sctp", "no node serves it", "modprobe sctp"];
        create(node, "x", &["--publish", "9000:9000/sctp", images::BUSYBOX, "sleep", "1000"])
            .fails(1, &lacking);
        let inspect = node.rctl(&["service", "inspect", "x"]).ok();
        assert!(inspect.contains("has no sctp"), "{inspect}");
        let tasks = node.tasks("x").unwrap();
        assert!(tasks.iter().any(|task| task.message.contains("kernel has no sctp")), "{tasks:?}");
        node.rctl(&["run", "--rm", "--publish", "9001:9001/sctp", images::BUSYBOX, "true"])
            .fails(125, &["9001/sctp", "kernel has no sctp"]);
    }
    remove(node, "x");
}

/// What networks, names and weights can't be.
fn wrong_networks(node: &Node) {
    let network = |words: &[&str]| node.rctl(&[&["network", "create"], words].concat());
    network(&["--subnet", "10.20.0.0/33", "net"]).fails(2, &["10.20.0.0/33"]);
    network(&["--subnet", "10.20.0.1/24", "net"]).fails(2, &["10.20.0.1/24", "10.20.0.0/24"]);
    network(&["--subnet", "10.213.64.0/24", "net"]).fails(1, &["10.213.64.0/24", "overlaps"]);
    network(&["--subnet", "10.20.0.0/30", "tiny"]).ok();
    network(&["--subnet", "10.20.0.0/16", "net"]).fails(1, &["10.20.0.0/16", "tiny"]);
    let sleep = [images::BUSYBOX, "sleep", "1000"];
    create(node, "x", &[&["--network", "ghost"], &sleep[..]].concat()).fails(1, &["ghost", "does not exist"]);
    // Two addresses, so the third replica has to wait, and says for what.
    let output = create(node, "x", &[&["--network", "tiny", "--replicas", "3"], &sleep[..]].concat());
    output.fails(1, &["no free address in network `tiny`"]);
    let waiting = |task: &Task| task.message.contains("network `tiny`");
    assert_eq!(node.tasks("x").unwrap().iter().filter(|task| waiting(task)).count(), 1);
    remove(node, "x");
    let peers = ["--network", "name=default,alias=a,publish-not-ready=a"];
    create(node, "x", &[&peers[..], &sleep[..]].concat()).fails(2, &["`a` can't stand for"]);
    for weight in ["0", "1001", "heavy"] {
        let label = format!("rorqual.weight={weight}");
        let output = node.rctl(&["node", "update", "--label-add", &label, "n1"]);
        assert!([1, 2].contains(&output.code) && output.stderr.contains("1 to 1000"), "{}", output.tell());
    }
    create(node, "x", &["--no-healthcheck", "--on-unhealthy", "keep", images::BUSYBOX])
        .fails(2, &["--on-unhealthy", "nothing is asked"]);
}
