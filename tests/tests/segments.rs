//! Three nodes on two segments with a router between them: everything is reached as on one segment, and a node that
//! gets another address is reached there. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use rorqual_tests::{Lab, Node, http, images, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// Answers on port 80 with its own name, and with more than fits into any packet.
const SERVER: &str = "mkdir -p /w && hostname >/w/index.html && dd if=/dev/zero of=/w/big bs=1024 count=2048 2>/dev/null && exec httpd -f -p 80 -h /w";

/// A service with one task on each node.
fn serve(node: &Node, name: &str, words: &[&str]) {
    let mut all =
        vec!["service", "create", "--name", name, "--replicas", "3", "--replicas-max-per-node", "1"];
    all.extend(words);
    node.rctl(&all).ok();
}

/// The service's container on a node.
fn container(node: &Node, service: &str) -> Result<String, String> {
    let of_service = format!("{service}.");
    // A daemon that starts anew does not answer for a moment.
    let found = node.containers()?.into_iter().find(|one| one.name.starts_with(&of_service));
    found.map(|one| one.id).ok_or_else(|| format!("no {service} on n{}", node.number))
}

/// The addresses of a service's tasks.
fn addresses(node: &Node, service: &str, field: &str) -> Result<Vec<String>, String> {
    let seen = node.try_json(&["network", "inspect", "default"])?;
    let members = seen[0]["Containers"].as_object().ok_or("no containers")?.values();
    let own =
        members.filter(|one| one["Name"].as_str().unwrap_or_default().starts_with(&format!("{service}.")));
    Ok(own.filter_map(|one| one[field].as_str().map(str::to_owned)).collect())
}

/// What a shell in the node's `box` says.
fn inside(node: &Node, script: &str) -> Result<String, String> {
    let output = node.rctl(&["exec", &container(node, "box")?, "sh", "-c", script]);
    if output.code == 0 { Ok(output.ok()) } else { Err(output.tell()) }
}

/// Every node's container reaches every node's by address, by name and by the virtual address, small and large.
fn containers_meet(lab: &Lab) -> Result<(), String> {
    for node in lab.nodes() {
        let [targets, six] = ["IPv4Address", "IPv6Address"].map(|field| addresses(node, "box", field));
        let (targets, six) = (targets?, six?);
        if targets.len() != 3 || six.iter().filter(|address| !address.is_empty()).count() != 3 {
            return Err(format!("n{} knows {targets:?} and {six:?}", node.number));
        }
        for target in &targets {
            // A packet of a full segment's size, which no tunnel takes: it is told so, and cuts it.
            inside(node, &format!("ping -q -c 4 -i 0.1 -W 2 -s 1472 {target}"))?;
            let big = inside(node, &format!("timeout 10 wget -q -O - http://{target}/big | wc -c"))?;
            if big.trim() != "2097152" {
                return Err(format!("n{} got {big} bytes of {target}", node.number));
            }
        }
        // The same by IPv6, which the machines don't speak between them.
        for target in &six {
            inside(node, &format!("ping -6 -q -c 4 -i 0.1 -W 2 -s 1400 {target}"))?;
            let big = inside(node, &format!("timeout 10 wget -q -O - 'http://[{target}]/big' | wc -c"))?;
            if big.trim() != "2097152" {
                return Err(format!("n{} got {big} bytes of {target}", node.number));
            }
        }
        let all = "for i in 1 2 3 4 5 6; do timeout 5 wget -q -O - http://box/; done";
        let by_name: BTreeSet<String> = inside(node, all)?.lines().map(str::to_owned).collect();
        let listed = inside(node, "nslookup tasks.box | grep -c 'Address: 10.213'")?;
        if by_name.len() != 3 || listed.trim() != "3" {
            return Err(format!("n{} found {by_name:?} and {listed} names", node.number));
        }
    }
    Ok(())
}

/// Wherever people see a node's or a task's address, they see the IPv6 one.
fn ipv6_is_shown(node: &Node) {
    let six = addresses(node, "box", "IPv6Address").unwrap();
    let all = node.rctl(&["service", "ps", "--format", "json", "box"]).ok();
    assert!(six.iter().all(|address| all.contains(&format!("\"IPv6Address\":\"{address}\""))), "{all}");
    let own = node.rctl(&["ps", "--format", "json"]).ok();
    assert!(six.iter().any(|address| own.contains(&format!("\"IPv6Addresses\":\"{address}\""))), "{own}");
    let [nodes, services] = [["node", "inspect", "n3"], ["service", "inspect", "box"]]
        .map(|words| format!("{:?}", node.try_json(&words).unwrap()));
    for seen in [nodes, services] {
        assert!(seen.contains("\"IPv6Addr\": String(\"fd"), "{seen}");
    }
}

/// All nodes are known where they are.
fn addresses_are_known(lab: &Lab) -> Result<(), String> {
    for node in lab.nodes() {
        let text = format!("{:?}", node.try_json(&["node", "inspect", "n1", "n2", "n3"])?);
        for other in lab.nodes() {
            if !text.contains(&other.address.to_string()) {
                return Err(format!("n{} does not know {}: {text}", node.number, other.address));
            }
        }
    }
    Ok(())
}

#[test]
fn nodes_on_two_segments_are_one_cluster_also_when_they_move() {
    let mut lab = Lab::routed("segm", 3);
    let n1 = lab.node(1).clone();
    n1.load(&images::archive("busybox"));
    n1.load(&images::archive("nginx"));
    serve(&n1, "box", &["--stop-signal", "SIGKILL", images::BUSYBOX, "sh", "-c", SERVER]);
    serve(&n1, "web", &["--publish", "8080:80", images::NGINX]);
    wait_until("containers meet", SOON, || containers_meet(&lab));
    ipv6_is_shown(&n1);
    wait_until("clients are seen", SOON, || http::all_are_reached(&lab, 8080, 3));
    let tunnel = lab.node(3).exec("ip", &["-o", "link", "show", "type", "vxlan"]).ok();
    assert!(tunnel.contains("mtu 1450"), "{tunnel}");

    // A node behind the router gets another address while it runs.
    let pid = lab.node(3).daemon_pid();
    lab.move_to(3, 199);
    wait_until("n3 is known where it is", SOON, || addresses_are_known(&lab));
    lab.wait_ready(3);
    wait_until("containers meet", SOON, || containers_meet(&lab));
    ipv6_is_shown(&n1);
    wait_until("clients are seen", SOON, || http::all_are_reached(&lab, 8080, 3));
    assert_eq!(lab.node(3).daemon_pid(), pid, "the daemon starts anew in its own process");

    // One that others reach on its segment, while its daemon is away.
    lab.kill(2);
    lab.move_to(2, 77);
    lab.start(2);
    wait_until("n2 is known where it is", SOON, || addresses_are_known(&lab));
    lab.wait_ready(3);
    wait_until("containers meet", SOON, || containers_meet(&lab));
    ipv6_is_shown(&n1);
    wait_until("clients are seen", SOON, || http::all_are_reached(&lab, 8080, 3));
    lab.finish();
}
