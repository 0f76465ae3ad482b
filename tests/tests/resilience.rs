//! What dies comes back, and what need not die does not: containers, daemons, the leader, nodes.
//! Times are told, not asserted.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rorqual_tests::view::Task;
use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, figures, host, http, images, wait_until};

const PORT: u16 = 8080;
const SOON: Duration = Duration::from_secs(30);

/// A cluster of three with `web` running: so many replicas of an image that was loaded on n1 only.
#[track_caller]
fn cluster_with_web(hint: &str, replicas: usize) -> Lab {
    let lab = Lab::cluster(hint, 3);
    lab.node(1).load(&images::archive("nginx"));
    let replicas_text = replicas.to_string();
    let create = ["service", "create", "--name", "web", "--replicas", &replicas_text, "--publish", "8080:80"];
    lab.node(1).rctl(&[&create[..], &[images::NGINX]].concat()).ok();
    wait_running(&lab, replicas);
    lab
}

/// The running tasks, once there are exactly so many, as a running node tells.
#[track_caller]
fn wait_running(lab: &Lab, count: usize) -> Vec<Task> {
    wait_until(&format!("{count} running tasks of web"), SOON, || {
        let tasks = lab.any_running().running("web")?;
        hold(tasks.len() == count, || format!("{tasks:?}"))?;
        Ok(tasks)
    })
}

/// Until so many replicas answer on a node's port.
#[track_caller]
fn wait_answering(lab: &Lab, number: usize, replicas: usize) {
    wait_until(&format!("{replicas} replicas answer on n{number}"), SOON, || {
        let tally = http::tally(lab.node(number).port(PORT), 100).map_err(|error| error.to_string())?;
        hold(tally.len() == replicas, || format!("{tally:?}"))
    });
}

/// The processes of all containers, by node: what has to be the same before and after.
fn processes(lab: &Lab) -> Vec<BTreeMap<u32, String>> {
    lab.nodes().iter().map(rorqual_tests::Node::container_processes).collect()
}

/// No task was restarted or replaced. (That its processes are the same is seen from outside.)
#[track_caller]
fn assert_untouched(before: &[Task], after: &[Task]) {
    let mark = |tasks: &[Task]| -> BTreeSet<(String, u64)> {
        tasks.iter().map(|task| (task.id.clone(), task.restarts)).collect()
    };
    assert_eq!(mark(before), mark(after), "a task was touched");
}

#[test]
fn containers_and_daemons_come_back() {
    let lab = cluster_with_web("dmn", 3);
    an_image_of_one_node_runs_on_all(&lab);
    a_killed_container_is_back_in_the_balancer(&lab);
    a_killed_daemon_takes_its_containers_over(&lab);
    the_leader_dies_and_writes_go_on(&lab);
    all_daemons_die_and_nothing_is_forgotten(&lab);
    lab.finish();
}

fn an_image_of_one_node_runs_on_all(lab: &Lab) {
    let nodes: BTreeSet<String> = wait_running(lab, 3).into_iter().map(|task| task.node).collect();
    assert_eq!(nodes.len(), 3, "one replica on each node: {nodes:?}");
    for node in lab.nodes() {
        let list = node.rctl(&["image", "ls"]).ok();
        assert!(list.contains("nginx"), "n{} runs nginx and does not list it: {list}", node.number);
    }
}

fn a_killed_container_is_back_in_the_balancer(lab: &Lab) {
    wait_answering(lab, 1, 3);
    let victim = wait_running(lab, 3).into_iter().find(|task| task.node == "n2").unwrap();
    let pid = lab.node(2).task_pid(&victim.id).unwrap();
    assert_eq!(host::command_name(pid), "nginx", "{victim:?}");
    let started = Instant::now();
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    // Only then its name answering means that the new process answers.
    wait_until("the process is gone", SOON, || hold(host::start_ticks(pid).is_none(), || "it runs".into()));
    wait_until("the replica answers again", SOON, || {
        let tally = http::tally(lab.node(1).port(PORT), 12).map_err(|error| error.to_string())?;
        hold(tally.len() == 3, || format!("{tally:?}"))
    });
    figures::tell_since("resilience: kill -9 of a container until its replica answers again", started);
    let back = wait_until("the restart is reported", SOON, || {
        let tasks = lab.node(3).running("web")?;
        let back = tasks.iter().find(|task| task.id == victim.id && task.restarts == 1);
        back.cloned().ok_or_else(|| format!("{tasks:?}"))
    });
    assert_eq!(back.node, "n2", "a restart in place: {back:?}");
    assert_ne!(lab.node(2).task_pid(&victim.id).unwrap(), pid);
}

