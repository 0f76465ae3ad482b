//! Plain containers in networks of the cluster: reached by address and by name from all nodes, and gone with the
//! container; the same address after restarts of the daemon and of the node.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, images, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// Answers with its own name on port 80.
const SERVER: &str = "mkdir -p /w && hostname >/w/index.html && exec httpd -f -p 80 -h /w";

/// Says for each of its arguments whether it answers on port 80, and with what.
const PROBE: &str =
    r#"for to in "$@"; do echo "$to=$(timeout 5 wget -q -O - "http://$to/" 2>/dev/null)"; done"#;

/// A plain container that answers with its host name.
fn serve(node: &Node, name: &str, arguments: &[&str]) {
    let words = [&["run", "--detach", "--name", name, "--hostname", name], arguments].concat();
    node.rctl(&[&words[..], &[images::BUSYBOX, "sh", "-c", SERVER]].concat()).ok();
}

/// What a container of a node gets from each of these.
fn probe(node: &Node, container: &str, targets: &[&str]) -> BTreeMap<String, String> {
    let said = node.rctl(&[&["exec", container, "sh", "-c", PROBE, "probe"], targets].concat()).ok();
    let pairs = said.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(to, heard)| (to.to_owned(), heard.to_owned())).collect()
}

/// Until a container gets exactly these from who is asked; empty: no answer.
#[track_caller]
fn hears(node: &Node, container: &str, expected: &[(&str, &str)]) {
    let asked: Vec<&str> = expected.iter().map(|(to, _)| *to).collect();
    wait_until(&format!("{container} hears {expected:?}"), SOON, || {
        let heard = probe(node, container, &asked);
        hold(expected.iter().all(|(to, name)| heard[*to] == *name), || format!("{heard:?}"))
    });
}

/// Name, address and node of those in a network.
fn members(node: &Node, network: &str) -> Vec<(String, String, String)> {
    let seen = node.rctl(&["network", "inspect", "--format", "json", network]).json();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let members = seen[0]["Containers"].as_object().unwrap().values();
    members.map(|one| (text(&one["Name"]), text(&one["IPv4Address"]), text(&one["Node"]))).collect()
}

#[test]
fn plain_containers_are_in_networks_of_the_cluster() {
    let lab = Lab::up("gst", 2);
    lab.form(1);
    let [n1, n2] = [1, 2].map(|number| lab.node(number));
    let archive = images::archive("busybox");
    n1.load(&archive);
    n2.load(&archive);
    n1.rctl(&["network", "create", "--subnet", "10.20.0.0/24", "back"]).ok();
    n1.rctl(&["network", "create", "front"]).ok();
    let service = ["service", "create", "--name", "web", "--network", "back", "--stop-signal", "SIGKILL"];
    n1.rctl(&[&service[..], &[images::BUSYBOX, "sh", "-c", SERVER]].concat()).ok();

    let chosen = "10.20.0.77";
    let words = ["--network", "back,alias=database", "--ip", chosen, "--restart", "always"];
    serve(n2, "db", &words);
    serve(n1, "app", &["--network", "back", "--network-alias", "frontend"]);
    serve(n1, "stranger", &["--network", "front"]);

    // By name, alias and address from one node to the other, and to the service; not from another network.
    hears(n1, "app", &[("db", "db"), ("database", "db"), (chosen, "db"), ("web", "web-1")]);
    hears(n2, "db", &[("app", "app"), ("frontend", "app"), ("web", "web-1")]);
    hears(n1, "stranger", &[("db", ""), ("database", ""), (chosen, ""), ("web", "")]);
    let pointer = n1.rctl(&["exec", "app", "nslookup", chosen]).ok();
    assert!(pointer.contains("name = db"), "{pointer}");
    let inside = members(n1, "back");
    assert!(inside.contains(&("db".into(), chosen.into(), "n2".into())), "{inside:?}");
    assert_eq!(inside.len(), 3, "{inside:?}");

    what_can_not_be_is_refused(&lab, chosen);
    containers_come_and_go(&lab);
    the_address_stays(&lab, chosen);

    // One that does not run has no name; one that is gone has nothing.
    n2.rctl(&["stop", "-t", "0", "db"]).ok();
    hears(n1, "app", &[("db", "")]);
    assert_eq!(members(n1, "back").len(), 3);
    n2.rctl(&["rm", "db"]).ok();
    assert_eq!(members(n1, "back").len(), 2);
    serve(n1, "heir", &["--network", "back", "--ip", chosen]);
    hears(n1, "app", &[("heir", "heir"), (chosen, "heir")]);
    n1.rctl(&["rm", "-f", "heir", "app", "stranger"]).ok();
    n1.rctl(&["service", "rm", "web"]).ok();
    wait_until("the networks can go", SOON, || {
        let removed = n1.rctl(&["network", "rm", "-f", "back", "front"]);
        hold(removed.code == 0, || removed.tell())
    });
    lab.finish();
}

