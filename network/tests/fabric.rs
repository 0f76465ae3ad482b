//! The fabric on real kernels' namespaces: three nodes and a client on one segment. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use lab::{CLIENT, Lab, Server, VIP, assert_even, at_once, eventually, received};
use rorqual_network::{Change, GATEWAY, Protocol, PublishedPort};

#[test]
fn containers_reach_each_other_and_the_world_on_every_node() {
    let lab = Lab::new();
    let [a, b] = [1, 2].map(|n| lab.nodes[0].container(n));
    let c = lab.nodes[1].container(1);
    for (from, to) in [(&a, &b), (&a, &c), (&c, &b)] {
        let talk = from.ns.connect((to.address, 80)).unwrap();
        assert_eq!((talk.server, talk.client), (to.id.clone(), from.address.into()));
    }
    // Outside the cluster nobody knows the way to a container, so the node lends its address.
    let _outside = lab::Server::start(&lab.client, "outside", 9000);
    let talk = a.ns.connect((CLIENT, 9000)).unwrap();
    assert_eq!(talk.client, lab.nodes[0].underlay);
}

#[test]
fn published_ports_balance_evenly_on_every_node_and_show_the_client() {
    let lab = Lab::new();
    let containers: Vec<_> = lab.nodes.iter().flat_map(|node| [1, 2].map(|n| node.container(n))).collect();
    lab.serve(&containers.iter().collect::<Vec<_>>());
    for node in &lab.nodes {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..12 {
            let talk = lab.client.connect(node.at(8080)).unwrap();
            assert_eq!(talk.client, CLIENT, "{} via {}", talk.server, node.name);
            seen.insert(talk.server);
        }
        assert_eq!(seen.len(), 6, "{seen:?}");
        assert_even(&lab.client.tally(node.at(8080), 300), 6);
    }
}

#[test]
fn containers_reach_services_by_vip_and_port_and_also_themselves() {
    let lab = Lab::new();
    let [a, b] = [lab.nodes[0].container(1), lab.nodes[1].container(1)];
    lab.serve(&[&a, &b]);
    assert_even(&a.ns.tally((VIP, 80), 100), 2);
    for target in
        [SocketAddr::from((VIP, 80)), lab.nodes[0].at(8080), lab.nodes[1].at(8080), lab.nodes[2].at(8080)]
    {
        assert_even(&a.ns.tally(target, 40), 2);
        for _ in 0..2 {
            let mut talk = a.ns.connect(target).unwrap();
            // Itself it could not answer under its own address.
            let expected = if talk.server == a.id { GATEWAY } else { a.address };
            assert_eq!(talk.client, expected, "{} at {target}", talk.server);
            talk.echo().unwrap();
        }
    }
    // Alone, it is balanced to itself every time.
    lab.serve(&[&a]);
    assert_eq!(a.ns.connect((VIP, 80)).unwrap().server, a.id);
    assert_eq!(a.ns.connect(lab.nodes[0].at(8080)).unwrap().server, a.id);
    assert_eq!(a.ns.connect(lab.nodes[1].at(8080)).unwrap().server, a.id);
}

#[test]
fn the_nodes_themselves_reach_published_ports() {
    let lab = Lab::new();
    let containers: Vec<_> = lab.nodes.iter().map(|node| node.container(1)).collect();
    lab.serve(&containers.iter().collect::<Vec<_>>());
    for node in &lab.nodes {
        assert_even(&node.ns.tally((Ipv4Addr::LOCALHOST, 8080), 60), 3);
        assert_even(&node.ns.tally((VIP, 80), 60), 3);
        for other in &lab.nodes {
            assert_even(&node.ns.tally(other.at(8080), 60), 3);
        }
    }
}

