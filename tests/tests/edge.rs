//! The HTTP edge on three nodes: each leads to the replicas of all, without a lost request while they come and go.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, command, http, images, wait_until};

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
    let trusted = tempfile::tempdir().unwrap();
    tls_by_a_given_certificate(&lab, trusted.path());

    let counted = route(n1, "Host(app.example)/");
    assert_eq!((&counted["Service"], &counted["Endpoints"]), (&"web".into(), &3.into()));
    assert!(counted["Requests"].as_u64().unwrap() >= 45, "{counted}");

    // A daemon that was away goes on with what it knew, before it has found a leader.
    lab.kill(3);
    assert!(page(n3, HOST, "/").is_err());
    lab.start(3);
    wait_until("TLS on n3", SOON, || encrypted(n3, trusted.path()));
    n1.rctl(&["certificate", "rm", "app"]).ok();
    wait_until("no certificate", SOON, || match encrypted(n3, trusted.path()) {
        Ok(()) => Err("it still is there".to_owned()),
        Err(_) => Ok(()),
    });
    answering(n3, 3);

    n1.rctl(&["service", "update", "--route-rm", "Host(app.example)/", "web"]).ok();
    wait_until("no route", SOON, || match page(n3, HOST, "/")? {
        (404, _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    n1.rctl(&["cluster", "update", "--edge-http", "off", "--edge-https", "off"]).ok();
    wait_until("closed edges", SOON, || {
        let open = lab.nodes().iter().filter(|node| page(node, HOST, "/").is_ok()).count();
        hold(open == 0, || format!("{open} are open"))
    });
    lab.finish();
}

/// A page by TLS, from a node whose certificate is the one in that folder; by HTTP/2.
fn encrypted(node: &Node, folder: &Path) -> Result<(), String> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "10", "--resolve"]).arg(format!("{HOST}:443:{}", node.address));
    curl.arg("--cacert").arg(folder.join("chain.pem")).args([
        "-w",
        " %{http_version}",
        &format!("https://{HOST}/json"),
    ]);
    let output = command::run(&mut curl, SOON);
    hold(output.code == 0 && output.stdout.contains("replica") && output.stdout.ends_with(" 2"), || {
        output.tell()
    })
}

/// Kept by the controllers, sealed, and served by every node; plain requests are led there.
fn tls_by_a_given_certificate(lab: &Lab, folder: &Path) {
    let node = lab.node(2);
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let mut make = Command::new("openssl");
    make.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "30",
    ]);
    make.args(["-subj", "/CN=test", "-addext", &format!("subjectAltName=DNS:{HOST}")]);
    make.args(["-keyout", &path("key.pem"), "-out", &path("chain.pem")]);
    command::run(&mut make, SOON).ok();
    let refused = node.rctl(&["certificate", "create", "app", &path("key.pem"), &path("key.pem")]);
    assert!(refused.code == 1 && refused.stderr.contains("no certificate in it"), "{refused:?}");
    node.rctl(&["certificate", "create", "app", &path("chain.pem"), &path("key.pem")]).ok();
    let twice = node.rctl(&["certificate", "create", "app", &path("chain.pem"), &path("key.pem")]);
    assert!(twice.stderr.contains("--replace"), "{twice:?}");
    let listed = node.try_json(&["certificate", "ls"]).unwrap();
    assert_eq!((&listed[0]["Name"], &listed[0]["Hosts"][0]), (&"app".into(), &HOST.into()));
    node.rctl(&["cluster", "update", "--edge-https", "443", "--edge-access-log"]).ok();
    for node in lab.nodes() {
        wait_until(&format!("TLS on n{}", node.number), SOON, || encrypted(node, folder));
        assert_eq!(page(node, HOST, "/").unwrap().0, 308);
    }
    a_proxy_before_the_edge_is_believed(lab.node(1));
    let log = lab.node(1).data_dir().join("edge/access.log");
    wait_until("a line of the access log", SOON, || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        hold(text.contains(r#""scheme":"https","method":"GET","host":"app.example""#), || text)
    });
    let pem = std::fs::read_to_string(path("key.pem")).unwrap();
    let der = command::run(
        Command::new("openssl").args([
            "pkey",
            "-outform",
            "DER",
            "-in",
            &path("key.pem"),
            "-out",
            &path("key.der"),
        ]),
        SOON,
    );
    der.ok();
    let key = std::fs::read(path("key.der")).unwrap();
    let secret = &key[key.len() / 4..key.len() / 4 + 24];
    for node in lab.nodes() {
        let found = files_with(&node.data_dir(), secret);
        assert!(found.is_empty(), "the key lies open in {found:?} ({} bytes of PEM)", pem.len());
    }
}

/// Where it says that its client speaks TLS, nothing is led there again. Nobody else is believed.
fn a_proxy_before_the_edge_is_believed(node: &Node) {
    let status = || {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}", "-H"]);
        curl.args([&format!("Host: {HOST}"), "-H", "X-Forwarded-Proto: https"]);
        command::run(curl.arg(format!("http://{}/", node.address)), SOON).stdout
    };
    let set = |proxies: &str| node.rctl(&["cluster", "update", "--edge-trusted", proxies]);
    assert_eq!(status(), "308");
    let refused = set("0.0.0.0/0");
    assert!(refused.code == 1 && refused.stderr.contains("is everybody"), "{refused:?}");
    let refused = set("app.example");
    assert!(refused.code == 1 && refused.stderr.contains("is not a network"), "{refused:?}");
    // This program's address is in the nodes' segment.
    let network = format!("{}/16", node.address);
    for (proxies, expected) in [(network.as_str(), "200"), ("", "308")] {
        set(proxies).ok();
        wait_until("the edge knows whom to believe", SOON, || {
            let status = status();
            hold(status == expected, || format!("{status} with {proxies:?}"))
        });
    }
}

/// Files below a folder that hold these bytes.
fn files_with(folder: &Path, wanted: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        // Unpacked images hold no keys of ours, and are large.
        if kind.is_dir() && !path.ends_with("images") && !path.ends_with("containers") {
            found.extend(files_with(&path, wanted));
        } else if kind.is_file()
            && std::fs::read(&path).unwrap_or_default().windows(wanted.len()).any(|part| part == wanted)
        {
            found.push(path);
        }
    }
    found
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
