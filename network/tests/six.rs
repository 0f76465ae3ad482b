//! IPv6 beside IPv4 on real kernels' namespaces: three nodes and a client on one segment. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use lab::{CLIENT, Container, Lab, VIP, assert_even, at_once, eventually, outer6, twin, web};
use rorqual_network::{Change, Error, HostPort, Protocol, PublishedPort};

/// What the node is for containers that are balanced to themselves.
const GATEWAY6: &str = "fd72:7126:9ac4::a9fe:101";

fn at(container: &Container) -> SocketAddr {
    (twin(container.address), 80).into()
}

fn vip() -> SocketAddr {
    (twin(VIP), 80).into()
}

#[test]
fn containers_reach_each_other_and_the_world_by_ipv6() {
    let lab = Lab::new();
    let [a, b] = [1, 2].map(|n| lab.nodes[0].container(n));
    let c = lab.nodes[1].container(1);
    for (from, to) in [(&a, &b), (&a, &c), (&c, &b)] {
        let talk = from.ns.connect(at(to)).unwrap();
        assert_eq!((talk.server, talk.client), (to.id.clone(), twin(from.address).into()));
    }
    let _outside = lab::Server::start(&lab.client, "outside", 9000);
    let talk = a.ns.connect((outer6(CLIENT), 9000)).unwrap();
    assert_eq!(talk.client, outer6(lab.nodes[0].underlay), "the node lends its address");
    let attached = &lab.nodes[0].attached()[0].interfaces[0];
    assert_eq!(attached.address6, Some(twin(attached.address)));
}

#[test]
fn published_ports_balance_on_every_node_and_show_the_client_by_ipv6() {
    let lab = Lab::new();
    let containers: Vec<_> = lab.nodes.iter().flat_map(|node| [1, 2].map(|n| node.container(n))).collect();
    lab.serve(&containers.iter().collect::<Vec<_>>());
    for node in &lab.nodes {
        for _ in 0..12 {
            let talk = lab.client.connect(node.at6(8080)).unwrap();
            assert_eq!(talk.client, outer6(CLIENT), "{} via {}", talk.server, node.name);
        }
        assert_even(&lab.client.tally(node.at6(8080), 300), 6);
        // What is counted for one family does not disturb the other.
        assert_even(&lab.client.tally(node.at(8080), 60), 6);
    }
}

#[test]
fn containers_and_nodes_reach_services_by_ipv6_and_also_themselves() {
    let lab = Lab::new();
    let [a, b] = [lab.nodes[0].container(1), lab.nodes[1].container(1)];
    lab.serve(&[&a, &b]);
    assert_even(&a.ns.tally(vip(), 100), 2);
    for target in [vip(), lab.nodes[0].at6(8080), lab.nodes[1].at6(8080), lab.nodes[2].at6(8080)] {
        for _ in 0..4 {
            let mut talk = a.ns.connect(target).unwrap();
            let expected: IpAddr =
                if talk.server == a.id { GATEWAY6.parse().unwrap() } else { twin(a.address).into() };
            assert_eq!(talk.client, expected, "{} at {target}", talk.server);
            talk.echo_bytes(20_000).unwrap();
        }
    }
    for node in &lab.nodes {
        assert_even(&node.ns.tally(vip(), 40), 2);
        for other in &lab.nodes {
            assert_even(&node.ns.tally(other.at6(8080), 40), 2);
        }
    }
}

#[test]
fn datagrams_by_ipv6_show_the_client_and_come_back() {
    let lab = Lab::new();
    let containers: Vec<_> = lab.nodes.iter().map(|node| node.container(1)).collect();
    for (container, node) in containers.iter().flat_map(|one| lab.nodes.iter().map(move |node| (one, node))) {
        // One replica at a time, so that it is known which one answers.
        let mut service = web(&[container]);
        service.ports = vec![PublishedPort::new(5300, 53, Protocol::Udp)];
        lab.apply_all(&Change { services: vec![service], ..Change::default() });
        // The one before is held a moment longer by a program that another test starts just then.
        let mut bound = None;
        eventually("the port is free", || {
            bound = container.ns.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 53)).ok());
            bound.is_some()
        });
        let server = bound.unwrap();
        server.set_read_timeout(Some(lab::moment())).unwrap();
        let client = lab.client.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap());
        client.set_read_timeout(Some(lab::patience())).unwrap();
        client.connect(node.at6(5300)).unwrap();
        let mut buffer = [0; 16];
        let mut from = None;
        // One that comes before the nodes have met may be lost.
        eventually("a datagram gets there", || {
            client.send(b"hello").unwrap();
            from = server.recv_from(&mut buffer).ok().map(|(_, from)| from);
            from.is_some()
        });
        let from = from.unwrap();
        assert_eq!((from.ip(), &buffer[..5]), (outer6(CLIENT).into(), &b"hello"[..]), "{}", node.name);
        server.send_to(b"back", from).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 4);
    }
}

