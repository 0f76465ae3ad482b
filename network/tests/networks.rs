//! Several networks: who reaches whom from a container that is in some of them, what has no way out, and what is
//! around the node. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use lab::{CLIENT, Container, Lab, Node, Server, patience, received, twin};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use rorqual_network::{Attach, Block, Change, Endpoint, Join, Network, Peer, ServiceView};
use simple_dns::{RCODE, TYPE};

const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const FRONT_VIP: Ipv4Addr = Ipv4Addr::new(10, 214, 0, 5);

/// Networks `front` (the pool's), `back` (an own range), `shut` (internal) and `cloud` (may reach metadata): on node
/// `n` each has one block.
fn networks(lab: &Lab) -> Change {
    let known = |id: &str, subnet: Option<&str>, internal, link_local| Network {
        id: id.into(),
        subnets: subnet.map(|net| net.parse().unwrap()).into_iter().collect(),
        subnets6: vec![],
        internal,
        link_local,
        ipv6_names: id == "front",
    };
    let mut change = lab.base();
    change.networks = vec![
        known("front", None, false, false),
        known("back", Some("192.168.50.0/24"), false, false),
        known("shut", None, true, false),
        known("cloud", None, false, true),
    ];
    for (at, node) in lab.nodes.iter().enumerate() {
        for network in ["front", "back", "shut", "cloud"] {
            let block = Ipv4Addr::from(u32::from(first(network)) + 8 * at as u32);
            change.blocks.push(Block {
                block: format!("{block}/29").parse().unwrap(),
                network: network.into(),
                node: node.name.clone(),
            });
        }
    }
    change
}

fn first(network: &str) -> Ipv4Addr {
    match network {
        "front" => Ipv4Addr::new(10, 213, 10, 0),
        "back" => Ipv4Addr::new(192, 168, 50, 0),
        "shut" => Ipv4Addr::new(10, 213, 20, 0),
        _ => Ipv4Addr::new(10, 213, 30, 0),
    }
}

/// A network and the `n`th address of a node's block in it.
fn join(lab: &Lab, node: usize, network: &str, n: u32) -> Join {
    assert!(node < lab.nodes.len());
    Join::new(network, Some(Ipv4Addr::from(u32::from(first(network)) + 8 * node as u32 + n)))
}

fn container(lab: &Lab, node: usize, name: &str, n: u32, networks: &[&str]) -> Container {
    let networks = networks.iter().map(|network| join(lab, node, network, n)).collect();
    let attach = Attach { resolvers: vec![], id: name.into(), name: name.into(), networks, ports: vec![] };
    Container::new(&lab.nodes[node], name.to_owned(), attach)
}

fn lab() -> Lab {
    let lab = Lab::new();
    lab.apply_all(&networks(&lab));
    lab
}

/// Asks the node's resolver from inside: the first address.
fn look_up(container: &Container, name: &str) -> Option<Ipv4Addr> {
    let name = name.to_owned();
    container.ns.run(move || ask(&name))
}

/// A question of type A, as RFC 1035 writes it, and the first address of the answer.
fn ask(name: &str) -> Option<Ipv4Addr> {
    let mut message = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(patience())).unwrap();
    socket.send_to(&message, (rorqual_network::DNS, 53)).unwrap();
    let mut answer = [0; 512];
    let (length, _) = received(&socket, &mut answer).ok()?;
    if answer[7] == 0 || length < 4 {
        return None;
    }
    let tail: [u8; 4] = answer[length - 4..length].try_into().unwrap();
    Some(tail.into())
}

fn reaches(from: &Container, to: Ipv4Addr) -> bool {
    from.ns.connect((to, 80)).is_ok()
}

