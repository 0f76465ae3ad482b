//! Tests of the machine alone: each transition, and generated sequences of events.

use proptest::prelude::*;

use rorqual_proto::model::container::DEFAULT_DRAIN_MS;

use super::*;

fn rules(condition: RestartCondition) -> Rules {
    Rules {
        restart: RestartPolicy { condition, ..RestartPolicy::default() },
        grace_ms: 10_000,
        drain_ms: Some(DEFAULT_DRAIN_MS),
        unhealthy: Unhealthy::Fail,
        memory_limit_bytes: 64 << 20,
    }
}

fn machine(condition: RestartCondition) -> Machine {
    Machine::new(rules(condition), Goal::Run, TaskStatus::new(0))
}

fn exit(code: i32, at_ms: i64) -> Event {
    Event::Exited(Exit { code, oom_killed: false, finished_at_ms: at_ms, note: None })
}

fn started(at_ms: i64) -> Event {
    Event::Started { pid: 7, started_at_ms: at_ms, checked: false }
}

/// The same for one with a health check.
fn started_checked(at_ms: i64) -> Event {
    Event::Started { pid: 7, started_at_ms: at_ms, checked: true }
}

fn health(health: Health) -> Event {
    Event::Health { health, note: "exit code 1".into() }
}

fn stop() -> Event {
    Event::Goal { goal: Goal::Stop, grace_ms: None }
}

fn failure(permanent: bool) -> Failure {
    Failure { message: "image x: not here".into(), exit_code: 125, permanent }
}

/// Through preparation and start to RUNNING at `at_ms`.
fn run(machine: &mut Machine, at_ms: i64) {
    assert_eq!(machine.step(Event::Begin, at_ms, 0.5), [Effect::Report, Effect::Prepare]);
    assert_eq!(machine.step(Event::Prepared, at_ms, 0.5), [Effect::Start, Effect::Report]);
    assert_eq!(machine.step(started(at_ms), at_ms, 0.5), [Effect::Report]);
    assert!(machine.status().healthy);
}

#[test]
fn one_with_a_check_gets_traffic_once_that_calls_it_well() {
    let mut machine = machine(RestartCondition::Any);
    machine.step(Event::Begin, 0, 0.5);
    machine.step(Event::Prepared, 0, 0.5);
    assert_eq!(machine.step(started_checked(0), 0, 0.5), [Effect::Report, Effect::Probe]);
    assert_eq!((machine.status().state, machine.status().healthy), (TaskState::Running, false));
    assert_eq!(machine.status().health, Some(Health::Starting));
    assert_eq!(machine.step(health(Health::Healthy), 10, 0.5), [Effect::Report]);
    assert!(machine.status().healthy && machine.status().health == Some(Health::Healthy));
}

#[test]
fn one_that_is_dead_gets_no_traffic_before_it_is_known_how_it_ended() {
    let mut machine = machine(RestartCondition::Any);
    run(&mut machine, 0);
    assert_eq!(machine.step(Event::Dead, 10, 0.5), [Effect::Report]);
    assert_eq!((machine.status().state, machine.status().healthy), (TaskState::Running, false));
    assert!(machine.step(Event::Dead, 10, 0.5).is_empty());
    let effects = machine.step(exit(1, 20), 20, 0.5);
    assert!(effects.contains(&Effect::Report) && machine.status().exit_code == Some(1));
}

#[test]
fn a_services_unhealthy_container_leaves_and_starts_again_as_one_that_failed() {
    let mut machine = machine(RestartCondition::OnFailure);
    machine.step(Event::Begin, 0, 0.5);
    machine.step(Event::Prepared, 0, 0.5);
    machine.step(started_checked(0), 0, 0.5);
    machine.step(health(Health::Healthy), 10, 0.5);
    assert_eq!(machine.step(health(Health::Unhealthy), 20, 0.5), [Effect::Report, Effect::Drain]);
    assert!(!machine.status().healthy && matches!(machine.phase(), Phase::Leaving { .. }));
    assert_eq!(machine.status().message, "unhealthy: exit code 1");
    let due = 30;
    assert_eq!(machine.step(Event::Drained, due, 0.5), [Effect::Stop]);
    // It ends as one that was asked to, and has failed all the same.
    let effects = machine.step(exit(0, due + 1), due + 1, 0.5);
    assert_eq!(effects, [Effect::Report, Effect::Start, Effect::Report]);
    assert_eq!((machine.status().restarts, machine.status().state), (1, TaskState::Running));
    machine.step(started_checked(due + 2), due + 2, 0.5);
    assert_eq!(machine.status().health, Some(Health::Starting));
}

