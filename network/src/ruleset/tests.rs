//! Tests of the rules as text: what a change writes, and how much.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::*;
use crate::model::{Endpoint, Protocol, PublishedPort, ServiceView};
use crate::twins::Twins;

fn twins() -> Twins {
    Twins::new(false, None, "10.215.0.0/24".parse().unwrap())
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

fn service(id: &str, endpoints: u32, ports: &[u16]) -> (Item, Option<Parts>) {
    let ports: Vec<PublishedPort> = ports.iter().map(|p| PublishedPort::new(*p, 80, Protocol::Tcp)).collect();
    let view = view_of(id, endpoints, &ports);
    (
        Item::Service(id.into()),
        Some(parts::service(&view, &ports, "n1", &twins(), |_| None, |_| Round::default())),
    )
}

fn view_of(id: &str, endpoints: u32, ports: &[PublishedPort]) -> ServiceView {
    let endpoint = |i: u32| Endpoint {
        id: format!("t{i}"),
        name: format!("web.{i}"),
        address: Ipv4Addr::from(0x0ad5_0000 + i),
        node: "n1".into(),
        weight: 100,
    };
    ServiceView {
        id: id.into(),
        name: id.into(),
        aliases: vec![],
        network: "default".into(),
        vip: Some(Ipv4Addr::new(10, 214, 0, 1)),
        sticky: false,
        ports: ports.to_vec(),
        endpoints: (1..=endpoints).map(endpoint).collect(),
        guest: false,
        unready: Default::default(),
    }
}

fn apply(ruleset: &mut Ruleset, changes: impl IntoIterator<Item = (Item, Option<Parts>)>) -> String {
    let transaction = ruleset.change(changes.into_iter().collect());
    let script = transaction.script();
    ruleset.commit(transaction);
    script
}

#[test]
fn the_same_again_is_an_empty_script() {
    let mut ruleset = ruleset();
    assert!(!apply(&mut ruleset, [service("a", 3, &[80])]).is_empty());
    assert_eq!(apply(&mut ruleset, [service("a", 3, &[80])]), "");
}

#[test]
fn one_more_endpoint_touches_the_chains_of_its_service_alone() {
    let mut ruleset = ruleset();
    let many = (0..100).map(|i| service(&format!("s{i}"), 3, &[1000 + i]));
    apply(&mut ruleset, many);
    let script = apply(&mut ruleset, [service("s7", 4, &[1007])]);
    let mut lines = script.lines();
    assert!(
        lines.all(|l| l.contains("vip_s7")
            || l.contains("port_tcp_1007")
            || l.contains("to_s7")
            || l.contains("hairpin")
            || l.contains("targets")),
        "{script}"
    );
}

#[test]
fn a_change_of_one_endpoint_is_small_however_many_there_are() {
    let mut ruleset = ruleset();
    let ports = [80, 81].map(|port| PublishedPort::new(port, 80, Protocol::Tcp));
    let mut put = |endpoints| {
        let item = Item::Service("a".into());
        let before = |map: &str| ruleset.places(&item, map);
        let view = view_of("a", endpoints, &ports);
        let parts = parts::service(&view, &ports, "n2", &twins(), |_| None, before);
        apply(&mut ruleset, [(item, Some(parts))])
    };
    assert!(put(1000).len() > 20_000);
    for endpoints in [999, 1000, 998] {
        let script = put(endpoints);
        // A rule or a way to a chain would have the kernel look through all rules of all services.
        let is_place = |line: &str| line.contains(" element inet rorqual_t to_a ");
        assert!(script.len() < 200 && script.lines().all(is_place), "{script}");
    }
    assert!(put(1001).contains("inc mod 1251 map @to_a"), "there is no place for it");
    let script = put(0);
    assert!(script.lines().all(|line| line.starts_with("delete element ")), "it refuses by the rules it has");
}

#[test]
fn who_may_use_a_port_stays_as_it_is_when_endpoints_change() {
    let mut ruleset = ruleset();
    let view = |endpoints| {
        let (item, _) = service("a", endpoints, &[]);
        let port = PublishedPort {
            allow: (0..50).map(|i| Ipv4Net::new(Ipv4Addr::new(10, i, 0, 0), 16).unwrap().into()).collect(),
            ..PublishedPort::new(80, 80, Protocol::Tcp)
        };
        (
            item,
            Some(parts::service(
                &view_of("a", endpoints, &[]),
                &[port],
                "n1",
                &twins(),
                |_| None,
                |_| Round::default(),
            )),
        )
    };
    let script = apply(&mut ruleset, [view(1)]);
    assert!(script.contains("published { tcp . 80 : goto port_tcp_80_gate }"), "{script}");
    let script = apply(&mut ruleset, [view(2)]);
    assert!(script.contains("add rule inet rorqual_t port_tcp_80 ") && !script.contains("gate"), "{script}");
}

#[test]
fn elements_go_before_the_chains_that_they_lead_to() {
    let mut ruleset = ruleset();
    apply(&mut ruleset, [service("a", 2, &[80, 81])]);
    let script = apply(&mut ruleset, [service("a", 2, &[81])]);
    let element = script.find("delete element inet rorqual_t published { tcp . 80 }").unwrap();
    let chain = script.find("delete chain inet rorqual_t port_tcp_80").unwrap();
    assert!(element < chain, "{script}");
    assert!(!script.contains("81"), "{script}");
    let script = apply(&mut ruleset, [(Item::Service("a".into()), None)]);
    assert!(script.contains("delete chain inet rorqual_t vip_a"), "{script}");
    assert!(ruleset.items().next().is_none());
}

#[test]
fn a_port_may_move_from_one_service_to_another_in_one_transaction() {
    let mut ruleset = ruleset();
    apply(&mut ruleset, [service("a", 1, &[80])]);
    let script = apply(&mut ruleset, [service("a", 1, &[]), service("b", 2, &[80])]);
    assert!(!script.contains("delete chain inet rorqual_t port_tcp_80"), "{script}");
    assert!(script.contains("flush chain inet rorqual_t port_tcp_80"), "{script}");
}

#[test]
fn an_element_of_two_items_stays_until_both_are_gone() {
    let mut ruleset = ruleset();
    apply(&mut ruleset, [service("a", 1, &[]), service("b", 1, &[])]);
    let hairpin = "hairpin { 10.213.0.1 . 10.213.0.1 }";
    assert!(!apply(&mut ruleset, [(Item::Service("a".into()), None)]).contains(hairpin));
    assert!(apply(&mut ruleset, [(Item::Service("b".into()), None)]).contains(hairpin));
}

#[test]
fn replacing_gives_what_changing_gives() {
    let mut changed = ruleset();
    apply(&mut changed, [service("a", 1, &[80]), service("b", 2, &[81])]);
    apply(&mut changed, [(Item::Service("b".into()), None), service("a", 2, &[80])]);
    let mut replaced = ruleset();
    apply(&mut replaced, [service("b", 2, &[81])]);
    let changes = BTreeMap::from([(Item::Service("b".into()), None), service("a", 2, &[80])]);
    let transaction = replaced.replace(changes);
    assert!(transaction.script().starts_with("add table inet rorqual_t\ndelete table inet rorqual_t\n"));
    replaced.commit(transaction);
    assert!(replaced.is_exact() && !changed.is_exact());
    assert_eq!((replaced.items, replaced.wanted), (changed.items, changed.wanted));
}