#[test]
fn a_container_in_two_networks_is_in_each_as_its_address_of_it() {
    let lab = lab();
    let both = container(&lab, 0, "both", 1, &["front", "back"]);
    let (in_front, in_back) = (both.address, join(&lab, 0, "back", 1).address.unwrap());
    let front = container(&lab, 1, "front", 2, &["front"]);
    let back = container(&lab, 2, "back", 2, &["back"]);
    let near = container(&lab, 0, "near", 3, &["back"]);
    assert!(!reaches(&front, back.address) && !reaches(&back, front.address));
    // Out: as the address of the network that the other one is in.
    assert_eq!(both.ns.connect((front.address, 80)).unwrap().client, in_front);
    assert_eq!(both.ns.connect((back.address, 80)).unwrap().client, in_back);
    assert_eq!(both.ns.connect((near.address, 80)).unwrap().client, in_back);
    // In: at the address of the shared network alone.
    assert_eq!(front.ns.connect((in_front, 80)).unwrap().server, "both");
    assert_eq!(back.ns.connect((in_back, 80)).unwrap().server, "both");
    assert!(!reaches(&front, in_back) && !reaches(&back, in_front));
    // To itself, by either.
    assert_eq!(both.ns.connect((in_back, 80)).unwrap().server, "both");
    // Out of the cluster it goes like any other.
    let outside = Server::start(&lab.client, "client", 80);
    assert_eq!(both.ns.connect((CLIENT, 80)).unwrap().client, lab.nodes[0].underlay);
    drop(outside);
}

#[test]
fn virtual_addresses_and_names_are_those_of_the_shared_networks() {
    let lab = lab();
    let both = container(&lab, 0, "both", 1, &["front", "back"]);
    let front = container(&lab, 1, "one", 2, &["front"]);
    let back = container(&lab, 1, "two", 2, &["back"]);
    let view = |network: &str, vip, address| ServiceView {
        id: format!("db.{network}"),
        name: "db".into(),
        aliases: vec![format!("{network}-db")],
        network: network.into(),
        vip,
        sticky: false,
        ports: vec![],
        endpoints: vec![Endpoint {
            id: format!("db.1.{network}"),
            name: "db.1".into(),
            address,
            node: lab.nodes[1].name.clone(),
            weight: 100,
        }],
        guest: false,
        unready: Default::default(),
    };
    let back_vip = Ipv4Addr::new(10, 214, 0, 6);
    lab.apply_all(&Change {
        services: vec![
            view("front", Some(FRONT_VIP), front.address),
            view("back", Some(back_vip), back.address),
        ],
        ..Change::default()
    });
    // Through the virtual address of its second network, too.
    let talk = both.ns.connect((back_vip, 80)).unwrap();
    assert_eq!(
        (talk.server.as_str(), talk.client),
        ("two", join(&lab, 0, "back", 1).address.unwrap().into())
    );
    assert_eq!(both.ns.connect((FRONT_VIP, 80)).unwrap().server, "one");
    assert!(front.ns.connect((back_vip, 80)).is_err());
    assert_eq!(look_up(&both, "db"), Some(FRONT_VIP), "the first network's");
    assert_eq!(look_up(&both, "back-db"), Some(back_vip));
    assert_eq!(look_up(&front, "db"), Some(FRONT_VIP));
    assert_eq!(look_up(&front, "back-db"), None);
    assert_eq!(look_up(&back, "tasks.db"), Some(back.address));
}

#[test]
fn an_internal_network_has_no_way_out_and_a_second_network_is_one() {
    let lab = lab();
    let shut = container(&lab, 0, "shut", 1, &["shut"]);
    let mate = container(&lab, 1, "mate", 1, &["shut"]);
    let freed = container(&lab, 0, "freed", 2, &["shut", "front"]);
    let front = container(&lab, 1, "front", 2, &["front"]);
    let _outside = Server::start(&lab.client, "client", 80);
    let _host = Server::start(&lab.nodes[0].ns, "host", 81);
    assert!(reaches(&shut, mate.address) && reaches(&mate, shut.address));
    for (to, port) in [(CLIENT, 80), (lab.nodes[0].underlay, 81), (rorqual_network::DNS, 81)] {
        assert!(shut.ns.connect((to, port)).is_err(), "{to}:{port}");
    }
    assert!(!reaches(&shut, front.address));
    assert_eq!(look_up(&shut, "mate"), None, "plain containers of other nodes have no name here");
    assert_eq!(look_up(&shut, "freed"), Some(freed.address));
    assert!(reaches(&freed, CLIENT) && reaches(&freed, front.address) && reaches(&freed, mate.address));
    assert!(freed.ns.connect(lab.nodes[0].at(81)).is_ok());
    // A published port is no way out, at its own node or at another, but for who is in its network anyway.
    let web = lab.nodes[1].container(1);
    lab.serve(&[&web]);
    for node in &lab.nodes {
        for at in [node.at(8080), node.at6(8080)] {
            assert!(shut.ns.connect(at).is_err(), "{at}");
            let client = freed.ns.connect(at).unwrap().client;
            assert!([freed.address.into(), IpAddr::from(twin(freed.address))].contains(&client), "{client}");
        }
    }
    lab.serve(&[&mate]);
    assert_eq!(shut.ns.connect(lab.nodes[0].at(8080)).unwrap().server, "mate");
    // The node itself may look into it.
    assert_eq!(lab.nodes[0].ns.connect((shut.address, 80)).unwrap().server, "shut");
}

