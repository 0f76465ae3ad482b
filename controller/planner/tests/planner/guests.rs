//! Plain containers in networks of the cluster: what they are given, what they keep, and who is told of them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rorqual_planner::assign::{self, GuestView};
use rorqual_planner::prepare::guest::{self, GuestWish};
use rorqual_planner::prepare::{Refusal, network};
use rorqual_proto::model::{
    Guest, GuestId, NetworkId, NetworkJoin, NetworkSpec, NodeId, NodeState, ServiceSpec,
};

use crate::world::{World, spec};

fn make(world: &mut World, name: &str, subnet: &str) -> NetworkId {
    let id = NetworkId::from_bits(world.bits());
    let subnets = subnet.parse().ok().into_iter().collect();
    let spec = NetworkSpec { name: name.into(), subnets, ..NetworkSpec::default() };
    let action = network::create(&world.state, spec, id.clone()).unwrap();
    world.write(vec![action]);
    id
}

fn wish(world: &World, number: u128, node: &str, networks: &[&str]) -> GuestWish {
    GuestWish {
        id: GuestId::from_bits(number),
        name: format!("c{number}"),
        node_id: world.node_named(node),
        joins: networks.iter().map(|name| NetworkJoin::plain(name)).collect(),
        up: true,
    }
}

fn put(world: &mut World, wish: GuestWish) -> Result<Guest, Refusal> {
    let id = wish.id.clone();
    let actions = guest::put(&world.state, wish)?;
    world.write(actions);
    world.assert_invariants();
    Ok(Guest::clone(world.state.guest(&id).unwrap()))
}

fn at(wish: GuestWish, address: [u8; 4]) -> GuestWish {
    let joins = vec![NetworkJoin { address: Some(address.into()), ..wish.joins[0].clone() }];
    GuestWish { joins, ..wish }
}

fn joining(name: &str, replicas: u32, network: &str) -> ServiceSpec {
    ServiceSpec { networks: vec![NetworkJoin::plain(network)], ..spec(name, replicas) }
}

fn run(world: &mut World) {
    for _ in 0..10 {
        world.settle();
        world.agents();
    }
    world.settle();
}

#[test]
fn a_guest_has_an_address_in_each_network_and_keeps_it_until_it_leaves() {
    let mut world = World::new(2);
    let (front, back) = (make(&mut world, "front", ""), make(&mut world, "back", "10.20.0.0/24"));
    let wished = wish(&world, 1, "n1", &["front", "back"]);
    let first = put(&mut world, wished.clone()).unwrap();
    let networks: Vec<_> = first.addresses.iter().map(|given| given.network_id.clone()).collect();
    assert_eq!(networks, [front, back.clone()]);
    assert!(guest::put(&world.state, wished.clone()).unwrap().is_empty(), "the same again writes nothing");
    // It stops, others come and go, it leaves one network and comes back to another.
    let rest = put(&mut world, GuestWish { up: false, ..wished.clone() }).unwrap();
    let second = wish(&world, 2, "n1", &["back"]);
    let other = put(&mut world, second).unwrap();
    assert_ne!(other.addresses[0], first.addresses[1]);
    assert_eq!(rest.addresses, first.addresses);
    let service = world.create(joining("web", 4, "back"));
    run(&mut world);
    world.remove(&service);
    run(&mut world);
    let joins = vec![wished.joins[1].clone(), NetworkJoin::plain("default")];
    let moved = put(&mut world, GuestWish { joins, ..wished.clone() }).unwrap();
    assert_eq!(moved.addresses[0], first.addresses[1]);
    let refusal = network::remove(&world.state, &back).unwrap_err().to_string();
    assert!(refusal.contains("container c1, container c2"), "{refusal}");
    // Another node's container is none of its business.
    let stranger = world.node_named("n2");
    assert!(guest::remove(&world.state, &wished.id, &stranger).is_err());
    for id in [&wished.id, &other.id] {
        let action = guest::remove(&world.state, id, &wished.node_id).unwrap().unwrap();
        world.write(vec![action]);
        world.assert_invariants();
    }
    assert_eq!(guest::remove(&world.state, &wished.id, &wished.node_id), Ok(None));
    network::remove(&world.state, &back).unwrap();
}

