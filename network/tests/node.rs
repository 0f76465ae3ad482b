//! One node's fabric: restart, teardown, DNS, isolation, ports of the node. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use lab::{CLIENT, Lab, Node, Ns, VIP, ask, eventually, patience, received};
use rorqual_network::{
    Attach, Block, Change, Error, HostPort, Join, Network, Protocol, PublishedPort, ServiceView,
};
use simple_dns::{RCODE, TYPE};

#[test]
fn names_are_answered_as_of_now_and_within_the_network() {
    let lab = Lab::new();
    let [a, b] = [lab.nodes[0].container(1), lab.nodes[1].container(1)];
    let local = lab.nodes[0].local_container("plain", vec![]);
    lab.serve(&[&a, &b]);
    let known = |addresses: &[Ipv4Addr]| (RCODE::NoError, addresses.to_vec());
    assert_eq!(ask(&a.ns, "web", TYPE::A), known(&[VIP]));
    assert_eq!(ask(&b.ns, "WEB", TYPE::A), known(&[VIP]));
    assert_eq!(ask(&a.ns, "tasks.web", TYPE::A), known(&[a.address, b.address]));
    assert_eq!(ask(&a.ns, "web.n2c1", TYPE::A), known(&[b.address]));
    assert_eq!(ask(&a.ns, "n1c1", TYPE::A), known(&[a.address]));
    assert_eq!(ask(&a.ns, "web", TYPE::AAAA), known(&[]));
    assert_eq!(ask(&a.ns, "nobody", TYPE::A), (RCODE::NameError, vec![]));
    assert_eq!(ask(&local.ns, "plain", TYPE::A), known(&[local.address]));
    assert_eq!(ask(&local.ns, "web", TYPE::A), (RCODE::NameError, vec![]));
    lab.serve(&[&b]);
    assert_eq!(ask(&a.ns, "tasks.web", TYPE::A), known(&[b.address]));
    lab.serve(&[]);
    assert_eq!(ask(&a.ns, "tasks.web", TYPE::A), known(&[]));
    // No other resolver is configured: that is said at once.
    let start = Instant::now();
    assert_eq!(ask(&a.ns, "example.com", TYPE::A).0, RCODE::ServerFailure);
    assert!(start.elapsed() < lab::at_once());
}