fn a_killed_daemon_takes_its_containers_over(lab: &Lab) {
    let number = (1..=3).find(|number| *number != lab.leader()).unwrap();
    let (before, tasks) = (processes(lab), wait_running(lab, 3));
    lab.kill(number);
    // The node's balancer and its replica work on without the daemon; what they say meanwhile is kept.
    let mut answered = 0;
    for _ in 0..30 {
        answered += usize::from(http::get(lab.node(number).port(PORT), "/while-away").is_ok());
    }
    assert_eq!(answered, 30, "requests through the node whose daemon is dead");
    let started = Instant::now();
    lab.start(number);
    lab.wait_ready(3);
    figures::tell_since("resilience: kill -9 of a daemon, start until its node is ready", started);
    assert_eq!(processes(lab), before, "processes changed");
    assert_untouched(&tasks, &wait_running(lab, 3));
    wait_until("all 30 lines in the logs", SOON, || {
        let logs = lab.node(number).rctl(&["service", "logs", "web"]).ok();
        let lines = logs.lines().filter(|line| line.contains("/while-away")).count();
        hold(lines == 30, || format!("{lines} lines"))
    });
    let killed = tasks.iter().find(|task| task.node == format!("n{number}")).unwrap();
    wait_until("the log goes on", SOON, || {
        http::get(lab.node(number).port(PORT), "/after").map_err(|error| error.to_string())?;
        let logs = lab.node(number).rctl(&["service", "logs", "web"]).ok();
        hold(logs.lines().any(|line| line.contains(&killed.name) && line.contains("/after")), || {
            "no line".into()
        })
    });
}

fn the_leader_dies_and_writes_go_on(lab: &Lab) {
    let leader = lab.leader();
    let other = lab.node(if leader == 1 { 2 } else { 1 });
    let (before, tasks) = (processes(lab), wait_running(lab, 3));
    let started = Instant::now();
    lab.kill(leader);
    wait_until("a write without the old leader", SOON, || {
        let update = ["service", "update", "--detach", "--label-add", "written=1", "web"];
        let output = other.rctl(&update);
        hold(output.code == 0, || output.tell())
    });
    figures::tell_since("resilience: kill -9 of the leader until a write succeeds", started);
    assert_ne!(lab.leader(), leader);
    lab.start(leader);
    lab.wait_ready(3);
    assert_eq!(processes(lab), before, "processes changed");
    assert_untouched(&tasks, &wait_running(lab, 3));
}

fn all_daemons_die_and_nothing_is_forgotten(lab: &Lab) {
    let spec = lab.node(1).rctl(&["service", "inspect", "web"]).ok();
    let (before, tasks) = (processes(lab), wait_running(lab, 3));
    for number in 1..=3 {
        lab.kill(number);
    }
    for number in 1..=3 {
        wait_answering(lab, number, 3);
    }
    let started = Instant::now();
    for number in 1..=3 {
        lab.start(number);
    }
    lab.wait_ready(3);
    figures::tell_since("resilience: all three controllers killed, start until all are ready", started);
    assert_eq!(processes(lab), before, "processes changed");
    assert_untouched(&tasks, &wait_running(lab, 3));
    let image = |text: &str| text.lines().find(|line| line.contains("sha256:")).map(str::to_owned);
    assert_eq!(image(&lab.node(2).rctl(&["service", "inspect", "web"]).ok()), image(&spec));
    lab.node(3).rctl(&["service", "scale", "web=4"]).ok();
    wait_answering(lab, 2, 4);
}

#[test]
fn nodes_die_and_their_replicas_run_elsewhere() {
    let lab = cluster_with_web("node", 3);
    let lost = (1..=3).rev().find(|number| *number != lab.leader()).unwrap();
    a_crashed_node_loses_its_replicas_to_others(&lab, lost);
    a_cut_node_is_replaced_and_returns(&lab, lost);
    a_wiped_controller_rejoins(&lab, lost);
    lab.finish();
}

