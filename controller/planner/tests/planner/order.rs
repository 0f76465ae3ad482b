//! Who stops first: the replica, or the one that replaces it.

use rorqual_planner::RETIRE_MS;
use rorqual_proto::model::{Availability, Mount, MountKind, ServiceId, ServiceSpec, UpdateOrder};

use crate::world::{World, memory, spec};

/// The fewest replicas that served until nothing was left to do.
fn served(world: &mut World, service: &ServiceId) -> usize {
    let mut fewest = usize::MAX;
    for _ in 0..800 {
        world.settle();
        fewest = fewest.min(world.state.endpoints_of_service(service).count());
        if world.is_whole() {
            return fewest;
        }
        world.agents();
        world.now_ms += 50;
    }
    panic!("it does not come to an end:\n{}", world.describe());
}

fn better(spec: &mut ServiceSpec) {
    spec.container.image = "better".into();
}

fn with_volume(name: &str, replicas: u32) -> ServiceSpec {
    let mut spec = spec(name, replicas);
    spec.container.mounts = vec![Mount {
        kind: MountKind::Volume,
        source: "data".into(),
        target: "/data".into(),
        read_only: false,
        tmpfs_size_bytes: 0,
    }];
    spec
}

#[test]
fn a_single_replica_serves_until_the_next_does_unless_they_would_share_a_volume() {
    let mut world = World::new(2);
    let web = world.create(spec("web", 1));
    let db = world.create(with_volume("db", 1));
    world.run_until_whole();
    world.update(&web, better);
    assert_eq!(served(&mut world, &web), 1);
    world.update(&db, better);
    assert_eq!(served(&mut world, &db), 0);
    // Whoever asks for it gets the one or the other.
    world.update(&web, |spec| {
        spec.update_order = Some(UpdateOrder::StopFirst);
        spec.force_update += 1;
    });
    assert_eq!(served(&mut world, &web), 0);
    world.update(&db, |spec| {
        spec.update_order = Some(UpdateOrder::StartFirst);
        spec.force_update += 1;
    });
    assert_eq!(served(&mut world, &db), 1);
}

#[test]
fn several_replicas_start_first_where_that_is_asked_for() {
    let mut world = World::new(3);
    let web = world.create(spec("web", 3));
    world.run_until_whole();
    world.update(&web, better);
    assert_eq!(served(&mut world, &web), 2);
    world.update(&web, |spec| {
        spec.update_order = Some(UpdateOrder::StartFirst);
        spec.force_update += 1;
    });
    assert_eq!(served(&mut world, &web), 3);
}

#[test]
fn without_room_for_both_the_old_one_stops_first_or_the_update_waits() {
    let mut world = World::new(1);
    let web = world.create(spec("web", 1));
    world.update(&web, |spec| spec.container.reservations = memory(6 << 30));
    world.run_until_whole();
    world.update(&web, better);
    assert_eq!(served(&mut world, &web), 0);
    world.update(&web, |spec| {
        spec.update_order = Some(UpdateOrder::StartFirst);
        spec.force_update += 1;
    });
    for _ in 0..40 {
        world.settle();
        world.agents();
        world.now_ms += 50;
    }
    assert_eq!(world.state.endpoints_of_service(&web).count(), 1);
    let problem = world.service(&web).problem.clone().unwrap_or_default();
    assert!(problem.contains("nothing is stopped that can't be replaced"), "{problem}");
}

#[test]
fn a_broken_start_first_update_costs_nothing() {
    for image in [crate::world::REJECTED, crate::world::CRASHES] {
        let mut world = World::new(2);
        let web = world.create(spec("web", 1));
        world.run_until_whole();
        world.update(&web, |spec| spec.container.image = image.into());
        for _ in 0..400 {
            world.settle();
            let served = world.state.endpoints_of_service(&web).any(|task| task.container.image == "good");
            // One that runs for a moment before it crashes has taken over.
            assert!(served || image == crate::world::CRASHES, "{}", world.describe());
            world.agents();
            world.now_ms += 50;
        }
        world.update(&web, better);
        served(&mut world, &web);
    }
}

#[test]
fn what_runs_on_a_node_that_is_drained_serves_until_it_runs_elsewhere() {
    let mut world = World::new(2);
    let (web, db) = (world.create(spec("web", 2)), world.create(with_volume("db", 2)));
    world.run_until_whole();
    let n1 = world.node_named("n1");
    world.set_availability(&n1, Availability::Drain);
    assert_eq!(served(&mut world, &web), 2);
    assert_eq!(world.spread(&web)["n2"], 2);
    assert_eq!(world.spread(&db)["n2"], 2);
}

#[test]
fn a_drained_node_becomes_empty_although_nothing_else_takes_what_ran_there() {
    let mut world = World::new(1);
    let web = world.create(spec("web", 2));
    world.run_until_whole();
    let n1 = world.node_named("n1");
    world.set_availability(&n1, Availability::Drain);
    for _ in 0..40 {
        world.settle();
        world.agents();
        world.now_ms += 50;
    }
    assert_eq!(world.state.endpoints_of_service(&web).count(), 0, "{}", world.describe());
}

#[test]
fn what_does_not_come_up_elsewhere_is_not_waited_for_without_end() {
    let mut world = World::new(2);
    let web = world.create(spec("web", 1));
    world.run_until_whole();
    let own = world.holders(&web)[0].node_id.clone().unwrap();
    world.set_availability(&own, Availability::Drain);
    // Nobody reports: the other node is slow.
    world.settle();
    assert_eq!(world.state.endpoints_of_service(&web).count(), 1);
    world.now_ms += i64::try_from(RETIRE_MS).unwrap() - 1;
    world.settle();
    assert_eq!(world.state.endpoints_of_service(&web).count(), 1);
    world.now_ms += 1;
    world.settle();
    assert_eq!(world.state.endpoints_of_service(&web).count(), 0, "{}", world.describe());
}
