//! A network with an IPv6 range of its own, beside one of the cluster's: three nodes and a client on one segment. Needs
//! root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use lab::{
    CLIENT, Container, Lab, VIP, assert_even, at_once, eventually, outer6, patience, twin, web, within,
};
use rorqual_network::{Attach, Block, Change, Join, Network};

/// The `n`th address of a node's block, and the one beside it.
fn place(node: usize, n: u8) -> (Ipv4Addr, Ipv6Addr) {
    let place = 8 * node as u8 + n;
    (Ipv4Addr::new(10, 20, 0, place), Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, place.into()))
}

/// The network `own`, of which each node has one block.
fn own(lab: &Lab) -> Change {
    let network = Network {
        id: "own".into(),
        subnets: vec!["10.20.0.0/24".parse().unwrap()],
        subnets6: vec!["fd00:1::/64".parse().unwrap()],
        ipv6_names: true,
        ..Network::default()
    };
    let mut change = Change { networks: vec![network], ..lab.base() };
    for (at, node) in lab.nodes.iter().enumerate() {
        let block = format!("{}/29", place(at, 0).0).parse().unwrap();
        change.blocks.push(Block { block, network: "own".into(), node: node.name.clone() });
    }
    change
}

fn lab() -> Lab {
    let lab = Lab::new();
    lab.apply_all(&own(&lab));
    lab
}

fn join(node: usize, n: u8) -> Join {
    let (address, address6) = place(node, n);
    Join { address6: Some(address6), ..Join::new("own", Some(address)) }
}

fn container(lab: &Lab, node: usize, name: &str, networks: Vec<Join>) -> Container {
    let attach = Attach { resolvers: vec![], id: name.into(), name: name.into(), networks, ports: vec![] };
    Container::new(&lab.nodes[node], name.to_owned(), attach)
}

fn at(address: Ipv6Addr) -> SocketAddr {
    (address, 80).into()
}

fn refused(ns: &lab::Ns, to: SocketAddr) {
    // The first one may wait until the nodes have met, and a loaded machine for its turn.
    within(patience() * 4, "a connection is refused at once", || {
        let start = Instant::now();
        let error = ns.connect(to).map(|talk| talk.server).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
        start.elapsed() < at_once()
    });
}

#[test]
fn containers_have_addresses_of_the_range_and_are_reached_at_them() {
    let lab = lab();
    let [a, b, c] = [(0, "a"), (0, "b"), (1, "c")].map(|(node, name)| {
        let n = if name == "b" { 3 } else { 2 };
        (container(&lab, node, name, vec![join(node, n)]), place(node, n).1)
    });
    for (from, to) in [(&a, &b), (&a, &c), (&c, &b)] {
        let talk = from.0.ns.connect(at(to.1)).unwrap();
        assert_eq!((talk.server, talk.client), (to.0.id.clone(), IpAddr::from(from.1)));
    }
    // To the outside the node lends its address.
    let outside = lab::Server::start(&lab.client, "outside", 9000);
    assert_eq!(a.0.ns.connect((outer6(CLIENT), 9000)).unwrap().client, outer6(lab.nodes[0].underlay));
    drop(outside);
    // What nobody has is refused at once, all over the range; and so is the range to other networks, and to a machine
    // beside the nodes that knows a route.
    let other = lab.nodes[2].container(1);
    for nobody in [place(0, 5).1, place(1, 5).1, place(9, 1).1, "fd00:1::dead:beef:7".parse().unwrap()] {
        refused(&a.0.ns, at(nobody));
        refused(&lab.nodes[2].ns, at(nobody));
    }
    refused(&other.ns, at(a.1));
    refused(&a.0.ns, at(twin(other.address)));
    lab.client.ip(&format!("route add fd00:1::/64 via {}", outer6(lab.nodes[0].underlay)));
    refused(&lab.client, at(a.1));
}

#[test]
fn services_and_published_ports_lead_to_the_range() {
    let lab = lab();
    let [a, b] = [0, 1].map(|node| container(&lab, node, &format!("c{node}"), vec![join(node, 2)]));
    let mut service = web(&[&a, &b]);
    service.network = "own".into();
    lab.apply_all(&Change { services: vec![service], ..Change::default() });
    let six = [place(0, 2).1, place(1, 2).1];
    for node in &lab.nodes {
        assert_even(&lab.client.tally(node.at6(8080), 40), 2);
        assert_eq!(lab.client.connect(node.at6(8080)).unwrap().client, outer6(CLIENT));
    }
    assert_even(&a.ns.tally(at(twin(VIP)), 40), 2);
    let caller = container(&lab, 2, "caller", vec![join(2, 2)]);
    assert_eq!(caller.ns.connect(at(twin(VIP))).unwrap().client, place(2, 2).1);
    let table = lab.nodes[2].ns.command("nft", "list ruleset");
    assert!(six.iter().all(|address| table.contains(&format!(": {address}"))), "{table}");
}

#[test]
fn a_container_in_a_second_network_is_there_as_its_address_of_the_range() {
    let lab = lab();
    let first = Join::new("default", Some(lab.nodes[0].address(1)));
    let both = container(&lab, 0, "both", vec![first, join(0, 2)]);
    let inside = container(&lab, 1, "inside", vec![join(1, 2)]);
    let plain = lab.nodes[1].container(1);
    assert_eq!(both.ns.connect(at(place(1, 2).1)).unwrap().client, place(0, 2).1);
    assert_eq!(both.ns.connect(at(twin(plain.address))).unwrap().client, twin(lab.nodes[0].address(1)));
    assert_eq!(inside.ns.connect(at(place(0, 2).1)).unwrap().server, "both");
    refused(&plain.ns, at(place(0, 2).1));
}

#[test]
fn it_outlives_the_daemon_and_goes_with_the_network() {
    let mut lab = lab();
    let a = container(&lab, 0, "a", vec![join(0, 2)]);
    // The node knows nothing of the network yet.
    lab.nodes[1].stop();
    lab.nodes[1].start().unwrap();
    let b = container(&lab, 1, "b", vec![join(1, 2)]);
    let six = lab.nodes[1].attached()[0].interfaces[0].address6;
    assert_eq!(six, Some(place(1, 2).1));
    let change = own(&lab);
    lab.nodes[1].apply(change).unwrap();
    assert_eq!(a.ns.connect(at(place(1, 2).1)).unwrap().server, "b");
    assert_eq!(b.ns.connect(at(place(0, 2).1)).unwrap().server, "a");
    // Somebody takes away what leads there.
    lab.nodes[0].ns.ip("-6 route flush proto 113 root fd00:1::/64");
    eventually("the routes are back", || {
        let routes = lab.nodes[0].ns.ip("-6 route");
        ["fd00:1::2 dev", "fd00:1::8/125 via"].iter().all(|route| routes.contains(route))
    });
    assert_eq!(a.ns.connect(at(place(1, 2).1)).unwrap().server, "b");

    let node = &lab.nodes[2];
    let shown = |node: &lab::Node| {
        let routes = node.ns.ip("-6 route show table all");
        routes + &node.ns.command("nft", "list ruleset")
    };
    assert!(shown(node).contains("fd00:1::/64"));
    node.apply(Change {
        removed_networks: vec!["own".into()],
        removed_blocks: (0..3).map(|at| format!("{}/29", place(at, 0).0).parse().unwrap()).collect(),
        ..Change::default()
    })
    .unwrap();
    assert!(!shown(node).contains("fd00:1:"), "{}", shown(node));
}