fn refused(ns: &lab::Ns, to: SocketAddr) {
    // The first one may wait until the nodes have met.
    eventually("a connection is refused at once", || {
        let start = Instant::now();
        let error = ns.connect(to).map(|talk| talk.server).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
        start.elapsed() < at_once()
    });
}

#[test]
fn what_is_not_there_refuses_at_once_by_ipv6() {
    let lab = Lab::new();
    let inside = lab.nodes[0].container(1);
    lab.serve(&[]);
    // A program of the node that listens everywhere is not what a service's address means.
    let _own = lab::Server::start(&lab.nodes[0].ns, "own", 80);
    for node in &lab.nodes {
        refused(&lab.client, node.at6(8080));
        refused(&node.ns, vip());
        refused(&inside.ns, node.at6(8080));
    }
    refused(&inside.ns, vip());
    for n in [2, 9] {
        let nobody: SocketAddr = (twin(lab.nodes[0].address(n)), 80).into();
        refused(&inside.ns, nobody);
        refused(&lab.nodes[0].ns, nobody);
        refused(&inside.ns, (twin(lab.nodes[1].address(n)), 80).into());
    }
}

#[test]
fn networks_nodes_and_metadata_are_closed_to_ipv6() {
    let lab = Lab::new();
    let a = lab.nodes[0].container(1);
    let b = lab.nodes[1].container(1);
    let mut change = lab.base();
    change.blocks[1].network = "other".into();
    let mut service = web(&[&b]);
    service.network = "other".into();
    change.services = vec![service];
    lab.apply_all(&change);
    refused(&a.ns, at(&b));
    refused(&b.ns, at(&a));
    refused(&a.ns, vip());
    // A published port is for everybody.
    assert_eq!(a.ns.connect(lab.nodes[0].at6(8080)).unwrap().client, twin(a.address));
    // Another node's services, at every address of it; and where nodes talk, at one's own.
    let _services: Vec<_> = lab.nodes.iter().map(|n| lab::Server::start(&n.ns, "node", 9100)).collect();
    let _guarded = lab::Server::start(&lab.nodes[0].ns, "guarded", 4780);
    refused(&a.ns, lab.nodes[1].at6(9100));
    refused(&a.ns, (twin(lab.nodes[1].underlay), 9100).into());
    refused(&a.ns, lab.nodes[0].at6(4780));
    assert_eq!(a.ns.connect(lab.nodes[0].at6(9100)).unwrap().server, "node");
    lab.nodes[0].ns.ip(&format!("route add default via {}", outer6(CLIENT)));
    refused(&a.ns, "[fd00:ec2::254]:80".parse().unwrap());
    // A machine beside the nodes that knows a route.
    lab.client.ip(&format!("route add {}/48 via {}", lab::RANGE6, outer6(lab.nodes[0].underlay)));
    refused(&lab.client, at(&a));
}

#[test]
fn forged_ipv6_sources_are_dropped_at_the_veth() {
    let lab = Lab::new();
    let a = lab.nodes[0].container(1);
    let b = lab.nodes[1].container(1);
    let server = b.ns.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 7)).unwrap());
    server.set_read_timeout(Some(lab::moment())).unwrap();
    let send = |from: Ipv6Addr| {
        a.ns.ip(&format!("addr replace {from}/128 dev eth0 nodad"));
        let to = (twin(b.address), 7);
        let socket = a.ns.run(move || UdpSocket::bind((from, 0)).unwrap());
        let sent = socket.send_to(b"x", to);
        let mut buffer = [0; 8];
        sent.is_ok() && server.recv(&mut buffer).is_ok()
    };
    eventually("what is its own gets there", || send(twin(a.address)));
    for forged in [twin(lab.nodes[0].address(2)), twin(b.address), outer6(CLIENT)] {
        if forged != twin(b.address) {
            assert!(!send(forged), "{forged} came through");
        }
    }
}

