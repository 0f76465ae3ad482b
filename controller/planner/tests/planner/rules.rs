//! One rule a test: what users see of orchestration, allocation and scheduling.

use std::collections::{BTreeMap, BTreeSet};

use rorqual_planner::{Action, ActionKind, Change, Conflict, HISTORY, Planner, prepare};
use rorqual_proto::model::{Availability, NodeState, RestartCondition, Task, TaskState, TaskStatus};

use crate::world::{CRASHES, REJECTED, World, memory, port, spec};

fn counts(pairs: &[(&str, usize)]) -> BTreeMap<String, usize> {
    pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[test]
fn one_plan_carries_a_scale_up_to_assigned() {
    let mut world = World::new(3);
    let web = world.create(spec("web", 1));
    world.run_until_whole();
    world.scale(&web, 10);
    let plan = world.plan();
    let tasks: Vec<&Task> = plan
        .actions
        .iter()
        .filter_map(|action| match &action.kind {
            ActionKind::PutTask(task) => Some(&**task),
            _ => None,
        })
        .collect();
    assert_eq!(tasks.len(), 9);
    for task in tasks {
        assert_eq!(task.status.state, TaskState::Assigned);
        assert!(task.node_id.is_some());
        assert_eq!(task.addresses.len(), 1);
    }
    world.write(plan.actions);
    world.assert_invariants();
    assert_eq!(world.spread(&web), counts(&[("n1", 4), ("n2", 3), ("n3", 3)]));
    world.run_until_whole();
}

#[test]
fn scaling_down_takes_what_does_not_serve_first_and_then_from_the_crowded_node() {
    let mut world = World::new(3);
    let web = world.create(spec("web", 7));
    world.run_until_whole();
    assert_eq!(world.spread(&web), counts(&[("n1", 3), ("n2", 2), ("n3", 2)]));
    world.scale(&web, 6);
    world.run_until_whole();
    assert_eq!(world.spread(&web), counts(&[("n1", 2), ("n2", 2), ("n3", 2)]));
    let failing = world.holders(&web).into_iter().find(|task| task.slot == 2).unwrap();
    world.fail(&failing.id);
    world.scale(&web, 5);
    world.settle();
    assert!(world.holders(&web).iter().all(|task| task.slot != 2));
    world.run_until_whole();
}

#[test]
fn scaled_down_to_nothing_leaves_nothing() {
    let mut world = World::new(2);
    let web = world.create(spec("web", 4));
    world.run_until_whole();
    world.scale(&web, 0);
    world.run_until_whole();
    assert_eq!(world.state.tasks().count(), 0);
}

#[test]
fn what_ran_on_a_node_that_is_down_runs_elsewhere_and_once_when_it_is_back() {
    let mut world = World::new(3);
    let web = world.create(spec("web", 3));
    world.run_until_whole();
    let lost = world.holders(&web)[0].node_id.clone().unwrap();
    world.set_node(&lost, NodeState::Suspect);
    world.settle();
    assert!(
        world.holders(&web).iter().any(|task| task.node_id.as_ref() == Some(&lost)),
        "a blip moves nothing"
    );
    world.set_node(&lost, NodeState::Down);
    let plan = world.plan();
    assert_eq!(plan.actions.len(), 2, "one is told to stop, one is made: {:?}", plan.actions);
    world.write(plan.actions);
    for _ in 0..8 {
        world.agents();
        world.settle();
    }
    assert_eq!(world.really_running(&web).values().sum::<usize>(), 4, "the lost one runs on");
    world.set_node(&lost, NodeState::Ready);
    world.run_until_whole();
    assert!(world.really_running(&web).values().all(|count| *count == 1));
}

#[test]
fn a_drained_node_is_emptied_and_a_paused_one_is_not() {
    let mut world = World::new(2);
    let web = world.create(spec("web", 4));
    world.run_until_whole();
    let (n1, n2) = (world.node_named("n1"), world.node_named("n2"));
    world.set_availability(&n1, Availability::Drain);
    world.run_until_whole();
    assert_eq!(world.spread(&web), counts(&[("n2", 4)]));
    world.set_availability(&n1, Availability::Active);
    world.set_availability(&n2, Availability::Pause);
    world.scale(&web, 6);
    world.run_until_whole();
    assert_eq!(world.spread(&web), counts(&[("n1", 2), ("n2", 4)]));
}

#[test]
fn the_tasks_and_blocks_of_a_removed_node_go() {
    let mut world = World::new(2);
    let web = world.create(spec("web", 4));
    world.run_until_whole();
    let n1 = world.node_named("n1");
    world.remove_node(&n1);
    world.run_until_whole();
    assert_eq!(world.spread(&web), counts(&[("n2", 4)]));
    let network = world.state.network_by_name("default").unwrap();
    assert!(network.blocks.iter().all(|lease| lease.node_id != n1));
    let orphans = world.state.tasks().filter(|task| task.status.state == TaskState::Orphaned).count();
    assert_eq!(orphans, 2);
}

#[test]
fn a_removed_service_goes_with_its_tasks_even_where_its_node_is_down() {
    let mut world = World::new(2);
    let web = world.create(spec("web", 4));
    world.run_until_whole();
    let n1 = world.node_named("n1");
    world.set_node(&n1, NodeState::Down);
    world.remove(&web);
    world.run_until("it is gone", |world| world.state.service_by_name("web").is_none());
    assert_eq!(world.state.tasks().count(), 0);
    world.set_node(&n1, NodeState::Ready);
    world.agents();
    assert!(world.machines.values().all(|machine| machine.containers.is_empty()));
}

#[test]
fn a_failing_slot_backs_off_and_keeps_a_bounded_history() {
    let mut world = World::new(3);
    let mut bad = spec("web", 1);
    bad.container.image = REJECTED.into();
    let web = world.create(bad);
    world.settle();
    let mut waits = Vec::new();
    for _ in 0..10 {
        for _ in 0..3 {
            world.agents();
        }
        world.settle();
        let due = world.wake_at_ms.unwrap();
        waits.push(due - world.now_ms);
        world.now_ms = due - 1;
        world.settle();
        assert_eq!(world.holders(&web)[0].status.state, TaskState::Rejected, "not before it is due");
        world.now_ms = due;
        world.settle();
    }
    let bounds = [(100, 125), (400, 500), (1600, 2000), (6400, 8000), (25_600, 32_000), (60_000, 75_000)];
    for (place, wait) in waits.iter().enumerate() {
        let (least, most) = bounds[place.min(bounds.len() - 1)];
        assert!((least..=most).contains(wait), "waits: {waits:?}");
    }
    assert_eq!(world.state.tasks_of_service(&web).count(), HISTORY + 1);
    let nodes: BTreeSet<_> = world.state.tasks_of_service(&web).map(|task| task.node_id.clone()).collect();
    assert_eq!(nodes.len(), 3, "every node was tried");
}

#[test]
fn a_new_leader_goes_on_with_the_backoff() {
    let mut world = World::new(1);
    let mut bad = spec("web", 1);
    bad.container.image = REJECTED.into();
    let web = world.create(bad);
    world.run_until("rejected twice", |world| {
        world.state.tasks_of_service(&web).filter(|task| task.status.state == TaskState::Rejected).count()
            == 2
    });
    let due = world.wake_at_ms;
    world.planner = Planner::new();
    world.planner.observe_all(&world.state);
    world.settle();
    assert_eq!(world.wake_at_ms, due);
}

#[test]
fn what_is_not_to_be_restarted_stays_ended() {
    let mut world = World::new(1);
    let mut once = spec("job", 1);
    once.restart.condition = RestartCondition::None;
    once.container.image = CRASHES.into();
    let job = world.create(once);
    world.run_until("failed", |world| world.holders(&job)[0].status.state == TaskState::Failed);
    world.now_ms += 3_600_000;
    world.settle();
    assert_eq!(world.state.tasks_of_service(&job).count(), 1);
    world.update(&job, |spec| spec.container.image = "good".into());
    world.run_until_whole();
}

#[test]
fn an_update_stops_one_at_a_time() {
    let mut world = World::new(3);
    let web = world.create(spec("web", 5));
    world.run_until_whole();
    world.update(&web, |spec| spec.container.image = "better".into());
    let mut fewest = 5;
    for _ in 0..400 {
        world.settle();
        fewest = fewest.min(world.state.endpoints_of_service(&web).count());
        if world.is_whole() {
            break;
        }
        world.agents();
        world.now_ms += 50;
    }
    assert!(world.is_whole(), "{}", world.describe());
    assert_eq!(fewest, 4);
    assert!(world.holders(&web).iter().all(|task| task.container.image == "better"));
}

#[test]
fn a_broken_update_costs_one_replica_and_says_so() {
    for image in [REJECTED, CRASHES] {
        let mut world = World::new(3);
        let web = world.create(spec("web", 4));
        world.run_until_whole();
        world.update(&web, |spec| spec.container.image = image.into());
        let start_ms = world.now_ms;
        while world.now_ms < start_ms + 600_000 {
            world.settle();
            let old = world.state.endpoints_of_service(&web).filter(|task| task.container.image == "good");
            assert!(old.count() >= 3, "{}", world.describe());
            world.agents();
            world.now_ms += 500;
        }
        let problem = world.service(&web).problem.clone().unwrap();
        assert!(problem.contains("the update is held back"), "{problem}");
        world.update(&web, |spec| spec.container.image = "good again".into());
        world.run_until_whole();
    }
}

#[test]
fn an_update_stops_nothing_that_can_not_be_replaced() {
    let mut world = World::new(2);
    let web = world.create(spec("web", 2));
    world.run_until_whole();
    world.update(&web, |spec| spec.container.reservations = memory(16 << 30));
    for _ in 0..20 {
        world.settle();
        world.agents();
        world.now_ms += 1_000;
    }
    assert_eq!(world.state.endpoints_of_service(&web).count(), 2);
    let problem = world.service(&web).problem.clone().unwrap();
    assert!(problem.contains("2 nodes lack 16 GiB of free memory"), "{problem}");
    world.update(&web, |spec| spec.container.reservations = memory(1 << 30));
    world.run_until_whole();
}

#[test]
fn an_update_goes_through_although_a_slot_has_no_node() {
    let mut world = World::new(3);
    let mut one_each = spec("web", 3);
    one_each.placement.max_replicas_per_node = 1;
    let web = world.create(one_each);
    world.run_until_whole();
    let n1 = world.node_named("n1");
    world.set_node(&n1, NodeState::Down);
    world.settle();
    world.update(&web, |spec| spec.container.image = "better".into());
    world.run_until("two run the new spec", |world| {
        let updated = world.state.endpoints_of_service(&web).filter(|task| task.container.image == "better");
        updated.count() == 2
    });
    world.set_node(&n1, NodeState::Ready);
    world.run_until_whole();
}

#[test]
fn a_change_of_ports_or_labels_replaces_nothing() {
    let mut world = World::new(1);
    let web = world.create(spec("web", 2));
    world.run_until_whole();
    let before = world.holders(&web);
    world.update(&web, |spec| {
        spec.ports = vec![port(0, 80), port(8080, 81), port(0, 82)];
        spec.labels.insert("a".into(), "b".into());
    });
    world.run_until_whole();
    let ids = |tasks: &[Task]| tasks.iter().map(|task| task.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&world.holders(&web)));
    assert_eq!(world.service(&web).ports, [port(30_000, 80), port(8080, 81), port(30_001, 82)]);
    world.update(&web, |spec| spec.ports = vec![port(0, 79), port(0, 80)]);
    assert_eq!(world.service(&web).ports, [port(30_002, 79), port(30_000, 80)]);
}