#[test]
fn established_connections_stay_and_new_ones_avoid_what_left() {
    let lab = Lab::new();
    let [a, b] = [lab.nodes[0].container(1), lab.nodes[1].container(1)];
    lab.serve(&[&a, &b]);
    let node = &lab.nodes[2];
    let mut talks: Vec<_> = (0..4).map(|_| lab.client.connect(node.at(8080)).unwrap()).collect();
    assert!(talks.iter().any(|t| t.server == a.id) && talks.iter().any(|t| t.server == b.id));
    lab.serve(&[&b]);
    for talk in &mut talks {
        talk.echo().unwrap();
    }
    assert_eq!(lab.client.tally(node.at(8080), 40).keys().collect::<Vec<_>>(), [&b.id]);
    for talk in &mut talks {
        talk.echo().unwrap();
    }
}

#[test]
fn what_is_not_there_refuses_at_once() {
    let lab = Lab::new();
    let inside = lab.nodes[0].container(1);
    lab.serve(&[]);
    let refused = |ns: &lab::Ns, to: SocketAddr| {
        let start = Instant::now();
        let error = ns.connect(to).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
        assert!(start.elapsed() < at_once(), "{to} took {:?}", start.elapsed());
    };
    for node in &lab.nodes {
        refused(&lab.client, node.at(8080));
        refused(&node.ns, (Ipv4Addr::LOCALHOST, 8080).into());
        refused(&node.ns, (VIP, 80).into());
        refused(&inside.ns, node.at(8080));
    }
    refused(&inside.ns, (VIP, 80).into());
    // Addresses that no service and no container has.
    refused(&inside.ns, (Ipv4Addr::new(10, 214, 9, 9), 80).into());
    refused(&inside.ns, (lab.nodes[0].address(40), 80).into());
    refused(&inside.ns, (lab.nodes[1].address(40), 80).into());
    refused(&inside.ns, (Ipv4Addr::new(10, 213, 99, 9), 80).into());
    refused(&lab.nodes[0].ns, (Ipv4Addr::new(10, 213, 99, 9), 80).into());
}

