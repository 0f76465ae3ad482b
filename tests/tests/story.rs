//! The story that the project tells first: a service of three behind every node's port, scaled to ten and
//! back, found by name from inside, and nothing left at the end.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use rorqual_tests::host::{Snapshot, assert_nothing_left};
use rorqual_tests::view::Task;
use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, bin_dir, command, figures, http, images, root, wait_until};

/// Enough requests for ten replicas: that one of them gets none has a chance of 1 in 10^8.
const REQUESTS: usize = 200;

/// The cluster's promise is a second; this is for a machine that does other things too.
const SOON: Duration = Duration::from_secs(20);

/// Who answers on a node's port, once that many different replicas do.
#[track_caller]
fn answering(node: &Node, port: u16, replicas: usize) -> BTreeSet<String> {
    wait_until(&format!("{replicas} replicas answer on n{}", node.number), SOON, || {
        let tally = http::tally(node.port(port), REQUESTS).map_err(|error| error.to_string())?;
        hold(tally.len() == replicas, || format!("{tally:?}"))?;
        Ok(tally.into_keys().collect())
    })
}

/// All nodes balance over the same replicas.
#[track_caller]
fn answering_everywhere(lab: &Lab, port: u16, replicas: usize) -> BTreeSet<String> {
    let first = answering(lab.node(1), port, replicas);
    for node in &lab.nodes()[1..] {
        assert_eq!(answering(node, port, replicas), first, "n{} has other replicas than n1", node.number);
    }
    first
}

/// The running tasks, once there are exactly so many.
#[track_caller]
fn running(node: &Node, service: &str, count: usize) -> Vec<Task> {
    wait_until(&format!("{count} tasks of {service}"), SOON, || {
        let tasks = node.running(service)?;
        hold(tasks.len() == count, || format!("{tasks:?}"))?;
        Ok(tasks)
    })
}

/// Tasks on the node that has most of them, and on the one that has fewest.
fn spread(lab: &Lab, tasks: &[Task]) -> (usize, usize) {
    let on = |node: &Node| tasks.iter().filter(|task| task.node == node.hostname()).count();
    let counts: Vec<usize> = lab.nodes().iter().map(on).collect();
    (*counts.iter().max().unwrap(), *counts.iter().min().unwrap())
}

fn scale(node: &Node, replicas: usize) {
    let started = Instant::now();
    node.rctl(&["service", "scale", &format!("web={replicas}")]).ok();
    figures::tell_since(&format!("story: service scale web={replicas}, whole command"), started);
}

#[test]
fn three_replicas_become_ten_and_leave_nothing() {
    let lab = Lab::cluster("stry", 3);
    let [n1, n2, n3] = [1, 2, 3].map(|number| lab.node(number));
    n1.load(&images::archive("nginx"));

    let create =
        ["service", "create", "--name", "web", "--replicas", "3", "--publish", "8080:80", images::NGINX];
    n2.rctl(&create).ok();
    let tasks = running(n1, "web", 3);
    assert_eq!(spread(&lab, &tasks), (1, 1), "three replicas on three nodes: {tasks:?}");
    answering_everywhere(&lab, 8080, 3);
    the_client_is_seen(&lab);
    the_service_is_told_of(&lab);

    scale(n3, 10);
    let tasks = running(n1, "web", 10);
    assert_eq!(spread(&lab, &tasks), (4, 3), "ten replicas on three nodes: {tasks:?}");
    let names = answering_everywhere(&lab, 8080, 10);
    assert_eq!(names.len(), 10);

    scale(n1, 1);
    let one = running(n2, "web", 1);
    answering_everywhere(&lab, 8080, 1);
    scale(n2, 3);
    let three = running(n3, "web", 3);
    assert!(three.iter().any(|task| task.id == one[0].id), "the replica that stayed was replaced");
    answering_everywhere(&lab, 8080, 3);

    the_name_leads_to_the_service(&lab);
    the_logs_have_what_was_asked(&lab);

    n3.rctl(&["service", "rm", "web", "probe"]).ok();
    nothing_runs(&lab);
    lab.finish();
}

/// The replica sees the address of the client, whichever node was asked and whichever node it runs on.
fn the_client_is_seen(lab: &Lab) {
    for node in lab.nodes() {
        let mut seen = BTreeSet::new();
        for _ in 0..30 {
            let hello = http::hello(node.port(8080)).unwrap();
            seen.insert((hello.replica, hello.client));
        }
        let clients: BTreeSet<&str> = seen.iter().map(|(_, client)| client.as_str()).collect();
        let machine = node.machine().to_string();
        assert_eq!(clients, BTreeSet::from([machine.as_str()]), "through n{}: {seen:?}", node.number);
    }
}