#[test]
fn pending_tasks_say_why_and_start_when_there_is_room() {
    let mut world = World::new(3);
    let mut big = spec("big", 3);
    big.container.reservations = memory(5 << 30);
    let big = world.create(big);
    let n3 = world.node_named("n3");
    world.set_availability(&n3, Availability::Drain);
    world.settle();
    let waiting = world.holders(&big).into_iter().find(|task| task.node_id.is_none()).unwrap();
    assert_eq!(waiting.status.state, TaskState::Pending);
    assert_eq!(
        waiting.status.message,
        "no suitable node: 2 nodes lack 5 GiB of free memory for the reservation, 1 node is drained"
    );
    world.set_availability(&n3, Availability::Active);
    world.run_until_whole();
    assert_eq!(world.state.task(&waiting.id).unwrap().node_id, Some(n3), "the same task got its node");
}

#[test]
fn constraints_choose_nodes() {
    let mut world = World::new(3);
    let (n2, n3) = (world.node_named("n2"), world.node_named("n3"));
    world.label(&n2, "disk", "ssd");
    world.label(&n3, "disk", "hdd");
    let mut fast = spec("fast", 2);
    fast.placement.constraints = vec!["node.labels.disk==ssd".into()];
    let fast = world.create(fast);
    let mut slow = spec("slow", 4);
    slow.placement.constraints = vec!["node.labels.disk!=ssd".into(), "node.role==worker".into()];
    let slow = world.create(slow);
    let mut none = spec("none", 1);
    none.placement.constraints = vec!["node.hostname==n9".into()];
    let none = world.create(none);
    world.settle();
    assert_eq!(world.spread(&fast), counts(&[("n2", 2)]));
    assert_eq!(world.spread(&slow), counts(&[("n1", 2), ("n3", 2)]));
    let message = &world.holders(&none)[0].status.message;
    assert_eq!(message, "no suitable node: 3 nodes do not satisfy node.hostname==n9");
}

