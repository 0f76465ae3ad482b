//! The types that callers give and get.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where a [`Runtime`] keeps what it knows and what it starts.
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// Sockets and state of running containers, such as `/run/rorqual/n1/containers`. On a tmpfs; gone after a reboot,
    /// as the containers are.
    pub runtime_dir: PathBuf,
    /// The parent group of all containers of this node, on every hierarchy, such as `rorqual-n1`.
    pub cgroup_parent: String,
    /// The `rorqual-runtime` executable, which is run as the monitor.
    pub binary: PathBuf,
}

/// What the machine offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Processors that this process may use, in billionths (2 CPUs: 2,000,000,000).
    pub nano_cpus: u64,
    /// Physical memory.
    pub memory_bytes: u64,
    /// The kernel's release, such as `6.12.0`.
    pub kernel: String,
    /// The architecture in the words of OCI images: `amd64`, `arm64`.
    pub arch: String,
    /// Which control groups are mounted.
    pub cgroup: CgroupVersion,
}

/// How the machine mounts its control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One hierarchy, `/sys/fs/cgroup` is a cgroup2.
    V2,
    /// A hierarchy per controller.
    V1,
    /// v1 controllers, and a cgroup2 without them beside it.
    Hybrid,
}

/// A container to start.
#[derive(Clone, Debug)]
pub struct Launch {
    /// 1 to 128 letters, digits, `_`, `.`, `-`.
    pub id: String,
    /// The container's own directory: `config.json`, log files and `exit.json` come here. Has to exist.
    pub dir: PathBuf,
    /// What to run; [`crate::spec::default_spec`] makes one. `root.path` is not looked at, `rootfs` counts.
    pub spec: oci_spec::runtime::Spec,
    /// The file system it runs in.
    pub rootfs: Rootfs,
    /// `nginx`, `nginx:adm`, `1000`, `1000:1000`: looked up in the container's own passwd and group files. `None`:
    /// `spec.process.user`.
    pub user: Option<String>,
    /// How much of its output is kept.
    pub log: LogPolicy,
    /// Whether standard input is kept open for those who attach; else the program reads nothing. A terminal always is.
    pub stdin: bool,
}

/// How much of a container's output is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPolicy {
    /// A file is rotated before it grows beyond this.
    pub max_bytes: u64,
    /// How many files there are, the one being written included; at least 1.
    pub max_files: u32,
}

impl Default for LogPolicy {
    fn default() -> Self {
        LogPolicy { max_bytes: 10 << 20, max_files: 3 }
    }
}

/// The root file system of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rootfs {
    /// A folder, used as it is.
    Directory(PathBuf),
    /// Layers, mounted inside the container's own mount namespace: the host's mount table does not see it.
    Overlay {
        /// Read-only layers, the topmost first.
        lowers: Vec<PathBuf>,
        /// Where the container's changes go.
        upper: PathBuf,
        /// Overlayfs' work folder: empty, on the same file system as `upper`.
        work: PathBuf,
    },
}

/// A further program for a container that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The program and its arguments; not empty.
    pub args: Vec<String>,
    /// `NAME=value`, on top of the container's own.
    pub env: Vec<String>,
    /// The working directory; `None`: the container's.
    pub cwd: Option<String>,
    /// As [`Launch::user`]; `None`: the container's.
    pub user: Option<String>,
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// The terminal's first size: characters in a line, lines.
    pub size: Option<(u16, u16)>,
    /// Whether it gets standard input; else it reads nothing.
    pub stdin: bool,
}

/// A container that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// The first process of the container, as the host sees it.
    pub pid: i32,
    /// When it was executed, in milliseconds since 1970.
    pub started_at_ms: i64,
}

/// How a container ended. Written to `exit.json` in the container's directory, and sent to watchers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// The exit code; 128+n for signal n.
    pub code: i32,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of the container because its memory limit was reached.
    pub oom_killed: bool,
    /// When the first process ended, in milliseconds since 1970.
    pub finished_at_ms: i64,
}

/// What is known of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Its monitor is setting it up (seen by another `Runtime` than the one that launches it).
    Starting,
    /// It runs.
    Running(Started),
    /// It has ended, and its end is on disk.
    Exited(ExitStatus),
    /// Its monitor died without recording an end. The kernel killed the container with it; `delete` takes away
    /// whatever is left.
    Lost,
    /// No container of that id is known here.
    Unknown,
}

/// What a container uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Memory in use without the page cache that could be dropped at once (as `docker stats` counts).
    pub memory_bytes: u64,
    /// The memory limit, if one is set.
    pub memory_limit_bytes: Option<u64>,
    /// Processor time used since the start, all CPUs together.
    pub cpu_ns: u64,
    /// Processes and threads.
    pub pids: u64,
    /// How often the kernel killed a process of the container for want of memory.
    pub oom_kills: u64,
}
