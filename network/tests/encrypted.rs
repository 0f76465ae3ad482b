//! Three nodes that encrypt what goes between them: nobody on the wire reads it, everything gets there, and nothing does
//! where it can't be encrypted. With the kernel's WireGuard where it has one, else with our own. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lab::{CLIENT, Container, Lab, Node, Ns, Server, VIP, patience, web};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use rorqual_network::{Change, GATEWAY, Peer};

/// For something to become true on a loaded machine.
fn soon(what: &str, condition: impl FnMut() -> bool) {
    lab::within(patience() * 6, what, condition);
}

/// Hears everything that passes the switch, and counts the packets in which what [`lab::Talk::echo_bytes`] says can be
/// read.
struct Tap {
    stop: Arc<AtomicBool>,
    read: Arc<AtomicUsize>,
    sealed: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Tap {
    fn on(switch: &Ns) -> Tap {
        let stop = Arc::new(AtomicBool::new(false));
        let [read, sealed] = [0, 0].map(|_| Arc::new(AtomicUsize::new(0)));
        let (ended, plain, other) = (Arc::clone(&stop), Arc::clone(&read), Arc::clone(&sealed));
        let (ready, started) = std::sync::mpsc::channel();
        let thread = switch.spawn(move || {
            let flags = SockFlag::SOCK_CLOEXEC;
            let all = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
            setsockopt(&all, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
            ready.send(()).unwrap();
            let said: Vec<u8> = (0..64).collect();
            let mut frame = vec![0; 70_000];
            while !ended.load(Ordering::Relaxed) {
                let Ok(length) = recv(all.as_raw_fd(), &mut frame, MsgFlags::empty()) else { continue };
                let frame = &frame[..length];
                if frame.windows(said.len()).any(|window| window == said) {
                    plain.fetch_add(1, Ordering::Relaxed);
                }
                // Ethernet, IPv4 without options, UDP: the port that WireGuard has.
                if frame.len() > 38 && frame[23] == 17 && frame[36..38] == 7272_u16.to_be_bytes() {
                    other.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        started.recv_timeout(patience()).unwrap();
        Tap { stop, read, sealed, thread: Some(thread) }
    }

    /// How many packets could be read, and how many were WireGuard's.
    fn end(mut self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        (self.read.load(Ordering::Relaxed), self.sealed.load(Ordering::Relaxed))
    }
}

/// Peers and blocks of nodes that encrypt.
fn sealed(lab: &Lab) -> Change {
    let peer = |node: &Node| Peer {
        encrypted: true,
        key: Some(node.fabric().encryption().key.try_into().unwrap()),
        ..node.peer()
    };
    Change { peers: lab.nodes.iter().map(peer).collect(), ..lab.base() }
}

fn containers(lab: &Lab) -> Vec<Container> {
    lab.nodes.iter().map(|node| node.container(1)).collect()
}

/// One answers another, with more than fits into a packet.
fn talk(from: &Container, to: &Container) -> std::io::Result<()> {
    from.ns.connect((to.address, 80))?.echo_bytes(200_000)
}

/// Nothing gets there, nor a refusal.
fn is_shut(from: &Container, to: &Container) -> bool {
    let to = (to.address, 80).into();
    let connect = move || std::net::TcpStream::connect_timeout(&to, Duration::from_millis(1500));
    from.ns.run(connect).is_err()
}

fn all_meet(containers: &[Container]) {
    for from in containers {
        for to in containers {
            soon(&format!("{} to {}", from.id, to.id), || talk(from, to).is_ok());
        }
    }
}

/// Whether it makes such a device for `ip` as well.
fn kernel_has_wireguard() -> bool {
    let make = || Command::new("ip").args(["link", "add", "probe", "type", "wireguard"]).output().unwrap();
    Ns::new().run(make).status.success()
}

fn device(node: &Node) -> String {
    let links = node.ns.ip("-o link");
    let mut names = links.lines().filter_map(|line| line.split(": ").nth(1));
    names.find(|name| name.starts_with("rqw")).unwrap_or_default().to_owned()
}

#[test]
fn nothing_can_be_read_between_nodes_that_encrypt() {
    let lab = Lab::new();
    let all = containers(&lab);
    let tap = Tap::on(&lab.switch);
    all_meet(&all);
    let (read, hidden) = tap.end();
    assert!(read > 0 && hidden == 0, "{read} read, {hidden} hidden: without encryption it can be");
    assert!(lab.nodes.iter().all(|node| node.fabric().encryption().kind.is_empty()));

    // What the kernel can do it does.
    let kind = if kernel_has_wireguard() { "kernel" } else { "userspace" };
    lab.apply_all(&sealed(&lab));
    all_meet(&all);
    let tap = Tap::on(&lab.switch);
    all_meet(&all);
    let (read, hidden) = tap.end();
    assert!(read == 0 && hidden > 100, "{read} read, {hidden} hidden");
    for node in &lab.nodes {
        let encryption = node.fabric().encryption();
        assert_eq!(encryption.kind, kind, "{encryption:?}");
        assert_eq!(encryption.problem, "");
    }

    // And back.
    lab.apply_all(&lab.base());
    all_meet(&all);
    assert!(lab.nodes.iter().all(|node| device(node).is_empty()), "the device is gone");
}

#[test]
fn packets_of_every_size_and_clients_from_outside_get_there() {
    let lab = Lab::new();
    let all = containers(&lab);
    lab.apply_all(&Change { services: vec![web(&all.iter().collect::<Vec<_>>())], ..sealed(&lab) });
    all_meet(&all);
    // A client is who it is, whichever node it calls and whichever node answers.
    for node in &lab.nodes {
        for _ in 0..6 {
            let mut talk = lab.client.connect(node.at(8080)).unwrap();
            assert_eq!(talk.client, CLIENT, "{} via {}", talk.server, node.name);
            talk.echo_bytes(100_000).unwrap();
        }
    }
    let tap = Tap::on(&lab.switch);
    for one in &all {
        // So is a container that calls a node's port.
        for node in &lab.nodes {
            let mut talk = one.ns.connect(node.at(8080)).unwrap();
            let itself = talk.server == one.id;
            assert_eq!(
                talk.client,
                if itself { GATEWAY } else { one.address },
                "{} via {}",
                one.id,
                node.name
            );
            talk.echo_bytes(100_000).unwrap();
        }
        one.ns.connect((VIP, 80)).unwrap().echo_bytes(100_000).unwrap();
    }
    assert_eq!(tap.end().0, 0);
    // Datagrams as large as an interface takes, and larger: the sender is told what fits, and cuts them.
    let (to, at) = (all[1].ns.clone(), all[1].address);
    let listener = to.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 900)).unwrap());
    listener.set_read_timeout(Some(lab::moment())).unwrap();
    let sender = all[0].ns.run(move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.connect((at, 900)).unwrap();
        socket
    });
    for length in [1, 1300, 1362, 1363, 1390, 1472, 5000] {
        soon(&format!("a datagram of {length} bytes"), || {
            let _refused_until_the_size_is_known = sender.send(&vec![7; length]);
            let mut heard = vec![0; 9000];
            listener.recv(&mut heard).is_ok_and(|heard| heard == length)
        });
    }
}

#[test]
fn a_wrong_key_does_not_get_in_and_what_can_not_be_encrypted_goes_nowhere() {
    let lab = Lab::new();
    let all = containers(&lab);
    let right = sealed(&lab);
    lab.apply_all(&right);
    all_meet(&all);

    // The third node is not who it says it is, to the others.
    let mut wrong = right.clone();
    wrong.peers[2].key = Some([9; 32]);
    for node in &lab.nodes[..2] {
        node.apply(wrong.clone()).unwrap();
    }
    let tap = Tap::on(&lab.switch);
    assert!(talk(&all[0], &all[1]).is_ok(), "the others go on");
    assert!(is_shut(&all[2], &all[0]) && is_shut(&all[1], &all[2]));

    // Nor does a node whose key nobody knows.
    wrong.peers[2].key = None;
    lab.nodes[0].apply(wrong).unwrap();
    let problem = lab.nodes[0].fabric().encryption().problem;
    assert!(problem.contains("n3"), "{problem}");
    assert!(talk(&all[0], &all[1]).is_ok(), "the others go on");
    assert!(is_shut(&all[0], &all[2]));
    // What runs on it beside the containers stays closed to them.
    let _control = Server::start(&lab.nodes[2].ns, "control", 4780);
    assert!(all[0].ns.connect(lab.nodes[2].at(4780)).is_err());
    assert!(lab.nodes[0].ns.connect(lab.nodes[2].at(4780)).is_ok());

    // A way around it that somebody makes is shut.
    let node = &lab.nodes[0];
    node.ns.ip(&format!("route add {}/32 via {}", all[2].address, lab.nodes[2].underlay));
    assert!(is_shut(&all[0], &all[2]));
    let other = &lab.nodes[2];
    other.ns.ip(&format!("route add {}/32 via {}", all[0].address, node.underlay));
    assert!(is_shut(&all[0], &all[2]) && is_shut(&all[2], &all[0]));
    let (read, _) = tap.end();
    assert_eq!(read, 0);
    node.ns.ip(&format!("route del {}/32 via {}", all[2].address, lab.nodes[2].underlay));
    other.ns.ip(&format!("route del {}/32 via {}", all[0].address, node.underlay));

    // A peer that is gone is gone at once.
    lab.apply_all(&right);
    all_meet(&all);
    let gone = Change { removed_peers: vec!["n3".into()], ..Change::default() };
    node.apply(gone).unwrap();
    assert!(is_shut(&all[2], &all[0]));
}

#[test]
fn it_is_put_back_and_outlives_the_daemon() {
    let mut lab = Lab::new();
    let all = containers(&lab);
    let change = sealed(&lab);
    lab.apply_all(&change);
    all_meet(&all);
    // Somebody removes the device: nothing gets through in plain, and it comes back.
    let tap = Tap::on(&lab.switch);
    let name = device(&lab.nodes[0]);
    lab.nodes[0].ns.ip(&format!("link del {name}"));
    soon("the device is back", || talk(&all[0], &all[1]).is_ok() && talk(&all[2], &all[0]).is_ok());
    if lab.nodes[0].fabric().encryption().kind == "kernel" {
        lab.nodes[0].ns.command("wg", &format!("set {name} private-key /dev/null"));
        soon("the key is back", || talk(&all[0], &all[1]).is_ok());
    }

    let mut long = all[0].ns.connect((all[1].address, 80)).unwrap();
    long.echo().unwrap();
    // A daemon that starts anew has the same key, and connections go on.
    let key = lab.nodes[0].fabric().encryption().key;
    lab.nodes[0].stop();
    lab.nodes[0].start().unwrap();
    assert_eq!(lab.nodes[0].fabric().encryption().key, key);
    lab.nodes[0].apply(change).unwrap();
    soon("it goes on", || talk(&all[0], &all[1]).is_ok());
    long.echo().unwrap();
    assert_eq!(tap.end().0, 0);

    // With the node it goes.
    lab.nodes[0].teardown().unwrap();
    assert_eq!(device(&lab.nodes[0]), "");
    assert!(!lab.nodes[0].state_dir().join("wireguard.key").exists());
}
