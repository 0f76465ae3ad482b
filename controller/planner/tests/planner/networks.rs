//! Networks of the users: their own ranges, what they refuse, and what nodes are told of them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use rorqual_planner::assign::{self, ServiceView};
use rorqual_planner::prepare::{self, Refusal, network};
use rorqual_planner::{Action, ActionKind};
use rorqual_proto::model::{
    Network, NetworkId, NetworkJoin, NetworkSpec, Node, NodeState, PortSpec, ServiceId, ServiceSpec,
    TaskState,
};

use crate::world::{World, port, spec};

fn wanted(name: &str, subnets: &[&str]) -> NetworkSpec {
    NetworkSpec {
        name: name.into(),
        subnets: subnets.iter().map(|net| net.parse().unwrap()).collect(),
        ..NetworkSpec::default()
    }
}

fn make(world: &mut World, spec: NetworkSpec) -> Result<NetworkId, Refusal> {
    let id = NetworkId::from_bits(world.bits());
    let action = network::create(&world.state, spec, id.clone())?;
    world.write(vec![action]);
    Ok(id)
}

fn joining(name: &str, replicas: u32, networks: &[&str]) -> ServiceSpec {
    ServiceSpec {
        networks: networks.iter().map(|name| NetworkJoin::plain(name)).collect(),
        ..spec(name, replicas)
    }
}

fn addresses(world: &World, service: &ServiceId, network: &NetworkId) -> BTreeSet<Ipv4Addr> {
    let tasks = world.state.tasks_of_service(service).filter(|task| !task.status.state.is_terminal());
    tasks
        .flat_map(|task| task.addresses.iter())
        .filter(|given| given.network_id == *network)
        .map(|given| given.address)
        .collect()
}

fn run(world: &mut World) {
    for _ in 0..10 {
        world.settle();
        world.agents();
    }
    world.settle();
}

#[test]
fn a_task_has_one_address_and_the_service_one_virtual_address_in_each_network() {
    let mut world = World::new(3);
    let front = make(&mut world, wanted("front", &[])).unwrap();
    let back = make(&mut world, wanted("back", &["10.20.0.0/24"])).unwrap();
    let service = world.create(joining("web", 6, &["front", "back"]));
    run(&mut world);
    let (in_front, in_back) = (addresses(&world, &service, &front), addresses(&world, &service, &back));
    assert_eq!((in_front.len(), in_back.len()), (6, 6));
    assert!(in_front.iter().all(|address| address.octets()[..2] == [10, 213]));
    assert!(in_back.iter().all(|address| address.octets()[..3] == [10, 20, 0]));
    let vips: BTreeSet<_> = world.service(&service).vips.iter().map(|vip| vip.network_id.clone()).collect();
    assert_eq!(vips, [front, back].into());
}

#[test]
fn a_subnet_of_the_usual_size_does_for_more_nodes_than_it_has_large_blocks() {
    let mut world = World::new(20);
    let back = make(&mut world, wanted("back", &["10.20.0.0/24"])).unwrap();
    let service = world.create(joining("web", 100, &["back"]));
    run(&mut world);
    assert_eq!(addresses(&world, &service, &back).len(), 100);
}

#[test]
fn an_exhausted_subnet_is_the_reason_of_the_task_and_ends_with_a_second_one() {
    let mut world = World::new(2);
    let tiny = make(&mut world, wanted("tiny", &["10.20.0.0/29"])).unwrap();
    let service = world.create(joining("web", 8, &["tiny"]));
    run(&mut world);
    assert_eq!(addresses(&world, &service, &tiny).len(), 6, "all but the first and the last");
    let waiting = world.state.tasks_of_service(&service).find(|task| task.node_id.is_none()).unwrap();
    assert_eq!(waiting.status.state, TaskState::Pending);
    assert!(
        waiting.status.message.contains("no free address in network `tiny` and no block is left"),
        "{}",
        waiting.status.message
    );
    world.scale(&service, 6);
    run(&mut world);
    assert!(world.state.tasks_of_service(&service).all(|task| task.node_id.is_some()));
}

#[test]
fn a_block_that_its_node_has_no_use_for_moves_to_one_that_has() {
    let mut world = World::new(2);
    let back = make(&mut world, wanted("back", &["10.20.0.0/28"])).unwrap();
    let first = world.create(joining("first", 2, &["back"]));
    run(&mut world);
    let blocks = |world: &World| world.state.network(&back).unwrap().blocks.clone();
    assert_eq!(blocks(&world).len(), 2, "each node has one of the two blocks");
    let gone = world.node_named("n1");
    world.remove(&first);
    run(&mut world);
    world.set_availability(&gone, rorqual_proto::model::Availability::Drain);
    let second = world.create(joining("second", 10, &["back"]));
    run(&mut world);
    assert_eq!(addresses(&world, &second, &back).len(), 10);
    assert!(blocks(&world).iter().all(|lease| lease.node_id != gone));
}

