//! What nodes are told: after every change what a node has taken in is all that it should know.

use std::collections::BTreeMap;

use rorqual_planner::{State, assign};
use rorqual_proto::model::{DesiredState, NodeState, Task};

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
            known.take(assign::delta_for(&world.state, id, &touched.for_node(id)));
            assert_eq!(*known, Known::full(&world.state, id), "round {round}");
        }
    }
    assert!(world.state.service(&inner).is_none());
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

/// What a node has taken in.
#[derive(Debug, Default, PartialEq)]
struct Known {
    tasks: BTreeMap<String, DesiredState>,
    services: BTreeMap<String, assign::ServiceView>,
    blocks: Vec<assign::BlockView>,
    peers: BTreeMap<String, String>,
}

impl Known {
    fn full(state: &State, id: &rorqual_proto::model::NodeId) -> Self {
        let full = assign::assignment_for(state, id);
        let mut known = Self { blocks: full.blocks, ..Self::default() };
        known.put(&full.tasks, full.services, full.peers);
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

    fn take(&mut self, delta: assign::NodeDelta) {
        self.tasks.retain(|id, _| !delta.removed_tasks.iter().any(|gone| gone.as_str() == id));
        self.services.retain(|id, _| !delta.removed_services.iter().any(|gone| gone.as_str() == id));
        self.peers.retain(|id, _| !delta.removed_peers.iter().any(|gone| gone.as_str() == id));
        self.put(&delta.tasks, delta.services, delta.peers);
        self.blocks = delta.blocks.unwrap_or_else(|| std::mem::take(&mut self.blocks));
    }
}