/// Whether an ICMP echo comes back.
fn echoes(from: &Container, to: Ipv4Addr) -> bool {
    const REQUEST: [u8; 8] = [8, 0, 0xf7, 0xfd, 0, 1, 0, 1];
    let heard = from.ns.run(move || {
        let raw =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).unwrap();
        let socket = UdpSocket::from(raw);
        socket.set_read_timeout(Some(lab::moment())).unwrap();
        socket.send_to(&REQUEST, (to, 0)).unwrap();
        let mut packet = [0; 64];
        // Behind an IP header: an answer, or a refusal.
        socket.recv(&mut packet).map(|_| packet[20])
    });
    heard.is_ok_and(|kind| kind == 0)
}

/// What somebody's own rules keep from being tracked never is the first packet of a connection.
#[test]
fn what_is_not_tracked_reaches_no_more_of_the_node() {
    let lab = lab();
    let front = container(&lab, 0, "front", 1, &["front"]);
    let shut = container(&lab, 0, "shut", 1, &["shut"]);
    let node = &lab.nodes[0];
    let _own = Server::start(&node.ns, "own", 81);
    let _control = Server::start(&node.ns, "control", 4780);
    node.ns.command("nft", "add table inet theirs");
    for hook in ["prerouting", "output"] {
        node.ns.command(
            "nft",
            &format!("add chain inet theirs {hook} {{ type filter hook {hook} priority raw - 10; }}"),
        );
        node.ns.command("nft", &format!("add rule inet theirs {hook} notrack"));
    }
    assert_eq!(front.ns.connect(node.at(81)).unwrap().server, "own");
    assert!(front.ns.connect(node.at(4780)).is_err());
    assert!(shut.ns.connect(node.at(81)).is_err());
    assert!(echoes(&front, node.underlay) && !echoes(&shut, node.underlay));
    let (code, _) = lab::ask(&shut.ns, "nobody.internal", TYPE::A);
    assert_eq!(code, RCODE::NameError);
}

