//! `rctl doctor`: each thing that it looks for is broken on a cluster, is named with its remedy, and is no longer
//! named when it is whole again. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rorqual_tests::{Lab, Node, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// What is found: node, the other node, check, and what is said about it.
type Found = (String, String, String, String);

/// Asks on the first node.
fn findings(lab: &Lab) -> Result<Vec<Found>, String> {
    let output = lab.node(1).rctl(&["doctor", "--format", "json"]);
    if !output.stderr.is_empty() {
        return Err(output.tell());
    }
    let list: Vec<serde_json::Value> =
        serde_json::Deserializer::from_str(&output.stdout).into_iter().map(Result::unwrap).collect();
    assert_eq!(output.code, i32::from(!list.is_empty()), "{}", output.tell());
    let field = |value: &serde_json::Value, name: &str| value[name].as_str().unwrap().to_owned();
    let found = list.iter().map(|one| {
        let said = format!("{} | {}", field(one, "Problem"), field(one, "Remedy"));
        (field(one, "Node"), field(one, "Peer"), field(one, "Check"), said)
    });
    Ok(found.collect())
}

fn is_well(lab: &Lab) {
    wait_until("the doctor finds nothing", SOON, || {
        let found = findings(lab)?;
        if found.is_empty() { Ok(()) } else { Err(format!("{found:#?}")) }
    });
}

/// Waits until this is found, and says all that is.
fn is_found(lab: &Lab, node: &str, peer: &str, check: &str, says: &[&str]) {
    wait_until(&format!("{check} of {node} → {peer}"), SOON, || {
        let found = findings(lab)?;
        let one =
            found.iter().find(|(n, p, c, _)| (n.as_str(), p.as_str(), c.as_str()) == (node, peer, check));
        match one {
            Some((.., said)) if says.iter().all(|part| said.contains(part)) => Ok(()),
            _ => Err(format!("{found:#?}")),
        }
    });
}

/// A command in the namespace of the lab's cables.
fn lan(lab: &Lab, words: &[&str]) {
    let namespace = format!("--net=/run/netns/rq-{}-lan", lab.name());
    let done = Command::new("nsenter").arg(namespace).arg("--").args(words).output().unwrap();
    assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn nft(node: &Node, script: &str) {
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        node.exec("nft", &[line]).ok();
    }
}

