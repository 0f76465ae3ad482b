//! Generated histories: whatever happens in whatever order, the rules hold after every batch, and when
//! nothing more happens and the nodes are up, every service runs as asked for.
//!
//! A failure prints the shortest history that proptest finds, and its seed goes to
//! `proptest-regressions/`, which is committed.

use proptest::prelude::*;
use rorqual_planner::{Planner, State};
use rorqual_proto::model::{Availability, NodeId, NodeState, ServiceId};

use crate::world::{CRASHES, REJECTED, World, memory, port, spec};

#[derive(Debug, Clone)]
enum Event {
    Create {
        replicas: u32,
        image: u8,
        memory_mib: u64,
        published: u16,
        max_per_node: u32,
    },
    Scale {
        service: usize,
        replicas: u32,
    },
    Update {
        service: usize,
        image: u8,
        published: u16,
    },
    Remove {
        service: usize,
    },
    Join,
    Suspect {
        node: usize,
    },
    Down {
        node: usize,
    },
    Up {
        node: usize,
    },
    Drain {
        node: usize,
    },
    Activate {
        node: usize,
    },
    RemoveNode {
        node: usize,
    },
    Agents {
        steps: usize,
    },
    Fail {
        task: usize,
    },
    LateReport {
        report: usize,
    },
    Wait {
        ms: i64,
    },
    /// Another controller leads: it knows the state and nothing else.
    NewLeader,
    /// The leader was restored from a snapshot.
    Restore,
    /// A plan was lost on its way.
    LostPlan,
}

fn event() -> impl Strategy<Value = Event> {
    let any = 0_usize..64;
    let image = 0_u8..5;
    prop_oneof![
        3 => (0_u32..7, image.clone(), prop_oneof![Just(0), 256_u64..2048], prop_oneof![Just(0_u16), 8000_u16..8003], 0_u32..4)
            .prop_map(|(replicas, image, memory_mib, published, max_per_node)| Event::Create {
                replicas, image, memory_mib, published, max_per_node
            }),
        3 => (any.clone(), 0_u32..9).prop_map(|(service, replicas)| Event::Scale { service, replicas }),
        3 => (any.clone(), image, prop_oneof![Just(0_u16), 8000_u16..8003])
            .prop_map(|(service, image, published)| Event::Update { service, image, published }),
        1 => any.clone().prop_map(|service| Event::Remove { service }),
        1 => Just(Event::Join),
        1 => any.clone().prop_map(|node| Event::Suspect { node }),
        3 => any.clone().prop_map(|node| Event::Down { node }),
        3 => any.clone().prop_map(|node| Event::Up { node }),
        1 => any.clone().prop_map(|node| Event::Drain { node }),
        1 => any.clone().prop_map(|node| Event::Activate { node }),
        1 => any.clone().prop_map(|node| Event::RemoveNode { node }),
        6 => (1_usize..7).prop_map(|steps| Event::Agents { steps }),
        3 => any.clone().prop_map(|task| Event::Fail { task }),
        2 => any.prop_map(|report| Event::LateReport { report }),
        3 => prop_oneof![1_i64..2_000, Just(70_000)].prop_map(|ms| Event::Wait { ms }),
        1 => Just(Event::NewLeader),
        1 => Just(Event::Restore),
        1 => Just(Event::LostPlan),
    ]
}

fn image_name(image: u8) -> String {
    match image {
        0 => REJECTED.to_owned(),
        1 => CRASHES.to_owned(),
        other => format!("good-{other}"),
    }
}

fn pick<T: Clone>(items: impl Iterator<Item = T>, number: usize) -> Option<T> {
    let items: Vec<T> = items.collect();
    (!items.is_empty()).then(|| items[number % items.len()].clone())
}

fn pick_node(world: &World, number: usize) -> Option<NodeId> {
    pick(world.state.nodes().map(|node| node.id.clone()), number)
}

fn pick_service(world: &World, number: usize) -> Option<ServiceId> {
    let services = world.state.services().filter(|service| !service.removing);
    pick(services.map(|service| service.id.clone()), number)
}

