//! Made-up views of a service, one after the other.

use rorqual_proto::wire::{Meta, Replicated, RestartPolicy, Service, ServiceSpec};

use super::*;

const VERSION: u64 = 100;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn service(replicas: u32, version: u64) -> Service {
    Service {
        id: "s".into(),
        meta: Some(Meta { version, ..Meta::default() }),
        spec: Some(ServiceSpec {
            name: "web".into(),
            mode: Some(Mode::Replicated(Replicated { replicas })),
            ..ServiceSpec::default()
        }),
        spec_version: 2,
        ..Service::default()
    }
}

fn task(id: u32, slot: u32, state: TaskState) -> Task {
    Task {
        id: format!("t{id}"),
        meta: Some(Meta { version: VERSION + 1, ..Meta::default() }),
        service_name: "web".into(),
        slot,
        spec_version: 2,
        desired_state: DesiredState::Running.into(),
        status: Some(TaskStatus {
            state: state.into(),
            healthy: state == TaskState::Running,
            ..TaskStatus::default()
        }),
        ..Task::default()
    }
}

fn told_why(mut task: Task, message: &str) -> Task {
    task.status.as_mut().unwrap().message = message.into();
    task
}

fn view(replicas: u32, tasks: Vec<Task>) -> ServiceView {
    let running = |task: &&Task| status(task).state() == TaskState::Running && !is_stopping(task);
    let updated = tasks.iter().filter(running).filter(|task| task.spec_version == 2).count() as u32;
    let running = tasks.iter().filter(running).count() as u32;
    ServiceView {
        service: Some(service(replicas, VERSION)),
        desired: replicas,
        running,
        updated,
        tasks,
        ..ServiceView::default()
    }
}

fn waiting() -> Convergence {
    Convergence::new(Goal::Running, VERSION)
}

fn is_waiting(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Wait { .. })
}

#[test]
fn it_ends_the_moment_that_every_slot_runs() {
    let mut waiting = waiting();
    let tasks = |states: [TaskState; 2]| vec![task(1, 1, states[0]), task(2, 2, states[1])];
    let verdict = waiting.observe(view(2, tasks([TaskState::Running, TaskState::Preparing])), secs(1));
    assert!(is_waiting(&verdict));
    assert_eq!(waiting.summary().text, "1/2 running, 1 preparing");
    let verdict = waiting.observe(view(2, tasks([TaskState::Running, TaskState::Running])), secs(2));
    assert_eq!(verdict, Verdict::Reached { still_stopping: 0 });
}

#[test]
fn no_replicas_are_reached_at_once() {
    assert_eq!(waiting().observe(view(0, vec![]), secs(0)), Verdict::Reached { still_stopping: 0 });
}

#[test]
fn a_view_from_before_the_change_says_nothing() {
    let mut waiting = waiting();
    let mut old = view(1, vec![task(1, 1, TaskState::Running)]);
    old.service = Some(service(1, VERSION - 1));
    assert_eq!(waiting.observe(old, secs(1)), Verdict::Wait { until: None });
}

#[test]
fn tasks_of_the_old_spec_have_to_go() {
    let mut old = task(1, 1, TaskState::Running);
    old.spec_version = 1;
    let mut waiting = waiting();
    let verdict = waiting.observe(view(1, vec![old.clone(), task(2, 1, TaskState::Running)]), secs(1));
    assert!(is_waiting(&verdict));
    old.desired_state = DesiredState::Shutdown.into();
    let with_old = view(1, vec![old.clone(), task(2, 1, TaskState::Running)]);
    let verdict = waiting.observe(with_old, secs(2));
    assert_eq!(verdict, Verdict::Wait { until: Some(secs(2) + STOP_SLACK) });
    old.status.as_mut().unwrap().state = TaskState::Shutdown.into();
    let verdict = waiting.observe(view(1, vec![old, task(2, 1, TaskState::Running)]), secs(3));
    assert_eq!(verdict, Verdict::Reached { still_stopping: 0 });
}

#[test]
fn what_does_not_end_in_its_time_is_told_and_not_waited_for() {
    let mut leaving = task(2, 2, TaskState::Running);
    leaving.desired_state = DesiredState::Remove.into();
    let mut waiting = waiting();
    let verdict = waiting.observe(view(1, vec![task(1, 1, TaskState::Running), leaving]), secs(1));
    let Verdict::Wait { until: Some(until) } = verdict else { panic!("{verdict:?}") };
    assert_eq!(waiting.verdict(until), Verdict::Reached { still_stopping: 1 });
}

