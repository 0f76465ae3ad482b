//! Networks of the users on three nodes: who reaches whom, by address and by name, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, command, images, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// Answers with its own name on port 80.
const SERVER: &str = "mkdir -p /w && hostname >/w/index.html && exec httpd -f -p 80 -h /w";

/// Says for each of its arguments whether it answers on port 80, and with what.
const PROBE: &str =
    r#"for to in "$@"; do echo "$to=$(timeout 5 wget -q -O - "http://$to/" 2>/dev/null)"; done"#;

/// One task on each node.
fn serve(node: &Node, name: &str, networks: &[&str]) {
    let mut words = vec!["service", "create", "--name", name, "--replicas", "3"];
    // A first process that has no handler would only end with its patience.
    words.extend(["--replicas-max-per-node", "1", "--stop-signal", "SIGKILL"]);
    for network in networks {
        words.extend(["--network", network]);
    }
    words.extend([images::BUSYBOX, "sh", "-c", SERVER]);
    node.rctl(&words).ok();
}

/// The addresses of a service's tasks in a network, by node.
fn addresses(node: &Node, network: &str, service: &str) -> BTreeMap<String, String> {
    addresses_of(node, network, service, "IPv4Address")
}

fn addresses_of(node: &Node, network: &str, service: &str, field: &str) -> BTreeMap<String, String> {
    let seen = node.rctl(&["network", "inspect", "--format", "json", network]).json();
    let members = seen[0]["Containers"].as_object().unwrap();
    let own =
        members.values().filter(|one| one["Name"].as_str().unwrap().starts_with(&format!("{service}.")));
    own.map(|one| (one["Node"].as_str().unwrap().to_owned(), one[field].as_str().unwrap().to_owned()))
        .collect()
}

/// What a container of a node gets from each of these.
fn probe(node: &Node, container: &str, targets: &[&str]) -> BTreeMap<String, String> {
    let mut words = vec!["exec", container, "sh", "-c", PROBE, "probe"];
    words.extend(targets);
    let said = node.rctl(&words).ok();
    let pairs = said.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(to, heard)| (to.to_owned(), heard.to_owned())).collect()
}

/// The service's container on a node.
fn container(node: &Node, service: &str) -> String {
    let of_service = format!("{service}.");
    let found = node.containers().unwrap().into_iter().find(|one| one.name.starts_with(&of_service));
    found.unwrap_or_else(|| panic!("no {service} on n{}", node.number)).id
}

/// The services, and their networks in the order of their interfaces.
const SERVICES: [(&str, &[&str]); 4] =
    [("fe", &["front"]), ("be", &["back"]), ("both", &["front", "back"]), ("in", &["shut"])];