/// `ls`, `ps` and `inspect` know the service, on each node.
fn the_service_is_told_of(lab: &Lab) {
    for node in lab.nodes() {
        let table = node.rctl(&["service", "ls"]).ok();
        let row =
            table.lines().find(|line| line.contains("web")).unwrap_or_else(|| panic!("no web in {table}"));
        assert!(row.contains("3/3") && row.contains("nginx") && row.contains("8080"), "{row}");
        let table = node.rctl(&["service", "ps", "web"]).ok();
        for slot in 1..=3 {
            assert!(table.contains(&format!("web.{slot}")), "{table}");
        }
        let ids = node.rctl(&["service", "ls", "--quiet"]).ok();
        assert_eq!(ids.lines().count(), 1, "{ids}");
        let text = node.rctl(&["service", "inspect", "web"]).ok();
        assert!(
            text.contains("sha256:") && text.contains("8080"),
            "the tag was resolved to no digest: {text}"
        );
    }
}

/// A service reaches another by its name, from every node.
fn the_name_leads_to_the_service(lab: &Lab) {
    lab.node(2).load(&images::archive("busybox"));
    // Debian's static busybox crashes in `wget -T`.
    let script =
        "trap 'exit 0' TERM; while :; do timeout 2 wget -q -O - http://web/ | head -n 1; sleep 0.2; done";
    let create =
        ["service", "create", "--name", "probe", "--replicas", "3", images::BUSYBOX, "sh", "-c", script];
    lab.node(1).rctl(&create).ok();
    let tasks = running(lab.node(3), "probe", 3);
    assert_eq!(spread(lab, &tasks), (1, 1), "{tasks:?}");
    wait_until("each probe hears web", SOON, || {
        let logs = lab.node(3).rctl(&["service", "logs", "probe"]).ok();
        let heard =
            |task: &Task| logs.lines().any(|line| line.contains(&task.name) && line.contains("Hello from"));
        hold(tasks.iter().all(heard), || logs.clone())
    });
}

/// The logs of a service hold the lines of every replica, whichever node is asked.
fn the_logs_have_what_was_asked(lab: &Lab) {
    for node in lab.nodes() {
        let marker = format!("/marker-{}", node.number);
        for _ in 0..30 {
            http::get(node.port(8080), &marker).unwrap();
        }
        wait_until("30 marked lines in the logs", SOON, || {
            let logs = node.rctl(&["service", "logs", "web"]).ok();
            let marked: Vec<&str> = logs.lines().filter(|line| line.contains(&marker)).collect();
            let from = |slot: usize| marked.iter().any(|line| line.contains(&format!("web.{slot}")));
            hold(marked.len() == 30 && (1..=3).all(from), || format!("{} lines: {marked:?}", marked.len()))
        });
        let tail = node.rctl(&["service", "logs", "--tail", "2", "web"]).ok();
        assert_eq!(tail.lines().count(), 6, "two lines of each of three replicas: {tail}");
    }
}

/// No service, no task, no process and no open port.
fn nothing_runs(lab: &Lab) {
    for node in lab.nodes() {
        wait_until(&format!("n{} runs nothing", node.number), SOON, || {
            let processes = node.container_processes();
            hold(processes.is_empty(), || format!("{processes:?}"))
        });
        let list = node.rctl(&["service", "ls", "--quiet"]).ok();
        assert!(list.trim().is_empty(), "{list}");
        assert!(node.containers().unwrap().is_empty(), "{:?}", node.containers());
        assert!(http::get(node.port(8080), "/").is_err(), "the published port still answers");
        node.rctl(&["service", "inspect", "web"]).fails(1, &["web"]);
    }
}

#[test]
fn the_quickstart_tells_it_and_takes_it_away() {
    let name = format!("qs{}", std::process::id() % 1_000_000);
    let before = Snapshot::take();
    let quickstart = |arguments: &[&str]| {
        let mut command = Command::new(root().join("deploy/quickstart"));
        // It looks for the programs where cargo would have put them.
        command.env("CARGO_TARGET_DIR", bin_dir().parent().unwrap());
        command::run(command.args(["--name", &name]).args(arguments), Duration::from_secs(180))
    };
    let told = quickstart(&["--no-build", "--requests", "50"]);
    let down = quickstart(&["--down"]);
    figures::tell("story: deploy/quickstart without building", told.took.as_millis(), "ms");
    let text = told.ok();
    down.ok();
    assert!(text.contains("built sha256:") && text.contains("as web"), "{text}");
    assert_eq!(text.matches("50 of 50 requests answered by").count(), 3, "{text}");
    assert_nothing_left(&before, &name);
}