#[test]
fn what_was_to_end_before_the_change_is_not_waited_for() {
    let mut stranded = task(2, 2, TaskState::Running);
    stranded.desired_state = DesiredState::Shutdown.into();
    stranded.meta = Some(Meta { version: VERSION - 1, ..Meta::default() });
    let verdict = waiting().observe(view(1, vec![task(1, 1, TaskState::Running), stranded]), secs(1));
    assert_eq!(verdict, Verdict::Reached { still_stopping: 0 });
}

#[test]
fn one_slot_that_fails_three_times_alike_is_final() {
    let mut waiting = waiting();
    let message = "`nope` is not in the image";
    for id in 1..=2 {
        let failed = told_why(task(id, 1, TaskState::Rejected), message);
        assert!(is_waiting(&waiting.observe(view(2, vec![failed, task(9, 2, TaskState::Running)]), secs(1))));
    }
    let failed = told_why(task(3, 1, TaskState::Rejected), message);
    let verdict = waiting.observe(view(2, vec![failed, task(9, 2, TaskState::Running)]), secs(1));
    assert_eq!(verdict, Verdict::Impossible(vec![format!("{message} (3 tasks)")]));
}

#[test]
fn three_slots_that_fail_alike_are_final_only_where_none_runs() {
    let failed = |id| told_why(task(id, id, TaskState::Failed), "boom");
    let tasks = vec![failed(1), failed(2), failed(3)];
    let mut none_runs = waiting();
    let verdict = none_runs.observe(view(4, tasks.clone()), secs(1));
    assert_eq!(verdict, Verdict::Impossible(vec!["boom (3 tasks)".into()]));
    let mut one_runs = waiting();
    let tasks = [tasks, vec![task(4, 4, TaskState::Running)]].concat();
    assert!(is_waiting(&one_runs.observe(view(4, tasks), secs(1))));
}

#[test]
fn failures_from_before_the_change_do_not_count() {
    let old = |id: u32| {
        let mut task = told_why(task(id, 1, TaskState::Failed), "boom");
        task.meta = Some(Meta { version: VERSION - 1, ..Meta::default() });
        task
    };
    let verdict = waiting().observe(view(1, vec![old(1), old(2), old(3)]), secs(1));
    assert!(is_waiting(&verdict), "{verdict:?}");
}

#[test]
fn all_slots_failed_and_nothing_moves() {
    let mut waiting = waiting();
    let failed = told_why(task(1, 1, TaskState::Failed), "boom");
    let verdict = waiting.observe(view(1, vec![failed]), secs(1));
    assert_eq!(verdict, Verdict::Wait { until: Some(secs(1) + SETTLED) });
    assert_eq!(waiting.verdict(secs(1) + SETTLED), Verdict::Impossible(vec!["boom".into()]));
}

#[test]
fn without_restarts_one_failure_is_final_and_a_good_end_is_success() {
    let never = |tasks| {
        let mut view = view(1, tasks);
        let spec = view.service.as_mut().unwrap().spec.as_mut().unwrap();
        spec.restart = Some(RestartPolicy { condition: Condition::None.into(), ..RestartPolicy::default() });
        view
    };
    let mut failed = task(1, 1, TaskState::Failed);
    failed.status.as_mut().unwrap().exit_code = Some(3);
    let verdict = waiting().observe(never(vec![failed]), secs(1));
    assert_eq!(verdict, Verdict::Impossible(vec!["ended with exit code 3".into()]));
    let verdict = waiting().observe(never(vec![task(1, 1, TaskState::Complete)]), secs(1));
    assert_eq!(verdict, Verdict::Reached { still_stopping: 0 });
}

#[test]
fn a_container_that_ends_again_and_again_is_final() {
    let mut waiting = waiting();
    let restarted = |restarts| {
        let mut task = task(1, 1, TaskState::Starting);
        let status = task.status.as_mut().unwrap();
        (status.restarts, status.exit_code) = (restarts, Some(1));
        view(1, vec![task])
    };
    assert!(is_waiting(&waiting.observe(restarted(1), secs(1))));
    assert!(is_waiting(&waiting.observe(restarted(4), secs(2))));
    let verdict = waiting.observe(restarted(5), secs(3));
    let expected = "web.1 ends again and again, restarted 5 times: ended with exit code 1";
    assert_eq!(verdict, Verdict::Impossible(vec![expected.into()]));
}

