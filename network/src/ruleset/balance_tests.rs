//! The kernel is asked who gets which connection. Needs root.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt::ReuseAddr,
};

use crate::model::{Endpoint, PublishedPort, ServiceView};
use crate::nft;
use crate::ruleset::{Fixed, Item, Ruleset, parts};
use crate::twins::Twins;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 214, 0, 1);
const PORT: u16 = 80;

/// An address of the node.
pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

pub(super) fn endpoint(number: u8) -> Ipv4Addr {
    // Beside the pools: there, what comes back from `lo` is refused.
    Ipv4Addr::new(192, 0, 2, number)
}

pub(super) fn view(endpoints: impl Iterator<Item = u8>, sticky: bool) -> ServiceView {
    let task = |number: u8| Endpoint {
        id: format!("t{number}"),
        name: format!("web.{number}"),
        address: endpoint(number),
        node: "n1".into(),
        weight: 100,
    };
    ServiceView {
        id: "web".into(),
        name: "web".into(),
        aliases: vec![],
        guest: false,
        unready: Default::default(),
        network: "default".into(),
        vip: Some(VIP),
        ports: Vec::<PublishedPort>::new(),
        sticky,
        endpoints: endpoints.map(task).collect(),
    }
}

fn twins() -> Twins {
    Twins::new(false, None, "10.215.0.0/24".parse().unwrap())
}

/// In a network namespace of its own, with ten servers that say their number, and these ports of the node.
pub(super) fn inside(
    ports: Vec<PublishedPort>,
    work: impl FnOnce(&mut dyn FnMut(ServiceView)) + Send + 'static,
) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let script = "ip link set lo up && ip addr add 192.0.2.1/24 dev lo && ip addr add 198.51.100.1/24 dev lo && \
                      ip route add 10.214.0.0/16 dev lo src 198.51.100.1 && \
                      echo 1024 65535 >/proc/sys/net/ipv4/ip_local_port_range";
        assert!(Command::new("sh").args(["-c", script]).status().unwrap().success());
        for number in 1..=10 {
            let listener = TcpListener::bind((endpoint(number), PORT)).unwrap();
            // Ends with the test's process.
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let _ = (&stream).write_all(&[number]);
                }
            });
        }
        let mut ruleset = Ruleset::new(Fixed {
            table: "rorqual_t".into(),
            veth_prefix: "rqcaaaaa".into(),
            tunnel: "rqxaaaaa".into(),
            tunnel_port: 7271,
            sealed: None,
            guarded_ports: vec![],
            cluster_pool: "10.213.0.0/16".parse().unwrap(),
            vip_pool: "10.214.0.0/16".parse().unwrap(),
            local_pool: "10.215.0.0/24".parse().unwrap(),
            twins: twins(),
        });
        let base = ruleset.replace(BTreeMap::new());
        nft::run(&base.script()).unwrap();
        ruleset.commit(base);
        let mut put = |view: ServiceView| {
            let item = Item::Service("web".into());
            let before = |map: &str| ruleset.places(&item, map);
            let parts = parts::service(&view, &ports, "n1", &twins(), |_| None, before);
            let change = ruleset.change(BTreeMap::from([(item, Some(parts))]));
            nft::run(&change.script()).unwrap();
            ruleset.commit(change);
        };
        work(&mut put);
    };
    std::thread::spawn(run).join().unwrap();
}

/// Who answers a new connection from an address.
fn ask(from: Ipv4Addr) -> u8 {
    use std::os::fd::AsRawFd;
    let own = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
    setsockopt(&own, ReuseAddr, &true).unwrap();
    bind(own.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0))).unwrap();
    connect(own.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(VIP, PORT))).unwrap();
    let mut number = [0];
    TcpStream::from(own).read_exact(&mut number).unwrap();
    number[0]
}

#[test]
fn new_connections_are_spread_evenly() {
    inside(vec![], |put| {
        // By chance alone more than this comes once in a thousand times. The rules of ten stay for fewer.
        for (endpoints, connections, most) in [(10, 10_000, 27.88), (9, 3_000, 26.12), (6, 3_000, 20.52)] {
            put(view(1..=endpoints, false));
            let mut counts = BTreeMap::<u8, u32>::new();
            for number in 0..connections {
                // From ten addresses, so that no port is needed twice.
                *counts.entry(ask(Ipv4Addr::new(198, 51, 100, 1 + (number % 10) as u8))).or_default() += 1;
            }
            let expected = f64::from(connections) / f64::from(endpoints);
            let off = |count: &u32| (f64::from(*count) - expected).powi(2) / expected;
            let chi_square: f64 = counts.values().map(off).sum();
            assert!(counts.len() == endpoints as usize && chi_square < most, "{chi_square}: {counts:?}");
        }
    });
}

#[test]
fn new_connections_are_spread_as_the_weights_say() {
    inside(vec![], |put| {
        let mut weighed = view(1..=4, false);
        let weights = [25, 100, 200, 75];
        for (endpoint, weight) in weighed.endpoints.iter_mut().zip(weights) {
            endpoint.weight = weight;
        }
        put(weighed);
        const CONNECTIONS: u32 = 4_000;
        let mut counts = BTreeMap::<u8, u32>::new();
        for number in 0..CONNECTIONS {
            *counts.entry(ask(Ipv4Addr::new(198, 51, 100, 1 + (number % 10) as u8))).or_default() += 1;
        }
        let off = |(count, weight): (&u32, u32)| {
            let expected = f64::from(CONNECTIONS) * f64::from(weight) / 400.0;
            (f64::from(*count) - expected).powi(2) / expected
        };
        let chi_square: f64 = counts.values().zip(weights).map(off).sum();
        // Three degrees of freedom: by chance alone more than this comes once in a thousand times.
        assert!(counts.len() == 4 && chi_square < 16.27, "{chi_square}: {counts:?}");
    });
}

#[test]
fn a_client_keeps_its_endpoint_while_that_is_there() {
    inside(vec![], |put| {
        let clients = || (1..=200).map(|last| Ipv4Addr::new(198, 51, 100, last));
        let seen = || -> BTreeMap<Ipv4Addr, u8> { clients().map(|client| (client, ask(client))).collect() };
        put(view(1..=10, true));
        let first = seen();
        assert_eq!(first, seen());
        let used: std::collections::BTreeSet<u8> = first.values().copied().collect();
        assert_eq!(used.len(), 10, "200 clients are spread over all: {first:?}");
        // One goes: its clients find another, everybody else keeps theirs.
        put(view(1..=9, true));
        for (client, now) in seen() {
            let before = first[&client];
            assert!(if before == 10 { now < 10 } else { now == before }, "{client}: {before} → {now}");
        }
        put(view(1..=10, true));
        assert_eq!(first, seen());
    });
}
