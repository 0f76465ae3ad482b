//! The kernel is asked: after the same changes a table reads the same, whichever way they came. Needs root.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use crate::error::Error;
use crate::model::{Endpoint, HostPort, Peer, Protocol, PublishedPort, ServiceView};
use crate::netlink::{Netlink, nftables};
use crate::nft;
use crate::ruleset::{Element, Fields, Fixed, Item, Parts, Round, Ruleset, Transaction, parts};
use crate::twins::Twins;

type Changes = BTreeMap<Item, Option<Parts>>;

fn twins() -> Twins {
    Twins::new(true, Some("fd5e:12ab:90cd::/48".parse().unwrap()), "10.215.0.0/24".parse().unwrap())
}

fn ruleset() -> Ruleset {
    Ruleset::new(Fixed {
        table: "rorqual_t".into(),
        veth_prefix: "rqcaaaaa".into(),
        tunnel: "rqxaaaaa".into(),
        tunnel_port: 7271,
        sealed: None,
        guarded_ports: vec![4780],
        cluster_pool: "10.213.0.0/16".parse().unwrap(),
        vip_pool: "10.214.0.0/16".parse().unwrap(),
        local_pool: "10.215.0.0/24".parse().unwrap(),
        twins: twins(),
    })
}

fn published(published: u16, target: u16, protocol: Protocol) -> PublishedPort {
    PublishedPort::new(published, target, protocol)
}

fn service(id: &str, endpoints: u32, ports: &[PublishedPort]) -> (Item, Option<Parts>) {
    of_kind(id, endpoints, ports, false)
}

fn of_kind(id: &str, endpoints: u32, ports: &[PublishedPort], sticky: bool) -> (Item, Option<Parts>) {
    let endpoint = |i: u32| Endpoint {
        id: format!("t{i}"),
        name: format!("web.{i}"),
        address: Ipv4Addr::from(0x0ad5_0000 + i),
        node: if i.is_multiple_of(2) { "n1" } else { "n2" }.into(),
        weight: 100,
    };
    let view = ServiceView {
        id: id.into(),
        name: id.into(),
        aliases: vec![],
        network: "default".into(),
        vip: Some(Ipv4Addr::new(10, 214, 0, id.len() as u8)),
        sticky,
        ports: ports.to_vec(),
        endpoints: (1..=endpoints).map(endpoint).collect(),
        guest: false,
        unready: Default::default(),
    };
    (
        Item::Service(id.into()),
        Some(parts::service(
            &view,
            ports,
            "n1",
            &twins(),
            |endpoint| {
                // One of three runs where there is no IPv6.
                let without = endpoint.address.to_bits().is_multiple_of(3);
                twins().of(endpoint.address).filter(|_| !without)
            },
            |_| Round::default(),
        )),
    )
}

fn gone(item: Item) -> (Item, Option<Parts>) {
    (item, None)
}

/// What happens to a node's balancer, step by step.
fn story() -> Vec<Changes> {
    let web = [published(8080, 80, Protocol::Tcp), published(8080, 81, Protocol::Udp)];
    let bound = [PublishedPort {
        address: Some(Ipv4Addr::new(10, 99, 0, 1).into()),
        allow: ["10.0.0.0/8", "10.32.0.0/11", "10.99.0.128/25", "192.0.2.7/32"]
            .map(|r| r.parse().unwrap())
            .to_vec(),
        ..published(8443, 443, Protocol::Tcp)
    }];
    let sctp = [published(9, 9, Protocol::Sctp)];
    let host_port =
        |address| HostPort { address, published: 5000, target: 50, protocol: Protocol::Udp, allow: vec![] };
    let ports = parts::host_ports(
        &twins().both(Ipv4Addr::new(10, 215, 0, 7)).collect::<Vec<_>>(),
        &[host_port(None), host_port(Some(Ipv4Addr::new(10, 99, 0, 1).into()))],
    );
    let there = Peer {
        node: "n2".into(),
        underlay: Ipv4Addr::new(10, 99, 0, 2),
        others: vec![Ipv4Addr::new(192, 0, 2, 2)],
        ipv6: vec!["2001:db8::2".parse().unwrap()],
        encrypted: false,
        key: None,
    };
    let peer = |mac| parts::peer(&there, mac, 3);
    let item = || Item::Ports("c1".into());
    vec![
        BTreeMap::from([service("a", 0, &web)]),
        BTreeMap::from([service("a", 1, &web), (Item::Peer("n2".into()), Some(peer(None)))]),
        BTreeMap::from([service("a", 10, &web), service("bb", 2, &sctp), (item(), Some(ports))]),
        BTreeMap::from([(Item::Peer("n2".into()), Some(peer(Some([2, 0, 0, 0, 0xab, 1]))))]),
        BTreeMap::from([service("a", 9, &web[..1]), service("ccc", 1500, &web[1..])]),
        BTreeMap::from([gone(Item::Service("bb".into())), service("ccc", 3, &web[1..]), gone(item())]),
        BTreeMap::from([service("dddd", 2, &bound)]),
        BTreeMap::from([service("dddd", 3, &bound)]),
        BTreeMap::from([gone(Item::Service("dddd".into()))]),
        BTreeMap::from([of_kind("eeeee", 3, &sctp, true)]),
        BTreeMap::from([of_kind("eeeee", 1, &sctp, true)]),
    ]
}