#[test]
fn waiting_for_a_node_that_does_not_come_is_final_after_a_while() {
    let mut waiting = waiting();
    let pending = || {
        let mut view = view(1, vec![task(1, 1, TaskState::Pending)]);
        view.explanations = vec!["no suitable node".into(), "no suitable node".into()];
        view
    };
    assert!(is_waiting(&waiting.observe(pending(), secs(1))));
    assert_eq!(waiting.summary().text, "0/1 running, 1 pending (no suitable node)");
    assert!(is_waiting(&waiting.observe(pending(), secs(1) + STUCK / 2)));
    assert_eq!(waiting.verdict(secs(1) + STUCK), Verdict::Impossible(vec!["no suitable node".into()]));
}

#[test]
fn progress_starts_the_wait_anew() {
    let mut waiting = waiting();
    let mut first = view(2, vec![task(1, 1, TaskState::Pending), task(2, 2, TaskState::Pending)]);
    first.explanations = vec!["no suitable node".into()];
    let mut second = view(2, vec![task(1, 1, TaskState::Running), task(2, 2, TaskState::Pending)]);
    second.explanations = first.explanations.clone();
    assert!(is_waiting(&waiting.observe(first, secs(1))));
    assert!(is_waiting(&waiting.observe(second, secs(5))));
    assert!(is_waiting(&waiting.verdict(secs(9))));
    assert!(matches!(waiting.verdict(secs(10)), Verdict::Impossible(_)));
}

#[test]
fn a_problem_of_the_service_is_told() {
    let mut waiting = waiting();
    let mut stuck = view(1, vec![task(1, 1, TaskState::New)]);
    stuck.service.as_mut().unwrap().problem = "port 8080 is taken by service api".into();
    assert!(is_waiting(&waiting.observe(stuck, secs(0))));
    let reasons = vec!["port 8080 is taken by service api".to_owned()];
    assert_eq!(waiting.reasons(), reasons);
    assert_eq!(waiting.verdict(STUCK), Verdict::Impossible(reasons));
}

#[test]
fn removal_is_reached_when_the_service_is_gone() {
    let mut removal = Convergence::new(Goal::Removed, VERSION);
    assert!(is_waiting(&removal.observe(view(1, vec![task(1, 1, TaskState::Running)]), secs(1))));
    let gone = ServiceView { removed: true, ..ServiceView::default() };
    assert_eq!(removal.observe(gone.clone(), secs(2)), Verdict::Reached { still_stopping: 0 });
    assert!(matches!(waiting().observe(gone, secs(2)), Verdict::Impossible(_)));
}

#[test]
fn what_is_to_end_on_a_silent_node_is_not_waited_for() {
    let mut waiting = waiting();
    let mut leaving = task(2, 2, TaskState::Running);
    leaving.desired_state = DesiredState::Remove.into();
    leaving.node_id = "n3".into();
    let mut scaled = view(1, vec![task(1, 1, TaskState::Running), leaving]);
    assert!(is_waiting(&waiting.observe(scaled.clone(), secs(1))), "its node answers");
    assert_eq!(waiting.ending_later(), 0);
    scaled.silent_nodes = vec!["n3".into()];
    assert_eq!(waiting.observe(scaled, secs(2)), Verdict::Reached { still_stopping: 0 });
    assert_eq!(waiting.ending_later(), 1);
}

#[test]
fn a_port_that_some_nodes_do_not_serve_is_a_warning_and_one_that_none_serves_a_failure() {
    let mut waiting = waiting();
    let mut taken = view(1, vec![task(1, 1, TaskState::Running)]);
    taken.port_problems = vec!["port 80/tcp is taken".into()];
    assert_eq!(waiting.observe(taken.clone(), secs(1)), Verdict::Reached { still_stopping: 0 });
    assert_eq!(waiting.warnings(), ["port 80/tcp is taken"]);
    taken.port_unserved = true;
    assert_eq!(waiting.observe(taken.clone(), secs(2)), Verdict::Wait { until: Some(secs(7)) });
    assert_eq!(waiting.verdict(secs(7)), Verdict::Impossible(vec!["port 80/tcp is taken".into()]));
    // The holder has ended.
    taken.port_unserved = false;
    taken.port_problems.clear();
    assert_eq!(waiting.observe(taken, secs(8)), Verdict::Reached { still_stopping: 0 });
}
