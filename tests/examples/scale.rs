//! The measuring half of `tests/bench/scale`: rounds of 1→10→1 on a cluster of three, and on Docker Swarm in
//! between where `tests/bench/scale` has set one up.
//!
//! `scale ROUNDS [SWARM-FOLDER]`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, command, http, images, root, wait_until};

const PORT: u16 = 8080;
const REPLICAS: usize = 10;
const DEADLINE: Duration = Duration::from_secs(60);

/// Between rounds: what is idle is slower than what runs hot, and that is what users meet.
const IDLE: Duration = Duration::from_millis(500);

/// One round, in milliseconds since the command was started.
struct Round {
    /// The first and the last of the nine new containers' first processes were started.
    first_start: f64,
    last_start: f64,
    /// The command ended: it has heard that ten run and are in the balancer.
    command: f64,
    /// All ten have answered through every node.
    answered: f64,
    /// Milliseconds of a core that the three daemons took meanwhile, with programs that they ran to their end.
    daemons_cpu: f64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let rounds: usize = arguments.get(1).expect("scale ROUNDS [SWARM-FOLDER]").parse().unwrap();
    let lab = Lab::cluster("scal", 3);
    for node in lab.nodes() {
        node.load(&images::archive("nginx"));
    }
    let create = ["service", "create", "--name", "web", "--publish", "8080:80", images::NGINX];
    lab.node(1).rctl(&create).ok();
    let (mut ours, mut written, mut peer) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=rounds {
        pause();
        let round = scale_up(&lab);
        scale_down(&lab);
        print!(
            "round {number:2}: command {:4.0} ms, all answer on all nodes {:4.0} ms",
            round.command, round.answered
        );
        ours.push(round);
        if let Some(folder) = arguments.get(2) {
            pause();
            peer.push(swarm(folder, REPLICAS));
            swarm(folder, 1);
            print!(", Swarm {:5.0} ms", peer[peer.len() - 1]);
        }
        println!();
        // What of it is the command and the commit alone: the same without waiting.
        pause();
        written.push(write_only(&lab));
        scale_down(&lab);
    }
    tell(&ours, &written, &peer);
    lab.finish();
}

/// Not waiting for anything: idling is what is wanted.
fn pause() {
    std::thread::sleep(IDLE);
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn scale_up(lab: &Lab) -> Round {
    let before: BTreeSet<u32> = all_processes(lab);
    let cpu_before = daemons_cpu_ms(lab);
    let (started, started_ticks) = (Instant::now(), uptime_ms());
    lab.node(1).rctl(&["service", "scale", "--quiet", &format!("web={REPLICAS}")]).ok();
    let command = ms(started.elapsed());
    let daemons_cpu = daemons_cpu_ms(lab) - cpu_before;
    for node in lab.nodes() {
        let mut seen = BTreeSet::new();
        while seen.len() < REPLICAS {
            assert!(started.elapsed() < DEADLINE, "only {seen:?} answer on n{}", node.number);
            if let Ok(hello) = http::hello(node.port(PORT)) {
                seen.insert(hello.replica);
            }
        }
    }
    let answered = ms(started.elapsed());
    let new: Vec<u32> = all_processes(lab).difference(&before).copied().collect();
    // Of each container the first process: nginx's workers are younger.
    let first = new.iter().filter(|pid| rorqual_tests::host::is_first_process(**pid));
    let starts: Vec<f64> = first.filter_map(|pid| start_ms(*pid)).map(|at| at - started_ticks).collect();
    let least = starts.iter().copied().fold(f64::INFINITY, f64::min);
    let most = starts.iter().copied().fold(0.0, f64::max);
    Round { first_start: least.max(0.0), last_start: most, command, answered, daemons_cpu }
}

fn write_only(lab: &Lab) -> f64 {
    let output = lab.node(1).rctl(&["service", "scale", "--detach", "--quiet", &format!("web={REPLICAS}")]);
    let took = ms(output.took);
    output.ok();
    wait_until("ten run", DEADLINE, || {
        let count = lab.node(1).running("web")?.len();
        hold(count == REPLICAS, || count.to_string())
    });
    took
}

fn scale_down(lab: &Lab) {
    lab.node(1).rctl(&["service", "scale", "--quiet", "web=1"]).ok();
    wait_until("one is left", DEADLINE, || {
        let left = all_processes(lab);
        // nginx and its worker.
        hold(left.len() == 2, || format!("{left:?}"))
    });
}

fn all_processes(lab: &Lab) -> BTreeSet<u32> {
    lab.nodes().iter().flat_map(|node| node.container_processes().into_keys()).collect()
}

/// User and system time of the daemons and of their children that have ended and were waited for.
fn daemons_cpu_ms(lab: &Lab) -> f64 {
    let of = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let after_name = stat.rsplit_once(')').unwrap().1;
        // proc_pid_stat(5): utime, stime, cutime, cstime are fields 14 to 17, in ticks of 10 ms.
        let ticks = after_name.split_whitespace().skip(11).take(4);
        ticks.map(|ticks| ticks.parse::<f64>().unwrap() * 10.0).sum::<f64>()
    };
    lab.nodes().iter().filter_map(|node| node.daemon_pid()).map(of).sum()
}

