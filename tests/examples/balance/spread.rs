//! How long after a replica's end the balancers of all nodes are without it.

use std::time::{Duration, Instant};

use rorqual_tests::{Lab, Node, images};

use crate::SOON;
use crate::rules::Ear;

/// For many replicas to start.
const START: Duration = Duration::from_secs(600);

/// Nothing happens to the rules for so long before a replica is killed.
const QUIET: Duration = Duration::from_millis(300);

/// Kills `kills` of the replicas one after the other.
pub(crate) fn measure(lab: &Lab, endpoints: usize, kills: usize) {
    let node = lab.node(1);
    node.load(&images::archive("busybox"));
    let count = endpoints.to_string();
    let create = ["service", "create", "--name", "many", "--replicas", &count, "--publish", "8081:80"];
    // What is killed does not come back: each kill is one change.
    let rest =
        ["--restart-condition", "none", "--stop-signal", "SIGKILL", images::BUSYBOX, "sleep", "100000"];
    node.rctl_within(START, &[&create[..], &rest].concat()).ok();
    let replicas = replicas(node, endpoints);
    let ears: Vec<Ear> = lab.nodes().iter().map(Ear::start).collect();
    let mut times = Vec::new();
    for Replica { id, address, node } in replicas.iter().step_by((endpoints / kills).max(1)).take(kills) {
        let own = lab.nodes().iter().find(|own| own.hostname() == *node).unwrap();
        let pid = nix::unistd::Pid::from_raw(own.task_pid(id).unwrap().try_into().unwrap());
        ears.iter().for_each(|ear| ear.forget(QUIET));
        let killed = Instant::now();
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        let last = ears.iter().map(|ear| ear.next(SOON).expect("no change of rules")).max().unwrap();
        times.push(last.saturating_duration_since(killed).as_secs_f64() * 1000.0);
        // What was heard was that, and not something else.
        for node in lab.nodes() {
            assert!(!leads_to(node, address), "{id} is dead, and n{} still leads to {address}", node.number);
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    println!(
        "RESULT spread endpoints={endpoints} kills={} p50_ms={:.1} p99_ms={:.1} max_ms={:.1} (from SIGKILL to the rules of \
         three nodes)",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    drop(ears);
    node.rctl_within(START, &["service", "rm", "many"]).ok();
}

struct Replica {
    id: String,
    address: String,
    node: String,
}

fn replicas(node: &Node, count: usize) -> Vec<Replica> {
    let tasks = node.try_json(&["service", "ps", "many"]).unwrap();
    let text = |task: &serde_json::Value, field: &str| task[field].as_str().unwrap().to_owned();
    let running =
        tasks.iter().filter(|task| text(task, "CurrentState").to_lowercase().starts_with("running"));
    let replicas: Vec<Replica> = running
        .map(|task| Replica {
            id: text(task, "ID"),
            address: text(task, "Address"),
            node: text(task, "Node"),
        })
        .collect();
    assert_eq!(replicas.len(), count);
    replicas
}

/// Whether an address stands anywhere in a node's rules.
fn leads_to(node: &Node, address: &str) -> bool {
    let rules = node.exec("nft", &["list", "ruleset"]).ok();
    // Without the interfaces and addresses that packets have added.
    let rules: String = rules.lines().filter(|line| !line.contains("\" . ")).collect();
    rules.split(|letter: char| !letter.is_ascii_digit() && !"./".contains(letter)).any(|word| word == address)
}