#[test]
fn without_restarts_an_unhealthy_container_has_failed() {
    let mut machine = machine(RestartCondition::None);
    machine.step(Event::Begin, 0, 0.5);
    machine.step(Event::Prepared, 0, 0.5);
    machine.step(started_checked(0), 0, 0.5);
    assert_eq!(machine.step(health(Health::Unhealthy), 20, 0.5), [Effect::Report, Effect::Stop]);
    machine.step(exit(0, 30), 30, 0.5);
    machine.step(Event::Cleaned, 40, 0.5);
    assert_eq!(machine.status().state, TaskState::Failed);
    assert_eq!(machine.status().message, "unhealthy: exit code 1");
}

#[test]
fn an_unhealthy_container_that_is_to_be_restarted_is_also_where_nothing_else_would_be() {
    let rules = Rules { unhealthy: Unhealthy::Restart, drain_ms: None, ..rules(RestartCondition::None) };
    let mut machine = Machine::new(rules, Goal::Run, TaskStatus::new(0));
    machine.step(Event::Begin, 0, 0.5);
    machine.step(Event::Prepared, 0, 0.5);
    machine.step(started_checked(0), 0, 0.5);
    assert_eq!(machine.step(health(Health::Unhealthy), 20, 0.5), [Effect::Report, Effect::Stop]);
    let effects = machine.step(exit(0, 30), 30, 0.5);
    assert_eq!(effects, [Effect::Report, Effect::Start, Effect::Report]);
    machine.step(started_checked(40), 40, 0.5);
    assert_eq!((machine.status().restarts, machine.status().health), (1, Some(Health::Starting)));
    // What ends by itself has ended.
    machine.step(exit(1, 50), 50, 0.5);
    machine.step(Event::Cleaned, 60, 0.5);
    assert_eq!(machine.status().state, TaskState::Failed);
}

#[test]
fn an_unhealthy_container_that_is_to_go_on_is_without_traffic_until_it_is_well() {
    let rules = Rules { unhealthy: Unhealthy::Keep, ..rules(RestartCondition::Any) };
    let mut machine = Machine::new(rules, Goal::Run, TaskStatus::new(0));
    machine.step(Event::Begin, 0, 0.5);
    machine.step(Event::Prepared, 0, 0.5);
    machine.step(started_checked(0), 0, 0.5);
    assert_eq!(machine.step(health(Health::Unhealthy), 20, 0.5), [Effect::Report]);
    assert!(matches!(machine.phase(), Phase::Running { .. }) && !machine.status().healthy);
    assert_eq!(machine.step(health(Health::Healthy), 30, 0.5), [Effect::Report]);
    assert!(machine.status().healthy && machine.status().message.is_empty());
}

#[test]
fn what_a_check_said_holds_across_a_restart_of_the_daemon() {
    for known in [Health::Healthy, Health::Starting] {
        let status = TaskStatus { state: TaskState::Running, health: Some(known), ..TaskStatus::new(0) };
        let mut machine = Machine::new(rules(RestartCondition::Any), Goal::Run, status);
        let effects = machine.step(Event::Adopted { pid: 3, started_at_ms: 0 }, 5, 0.5);
        assert_eq!(effects, [Effect::Watch, Effect::Report, Effect::Probe]);
        assert_eq!(machine.status().healthy, known == Health::Healthy);
    }
    // What was to be replaced still is.
    let unwell =
        TaskStatus { state: TaskState::Running, health: Some(Health::Unhealthy), ..TaskStatus::new(0) };
    let mut machine = Machine::new(rules(RestartCondition::Any), Goal::Run, unwell);
    let effects = machine.step(Event::Adopted { pid: 3, started_at_ms: 0 }, 5, 0.5);
    assert_eq!(effects.last(), Some(&Effect::Stop));
}

#[test]
fn the_first_restart_is_immediate_and_the_next_ones_wait() {
    let mut machine = machine(RestartCondition::Any);
    run(&mut machine, 0);
    let effects = machine.step(exit(1, 1_000), 1_000, 0.5);
    assert_eq!(effects, [Effect::Report, Effect::Start, Effect::Report]);
    assert_eq!(machine.status().state, TaskState::Running);
    assert!(!machine.status().healthy);
    machine.step(started(1_010), 1_010, 0.5);
    assert_eq!(machine.status().restarts, 1);
    assert!(machine.status().message.is_empty());

    assert_eq!(machine.step(exit(1, 1_020), 1_020, 0.5), [Effect::Report]);
    assert_eq!(machine.wake_at_ms(), Some(1_120));
    assert!(machine.step(Event::Due, 1_119, 0.5).is_empty());
    assert_eq!(machine.step(Event::Due, 1_120, 0.5), [Effect::Start, Effect::Report]);
}