fn what_can_not_be_is_refused(lab: &Lab, taken: &str) {
    let [n1, n2] = [1, 2].map(|number| lab.node(number));
    let cases: [(&[&str], &str); 5] = [
        (&["--network", "back", "--ip", taken], "already given to container db"),
        (&["--network", "back", "--ip", "10.21.0.1"], "choose one of its ranges"),
        (&["--network", "front", "--ip", "10.213.0.9"], "has no range of its own"),
        (&["--network", "nope"], "network `nope` does not exist"),
        (&["--network", "local", "--ip", "10.215.0.9"], "of its own network"),
    ];
    for (words, expected) in cases {
        let run = [&["run", "--rm"], words, &[images::BUSYBOX, "true"]].concat();
        n1.rctl(&run).fails(125, &[expected]);
    }
    n1.rctl(&["network", "rm", "front"]).fails(1, &["is used by container stranger"]);
    let task = n1.containers().unwrap().into_iter().chain(n2.containers().unwrap());
    let task = task.into_iter().find(|one| one.name.starts_with("web.")).unwrap();
    let node = if n1.containers().unwrap().iter().any(|one| one.id == task.id) { n1 } else { n2 };
    node.rctl(&["network", "connect", "front", &task.id]).fails(1, &["belongs to task"]);
    assert_eq!(n1.containers().unwrap().iter().filter(|one| one.task_id.is_none()).count(), 2);
}

/// Into a second network while it runs, and out of it again; out of the node's own.
fn containers_come_and_go(lab: &Lab) {
    let [n1, n2] = [1, 2].map(|number| lab.node(number));
    serve(n1, "plain", &[]);
    n1.rctl(&["network", "connect", "--alias", "late", "back", "plain"]).ok();
    n1.rctl(&["network", "connect", "back", "plain"]).fails(1, &["is in network `back` already"]);
    hears(n2, "db", &[("plain", "plain"), ("late", "plain")]);
    hears(n1, "plain", &[("db", "db"), ("web", "web-1")]);
    n1.rctl(&["network", "connect", "front", "app"]).ok();
    hears(n1, "stranger", &[("app", "app"), ("db", "")]);
    n1.rctl(&["network", "disconnect", "bridge", "plain"]).ok();
    hears(n1, "plain", &[("db", "db")]);
    n1.rctl(&["network", "disconnect", "front", "app"]).ok();
    n1.rctl(&["network", "disconnect", "back", "plain"]).ok();
    hears(n2, "db", &[("plain", ""), ("app", "app")]);
    hears(n1, "stranger", &[("app", "")]);
    n1.rctl(&["network", "disconnect", "back", "plain"]).fails(1, &["is not in network `back`"]);
    n1.rctl(&["rm", "-f", "plain"]).ok();
    let networks = n1.rctl(&["ps", "--format", "json"]).ok();
    assert!(networks.contains("\"Networks\":\"back=10.20.0."), "{networks}");
}

/// Over restarts of the daemon and of the node.
fn the_address_stays(lab: &Lab, chosen: &str) {
    let [n1, n2] = [1, 2].map(|number| lab.node(number));
    lab.kill(2);
    hears(n1, "app", &[(chosen, "db")]);
    lab.start(2);
    hears(n1, "app", &[("db", "db"), (chosen, "db")]);
    lab.crash(2);
    lab.start(2);
    hears(n1, "app", &[("db", "db"), (chosen, "db")]);
    hears(n2, "db", &[("app", "app")]);
}