#[test]
fn addresses_rest_before_they_are_given_again() {
    let mut world = World::new(1);
    let web = world.create(spec("web", 1));
    world.run_until_whole();
    let mut seen = BTreeSet::new();
    for _ in 0..60 {
        let holder = world.holders(&web)[0].clone();
        assert!(seen.insert(holder.addresses[0].address), "{} again", holder.addresses[0].address);
        world.update(&web, |spec| spec.force_update += 1);
        world.run_until_whole();
    }
    assert_eq!(world.state.network_by_name("default").unwrap().blocks.len(), 1);
}

#[test]
fn a_pool_that_is_exhausted_is_explained_and_recovers() {
    // Four blocks of 64: three nodes take one each and one of them a second.
    let mut world = World::with_pools(3, "10.1.0.0/24", "10.2.0.0/16");
    let web = world.create(spec("web", 300));
    world.settle();
    let placed = world.holders(&web).iter().filter(|task| task.node_id.is_some()).count();
    assert_eq!(placed, 254, "the pool without its first and last address");
    let waiting = world.holders(&web).into_iter().find(|task| task.node_id.is_none()).unwrap();
    assert_eq!(
        waiting.status.message,
        "no suitable node: 3 nodes have no free address in network `default` and no block is left in its pool"
    );
    world.scale(&web, 250);
    world.run_until_whole();
}