#[test]
fn what_lies_around_the_node_is_not_for_containers() {
    let lab = lab();
    lab.switch.ip(&format!("addr add {METADATA}/32 dev br0"));
    lab.switch.ip("addr add 10.99.0.253/24 dev br0");
    let cloud_server = Server::start(&lab.switch, "metadata", 80);
    for node in &lab.nodes {
        node.ns.ip(&format!("route add {METADATA}/32 dev eth0"));
    }
    let front = container(&lab, 0, "front", 1, &["front"]);
    let cloud = container(&lab, 0, "cloud", 1, &["cloud"]);
    assert!(reaches(&cloud, METADATA) && !reaches(&front, METADATA));
    drop(cloud_server);
    // The node's own services are open to its containers, but for those of the cluster.
    let _own = Server::start(&lab.nodes[0].ns, "own", 81);
    let _control = Server::start(&lab.nodes[0].ns, "control", 4780);
    let _other = Server::start(&lab.nodes[1].ns, "other", 81);
    let _other_control = Server::start(&lab.nodes[1].ns, "other-control", 4780);
    assert!(front.ns.connect(lab.nodes[0].at(81)).is_ok());
    assert!(front.ns.connect(lab.nodes[0].at(4780)).is_err());
    assert!(front.ns.connect((rorqual_network::DNS, 4780)).is_err());
    assert!(front.ns.connect(lab.nodes[1].at(81)).is_err());
    assert!(front.ns.connect(lab.nodes[1].at(4780)).is_err());
    // Nor at another address of that machine.
    let second = Ipv4Addr::new(10, 99, 0, 52);
    lab.nodes[1].ns.ip(&format!("addr add {second}/24 dev eth0"));
    assert!(front.ns.connect((second, 81)).is_ok(), "nobody knows yet whose it is");
    let peer = Peer { others: vec![second, lab.nodes[1].underlay], ..lab.nodes[1].peer() };
    lab.apply_all(&Change { peers: vec![peer], ..Change::default() });
    assert!(front.ns.connect((second, 81)).is_err() && front.ns.connect((second, 4780)).is_err());
    // What another node publishes is reached there as well.
    let web = lab.nodes[1].container(1);
    lab.serve(&[&web]);
    for node in &lab.nodes {
        let talk = front.ns.connect(node.at(8080)).unwrap();
        assert_eq!((talk.server, talk.client), (web.id.clone(), front.address.into()), "at {}", node.name);
    }
    assert_eq!(front.ns.connect((second, 8080)).unwrap().server, web.id);
    // But for a node on which a program has the port.
    let _holder = Server::start(&lab.nodes[2].ns, "holder", 8090);
    let mut held = lab::web(&[&web]);
    held.ports[0].published = 8090;
    for node in &lab.nodes {
        let applied = node.apply(Change { services: vec![held.clone()], ..Change::default() });
        assert_eq!(applied.is_err(), node.name == "n3");
    }
    for at in [lab.nodes[2].at(8090), lab.nodes[2].at6(8090)] {
        assert!(front.ns.connect(at).is_err(), "{at}");
        assert_eq!(lab.nodes[0].ns.connect(at).unwrap().server, "holder", "the node itself may");
    }
    lab.serve(&[&web]);
    // There alone: not at the container's own address, and behind its node nothing but what is published.
    let _beside = Server::start(&web.ns, "beside", 81);
    assert!(!reaches(&front, web.address));
    lab.nodes[0].ns.command("nft", "flush chain inet rorqual_n1 isolate");
    assert!(reaches(&front, web.address), "the container's node can't tell");
    assert!(front.ns.connect((web.address, 81)).is_err());
}

#[test]
fn a_machine_beside_the_nodes_reaches_containers_through_published_ports_alone() {
    let lab = lab();
    let a = lab.nodes[0].container(1);
    lab.client.ip(&format!("route add 10.213.0.0/16 via {}", lab.nodes[0].underlay));
    lab.client.ip(&format!("route add 192.168.50.0/24 via {}", lab.nodes[0].underlay));
    let back = container(&lab, 0, "back", 1, &["back"]);
    for address in [a.address, back.address] {
        assert!(lab.client.connect((address, 80)).is_err(), "{address}");
    }
    lab.serve(&[&a]);
    for node in &lab.nodes {
        assert_eq!(lab.client.connect(node.at(8080)).unwrap().client, CLIENT);
    }
}

#[test]
fn a_running_container_joins_and_leaves_networks() {
    let mut lab = lab();
    let front = container(&lab, 1, "front", 2, &["front"]);
    let back = container(&lab, 1, "back", 2, &["back"]);
    let one = container(&lab, 0, "one", 1, &["front"]);
    let attach = |networks: Vec<Join>| Attach {
        resolvers: vec![],
        id: "one".into(),
        name: "one".into(),
        networks,
        ports: vec![],
    };
    let (in_front, in_back) = (join(&lab, 0, "front", 1), join(&lab, 0, "back", 1));
    assert!(!reaches(&one, back.address));
    let joined = lab.nodes[0].attach(attach(vec![in_front.clone(), in_back.clone()])).unwrap();
    let names: Vec<&str> = joined.interfaces.iter().map(|interface| interface.name.as_str()).collect();
    assert_eq!(names, ["eth0", "eth1"]);
    assert!(reaches(&one, back.address) && reaches(&one, front.address));
    let mut talk = one.ns.connect((back.address, 80)).unwrap();
    // A daemon that starts again takes it over as it is.
    lab.nodes[0].stop();
    lab.nodes[0].start().unwrap();
    lab.nodes[0].apply(Change { full: true, ..networks(&lab) }).unwrap();
    talk.echo().unwrap();
    assert!(reaches(&one, back.address) && reaches(&one, front.address));
    // The first one goes: what is left has the way out.
    lab.nodes[0].attach(attach(vec![in_back.clone()])).unwrap();
    assert!(!reaches(&one, front.address) && !reaches(&front, one.address));
    assert!(reaches(&one, back.address) && reaches(&back, in_back.address.unwrap()));
    let _outside = Server::start(&lab.client, "client", 80);
    assert!(reaches(&one, CLIENT));
    // Back again, and none at all.
    let again = lab.nodes[0].attach(attach(vec![in_back, in_front])).unwrap();
    assert_eq!(again.interfaces[1].name, "eth0");
    assert!(reaches(&one, front.address) && reaches(&one, back.address));
    assert_eq!(lab.nodes[0].attach(attach(vec![])).unwrap().address(), None);
    assert!(!reaches(&one, CLIENT));
    assert_eq!(one.ns.ip("-o link").lines().count(), 1, "lo is left");
    lab.nodes[0].detach("one");
    let table = lab.nodes[0].ns.command("nft", "list table inet rorqual_n1");
    assert!(!table.contains("also_") && !table.contains("as_one"), "{table}");
}

