//! One node of a lab, from outside: its command line, its processes, its files.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::lab::{places, read_or_empty};
use crate::{Output, bin_dir, command, host, view};

/// For a command that waits until the cluster has done what it says.
const RCTL_DEADLINE: Duration = Duration::from_secs(60);

/// A node of a lab.
#[derive(Debug, Clone)]
pub struct Node {
    /// Counts from 1; node 3 has the host name `n3`.
    pub number: usize,
    /// At which the machine and the other nodes reach it.
    pub address: Ipv4Addr,
    socket: PathBuf,
    lab: String,
}

impl Node {
    /// From a line of `deploy/lab up`: `n1 10.77.5.11 /run/…/rorquald.sock`.
    pub(crate) fn from_listing(lab: &str, line: &str) -> Self {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, address, socket] = words[..] else { panic!("not a node: {line:?}") };
        Self {
            number: name.trim_start_matches('n').parse().unwrap(),
            address: address.parse().unwrap(),
            socket: PathBuf::from(socket),
            lab: lab.to_owned(),
        }
    }

    /// The host name: `n1`.
    pub fn hostname(&self) -> String {
        format!("n{}", self.number)
    }

    /// A port of the node.
    pub fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address.into(), port)
    }

    /// The machine's own address in the lab: what a replica sees as the client of the tests' requests.
    pub fn machine(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.address.octets();
        Ipv4Addr::new(a, b, c, 1)
    }

    /// `rctl ARGS` on this node.
    #[track_caller]
    pub fn rctl<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        self.rctl_within(RCTL_DEADLINE, args)
    }

    /// `rctl ARGS` on this node, with another deadline.
    #[track_caller]
    pub fn rctl_within<S: AsRef<OsStr>>(&self, deadline: Duration, args: &[S]) -> Output {
        command::run(self.rctl_command().args(args), deadline)
    }

    /// `rctl` on this node, for a test to run by itself.
    pub fn rctl_command(&self) -> Command {
        let mut command = Command::new(bin_dir().join("rctl"));
        // The socket is a file, so no namespace has to be entered.
        command.env("RORQUAL_SOCKET", &self.socket);
        command
    }

    /// A program in the node's network namespace.
    #[track_caller]
    pub fn exec(&self, program: &str, args: &[&str]) -> Output {
        let mut command = self.exec_command(program);
        command::run(command.args(args), RCTL_DEADLINE)
    }

    /// A program in the node's network namespace, for a test to run by itself.
    pub fn exec_command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace().display())).args(["--", program]);
        command
    }

    /// The node's network namespace.
    pub fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/rq-{}-{}", self.lab, self.number))
    }

    /// `rctl ARGS --format json`, or why not: for conditions that may not hold yet.
    pub fn try_json(&self, args: &[&str]) -> Result<Vec<serde_json::Value>, String> {
        let output = self.rctl(&[args, &["--format", "json"]].concat());
        if output.code == 0 { Ok(output.json()) } else { Err(output.tell()) }
    }

    /// The cluster's nodes, as this one tells.
    pub fn nodes(&self) -> Result<Vec<view::NodeView>, String> {
        self.try_json(&["node", "ls"])?.iter().map(view::NodeView::read).collect()
    }

    /// The tasks of a service, as this node tells.
    pub fn tasks(&self, service: &str) -> Result<Vec<view::Task>, String> {
        self.try_json(&["service", "ps", service])?.iter().map(view::Task::read).collect()
    }

    /// The tasks of a service that run, are meant to, and get traffic.
    pub fn running(&self, service: &str) -> Result<Vec<view::Task>, String> {
        let mut tasks = self.tasks(service)?;
        tasks.retain(|task| task.balanced && task.desired == "running");
        Ok(tasks)
    }

    /// The containers of this node, ended ones too.
    pub fn containers(&self) -> Result<Vec<view::Container>, String> {
        self.try_json(&["ps", "--all"])?.iter().map(view::Container::read).collect()
    }

    /// The first process of a container of this node, as the machine sees it.
    pub fn container_pid(&self, id: &str) -> Result<u32, String> {
        let mut inside = self.container_processes();
        inside.retain(|pid, _| host::is_first_process(*pid) && host::cgroup_has(*pid, id));
        match inside.keys().copied().collect::<Vec<_>>()[..] {
            [pid] => Ok(pid),
            _ => Err(format!("container {id} on n{} has the first processes {inside:?}", self.number)),
        }
    }

    /// The first process of a task that runs on this node.
    pub fn task_pid(&self, task_id: &str) -> Result<u32, String> {
        let containers = self.containers()?;
        let of_task =
            |one: &&view::Container| one.task_id.as_deref() == Some(task_id) && one.state == "running";
        let container = containers.iter().find(of_task).ok_or_else(|| format!("{containers:?}"))?;
        self.container_pid(&container.id)
    }

    /// The pid of the node's daemon, if it runs.
    pub fn daemon_pid(&self) -> Option<u32> {
        let record = fs::read_to_string(self.run_dir().join("daemon.pid")).ok()?;
        let (pid, start) = record.trim().split_once(' ')?;
        let pid = pid.parse().ok()?;
        (host::start_ticks(pid)? == start).then_some(pid)
    }

    /// The processes in the node's containers, by pid; the value says which process had that pid.
    /// Their monitors are not among them.
    pub fn container_processes(&self) -> BTreeMap<u32, String> {
        let parent = self.cgroup();
        host::processes_where(|path| path.contains(&parent) && !path.contains("/.monitors/"))
    }

    /// The processes that watch over the node's containers.
    pub fn monitors(&self) -> BTreeMap<u32, String> {
        let group = format!("{}.monitors/", self.cgroup());
        host::processes_where(|path| path.contains(&group))
    }

    /// The node's group on every hierarchy, as it stands in `/proc/PID/cgroup`.
    fn cgroup(&self) -> String {
        format!("/rorqual-{}-n{}/", self.lab, self.number)
    }

    /// The daemon's log so far.
    pub fn log(&self) -> String {
        read_or_empty(self.log_path())
    }

    /// Where the daemon's log is.
    pub fn log_path(&self) -> PathBuf {
        self.data_dir().join("rorquald.log")
    }

    /// The node's disk.
    pub fn data_dir(&self) -> PathBuf {
        self.place(0)
    }

    /// The node's sockets and pid files.
    pub fn run_dir(&self) -> PathBuf {
        self.place(1)
    }

    /// Loads an image archive and returns the references that it brought.
    #[track_caller]
    pub fn load(&self, archive: &Path) -> String {
        self.rctl(&[OsStr::new("image"), OsStr::new("load"), OsStr::new("-i"), archive.as_os_str()]).ok()
    }

    fn place(&self, which: usize) -> PathBuf {
        places(&self.lab)[which].join(self.hostname())
    }
}
