//! Limits hold, and only those feel them that have them: memory, processor time, processes; for plain
//! containers and for services.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use rorqual_tests::view::Container;
use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, figures, host, http, images, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// Takes 200 MiB and touches all of it.
const HOG: &[&str] = &["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"];

/// Starts processes for as long as it lives; one that can't be started does not stop it.
const BOMB: &[&str] = &["awk", "BEGIN { while (1) system(\"exec 2>/dev/null; sleep 1000 &\") }"];

/// Keeps a core busy.
const BUSY: &[&str] = &["sh", "-c", "while :; do :; done"];

/// `rctl run OPTIONS busybox COMMAND`, detached; gives the container's id.
#[track_caller]
fn start(node: &Node, options: &[&str], command: &[&str]) -> String {
    let words = [&["run", "--detach"], options, &[images::BUSYBOX], command].concat();
    node.rctl(&words).ok().trim().to_owned()
}

/// The container, once it has ended.
#[track_caller]
fn ended(node: &Node, name: &str) -> Container {
    wait_until(&format!("{name} has ended"), SOON, || {
        let list = node.containers()?;
        let found = list.iter().find(|container| container.name == name && container.state == "exited");
        found.cloned().ok_or_else(|| format!("{list:?}"))
    })
}

#[test]
fn limits_hold_and_disturb_nobody() {
    let lab = Lab::cluster("lim", 1);
    let node = lab.node(1);
    node.load(&images::archive("busybox"));
    node.load(&images::archive("nginx"));
    // The neighbour that must not notice anything.
    node.rctl(&["service", "create", "--name", "web", "--publish", "8080:80", images::NGINX]).ok();
    wait_until("the neighbour answers", SOON, || {
        http::get(node.port(8080), "/").map_err(|error| error.to_string())
    });
    let neighbour = node.container_processes();

    memory_of_a_container(node);
    memory_of_a_service(node);
    cpus_of_a_container(node);
    cpus_of_a_service(node);
    processes_of_a_container(node);
    processes_of_a_service(node);

    let left = node.container_processes();
    assert_eq!(left, neighbour, "the neighbour was touched, or a process stayed");
    lab.finish();
}

fn memory_of_a_container(node: &Node) {
    let words = [&["run", "--name", "hog", "--memory", "64m", images::BUSYBOX], HOG].concat();
    let output = node.rctl(&words);
    assert_eq!(output.code, 137, "{}", output.tell());
    let hog = ended(node, "hog");
    assert!(hog.oom_killed, "{hog:?}");
    assert_eq!(hog.exit_code, Some(137), "{hog:?}");
    assert!(hog.status.contains("memory"), "the reason is not told: {hog:?}");
    node.rctl(&["rm", "hog"]).ok();
    // The limit and nothing else ended it.
    let words = [&["run", "--rm", "--memory", "400m", images::BUSYBOX], HOG].concat();
    node.rctl(&words).ok();
}

fn memory_of_a_service(node: &Node) {
    let options = ["service", "create", "--detach", "--name", "hog", "--limit-memory", "64m"];
    let once = ["--restart-condition", "none", images::BUSYBOX];
    node.rctl(&[&options[..], &once, HOG].concat()).ok();
    wait_until("the task has failed for want of memory", SOON, || {
        let tasks = node.tasks("hog")?;
        let failed = tasks.iter().any(|task| task.state == "failed" && task.message.contains("memory"));
        hold(failed, || format!("{tasks:?}"))
    });
    node.rctl(&["service", "rm", "hog"]).ok();
}

/// The share of a core that a process uses over two seconds.
fn measured_cpus(pid: u32) -> f64 {
    let (started, before) = (Instant::now(), host::cpu_ticks(pid).unwrap());
    wait_until("two seconds", SOON, || hold(started.elapsed() > Duration::from_secs(2), String::new));
    let used = (host::cpu_ticks(pid).unwrap() - before) as f64 / 100.0;
    used / started.elapsed().as_secs_f64()
}

/// Half a core, with what the kernel's accounting by periods of 100 ms leaves open. How much less it can be
/// depends on who else wants the processor.
#[track_caller]
fn assert_half_a_core(what: &str, pid: u32) {
    let cpus = measured_cpus(pid);
    figures::tell(&format!("limits: {what} with 0.5 cpus uses"), format!("{cpus:.2}"), "cores");
    assert!((0.1..=0.6).contains(&cpus), "{cpus:.2} cores");
}

fn cpus_of_a_container(node: &Node) {
    let id = start(node, &["--name", "busy", "--cpus", "0.5"], BUSY);
    assert_half_a_core("a container", node.container_pid(&id).unwrap());
    node.rctl(&["rm", "--force", "busy"]).ok();
}

fn cpus_of_a_service(node: &Node) {
    let options = ["service", "create", "--name", "busy", "--limit-cpu", "0.5", "--stop-grace-period", "0s"];
    node.rctl(&[&options[..], &[images::BUSYBOX], BUSY].concat()).ok();
    let task = node.running("busy").unwrap().remove(0);
    assert_half_a_core("a service's task", node.task_pid(&task.id).unwrap());
    node.rctl(&["service", "rm", "busy"]).ok();
}

/// With the bomb going off: it stays within its limit, its neighbour answers, and others start.
fn nobody_is_disturbed(node: &Node, bomb: &str, limit: usize) {
    let processes = || {
        let pids = node.container_processes();
        pids.keys().filter(|pid| host::cgroup_has(**pid, bomb)).count()
    };
    wait_until("the bomb is at its limit", SOON, || {
        hold(processes() + 2 >= limit, || processes().to_string())
    });
    let started = Instant::now();
    for _ in 0..50 {
        http::get(node.port(8080), "/").expect("the neighbour does not answer");
        let count = processes();
        assert!(count <= limit, "{count} processes with a limit of {limit}");
    }
    figures::tell_since("limits: 50 requests to the neighbour of a fork bomb", started);
    node.rctl(&["run", "--rm", images::BUSYBOX, "true"]).ok();
}

fn processes_of_a_container(node: &Node) {
    let id = start(node, &["--name", "bomb", "--pids-limit", "40"], BOMB);
    nobody_is_disturbed(node, &id, 40);
    node.rctl(&["rm", "--force", "bomb"]).ok();
}

fn processes_of_a_service(node: &Node) {
    let options = ["service", "create", "--name", "bomb", "--limit-pids", "40", "--stop-grace-period", "0s"];
    node.rctl(&[&options[..], &[images::BUSYBOX], BOMB].concat()).ok();
    let task = node.running("bomb").unwrap().remove(0);
    let containers = node.containers().unwrap();
    let container = containers.iter().find(|one| one.task_id.as_deref() == Some(task.id.as_str())).unwrap();
    nobody_is_disturbed(node, &container.id, 40);
    node.rctl(&["service", "rm", "bomb"]).ok();
    wait_until("the bomb is gone", SOON, || {
        let names: Vec<_> = node.containers()?.into_iter().map(|one| one.name).collect();
        hold(names.len() == 1, || format!("{names:?}"))
    });
}