/// A resolver beside the nodes that knows one address, whatever it is asked, for so many questions.
fn resolver(lab: &Lab, address: Ipv4Addr, questions: usize) -> std::thread::JoinHandle<()> {
    let socket = lab.client.run(|| UdpSocket::bind((CLIENT, 53)).unwrap());
    lab.client.spawn(move || {
        for _ in 0..questions {
            let mut buffer = [0; 512];
            let (length, client) = received(&socket, &mut buffer).unwrap();
            let mut answer = buffer[..length].to_vec();
            (answer[2], answer[3], answer[7]) = (0x81, 0x80, 1);
            // The name of the question, type A, class IN, a TTL, four bytes.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4]);
            answer.extend(address.octets());
            socket.send_to(&answer, client).unwrap();
        }
    })
}

#[test]
fn a_container_has_resolvers_of_its_own_for_names_that_are_not_ours() {
    let lab = lab();
    let known = Ipv4Addr::new(192, 0, 2, 53);
    let asked = resolver(&lab, known, 1);
    let plain = container(&lab, 0, "plain", 1, &["front"]);
    let attach = |name: &str, n, networks: &[&str]| {
        let networks = networks.iter().map(|network| join(&lab, 0, network, n)).collect();
        let resolvers = vec![CLIENT.into()];
        let attach = Attach { id: name.into(), name: name.into(), networks, ports: vec![], resolvers };
        Container::new(&lab.nodes[0], name.to_owned(), attach)
    };
    let (own, shut) = (attach("own", 2, &["front"]), attach("shut", 3, &["shut"]));
    assert_eq!(look_up(&plain, "outside.example"), None);
    assert_eq!(look_up(&shut, "outside.example"), None, "no way out, neither for questions");
    assert_eq!(look_up(&own, "outside.example"), Some(known));
    assert_eq!(look_up(&own, "plain"), Some(plain.address), "what is ours stays ours");
    asked.join().unwrap();
}

#[test]
fn a_block_may_be_cut_while_containers_have_its_addresses() {
    let lab = lab();
    let [here, there] = [0, 1].map(|node| container(&lab, node, &format!("c{node}"), 2, &["back"]));
    let block = |range: &str, node: &Node| Block {
        block: range.parse().unwrap(),
        network: "back".into(),
        node: node.name.clone(),
    };
    let [first, second] = [&lab.nodes[0], &lab.nodes[1]];
    let pieces = [
        block("192.168.50.0/30", first),
        block("192.168.50.4/32", first),
        block("192.168.50.5/32", second),
        block("192.168.50.6/31", first),
    ];
    let removed_blocks = vec!["192.168.50.0/29".parse().unwrap()];
    lab.apply_all(&Change { removed_blocks, blocks: pieces.to_vec(), ..Change::default() });
    let joins = vec![Join::new("back", Some(Ipv4Addr::new(192, 168, 50, 5)))];
    let attach = Attach {
        resolvers: vec![],
        id: "chosen".into(),
        name: "chosen".into(),
        networks: joins,
        ports: vec![],
    };
    let chosen = Container::new(second, "chosen".to_owned(), attach);
    for (from, to) in [(&here, &chosen), (&chosen, &here), (&chosen, &there), (&here, &there)] {
        assert_eq!(
            from.ns.connect((to.address, 80)).unwrap().client,
            from.address,
            "{} → {}",
            from.id,
            to.id
        );
    }
    assert!(!reaches(&container(&lab, 0, "front", 1, &["front"]), chosen.address));
    // A fabric that is told of all of it at once comes to the same.
    let mut whole = networks_cut(&lab, &pieces);
    whole.full = true;
    lab.apply_all(&whole);
    assert!(reaches(&here, chosen.address) && reaches(&chosen, here.address));
}