/// Waits until all replicas run on nodes other than this one, and tells how long that took.
fn wait_elsewhere(lab: &Lab, lost: usize, what: &str, started: Instant) {
    let asked = lab.node(if lost == 1 { 2 } else { 1 });
    wait_until("three replicas run elsewhere", SOON, || {
        let mut tasks = asked.running("web")?;
        tasks.retain(|task| task.node != format!("n{lost}"));
        hold(tasks.len() == 3, || format!("{:?}", asked.tasks("web")))
    });
    figures::tell_since(what, started);
    wait_until("they all answer", SOON, || {
        let tally = http::tally(asked.port(PORT), 60).map_err(|error| error.to_string())?;
        hold(tally.len() == 3, || format!("{tally:?}"))
    });
}

fn a_crashed_node_loses_its_replicas_to_others(lab: &Lab, lost: usize) {
    let started = Instant::now();
    lab.crash(lost);
    wait_elsewhere(lab, lost, "resilience: a node crashes until its replicas run elsewhere", started);
    lab.start(lost);
    lab.wait_ready(3);
    // It asks before it starts what it ran (tests/away.rs looks closer).
    let left = lab.node(lost).container_processes();
    assert!(left.is_empty(), "what was replaced was started: {left:?}");
}

fn a_cut_node_is_replaced_and_returns(lab: &Lab, lost: usize) {
    // Something of web runs there again.
    lab.node(1).rctl(&["service", "scale", "web=6"]).ok();
    lab.node(1).rctl(&["service", "scale", "web=3"]).ok();
    let there = |tasks: &[Task]| tasks.iter().any(|task| task.node == format!("n{lost}"));
    assert!(there(&wait_running(lab, 3)), "scaling down leaves one on each node");
    let cut_off = lab.node(lost).container_processes();
    let started = Instant::now();
    lab.cut(lost);
    wait_elsewhere(lab, lost, "resilience: a node is cut off until its replicas run elsewhere", started);
    assert_eq!(lab.node(lost).container_processes(), cut_off, "a node that is cut off keeps its containers");
    lab.heal(lost);
    lab.wait_ready(3);
    wait_until("what was replaced is stopped", SOON, || {
        let left = lab.node(lost).container_processes();
        hold(left.is_empty(), || format!("{left:?}"))
    });
    assert_eq!(wait_running(lab, 3).len(), 3);
}

fn a_wiped_controller_rejoins(lab: &Lab, lost: usize) {
    let other = lab.node(if lost == 1 { 2 } else { 1 });
    lab.crash(lost);
    for entry in fs::read_dir(lab.node(lost).data_dir()).unwrap() {
        let path = entry.unwrap().path();
        // The log stays: a panic in it must not go unseen.
        if path != lab.node(lost).log_path() {
            if path.is_dir() { fs::remove_dir_all(&path).unwrap() } else { fs::remove_file(&path).unwrap() }
        }
    }
    other.rctl(&["node", "rm", "--force", &format!("n{lost}")]).ok();
    lab.start(lost);
    let started = Instant::now();
    lab.join(lost, "controller");
    lab.wait_ready(3);
    figures::tell_since("resilience: a wiped controller joins again until it is ready", started);
    assert_eq!(other.nodes().unwrap().len(), 3, "the old node is gone from the list");
    // It counts: with another controller away, two of three still decide.
    let away = (1..=3).find(|number| *number != lost && *number != lab.leader()).unwrap_or(other.number);
    lab.kill(away);
    let started = Instant::now();
    wait_until("a write with the new controller's vote", SOON, || {
        let output = lab.node(lost).rctl(&["service", "scale", "web=6"]);
        hold(output.code == 0, || output.tell())
    });
    figures::tell_since(
        "resilience: service scale web=6 right after a daemon was killed, whole command",
        started,
    );
    lab.start(away);
    lab.wait_ready(3);
    let tasks = wait_running(lab, 6);
    assert!(tasks.iter().any(|task| task.node == format!("n{lost}")), "it gets tasks: {tasks:?}");
}