#[test]
fn a_healthy_run_makes_the_next_restart_immediate_again() {
    let mut machine = machine(RestartCondition::Any);
    run(&mut machine, 0);
    machine.step(exit(1, 10), 10, 0.5);
    machine.step(started(20), 20, 0.5);
    machine.step(exit(137, 20 + HEALTHY_RUN_MS), 20 + HEALTHY_RUN_MS, 0.5);
    assert_eq!(machine.phase(), Phase::Starting);
}

#[test]
fn a_kill_for_want_of_memory_names_the_limit() {
    let mut machine = machine(RestartCondition::None);
    run(&mut machine, 0);
    let oom = Exit { code: 137, oom_killed: true, finished_at_ms: 5, note: None };
    assert_eq!(machine.step(Event::Exited(oom), 5, 0.5), [Effect::Report, Effect::Clean]);
    machine.step(Event::Cleaned, 6, 0.5);
    assert_eq!(machine.status().state, TaskState::Failed);
    assert_eq!(machine.status().message, "killed: out of memory (limit 64 MiB)");
    assert!(machine.status().oom_killed);
}

#[test]
fn the_policy_decides_how_an_end_counts() {
    use RestartCondition::{Any, None, OnFailure};
    let table = [
        (None, 0, Some(TaskState::Complete)),
        (None, 3, Some(TaskState::Failed)),
        (OnFailure, 0, Some(TaskState::Complete)),
        (OnFailure, 3, Option::None),
        (Any, 0, Option::None),
    ];
    for (condition, code, outcome) in table {
        let mut machine = machine(condition);
        run(&mut machine, 0);
        machine.step(exit(code, 5), 5, 0.5);
        machine.step(Event::Cleaned, 6, 0.5);
        let state = machine.status().state;
        assert_eq!(state, outcome.unwrap_or(TaskState::Running), "{condition:?} {code}");
        assert_eq!(machine.status().exit_code, Some(code));
    }
}

#[test]
fn a_spent_policy_says_so() {
    let mut rules = rules(RestartCondition::Any);
    rules.restart.max_attempts = 2;
    let mut machine = Machine::new(rules, Goal::Run, TaskStatus::new(0));
    run(&mut machine, 0);
    let mut now = 1;
    for _ in 0..3 {
        machine.step(exit(1, now), now, 0.5);
        now = machine.wake_at_ms().unwrap_or(now);
        machine.step(Event::Due, now, 0.5);
        machine.step(started(now), now, 0.5);
    }
    machine.step(Event::Cleaned, now, 0.5);
    assert_eq!(machine.status().state, TaskState::Failed);
    assert!(machine.status().message.contains("after 2 restarts"), "{}", machine.status().message);
}

#[test]
fn attempts_outside_the_window_do_not_count() {
    let mut rules = rules(RestartCondition::Any);
    rules.restart.max_attempts = 1;
    rules.restart.window_ms = 1_000;
    let mut machine = Machine::new(rules, Goal::Run, TaskStatus::new(0));
    run(&mut machine, 0);
    for round in 1..5 {
        let now = round * 20_000;
        machine.step(exit(1, now), now, 0.5);
        assert_eq!(machine.phase(), Phase::Starting, "round {round}");
        machine.step(started(now), now, 0.5);
    }
}

#[test]
fn what_can_not_work_is_rejected_and_not_tried_again() {
    let mut machine = machine(RestartCondition::Any);
    machine.step(Event::Begin, 0, 0.5);
    assert_eq!(machine.step(Event::PrepareFailed(failure(true)), 1, 0.5), [Effect::Clean]);
    machine.step(Event::Cleaned, 2, 0.5);
    assert_eq!(machine.status().state, TaskState::Rejected);
    assert_eq!(machine.status().message, "image x: not here");
}

#[test]
fn what_may_work_later_is_tried_again_but_never_hot() {
    let mut machine = machine(RestartCondition::Any);
    machine.step(Event::Begin, 0, 0.5);
    assert_eq!(machine.step(Event::PrepareFailed(failure(false)), 1, 0.5), [Effect::Report]);
    assert_eq!(machine.wake_at_ms(), Some(101));
    assert_eq!(machine.step(Event::Due, 101, 0.5), [Effect::Prepare]);
    assert_eq!(machine.step(Event::Prepared, 102, 0.5), [Effect::Start, Effect::Report]);
    assert_eq!(machine.status().restarts, 0, "it has not been started yet");
}