#[test]
fn a_network_and_its_last_address_do_not_cross() {
    let mut world = World::new(1);
    let back = make(&mut world, "back", "");
    let removal = network::remove(&world.state, &back).unwrap();
    let wished = wish(&world, 1, "n1", &["back"]);
    let actions = guest::put(&world.state, wished.clone()).unwrap();
    let mut gone = world.state.clone();
    gone.apply(&removal, 1_000, 0);
    assert!(gone.check_all(&actions).is_err());
    // The lease has moved the network's version: without one it is the address that counts.
    put(&mut world, wished).unwrap();
    let late = rorqual_planner::Action::new(removal.kind);
    assert!(world.state.check_all(&[late]).unwrap_err().to_string().contains("network `back` is used"));
}

#[test]
fn an_address_may_be_chosen_also_out_of_another_nodes_block() {
    let mut world = World::new(3);
    let back = make(&mut world, "back", "10.20.0.0/24");
    make(&mut world, "front", "");
    let on = |world: &World, number, node: &str| wish(world, number, node, &["back"]);
    // In nobody's block, in a block of the node itself, in an idle and in a used block of another one.
    let cases: [(u128, &str, [u8; 4]); 5] = [
        (1, "n1", [10, 20, 0, 9]),
        (2, "n1", [10, 20, 0, 10]),
        (3, "n2", [10, 20, 0, 11]),
        (4, "n3", [10, 20, 0, 15]),
        (5, "n2", [10, 20, 0, 200]),
    ];
    for (number, node, address) in cases {
        let wished = at(on(&world, number, node), address);
        let guest = put(&mut world, wished).unwrap();
        assert_eq!(guest.addresses[0].address, Ipv4Addr::from(address));
    }
    let owner = |world: &World, address: [u8; 4]| -> (Ipv4Net, NodeId) {
        let network = world.state.network(&back).unwrap();
        let lease = network.blocks.iter().find(|lease| lease.block.contains(&Ipv4Addr::from(address)));
        lease.map(|lease| (lease.block, lease.node_id.clone())).unwrap()
    };
    assert_eq!(owner(&world, [10, 20, 0, 11]), ("10.20.0.11/32".parse().unwrap(), world.node_named("n2")));
    assert_eq!(owner(&world, [10, 20, 0, 8]).1, world.node_named("n1"));
    let refused = |wish: GuestWish| guest::put(&world.state, wish).unwrap_err().to_string();
    let front = at(wish(&world, 9, "n1", &["front"]), [10, 213, 0, 9]);
    assert!(refused(front).contains("network `front` has no range of its own"));
    for address in [[10, 20, 1, 1], [10, 20, 0, 0], [10, 20, 0, 255]] {
        assert!(refused(at(on(&world, 9, "n1"), address)).contains("choose one of its ranges"));
    }
    let taken = refused(at(on(&world, 9, "n1"), [10, 20, 0, 11]));
    assert!(taken.contains("10.20.0.11 is already given to container c3"), "{taken}");
    assert!(matches!(guest::put(&world.state, wish(&world, 9, "n1", &["nope"])), Err(Refusal::NoNetwork(_))));
    // What is left is given as ever, up to the last address.
    let mut number = 100;
    let exhausted = loop {
        let node = ["n1", "n2", "n3"][number as usize % 3];
        let wished = on(&world, number, node);
        match put(&mut world, wished) {
            Ok(_) => number += 1,
            Err(refusal) => break refusal,
        }
    };
    assert!(exhausted.to_string().contains("no free address in network `back`"), "{exhausted}");
    assert!(number > 300, "{number}: 249 others have room");
}

