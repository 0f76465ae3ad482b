//! Published ports on different addresses, and what nodes are told of replicas: their weights, and those that are not ready.

use std::net::IpAddr;

use rorqual_planner::{Action, Conflict, assign, prepare};
use rorqual_proto::model::{NetworkJoin, PortSpec, Protocol, ServiceId, ServiceSpec, TaskState, TaskStatus};

use crate::world::{World, port, spec};

/// Port 80 of a service on one address of the nodes themselves, or on all addresses.
fn on(name: &str, address: Option<[u8; 4]>) -> ServiceSpec {
    let port = PortSpec { address: address.map(IpAddr::from), ..port(80, 8080) };
    ServiceSpec { ports: vec![port], ..spec(name, 1) }
}

const ONE: Option<[u8; 4]> = Some([127, 0, 0, 1]);
const OTHER: Option<[u8; 4]> = Some([127, 0, 0, 2]);

fn make(world: &mut World, spec: ServiceSpec) -> Result<Action, prepare::Refusal> {
    let id = ServiceId::from_bits(world.bits());
    prepare::create_service(&world.state, spec, id, Vec::new())
}

#[test]
fn a_port_is_of_one_service_on_each_address() {
    let mut world = World::new(1);
    let one = world.create(on("one", ONE));
    for meets in [ONE, None] {
        let refusal = make(&mut world, on("late", meets)).unwrap_err().to_string();
        assert!(refusal.contains("is already published by service `one`"), "{refusal}");
    }
    let other = world.create(on("other", OTHER));
    world.run_until_whole();
    let refusal = make(&mut world, on("all", None)).unwrap_err();
    assert!(matches!(refusal, prepare::Refusal::PortTaken { .. }), "{refusal}");
    // Prepared at the same time, only one of two gets through.
    let third = |last: u8| Some([127, 0, 1, last]);
    let (a, b) = (make(&mut world, on("a", third(1))).unwrap(), make(&mut world, on("b", third(1))).unwrap());
    assert!(matches!(world.state.check_all(&[a.clone(), b.clone()]), Err(Conflict::PortTaken { .. })));
    world.write(vec![a]);
    assert!(matches!(world.state.check(&b), Err(Conflict::PortTaken { .. })));
    let c = make(&mut world, on("c", third(2))).unwrap();
    world.state.check(&c).unwrap();
    // What one gives back the other may have as well.
    world.remove(&one);
    world.run_until("it is gone", |world| world.state.service(&one).is_none());
    world.update(&other, |spec| {
        spec.ports.push(PortSpec { address: ONE.map(IpAddr::from), ..port(80, 8080) })
    });
    assert_eq!(world.service(&other).ports.len(), 2);
    world.run_until_whole();
}

#[test]
fn a_port_that_the_cluster_chooses_meets_none_on_any_address() {
    let mut world = World::new(1);
    let bound = PortSpec { address: ONE.map(IpAddr::from), ..port(30_000, 80) };
    world.create(ServiceSpec { ports: vec![bound.clone()], ..spec("one", 1) });
    let all = world.create(ServiceSpec { ports: vec![port(0, 80)], ..spec("all", 1) });
    assert_eq!(world.service(&all).ports[0].published, 30_001);
    let there = PortSpec { address: OTHER.map(IpAddr::from), ..port(0, 80) };
    let other = world.create(ServiceSpec { ports: vec![there], ..spec("other", 1) });
    assert_eq!(world.service(&other).ports[0].published, 30_000, "free on that address");
}

#[test]
fn replicas_weigh_what_their_nodes_say() {
    let mut world = World::new(2);
    let web = world.create(spec("web", 2));
    world.run_until_whole();
    let (n1, n2) = (world.node_named("n1"), world.node_named("n2"));
    let weights = |world: &World| {
        let view = assign::service_views(&world.state, &web)[0].clone();
        let of = |id| view.endpoints.iter().find(|e| e.node_id == id).map(|e| e.weight).unwrap();
        (of(n1.clone()), of(n2.clone()))
    };
    assert_eq!(weights(&world), (100, 100));
    world.changes.clear();
    world.label(&n2, "rorqual.weight", "25");
    assert_eq!(weights(&world), (100, 25));
    let touched = assign::touched(&world.state, &world.changes);
    assert!(touched.everywhere.services.contains(&web), "every node is told");
    for nonsense in ["0", "1001", "-1", "much"] {
        world.label(&n2, "rorqual.weight", nonsense);
        assert_eq!(weights(&world), (100, 100), "{nonsense}");
    }
}