#[test]
fn the_balancers_let_go_before_the_stop_signal() {
    let mut machine = machine(RestartCondition::Any);
    run(&mut machine, 0);
    assert_eq!(machine.step(stop(), 1_000, 0.5), [Effect::Report, Effect::Drain]);
    assert!(!machine.status().healthy);
    // However long it may take, nothing happens before its connections are over.
    assert!(machine.step(Event::Due, 5_999, 0.5).is_empty());
    assert_eq!(machine.step(Event::Drained, 6_000, 0.5), [Effect::Stop]);
    assert_eq!(machine.wake_at_ms(), Some(16_000));
    assert_eq!(machine.step(Event::Due, 16_000, 0.5), [Effect::Kill]);
    assert_eq!(machine.step(exit(137, 16_200), 16_200, 0.5), [Effect::Clean]);
    assert_eq!(machine.step(Event::Cleaned, 16_210, 0.5), [Effect::Report]);
    assert_eq!(machine.status().state, TaskState::Shutdown);
    assert_eq!(machine.status().exit_code, Some(137));
    assert!(machine.is_done());
}

#[test]
fn connections_are_not_waited_for_without_end() {
    let mut machine = machine(RestartCondition::Any);
    run(&mut machine, 0);
    machine.step(stop(), 1_000, 0.5);
    let due = machine.wake_at_ms().unwrap();
    assert_eq!(due, 1_000 + i64::try_from(DEFAULT_DRAIN_MS + 2 * WITHDRAW_MS).unwrap());
    assert_eq!(machine.step(Event::Due, due, 0.5), [Effect::Stop]);
    assert!(machine.step(Event::Drained, due + 1, 0.5).is_empty());
}

#[test]
fn a_stop_during_preparation_gives_it_up() {
    let mut machine = machine(RestartCondition::Any);
    machine.step(Event::Begin, 0, 0.5);
    assert_eq!(machine.step(stop(), 1, 0.5), [Effect::CancelPrepare, Effect::Clean]);
    // The answer that was on its way changes nothing.
    assert!(machine.step(Event::Prepared, 2, 0.5).is_empty());
    machine.step(Event::Cleaned, 3, 0.5);
    assert_eq!(machine.status().state, TaskState::Shutdown);
}

#[test]
fn a_stop_during_the_start_stops_what_started() {
    let mut machine = machine(RestartCondition::Any);
    machine.step(Event::Begin, 0, 0.5);
    machine.step(Event::Prepared, 1, 0.5);
    assert!(machine.step(stop(), 2, 0.5).is_empty());
    assert_eq!(machine.step(started(3), 3, 0.5), [Effect::Report, Effect::Stop]);
}

#[test]
fn an_impatient_stop_kills_at_once() {
    let mut machine = machine(RestartCondition::Any);
    machine.rules.drain_ms = None;
    run(&mut machine, 0);
    machine.step(stop(), 10, 0.5);
    let now = Event::Goal { goal: Goal::Stop, grace_ms: Some(0) };
    assert!(machine.step(now, 20, 0.5).is_empty());
    assert_eq!(machine.step(Event::Due, 20, 0.5), [Effect::Kill]);
}

#[test]
fn a_container_that_was_taken_over_is_prepared_again_before_its_restart() {
    let mut status = TaskStatus::new(0);
    status.state = TaskState::Running;
    status.restarts = 3;
    let mut machine = Machine::new(rules(RestartCondition::Any), Goal::Run, status);
    let adopted = Event::Adopted { pid: 9, started_at_ms: 0 };
    assert_eq!(machine.step(adopted, 0, 0.5), [Effect::Watch, Effect::Report]);
    assert_eq!(machine.status().restarts, 3);
    assert_eq!(machine.step(exit(137, 20), 20, 0.5), [Effect::Report, Effect::Prepare]);
    assert_eq!(machine.step(Event::Prepared, 21, 0.5), [Effect::Start, Effect::Report]);
    assert_eq!(machine.status().state, TaskState::Running);
}

#[test]
fn a_task_that_is_to_be_ready_waits_for_its_turn() {
    let mut machine = Machine::new(rules(RestartCondition::Any), Goal::Prepare, TaskStatus::new(0));
    machine.step(Event::Begin, 0, 0.5);
    assert_eq!(machine.step(Event::Prepared, 1, 0.5), [Effect::Report]);
    assert_eq!(machine.status().state, TaskState::Ready);
    let go = Event::Goal { goal: Goal::Run, grace_ms: None };
    assert_eq!(machine.step(go, 2, 0.5), [Effect::Start, Effect::Report]);
}