#[test]
fn a_node_that_is_gone_takes_its_guests_and_blocks_along() {
    let mut world = World::new(2);
    let back = make(&mut world, "back", "10.20.0.0/29");
    // More than one plan takes.
    for number in 0..300 {
        let wished = wish(&world, number, "n2", &["front"]);
        if number == 0 {
            make(&mut world, "front", "");
        }
        put(&mut world, wished).unwrap();
    }
    let wished = wish(&world, 300, "n2", &["back"]);
    put(&mut world, wished).unwrap();
    let node = world.node_named("n2");
    world.set_node(&node, NodeState::Down);
    world.settle();
    assert_eq!(world.state.guests().len(), 301, "one that is down comes back");
    world.remove_node(&node);
    world.settle();
    assert_eq!(world.state.guests().len(), 0);
    assert!(world.state.network(&back).unwrap().blocks.is_empty());
}

/// What a node has been told of networks and guests.
type Heard = (assign::Joined, Vec<GuestView>);

/// What a node knows of guests after it was told of what was written.
fn told(world: &mut World, node: &NodeId, (joined, known): &mut Heard) {
    let changes = std::mem::take(&mut world.changes);
    let parts = assign::touched(&world.state, &changes).for_node(node);
    let delta = assign::delta_for(&world.state, node, parts, joined);
    known.retain(|view| {
        let named = delta.guests.iter().any(|new| new.guest_id == view.guest_id);
        !named && !delta.removed_guests.contains(&view.guest_id)
    });
    known.extend(delta.guests);
    known.sort_by(|a, b| (&a.guest_id, &a.network_id).cmp(&(&b.guest_id, &b.network_id)));
    let mut whole = assign::assignment_for(&world.state, node).guests;
    whole.sort_by(|a, b| (&a.guest_id, &a.network_id).cmp(&(&b.guest_id, &b.network_id)));
    assert_eq!(*known, whole, "what was told in parts is what is told as a whole");
}

#[test]
fn nodes_know_the_guests_of_the_networks_in_which_they_have_somebody() {
    let mut world = World::new(2);
    make(&mut world, "back", "");
    let (n1, n2) = (world.node_named("n1"), world.node_named("n2"));
    let (mut here, mut there) = (Heard::default(), Heard::default());
    let look = |world: &mut World, here: &mut Heard, there: &mut Heard| {
        let changes = world.changes.clone();
        told(world, &n1, here);
        world.changes = changes;
        told(world, &n2, there);
        (here.1.len(), there.1.len())
    };
    let mut wished = wish(&world, 1, "n1", &["back"]);
    wished.joins[0].aliases = vec!["db".into()];
    put(&mut world, wished.clone()).unwrap();
    assert_eq!(look(&mut world, &mut here, &mut there), (1, 0));
    assert_eq!((here.1[0].aliases.clone(), here.1[0].address.is_some()), (vec!["db".to_owned()], true));
    // Another guest, then a task, lets the other node in; the last one's end takes it out.
    let second = wish(&world, 2, "n2", &["back"]);
    put(&mut world, second.clone()).unwrap();
    assert_eq!(look(&mut world, &mut here, &mut there), (2, 2));
    put(&mut world, GuestWish { up: false, ..wished }).unwrap();
    look(&mut world, &mut here, &mut there);
    assert!(there.1[0].address.is_none() && there.1[1].address.is_some());
    let action = guest::remove(&world.state, &second.id, &n2).unwrap().unwrap();
    world.write(vec![action]);
    assert_eq!(look(&mut world, &mut here, &mut there), (1, 0));
    let service = world.create(joining("web", 2, "back"));
    run(&mut world);
    assert_eq!(look(&mut world, &mut here, &mut there), (1, 1));
    world.remove(&service);
    run(&mut world);
    assert_eq!(look(&mut world, &mut here, &mut there), (1, 0));
    // A node that does not answer has nobody that could be reached.
    let again = wish(&world, 1, "n1", &["back"]);
    put(&mut world, again).unwrap();
    look(&mut world, &mut here, &mut there);
    world.set_node(&n1, NodeState::Down);
    look(&mut world, &mut here, &mut there);
    assert!(here.1[0].address.is_none());
}
