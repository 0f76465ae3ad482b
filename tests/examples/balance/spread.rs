//! How long after a replica's end the balancers of all nodes are without it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rorqual_tests::{Lab, Node, command, images};

use crate::SOON;

const ROUNDS: usize = 40;

/// For many replicas to start.
const START: Duration = Duration::from_secs(600);

/// Changes of a node's rules, as the kernel tells them.
struct Monitor {
    program: Child,
    seen: Receiver<Instant>,
}

impl Monitor {
    fn start(node: &Node) -> Self {
        let mut command = node.exec_command("nft");
        let mut program = command.args(["monitor", "rules"]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(program.stdout.take().unwrap()).split(b'\n');
        let (tell, seen) = channel();
        // Ends with the program.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line.starts_with(b"add rule") && tell.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
        Self { program, seen }
    }
}

pub(crate) fn measure(lab: &Lab, endpoints: usize) {
    let node = lab.node(1);
    node.load(&images::archive("busybox"));
    let count = endpoints.to_string();
    let create = ["service", "create", "--name", "many", "--replicas", &count, "--publish", "8081:80"];
    // What is killed does not come back: each kill is one change.
    let rest =
        ["--restart-condition", "none", "--stop-signal", "SIGKILL", images::BUSYBOX, "sleep", "100000"];
    node.rctl_within(START, &[&create[..], &rest].concat()).ok();
    let tasks = node.running("many").unwrap();
    assert_eq!(tasks.len(), endpoints);
    let monitors: Vec<Monitor> = lab.nodes().iter().map(Monitor::start).collect();
    let mut times = Vec::new();
    for task in tasks.iter().step_by((endpoints / ROUNDS).max(1)).take(ROUNDS) {
        let own = lab.nodes().iter().find(|node| node.hostname() == task.node).unwrap();
        let pid = own.task_pid(&task.id).unwrap();
        quiet(&monitors);
        let killed = Instant::now();
        command::run(Command::new("kill").args(["-KILL", &pid.to_string()]), SOON).ok();
        let last =
            monitors.iter().map(|monitor| monitor.seen.recv_timeout(SOON).expect("no change of rules"));
        let last = last.max().unwrap();
        times.push(last.saturating_duration_since(killed).as_secs_f64() * 1000.0);
    }
    for mut monitor in monitors {
        monitor.program.kill().unwrap();
        monitor.program.wait().unwrap();
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    println!(
        "RESULT spread endpoints={endpoints} rounds={} p50_ms={:.1} p99_ms={:.1} (from SIGKILL to the rules of three nodes)",
        times.len(),
        at(0.5),
        at(0.99)
    );
    node.rctl_within(START, &["service", "rm", "many"]).ok();
}

/// Until no change has been seen for a moment.
fn quiet(monitors: &[Monitor]) {
    for monitor in monitors {
        while monitor.seen.recv_timeout(Duration::from_millis(300)).is_ok() {}
    }
}
