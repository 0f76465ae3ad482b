//! A machine that is to be no node any more keeps nothing of Rorqual but the node's data: `rorquald --take-down`, as
//! `deploy/install --uninstall` calls it. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rorqual_tests::host::Snapshot;
use rorqual_tests::view::Container;
use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, Output, bin_dir, command, http, images, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// Ends with 7 where it ran before.
const KEPT: &str = "test -e /kept && exit 7; touch /kept";

/// `rorquald --take-down` with the settings of the node's daemon, in its network.
fn take_down(lab: &Lab, node: &Node) -> Output {
    let runtime = std::env::var_os("RORQUAL_RUNTIME").filter(|path| !path.is_empty());
    let mut daemon: Command = node.exec_command(bin_dir().join("rorquald").to_str().unwrap());
    daemon.args(["--take-down", "--config", "/dev/null", "--hostname", &node.hostname(), "--cgroup-parent"]);
    daemon.arg(cgroup_parent(lab, node)).arg("--data-dir").arg(node.data_dir());
    daemon.arg("--run-dir").arg(node.run_dir());
    daemon.arg("--runtime-binary").arg(runtime.unwrap_or_else(|| bin_dir().join("rorqual-runtime").into()));
    command::run(&mut daemon, SOON)
}

fn cgroup_parent(lab: &Lab, node: &Node) -> String {
    format!("rorqual-{}-n{}", lab.name(), node.number)
}

/// What of the fabric is in the node's network.
fn network_of(node: &Node) -> BTreeSet<String> {
    let ours = |program: &str, words: &[&str], is_ours: &dyn Fn(&str) -> bool| {
        let shown = node.exec(program, words).ok();
        let lines = shown.lines().filter(|line| is_ours(line));
        lines.map(|line| format!("{program} {}: {line}", words.join(" "))).collect::<Vec<_>>()
    };
    let any = |_: &str| true;
    let fabrics = |line: &str| ["169.254.", "fd"].iter().any(|start| line.contains(&format!(" {start}")));
    let mut found = ours("nft", &["list", "tables"], &any);
    found.extend(ours("ip", &["-o", "link"], &|line| line.contains(": rq")));
    found.extend(ours("ip", &["-o", "addr", "show", "dev", "lo"], &fabrics));
    for family in ["-4", "-6"] {
        found.extend(ours("ip", &[family, "rule"], &|line| line.starts_with("11")));
        found.extend(ours("ip", &[family, "route", "show", "table", "all", "proto", "113"], &any));
        found.extend(ours("ip", &[family, "neigh", "show", "nud", "permanent"], &|line| {
            !line.contains("dev lo")
        }));
    }
    found.into_iter().collect()
}