#[test]
fn what_is_broken_is_named_with_its_remedy() {
    let lab = Lab::routed("doc", 3);
    let [n1, n2, n3] = [1, 2, 3].map(|number| lab.node(number));
    is_well(&lab);
    let told = n2.rctl(&["doctor"]).ok();
    assert!(told.starts_with("Nothing is wrong: ") && told.contains("on 3 nodes"), "{told}");

    // Packets of full size get lost, on a segment and behind the router.
    lan(&lab, &["ip", "link", "set", "n2", "mtu", "1400"]);
    is_found(&lab, "n1", "n2", "mtu", &["more than 1400 bytes don't get to n2", "eth0", "mtu 1400"]);
    lan(&lab, &["ip", "link", "set", "n2", "mtu", "1500"]);

    // The tunnel's port.
    nft(n3, "add table inet fw\nadd chain inet fw in { type filter hook input priority -5; }");
    nft(n3, "add rule inet fw in udp dport 7271 drop");
    is_found(&lab, "n1", "n3", "tunnel", &["UDP port 7271", "open UDP port 7271"]);
    nft(n3, "flush chain inet fw in");
    // What wrong checksums look like: all but TCP gets through the tunnel.
    nft(n3, "add rule inet fw in iifname \"rqx*\" meta l4proto tcp drop");
    is_found(&lab, "n2", "n3", "offload", &["though ICMP does", "ethtool -K eth0"]);
    nft(n3, "flush chain inet fw in\nadd rule inet fw in icmp type echo-request drop");
    is_found(&lab, "n1", "n3", "icmp", &["does not answer ICMP"]);
    nft(n3, "delete table inet fw");

    // A firewall with a policy for what is passed on, as Docker's.
    nft(
        n2,
        "add table ip filter\nadd chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
    );
    is_found(
        &lab,
        "n2",
        "",
        "firewall",
        &["containers of this node don't reach each other", "chain FORWARD of table ip filter (policy drop)"],
    );
    is_found(
        &lab,
        "n1",
        "n2",
        "firewall",
        &["a container of n2", "on n2: it may be chain FORWARD of table ip filter"],
    );
    nft(n2, "delete table ip filter");
    nft(
        n2,
        "add table ip6 filter\nadd chain ip6 filter FORWARD { type filter hook forward priority 0; policy drop; }",
    );
    is_found(
        &lab,
        "n2",
        "",
        "firewall",
        &[
            "containers of this node don't reach each other by IPv6",
            "chain FORWARD of table ip6 filter (policy drop)",
        ],
    );
    is_found(&lab, "n1", "n2", "ipv6", &["IPv6 does not get to n2", "disable_ipv6"]);
    nft(n2, "delete table ip6 filter");
    nft(n2, "add table inet fw\nadd chain inet fw in { type filter hook input priority 0; }");
    nft(n2, "add rule inet fw in udp dport 53 drop");
    is_found(&lab, "n2", "", "firewall", &["resolver", "chain in of table inet fw (a rule that drops)"]);
    nft(n2, "delete table inet fw");

    // Routes of the machine's own.
    n3.exec("ip", &["route", "add", "10.213.64.0/20", "dev", "eth0"]).ok();
    is_found(&lab, "n3", "", "subnets", &["10.213.64.0/20", "the containers' pool, 10.213.0.0/16"]);
    n3.exec("ip", &["route", "del", "10.213.64.0/20"]).ok();

    // The same by IPv6, which follows from the IPv4 range.
    let seen = n3.try_json(&["node", "inspect", "n3"]).unwrap();
    let own = seen[0]["Status"]["IPv6Addr"].as_str().unwrap();
    let six = format!("{}::ad5:4000/116", own.split_once("::").unwrap().0);
    n3.exec("ip", &["-6", "route", "add", &six, "dev", "eth0"]).ok();
    is_found(&lab, "n3", "", "subnets", &[&six, "the containers' pool", "ip -6 route del"]);
    n3.exec("ip", &["-6", "route", "del", &six]).ok();

    // A setting with which connections that were forgotten would hang.
    n3.exec("sysctl", &["-qw", "net.netfilter.nf_conntrack_tcp_loose=0"]).ok();
    is_found(&lab, "n3", "", "settings", &["nf_conntrack_tcp_loose is 0", "nf_conntrack_tcp_loose=1"]);
    n3.exec("sysctl", &["-qw", "net.netfilter.nf_conntrack_tcp_loose=1"]).ok();

    // A setting that another program insists on.
    let (stop, node) = (Arc::new(AtomicBool::new(false)), n1.clone());
    let ended = Arc::clone(&stop);
    let fight = std::thread::spawn(move || {
        while !ended.load(Ordering::Relaxed) {
            node.exec("sysctl", &["-qw", "net.ipv4.ip_forward=0"]).ok();
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    is_found(&lab, "n1", "", "settings", &["net.ipv4.ip_forward = 1 was put back", "sysctl.d"]);
    stop.store(true, Ordering::Relaxed);
    fight.join().unwrap();

    // A port that is shut, and a node that is away.
    nft(n2, "add table inet fw\nadd chain inet fw in { type filter hook input priority 0; }");
    nft(n2, &format!("add rule inet fw in ip saddr {} tcp dport 4780 drop", n3.address));
    is_found(&lab, "n3", "n2", "port", &["n2 does not answer", "TCP port", "4780"]);
    nft(n2, "delete table inet fw");
    lab.kill(3);
    is_found(&lab, "n3", "", "reachability", &["does not answer", "systemctl status rorquald"]);
    lab.start(3);
    lab.wait_ready(3);

    // All of it is whole again, but for what was fought over, which is remembered for two minutes.
    wait_until("only the fight is left", SOON, || {
        let found = findings(&lab)?;
        if found.iter().all(|(.., check, _)| check == "settings") {
            Ok(())
        } else {
            Err(format!("{found:#?}"))
        }
    });
    lab.finish();
}

#[test]
fn a_node_alone_is_looked_at_and_a_wrong_clock_is_named() {
    let lab = Lab::up("dclk", 2);
    let alone = lab.node(1).rctl(&["doctor"]).ok();
    assert!(alone.contains("on 1 node."), "{alone}");
    lab.form(2);
    is_well(&lab);
    // The second node's clock goes wrong.
    lab.stop(2);
    lab.start_with(
        2,
        &[("LD_PRELOAD", &fake_clock()), ("FAKETIME", "+30s"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")],
    );
    lab.wait_ready(2);
    is_found(&lab, "n1", "n2", "clock", &["the clock of n2 is", "s ahead of this node's", "NTP"]);
    lab.finish();
}

/// Debian's package faketime.
fn fake_clock() -> String {
    let output = Command::new("dpkg").args(["-L", "libfaketime"]).output().unwrap();
    let files = String::from_utf8(output.stdout).unwrap();
    let library = files.lines().find(|line| line.ends_with("libfaketimeMT.so.1"));
    library.expect("libfaketime is missing: apt-get install faketime").to_owned()
}