#[test]
fn the_loopback_address_leads_to_published_ports_here_and_elsewhere() {
    let lab = Lab::new();
    let [a, b] = [lab.nodes[0].container(1), lab.nodes[1].container(1)];
    lab.serve(&[&a, &b]);
    let node = &lab.nodes[0];
    let localhost = (Ipv6Addr::LOCALHOST, 8080);
    assert_even(&node.ns.tally(localhost, 40), 2);
    for _ in 0..4 {
        let mut talk = node.ns.connect(localhost).unwrap();
        let gateway: Ipv6Addr = GATEWAY6.parse().unwrap();
        let expected = if talk.server == a.id { gateway } else { outer6(node.underlay) };
        assert_eq!(talk.client, expected, "{}", talk.server);
        talk.echo_bytes(20_000).unwrap();
    }
    // Others may take the way back away.
    node.ns.ip("-6 route flush table main proto 113 ::1");
    eventually("the way back is there again", || node.ns.connect(localhost).is_ok());
}

#[test]
fn ports_are_open_on_the_asked_ipv6_address_and_to_the_asked_clients_alone() {
    let lab = Lab::new();
    let node = &lab.nodes[0];
    let [a, b] = [node.container(1), lab.nodes[1].container(1)];
    let port = |published, address: Option<Ipv6Addr>, allow: &[&str]| PublishedPort {
        address: address.map(IpAddr::from),
        allow: allow.iter().map(|range| range.parse().unwrap()).collect(),
        ..PublishedPort::new(published, 80, Protocol::Tcp)
    };
    let outer = outer6(node.underlay);
    let mut service = web(&[&a, &b]);
    service.ports = vec![
        port(8080, Some(Ipv6Addr::LOCALHOST), &[]),
        port(8081, Some(outer), &[]),
        port(8082, None, &["fd00::/8", "2001:db8::40/122"]),
        port(8083, None, &["2001:db8::/122", "10.99.0.0/24"]),
        port(8084, None, &["::/0"]),
    ];
    lab.apply_all(&Change { services: vec![service.clone()], ..Change::default() });
    let open = |ns: &lab::Ns, to: SocketAddr| match ns.connect(to) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
            false
        }
    };
    let here = |port| SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let reached = [
        open(&node.ns, here(8080)),
        open(&node.ns, (Ipv4Addr::LOCALHOST, 8080).into()),
        open(&lab.client, node.at6(8080)),
        open(&lab.client, node.at6(8081)),
        open(&lab.client, node.at(8081)),
        open(&lab.client, lab.nodes[1].at6(8081)),
        open(&node.ns, here(8081)),
        open(&lab.client, node.at6(8082)),
        open(&lab.client, node.at6(8083)),
        open(&lab.client, node.at(8083)),
        open(&lab.nodes[1].ns, node.at6(8083)),
        open(&lab.client, node.at6(8084)),
        open(&lab.client, node.at(8084)),
    ];
    let expected = [true, false, false, true, false, false, false, true, false, true, true, true, false];
    assert_eq!(reached, expected);
    // A container gets to another node's port where that is published, as who it is, and to no program behind its number.
    let program = lab::Server::start(&lab.nodes[1].ns, "program", 8081);
    assert!(a.ns.connect(lab.nodes[1].at6(8081)).is_err());
    let talk = b.ns.connect(node.at6(8081)).unwrap();
    let itself: Ipv6Addr = GATEWAY6.parse().unwrap();
    assert_eq!(talk.client, if talk.server == b.id { itself } else { twin(b.address) });
    // A port is not in the way of another at another address.
    drop(program);
    service.ports.push(port(8081, Some(Ipv6Addr::LOCALHOST), &[]));
    lab.apply_all(&Change { services: vec![service], ..Change::default() });
    assert!(open(&node.ns, here(8081)));
}

#[test]
fn ports_of_one_container_and_local_ones_have_ipv6() {
    let lab = Lab::new();
    let port = |published, allow: Vec<_>| HostPort {
        address: None,
        published,
        target: 80,
        protocol: Protocol::Tcp,
        allow,
    };
    let gated = port(5001, vec!["10.99.0.0/24".parse().unwrap()]);
    let local = lab.nodes[0].local_container("solo", vec![port(5000, vec![]), gated]);
    let talk = lab.client.connect(lab.nodes[0].at6(5000)).unwrap();
    assert_eq!((talk.server, talk.client), (local.id.clone(), outer6(CLIENT).into()));
    assert!(lab.client.connect(lab.nodes[0].at(5001)).is_ok());
    refused(&lab.client, lab.nodes[0].at6(5001));
    let _outside = lab::Server::start(&lab.client, "outside", 9000);
    let talk = local.ns.connect((outer6(CLIENT), 9000)).unwrap();
    assert_eq!(talk.client, outer6(lab.nodes[0].underlay));
    let at = |address: Ipv6Addr| HostPort { address: Some(address.into()), ..port(5002, vec![]) };
    let refusal = lab.nodes[0].attach_local("lost", vec![at(outer6(CLIENT))]).unwrap_err().to_string();
    assert!(refusal.starts_with("attach.ports.address \"2001:db8::64\""), "{refusal}");
    let bound = lab.nodes[0].local_container("bound", vec![at(Ipv6Addr::LOCALHOST)]);
    let talk = lab.nodes[0].ns.connect((Ipv6Addr::LOCALHOST, 5002)).unwrap();
    assert_eq!((talk.server, talk.client), (bound.id.clone(), GATEWAY6.parse::<IpAddr>().unwrap()));
    refused(&lab.client, lab.nodes[0].at6(5002));
    let taken = lab.nodes[0].attach_local("late", vec![port(5002, vec![])]).unwrap_err();
    assert!(matches!(&taken, Error::PortConflict { holder, .. } if holder == "container bound"), "{taken}");
}

