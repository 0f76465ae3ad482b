//! Nobody waits for a node that is away, and a node that comes back asks before it starts what it ran.
//! Times are told; asserted is what is far from the times of a wait that should not be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::time::{Duration, Instant};

use rorqual_tests::view::Task;
use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, figures, http, images, wait_until};

const PORT: u16 = 8080;
const SOON: Duration = Duration::from_secs(30);

/// A node that is silent for so long is down: what takes longer has waited for it.
const DOWN: Duration = Duration::from_secs(5);

/// A web server that keeps a count of its starts on its node's disk, and ends as soon as it is asked to.
const COUNTING: &str = "echo started >>/starts/log; trap 'exit 0' TERM; httpd -p 80 -h /etc; \
                        sleep 100000 & wait";

/// A cluster of three with `web` running, one replica on each node.
#[track_caller]
fn cluster_with_web(hint: &str) -> Lab {
    let lab = Lab::cluster(hint, 3);
    lab.node(1).load(&images::archive("busybox"));
    let mount = ["--mount", "type=volume,src=starts,dst=/starts"];
    let create = ["service", "create", "--name", "web", "--replicas", "3", "--publish", "8080:80"];
    let command = [images::BUSYBOX, "sh", "-c", COUNTING];
    lab.node(1).rctl(&[&create[..], &mount, &command].concat()).ok();
    let tasks = wait_running(&lab, 3);
    assert!((1..=3).all(|number| has_task(&tasks, number)), "one replica on each node: {tasks:?}");
    lab
}

fn has_task(tasks: &[Task], number: usize) -> bool {
    tasks.iter().any(|task| task.node == format!("n{number}"))
}

#[track_caller]
fn wait_running(lab: &Lab, count: usize) -> Vec<Task> {
    wait_until(&format!("{count} running tasks of web"), SOON, || {
        let tasks = lab.any_running().running("web")?;
        hold(tasks.len() == count, || format!("{tasks:?}"))?;
        Ok(tasks)
    })
}

/// How often the node has started a replica, as its disk tells.
fn starts(node: &Node) -> usize {
    let log = node.data_dir().join("volumes/starts/log");
    fs::read_to_string(log).unwrap_or_default().lines().count()
}

fn answers(node: &Node) -> Result<(), String> {
    http::get(node.port(PORT), "/hostname").map(drop).map_err(|error| error.to_string())
}

/// `service scale web=COUNT` on a node; how long the whole command took.
#[track_caller]
fn scale(node: &Node, count: usize) -> Duration {
    let started = Instant::now();
    node.rctl(&["service", "scale", &format!("web={count}")]).ok();
    started.elapsed()
}

#[test]
fn a_scale_waits_for_no_dead_daemon() {
    let lab = cluster_with_web("scal");
    let leader = lab.leader();
    let away = (1..=3).rev().find(|number| *number != leader).unwrap();
    let asked = lab.node(leader);
    lab.kill(away);
    let up = scale(asked, 6);
    figures::tell("away: service scale 3→6, a daemon just killed", up.as_millis(), "ms");
    let tasks = wait_running(&lab, 6);
    let there = tasks.iter().filter(|task| task.node == format!("n{away}")).count();
    assert_eq!(there, 1, "its replica goes on, and it gets no other: {tasks:?}");
    // Also one that is down may have tasks that it is to end, when it is back.
    let down = scale(asked, 1);
    figures::tell("away: service scale 6→1, a daemon just killed", down.as_millis(), "ms");
    for (what, took) in [("up", up), ("down", down)] {
        assert!(took < DOWN, "scaling {what} took {took:?}: it waited for the node that is away");
    }
    wait_until("the node is down", SOON, || {
        let nodes = asked.nodes()?;
        hold(nodes.iter().any(|node| node.state == "down"), || format!("{nodes:?}"))
    });
    scale(asked, 4);
    assert!(!has_task(&wait_running(&lab, 4), away), "its replicas run elsewhere");
    let again = scale(asked, 3);
    figures::tell("away: service scale 4→3, a node down", again.as_millis(), "ms");
    assert!(again < DOWN, "scaling with a node down took {again:?}");
    lab.start(away);
    lab.wait_ready(3);
    wait_until("what the node was to end has ended", SOON, || {
        let left = lab.node(away).container_processes();
        hold(left.is_empty(), || format!("{left:?}"))
    });
    lab.finish();
}