#[test]
fn a_restart_disturbs_nothing() {
    let mut lab = Lab::new();
    let [a, b] = [lab.nodes[0].container(1), lab.nodes[1].container(1)];
    lab.serve(&[&a, &b]);
    let target = lab.nodes[0].at(8080);
    let mut talks: Vec<_> = (0..4).map(|_| lab.client.connect(target).unwrap()).collect();
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (ended, count, client) = (Arc::clone(&stop), Arc::clone(&done), lab.client.clone());
    let load = std::thread::spawn(move || {
        while !ended.load(Ordering::Relaxed) {
            client.connect(target).unwrap().echo().unwrap();
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let more = |than: usize| eventually("requests go on", || done.load(Ordering::Relaxed) > than + 5);
    more(0);
    lab.nodes[0].stop();
    more(done.load(Ordering::Relaxed));
    lab.nodes[0].start().unwrap();
    let attached = lab.nodes[0].attached();
    assert_eq!(attached.len(), 1);
    assert_eq!((attached[0].address().unwrap(), &attached[0].netns), (a.address, &a.netns));
    more(done.load(Ordering::Relaxed));
    // A part first, as a daemon that is still being told may do; then everything.
    let mut full = lab.base();
    full.services = vec![lab::web(&[&a, &b])];
    for change in [Change { services: full.services.clone(), ..Change::default() }, full] {
        lab.nodes[0].apply(change).unwrap();
        more(done.load(Ordering::Relaxed));
    }
    talks.iter_mut().for_each(|talk| talk.echo().unwrap());
    let again = lab.nodes[0]
        .attach(Attach {
            resolvers: vec![],
            id: a.id.clone(),
            name: a.id.clone(),
            networks: vec![Join::new("default", Some(a.address))],
            ports: vec![],
        })
        .unwrap();
    assert_eq!(again, attached[0]);
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
}

#[test]
fn a_restart_finds_who_is_at_which_place() {
    let mut lab = Lab::new();
    let all: Vec<_> = (1..=5).map(|number| lab.nodes[0].container(number)).collect();
    let some = |numbers: &[usize]| -> Vec<_> { numbers.iter().map(|number| &all[*number]).collect() };
    // What is where depends on all that was.
    for endpoints in [&[0, 1, 2, 3, 4][..], &[1, 2, 3, 4], &[1, 3, 4], &[0, 1, 3, 4]] {
        lab.serve(&some(endpoints));
    }
    let mut full = lab.base();
    full.services = vec![lab::web(&some(&[0, 1, 3, 4]))];
    let node = &mut lab.nodes[0];
    // With handles, which everything new has others of. Neighbours' addresses are learnt when they are.
    let table = |node: &lab::Node| -> Vec<String> {
        let listing = node.ns.command("nft", "-a list ruleset");
        listing
            .lines()
            .filter(|line| line.contains("to_") || line.contains("chain"))
            .map(str::to_owned)
            .collect()
    };
    node.apply(full.clone()).unwrap();
    let before = table(node);
    assert!(before.iter().any(|line| line.contains("numgen inc mod 5 map @to_")), "{before:?}");
    node.stop();
    node.start().unwrap();
    node.apply(full).unwrap();
    assert_eq!(table(node), before);
}

#[test]
fn a_full_change_after_a_restart_drops_what_it_does_not_name() {
    let mut lab = Lab::new();
    let a = lab.nodes[0].container(1);
    lab.serve(&[&a]);
    let node = &mut lab.nodes[0];
    node.stop();
    node.start().unwrap();
    node.apply(Change { full: true, ..Change::default() }).unwrap();
    assert!(!node.ns.command("nft", "list ruleset").contains("8080"));
    assert!(!node.ns.ip("rule").contains("fwmark"), "{}", node.ns.ip("rule"));
    assert!(!node.ns.ip("route").contains("10.213.0.64"), "{}", node.ns.ip("route"));
    assert!(node.ns.ip("route").contains(&format!("{} dev", a.address)));
}

#[test]
fn however_many_ask_at_once_all_are_served_and_changes_come_first() {
    const MANY: usize = 1100;
    let lab = Lab::new();
    let container = lab.nodes[0].container(1);
    let fabric = lab.nodes[0].fabric().clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let answered = Arc::new(AtomicUsize::new(0));
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..MANY {
            let (fabric, answered) = (fabric.clone(), Arc::clone(&answered));
            all.spawn(async move {
                fabric.survey().await.unwrap();
                answered.fetch_add(1, Ordering::Relaxed);
            });
        }
        // Each of them has asked.
        tokio::task::yield_now().await;
        let services = vec![lab::web(&[&container])];
        fabric.apply(Change { services, ..Change::default() }).await.unwrap();
        assert!(answered.load(Ordering::Relaxed) < MANY, "the change has waited for everybody");
        all.join_all().await;
        assert_eq!(answered.load(Ordering::Relaxed), MANY);
    });
}

#[test]
fn teardown_leaves_nothing() {
    let lab = Lab::new();
    let node = &lab.nodes[0];
    let look = |node: &Node| {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let state = node.state_dir().to_str().unwrap();
        let mounts: Vec<&str> = mounts.lines().filter(|l| l.contains(state)).collect();
        let files: Vec<_> =
            std::fs::read_dir(node.state_dir()).unwrap().map(|f| f.unwrap().file_name()).collect();
        let commands = ["ip rule", "ip route show table all", "nft list ruleset", "ip -o addr"];
        let mut shown: Vec<String> = commands
            .map(|c| node.ns.command(c.split_once(' ').unwrap().0, c.split_once(' ').unwrap().1))
            .to_vec();
        shown.push(format!("{mounts:?} {files:?}"));
        shown
    };
    let fresh = Ns::new();
    fresh.cable("eth0", "10.99.0.1/24", &lab.switch, "extra");
    fresh.ip("addr add 2001:db8::fe/64 dev eth0 nodad");
    eventually("IPv6 has settled", || !fresh.ip("-o addr").contains("tentative"));
    let a = node.container(1);
    lab.serve(&[&a]);
    let before = look(node);
    assert!(before[2].contains("rorqual_n1") && before[4].contains("n1c1"), "{before:?}");
    let localhost_is_open = || node.ns.command("cat", "/proc/sys/net/ipv4/conf/eth0/route_localnet");
    assert_eq!(localhost_is_open().trim(), "1");
    node.teardown().unwrap();
    assert_eq!(localhost_is_open().trim(), "0");
    let after = look(node);
    assert_eq!(after[0], fresh.ip("rule"));
    assert_eq!(after[2], "");
    assert_eq!(after[4], "[] []");
    assert!(!after[1].contains("10.213") && !after[1].contains("169.254"), "{}", after[1]);
    assert_eq!(after[3].lines().count(), fresh.ip("-o addr").lines().count(), "{}", after[3]);
    assert!(matches!(node.teardown(), Err(Error::Stopped)));
}

#[test]
fn networks_are_apart_and_addresses_cannot_be_forged() {
    let lab = Lab::new();
    let node = &lab.nodes[0];
    let a = node.container(1);
    let local = node.local_container("plain", vec![]);
    let other =
        Block { block: "10.213.4.0/26".parse().unwrap(), network: "other".into(), node: node.name.clone() };
    node.apply(Change { blocks: vec![other], ..Change::default() }).unwrap();
    let mut attach = Attach {
        resolvers: vec![],
        id: "c".into(),
        name: "c".into(),
        networks: vec![Join::new("other", Some(Ipv4Addr::new(10, 213, 4, 1)))],
        ports: vec![],
    };
    let c = node.attach(attach.clone()).unwrap();
    let c_ns = Ns::open(&c.netns);
    let _server = lab::Server::start(&c_ns, "c", 80);
    lab.serve(&[&a]);
    let start = Instant::now();
    for (from, to) in
        [(&a.ns, c.address().unwrap()), (&c_ns, a.address), (&local.ns, a.address), (&a.ns, local.address)]
    {
        assert!(from.connect((to, 80)).is_err());
    }
    assert!(c_ns.connect((VIP, 80)).is_err());
    assert!(start.elapsed() < patience(), "refused, not dropped");
    // What is published is for everyone.
    for from in [&c_ns, &local.ns] {
        assert_eq!(from.connect(node.at(8080)).unwrap().server, a.id);
    }
    // With another's address nothing gets out.
    let sink = lab.client.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9001)).unwrap());
    sink.set_read_timeout(Some(lab::moment())).unwrap();
    let send = |source: Ipv4Addr| {
        a.ns.run(move || UdpSocket::bind((source, 0)).unwrap().send_to(b"x", (CLIENT, 9001)).unwrap());
    };
    a.ns.ip("addr add 10.213.0.77/32 dev eth0");
    send(Ipv4Addr::new(10, 213, 0, 77));
    assert_eq!(received(&sink, &mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    send(a.address);
    sink.set_read_timeout(Some(patience())).unwrap();
    received(&sink, &mut [0; 8]).unwrap();
    // Also not with that of a neighbour whose own packets have just passed, nor with a new one after its own.
    let b = node.container(2);
    b.ns.run(move || UdpSocket::bind((b.address, 0)).unwrap().send_to(b"b", (CLIENT, 9001)).unwrap());
    received(&sink, &mut [0; 8]).unwrap();
    sink.set_read_timeout(Some(lab::moment())).unwrap();
    for forged in [b.address, Ipv4Addr::new(10, 213, 0, 77), Ipv4Addr::new(198, 51, 100, 7)] {
        a.ns.ip(&format!("addr replace {forged}/32 dev eth0"));
        send(forged);
        assert_eq!(received(&sink, &mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock, "{forged}");
    }
    // An address has one owner.
    attach.id = "d".into();
    assert!(matches!(node.attach(attach), Err(Error::AddressTaken { .. })));
}

/// The node's links let packets for 127.0.0.0/8 pass, since published ports need that (`route_localnet`).
#[test]
fn what_listens_at_the_nodes_127_hears_no_container() {
    let lab = Lab::new();
    let node = &lab.nodes[0];
    let a = node.container(1);
    lab.serve(&[&a]);
    let sink = node.ns.run(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 9001)).unwrap());
    sink.set_read_timeout(Some(lab::moment())).unwrap();
    a.ns.ip("addr del 127.0.0.1/8 dev lo");
    let reach = || {
        let from = (a.address, 0);
        let to = (Ipv4Addr::LOCALHOST, 9001);
        a.ns.run(move || UdpSocket::bind(from).unwrap().send_to(b"x", to).unwrap());
        assert_eq!(received(&sink, &mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    };
    reach();
    // What has just sent with its own address is believed, but not more than that.
    a.ns.connect(node.at(8080)).unwrap();
    assert!(node.ns.command("nft", "list set inet rorqual_n1 proven").contains(&a.address.to_string()));
    reach();
    assert!(a.ns.connect((Ipv4Addr::LOCALHOST, 8080)).is_err());
}

#[test]
fn ports_of_one_container_are_published_where_asked_and_refused_when_taken() {
    let ns = Ns::new();
    ns.ip("link add name up0 type bridge");
    ns.ip("addr add 10.98.0.1/24 dev up0");
    ns.ip("link set up0 up");
    let node = Node::new(8, ns, Ipv4Addr::UNSPECIFIED);
    let port = |address, published| HostPort {
        address,
        published,
        target: 80,
        protocol: Protocol::Tcp,
        allow: vec![],
    };
    let everywhere = Ipv4Addr::new(10, 98, 0, 1);
    let a = node.local_container("a", vec![port(None, 8080), port(Some(Ipv4Addr::LOCALHOST.into()), 8081)]);
    for to in [(everywhere, 8080), (Ipv4Addr::LOCALHOST, 8080), (Ipv4Addr::LOCALHOST, 8081)] {
        assert_eq!(node.ns.connect(to).unwrap().server, "a", "{to:?}");
    }
    assert_eq!(a.ns.connect((everywhere, 8080)).unwrap().server, "a");
    assert_eq!(node.ns.connect((everywhere, 8081)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let attach = |id: &str, ports| {
        let id = id.to_owned();
        node.attach(Attach {
            resolvers: vec![],
            name: id.clone(),
            id,
            networks: vec![Join::new("local", None)],
            ports,
        })
    };
    let gated = |range: &str| {
        vec![HostPort { allow: vec![range.parse().unwrap()], ..port(Some(everywhere.into()), 8082) }]
    };
    attach("gated", gated("127.0.0.0/8")).unwrap();
    assert_eq!(node.ns.connect((everywhere, 8082)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let conflict = attach("b", vec![port(None, 8082)]).unwrap_err();
    assert!(matches!(&conflict, Error::PortConflict { holder, .. } if holder == "container gated"));
    let gated = attach("gated", gated("10.98.0.0/24")).unwrap();
    let _server = lab::Server::start(&Ns::open(&gated.netns), "gated", 80);
    assert_eq!(node.ns.connect((everywhere, 8082)).unwrap().server, "gated");
    node.detach("gated");
    let foreign = attach("b", vec![port(Some(Ipv4Addr::new(10, 98, 0, 2).into()), 8083)]).unwrap_err();
    assert!(foreign.to_string().starts_with("attach.ports.address \"10.98.0.2\""), "{foreign}");
    let conflict = attach("b", vec![port(Some(Ipv4Addr::LOCALHOST.into()), 8080)]).unwrap_err();
    assert!(matches!(&conflict, Error::PortConflict { port: 8080, holder, .. } if holder == "container a"));
    let listener = node.ns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9090)).unwrap());
    let taken = attach("b", vec![port(None, 9090)]).unwrap_err();
    let words = taken.to_string();
    assert!(words.contains("9090/tcp") && words.contains(&std::process::id().to_string()), "{words}");
    assert!(node.fabric().port_taken(9090, Protocol::Tcp).is_none(), "asked in the caller's namespace");
    assert_eq!(node.attached().len(), 1, "a refused container leaves nothing");
    drop(listener);
    attach("b", vec![port(None, 9090)]).unwrap();
    // Detached, its ports are free, and the address rests before it is given again.
    node.detach("a");
    assert_eq!(node.ns.connect((everywhere, 8080)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let c = attach("c", vec![port(None, 8080)]).unwrap();
    assert_ne!(c.address(), Some(a.address));
}

#[test]
fn ports_are_open_on_the_asked_address_and_to_the_asked_clients_alone() {
    let lab = Lab::new();
    let node = &lab.nodes[0];
    let [a, b] = [node.container(1), lab.nodes[1].container(1)];
    let port = |published, address: Option<Ipv4Addr>, allow: &[&str]| PublishedPort {
        address: address.map(IpAddr::from),
        allow: allow.iter().map(|range| range.parse().unwrap()).collect(),
        ..PublishedPort::new(published, 80, Protocol::Tcp)
    };
    let mut service = lab::web(&[&a, &b]);
    service.ports = vec![
        port(8080, Some(Ipv4Addr::LOCALHOST), &[]),
        port(8081, Some(node.underlay), &[]),
        port(8082, None, &["192.0.2.0/24", "10.99.0.64/26"]),
        port(8083, None, &["10.99.0.0/26"]),
    ];
    let apply = |service: &ServiceView| {
        lab.apply_all(&Change { services: vec![service.clone()], ..Change::default() });
    };
    apply(&service);
    let open = |ns: &Ns, to: SocketAddr| match ns.connect(to) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
            false
        }
    };
    let here = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let reached = || {
        [
            open(&node.ns, here(8080)),
            open(&lab.client, node.at(8080)),
            open(&lab.client, node.at(8081)),
            open(&lab.client, lab.nodes[1].at(8081)),
            open(&node.ns, here(8081)),
            open(&lab.client, node.at(8082)),
            open(&lab.client, node.at(8083)),
            open(&lab.nodes[1].ns, node.at(8083)),
        ]
    };
    assert_eq!(reached(), [true, false, true, false, false, true, false, true]);
    // A container gets to another node's port where that is published, and to no program behind its number.
    let _program = lab::Server::start(&lab.nodes[1].ns, "program", 8081);
    assert!(a.ns.connect(lab.nodes[1].at(8081)).is_err());
    assert!(open(&b.ns, node.at(8081)));
    // The program is on another address than the port: the service has it. Without an address it is in the way.
    apply(&service);
    service.ports[1].address = None;
    let error =
        lab.nodes[1].apply(Change { services: vec![service.clone()], ..Change::default() }).unwrap_err();
    assert!(matches!(error, Error::PortTaken { port: 8081, .. }), "{error}");
}

#[test]
fn a_service_gets_only_ports_that_are_free_and_the_rest_of_the_change_counts() {
    let lab = Lab::new();
    let node = &lab.nodes[0];
    let a = node.container(1);
    let _listener = node.ns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8081)).unwrap());
    let mut service = lab::web(&[&a]);
    service.ports.push(PublishedPort::new(8081, 80, Protocol::Tcp));
    let error = node.apply(Change { services: vec![service], ..Change::default() }).unwrap_err();
    assert!(matches!(error, Error::PortTaken { port: 8081, .. }), "{error}");
    assert_eq!(lab.client.connect(node.at(8080)).unwrap().client, IpAddr::from(CLIENT));
    let mut second = lab::web(&[&a]);
    (second.id, second.name, second.vip) = ("second".into(), "second".into(), None);
    let error = node.apply(Change { services: vec![second], ..Change::default() }).unwrap_err();
    assert!(
        matches!(&error, Error::PortConflict { port: 8080, holder, .. } if holder == "service web-1"),
        "{error}"
    );
    assert_eq!(ask(&a.ns, "second", TYPE::A), (RCODE::NoError, vec![a.address]));
}