#[test]
fn ports_and_names_are_given_once() {
    let mut world = World::new(1);
    let mut web = spec("web", 1);
    web.ports = vec![port(8080, 80)];
    world.create(web);
    let mut api = spec("api", 1);
    api.ports = vec![port(8080, 80)];
    let id = rorqual_proto::model::ServiceId::from_bits(world.bits());
    let refusal = prepare::create_service(&world.state, api, id.clone(), Vec::new()).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "port 8080/tcp is already published by service `web`: choose another port, publish the two on different \
         addresses of the nodes, or remove it there"
    );
    let refusal = prepare::create_service(&world.state, spec("web", 1), id, Vec::new()).unwrap_err();
    assert!(matches!(refusal, prepare::Refusal::NameTaken { .. }), "{refusal}");
    // Prepared at the same time, only one of two gets through.
    let (a, b) = (world.bits(), world.bits());
    let prepared = |bits| {
        let id = rorqual_proto::model::ServiceId::from_bits(bits);
        prepare::create_service(&world.state, spec("twin", 1), id, Vec::new()).unwrap()
    };
    let (a, b) = (prepared(a), prepared(b));
    assert!(matches!(world.state.check_all(&[a.clone(), b.clone()]), Err(Conflict::NameTaken { .. })));
    world.write(vec![a]);
    assert!(matches!(world.state.check(&b), Err(Conflict::NameTaken { .. })));
}

#[test]
fn a_port_that_came_free_is_given_to_who_waits_for_it() {
    let mut world = World::new(1);
    let mut spec_a = spec("a", 1);
    spec_a.ports = vec![port(8080, 80)];
    let a = world.create(spec_a.clone());
    // The other service's record says that it wants the port too, as after a race.
    let id = rorqual_proto::model::ServiceId::from_bits(world.bits());
    let prepared = prepare::create_service(&world.state, spec("b", 1), id.clone(), Vec::new()).unwrap();
    let ActionKind::PutService(mut b) = prepared.kind else { panic!("not a service") };
    b.spec.ports = spec_a.ports;
    world.write(vec![Action::new(ActionKind::PutService(b))]);
    world.settle();
    assert!(world.service(&id).problem.as_ref().unwrap().contains("port 8080/tcp"));
    world.remove(&a);
    world.run_until_whole();
    assert_eq!(world.service(&id).ports, [port(8080, 80)]);
}