#[test]
fn a_node_without_ipv6_gets_none_of_its_connections() {
    let lab = Lab::new();
    let [a, b] = [lab.nodes[0].container(1), lab.nodes[1].container(1)];
    lab.serve(&[&a, &b]);
    let mut without = lab.nodes[1].peer();
    without.ipv6.clear();
    lab.apply_all(&Change { peers: vec![without], ..Change::default() });
    assert_even(&lab.client.tally(lab.nodes[0].at(8080), 20), 2);
    let tally = lab.client.tally(lab.nodes[0].at6(8080), 20);
    assert_eq!(tally.keys().collect::<Vec<_>>(), [&a.id]);
    lab.apply_all(&Change { peers: vec![lab.nodes[1].peer()], ..Change::default() });
    assert_even(&lab.client.tally(lab.nodes[0].at6(8080), 20), 2);
}

#[test]
fn what_others_take_away_of_ipv6_is_put_back_and_nothing_stays_in_the_end() {
    let lab = Lab::new();
    let [a, b] = [lab.nodes[0].container(1), lab.nodes[1].container(1)];
    let ns = &lab.nodes[0].ns;
    ns.ip("-6 route flush proto 113");
    ns.ip("-6 neigh flush nud permanent");
    ns.command("sysctl", "-qw net.ipv6.conf.all.forwarding=0");
    eventually("the way to the other node is back", || a.ns.connect(at(&b)).is_ok());
    lab.nodes[0].teardown().unwrap();
    for what in ["-6 route show table all proto 113", "-6 addr show dev lo scope global"] {
        assert_eq!(ns.ip(what), "", "{what}");
    }
    assert!(!ns.ip("-6 rule list").contains("proto 113"));
    assert!(!ns.ip("-6 neigh show nud permanent").contains("fe80::7271:"));
}

#[test]
fn a_node_that_leaves_its_cluster_keeps_no_address_of_it() {
    let mut lab = Lab::new();
    let node = &mut lab.nodes[0];
    let own = |ns: &lab::Ns| ns.ip("-6 addr show dev lo scope global");
    assert!(own(&node.ns).contains(&twin(node.underlay).to_string()));
    node.stop();
    (node.options.ipv6, node.options.underlay) = (None, Ipv4Addr::UNSPECIFIED);
    node.start().unwrap();
    // The fabric before may still be ending, and put it back once.
    eventually("the cluster's address is gone", || !own(&node.ns).contains(lab::RANGE6));
    assert!(own(&node.ns).contains(GATEWAY6));
    node.apply(Change { full: true, ..Change::default() }).unwrap();
    eventually("the cluster's routes are gone", || {
        !node.ns.ip("-6 route show table all proto 113").contains(lab::RANGE6)
    });
}

#[test]
fn a_node_on_which_ipv6_is_turned_off_works_by_ipv4() {
    let mut lab = Lab::new();
    let a = lab.nodes[0].container(1);
    let node = &mut lab.nodes[1];
    // While it runs, and before it starts.
    node.ns.command("sysctl", "-qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1");
    let b = node.container(1);
    assert_eq!(b.ns.connect((a.address, 80)).unwrap().client, a_v4(&b));
    node.stop();
    node.start().unwrap();
    let base = lab.base();
    lab.nodes[1].apply(base).unwrap();
    let c = lab.nodes[1].container(2);
    let attached = lab.nodes[1].attached();
    let of = |id: &str| attached.iter().find(|one| one.id == id).unwrap().interfaces[0].address6;
    assert_eq!(of(&c.id), None);
    lab.serve(&[&a, &b, &c]);
    for node in &lab.nodes {
        assert_even(&lab.client.tally(node.at(8080), 30), 3);
    }
    assert_eq!(c.ns.connect((a.address, 80)).unwrap().client, a_v4(&c));
}

fn a_v4(container: &Container) -> IpAddr {
    container.address.into()
}
