//! Two ways against each other on one processor: how many requests it answers is then what a request costs, where on several
//! it is as much a matter of who waits for whom where. Both take turns so short that they have the same machine: two wrk run
//! all the time, and one of them is stopped while the other works.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rorqual_tests::Node;

use crate::peers::{Peers, Rules};
use crate::{CONNECTIONS, System, headers};

/// The processor.
const PROCESSOR: usize = 1;
/// One of them runs for so long.
const TURN: Duration = Duration::from_millis(100);
/// For what is on its way when one is stopped.
const PAUSE: Duration = Duration::from_millis(5);
/// For the rules to change, in each turn.
const CHANGE: Duration = Duration::from_millis(50);
/// Turns of each with the same connections, where they are kept. Then both connect anew.
const TURNS: u32 = 10;
/// How often, in each round of the bench.
const TIMES: u32 = 3;
/// What the kernel counts of the node's TCP (/proc/net/snmp) and is one for each request: segments that came, where nothing
/// comes but answers, or connections.
const COUNTED: [(&str, &str); 2] = [("kept", "InSegs"), ("new", "ActiveOpens")];

/// A load that is stopped most of the time.
struct Load {
    program: Child,
    rules: Rules,
    name: &'static str,
    counted: &'static str,
}

impl Load {
    fn start(system: &System<'_>, seconds: u64, (kind, counted): (&str, &'static str)) -> Self {
        let url = format!("http://{}:{}/", system.address, system.port);
        let (processor, duration) = (PROCESSOR.to_string(), format!("{seconds}s"));
        let mut words = vec!["-c", &processor, "wrk", "-t", "1", "-c", CONNECTIONS, "-d", &duration];
        words.extend(headers(kind));
        words.push(&url);
        let mut command = system.from.exec_command("taskset");
        let program = command.args(words).stdout(Stdio::piped()).spawn().unwrap();
        Self { program, rules: system.rules, name: system.name, counted }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.program.id().try_into().unwrap()), signal).unwrap();
    }

    /// Answers in a second.
    fn run(&self, peers: &Peers) -> f64 {
        peers.switch(self.rules);
        let before = self.answers();
        let begin = Instant::now();
        self.signal(Signal::SIGCONT);
        std::thread::sleep(TURN);
        self.signal(Signal::SIGSTOP);
        let ran = begin.elapsed();
        std::thread::sleep(PAUSE);
        (self.answers() - before) as f64 / ran.as_secs_f64()
    }

    fn answers(&self) -> u64 {
        let path = format!("/proc/{}/net/snmp", self.program.id());
        let text = std::fs::read_to_string(path).unwrap();
        let mut lines = text.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_whitespace);
        let (mut names, mut numbers) = (lines.next().unwrap(), lines.next().unwrap());
        let at = names.position(|name| name == self.counted).unwrap();
        numbers.nth(at).unwrap().parse().unwrap()
    }

    fn end(self, peers: &Peers) {
        peers.switch(self.rules);
        self.signal(Signal::SIGCONT);
        let said = self.program.wait_with_output().unwrap().stdout;
        let said = String::from_utf8(said).unwrap();
        // A connection that nginx closes, as it does after 1,000 requests, while its load is stopped can be an error of wrk's.
        assert!(!said.contains("Non-2xx") && said.contains("Requests/sec"), "{}: {said}", self.name);
    }
}

/// Ours and its peer on a node whose replicas take part; says a RESULT line for each kind of connections.
pub(crate) fn measure(peers: &Peers, node: &Node, of: [&System<'_>; 2], rounds: u32) -> Vec<String> {
    let mut one = CpuSet::new();
    one.set(PROCESSOR).expect("two processors");
    let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
    keep(node, &one);
    let lines = COUNTED.map(|kind| {
        // What one of them has translated is in the way of the other where ports come again soon.
        peers.set(Rules::None);
        let pairs: Vec<[f64; 2]> = (0..rounds * TIMES).flat_map(|_| compare(peers, of, kind)).collect();
        result(kind.0, &pairs)
    });
    keep(node, &all);
    lines.to_vec()
}

fn result(kind: &str, pairs: &[[f64; 2]]) -> String {
    let shares = sorted(pairs.iter().map(|[ours, peer]| ours / peer));
    let middle = |at: usize| sorted(pairs.iter().map(|pair| pair[at]))[pairs.len() / 2];
    format!(
        "RESULT balance_cost_{kind} ours={:.0} peer={:.0} ratio={:.3} unit=requests/s of one processor; {} pairs of turns, half \
         of them from {:.3} to {:.3}",
        middle(0),
        middle(1),
        shares[shares.len() / 2],
        shares.len(),
        shares[shares.len() / 4],
        shares[shares.len() * 3 / 4],
    )
}

fn sorted(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut all: Vec<f64> = numbers.collect();
    all.sort_by(f64::total_cmp);
    all
}

/// The processors of the replicas' programs.
fn keep(node: &Node, to: &CpuSet) {
    for pid in node.container_processes().into_keys() {
        sched_setaffinity(Pid::from_raw(pid.try_into().unwrap()), to).unwrap();
    }
}

fn compare(peers: &Peers, of: [&System<'_>; 2], kind: (&str, &'static str)) -> Vec<[f64; 2]> {
    let seconds = ((TURN + PAUSE + CHANGE) * 2 * (TURNS + 1)).as_secs() + 1;
    let begin = Instant::now();
    let loads = of.map(|system| {
        peers.switch(system.rules);
        let load = Load::start(system, seconds, kind);
        load.run(peers);
        load
    });
    let [ours, peer] = &loads;
    // Who comes first takes turns too.
    let turn = |turn| {
        if turn % 2 == 0 {
            let first = ours.run(peers);
            [first, peer.run(peers)]
        } else {
            let first = peer.run(peers);
            [ours.run(peers), first]
        }
    };
    let pairs = (0..TURNS).map(turn).collect();
    // Each ends as soon as its time is over and it runs.
    std::thread::sleep(Duration::from_secs(seconds).saturating_sub(begin.elapsed()) + PAUSE);
    loads.into_iter().for_each(|load| load.end(peers));
    pairs
}