#[test]
fn a_crashed_node_asks_before_it_starts_what_it_ran() {
    let lab = cluster_with_web("back");
    let leader = lab.leader();
    let lost = (1..=3).rev().find(|number| *number != leader).unwrap();
    let (node, other) = (lab.node(lost), lab.node(leader));
    lab.crash(lost);
    wait_until("its replica runs elsewhere", SOON, || {
        let tasks = other.running("web")?;
        hold(tasks.len() == 3 && !has_task(&tasks, lost), || format!("{tasks:?}"))
    });
    let before = starts(node);
    lab.start(lost);
    lab.wait_ready(3);
    wait_until("its balancer works", SOON, || answers(node));
    // The next replica that it is given is the first that it starts.
    scale(other, 4);
    assert!(has_task(&wait_running(&lab, 4), lost), "the emptiest node gets the new one");
    assert_eq!(starts(node), before + 1, "it started what had been replaced");
    lab.finish();
}

#[test]
fn a_cluster_without_power_comes_back_by_itself() {
    let lab = cluster_with_web("dark");
    for number in 1..=3 {
        lab.crash(number);
    }
    // Alone it can't be told anything: after a while it starts what it ran.
    let (first, ran) = (lab.node(1), starts(lab.node(1)));
    let started = Instant::now();
    lab.start(1);
    wait_until("a node that reaches no controller serves", SOON, || answers(first));
    figures::tell_since("away: a node returns alone, until its replica answers", started);
    assert_eq!(starts(first), ran + 1, "its replica was started once");
    let started = Instant::now();
    lab.start(2);
    lab.start(3);
    lab.wait_ready(3);
    let tasks = wait_running(&lab, 3);
    figures::tell_since("away: the other two return, until all replicas run", started);
    assert!((1..=3).all(|number| has_task(&tasks, number)), "{tasks:?}");
    for node in lab.nodes() {
        wait_until("each node's balancer works", SOON, || answers(node));
    }
    assert_eq!(starts(first), ran + 1, "its replica went on");
    lab.finish();
}

#[test]
fn what_was_replaced_is_stopped_at_once() {
    let lab = cluster_with_web("heal");
    let lost = (1..=3).rev().find(|number| *number != lab.leader()).unwrap();
    let (node, other) = (lab.node(lost), lab.node(lab.leader()));
    let cut_off = node.container_processes();
    lab.cut(lost);
    wait_until("its replica runs elsewhere", SOON, || {
        let tasks = other.running("web")?;
        hold(tasks.len() == 3 && !has_task(&tasks, lost), || format!("{tasks:?}"))
    });
    assert_eq!(node.container_processes(), cut_off, "a node that is cut off keeps its containers");
    lab.heal(lost);
    let session = wait_until("the node is back", SOON, || {
        let nodes = other.nodes()?;
        hold(nodes.iter().all(|node| node.state == "ready"), || format!("{nodes:?}"))?;
        Ok(Instant::now())
    });
    wait_until("what was replaced is stopped", SOON, || {
        let left = node.container_processes();
        hold(left.is_empty(), || format!("{left:?}"))
    });
    figures::tell_since("away: a node returns, until what was replaced there is stopped", session);
    let took = session.elapsed();
    assert!(took < Duration::from_secs(3), "stopping took {took:?}");
    assert_eq!(wait_running(&lab, 3).len(), 3);
    lab.finish();
}

#[test]
fn a_stop_that_comes_early_is_heard_as_soon_as_the_program_listens() {
    let lab = Lab::up("stop", 1);
    let node = lab.node(1);
    node.load(&images::archive("busybox"));
    // Without a handler the first process of a pid namespace never gets the signal.
    let late = "sleep 1; trap 'exit 7' TERM; sleep 100000 & wait";
    node.rctl(&["run", "--detach", "--name", "late", images::BUSYBOX, "sh", "-c", late]).ok();
    let started = Instant::now();
    node.rctl(&["stop", "late"]).ok();
    figures::tell_since("away: a stop that came a second before the handler", started);
    assert!(started.elapsed() < DOWN, "it was killed when its grace was over");
    let containers = node.containers().unwrap();
    assert!(containers.iter().any(|one| one.name == "late" && one.exit_code == Some(7)), "{containers:?}");
    lab.finish();
}
