//! What nodes are told: after every change what a node has taken in is all that it should know.

use std::collections::BTreeMap;

use rorqual_planner::{State, assign};
use rorqual_proto::model::{DesiredState, NodeId, NodeState, ServiceSpec, Task};

use crate::world::{World, port, spec};

#[test]
fn assignments_follow_what_changes_touch() {
    let mut world = World::new(3);
    let mut web = spec("web", 2);
    web.ports = vec![port(8080, 80)];
    let web = world.create(web);
    let inner = world.create(spec("inner", 1));
    world.run_until_whole();
    let nodes: Vec<_> = world.state.nodes().map(|node| node.id.clone()).collect();
    world.changes.clear();
    let mut known: BTreeMap<_, _> =
        nodes.iter().map(|id| (id.clone(), Known::full(&world.state, id))).collect();
    for round in 0..80 {
        match round {
            0 => world.scale(&web, 5),
            20 => world.scale(&web, 1),
            5 => world.seal(&inner, b"one"),
            10 => world.seal(&web, b"two"),
            15 => world.seal(&web, b"three"),
            25 => world.seal(&web, b""),
            27 => world.seal(&web, b"four"),
            30 => world.set_node(&nodes[0], NodeState::Down),
            40 => world.remove(&inner),
            50 => world.remove_node(&nodes[0]),
            60 => world.update(&web, |spec| spec.ports.clear()),
            _ => {}
        }
        let plan = world.plan();
        world.write(plan.actions);
        if round % 2 == 0 {
            world.agents();
        }
        world.now_ms += 100;
        let changes = std::mem::take(&mut world.changes);
        let touched = assign::touched(&world.state, &changes);
        for (id, known) in &mut known {
            known.hear(&world.state, id, &touched);
            assert_eq!(*known, Known::full(&world.state, id), "round {round}");
        }
    }
    assert!(world.state.service(&inner).is_none());
}

#[test]
fn a_node_that_gets_several_tasks_at_once_sees_who_else_is_in_their_network() {
    let mut world = World::new(2);
    let on = |host: &str, mut spec: ServiceSpec| {
        spec.placement.constraints = vec![format!("node.hostname=={host}")];
        spec
    };
    let other = world.create(on("n1", spec("other", 1)));
    world.run_until_whole();
    let node = world.node_named("n2");
    let mut known = Known::full(&world.state, &node);
    assert!(known.services.is_empty());
    let web = world.create(on("n2", spec("web", 3)));
    world.changes.clear();
    // All three come with one batch, and it is looked at when more has been applied.
    let plan = world.plan();
    world.write(plan.actions);
    let first = assign::touched(&world.state, &std::mem::take(&mut world.changes));
    world.scale(&web, 6);
    let plan = world.plan();
    world.write(plan.actions);
    known.hear(&world.state, &node, &first);
    let second = assign::touched(&world.state, &std::mem::take(&mut world.changes));
    known.hear(&world.state, &node, &second);
    assert_eq!(known.tasks.len(), 6);
    assert_eq!(known, Known::full(&world.state, &node));
    assert!(known.services.contains_key(other.as_str()));
    // And none of them once all have gone at once.
    world.scale(&web, 0);
    world.run_until("no task is left", |world| world.live_tasks(&web).is_empty());
    let last = assign::touched(&world.state, &std::mem::take(&mut world.changes));
    known.hear(&world.state, &node, &last);
    assert_eq!(known, Known::full(&world.state, &node));
    assert!(!known.services.contains_key(other.as_str()));
}

#[test]
fn only_nodes_with_a_live_task_get_what_registries_want_to_see() {
    let mut world = World::new(3);
    let web = world.create(spec("web", 1));
    world.seal(&web, b"sealed");
    world.run_until_whole();
    let holders = |world: &World| {
        let nodes = world.state.nodes().map(|node| assign::assignment_for(&world.state, &node.id));
        nodes.filter(|given| given.auths.iter().any(|view| view.service_id == web)).count()
    };
    assert_eq!(holders(&world), 1);
    let version = world.service(&web).spec_version;
    world.changes.clear();
    world.seal(&web, b"other");
    assert_eq!(world.service(&web).spec_version, version, "no task is replaced for it");
    let touched = assign::touched(&world.state, &world.changes);
    assert_eq!((touched.nodes.len(), touched.everywhere.is_empty()), (1, true));
    world.scale(&web, 3);
    world.run_until_whole();
    assert_eq!(holders(&world), 3);
    world.scale(&web, 0);
    world.run_until("no task is left", |world| world.live_tasks(&web).is_empty());
    assert_eq!(holders(&world), 0, "a task that has ended needs nothing");
}