fn happen(world: &mut World, event: &Event) {
    match *event {
        Event::Create { replicas, image, memory_mib, published, max_per_node } => {
            let mut spec = spec(&format!("s{}", world.bits()), replicas);
            spec.container.image = image_name(image);
            spec.container.reservations = memory(memory_mib << 20);
            spec.placement.max_replicas_per_node = max_per_node;
            spec.ports = vec![port(published, 80)];
            let taken =
                world.state.services().any(|other| other.ports.iter().any(|had| had.published == published));
            if !taken {
                world.create(spec);
            }
        }
        Event::Scale { service, replicas } => {
            let Some(id) = pick_service(world, service) else { return };
            world.scale(&id, replicas);
        }
        Event::Update { service, image, published } => {
            let Some(id) = pick_service(world, service) else { return };
            let others = world.state.services().filter(|other| other.id != id);
            let taken = others.flat_map(|other| &other.ports).any(|had| had.published == published);
            world.update(&id, |spec| {
                spec.container.image = image_name(image);
                if !taken {
                    spec.ports = vec![port(published, 80)];
                }
            });
        }
        Event::Remove { service } => {
            let Some(id) = pick_service(world, service) else { return };
            world.remove(&id);
        }
        Event::Join => drop(world.join()),
        Event::Suspect { node } => with_node(world, node, |world, id| world.set_node(id, NodeState::Suspect)),
        Event::Down { node } => with_node(world, node, |world, id| world.set_node(id, NodeState::Down)),
        Event::Up { node } => with_node(world, node, |world, id| world.set_node(id, NodeState::Ready)),
        Event::Drain { node } => {
            with_node(world, node, |world, id| world.set_availability(id, Availability::Drain));
        }
        Event::Activate { node } => {
            with_node(world, node, |world, id| world.set_availability(id, Availability::Active));
        }
        Event::RemoveNode { node } => with_node(world, node, World::remove_node),
        Event::Agents { steps } => {
            for _ in 0..steps {
                world.agents();
                world.settle();
                world.now_ms += 20;
            }
        }
        Event::Fail { task } => {
            let Some(id) = pick(world.state.tasks().map(|task| task.id.clone()), task) else { return };
            world.fail(&id);
        }
        Event::LateReport { report } => {
            let Some(late) = pick(world.sent.iter().cloned(), report) else { return };
            world.report(vec![late]);
        }
        Event::Wait { ms } => world.now_ms += ms,
        Event::NewLeader => {
            world.planner = Planner::new();
            world.planner.observe_all(&world.state);
        }
        Event::Restore => {
            world.state = State::restore(world.state.objects());
            world.planner = Planner::new();
            world.planner.observe_all(&world.state);
        }
        Event::LostPlan => {
            let plan = world.plan();
            world.planner.retry(&plan);
        }
    }
}

fn with_node(world: &mut World, number: usize, act: impl FnOnce(&mut World, &NodeId)) {
    if let Some(id) = pick_node(world, number) {
        act(world, &id);
    }
}

/// Nothing more happens, every node is up, images work, and there is room for all.
fn calm_down(world: &mut World) {
    world.healed = true;
    let nodes: Vec<NodeId> = world.state.nodes().map(|node| node.id.clone()).collect();
    for id in &nodes {
        world.set_node(id, NodeState::Ready);
        world.set_availability(id, Availability::Active);
    }
    let present = world.state.nodes().len();
    for _ in present..12 {
        world.join();
    }
}

proptest! {
    #[test]
    fn any_history_keeps_the_rules_and_ends_well(
        nodes in 0_usize..4,
        events in prop::collection::vec(event(), 1..40),
    ) {
        let mut world = World::new(nodes);
        for event in &events {
            happen(&mut world, event);
            // Some events follow each other before the planner gets to look.
            if !matches!(event, Event::Scale { .. } | Event::Fail { .. }) {
                world.settle();
            }
            world.assert_invariants();
        }
        calm_down(&mut world);
        world.run_until_whole();
        for service in world.state.services() {
            let running = world.really_running(&service.id);
            prop_assert!(running.values().all(|count| *count == 1), "{running:?}\n{}", world.describe());
        }
        // What a new leader sees from scratch is what the old one left.
        world.planner = Planner::new();
        world.planner.observe_all(&world.state);
        let plan = world.plan();
        prop_assert!(plan.actions.is_empty(), "{:?}", plan.actions);
    }

    #[test]
    fn the_same_input_gives_the_same_plan(events in prop::collection::vec(event(), 1..15)) {
        let mut world = World::new(3);
        for event in &events {
            happen(&mut world, event);
            let mut twin = world.planner.clone();
            let seed = world.seed + 1;
            let expected = twin.plan(&world.state, world.now_ms, seed);
            let plan = world.plan();
            prop_assert_eq!(&plan.actions, &expected.actions);
            prop_assert_eq!(plan.wake_at_ms, expected.wake_at_ms);
            world.write(plan.actions);
        }
    }
}
