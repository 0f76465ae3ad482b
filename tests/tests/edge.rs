//! The HTTP edge on three nodes: each leads to the replicas of all, without a lost request while they come and go.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, http, images, wait_until};

const SOON: Duration = Duration::from_secs(30);
const EDGE: u16 = 80;
const HOST: &str = "app.example";

/// The page of whoever a node's edge leads to.
fn page(node: &Node, host: &str, path: &str) -> Result<(u16, String), String> {
    http::ask(node.port(EDGE), host, path).map_err(|error| error.to_string())
}

/// Who answers through a node's edge: the replica's host name.
fn replica(node: &Node) -> Result<String, String> {
    let (status, body) = page(node, HOST, "/json")?;
    hold(status == 200, || format!("{status}: {body}"))?;
    let value: serde_json::Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
    Ok(value["replica"].as_str().unwrap_or_default().to_owned())
}

/// Until so many different replicas answer through a node's edge.
#[track_caller]
fn answering(node: &Node, replicas: usize) -> BTreeSet<String> {
    wait_until(&format!("{replicas} replicas behind the edge of n{}", node.number), SOON, || {
        let names = (0..5 * replicas).map(|_| replica(node)).collect::<Result<BTreeSet<_>, _>>()?;
        hold(names.len() == replicas, || format!("{names:?}"))?;
        Ok(names)
    })
}

/// The counters of a route, as `route ls` adds them up.
fn route(node: &Node, address: &str) -> serde_json::Value {
    let rows = node.try_json(&["route", "ls"]).unwrap();
    rows.into_iter().find(|row| row["Route"] == address).unwrap_or_else(|| panic!("no route {address}"))
}

#[test]
fn every_node_leads_to_the_replicas_of_all() {
    let lab = Lab::cluster("edge", 3);
    let [n1, n2, n3] = [1, 2, 3].map(|number| lab.node(number));
    n1.load(&images::archive("nginx"));
    n2.rctl(&["cluster", "update", "--edge-http", "80"]).ok();
    let create = ["service", "create", "--name", "web", "--replicas", "3", "--replicas-max-per-node", "1"];
    n1.rctl(&[&create[..], &["--route", "Host(app.example)/", images::NGINX]].concat()).ok();

    let first = answering(n1, 3);
    assert_eq!(answering(n2, 3), first);
    assert_eq!(answering(n3, 3), first);
    assert_eq!(page(n1, "other.example", "/").unwrap().0, 404);
    what_is_taken_is_refused(n3);
    no_request_is_lost(&lab);

    let counted = route(n1, "Host(app.example)/");
    assert_eq!((&counted["Service"], &counted["Endpoints"]), (&"web".into(), &3.into()));
    assert!(counted["Requests"].as_u64().unwrap() >= 45, "{counted}");

    // A daemon that was away goes on with what it knew, before it has found a leader.
    lab.kill(3);
    assert!(page(n3, HOST, "/").is_err());
    lab.start(3);
    answering(n3, 3);

    n1.rctl(&["service", "update", "--route-rm", "Host(app.example)/", "web"]).ok();
    wait_until("no route", SOON, || match page(n3, HOST, "/")? {
        (404, _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    n1.rctl(&["cluster", "update", "--edge-http", "off"]).ok();
    wait_until("closed edges", SOON, || {
        let open = lab.nodes().iter().filter(|node| page(node, HOST, "/").is_ok()).count();
        hold(open == 0, || format!("{open} are open"))
    });
    lab.finish();
}

/// What another service, or the edge itself, has.
fn what_is_taken_is_refused(node: &Node) {
    let create = |name: &str, flag: &str, value: &str| {
        node.rctl(&["service", "create", "-d", "--name", name, flag, value, images::NGINX])
    };
    let refused = create("rival", "--route", "APP.example/,port=81");
    assert!(
        refused.code == 1 && refused.stderr.contains("app.example/ already leads to service `web`"),
        "{refused:?}"
    );
    let refused = create("rival", "--publish", "80:80");
    assert!(refused.code == 1 && refused.stderr.contains("port 80/tcp is the HTTP edge's"), "{refused:?}");
    let refused = create("rival", "--route", "Host(a b)/");
    assert!(refused.code == 2 && refused.stderr.contains("is not a host name"), "{refused:?}");
    create("port", "--publish", "8080:80").ok();
    let refused = node.rctl(&["cluster", "update", "--edge-http", "8080"]);
    assert!(refused.code == 1 && refused.stderr.contains("published by service `port`"), "{refused:?}");
    node.rctl(&["service", "rm", "port"]).ok();
}

/// Requests through every node while replicas come and go: scale and update.
fn no_request_is_lost(lab: &Lab) {
    let done = AtomicBool::new(false);
    let counts: Vec<(usize, Vec<String>)> = std::thread::scope(|scope| {
        let clients: Vec<_> = lab
            .nodes()
            .iter()
            .map(|node| {
                let done = &done;
                scope.spawn(move || {
                    let (mut asked, mut failed) = (0, Vec::new());
                    while !done.load(Ordering::Relaxed) {
                        asked += 1;
                        failed.extend(replica(node).err());
                    }
                    (asked, failed)
                })
            })
            .collect();
        let node = lab.node(2);
        node.rctl(&["service", "scale", "web=1"]).ok();
        node.rctl(&["service", "scale", "web=3"]).ok();
        node.rctl(&["service", "update", "--env-add", "A=1", "web"]).ok();
        done.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    for (node, (asked, failed)) in lab.nodes().iter().zip(counts) {
        assert!(
            asked > 10 && failed.is_empty(),
            "n{}: {} of {asked} failed: {failed:?}",
            node.number,
            failed.len()
        );
    }
}
