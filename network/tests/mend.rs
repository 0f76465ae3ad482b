//! What others do to the node's network: it is noticed and put back. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Container, Lab, Node, Ns, VIP, base, web};
use rorqual_network::Change;

/// Waits for something to be put back, on a loaded machine. Usually it takes half a second.
fn is_back(what: &str, condition: impl FnMut() -> bool) {
    lab::within(lab::slow(Duration::from_secs(20)), what, condition);
}

/// What of a node's network is to stay the same, in words.
fn shape(node: &Node) -> Vec<String> {
    let shown = [
        ("ip", "rule"),
        ("ip", "-o addr show dev lo"),
        ("ip", "route show table all proto 113"),
        ("ip", "neigh show nud permanent"),
        ("nft", "-s list ruleset"),
    ];
    // The order means nothing but that of a chain's rules, which the fabric compares for itself.
    let sorted = |(program, arguments)| {
        let text = node.ns.command(program, arguments);
        // Interfaces and addresses that packets have added.
        let mut lines: Vec<&str> =
            text.lines().map(str::trim).filter(|line| !line.contains("\" . ")).collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    shown.map(sorted).to_vec()
}

/// The node's end of a container's link.
fn veth(node: &Node, container: &Container) -> String {
    let route = node.ns.ip(&format!("route show {}", container.address));
    route.split_whitespace().skip_while(|word| *word != "dev").nth(1).unwrap().to_owned()
}

/// The Ethernet addresses of both other nodes were learned.
fn knows_peers(node: &Node) -> bool {
    node.ns.command("nft", &format!("list map inet rorqual_{} peers", node.name)).matches(" : 0x0").count()
        == 2
}

fn setting(node: &Node, name: &str) -> String {
    node.ns.command("sysctl", &format!("-n {name}")).trim().to_owned()
}

#[test]
fn what_is_deleted_or_changed_comes_back() {
    let lab = Lab::new();
    let containers: Vec<_> = lab.nodes.iter().map(|node| node.container(1)).collect();
    lab.serve(&containers.iter().collect::<Vec<_>>());
    let node = &lab.nodes[0];
    let own = &containers[0];
    lab::eventually("peers are known", || knows_peers(node));
    let before = shape(node);
    let veth = veth(node, own);
    let deeds = [
        format!("route del {}", own.address),
        "route del 10.213.0.64/26".to_owned(),
        "route replace 10.213.0.128/26 dev lo proto 113".to_owned(),
        "route add 10.213.9.0/26 dev lo proto 113".to_owned(),
        "route flush proto 113".to_owned(),
        "rule del priority 11001".to_owned(),
        "addr del 169.254.53.53/32 dev lo".to_owned(),
        "addr del 169.254.1.1/32 dev lo".to_owned(),
        format!("neigh del {} dev {veth}", own.address),
        format!("neigh replace {} lladdr 02:00:00:00:00:09 dev {veth} nud permanent", own.address),
        format!("link set {veth} down"),
        "link set lo down".to_owned(),
    ];
    for deed in deeds {
        node.ns.ip(&deed);
        is_back(&deed, || shape(node) == before);
        assert_eq!(own.ns.connect((containers[1].address, 80)).unwrap().server, containers[1].id, "{deed}");
    }
    for (name, wrong, right) in [
        ("net.ipv4.ip_forward".to_owned(), 0, "1"),
        ("net.ipv4.conf.all.send_redirects".to_owned(), 1, "0"),
        ("net.ipv4.conf.eth0.route_localnet".to_owned(), 0, "1"),
        ("net.ipv4.conf.eth0.send_redirects".to_owned(), 1, "0"),
        ("net.ipv4.conf.eth0.rp_filter".to_owned(), 1, "2"),
        (format!("net.ipv4.conf.{veth}.forwarding"), 0, "1"),
    ] {
        node.ns.command("sysctl", &format!("-qw {name}={wrong}"));
        is_back(&name, || setting(node, &name) == right);
    }
    assert_eq!(shape(node), before);
}

#[test]
fn a_table_that_others_changed_is_made_anew() {
    let lab = Lab::new();
    let containers: Vec<_> = lab.nodes.iter().map(|node| node.container(1)).collect();
    lab.serve(&containers.iter().collect::<Vec<_>>());
    lab::eventually("peers are known", || lab.nodes.iter().all(knows_peers));
    let before: Vec<_> = lab.nodes.iter().map(shape).collect();
    let mut kept = lab.client.connect(lab.nodes[0].at(8080)).unwrap();
    let deeds = [
        "delete element inet TABLE vips { 10.214.0.1 }",
        "flush chain inet TABLE isolate",
        "flush chain inet TABLE port_tcp_8080",
        "insert rule inet TABLE isolate drop",
        "flush table inet TABLE",
        "delete table inet TABLE",
        "flush ruleset",
        "add element inet TABLE closed { 10.213.0.0/26 }",
    ];
    // Each node is broken often enough, and not so often that it waits.
    for (at, deed) in deeds.iter().enumerate() {
        let node = &lab.nodes[at % 3];
        let deed = deed.replace("TABLE", &format!("rorqual_{}", node.name));
        node.ns.command("nft", &deed);
        is_back(&deed, || shape(node) == before[at % 3]);
        lab.client.connect(node.at(8080)).unwrap();
    }
    kept.echo().unwrap();
    // What others have in tables of their own is theirs.
    lab.nodes[0].ns.command("nft", "add table inet theirs");
    lab.nodes[0].ns.command("nft", "flush table inet theirs");
    assert_ne!(shape(&lab.nodes[0]), before[0]);
}

#[test]
fn an_interface_that_is_reset_has_its_routes_again() {
    let lab = Lab::new();
    let [a, b] = [lab.nodes[0].container(1), lab.nodes[1].container(1)];
    let node = &lab.nodes[0];
    node.ns.ip("link set eth0 down");
    is_back("routes are gone", || !node.ns.ip("route").contains("10.213.0.64"));
    node.ns.ip("link set eth0 up");
    is_back("routes", || a.ns.connect((b.address, 80)).is_ok_and(|talk| talk.server == b.id));
}

#[test]
fn a_container_whose_link_was_deleted_has_it_again() {
    let lab = Lab::new();
    let node = &lab.nodes[0];
    let [a, b] = [node.container(1), lab.nodes[1].container(1)];
    lab.serve(&[&a]);
    let mut kept = b.ns.connect((a.address, 80)).unwrap();
    let mac = a.ns.ip("-br link show eth0");
    let before = shape(node);
    node.ns.ip(&format!("link del {}", veth(node, &a)));
    is_back("the link", || {
        node.ns.ip(&format!("route show {}", a.address)).contains("rqc") && shape(node).len() == before.len()
    });
    is_back("the container", || b.ns.connect((a.address, 80)).is_ok_and(|talk| talk.server == a.id));
    assert_eq!(a.ns.connect((b.address, 80)).unwrap().client, a.address);
    assert_eq!(a.ns.ip("-br link show eth0").split_whitespace().nth(2), mac.split_whitespace().nth(2));
    // A connection is more than its link.
    kept.echo().unwrap();
    // From inside as well.
    a.ns.ip("link del eth0");
    is_back("the container", || lab.client.connect(node.at(8080)).is_ok_and(|talk| talk.server == a.id));
}

/// Two nodes behind routers.
fn routed() -> (Vec<Node>, Ns) {
    let router = Ns::new();
    router.command("sysctl", "-qw net.ipv4.ip_forward=1");
    let nodes = [1_u8, 2].map(|number| {
        let (ns, underlay) = (Ns::new(), Ipv4Addr::new(10, 97, number, 1));
        ns.cable("eth0", &format!("{underlay}/24"), &router, &format!("n{number}"));
        router.ip(&format!("addr add 10.97.{number}.254/24 dev n{number}"));
        ns.ip(&format!("route add default via 10.97.{number}.254"));
        Node::new(number.into(), ns, underlay)
    });
    let nodes = Vec::from(nodes);
    for node in &nodes {
        node.apply(base(&nodes)).unwrap();
    }
    (nodes, router)
}

#[test]
fn the_tunnel_comes_back_with_all_that_it_knows() {
    let (nodes, _router) = routed();
    let [a, b] = [nodes[0].container(1), nodes[1].container(1)];
    let node = &nodes[0];
    let meets = || a.ns.connect((b.address, 80)).is_ok_and(|talk| talk.server == b.id);
    assert!(meets());
    let links = node.ns.ip("-o link show type vxlan");
    let tunnel = links.split(':').nth(1).unwrap().trim().to_owned();
    let macs = || node.ns.command("bridge", &format!("fdb show dev {tunnel}"));
    let known = macs();
    assert!(known.contains("10.97.2.1"), "{known}");
    let mac = known.split_whitespace().next().unwrap().to_owned();
    for (program, deed) in [
        ("bridge", format!("fdb del {mac} dev {tunnel} dst 10.97.2.1")),
        ("ip", format!("neigh flush dev {tunnel} nud permanent")),
        ("ip", format!("link set {tunnel} down")),
        ("ip", format!("addr flush dev {tunnel}")),
        ("ip", format!("link del {tunnel}")),
    ] {
        node.ns.command(program, &deed);
        is_back(&deed, || {
            node.ns.ip("-o link show type vxlan").contains(&tunnel)
                && node.ns.ip(&format!("neigh show dev {tunnel}")).contains("PERMANENT")
                && macs() == known
                && node.ns.ip(&format!("-o addr show dev {tunnel}")).contains("169.254.1.1")
                && meets()
        });
    }
}

/// A program that writes down what changes in a namespace.
struct Monitor(Child, tempfile::NamedTempFile);

impl Monitor {
    fn start(ns: &Ns, program: &str, arguments: &str) -> Monitor {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (program, line, out) = (program.to_owned(), arguments.to_owned(), file.reopen().unwrap());
        let child = ns.run(move || {
            let mut command = Command::new(program);
            command.args(line.split_whitespace()).stdout(Stdio::from(out)).spawn().unwrap()
        });
        Monitor(child, file)
    }

    fn heard(&self) -> String {
        std::fs::read_to_string(self.1.path()).unwrap()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_restart_changes_nothing_that_is_right() {
    let mut lab = Lab::new();
    let containers: Vec<_> = lab.nodes.iter().map(|node| node.container(1)).collect();
    let local = lab.nodes[0].local_container("plain", vec![]);
    lab.serve(&containers.iter().collect::<Vec<_>>());
    let mut full = lab.base();
    full.services = vec![web(&containers.iter().collect::<Vec<_>>())];
    lab::eventually("peers are known", || knows_peers(&lab.nodes[0]));
    let before = shape(&lab.nodes[0]);
    lab.nodes[0].stop();
    let objects = Monitor::start(&lab.nodes[0].ns, "ip", "-4 monitor route address rule");
    let table = Monitor::start(&lab.nodes[0].ns, "nft", "monitor");
    // Both listen once they have told of something.
    let probe = |lab: &Lab, nth: u32| {
        lab.nodes[0].ns.ip(&format!("rule add priority {} table 77", 20_000 + nth));
        lab.nodes[0].ns.command("nft", &format!("add table ip probe{nth}"));
    };
    let mut probes = 0;
    lab::eventually("both listen", || {
        probes += 1;
        probe(&lab, probes);
        objects.heard().contains("77") && table.heard().contains("probe")
    });
    lab.nodes[0].start().unwrap();
    lab.nodes[0].apply(full.clone()).unwrap();
    // What another program did meanwhile is put right, also where only nftables can tell.
    lab.nodes[0].attach(lab_attach(&containers[0])).unwrap();
    probes += 1;
    let last = 20_000 + probes;
    probe(&lab, probes);
    lab::eventually("all is told", || {
        objects.heard().contains(&last.to_string()) && table.heard().contains(&format!("probe{probes}\n"))
    });
    let foreign = |line: &&str| {
        !line.contains("lookup 77")
            && !line.contains("probe")
            && !line.contains("new generation")
            && !line.is_empty()
    };
    assert_eq!(objects.heard().lines().filter(foreign).collect::<Vec<_>>(), [""; 0]);
    assert_eq!(table.heard().lines().filter(foreign).collect::<Vec<_>>(), [""; 0]);
    for nth in 1..=probes {
        lab.nodes[0].ns.ip(&format!("rule del priority {}", 20_000 + nth));
        lab.nodes[0].ns.command("nft", &format!("delete table ip probe{nth}"));
    }
    assert_eq!(shape(&lab.nodes[0]), before);
    assert!(local.ns.connect((VIP, 80)).is_err());

    // With something wrong, the table is made anew.
    lab.nodes[0].stop();
    lab.nodes[0].ns.command("nft", "delete element inet rorqual_n1 vips { 10.214.0.1 }");
    lab.nodes[0].ns.ip("route del 10.214.0.0/16");
    lab.nodes[0].start().unwrap();
    lab.nodes[0].apply(full).unwrap();
    lab::eventually("all is right", || shape(&lab.nodes[0]) == before);
}

fn lab_attach(container: &Container) -> rorqual_network::Attach {
    rorqual_network::Attach {
        resolvers: vec![],
        id: container.id.clone(),
        name: container.id.clone(),
        networks: vec![rorqual_network::Join::new("default", Some(container.address))],
        ports: vec![],
    }
}

#[test]
fn what_is_taken_away_again_and_again_is_put_back_ever_more_rarely() {
    let lab = Lab::new();
    let a = lab.nodes[0].container(1);
    lab.serve(&[&a]);
    let node = &lab.nodes[0];
    let there = || node.ns.ip("route").contains("10.214.0.0/16");
    let mut last = Instant::now();
    for _ in 0..5 {
        last = Instant::now();
        node.ns.ip("route del 10.214.0.0/16");
        is_back("the route", there);
    }
    node.ns.ip("route del 10.214.0.0/16");
    node.ns.ip("rule del priority 11001");
    is_back("the rule", || node.ns.ip("rule").contains("11001"));
    // It was put back after `last`, and waits for four seconds from then on.
    assert!(!there() || last.elapsed() > Duration::from_secs(4), "the route did not wait");
    // A change of our own in the meantime goes its way.
    node.apply(Change { removed_services: vec!["web-1".into()], ..Change::default() }).unwrap();
}
