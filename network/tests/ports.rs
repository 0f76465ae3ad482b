//! Published ports side by side: one number on several addresses, ports of a node's own replicas alone, and a protocol that
//! not every kernel has; and which replicas names stand for before they are ready. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Instant;

use lab::{Container, Lab, Ns, patience};
use rorqual_network::{Attach, Change, Error, HostPort, Join, Protocol, PublishedPort, ServiceView, Unready};
use simple_dns::TYPE;

fn service(name: &str, endpoints: &[&Container], port: PublishedPort) -> ServiceView {
    let (id, name) = (name.to_owned(), name.to_owned());
    ServiceView { id, name, vip: None, ports: vec![port], ..lab::web(endpoints) }
}

fn bound(published: u16, address: Ipv4Addr) -> PublishedPort {
    PublishedPort { address: Some(address.into()), ..PublishedPort::new(published, 80, Protocol::Tcp) }
}

fn services(services: &[&ServiceView]) -> Change {
    Change { services: services.iter().map(|one| (*one).clone()).collect(), ..Change::default() }
}

fn refused(ns: &Ns, to: SocketAddr) -> bool {
    let deadline = Instant::now() + patience();
    loop {
        match ns.connect(to) {
            Ok(_) => return false,
            // A listener that was closed lives on for a moment in what another thread has forked and not executed yet.
            Err(error) if error.kind() == ErrorKind::ConnectionReset && Instant::now() < deadline => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
                return true;
            }
        }
    }
}

#[test]
fn one_port_leads_to_another_service_on_each_address() {
    let lab = Lab::new();
    let node = &lab.nodes[0];
    let second = Ipv4Addr::new(10, 99, 0, 41);
    node.ns.ip(&format!("addr add {second}/24 dev eth0"));
    let [a, b] = [node.container(1), lab.nodes[1].container(1)];
    let mut one = service("one", &[&a], bound(8080, node.underlay));
    let mut other = service("other", &[&b], bound(8080, second));
    lab.apply_all(&services(&[&one, &other]));
    let there = SocketAddr::from((second, 8080));
    let served = || {
        let name = |to| lab.client.connect(to).unwrap().server;
        (name(node.at(8080)), name(there))
    };
    assert_eq!(served(), (a.id.clone(), b.id.clone()));
    assert!(refused(&node.ns, (Ipv4Addr::LOCALHOST, 8080).into()));
    // They change places in one go, and each connection is kept.
    let mut talks = [node.at(8080), there].map(|to| lab.client.connect(to).unwrap());
    std::mem::swap(&mut one.ports, &mut other.ports);
    lab.apply_all(&services(&[&one, &other]));
    assert_eq!(served(), (b.id.clone(), a.id.clone()));
    talks.iter_mut().for_each(|talk| talk.echo().unwrap());
    // One on all addresses meets both, whoever has come first, and whether they come together or not.
    let all = service("all", &[&a], PublishedPort::new(8080, 80, Protocol::Tcp));
    let error = node.apply(services(&[&all])).unwrap_err();
    assert!(matches!(&error, Error::PortConflict { port: 8080, address: None, .. }), "{error}");
    assert_eq!(served(), (b.id.clone(), a.id.clone()));
    let again = Change { removed_services: vec!["one".into(), "other".into()], ..services(&[&all]) };
    lab.apply_all(&again);
    let error = node.apply(services(&[&one, &all])).unwrap_err();
    assert!(
        matches!(&error, Error::PortConflict { holder, address: Some(_), .. } if holder == "service all"),
        "{error}"
    );
    assert_eq!(served(), (a.id.clone(), a.id));
}

