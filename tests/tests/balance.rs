//! Who gets how many connections: by the weight of nodes, by health, and in host mode.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use rorqual_tests::view::Container;
use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, http, images, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// A web server that says its host name.
const SERVER: [&str; 7] = [images::BUSYBOX, "httpd", "-f", "-p", "80", "-h", "/etc"];

/// Who answers how many of so many requests at a node's port.
fn tally(node: &Node, port: u16, requests: usize) -> Result<BTreeMap<String, usize>, String> {
    let mut tally = BTreeMap::new();
    for _ in 0..requests {
        let name = http::get(node.port(port), "/hostname").map_err(|error| error.to_string())?;
        *tally.entry(name.trim().to_owned()).or_default() += 1;
    }
    Ok(tally)
}

#[test]
fn replicas_get_what_their_nodes_weigh_and_ports_in_host_mode_are_the_nodes_own() {
    let lab = Lab::cluster("weight", 2);
    let node = lab.node(1);
    node.load(&images::archive("busybox"));
    let ports = ["--publish", "8080:80", "--publish", "published=8081,target=80,mode=host"];
    let words = ["service", "create", "--name", "web", "--replicas", "2", "--replicas-max-per-node", "1"];
    node.rctl(&[&words[..], &ports, &SERVER].concat()).ok();
    // A container's host name has no dots.
    let name_on = |host: &str| {
        let tasks = node.tasks("web").unwrap();
        tasks.iter().find(|task| task.node == host).map(|task| task.name.replace('.', "-")).unwrap()
    };
    let [first, second] = ["n1", "n2"].map(name_on);
    let expected = |one: usize, other: usize| BTreeMap::from([(first.clone(), one), (second.clone(), other)]);
    let spread = |one: usize, other: usize| {
        wait_until("each gets its share at both nodes", SOON, || {
            let seen = [tally(lab.node(1), 8080, 40)?, tally(lab.node(2), 8080, 40)?];
            hold(seen.iter().all(|seen| *seen == expected(one, other)), || format!("{seen:?}"))
        });
    };
    spread(20, 20);
    node.rctl(&["node", "update", "--label-add", "rorqual.weight=300", "n2"]).ok();
    spread(10, 30);
    for (number, name) in [(1, &first), (2, &second)] {
        assert_eq!(tally(lab.node(number), 8081, 5).unwrap(), BTreeMap::from([(name.clone(), 5)]));
    }
    lab.finish();
}

#[test]
fn an_unhealthy_replica_that_is_kept_is_without_traffic_until_it_is_well() {
    let lab = Lab::cluster("keep", 1);
    let node = lab.node(1);
    node.load(&images::archive("busybox"));
    let check = ["--health-cmd", "test ! -e /tmp/ill", "--health-interval", "100ms", "--health-retries", "1"];
    let words = ["service", "create", "--name", "web", "--publish", "8080:80", "--on-unhealthy", "keep"];
    let names = ["--network", "name=default,publish-not-ready=web-all"];
    node.rctl(&[&words[..], &check, &names, &SERVER].concat()).ok();
    let task = node.tasks("web").unwrap().remove(0);
    let own = |one: &Container| one.task_id.as_ref() == Some(&task.id);
    let container = node.containers().unwrap().into_iter().find(own).unwrap();
    let inside = |script: &str| node.rctl(&["exec", &container.name, "sh", "-c", script]);
    let serves = |wanted: bool| {
        wait_until("it serves, or does not", SOON, || {
            let answer = tally(node, 8080, 1);
            hold(answer.is_ok() == wanted, || format!("{answer:?}"))
        });
        // Its name for all is there whether or not it is ready.
        let lookup = inside("nslookup web-all 169.254.53.53; nslookup web.1 169.254.53.53").ok();
        assert_eq!(lookup.matches("Name:").count(), 2, "{lookup}");
    };
    serves(true);
    inside("touch /tmp/ill").ok();
    serves(false);
    inside("rm /tmp/ill").ok();
    serves(true);
    let now = node.tasks("web").unwrap();
    assert!(now.len() == 1 && now[0].id == task.id && now[0].state == "running", "{now:?}");
    lab.finish();
}