/// Milliseconds since boot, in the clock that processes' start times are in.
fn uptime_ms() -> f64 {
    let text = fs::read_to_string("/proc/uptime").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() * 1000.0
}

/// When the process was started, since boot: to 10 ms.
fn start_ms(pid: u32) -> Option<f64> {
    rorqual_tests::host::start_ticks(pid)?.parse::<f64>().ok().map(|ticks| ticks * 10.0)
}

fn swarm(folder: &str, replicas: usize) -> f64 {
    let mut swarm = Command::new(root().join("tests/bench/swarm"));
    let output = command::run(swarm.args(["scale", folder, &replicas.to_string()]), DEADLINE * 2);
    output.ok().trim().parse().unwrap()
}

struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    let median =
        if values.len().is_multiple_of(2) { (values[half - 1] + values[half]) / 2.0 } else { values[half] };
    Spread { median, least: values[0], most: values[values.len() - 1] }
}

fn tell(ours: &[Round], written: &[f64], peer: &[f64]) {
    let row = |what: &str, values: Spread| {
        println!("{what:<66} {:6.0} {:6.0} {:6.0}", values.median, values.least, values.most);
        values.median
    };
    println!("\n{:<66} {:>6} {:>6} {:>6}", "ms since the command was started", "median", "min", "max");
    let commit =
        row("the command's start, connection and commit (scale --detach)", spread(written.iter().copied()));
    let first = row(
        "first of nine new containers started (to 10 ms)",
        spread(ours.iter().map(|round| round.first_start)),
    );
    let last = row("last of them started (to 10 ms)", spread(ours.iter().map(|round| round.last_start)));
    let command = row(
        "reported, in the balancer, and heard by the command",
        spread(ours.iter().map(|round| round.command)),
    );
    let answered =
        row("all ten have answered through all three nodes", spread(ours.iter().map(|round| round.answered)));
    println!(
        "The last row holds the requests until each node has met all ten: some 90, one after the other."
    );
    println!("\nWhere the command's time goes (differences of the medians above):");
    let phase = |what: &str, from: f64, to: f64| println!("{what:<66} {:6.0}", (to - from).max(0.0));
    phase("connect, commit", 0.0, commit);
    phase("plan, commit, assign, prepare, until the first process", commit, first);
    phase("until the last process", first, last);
    phase("its start, status, commit, balancer, watch, the command's end", last, command);
    row(
        "\nCPU of the three daemons and what they ran to its end",
        spread(ours.iter().map(|round| round.daemons_cpu)),
    );
    let peer = (!peer.is_empty())
        .then(|| row("Docker Swarm, one node, until ten tasks run", spread(peer.iter().copied())));
    result("scale_1_to_10_command", command, peer);
    result("scale_1_to_10", answered, peer);
}

fn result(name: &str, ours: f64, peer: Option<f64>) {
    match peer {
        Some(peer) => {
            println!("RESULT {name} ours={ours:.0} peer={peer:.0} ratio={:.3} unit=ms", ours / peer)
        }
        None => println!("RESULT {name} ours={ours:.0} peer=none ratio=none unit=ms"),
    }
}
