//! A cluster for one test: made by `deploy/lab`, taken away again whatever happens.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::host::Snapshot;
use crate::node::Node;
use crate::{Output, bin_dir, command, host, root, wait_until};

/// For `deploy/lab` to do one thing.
const LAB_DEADLINE: Duration = Duration::from_secs(60);

/// For nodes to be ready after they joined or came back.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// Labs made by this program, so that each has a name of its own.
static MADE: AtomicUsize = AtomicUsize::new(0);

/// Nodes on this machine, each with a `rorquald`. Call [`Lab::finish`] at the end: it looks for panics in
/// the logs and for what stayed behind. Dropped without that (a failed test), it shows the ends of the
/// logs and takes the nodes away, unless `RORQUAL_KEEP_LABS` is set.
pub struct Lab {
    name: String,
    nodes: Vec<Node>,
    before: Snapshot,
    down: bool,
}

impl Lab {
    /// Nodes that are in no cluster yet. The hint (up to 4 letters) becomes part of the lab's name.
    #[track_caller]
    pub fn up(hint: &str, nodes: usize) -> Self {
        Self::up_with(hint, nodes, &[])
    }

    /// The same with further arguments for each `rorquald`.
    #[track_caller]
    pub fn up_with(hint: &str, nodes: usize, daemon_args: &[&str]) -> Self {
        Self::up_at(hint, nodes, None, daemon_args)
    }

    /// The same, at a subnet (its first three bytes) that the daemons have to be told of. The machine's own address
    /// is its first.
    #[track_caller]
    pub fn up_at(hint: &str, nodes: usize, subnet: Option<&str>, daemon_args: &[&str]) -> Self {
        let options = subnet.map_or(vec![], |subnet| vec!["--subnet", subnet]);
        Self::make(hint, nodes, &options, daemon_args)
    }

    /// A cluster of so many controllers, from the third on on a segment of their own behind a router.
    #[track_caller]
    pub fn routed(hint: &str, nodes: usize) -> Self {
        let lab = Self::make(hint, nodes, &["--routed"], &[]);
        lab.form(nodes);
        lab
    }

    #[track_caller]
    fn make(hint: &str, nodes: usize, options: &[&str], daemon_args: &[&str]) -> Self {
        // Up to 12 letters: 4 + 6 (a pid in base 32 has up to 5) + 2.
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("{hint}{}-{number}", base32(std::process::id()));
        let mut lab = Self { name, nodes: Vec::new(), before: Snapshot::take(), down: false };
        let mut up = lab_command();
        up.args(["up", &lab.name, &nodes.to_string(), "--bin-dir"]).arg(bin_dir());
        if let Some(runtime) = std::env::var_os("RORQUAL_RUNTIME").filter(|path| !path.is_empty()) {
            up.arg("--runtime-binary").arg(runtime);
        }
        up.args(options);
        if !daemon_args.is_empty() {
            up.arg("--").args(daemon_args);
        }
        let listing = command::run(&mut up, LAB_DEADLINE).ok();
        lab.nodes = listing.lines().map(|line| Node::from_listing(&lab.name, line)).collect();
        assert_eq!(lab.nodes.len(), nodes, "deploy/lab up said: {listing}");
        lab
    }

    /// A cluster of so many controllers, all ready.
    #[track_caller]
    pub fn cluster(hint: &str, nodes: usize) -> Self {
        let lab = Self::up(hint, nodes);
        lab.form(nodes);
        lab
    }

    /// Makes the nodes a cluster: the first so many become controllers, the others workers.
    #[track_caller]
    pub fn form(&self, controllers: usize) {
        let first = self.node(1);
        let address = first.address.to_string();
        first.rctl(&["cluster", "init", "--advertise", &address]).ok();
        for node in &self.nodes[1..] {
            let role = if node.number <= controllers { "controller" } else { "worker" };
            self.join(node.number, role);
        }
        self.wait_ready(self.nodes.len());
    }

    /// Makes a node join the cluster of node 1 (of node 2 for node 1 itself).
    #[track_caller]
    pub fn join(&self, number: usize, role: &str) {
        let door = if number == 1 { 2 } else { 1 };
        let token = self.node(door).rctl(&["cluster", "token", role, "--quiet"]).ok();
        let address = format!("{}:4780", self.node(door).address);
        self.node(number).rctl(&["cluster", "join", "--token", token.trim(), &address]).ok();
    }

    /// Until so many nodes are ready, and a leader is known.
    #[track_caller]
    pub fn wait_ready(&self, nodes: usize) {
        wait_until(&format!("{nodes} ready nodes"), READY_DEADLINE, || {
            let list = self.any_running().nodes()?;
            let ready = list.iter().filter(|node| node.state == "ready").count();
            let leaders = list.iter().filter(|node| node.leader).count();
            if ready == nodes && leaders == 1 { Ok(()) } else { Err(format!("{list:?}")) }
        });
    }