#[test]
fn another_number_of_replicas_is_told_to_nobody() {
    let mut world = World::new(1);
    let mut web = spec("web", 1);
    web.ports = vec![port(8080, 80)];
    let web = world.create(web);
    world.run_until_whole();
    world.changes.clear();
    world.scale(&web, 5);
    assert!(!world.changes.is_empty());
    let touched = assign::touched(&world.state, &world.changes);
    assert_eq!(touched, assign::Touched::default());
    world.update(&web, |spec| spec.ports.clear());
    let plan = world.plan();
    world.write(plan.actions);
    let touched = assign::touched(&world.state, &world.changes);
    assert!(touched.everywhere.services.contains(&web));
}

#[test]
fn a_service_without_a_virtual_address_is_told_to_nodes_as_such() {
    let mut world = World::new(1);
    let web = world.create(spec("web", 1));
    world.run_until_whole();
    let view = |world: &World| assign::service_views(&world.state, &web)[0].clone();
    let vip = view(&world).vip;
    assert!(vip.is_some() && !view(&world).client_affinity);
    let before = world.live_tasks(&web)[0].id.clone();
    world.changes.clear();
    world.update(&web, |spec| (spec.dnsrr, spec.client_affinity) = (true, true));
    let touched = assign::touched(&world.state, &world.changes);
    assert!(touched.everywhere.services.contains(&web));
    assert!(view(&world).vip.is_none() && view(&world).client_affinity);
    world.run_until_whole();
    assert_eq!(world.live_tasks(&web)[0].id, before, "no task is replaced for that");
    world.update(&web, |spec| spec.dnsrr = false);
    assert_eq!(view(&world).vip, vip);
}

/// What a node has taken in.
#[derive(Debug, Default, PartialEq)]
struct Known {
    joined: assign::Joined,
    tasks: BTreeMap<String, DesiredState>,
    services: BTreeMap<String, assign::ServiceView>,
    auths: BTreeMap<String, Vec<u8>>,
    blocks: Vec<assign::BlockView>,
    peers: BTreeMap<String, String>,
}

impl Known {
    fn full(state: &State, id: &NodeId) -> Self {
        let full = assign::assignment_for(state, id);
        let joined = assign::Joined::of(state, id);
        let mut known = Self { joined, blocks: full.blocks, ..Self::default() };
        known.put(&full.tasks, full.services, full.peers);
        known.put_auths(full.auths);
        known
    }

    fn put(
        &mut self,
        tasks: &[std::sync::Arc<Task>],
        services: Vec<assign::ServiceView>,
        peers: Vec<assign::PeerView>,
    ) {
        self.peers.extend(peers.into_iter().map(|peer| (peer.node_id.to_string(), peer.address)));
        self.tasks.extend(tasks.iter().map(|task| (task.id.to_string(), task.desired_state)));
        self.services.extend(services.into_iter().map(|view| (view.service_id.to_string(), view)));
    }

    fn put_auths(&mut self, auths: Vec<assign::AuthsView>) {
        self.auths.extend(auths.into_iter().map(|view| (view.service_id.to_string(), view.sealed)));
    }

    fn hear(&mut self, state: &State, id: &NodeId, touched: &assign::Touched) {
        let delta = assign::delta_for(state, id, touched.for_node(id), &mut self.joined);
        self.tasks.retain(|id, _| !delta.removed_tasks.iter().any(|gone| gone.as_str() == id));
        self.services.retain(|id, _| !delta.removed_services.iter().any(|gone| gone.as_str() == id));
        self.peers.retain(|id, _| !delta.removed_peers.iter().any(|gone| gone.as_str() == id));
        self.put(&delta.tasks, delta.services, delta.peers);
        self.auths.retain(|id, _| !delta.removed_auths.iter().any(|gone| gone.as_str() == id));
        self.put_auths(delta.auths);
        self.blocks = delta.blocks.unwrap_or_else(|| std::mem::take(&mut self.blocks));
    }
}
