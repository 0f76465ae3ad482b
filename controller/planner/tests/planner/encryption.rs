//! What nodes are told of each other: keys for what they encrypt, and addresses.

use rorqual_planner::{Action, ActionKind, Change, assign, prepare};
use rorqual_proto::model::{EdgeSettings, Node, NodeDescription, NodeEncryption, NodeId};

use crate::world::World;

fn describe(world: &mut World, id: &NodeId, change: impl FnOnce(&mut NodeDescription)) {
    let mut described = Node::clone(world.state.node(id).unwrap()).description;
    change(&mut described);
    world.write(vec![Action::new(ActionKind::NodeStatus {
        node_id: id.clone(),
        status: None,
        description: Some(Box::new(described)),
        address: None,
    })]);
}

#[test]
fn nodes_are_told_of_all_addresses_of_a_machine() {
    let mut world = World::new(2);
    let nodes: Vec<_> = world.state.nodes().map(|node| node.id.clone()).collect();
    let address = Some("10.0.0.2:4780".to_owned());
    let node_id = nodes[1].clone();
    world.write(vec![Action::new(ActionKind::NodeStatus {
        node_id,
        status: None,
        description: None,
        address,
    })]);
    let underlay = world.state.node(&nodes[1]).unwrap().underlay().unwrap();
    let other = [192, 0, 2, 7].into();
    world.changes.clear();
    describe(&mut world, &nodes[1], |described| described.addresses = vec![underlay, other]);
    let touched = assign::touched(&world.state, &world.changes);
    assert!(touched.everywhere.peers.contains(&nodes[1]));
    let told = assign::assignment_for(&world.state, &nodes[0]);
    assert_eq!(told.peers[0].other_addresses, [other]);
}

#[test]
fn nodes_are_told_of_keys_and_that_all_ways_change() {
    let mut world = World::new(3);
    let nodes: Vec<_> = world.state.nodes().map(|node| node.id.clone()).collect();
    for (at, id) in nodes.iter().enumerate() {
        let encryption = NodeEncryption { public_key: vec![at as u8 + 1; 32], ..Default::default() };
        describe(&mut world, id, |described| described.encryption = encryption);
    }
    let told = assign::assignment_for(&world.state, &nodes[0]);
    assert!(told.peers.iter().all(|peer| !peer.encrypted));

    world.changes.clear();
    let action = prepare::cluster::set(&world.state, EdgeSettings::default(), Some(true)).unwrap();
    world.write(vec![action]);
    assert_eq!(world.changes, [Change::Cluster]);
    let mut joined = assign::Joined::of(&world.state, &nodes[0]);
    let parts = assign::touched(&world.state, &world.changes).for_node(&nodes[0]);
    let delta = assign::delta_for(&world.state, &nodes[0], parts, &mut joined);
    assert_eq!(delta.peers, assign::assignment_for(&world.state, &nodes[0]).peers);
    let keys: Vec<&[u8]> = delta.peers.iter().map(|peer| peer.public_key.as_slice()).collect();
    assert_eq!(keys.len(), 2);
    assert!(keys.contains(&&[2; 32][..]) && keys.contains(&&[3; 32][..]));
    assert!(delta.peers.iter().all(|peer| peer.encrypted));

    // What is not named stays.
    let action = prepare::cluster::set(&world.state, EdgeSettings::default(), None).unwrap();
    world.write(vec![action]);
    assert!(world.state.cluster().unwrap().encrypt);
}