#[test]
fn containers_reach_those_whose_network_they_share_and_nothing_else() {
    let lab = Lab::cluster("netw", 3);
    let [n1, n2, _] = [1, 2, 3].map(|number| lab.node(number));
    n1.load(&images::archive("busybox"));
    n1.rctl(&["network", "create", "front"]).ok();
    n2.rctl(&["network", "create", "--subnet", "10.20.0.0/24", "--subnet", "fd00:1::/64", "back"]).ok();
    n1.rctl(&["network", "create", "--internal", "shut"]).ok();
    for (name, networks) in SERVICES {
        serve(n1, name, networks);
    }

    // From each service on the first node to each task of each service, in each of its networks.
    let mut failures = Vec::new();
    for (from, own) in SERVICES {
        let id = container(n1, from);
        for (to, networks) in SERVICES {
            for network in networks {
                let targets = addresses(n1, network, to);
                assert_eq!(targets.len(), 3, "{to} in {network}: {targets:?}");
                let asked: Vec<&str> = targets.values().map(String::as_str).collect();
                let heard = probe(n1, &id, &asked);
                for (node, address) in &targets {
                    let reached = heard[address].starts_with(&format!("{to}-"));
                    if reached != own.contains(network) || (!reached && !heard[address].is_empty()) {
                        failures.push(format!("{from} → {to} on {node} in {network}: {:?}", heard[address]));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");

    names_lead_where_networks_are_shared(&lab);
    ports_lead_to_each_task(&lab);
    a_network_has_an_ipv6_range_of_its_own(&lab);
    what_is_around_is_out_of_reach(&lab);
    a_service_changes_its_networks(&lab);
    what_is_used_stays_and_the_rest_goes(&lab);
    lab.finish();
}

/// By name, the service's and its aliases: the virtual address leads to the tasks.
fn names_lead_where_networks_are_shared(lab: &Lab) {
    for (from, own) in SERVICES {
        let asked: Vec<&str> = SERVICES.iter().map(|(name, _)| *name).collect();
        let heard = probe(lab.node(2), &container(lab.node(2), from), &asked);
        for (to, networks) in SERVICES {
            let shared = networks.iter().any(|network| own.contains(network));
            assert_eq!(heard[to].starts_with(&format!("{to}-")), shared, "{from} → {to}: {heard:?}");
        }
    }
}

/// SRV, as a resolver that is not ours asks for it; the names that come lead to the addresses that come, and back.
fn ports_lead_to_each_task(lab: &Lab) {
    let node = lab.node(2);
    let dig = |service: &str, words: &[&str]| {
        let task = node.running(service).unwrap().into_iter().find(|task| task.node == "n2").unwrap();
        let pid = node.task_pid(&task.id).unwrap().to_string();
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-n", "dig", "@169.254.53.53", "+tries=3", "+short"]).args(words);
        let said = command::run(&mut command, SOON).ok();
        said.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let tasks: BTreeMap<String, String> = (1..=3)
        .map(|slot| format!("be.{slot}"))
        .map(|name| (dig("both", &["A", &name]).pop_first().unwrap_or_default(), name))
        .collect();
    let known: BTreeSet<String> = addresses(node, "back", "be").into_values().collect();
    assert_eq!(tasks.keys().cloned().collect::<BTreeSet<_>>(), known);
    for (port, number) in [("_http", 80), ("_7000", 7000)] {
        let expected: BTreeSet<String> =
            tasks.values().map(|name| format!("0 100 {number} {name}.")).collect();
        assert_eq!(dig("both", &["SRV", &format!("{port}._tcp.be")]), expected);
    }
    for (address, name) in &tasks {
        assert_eq!(dig("both", &["-x", address]), BTreeSet::from([format!("{name}.")]));
    }
    assert!(dig("in", &["SRV", "_http._tcp.be"]).is_empty(), "it shares no network with it");
}

/// Beside each address of `back` the one at the same place of its IPv6 range, on all nodes, by name, and for plain containers
/// that choose one.
fn a_network_has_an_ipv6_range_of_its_own(lab: &Lab) {
    let [n1, n2, n3] = [1, 2, 3].map(|number| lab.node(number));
    let seen = format!("{:?}", n1.try_json(&["network", "inspect", "back"]).unwrap());
    assert!(seen.contains("\"Subnet\": String(\"fd00:1::/64\")"), "{seen}");
    let (four, six) = (addresses(n1, "back", "be"), addresses_of(n1, "back", "be", "IPv6Address"));
    for (node, address) in &four {
        let place: u8 = address.rsplit_once('.').unwrap().1.parse().unwrap();
        assert_eq!(six[node], format!("fd00:1::{place:x}"), "{address}");
    }
    let bracketed: Vec<String> = six.values().map(|address| format!("[{address}]")).collect();
    let asked: Vec<&str> = bracketed.iter().map(String::as_str).collect();
    for (from, reached) in [("both", true), ("fe", false)] {
        let heard = probe(n2, &container(n2, from), &asked);
        assert!(heard.values().all(|said| said.starts_with("be-") == reached), "{from}: {heard:?}");
    }
    let names = n2.rctl(&["exec", &container(n2, "both"), "nslookup", "-type=aaaa", "tasks.be"]).ok();
    assert!(six.values().all(|address| names.contains(address.as_str())), "{names}");

    n3.load(&images::archive("busybox"));
    let run = |words: &[&str]| {
        let fixed = ["run", "--detach", "--name", "plain", "--stop-signal", "SIGKILL", "--network", "back"];
        n3.rctl(&[&fixed, words, &[images::BUSYBOX, "sh", "-c", SERVER]].concat())
    };
    run(&["--ip6", "fd00:1::1:0"])
        .fails(125, &["fd00:1::1:0 is no address for a container in network `back`"]);
    run(&["--ip", "10.20.0.240", "--ip6", "fd00:1::f1"]).fails(125, &["choose fd00:1::f0"]);
    run(&["--ip6", "fd00:1::f0", "--hostname", "plain"]).ok();
    let be = container(n1, "be");
    wait_until("the plain container answers at both of its addresses", SOON, || {
        let heard = probe(n1, &be, &["[fd00:1::f0]", "10.20.0.240"]);
        hold(heard.values().all(|said| said == "plain"), || format!("{heard:?}"))
    });
    n3.rctl(&["rm", "--force", "plain"]).ok();
}

/// A way out for those that are not in an internal network; the nodes' own services for none.
fn what_is_around_is_out_of_reach(lab: &Lab) {
    let node = lab.node(1);
    let script = r#"for at in "$@"; do
        if timeout 5 nc "${at%:*}" "${at#*:}" </dev/null >/dev/null 2>&1; then echo "$at=open"; else echo "$at=shut"; fi
    done"#;
    let controllers: Vec<String> = lab.nodes().iter().map(|node| format!("{}:4780", node.address)).collect();
    for service in ["fe", "in"] {
        let mut words = vec!["exec", "ID", "sh", "-c", script, "probe"];
        let id = container(node, service);
        words[1] = &id;
        words.extend(controllers.iter().map(String::as_str));
        let said = node.rctl(&words).ok();
        assert_eq!(said.matches("=shut").count(), 3, "{service}: {said}");
    }
    // Also at an address that a node has got meanwhile, once it is known whose that is.
    let (other, late) = (lab.node(2), "192.0.2.2");
    let httpd = [images::BUSYBOX, "httpd", "-f", "-p", "9099"];
    other.rctl(&[&["run", "-d", "--name", "beside", "--network", "host"], &httpd[..]].concat()).ok();
    other.exec("ip", &["addr", "add", &format!("{late}/32"), "dev", "eth0"]).ok();
    node.exec("ip", &["route", "add", late, "via", &other.address.to_string()]).ok();
    let opens = format!("exec 3<>/dev/tcp/{late}/9099");
    wait_until("the node gets there itself", SOON, || {
        let opened = node.exec("timeout", &["5", "bash", "-c", &opens]);
        hold(opened.code == 0, || opened.tell())
    });
    let at = format!("{late}:9099");
    wait_until("its containers do not", SOON * 2, || {
        let said = node.rctl(&["exec", &container(node, "fe"), "sh", "-c", script, "probe", &at]).ok();
        hold(said.contains("=shut"), || said.clone())
    });
    node.exec("ip", &["route", "del", late]).ok();
    other.exec("ip", &["addr", "del", &format!("{late}/32"), "dev", "eth0"]).ok();
    other.rctl(&["rm", "-f", "beside"]).ok();
}

fn a_service_changes_its_networks(lab: &Lab) {
    let [n1, n2, _] = [1, 2, 3].map(|number| lab.node(number));
    // Another name replaces no task.
    let before: Vec<String> = n1.running("be").unwrap().into_iter().map(|task| task.id).collect();
    n1.rctl(&["service", "update", "--network-add", "name=back,alias=db", "be"]).ok();
    let after: Vec<String> = n1.running("be").unwrap().into_iter().map(|task| task.id).collect();
    assert_eq!(before, after);
    let both = container(n2, "both");
    wait_until("the alias is known", SOON, || {
        let heard = probe(n2, &both, &["db"]);
        hold(heard["db"].starts_with("be-"), || format!("{heard:?}"))
    });
    // Another network does.
    n2.rctl(&["service", "update", "--network-add", "front", "--network-rm", "back", "be"]).ok();
    wait_until("the service is found in its other network", SOON, || {
        let heard = probe(n1, &container(n1, "fe"), &["be", "db"]);
        hold(heard["be"].starts_with("be-") && heard["db"].is_empty(), || format!("{heard:?}"))
    });
}

fn what_is_used_stays_and_the_rest_goes(lab: &Lab) {
    let [n1, n2, n3] = [1, 2, 3].map(|number| lab.node(number));
    n1.rctl(&["network", "rm", "front"]).fails(1, &["front", "is used by service"]);
    n1.rctl(&["network", "create", "--label", "team=a", "spare"]).ok();
    let pruned = n2.rctl(&["network", "prune", "--force", "--filter", "label=team"]).ok();
    assert!(pruned.contains("spare"), "{pruned}");
    n3.rctl(&["service", "rm", "fe", "be", "both", "in"]).ok();
    for network in ["front", "back", "shut"] {
        wait_until(&format!("{network} can be removed"), SOON, || {
            let removed = n1.rctl(&["network", "rm", network]);
            hold(removed.code == 0, || removed.tell())
        });
    }
    assert_eq!(n2.rctl(&["network", "ls", "--quiet"]).ok().lines().count(), 1, "the default one stays");
    for node in lab.nodes() {
        wait_until("the node has forgotten them", SOON, || {
            let routes = node.exec("ip", &["route"]).ok() + &node.exec("ip", &["-6", "route"]).ok();
            hold(!routes.contains("10.20.") && !routes.contains("fd00:1:"), || routes.clone())
        });
    }
}

#[test]
fn bad_input_is_refused_with_the_reason() {
    let lab = Lab::cluster("netb", 1);
    let node = lab.node(1);
    node.load(&images::archive("busybox"));
    node.rctl(&["network", "create", "--subnet", "10.20.0.0/29", "tiny"]).ok();
    let own = format!("{}/24", node.machine().to_string().rsplit_once('.').unwrap().0.to_owned() + ".0");
    let cases: [(&[&str], i32, &[&str]); 23] = [
        (&["network", "create", "--subnet", "fd00:1::7/64", "x"], 2, &["its network is fd00:1::/64"]),
        (&["network", "create", "--subnet", "fe80::/64", "x"], 2, &["can't be given to containers"]),
        (&["network", "create", "--subnet", "fd72:7126:9ac4::/64", "x"], 1, &["nodes' own containers"]),
        (
            &["network", "create", "--subnet", "10.21.0.0/24", "--subnet", "fd00:1::/126", "x"],
            2,
            &["fd00:1::/126 is not of a size that works"],
        ),
        (&["network", "create", "tiny"], 1, &["tiny", "already in use"]),
        (&["network", "create", "--subnet", "10.20.0.0/16", "x"], 1, &["10.20.0.0/29 of network `tiny`"]),
        (&["network", "create", "--subnet", "10.214.9.0/24", "x"], 1, &["virtual addresses"]),
        (&["network", "create", "--subnet", &own, "x"], 1, &["a route of its own", "n1"]),
        (&["network", "create", "--subnet", "10.215.0.128/25", "x"], 1, &["10.215.0.0/24", "n1"]),
        (&["network", "create", "--subnet", "10.21.0.1/24", "x"], 2, &["host bits"]),
        (&["network", "create", "--subnet", "somewhere", "x"], 2, &["not an IPv4 network"]),
        (&["network", "create", "--opt", "encrypted", "x"], 2, &["encrypt"]),
        (&["network", "create", "--driver", "macvlan", "x"], 2, &["one driver"]),
        (&["network", "create", "host"], 2, &["means something else"]),
        (&["network", "rm", "default"], 1, &["it stays"]),
        (&["service", "create", "--name", "s", "--network", "nope", images::BUSYBOX], 1, &["network `nope`"]),
        (
            &["service", "create", "--name", "s", "-p", "192.0.2.7:80:80", images::BUSYBOX],
            1,
            &["no node has the address 192.0.2.7"],
        ),
        (
            &["service", "create", "--name", "s", "-p", "[2001:db8::7]:80:80", images::BUSYBOX],
            1,
            &["no node has the address 2001:db8::7"],
        ),
        (&["service", "create", "--name", "s", "-p", "[::1:80:80", images::BUSYBOX], 2, &["in brackets"]),
        (
            &["service", "create", "--name", "s", "-p", "target=80,allow=fd00::1/8", images::BUSYBOX],
            2,
            &["host bits"],
        ),
        (
            &["service", "create", "--name", "s", "-p", "target=80,allow=10.0.0.1/8", images::BUSYBOX],
            2,
            &["host bits"],
        ),
        (&["run", "--rm", "-p", "192.0.2.7:80:80", images::BUSYBOX], 125, &["192.0.2.7", "this node"]),
        (&["run", "--rm", "-p", "[2001:db8::7]:80:80", images::BUSYBOX], 125, &["2001:db8::7", "this node"]),
    ];
    for (words, code, expected) in cases {
        node.rctl(words).fails(code, expected);
    }
    // An exhausted range is the reason on the task, at once.
    let words = ["service", "create", "--detach", "--name", "many", "--replicas", "8", "--network", "tiny"];
    node.rctl(&[&words[..], &[images::BUSYBOX, "sleep", "1000"]].concat()).ok();
    wait_until("the reason is told", SOON, || {
        let told = node.rctl(&["service", "inspect", "many"]).ok();
        let reason = "no free address in network `tiny` and no block is left in its pool";
        hold(told.contains(reason), || told.clone())
    });
    node.rctl(&["service", "rm", "many"]).ok();
    ports_are_bound_and_open_to_some(node);
    lab.finish();
}

/// To the node's own processes, to the machine that asks, or not to it.
fn ports_are_bound_and_open_to_some(node: &Node) {
    let machine = node.machine();
    let from_machine = format!("published=8083,target=80,allow={machine}");
    let mut words = vec!["service", "create", "--name", "gate", "--stop-signal", "SIGKILL"];
    words.extend(["-p", "127.0.0.1:8081:80", "-p", "published=8082,target=80,allow=192.0.2.0/24"]);
    words.extend(["-p", &from_machine, images::BUSYBOX, "sh", "-c", SERVER]);
    node.rctl(&words).ok();
    let local =
        |port: &str| node.exec("curl", &["-sS", "-m", "5", &format!("http://127.0.0.1:{port}/")]).code;
    wait_until("the service answers", SOON, || hold(local("8081") == 0, || "not yet".to_owned()));
    assert_eq!(local("8083"), 7, "curl's 7: refused");
    let remote = |port| std::net::TcpStream::connect_timeout(&node.port(port), SOON).is_ok();
    assert_eq!([8081, 8082, 8083].map(remote), [false, false, true]);
    let listed = node.rctl(&["service", "ls"]).ok();
    assert!(listed.contains("127.0.0.1:8081->80/tcp, *:8082->80/tcp (from 192.0.2.0/24)"), "{listed}");
    node.rctl(&["service", "rm", "gate"]).ok();
    let plain = ["run", "--detach", "--rm", "-p", "127.0.0.1:8081:80", images::BUSYBOX, "sh", "-c", SERVER];
    let id = node.rctl(&plain).ok();
    wait_until("the container answers", SOON, || hold(local("8081") == 0, || "not yet".to_owned()));
    assert!(!remote(8081));
    node.rctl(&["kill", id.trim()]).ok();
}

/// Plain containers: in the node's own network, in none, and in the one that each node has for them.
#[test]
fn a_plain_container_may_share_the_nodes_network_or_have_none() {
    let lab = Lab::up("netp", 1);
    let node = lab.node(1);
    node.load(&images::archive("busybox"));
    let run = |arguments: &[&str], script: &str| {
        let words = [&["run", "--rm"], arguments, &[images::BUSYBOX, "sh", "-c", script]].concat();
        node.rctl(&words)
    };
    let host = run(&["--network", "host"], "hostname; ifconfig -a").ok();
    assert!(host.starts_with("n1\n") && host.contains(&node.address.to_string()), "{host}");
    let none = run(&["--network", "none"], "ifconfig -a; cat /etc/resolv.conf").ok();
    assert!(none.contains("lo ") && !none.contains("eth0") && !none.contains("nameserver"), "{none}");
    let dns = ["--dns", "192.0.2.53", "--dns-search", "corp.example", "--dns-option", "timeout:1"];
    let asks = run(&dns, "cat /etc/resolv.conf").ok();
    assert_eq!(asks, "nameserver 169.254.53.53\nsearch corp.example\noptions ndots:0 timeout:1\n");
    let host = run(&[&["--network", "host"], &dns[..2]].concat(), "cat /etc/resolv.conf").ok();
    assert!(host.ends_with("nameserver 192.0.2.53\n") && host.matches("nameserver").count() == 1, "{host}");
    run(&[&["--network", "none"], &dns[..2]].concat(), "true").fails(125, &["asks nobody"]);
    run(&["--dns", "somewhere"], "true").fails(2, &["--dns", "not an IP address"]);
    let usual = run(&[], "ifconfig -a").ok();
    assert!(usual.contains("eth0"), "{usual}");
    for (arguments, expected) in [
        (&["--network", "host", "--publish", "8080:80"][..], "the node's ports already"),
        (&["--network", "none", "--publish", "8080:80"], "can't be reached"),
        (&["--network", "host", "--sysctl", "net.core.somaxconn=1"], "the whole node"),
    ] {
        run(arguments, "true").fails(125, &[expected]);
    }
    run(&["--network", "front"], "true").fails(125, &["network `front`", "in no cluster"]);
    run(&["--network", "front", "--network", "host"], "true").fails(2, &["stand alone"]);
    lab.finish();
}