fn networks_cut(lab: &Lab, pieces: &[Block]) -> Change {
    let mut change = networks(lab);
    change.blocks.retain(|block| block.block.to_string() != "192.168.50.0/29");
    change.blocks.extend(pieces.iter().cloned());
    change
}

#[test]
fn a_container_may_be_in_the_nodes_own_network_as_well() {
    let lab = lab();
    let (front, local) = (container(&lab, 1, "front", 2, &["front"]), "local");
    let plain = lab.nodes[0].local_container("plain", vec![]);
    for (name, networks) in [("one", [local, "front"]), ("two", ["front", local])] {
        let join = |network: &&str| match *network {
            "local" => Join::new(local, None),
            network => join(&lab, 0, network, 1),
        };
        let networks = networks.iter().map(join).collect();
        let attach =
            Attach { resolvers: vec![], id: name.into(), name: name.into(), networks, ports: vec![] };
        let both = Container::new(&lab.nodes[0], name.to_owned(), attach);
        assert!(reaches(&both, front.address) && reaches(&both, plain.address), "{name}");
        let in_front = join(&"front").address.unwrap();
        assert_eq!(both.ns.connect((front.address, 80)).unwrap().client, in_front, "{name}");
        assert_eq!(front.ns.connect((in_front, 80)).unwrap().server, name);
        assert!(!reaches(&front, plain.address) && !reaches(&plain, in_front));
        assert_eq!(look_up(&both, "plain"), Some(plain.address));
        lab.nodes[0].detach(name);
    }
}

#[test]
fn an_address_of_another_network_cannot_be_forged() {
    let lab = lab();
    let both = container(&lab, 0, "both", 1, &["front", "back"]);
    let sink = lab.client.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9001)).unwrap());
    sink.set_read_timeout(Some(lab::moment())).unwrap();
    let in_back = join(&lab, 0, "back", 1).address.unwrap();
    let send = |source: Ipv4Addr| {
        both.ns.run(move || UdpSocket::bind((source, 0)).unwrap().send_to(b"x", (CLIENT, 9001)).unwrap());
    };
    send(in_back);
    received(&sink, &mut [0; 8]).unwrap();
    // Its own address of one network at the interface of the other.
    both.ns.ip("rule del priority 101");
    send(in_back);
    assert!(received(&sink, &mut [0; 8]).is_err());
    // The same by IPv6 (`six` has more of that).
    let sink = lab.client.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 9002)).unwrap());
    sink.set_read_timeout(Some(lab::moment())).unwrap();
    let send6 = || {
        let from = (lab::twin(in_back), 0);
        both.ns
            .run(move || UdpSocket::bind(from).unwrap().send_to(b"x", (lab::outer6(CLIENT), 9002)).unwrap());
    };
    send6();
    received(&sink, &mut [0; 8]).unwrap();
    both.ns.ip("-6 rule del priority 101");
    send6();
    assert!(received(&sink, &mut [0; 8]).is_err());
}

#[test]
fn networks_that_are_gone_leave_nothing() {
    let lab = lab();
    let node: &Node = &lab.nodes[0];
    assert!(node.ns.ip("route").contains("192.168.50.0/24 dev lo"));
    let gone: Vec<String> = networks(&lab).networks.into_iter().map(|network| network.id).collect();
    let blocks = networks(&lab).blocks.into_iter().filter(|block| gone.contains(&block.network));
    let removed_blocks = blocks.map(|block| block.block).collect();
    node.apply(Change { removed_networks: gone, removed_blocks, ..Change::default() }).unwrap();
    let table = node.ns.command("nft", "list table inet rorqual_n1");
    // Interfaces and addresses that packets have added go by themselves.
    let table: String = table.lines().filter(|line| !line.contains("\" . ")).collect();
    for word in ["192.168.50", "from_front", "net_back", "10.213.30"] {
        assert!(!table.contains(word), "{word} in {table}");
    }
    assert!(!node.ns.ip("route").contains("192.168.50"), "{}", node.ns.ip("route"));
}