/// As one whose program has just ended does, of which nobody knows yet.
#[test]
fn who_is_refused_by_a_replica_is_led_to_another_one_once() {
    const PORT: u16 = 81;
    let lab = Lab::new();
    let [a, b] = [lab.nodes[0].container(1), lab.nodes[1].container(1)];
    let caller = lab.nodes[2].container(1);
    let server = Server::start(&b.ns, "other", PORT);
    let service = |endpoints: &[&lab::Container]| {
        let mut service = lab::web(endpoints);
        service.ports = vec![PublishedPort::new(8080, PORT, Protocol::Tcp)];
        Change { services: vec![service], ..Change::default() }
    };
    let [refusing, third] = [&lab.nodes[0], &lab.nodes[2]];
    let own = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    // Those of a row take turns with the same replicas.
    let rows: [&[(&lab::Ns, SocketAddr)]; 4] = [
        &[(&lab.client, refusing.at(8080)), (&refusing.ns, own)],
        &[(&lab.client, third.at(8080)), (&third.ns, own)],
        &[(&lab.client, third.at6(8080))],
        &[(&caller.ns, (VIP, PORT).into())],
    ];
    lab.apply_all(&service(&[&a, &b]));
    std::thread::scope(|scope| {
        for row in rows {
            // One of two has its first turn with who refuses, and the next one with the other.
            scope.spawn(move || {
                for (ns, to) in row.iter().chain(row) {
                    assert_eq!(
                        ns.connect(*to).map(|talk| talk.server).ok().as_deref(),
                        Some("other"),
                        "{to}"
                    );
                }
            });
        }
    });
    drop(server);
    let refused = |(ns, to): &(&lab::Ns, SocketAddr)| {
        let start = Instant::now();
        assert_eq!(ns.connect(*to).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
        start.elapsed()
    };
    std::thread::scope(|scope| {
        for row in rows {
            scope.spawn(move || row.iter().map(refused).max());
        }
    });
    // Where there is nobody else, at once.
    lab.apply_all(&service(&[&a]));
    for way in rows.into_iter().flatten() {
        let took = refused(way);
        assert!(took < at_once(), "{} took {took:?}", way.1);
    }
}

#[test]
fn connections_to_a_container_that_is_gone_are_reset_at_once() {
    let lab = Lab::new();
    for (owner, asked) in [(0, 0), (0, 1)] {
        let container = lab.nodes[owner].container(1);
        lab.serve(&[&container]);
        let mut talk = lab.client.connect(lab.nodes[asked].at(8080)).unwrap();
        let mut own = lab.nodes[asked].ns.connect((Ipv4Addr::LOCALHOST, 8080)).unwrap();
        lab.nodes[owner].detach(&container.id);
        for talk in [&mut talk, &mut own] {
            let start = Instant::now();
            assert_eq!(talk.echo().unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert!(start.elapsed() < at_once());
        }
    }
}

#[test]
fn a_lost_node_leaves_no_connection_hanging() {
    let lab = Lab::new();
    let [a, b] = [lab.nodes[0].container(1), lab.nodes[1].container(1)];
    lab.serve(&[&b]);
    let mut talk = lab.client.connect(lab.nodes[2].at(8080)).unwrap();
    lab.switch.ip("link set n2 down");
    for node in [&lab.nodes[0], &lab.nodes[2]] {
        let block = lab.base().blocks.remove(1).block;
        node.apply(Change {
            services: vec![lab::web(&[&a])],
            removed_peers: vec!["n2".into()],
            removed_blocks: vec![block],
            ..Change::default()
        })
        .unwrap();
    }
    let start = Instant::now();
    assert_eq!(talk.echo().unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(start.elapsed() < at_once());
    assert_eq!(lab.client.connect(lab.nodes[2].at(8080)).unwrap().server, a.id);
}

#[test]
fn datagrams_show_the_client_and_leave_an_endpoint_that_left() {
    let lab = Lab::new();
    let containers = [lab.nodes[0].container(1), lab.nodes[1].container(1)];
    let servers = containers.each_ref().map(|c| {
        let socket = c.ns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap());
        socket.set_read_timeout(Some(lab::patience())).unwrap();
        socket
    });
    let client = lab.client.run(|| UdpSocket::bind((CLIENT, 0)).unwrap());
    client.set_read_timeout(Some(lab::patience())).unwrap();
    client.connect(lab.nodes[2].at(5300)).unwrap();
    // One client's port, one connection: it moves only because its endpoint leaves.
    for alone in [0, 1, 0] {
        lab.apply_all(&udp(&[&containers[alone]]));
        client.send(b"question").unwrap();
        let mut buffer = [0; 16];
        let (length, from) = received(&servers[alone], &mut buffer).unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        servers[alone].send_to(&buffer[..length], from).unwrap();
        assert_eq!(received(&client, &mut buffer).unwrap().0, length);
    }
    lab.apply_all(&udp(&[]));
    client.send(b"question").unwrap();
    assert_eq!(received(&client, &mut [0; 16]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

/// Who talks to an endpoint by UDP through a published port, once: which of the servers has heard it.
fn heard(client: &UdpSocket, servers: &[UdpSocket]) -> Option<usize> {
    client.send(b"question").unwrap();
    let mut heard = None;
    lab::eventually("somebody hears it or it is refused", || {
        heard = servers.iter().position(|server| server.recv(&mut [0; 16]).is_ok());
        heard.is_some() || client.recv(&mut [0; 16]).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
    });
    heard
}

fn udp(endpoints: &[&lab::Container]) -> Change {
    let mut service = lab::web(endpoints);
    service.ports = vec![PublishedPort::new(5300, 53, Protocol::Udp)];
    Change { services: vec![service], ..Change::default() }
}

/// A socket that waits for nothing.
fn bound(ns: &lab::Ns, address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = ns.run(move || UdpSocket::bind((address, port)).unwrap());
    socket.set_nonblocking(true).unwrap();
    socket
}

#[test]
fn an_address_is_used_again_when_its_past_is_forgotten() {
    let lab = Lab::new();
    let node = &lab.nodes[0];
    for round in 0..3 {
        let first = node.container(1);
        let servers = [bound(&first.ns, Ipv4Addr::UNSPECIFIED, 53)];
        let client = bound(&lab.client, CLIENT, 0);
        client.connect(node.at(5300)).unwrap();
        node.apply(udp(&[&first])).unwrap();
        assert_eq!(heard(&client, &servers), Some(0));
        node.detach(&first.id);
        drop((servers, first));
        // It does not wait until the past is forgotten: whoever takes the address does.
        node.apply_only(udp(&[])).unwrap();
        let second = node.container(1);
        let servers = [bound(&second.ns, Ipv4Addr::UNSPECIFIED, 53)];
        assert_eq!(heard(&client, &servers), None, "it is another's, in round {round}");
        node.detach(&second.id);
    }
}

#[test]
fn who_comes_to_an_endpoint_that_is_back_stays_there() {
    let lab = Lab::new();
    let node = &lab.nodes[0];
    let containers = [1, 2].map(|n| node.container(n));
    let servers = containers.each_ref().map(|c| bound(&c.ns, Ipv4Addr::UNSPECIFIED, 53));
    node.apply(udp(&[&containers[0], &containers[1]])).unwrap();
    let clients = || {
        (0..8).map(|_| {
            let client = bound(&lab.client, CLIENT, 0);
            client.connect(node.at(5300)).unwrap();
            client
        })
    };
    let before: Vec<_> = clients().collect();
    assert!(before.iter().any(|client| heard(client, &servers) == Some(0)));
    node.apply_only(udp(&[&containers[1]])).unwrap();
    node.apply_only(udp(&[&containers[0], &containers[1]])).unwrap();
    let new: Vec<_> = clients().map(|client| (heard(&client, &servers), client)).collect();
    assert!(new.iter().any(|(first, _)| *first == Some(0)), "it gets its share");
    node.apply(Change::default()).unwrap();
    for (first, client) in &new {
        assert_eq!(heard(client, &servers), *first);
    }
}

/// A connection about which a node forgets all it knew, as the kernel does with one that was idle for its limit (five days,
/// or what somebody has set) or when its table is full.
#[test]
fn an_idle_connection_that_nodes_have_forgotten_goes_on_or_is_reset_at_once() {
    // Only the node that was called forgets, only those of the replicas, all; and whether it is another replica's turn.
    for (forgetful, shifted) in [(2..3, false), (2..3, true), (0..2, false), (0..3, false), (0..3, true)] {
        let lab = Lab::new();
        let forgetful = &lab.nodes[forgetful];
        let [a, b] = [lab.nodes[0].container(1), lab.nodes[1].container(1)];
        let (called, caller) = (&lab.nodes[2], lab.nodes[2].container(1));
        lab.serve(&[&a, &b]);
        for node in forgetful {
            let limit = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
            node.ns.run(move || std::fs::write(limit, "1")).unwrap();
        }
        let (port, own) = (called.at(8080), SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)));
        let connect = || {
            [(&lab.client, port), (&caller.ns, (VIP, 80).into()), (&called.ns, own)]
                .map(|(ns, to)| ns.connect(to).unwrap())
        };
        let mut talks: Vec<_> = (0..4).flat_map(|_| connect()).collect();
        let addresses = [a.address.into(), b.address.into()];
        let knows = |node: &lab::Node| {
            node.ns.run(move || rorqual_network::open_connections(&addresses)).unwrap() > 0
        };
        eventually("they are forgotten", || !forgetful.iter().any(knows));
        let _other = shifted.then(|| lab.client.connect(port).unwrap());
        let mut resets = 0;
        for talk in &mut talks {
            let start = Instant::now();
            if let Err(error) = talk.echo() {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                resets += 1;
            }
            assert!(start.elapsed() < at_once(), "{:?}", start.elapsed());
        }
        assert!(resets > 0 || !shifted, "another replica knows nothing of it");
    }
}
