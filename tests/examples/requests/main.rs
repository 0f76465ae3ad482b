//! The measuring half of `tests/bench/requests`: a steady load through one node's port while everything happens to the
//! service that usually does, and a chart of it.
//!
//! `requests CHART.svg [REQUESTS-PER-SECOND]`, of each kind of load.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod chart;

use std::time::{Duration, Instant};

use rorqual_tests::load::{Kind, Load, Plan, Sample, failures};
use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, command, images, wait_until};

const PORT: u16 = 8080;
const SOON: Duration = Duration::from_secs(120);

/// For how long a kept connection is used; connections are waited for twice as long.
const LIFE: Duration = Duration::from_secs(2);

/// So long nothing happens before and after each step.
const REST: Duration = Duration::from_secs(2);

/// Something that is done under load.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) from: Instant,
    pub(crate) until: Instant,
    /// What is lost of the requests that were sent before was on its way.
    pub(crate) killed: Option<Instant>,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().expect("requests CHART.svg [REQUESTS-PER-SECOND]");
    let per_second: u32 = arguments.next().map_or(200, |text| text.parse().unwrap());
    let lab = Lab::cluster("rqst", 3);
    let node = lab.node(1);
    node.load(&images::archive("nginx"));
    node.rctl(&["image", "tag", images::NGINX, "nginx:next"]).ok();
    let create = ["service", "create", "--name", "web", "--replicas", "10", "--publish", "8080:80"];
    let check =
        ["--health-http", "80/health", "--health-interval", "1s", "--drain-timeout", "4s", images::NGINX];
    node.rctl(&[&create[..], &check].concat()).ok();

    let plan = |kind| Plan { address: node.port(PORT), kind, workers: 16, per_second };
    let began = Instant::now();
    let loads = [Load::start(plan(Kind::New)), Load::start(plan(Kind::Kept(LIFE)))];
    let steps = vec![
        step("10 → 3", || scale(node, 3)),
        step("3 → 10", || scale(node, 10)),
        step("new image", || {
            node.rctl_within(SOON, &["service", "update", "--image", "nginx:next", "web"]).ok();
            stopped(node, 10);
            None
        }),
        step("node drained", || drain(&lab)),
        step("replica killed", || kill(&lab)),
    ];
    std::thread::sleep(REST);
    let [new, kept] = loads.map(Load::end);
    for step in &steps {
        for (kind, samples) in [("new", &new), ("kept", &kept)] {
            tell(step, kind, samples);
        }
    }
    std::fs::write(&path, chart::draw(began, &steps, &new, &kept)).unwrap();
    println!("{path} shows it");
    node.rctl(&["service", "rm", "web"]).ok();
    lab.finish();
}

/// What is done says when it killed somebody.
fn step(name: &'static str, act: impl FnOnce() -> Option<Instant>) -> Step {
    std::thread::sleep(REST);
    let from = Instant::now();
    let killed = act();
    Step { name, from, until: Instant::now(), killed }
}

/// Until so many containers of the service run, those that are to go counted.
fn stopped(node: &Node, left: usize) {
    wait_until("those that are to go are gone", SOON, || {
        let tasks = node.tasks("web")?;
        let run = tasks.iter().filter(|task| task.state == "running").count();
        hold(run == left, || format!("{tasks:?}"))
    });
}

fn scale(node: &Node, replicas: usize) -> Option<Instant> {
    node.rctl(&["service", "scale", &format!("web={replicas}")]).ok();
    stopped(node, replicas);
    None
}

fn drain(lab: &Lab) -> Option<Instant> {
    let node = lab.node(1);
    node.rctl(&["node", "update", "--availability", "drain", "n3"]).ok();
    wait_until("the node is empty", SOON, || {
        let here = lab.node(3).containers()?;
        hold(here.iter().all(|one| one.state != "running"), || format!("{here:?}"))
    });
    stopped(node, 10);
    None
}

fn kill(lab: &Lab) -> Option<Instant> {
    let tasks = lab.node(1).running("web").unwrap();
    let task = tasks.into_iter().find(|task| task.node == "n2").expect("none on n2");
    let pid = lab.node(2).task_pid(&task.id).unwrap();
    command::run(std::process::Command::new("kill").args(["-KILL", &pid.to_string()]), SOON).ok();
    let killed = Instant::now();
    wait_until("it runs again", SOON, || {
        let tasks = lab.node(1).running("web")?;
        hold(tasks.iter().any(|one| one.id == task.id && one.restarts == 1), || format!("{tasks:?}"))
    });
    Some(killed)
}

/// What became of the requests that were sent during a step, and shortly after.
fn tell(step: &Step, kind: &str, samples: &[Sample]) {
    let sent = |sample: &&Sample| sample.sent >= step.from && sample.sent <= step.until + REST / 2;
    let of_step: Vec<Sample> = samples.iter().filter(sent).cloned().collect();
    let mut took: Vec<f64> = of_step.iter().map(|sample| sample.took.as_secs_f64() * 1000.0).collect();
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or_default();
    let lost = failures(&of_step);
    println!(
        "RESULT requests step={:?} connections={kind} sent={} lost={} p50_ms={:.2} p99_ms={:.2}",
        step.name,
        of_step.len(),
        lost.len(),
        at(0.5),
        at(0.99)
    );
    for sample in &lost {
        let before = step.killed.is_some_and(|killed| sample.sent < killed);
        println!(
            "    lost{}: {:?}",
            if before { ", on its way as it was killed" } else { "" },
            sample.outcome
        );
    }
}