/// Runs changes one after the other in a network namespace of its own; the table as it reads after each.
fn tell(
    changes: Vec<Changes>,
    run: impl Fn(&mut Netlink, &Transaction) -> Result<(), Error> + Send + 'static,
) -> Vec<String> {
    let work = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let mut netlink = nftables::open().unwrap();
        let mut ruleset = ruleset();
        let base = ruleset.replace(BTreeMap::new());
        nft::run(&base.script()).unwrap();
        ruleset.commit(base);
        let step = |changes| {
            let transaction = ruleset.change(changes);
            run(&mut netlink, &transaction).unwrap();
            ruleset.commit(transaction);
            list()
        };
        changes.into_iter().map(step).collect()
    };
    std::thread::spawn(work).join().unwrap()
}

fn list() -> String {
    let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The kernel keeps the elements of a set in an order of its own.
    let mut words: Vec<String> = Vec::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let mut parts: Vec<&str> = line.trim().trim_start_matches("elements = {").split(',').collect();
        if line.trim_start().starts_with("elements") || words.last().is_some_and(|w| w.ends_with("-more")) {
            parts.iter_mut().for_each(|part| *part = part.trim().trim_end_matches('}').trim());
            parts.retain(|part| !part.is_empty());
            words.extend(parts.iter().map(|part| format!("element {part}")));
            if !line.contains('}') {
                words.push("-more".to_owned());
            }
        } else {
            words.push(line.trim().to_owned());
        }
    }
    words.retain(|word| word != "-more");
    let mut start = 0;
    while start < words.len() {
        let length = words[start..].iter().take_while(|word| word.starts_with("element ")).count();
        words[start..start + length].sort_unstable();
        start += length.max(1);
    }
    words.join("\n")
}

#[test]
fn a_table_reads_the_same_whichever_way_the_changes_came() {
    let by_text = tell(story(), |_, transaction| nft::run(&transaction.script()));
    let by_netlink = tell(story(), |netlink, transaction| {
        nftables::transact(netlink, transaction.requests().expect("every one has a native form"))
    });
    for (at, (text, netlink)) in by_text.iter().zip(&by_netlink).enumerate() {
        for (line, native) in text.lines().zip(netlink.lines()) {
            assert_eq!(line, native, "after change {at}");
        }
        assert_eq!(text.lines().count(), netlink.lines().count(), "after change {at}:\n{netlink}");
    }
    assert!(by_netlink[4].contains("numgen inc mod 1500 map @to_ccc"), "{}", by_netlink[4]);
    assert!(
        by_netlink[6].contains("ip saddr 10.32.0.0/11 goto port_tcp_8443_at_10_99_0_1"),
        "{}",
        by_netlink[6]
    );
    assert!(by_netlink[9].contains("jhash ip saddr mod 512"), "{}", by_netlink[9]);
    assert!(by_netlink[0].contains("reject with tcp reset") && by_netlink[5].contains("numgen inc mod 3"));
}

#[test]
fn what_is_refused_is_named_and_changes_nothing() {
    let work = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let mut netlink = nftables::open().unwrap();
        let mut ruleset = ruleset();
        let base = ruleset.replace(BTreeMap::from([service("a", 2, &[])]));
        nft::run(&base.script()).unwrap();
        ruleset.commit(base);
        nft::run("delete element inet rorqual_t vips { 10.214.0.1 }").unwrap();
        let before = list();
        let changes = BTreeMap::from([service("bb", 2, &[]), gone(Item::Service("a".into()))]);
        let requests = ruleset.change(changes).requests().unwrap();
        let error = nftables::transact(&mut netlink, requests).unwrap_err();
        assert!(error.to_string().contains("delete elements of vips in table rorqual_t"), "{error}");
        assert_eq!(list(), before);
        // The socket is good for the next one.
        let requests = ruleset.change(BTreeMap::from([service("bb", 2, &[])])).requests().unwrap();
        nftables::transact(&mut netlink, requests).unwrap();
        assert!(list().contains("vip_bb"));
    };
    std::thread::spawn(work).join().unwrap();
}

#[test]
fn ranges_are_left_to_nft() {
    let mut parts = Parts::default();
    let range = crate::ruleset::rule::Field::Range("10.213.0.0/26".parse().unwrap());
    parts.elements.insert(Element { set: "net_a".into(), key: Fields(vec![range]) }, None);
    let change = BTreeMap::from([(Item::Network("a".into()), Some(parts))]);
    assert!(ruleset().change(change).requests().is_none());
}
