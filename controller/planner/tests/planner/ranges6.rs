//! IPv6 ranges that users choose for their networks: beside IPv4 ranges, apart from all others, address by address.

use std::net::Ipv6Addr;

use rorqual_planner::prepare::guest::{self, GuestWish};
use rorqual_planner::prepare::network;
use rorqual_planner::{Action, ActionKind};
use rorqual_proto::model::{GuestId, NetworkId, NetworkJoin, NetworkSpec, Node, ServiceSpec, TaskAddress};

use crate::world::{World, spec};

/// A network with ranges of both families, or why it is refused.
fn make(world: &mut World, name: &str, ranges: &[&str]) -> Result<NetworkId, String> {
    let id = NetworkId::from_bits(world.bits());
    let spec = NetworkSpec {
        name: name.into(),
        subnets: ranges.iter().filter_map(|net| net.parse().ok()).collect(),
        subnets6: ranges.iter().filter_map(|net| net.parse().ok()).collect(),
        ..NetworkSpec::default()
    };
    let action = network::create(&world.state, spec, id.clone()).map_err(|refusal| refusal.to_string())?;
    world.write(vec![action]);
    Ok(id)
}

/// A container in a network, at chosen addresses.
fn guest(world: &mut World, number: u128, address: &str, address6: &str) -> Result<TaskAddress, String> {
    let (id, address, address6) = (GuestId::from_bits(number), address.parse().ok(), address6.parse().ok());
    let wish = GuestWish {
        id: id.clone(),
        name: format!("c{number}"),
        node_id: world.node_named("n1"),
        joins: vec![NetworkJoin { address, address6, ..NetworkJoin::plain("back") }],
        up: true,
    };
    let actions = guest::put(&world.state, wish).map_err(|refusal| refusal.to_string())?;
    world.write(actions);
    world.assert_invariants();
    Ok(world.state.guest(&id).unwrap().addresses[0].clone())
}

#[test]
fn addresses_of_both_families_are_at_the_same_place_of_their_ranges() {
    let mut world = World::new(3);
    let back = make(&mut world, "back", &["10.20.0.0/24", "fd00:1::/64"]).unwrap();
    let joins = vec![NetworkJoin::plain("back"), NetworkJoin::plain("default")];
    let service = world.create(ServiceSpec { networks: joins, ..spec("web", 6) });
    world.settle();
    let tasks: Vec<_> = world.state.tasks_of_service(&service).collect();
    assert_eq!(tasks.len(), 6);
    for task in tasks {
        for given in &task.addresses {
            let last = given.address.octets()[3];
            let beside = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last.into());
            assert_eq!(given.address6, (given.network_id == back).then_some(beside), "{given:?}");
        }
    }
}

#[test]
fn a_range_that_something_has_is_refused_and_named() {
    let mut world = World::new(2);
    make(&mut world, "back", &["10.20.0.0/24", "fd00:1::/64"]).unwrap();
    let node = world.node_named("n2");
    let mut described = Node::clone(world.state.node(&node).unwrap()).description;
    described.routes = vec!["2001:db8:7::/64".parse().unwrap(), "fd00::/8".parse().unwrap()];
    described.ipv6_addresses = vec!["fd00:9::7".parse().unwrap()];
    world.write(vec![Action::new(ActionKind::NodeStatus {
        node_id: node,
        status: None,
        description: Some(Box::new(described)),
        address: None,
    })]);
    let own = world.state.cluster().unwrap().id.ipv6_range().to_string();
    let own = own.as_str();
    for (range, with) in [
        ("fd00:1::/80", "fd00:1::/64 of network `back`"),
        ("fd00:1::/32", "fd00:1::/64 of network `back`"),
        (own, "the cluster's own IPv6 range"),
        ("fd72:7126:9ac4:1::/64", "the range of the nodes' own containers"),
        ("2001:db8:7::/80", "2001:db8:7::/64, which node n2 reaches by a route of its own"),
        ("fd00:9::/64", "fd00:9::7/128, which node n2"),
    ] {
        let refusal = make(&mut world, "other", &[range]).unwrap_err();
        assert!(refusal.contains(with), "{range}: {refusal}");
    }
    // A route to all private addresses is in nobody's way.
    make(&mut world, "other", &["fd00:2::/64"]).unwrap();
}

#[test]
fn two_networks_made_at_once_do_not_get_one_range() {
    let mut world = World::new(1);
    let create = |world: &mut World, name: &str| {
        let spec = NetworkSpec {
            name: name.into(),
            subnets6: vec!["fd00:1::/64".parse().unwrap()],
            ..NetworkSpec::default()
        };
        let id = NetworkId::from_bits(world.bits());
        network::create(&world.state, spec, id).unwrap()
    };
    let [one, other] = ["one", "other"].map(|name| create(&mut world, name));
    world.write(vec![one]);
    let conflict = world.state.check_all(&[other]).unwrap_err().to_string();
    assert!(conflict.contains("of network `one`") || conflict.contains("in network `one`"), "{conflict}");
}

#[test]
fn who_gives_no_ipv4_range_gets_one_that_is_free() {
    let mut world = World::new(1);
    make(&mut world, "taken", &["10.216.0.0/19"]).unwrap();
    let four = |world: &World, id: &NetworkId| world.state.network(id).unwrap().spec.subnets[0].to_string();
    let first = make(&mut world, "first", &["fd00:1::/64"]).unwrap();
    assert_eq!(four(&world, &first), "10.216.32.0/20");
    // It is no larger than what it stands beside.
    let second = make(&mut world, "second", &["fd00:2::/120"]).unwrap();
    assert_eq!(four(&world, &second), "10.216.48.0/24");
    let both = make(&mut world, "both", &["fd00:3::/64", "fd00:4::/64"]).unwrap();
    assert_eq!(world.state.network(&both).unwrap().spec.subnets.len(), 2);
    let none = make(&mut world, "none", &[]).unwrap();
    assert!(world.state.network(&none).unwrap().spec.subnets.is_empty());
}

#[test]
fn a_container_chooses_an_address_by_either_family() {
    let mut world = World::new(2);
    make(&mut world, "back", &["10.20.0.0/24", "fd00:1::/64"]).unwrap();
    let given = guest(&mut world, 1, "", "fd00:1::7").unwrap();
    assert_eq!((given.address, given.address6), ([10, 20, 0, 7].into(), "fd00:1::7".parse().ok()));
    assert_eq!(guest(&mut world, 1, "", "fd00:1::7"), Ok(given), "and keeps it");
    let both = guest(&mut world, 2, "10.20.0.8", "fd00:1::8").unwrap();
    assert_eq!(both.address6, "fd00:1::8".parse().ok());
    for (address, address6, reason) in [
        ("", "fd00:1::7", "address 10.20.0.7 is already given to container c1"),
        ("", "fd00:1::100", "fd00:1::100 is no address for a container in network `back`"),
        ("", "fd00:1::", "no address for a container"),
        ("", "fd00:2::9", "fd00:2::9 is no address for a container"),
        ("10.20.0.9", "fd00:1::a", "choose fd00:1::9"),
        ("10.21.0.9", "fd00:1::9", "10.21.0.9 is no address for a container"),
    ] {
        let refusal = guest(&mut world, 3, address, address6).unwrap_err();
        assert!(refusal.contains(reason), "{address} {address6}: {refusal}");
    }
    let mut world = World::new(1);
    make(&mut world, "back", &["10.20.0.0/24"]).unwrap();
    let refusal = guest(&mut world, 1, "", "fd00:1::7").unwrap_err();
    assert!(refusal.contains("no IPv6 range of its own"), "{refusal}");
}
