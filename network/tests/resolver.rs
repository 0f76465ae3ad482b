//! The node's resolver and those outside: who is asked, by UDP and TCP, and that one container does not take it from the
//! others. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use lab::{Container, Lab, Node, Ns, ask, patience, received};
use rorqual_network::{Attach, DNS, Join};
use simple_dns::{RCODE, TYPE};

/// One of type A, as RFC 1035 writes it.
fn question(id: u8, name: &str) -> Vec<u8> {
    let mut message = vec![0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

#[test]
fn other_names_are_forwarded_to_the_first_resolver_that_answers() {
    let ns = Ns::new();
    let dead: SocketAddr = "127.0.0.1:5399".parse().unwrap();
    let alive: SocketAddr = "127.0.0.1:5398".parse().unwrap();
    ns.run(move || {
        let socket = UdpSocket::bind(alive).unwrap();
        // It waits while the node is made, which takes its time on an emulated machine.
        socket.set_read_timeout(Some(patience() * 12)).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            let (length, client) = received(&socket, &mut buffer).unwrap();
            buffer[2] |= 0x80;
            buffer[3] = 5;
            socket.send_to(&buffer[..length], client).unwrap();
        });
    });
    let mut node = Node::new(7, ns, Ipv4Addr::UNSPECIFIED);
    node.stop();
    node.options.dns_upstreams = Some(vec![dead, alive]);
    node.start().unwrap();
    assert_eq!(ask(&node.ns, "example.com", TYPE::A).0, RCODE::Refused);
}

/// What a client asks by TCP, and what comes back.
fn ask_by_tcp(stream: &mut TcpStream, messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let length = |message: &Vec<u8>| u16::try_from(message.len()).unwrap().to_be_bytes();
    let asked: Vec<u8> = messages.iter().flat_map(|m| [&length(m)[..], m].concat()).collect();
    stream.write_all(&asked).unwrap();
    let mut answer = || {
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer).unwrap();
        answer
    };
    messages.iter().map(|_| answer()).collect()
}

#[test]
fn what_is_asked_by_tcp_is_forwarded_by_tcp_however_long_the_answer_is() {
    let ns = Ns::new();
    let [dead, alive] = [5397, 5396].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    ns.run(move || {
        let listener = TcpListener::bind(alive).unwrap();
        std::thread::spawn(move || {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut question = [0; 31];
                stream.read_exact(&mut question).unwrap();
                // In pieces, the length as well.
                let mut answer = 40_000_u16.to_be_bytes().to_vec();
                answer.extend(&question[2..4]);
                answer.resize(40_002, 0x70);
                answer.chunks(999).for_each(|piece| stream.write_all(piece).unwrap());
            }
        });
    });
    let mut node = Node::new(7, ns, Ipv4Addr::UNSPECIFIED);
    node.stop();
    node.options.dns_upstreams = Some(vec![dead, alive]);
    node.start().unwrap();
    let local = node.local_container("plain", vec![]);
    let own = local.address;
    let (long, short) = local.ns.run(|| {
        let connect = || {
            let stream = TcpStream::connect((DNS, 53)).unwrap();
            stream.set_read_timeout(Some(patience() * 4)).unwrap();
            stream
        };
        // Who breaks off in the middle of a question is in nobody's way.
        connect().write_all(&[0xff, 0xff, 1]).unwrap();
        let outside = [1, 2].map(|id| question(id, "example.org"));
        let mut stream = connect();
        let long = ask_by_tcp(&mut stream, &outside);
        (long, ask_by_tcp(&mut stream, &[question(3, "plain")]))
    });
    for (answer, id) in long.iter().zip(1..) {
        assert_eq!((answer.len(), &answer[..2]), (40_000, &[0, id][..]));
    }
    let short = &short[0];
    assert_eq!((&short[..2], &short[short.len() - 4..]), (&[0, 3][..], &own.octets()[..]));
}

#[test]
fn a_container_whose_questions_nobody_answers_leaves_room_for_others() {
    let lab = Lab::new();
    let [deaf, quick] = [101, 102].map(|last| Ipv4Addr::new(10, 99, 0, last));
    let sockets = [deaf, quick].map(|address| {
        lab.client.ip(&format!("addr add {address}/24 dev eth0"));
        lab.client.run(move || UdpSocket::bind((address, 53)).unwrap())
    });
    let [_silent, answering] = sockets;
    let answers = std::thread::spawn(move || {
        let mut buffer = [0; 512];
        let (length, client) = received(&answering, &mut buffer).unwrap();
        (buffer[2], buffer[3]) = (0x81, 0x83);
        answering.send_to(&buffer[..length], client).unwrap();
    });
    let attach = |name: &str, n, resolver: Ipv4Addr| {
        let networks = vec![Join::new("default", Some(lab.nodes[0].address(n)))];
        let resolvers = vec![resolver.into()];
        let attach = Attach { id: name.into(), name: name.into(), networks, ports: vec![], resolvers };
        Container::new(&lab.nodes[0], name.to_owned(), attach)
    };
    let (loud, quiet) = (attach("loud", 1, deaf), attach("quiet", 2, quick));
    let flood = loud.ns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
    for _ in 0..6 {
        for _ in 0..50 {
            flood.send_to(&question(7, "example.org"), (DNS, 53)).unwrap();
        }
        // What is asked after them is answered after they were read.
        assert_eq!(ask(&loud.ns, "loud", TYPE::A).1, [loud.address]);
    }
    assert_eq!(ask(&quiet.ns, "example.org", TYPE::A).0, RCODE::NameError);
    answers.join().unwrap();
}