/// What else of the node is on the machine, beside its data.
fn places_of(lab: &Lab, node: &Node) -> Vec<String> {
    let (run_dir, parent) = (node.run_dir(), cgroup_parent(lab, node));
    let places = [run_dir.to_str().unwrap().to_owned(), node.data_dir().to_str().unwrap().to_owned(), parent];
    let all = Snapshot::take().added_since(&Snapshot::default());
    let is_its = |line: &String| {
        ["mount ", "cgroup "].iter().any(|kind| line.starts_with(kind))
            && places.iter().any(|place| line.contains(place))
    };
    let mut found: Vec<String> = all.into_iter().filter(is_its).collect();
    if run_dir.exists() {
        found.push(format!("{} with {:?}", run_dir.display(), files(&run_dir)));
    }
    found
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_node_that_is_taken_down_leaves_its_data_alone() {
    let lab = Lab::routed("down", 3);
    let (first, gone) = (lab.node(1), lab.node(3));
    first.load(&images::archive("busybox"));
    first.rctl(&["cluster", "update", "--encrypt", "on"]).ok();
    let web = ["service", "create", "--name", "web", "--replicas", "3", "--stop-grace-period", "100ms"];
    let httpd = [
        "--replicas-max-per-node",
        "1",
        "--publish",
        "8080:80",
        images::BUSYBOX,
        "httpd",
        "-f",
        "-p",
        "80",
        "-h",
        "/etc",
    ];
    first.rctl(&[&web[..], &httpd].concat()).ok();
    gone.rctl(&["run", "--name", "plain", "--publish", "8081:80", images::BUSYBOX, "sh", "-c", KEPT]).ok();
    wait_until("the tunnel, and what encrypts, are there", SOON, || {
        let found = network_of(gone);
        let link = |kind: &str| found.iter().any(|line| line.contains(&format!(": {kind}")));
        hold(["rqc", "rqx", "rqw"].into_iter().all(link), || format!("{found:?}"))
    });

    // While the daemon or containers run, nothing happens.
    take_down(&lab, gone).fails(1, &["in use", "another rorquald"]);
    lab.stop(3);
    // Of the rest, some changes by itself after a daemon's end: links that it had prepared, the state of others.
    let stands = || {
        let stays = |line: &String| line.starts_with("nft ") || line.starts_with("ip -4 rule");
        (network_of(gone).into_iter().filter(stays).collect::<Vec<_>>(), gone.container_processes())
    };
    let before = stands();
    assert!(before.0.len() > 1 && !before.1.is_empty(), "{before:?}");
    take_down(&lab, gone).fails(1, &["containers run", "stop them first"]);
    assert_eq!(stands(), before, "it was touched all the same");

    lab.start(3);
    lab.wait_ready(3);
    first.rctl(&["service", "rm", "web"]).ok();
    wait_until("no container runs", SOON, || {
        let left = gone.container_processes();
        hold(left.is_empty() && gone.monitors().is_empty(), || format!("{left:?}"))
    });
    // As after a daemon that had no time to tidy up.
    lab.kill(3);
    wait_until("the kernel has let go of the daemon, and it is taken down", SOON, || {
        let output = take_down(&lab, gone);
        hold(output.code == 0, || output.tell())
    });
    assert_eq!(network_of(gone), BTreeSet::new());
    assert_eq!(places_of(&lab, gone), Vec::<String>::new());

    // It goes on from its data, if it is to be a node after all.
    lab.start(3);
    lab.wait_ready(3);
    gone.rctl(&["start", "plain"]).ok();
    wait_until("it runs on the layer that it had", SOON, || {
        let containers = gone.containers()?;
        let again = |container: &Container| container.name == "plain" && container.exit_code == Some(7);
        hold(containers.iter().any(again), || format!("{containers:?}"))
    });
    first.rctl(&[&web[..], &httpd].concat()).ok();
    wait_until("it serves again", SOON, || {
        http::get(gone.port(8080), "/hostname").map_err(|error| error.to_string())
    });
    lab.finish();
}

#[test]
fn a_damaged_store_keeps_nobody_from_taking_a_node_down() {
    let lab = Lab::routed("torn", 2);
    let (first, gone) = (lab.node(1), lab.node(2));
    first.load(&images::archive("busybox"));
    first.rctl(&["cluster", "update", "--encrypt", "on"]).ok();
    gone.rctl(&["run", "--name", "plain", "--publish", "8081:80", images::BUSYBOX, "true"]).ok();
    wait_until("what encrypts is there", SOON, || {
        let found = network_of(gone);
        hold(found.iter().any(|line| line.contains(": rqw")), || format!("{found:?}"))
    });
    lab.kill(2);
    let store = gone.data_dir().join("node/db");
    let torn = vec![0xa5; fs::metadata(&store).unwrap().len().try_into().unwrap()];
    fs::write(&store, torn).unwrap();
    wait_until("the kernel has let go of the daemon, and it is taken down", SOON, || {
        let output = take_down(&lab, gone);
        hold(output.code == 0 && output.stderr.contains("is damaged"), || output.tell())
    });
    assert_eq!(network_of(gone), BTreeSet::new());
    assert_eq!(places_of(&lab, gone), Vec::<String>::new());
    lab.finish();
}