#[test]
fn sizes_read_as_people_write_them() {
    let table = [(64 << 20, "64 MiB"), (3 << 29, "1.5 GiB"), (1_000, "1000 bytes"), (2 << 10, "2 KiB")];
    for (bytes, text) in table {
        assert_eq!(size(bytes), text);
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    let exit = (prop::sample::select(vec![0, 1, 137]), any::<bool>(), 0i64..100_000)
        .prop_map(|(code, oom_killed, finished_at_ms)| Exit { code, oom_killed, finished_at_ms, note: None });
    let goal = prop::sample::select(vec![Goal::Prepare, Goal::Run, Goal::Stop]);
    prop_oneof![
        Just(Event::Begin),
        Just(Event::Prepared),
        any::<bool>().prop_map(|permanent| Event::PrepareFailed(failure(permanent))),
        (0i64..100_000).prop_map(started),
        (0i64..100_000).prop_map(started_checked),
        prop::sample::select(vec![Health::Starting, Health::Healthy, Health::Unhealthy]).prop_map(health),
        any::<bool>().prop_map(|permanent| Event::StartFailed(failure(permanent))),
        exit.clone().prop_map(Event::Exited),
        exit.prop_map(Event::FoundDead),
        (0i64..100_000).prop_map(|at| Event::Adopted { pid: 3, started_at_ms: at }),
        (goal, prop::option::of(0u64..20_000)).prop_map(|(goal, grace_ms)| Event::Goal { goal, grace_ms }),
        Just(Event::Due),
        Just(Event::Drained),
        Just(Event::Dead),
        Just(Event::Cleaned),
    ]
}

proptest! {
    /// Whatever happens in whatever order: the state only moves forward, a healthy container runs, traffic ends
    /// before the stop signal, nothing follows the end, and a machine that is not done waits for something.
    #[test]
    fn invariants_hold_in_every_order(events in prop::collection::vec((any_event(), 0i64..5_000), 1..60)) {
        let mut machine = machine(RestartCondition::Any);
        let mut now = 0;
        let (mut prepares, mut starts) = (0i32, 0i32);
        for (event, wait) in events {
            now += wait;
            let before = machine.clone();
            match event {
                Event::Prepared | Event::PrepareFailed(_) => prepares = (prepares - 1).max(0),
                Event::Started { .. } | Event::StartFailed(_) => starts = (starts - 1).max(0),
                _ => {}
            }
            let effects = machine.step(event, now, 0.3);
            prop_assert!(machine.status().state >= before.status().state);
            if before.is_done() {
                prop_assert!(effects.is_empty() && machine.is_done());
            }
            if machine.status().healthy {
                let runs = matches!(machine.phase(), Phase::Running { .. });
                prop_assert!(runs);
                prop_assert!(machine.status().pid > 0);
            }
            if effects.contains(&Effect::Stop) || effects.contains(&Effect::Kill) {
                prop_assert!(!machine.status().healthy);
                prop_assert!(machine.goal == Goal::Stop || machine.unwell.is_some());
            }
            if effects.contains(&Effect::Start) {
                prop_assert!(machine.prepared && machine.goal == Goal::Run);
                starts += 1;
            }
            prepares += i32::try_from(effects.iter().filter(|e| **e == Effect::Prepare).count()).unwrap();
            prop_assert!(prepares <= 60 && starts <= 60);
            if matches!(machine.phase(), Phase::Waiting { .. } | Phase::Leaving { .. } | Phase::Stopping { .. }) {
                prop_assert!(machine.wake_at_ms().is_some());
            }
            if machine.is_done() {
                prop_assert!(machine.status().state.is_terminal());
                prop_assert_eq!(machine.wake_at_ms(), None);
            }
        }
    }

    /// Once asked to stop, a container is gone after its grace, whatever it does.
    #[test]
    fn a_stop_always_ends(grace in 0u64..5_000, deaf in any::<bool>()) {
        let mut machine = machine(RestartCondition::Any);
        run(&mut machine, 0);
        let mut effects = machine.step(Event::Goal { goal: Goal::Stop, grace_ms: Some(grace) }, 10, 0.5);
        for _ in 0..8 {
            let now = machine.wake_at_ms().unwrap_or(100);
            let dies = effects.contains(&Effect::Kill) || (!deaf && effects.contains(&Effect::Stop));
            effects = if effects.contains(&Effect::Clean) {
                machine.step(Event::Cleaned, now, 0.5)
            } else if dies {
                machine.step(exit(143, now), now, 0.5)
            } else {
                machine.step(Event::Due, now, 0.5)
            };
        }
        prop_assert!(machine.is_done());
        prop_assert_eq!(machine.status().state, TaskState::Shutdown);
    }
}