#[test]
fn a_port_of_a_nodes_own_replicas_leads_to_no_other() {
    let lab = Lab::new();
    let [a, b] = [lab.nodes[0].container(1), lab.nodes[1].container(1)];
    let bystander = lab.nodes[2].container(1);
    let local = PublishedPort { local: true, ..PublishedPort::new(8080, 80, Protocol::Tcp) };
    // Where no replica is, the port is anybody's; who has it is told, before one is sent there.
    let program = lab.nodes[2].ns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap());
    let web = services(&[&service("web", &[&a, &b], local.clone())]);
    for node in &lab.nodes[..2] {
        node.apply(web.clone()).unwrap();
    }
    let error = lab.nodes[2].apply(web.clone()).unwrap_err();
    assert!(matches!(&error, Error::PortTaken { port: 8080, .. }), "{error}");
    let only = |container: &Container| BTreeMap::from([(container.id.clone(), 10)]);
    assert_eq!(lab.client.tally(lab.nodes[0].at(8080), 10), only(&a));
    assert_eq!(lab.client.tally(lab.nodes[1].at(8080), 10), only(&b));
    assert!(refused(&a.ns, lab.nodes[2].at(8080)), "it is not what was published");
    drop(program);
    lab.nodes[2].apply(web).unwrap();
    assert!(refused(&lab.client, lab.nodes[2].at(8080)));
    assert_eq!(bystander.ns.tally(lab.nodes[0].at(8080), 10), only(&a), "as itself, to another node");
    // It comes and goes with the replica.
    let moved = service("web", &[&a, &bystander], local);
    lab.apply_all(&services(&[&moved]));
    assert_eq!(lab.client.tally(lab.nodes[2].at(8080), 10), only(&bystander));
    assert!(refused(&lab.client, lab.nodes[1].at(8080)));
    lab.apply_all(&services(&[&service("web", &[&a], moved.ports[0].clone())]));
    let program = lab.nodes[2].ns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap());
    // And is refused where something else has it by then.
    let error = lab.nodes[2].apply(services(&[&moved])).unwrap_err();
    assert!(matches!(&error, Error::PortTaken { port: 8080, .. }), "{error}");
    drop(program);
    lab.nodes[2].apply(services(&[&moved])).unwrap();
    assert_eq!(lab.client.tally(lab.nodes[2].at(8080), 10), only(&bystander));
}

#[test]
fn a_port_of_a_protocol_that_the_kernel_lacks_is_refused_at_once_and_the_others_work() {
    let lab = Lab::new();
    let node = &lab.nodes[0];
    let a = node.container(1);
    let mut view = service("web", &[&a], PublishedPort::new(8080, 80, Protocol::Tcp));
    view.ports.push(PublishedPort::new(9000, 9000, Protocol::Sctp));
    let applied = node.apply(services(&[&view]));
    // The question has loaded the module, where there is one.
    let has = std::fs::read_to_string("/proc/net/protocols").unwrap().lines().any(|l| l.starts_with("SCTP "));
    let attached = node.attach(Attach {
        resolvers: vec![],
        id: "plain".into(),
        name: "plain".into(),
        networks: vec![Join::new("local", None)],
        ports: vec![HostPort {
            address: None,
            published: 9001,
            target: 9000,
            protocol: Protocol::Sctp,
            allow: vec![],
        }],
    });
    if has {
        applied.unwrap();
        attached.unwrap();
        let table = node.ns.command("nft", "list ruleset");
        // Without /etc/protocols the protocol is a number there.
        let leads =
            |element: &str| ["sctp", "132"].iter().any(|name| table.contains(&format!("{name} . {element}")));
        assert!(leads("9000 : goto port_sctp_9000") && leads("9001 : 10.215.0."), "{table}");
    } else {
        for (error, port) in [(applied.unwrap_err(), 9000), (attached.unwrap_err(), 9001)] {
            assert!(matches!(&error, Error::ProtocolMissing { port: p, .. } if *p == port), "{error}");
            assert!(error.to_string().contains("this node's kernel has no sctp"), "{error}");
        }
    }
    assert_eq!(lab.client.connect(node.at(8080)).unwrap().server, a.id);
}

#[test]
fn names_stand_for_replicas_that_are_not_ready_where_that_is_asked_for() {
    let lab = Lab::new();
    let [ready, unready] = [lab.nodes[0].container(1), lab.nodes[1].container(1)];
    let mut db = service("db", &[&ready], PublishedPort::new(8080, 80, Protocol::Tcp));
    db.unready.tasks = vec![unready.endpoint()];
    lab.apply_all(&services(&[&db]));
    let ask = |name: &str| lab::ask(&ready.ns, name, TYPE::A).1;
    let own_name = unready.endpoint().name;
    assert_eq!((ask("db"), ask(&own_name)), (vec![ready.address], vec![]), "nobody has asked for it");
    db.unready = Unready { aliases: vec!["db-peers".into()], tasks: vec![unready.endpoint()] };
    lab.apply_all(&services(&[&db]));
    assert_eq!(ask("db"), [ready.address]);
    assert_eq!(ask("tasks.db"), [ready.address]);
    assert_eq!(ask("db-peers"), [ready.address, unready.address]);
    assert_eq!(ask(&own_name), [unready.address]);
    assert_eq!(lab.client.tally(lab.nodes[2].at(8080), 10), BTreeMap::from([(ready.id.clone(), 10)]));
    // All of them before the first is ready: that is what it is for.
    db.endpoints.clear();
    db.unready.tasks = vec![ready.endpoint(), unready.endpoint()];
    lab.apply_all(&services(&[&db]));
    assert_eq!((ask("db"), ask("db-peers")), (vec![], vec![ready.address, unready.address]));
}