#[test]
fn a_status_that_is_late_changes_nothing_and_dirties_nothing() {
    let mut world = World::new(1);
    let web = world.create(spec("web", 1));
    world.run_until_whole();
    let task = world.holders(&web)[0].clone();
    let early = world.sent[0].clone();
    world.report(vec![early]);
    assert_eq!(world.state.task(&task.id).unwrap().status, task.status);
    assert!(world.planner.is_idle());
    // News that no decision depends on.
    let mut status = task.status.clone();
    (status.pid, status.restarts) = (77, 1);
    world.report(vec![(task.id.clone(), status.clone())]);
    assert_eq!(world.state.task(&task.id).unwrap().status, status);
    assert!(world.planner.is_idle());
    assert_eq!(world.state.task(&task.id).unwrap().meta.version, task.meta.version);
    // What has ended stays as it ended, whatever comes late.
    world.fail(&task.id);
    let ended = world.state.task(&task.id).unwrap().status.clone();
    for state in [TaskState::Shutdown, TaskState::Rejected, TaskState::Orphaned] {
        let late = TaskStatus { state, restarts: 9, ..ended.clone() };
        let action = Action::new(ActionKind::TaskStatus { task_id: task.id.clone(), status: late });
        assert_eq!(world.state.clone().apply(&action, 99, world.now_ms), Change::Nothing);
    }
}

#[test]
fn many_that_wait_are_all_placed() {
    let mut world = World::new(10);
    // Every node has its block, so that placing tasks changes nothing but tasks.
    world.create(spec("first", 10));
    world.settle();
    let nodes: Vec<_> = world.state.nodes().map(|node| node.id.clone()).collect();
    nodes.iter().for_each(|id| world.set_availability(id, Availability::Pause));
    let web = world.create(spec("web", 600));
    world.settle();
    let waiting = world.holders(&web);
    assert_eq!(waiting.len(), 600);
    assert!(waiting.iter().all(|task| task.status.message == "no suitable node: 10 nodes are paused"));
    nodes.iter().for_each(|id| world.set_availability(id, Availability::Active));
    world.settle();
    assert!(world.holders(&web).iter().all(|task| task.node_id.is_some()));
    assert_eq!(world.state.network_by_name("default").unwrap().blocks.len(), 10);
}

#[test]
fn a_replacement_that_was_lost_is_planned_again() {
    let mut world = World::new(1);
    let web = world.create(spec("web", 1));
    world.run_until_whole();
    world.fail(&world.holders(&web)[0].id.clone());
    world.settle();
    world.now_ms = world.wake_at_ms.unwrap();
    let lost = world.plan();
    assert_eq!(lost.actions.len(), 2, "{:?}", lost.actions);
    assert!(world.plan().actions.is_empty());
    world.planner.retry(&lost);
    assert_eq!(world.plan().actions.len(), 2);
}

#[test]
fn a_plan_that_was_thought_lost_fills_no_slot_twice() {
    let mut world = World::new(2);
    let web = world.create(spec("web", 3));
    let plan = world.plan();
    world.planner.retry(&plan);
    let again = world.plan();
    assert_ne!(plan.actions, again.actions, "other ids");
    world.write(plan.actions);
    // Its guard is not one version or address alone: the tasks by themselves are refused.
    let tasks = |action: &Action| match &action.kind {
        ActionKind::PutTask(task) => {
            let task = Task { addresses: Vec::new(), ..(**task).clone() };
            Some(Action::new(ActionKind::PutTask(Box::new(task))))
        }
        _ => None,
    };
    let tasks: Vec<Action> = again.actions.iter().filter_map(tasks).collect();
    assert_eq!(tasks.len(), 3);
    assert_eq!(
        world.state.check_all(&tasks),
        Err(Conflict::SlotTaken { task: world.holders(&web)[0].name() })
    );
    assert!(world.state.check_all(&again.actions).is_err());
    world.run_until_whole();
}

#[test]
fn versions_guard_updates() {
    let mut world = World::new(1);
    let web = world.create(spec("web", 1));
    let seen = world.service(&web).meta.version;
    let first = prepare::scale(&world.state, &web, 2).unwrap();
    let second = prepare::scale(&world.state, &web, 3).unwrap();
    world.write(vec![first]);
    assert!(matches!(world.state.check(&second), Err(Conflict::Version { .. })));
    let refusal =
        prepare::update_service(&world.state, &web, spec("web", 4), Some(seen), Vec::new()).unwrap_err();
    assert!(matches!(refusal, prepare::Refusal::VersionMoved { .. }), "{refusal}");
}
