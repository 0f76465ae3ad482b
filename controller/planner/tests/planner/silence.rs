//! What becomes of tasks on a node that is silent for a moment.

use rorqual_proto::model::NodeState;

use crate::world::{World, spec};

#[test]
fn what_a_silent_node_never_took_is_not_waited_for() {
    let mut world = World::new(3);
    let web = world.create(spec("web", 3));
    world.run_until_whole();
    let lost = world.holders(&web)[0].node_id.clone().unwrap();
    world.scale(&web, 6);
    world.settle();
    let there = |world: &World| {
        world.holders(&web).iter().filter(|task| task.node_id.as_ref() == Some(&lost)).count()
    };
    assert_eq!(there(&world), 2, "nobody knows yet that the node is silent");
    world.set_node(&lost, NodeState::Suspect);
    world.settle();
    assert_eq!(there(&world), 1, "what runs there stays, what it never took goes elsewhere");
    for _ in 0..8 {
        world.agents();
        world.settle();
    }
    assert_eq!(world.really_running(&web).values().sum::<usize>(), 6);
    world.set_node(&lost, NodeState::Ready);
    world.run_until_whole();
    assert!(world.really_running(&web).values().all(|count| *count == 1));
}
