//! The HTTP edge: what nodes are told of routes, and what is refused.

use rorqual_planner::assign;
use rorqual_planner::prepare::{self, Refusal};
use rorqual_planner::{Action, ActionKind, Change, Conflict};
use rorqual_proto::model::{EdgeSettings, Record, RouteBackend, RouteSpec, ServiceId, ServiceSpec};

use crate::world::{World, port, spec};

fn route(host: &str, path: &str, port: u16) -> RouteSpec {
    let (host, path) = (host.to_owned(), path.to_owned());
    RouteSpec { host, path, port, backend: RouteBackend::Http1, proxy_header: false, timeout_ms: 0 }
}

fn routed(name: &str, routes: Vec<RouteSpec>) -> ServiceSpec {
    ServiceSpec { routes, ports: vec![port(0, 8080)], ..spec(name, 1) }
}

fn open(world: &mut World, http_port: Option<u16>) -> Result<(), Refusal> {
    let action = prepare::edge::set(&world.state, EdgeSettings { http_port, ..EdgeSettings::default() })?;
    world.write(vec![action]);
    Ok(())
}

#[test]
fn every_node_is_told_of_routes_and_of_the_edge() {
    let mut world = World::new(3);
    let web = world.create(routed("web", vec![route("a.example", "/", 0), route("a.example", "/x", 9)]));
    world.settle();
    for node in world.state.nodes() {
        let told = assign::assignment_for(&world.state, &node.id);
        let ports: Vec<u16> = told.services[0].routes.iter().map(|route| route.port).collect();
        assert_eq!(ports, [8080, 9], "each with its port");
        assert_eq!(told.edge.settings, EdgeSettings::default());
    }
    // Another route is something that nodes see, and replaces no task.
    let before = world.service(&web).spec_version;
    world.changes.clear();
    world.update(&web, |spec| drop(spec.routes.pop()));
    assert_eq!(world.service(&web).spec_version, before);
    let touched = assign::touched(&world.state, &world.changes);
    assert!(touched.everywhere.services.contains(&web));
    world.changes.clear();
    open(&mut world, Some(80)).unwrap();
    let node = world.node_named("n1");
    let mut joined = assign::Joined::of(&world.state, &node);
    let parts = assign::touched(&world.state, &world.changes).for_node(&node);
    let delta = assign::delta_for(&world.state, &node, parts, &mut joined);
    assert_eq!(delta.edge.unwrap().settings.http_port, Some(80));
    // And of its records, which nothing is planned by.
    world.changes.clear();
    let record = |key: &str| Record { key: key.to_owned(), version: 0, value: vec![7] };
    let put = |key: &str| Action::new(ActionKind::PutRecord(Box::new(record(key))));
    world.write(vec![put("edge/certificate/a"), put("registry/x")]);
    assert_eq!(world.changes, [Change::Edge, Change::Nothing]);
    let mut joined = assign::Joined::of(&world.state, &node);
    let parts = assign::touched(&world.state, &world.changes).for_node(&node);
    let records = assign::delta_for(&world.state, &node, parts, &mut joined).edge.unwrap().records;
    assert_eq!(records.iter().map(|record| record.key.as_str()).collect::<Vec<_>>(), ["edge/certificate/a"]);
}

#[test]
fn a_route_has_one_service() {
    let mut world = World::new(1);
    let web = world.create(routed("web", vec![route("a.example", "/", 0)]));
    let rival = routed("rival", vec![route("b.example", "/", 0), route("a.example", "/", 81)]);
    let refused = prepare::create_service(&world.state, rival.clone(), ServiceId::from_bits(77), Vec::new());
    assert_eq!(
        refused.unwrap_err(),
        Refusal::RouteTaken { route: "a.example/".to_owned(), service: "web".to_owned() }
    );
    // One that was prepared before the other was written is refused as it is written.
    let mut late = (**world.state.service(&web).unwrap()).clone();
    late.id = ServiceId::from_bits(78);
    late.spec.name = "late".to_owned();
    (late.ports, late.vips) = (Vec::new(), Vec::new());
    let put = Action::expecting(ActionKind::PutService(Box::new(late)), 0);
    assert!(matches!(world.state.check(&put), Err(Conflict::RouteTaken { .. })));
    // It is free as soon as nobody has it.
    world.update(&web, |spec| spec.routes.clear());
    world.create(rival);
}

#[test]
fn the_edge_and_services_share_no_port() {
    let mut world = World::new(1);
    world.create(ServiceSpec { ports: vec![port(8080, 80)], ..spec("web", 1) });
    assert!(
        matches!(open(&mut world, Some(8080)), Err(Refusal::PortTaken { port, .. }) if port.published == 8080)
    );
    open(&mut world, Some(30_000)).unwrap();
    let taken = ServiceSpec { ports: vec![port(30_000, 80)], ..spec("other", 1) };
    let refused = prepare::create_service(&world.state, taken, ServiceId::from_bits(9), Vec::new());
    assert_eq!(refused.unwrap_err(), Refusal::EdgePort(30_000));
    let chosen = world.create(ServiceSpec { ports: vec![port(0, 80)], ..spec("chosen", 1) });
    assert_eq!(world.service(&chosen).ports[0].published, 30_001, "the first that is free");
}