    /// The lab's name, as `deploy/lab` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A node; they count from 1.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node whose daemon runs.
    #[track_caller]
    pub fn any_running(&self) -> &Node {
        self.nodes.iter().find(|node| node.daemon_pid().is_some()).expect("no daemon runs")
    }

    /// The leader's number, as a running node other than `besides` knows it.
    #[track_caller]
    pub fn leader(&self) -> usize {
        wait_until("a leader", READY_DEADLINE, || {
            let list = self.any_running().nodes()?;
            let leader = list.iter().find(|node| node.leader).ok_or_else(|| format!("{list:?}"))?;
            let name = &leader.hostname;
            name.trim_start_matches('n').parse().map_err(|_| format!("leader is called {name}"))
        })
    }

    /// Kills a node's daemon (SIGKILL); its containers run on.
    #[track_caller]
    pub fn kill(&self, number: usize) {
        self.on_node("kill", number).ok();
    }

    /// Starts a node's daemon again.
    #[track_caller]
    pub fn start(&self, number: usize) {
        self.on_node("start", number).ok();
    }

    /// Starts a node's daemon with something in its environment.
    #[track_caller]
    pub fn start_with(&self, number: usize, environment: &[(&str, &str)]) {
        let mut start = lab_command();
        start.args(["start", &self.name, &number.to_string(), "--"]);
        start.args(environment.iter().map(|(name, value)| format!("{name}={value}")));
        command::run(&mut start, LAB_DEADLINE).ok();
    }

    /// Ends a node's daemon (SIGTERM); its containers run on.
    #[track_caller]
    pub fn stop(&self, number: usize) {
        self.on_node("stop", number).ok();
    }

    /// Takes everything of a node away but its disk, as a power cut does.
    #[track_caller]
    pub fn crash(&self, number: usize) {
        self.on_node("crash", number).ok();
    }

    /// Pulls a node's network cable.
    #[track_caller]
    pub fn cut(&self, number: usize) {
        self.on_node("cut", number).ok();
    }

    /// Puts it back.
    #[track_caller]
    pub fn heal(&self, number: usize) {
        self.on_node("heal", number).ok();
    }

    /// Gives a node another address: another last byte.
    #[track_caller]
    pub fn move_to(&mut self, number: usize, last: u8) {
        let arguments = ["move", &self.name, &number.to_string(), &last.to_string()];
        command::run(lab_command().args(arguments), LAB_DEADLINE).ok();
        let [a, b, c, _] = self.node(number).address.octets();
        self.nodes[number - 1].address = Ipv4Addr::new(a, b, c, last);
    }

    /// `deploy/lab COMMAND` on a node.
    #[track_caller]
    pub fn on_node(&self, command: &str, number: usize) -> Output {
        command::run(lab_command().args([command, &self.name, &number.to_string()]), LAB_DEADLINE)
    }

    /// No daemon has panicked so far.
    #[track_caller]
    pub fn assert_no_panic(&self) {
        for node in &self.nodes {
            let log = node.log();
            if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
                panic!("n{} panicked: {line}", node.number);
            }
        }
    }

    /// Ends the test's use of the lab: no daemon has panicked, the nodes go away, and nothing stays.
    #[track_caller]
    pub fn finish(mut self) {
        self.assert_no_panic();
        let down = command::run(lab_command().args(["down", &self.name]), LAB_DEADLINE);
        self.down = down.code == 0;
        down.ok();
        host::assert_nothing_left(&self.before, &self.name);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.down {
            return;
        }
        // A failed test: what the daemons said is what one looks at first.
        for node in &self.nodes {
            eprintln!(
                "── n{} (daemon {:?}), end of {}",
                node.number,
                node.daemon_pid(),
                node.log_path().display()
            );
            let log = node.log();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("{line}");
            }
        }
        if std::env::var_os("RORQUAL_KEEP_LABS").is_some() {
            eprintln!("kept: deploy/lab list; deploy/lab down {}", self.name);
            return;
        }
        match lab_command().args(["down", &self.name]).output() {
            Ok(output) if output.status.success() => {}
            other => eprintln!("deploy/lab down {}: {other:?}", self.name),
        }
    }
}

/// Where `deploy/lab` keeps a lab's disks and its sockets.
pub(crate) fn places(lab: &str) -> [PathBuf; 2] {
    [PathBuf::from("/var/lib/rorqual-lab").join(lab), PathBuf::from("/run/rorqual-lab").join(lab)]
}

/// A node's file, or nothing where it is not there.
pub(crate) fn read_or_empty(path: PathBuf) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn lab_command() -> Command {
    Command::new(root().join("deploy/lab"))
}

fn base32(mut number: u32) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let mut text = Vec::new();
    while number > 0 {
        text.push(DIGITS[(number % 32) as usize]);
        number /= 32;
    }
    text.reverse();
    String::from_utf8(text).unwrap()
}