#[test]
fn bad_input_names_the_field() {
    let lab = Lab::new();
    let node = &lab.nodes[0];
    let attach = |id: &str, address| {
        let result = node.attach(Attach {
            resolvers: vec![],
            id: id.into(),
            name: "x".into(),
            networks: vec![Join::new("default", address)],
            ports: vec![],
        });
        result.unwrap_err().to_string()
    };
    assert!(attach("../x", None).starts_with("attach.id \"../x\""));
    assert!(attach("x", Some(Ipv4Addr::new(10, 214, 1, 1))).starts_with("attach.networks.address"));
    let block = |range: &str| Block { block: range.parse().unwrap(), network: "x".into(), node: "n1".into() };
    let error = node.apply(Change { blocks: vec![block("10.214.0.0/26")], ..Change::default() }).unwrap_err();
    assert!(error.to_string().starts_with("change.blocks.block"));
    assert!(node.attached().is_empty());
    // What is wrong with one network is in no other's way.
    let subnets = vec!["10.215.0.0/16".parse().unwrap()];
    let network = Network { id: "x".into(), subnets, ..Network::default() };
    let a = node.container(1);
    let change = Change {
        networks: vec![network],
        blocks: vec![block("10.215.0.0/26")],
        services: vec![lab::web(&[&a])],
        ..Change::default()
    };
    let error = node.apply(change).unwrap_err().to_string();
    assert!(error.contains("change.networks.subnets") && error.contains("change.blocks.block"), "{error}");
    assert_eq!(node.ns.connect(node.at(8080)).unwrap().server, a.id);
}

#[test]
fn a_flushed_table_is_built_anew_by_the_next_change() {
    let lab = Lab::new();
    let a = lab.nodes[0].container(1);
    lab.serve(&[&a]);
    lab.nodes[0].ns.command("nft", "flush ruleset");
    let mut service = lab::web(&[&a]);
    service.ports[0].target = 81;
    let _server = lab::Server::start(&a.ns, "again", 81);
    lab.nodes[0].apply(Change { services: vec![service], ..Change::default() }).unwrap();
    assert_eq!(lab.client.connect(lab.nodes[0].at(8080)).unwrap().server, "again");
}
