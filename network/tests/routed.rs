//! Nodes on two segments with a router between them: containers meet through the tunnel. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::net::{Ipv4Addr, UdpSocket};

use lab::{Node, Ns, VIP, assert_even, base, eventually, outer6, twin, web};
use rorqual_network::GATEWAY;

struct Routed {
    nodes: Vec<Node>,
    client: Ns,
    address: Ipv4Addr,
    _router: Ns,
}

/// Node 1 and 2 behind router interfaces of their own, the client on node 1's segment.
fn routed() -> Routed {
    let router = Ns::new();
    router.command("sysctl", "-qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    router.ip("link add br1 type bridge");
    router.ip("link set br1 up");
    router.ip("addr add 10.97.1.254/24 dev br1");
    let plug = |name: &str, address: Ipv4Addr, bridged: bool| {
        let ns = Ns::new();
        ns.cable("eth0", &format!("{address}/24"), &router, name);
        let gateway = Ipv4Addr::from((u32::from(address) & 0xffff_ff00) | 254);
        if bridged {
            router.ip(&format!("link set {name} master br1"));
        } else {
            router.ip(&format!("addr add {gateway}/24 dev {name}"));
        }
        ns.ip(&format!("route add default via {gateway}"));
        // IPv6 on the client's segment alone: between the nodes it goes through the tunnel, which needs none.
        if bridged {
            ns.ip(&format!("addr add {}/64 dev eth0 nodad", outer6(address)));
        }
        ns
    };
    let (one, two) = (Ipv4Addr::new(10, 97, 1, 1), Ipv4Addr::new(10, 97, 2, 1));
    let address = Ipv4Addr::new(10, 97, 1, 100);
    let client = plug("client", address, true);
    let nodes = vec![Node::new(1, plug("n1", one, true), one), Node::new(2, plug("n2", two, false), two)];
    for node in &nodes {
        node.apply(base(&nodes)).unwrap();
    }
    Routed { nodes, client, address, _router: router }
}

#[test]
fn containers_and_clients_meet_through_the_tunnel() {
    let Routed { nodes, client, address, .. } = &routed();
    let [a, b] = [nodes[0].container(1), nodes[1].container(1)];
    assert_eq!(a.ns.connect((b.address, 80)).unwrap().client, a.address);
    let mut change = base(nodes);
    change.services = vec![web(&[&a, &b])];
    for node in nodes {
        node.apply(change.clone()).unwrap();
    }
    assert_even(&a.ns.tally((VIP, 80), 40), 2);
    for node in nodes {
        for _ in 0..4 {
            let talk = client.connect(node.at(8080)).unwrap();
            assert_eq!(talk.client, *address, "{} via {}", talk.server, node.name);
        }
        for _ in 0..4 {
            let mut talk = b.ns.connect(node.at(8080)).unwrap();
            let expected = if talk.server == b.id { GATEWAY } else { b.address };
            assert_eq!(talk.client, expected, "{} via {}", talk.server, node.name);
            talk.echo_bytes(20_000).unwrap();
        }
        for other in nodes {
            assert_even(&node.ns.tally(other.at(8080), 40), 2);
        }
    }
    assert_eq!(a.ns.connect((twin(b.address), 80)).unwrap().client, twin(a.address));
    assert_even(&a.ns.tally((twin(VIP), 80), 40), 2);
    for _ in 0..4 {
        let mut talk = client.connect(nodes[0].at6(8080)).unwrap();
        assert_eq!(talk.client, outer6(*address), "{}", talk.server);
        talk.echo_bytes(20_000).unwrap();
    }
    // Full packets do not fit into the tunnel; what is sent gets there all the same.
    let mut talk = a.ns.connect((b.address, 80)).unwrap();
    for _ in 0..20 {
        talk.echo_bytes(20_000).unwrap();
    }
}

/// What a node sends through the tunnel: an Ethernet frame behind a VXLAN header (RFC 7348), with a datagram for port 7.
fn tunnelled(frame: [Ipv4Addr; 2], from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    const NUMBER: u32 = 7271;
    let mut ip = [0x45, 0, 0, 29, 0, 0, 0x40, 0, 64, 17, 0, 0].to_vec();
    ip.extend(from.octets().into_iter().chain(to.octets()));
    let words = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum = words.sum::<u32>();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = [&[8, 0, 0, 0][..], &(NUMBER << 8).to_be_bytes()].concat();
    for node in frame {
        packet.extend([0x02, 0x72].into_iter().chain(node.octets()));
    }
    packet.extend([0x08, 0x00]);
    packet.extend(ip);
    packet.extend([0x10, 0, 0, 7, 0, 9, 0, 0, b'x']);
    packet
}

#[test]
fn the_tunnel_takes_packets_from_peers_only_and_goes_with_the_node() {
    let Routed { nodes, client, .. } = &routed();
    // All that it needs is there as soon as it is.
    let routes = nodes[0].ns.ip("-6 route show table all");
    assert!(routes.lines().any(|route| route.starts_with("local ::1 dev rqx")), "{routes}");
    let [a, b] = [nodes[0].container(1), nodes[1].container(1)];
    let server = a.ns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7)).unwrap());
    server.set_read_timeout(Some(lab::moment())).unwrap();
    let (here, there) = (nodes[0].underlay, nodes[1].underlay);
    let packet = tunnelled([here, there], b.address, a.address);
    let arrives = |ns: &Ns| {
        ns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap())
            .send_to(&packet, (here, 7271))
            .unwrap();
        server.recv(&mut [0; 8]).is_ok()
    };
    eventually("what a peer sends gets there", || arrives(&nodes[1].ns));
    assert!(!arrives(client));
    // Nor what a container sends, to whom the node's own address is open.
    assert!(!arrives(&a.ns));
    assert!(nodes[0].ns.ip("-d link").contains("vxlan"));
    nodes[0].teardown().unwrap();
    assert!(!nodes[0].ns.ip("-d link").contains("vxlan"));
}