#[test]
fn replicas_are_where_the_kernel_has_the_protocols_of_their_ports() {
    let sctp = |name: &str, published| {
        let port = PortSpec { protocol: Protocol::Sctp, ..port(published, 9000) };
        ServiceSpec { ports: vec![port], ..spec(name, 3) }
    };
    let mut world = World::new(3);
    let web = world.create(ServiceSpec { ports: vec![port(80, 80)], ..spec("web", 3) });
    let one = world.create(sctp("one", 9000));
    world.run_until_whole();
    let nodes = |world: &World, id: &ServiceId| world.spread(id).into_keys().collect::<Vec<_>>();
    assert_eq!(nodes(&world, &one), ["n1", "n2", "n3"], "nobody has said anything yet");
    let settles = |world: &mut World, id: &ServiceId, on: &[&str]| {
        world.run_until(&format!("it is on {on:?}"), |world| nodes(world, id) == on && world.is_whole());
    };
    world.lack_sctp("n1", true);
    settles(&mut world, &one, &["n2", "n3"]);
    assert_eq!(nodes(&world, &web).len(), 3);
    // Where none has it, what runs goes on, and what is new says why it waits.
    world.lack_sctp("n2", true);
    settles(&mut world, &one, &["n3"]);
    world.lack_sctp("n3", true);
    let other = world.create(sctp("other", 9001));
    world.settle();
    assert_eq!(nodes(&world, &one), ["n3"]);
    let waiting = world.holders(&other);
    let reason = "no suitable node: 3 nodes have a kernel without sctp, of which a port is published";
    assert!(
        waiting.iter().all(|task| task.node_id.is_none() && task.status.message == reason),
        "{waiting:?}"
    );
    world.lack_sctp("n2", false);
    settles(&mut world, &other, &["n2"]);
    settles(&mut world, &one, &["n2"]);
}

#[test]
fn replicas_are_where_the_port_of_a_nodes_own_replicas_is_free() {
    let local = |published| PortSpec { local: true, ..port(published, 80) };
    let with = |name: &str, ports, replicas| ServiceSpec { ports, ..spec(name, replicas) };
    let mut world = World::new(3);
    let nodes = |world: &World, id: &ServiceId| world.spread(id).into_keys().collect::<Vec<_>>();
    let settles = |world: &mut World, id: &ServiceId, on: &[&str]| {
        world.run_until(&format!("it is on {on:?}"), |world| nodes(world, id) == on && world.is_whole());
    };
    // Known before: none is sent there. One that every node leads from everywhere does not mind.
    world.take_port("n1", 8080, true);
    let web = world.create(with("web", vec![port(443, 443), local(8080)], 2));
    let mesh = world.create(with("mesh", vec![port(8081, 80)], 3));
    settles(&mut world, &web, &["n2", "n3"]);
    assert!(world.state.tasks_on_node(&world.node_named("n1")).all(|task| task.service_id == mesh));
    let before: Vec<_> = world.holders(&web).into_iter().map(|task| task.id).collect();
    // Found out when it came there: it is given up, and that is no failure. The others stay.
    world.take_port("n1", 8080, false);
    world.take_port("n2", 8080, true);
    settles(&mut world, &web, &["n1", "n3"]);
    let after = world.holders(&web);
    assert_eq!(after.iter().filter(|task| before.contains(&task.id)).count(), 1);
    assert_eq!(world.state.service(&web).unwrap().problem, None);
    assert_eq!(nodes(&world, &mesh).len(), 3);
    // Where every node has it taken, what runs goes on, and what is new says why it waits.
    world.take_port("n1", 8080, true);
    settles(&mut world, &web, &["n3"]);
    world.take_port("n3", 8080, true);
    world.scale(&web, 3);
    world.settle();
    assert_eq!(nodes(&world, &web), ["n3", "–"]);
    let waiting: Vec<_> = world.holders(&web).into_iter().filter(|task| task.node_id.is_none()).collect();
    let reason = "no suitable node: 3 nodes have port 8080/tcp taken by something else (`rctl node inspect` says what \
                  has it)";
    assert!(waiting.len() == 1 && waiting[0].status.message == reason, "{waiting:?}");
    world.take_port("n2", 8080, false);
    settles(&mut world, &web, &["n2"]);
}

#[test]
fn replicas_that_are_not_ready_are_told_where_a_name_stands_for_them() {
    let mut world = World::new(1);
    let plain = world.create(spec("plain", 1));
    let join = NetworkJoin { unready_aliases: vec!["peers".into()], ..NetworkJoin::plain("default") };
    let named = world.create(ServiceSpec { networks: vec![join], ..spec("named", 2) });
    world.run_until_whole();
    let view = |world: &World, id| {
        let view = assign::service_views(&world.state, id)[0].clone();
        (view.endpoints.len(), view.unready.len(), view.unready_aliases.len())
    };
    assert_eq!((view(&world, &plain), view(&world, &named)), ((1, 0, 0), (2, 0, 1)));
    let report = |world: &mut World, id: &ServiceId, state: TaskState| {
        let task = world.live_tasks(id)[0].clone();
        let status = TaskStatus { healthy: false, state, ..task.status.clone() };
        world.changes.clear();
        world.report(vec![(task.id, status)]);
        assign::touched(&world.state, &world.changes).everywhere.services.contains(id)
    };
    assert!(report(&mut world, &plain, TaskState::Running) && report(&mut world, &named, TaskState::Running));
    assert_eq!((view(&world, &plain), view(&world, &named)), ((0, 0, 0), (1, 1, 1)));
    // It is no endpoint, before and after: only where it has a name is it news that it has ended.
    assert!(!report(&mut world, &plain, TaskState::Failed) && report(&mut world, &named, TaskState::Failed));
    assert_eq!(view(&world, &named), (1, 0, 1));
    world.changes.clear();
    world.update(&plain, |spec| {
        let join = NetworkJoin { unready_aliases: vec!["all".into()], ..NetworkJoin::plain("default") };
        spec.networks = vec![join];
    });
    let touched = assign::touched(&world.state, &world.changes);
    assert!(touched.everywhere.services.contains(&plain), "a new name is told");
}