#[test]
fn a_range_that_something_has_is_refused_and_named() {
    let mut world = World::new(2);
    make(&mut world, wanted("back", &["10.20.0.0/24"])).unwrap();
    let node = world.node_named("n2");
    let mut described = Node::clone(world.state.node(&node).unwrap()).description;
    described.routes = vec!["192.168.7.0/24".parse().unwrap()];
    world.write(vec![Action::new(ActionKind::NodeStatus {
        node_id: node.clone(),
        status: None,
        description: Some(Box::new(described)),
        address: Some("10.9.8.7:4780".into()),
    })]);
    let cases = [
        ("10.213.128.0/24", "the cluster's container pool, 10.213.0.0/16"),
        ("10.0.0.0/8", "the cluster's container pool"),
        ("10.214.1.0/24", "the pool of virtual addresses"),
        ("10.20.0.128/25", "10.20.0.0/24 of network `back`"),
        ("10.20.0.0/16", "10.20.0.0/24 of network `back`"),
        ("192.168.0.0/16", "192.168.7.0/24, which node n2 reaches by a route of its own"),
        ("10.9.8.0/24", "10.9.8.7/32, which node n2"),
    ];
    for (subnet, with) in cases {
        let refusal = make(&mut world, wanted("other", &[subnet])).unwrap_err().to_string();
        assert!(refusal.contains(with), "{subnet}: {refusal}");
    }
    assert!(matches!(make(&mut world, wanted("back", &[])), Err(Refusal::NameTaken { .. })));
    // Of a node that is gone nobody knows any more.
    world.set_node(&node, NodeState::Left);
    make(&mut world, wanted("other", &["192.168.0.0/16"])).unwrap();
}

#[test]
fn two_networks_made_at_once_do_not_get_one_range() {
    let mut world = World::new(1);
    let action = |world: &mut World, name: &str| {
        let id = NetworkId::from_bits(world.bits());
        network::create(&world.state, wanted(name, &["10.20.0.0/24"]), id).unwrap()
    };
    let (one, other) = (action(&mut world, "one"), action(&mut world, "other"));
    world.write(vec![one]);
    assert!(world.state.check_all(&[other]).unwrap_err().to_string().contains("10.20.0.0/24"));
}

#[test]
fn a_network_goes_only_when_nothing_uses_it_and_then_its_blocks_are_free() {
    let mut world = World::new(1);
    let back = make(&mut world, wanted("back", &[])).unwrap();
    let service = world.create(joining("web", 1, &["back"]));
    run(&mut world);
    let refusal = network::remove(&world.state, &back).unwrap_err();
    assert_eq!(refusal.to_string(), "network `back` is used by service web: remove or disconnect that first");
    assert_eq!(network::unused(&world.state).count(), 0, "the default one stays");
    world.remove(&service);
    run(&mut world);
    assert_eq!(network::unused(&world.state).map(|found| &found.id).collect::<Vec<_>>(), [&back]);
    let action = network::remove(&world.state, &back).unwrap();
    world.write(vec![action]);
    world.assert_invariants();
    let default = world.state.network_by_name("default").unwrap().id.clone();
    assert!(matches!(network::remove(&world.state, &default), Err(Refusal::DefaultNetwork(_))));
}

#[test]
fn a_network_that_is_still_used_by_ending_tasks_stays() {
    let mut world = World::new(1);
    let back = make(&mut world, wanted("back", &[])).unwrap();
    let service = world.create(joining("web", 1, &["back"]));
    run(&mut world);
    world.update(&service, |spec| spec.networks.clear());
    world.settle();
    let refusal = network::remove(&world.state, &back).unwrap_err().to_string();
    assert!(refusal.contains("task web.1"), "{refusal}");
}

#[test]
fn an_alias_is_told_to_nodes_and_replaces_no_task() {
    let mut world = World::new(2);
    let back = make(&mut world, wanted("back", &[])).unwrap();
    let service = world.create(joining("web", 2, &["default", "back"]));
    run(&mut world);
    let version = world.service(&service).spec_version;
    world.changes.clear();
    world.update(&service, |spec| spec.networks[1].aliases = vec!["db".into()]);
    let touched = assign::touched(&world.state, &world.changes);
    assert!(touched.everywhere.services.contains(&service));
    assert_eq!(world.service(&service).spec_version, version);
    let views = assign::service_views(&world.state, &service);
    let in_back: Vec<&ServiceView> = views.iter().filter(|view| view.network_id == back).collect();
    assert_eq!((in_back[0].aliases.clone(), in_back[0].endpoints.len()), (vec!["db".to_owned()], 2));
    world.update(&service, |spec| drop(spec.networks.remove(1)));
    assert_eq!(world.service(&service).spec_version, version + 1, "another network is another task");
}

