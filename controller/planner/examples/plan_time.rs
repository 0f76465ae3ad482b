//! Prints how long the planner takes in a cluster of 1,000 nodes and 10,000 tasks. Nothing is asserted:
//! `cargo run --release -p rorqual-planner --example plan_time`.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use rorqual_planner::{Action, ActionKind, Planner, prepare};
use rorqual_proto::model::{NodeState, NodeStatus, TaskState, TaskStatus};

#[path = "../tests/planner/world.rs"]
mod world;

use world::{World, spec};

const NODES: usize = 1_000;
const SERVICES: usize = 100;
const REPLICAS: u32 = 100;
const ROUNDS: usize = 200;

fn main() {
    let mut world = World::new(NODES);
    let started = Instant::now();
    for number in 0..SERVICES {
        world.create(spec(&format!("s{number}"), REPLICAS));
    }
    let mut index = world.state.index();
    let mut plans = 0;
    loop {
        let plan = world.planner.plan(&world.state, world.now_ms, plans);
        if plan.actions.is_empty() && plan.idle {
            break;
        }
        plans += 1;
        index += 1;
        apply(&mut world, &plan.actions, index);
    }
    println!(
        "{} tasks planned and applied in {plans} plans: {:?}",
        world.state.tasks().len(),
        started.elapsed()
    );
    run_all(&mut world, index + 1);
    settle(&mut world);

    let tasks: Vec<_> = world.state.tasks().cloned().collect();
    let mut status_only = Vec::new();
    let mut failed = Vec::new();
    for (round, task) in tasks.iter().take(ROUNDS).enumerate() {
        let restarted = TaskStatus { restarts: 1, pid: 77, ..task.status.clone() };
        status_only
            .push(one(&mut world, ActionKind::TaskStatus { task_id: task.id.clone(), status: restarted }));
        let ended =
            TaskStatus { state: TaskState::Failed, healthy: false, restarts: 1, ..task.status.clone() };
        world.now_ms += 10_000 + i64::try_from(round).unwrap();
        failed.push(one(&mut world, ActionKind::TaskStatus { task_id: task.id.clone(), status: ended }));
        world.now_ms += 1_000;
        failed.push(replan(&mut world));
        settle(&mut world);
    }
    println!("one status of a running task, applied and planned: median {:?}", median(status_only));
    println!("one failed task, or its replacement: median {:?}", median(failed));

    let scaled = prepare::scale(&world.state, &tasks[0].service_id, REPLICAS + 9).unwrap();
    println!("scale by nine: {:?}", one(&mut world, scaled.kind));
    settle(&mut world);
    let node_id = tasks[0].node_id.clone().unwrap();
    let status = NodeStatus { state: NodeState::Down, message: String::new(), since_ms: 0 };
    let down = ActionKind::NodeStatus { node_id, status: Some(status), description: None, address: None };
    println!("a node with ten tasks goes down: {:?}", one(&mut world, down));
    settle(&mut world);

    let started = Instant::now();
    let mut fresh = Planner::new();
    fresh.observe_all(&world.state);
    while !fresh.plan(&world.state, world.now_ms, 1).idle {}
    println!("a new leader looks at everything: {:?}", started.elapsed());
}

fn apply(world: &mut World, actions: &[Action], index: u64) {
    for action in actions {
        let change = world.state.apply(action, index, world.now_ms);
        world.planner.observe(&change);
    }
}

/// One write and the plan that follows.
fn one(world: &mut World, kind: ActionKind) -> Duration {
    let started = Instant::now();
    let index = world.state.index() + 1;
    apply(world, &[Action::new(kind)], index);
    let plan = world.planner.plan(&world.state, world.now_ms, index);
    let taken = started.elapsed();
    apply(world, &plan.actions, index + 1);
    taken
}

fn replan(world: &mut World) -> Duration {
    let started = Instant::now();
    let index = world.state.index() + 1;
    let plan = world.planner.plan(&world.state, world.now_ms, index);
    let taken = started.elapsed();
    apply(world, &plan.actions, index);
    taken
}

fn settle(world: &mut World) {
    loop {
        let index = world.state.index() + 1;
        let plan = world.planner.plan(&world.state, world.now_ms, index);
        if plan.actions.is_empty() && plan.idle {
            return;
        }
        apply(world, &plan.actions, index);
    }
}

fn run_all(world: &mut World, index: u64) {
    let ids: Vec<_> = world.state.tasks().map(|task| (task.id.clone(), task.status.clone())).collect();
    let actions: Vec<Action> = ids
        .into_iter()
        .map(|(task_id, status)| {
            let status = TaskStatus { state: TaskState::Running, healthy: true, ..status };
            Action::new(ActionKind::TaskStatus { task_id, status })
        })
        .collect();
    apply(world, &actions, index);
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