#[test]
fn a_new_network_and_its_end_are_told_to_every_node() {
    let mut world = World::new(1);
    let node = world.node_named("n1");
    world.changes.clear();
    let spec = NetworkSpec { internal: true, ..wanted("back", &["10.20.0.0/24"]) };
    let back = make(&mut world, spec).unwrap();
    let mut joined = assign::Joined::of(&world.state, &node);
    let parts = assign::touched(&world.state, &world.changes).for_node(&node);
    let delta = assign::delta_for(&world.state, &node, parts, &mut joined);
    assert_eq!(
        delta.networks.iter().map(|view| (&view.network_id, view.internal)).collect::<Vec<_>>(),
        [(&back, true)]
    );
    assert_eq!(assign::assignment_for(&world.state, &node).networks.len(), 2);
    let action = network::remove(&world.state, &back).unwrap();
    world.changes.clear();
    world.write(vec![action]);
    let mut joined = assign::Joined::of(&world.state, &node);
    let parts = assign::touched(&world.state, &world.changes).for_node(&node);
    assert_eq!(assign::delta_for(&world.state, &node, parts, &mut joined).removed_networks, [back]);
}

#[test]
fn a_lease_follows_the_last_one_and_finds_gaps_only_when_the_pool_is_through() {
    let mut world = World::with_pools(3, "10.1.0.0/24", "10.2.0.0/16");
    let lease = |world: &mut World, name: &str| -> Network {
        let id = make(world, wanted(name, &[])).unwrap();
        let service = world.create(joining(name, 1, &[name]));
        run(world);
        let network = Network::clone(world.state.network(&id).unwrap());
        world.remove(&service);
        run(world);
        network
    };
    let one = lease(&mut world, "one");
    let two = lease(&mut world, "two");
    let action = network::remove(&world.state, &one.id).unwrap();
    world.write(vec![action]);
    let three = lease(&mut world, "three");
    let four = lease(&mut world, "four");
    let five = lease(&mut world, "five");
    let blocks: Vec<String> =
        [two, three, four, five].iter().map(|network| network.blocks[0].block.to_string()).collect();
    assert_eq!(blocks, ["10.1.0.64/26", "10.1.0.128/26", "10.1.0.192/26", "10.1.0.0/26"]);
}

#[test]
fn a_port_is_bound_to_an_address_that_a_node_has() {
    let mut world = World::new(2);
    let node = world.node_named("n2");
    let mut described = Node::clone(world.state.node(&node).unwrap()).description;
    let bound = |address: [u8; 4]| {
        let port = PortSpec { address: Some(address.into()), ..port(8080, 80) };
        ServiceSpec { ports: vec![port], ..spec("web", 1) }
    };
    let id = ServiceId::from_bits(world.bits());
    let make = |world: &World, spec| prepare::create_service(&world.state, spec, id.clone(), Vec::new());
    let refusal = make(&world, bound([192, 0, 2, 7])).unwrap_err().to_string();
    assert!(refusal.starts_with("port 8080/tcp: no node has the address 192.0.2.7"), "{refusal}");
    make(&world, bound([127, 0, 0, 1])).unwrap();
    let bound6 = |address: &str| {
        let port = PortSpec { address: Some(address.parse().unwrap()), ..port(8080, 80) };
        ServiceSpec { ports: vec![port], ..spec("web", 1) }
    };
    make(&world, bound6("::1")).unwrap();
    let refusal = make(&world, bound6("fd00::7")).unwrap_err().to_string();
    assert!(refusal.starts_with("port 8080/tcp: no node has the address fd00::7"), "{refusal}");
    described.addresses = vec![[192, 0, 2, 7].into()];
    described.ipv6_addresses = vec!["fd00::7".parse().unwrap()];
    let told = |description| ActionKind::NodeStatus {
        node_id: node.clone(),
        status: None,
        description: Some(Box::new(description)),
        address: None,
    };
    world.write(vec![Action::new(told(described.clone()))]);
    make(&world, bound6("fd00::7")).unwrap();
    let made = make(&world, bound([192, 0, 2, 7])).unwrap();
    world.write(vec![made]);
    // The address moves away: what was there before may stay.
    described.addresses.clear();
    world.write(vec![Action::new(told(described))]);
    prepare::update_service(&world.state, &id, bound([192, 0, 2, 7]), None, Vec::new()).unwrap();
    let elsewhere = prepare::update_service(&world.state, &id, bound([192, 0, 2, 8]), None, Vec::new());
    assert!(elsewhere.is_err());
}
