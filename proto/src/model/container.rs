//! One container as `run` and `service` both describe it.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// How long a replica's connections are waited for where nothing else was said.
pub const DEFAULT_DRAIN_MS: u64 = 5_000;

/// What runs: image, process, environment and limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerSpec {
    /// The reference in its full form: `docker.io/library/nginx:latest`.
    pub image: String,
    /// The manifest digest that the reference was resolved to, once: `sha256:…`.
    pub image_digest: Option<String>,
    /// Replaces the image's ENTRYPOINT where not empty.
    pub entrypoint: Vec<String>,
    /// Replaces the image's CMD where not empty.
    pub args: Vec<String>,
    /// `NAME=value` in order; a later one wins.
    pub env: Vec<String>,
    /// Replaces the image's WORKDIR.
    pub workdir: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`; replaces the image's USER.
    pub user: Option<String>,
    /// The host name inside; the container's own name where absent.
    pub hostname: Option<String>,
    /// Folders and volumes of the node.
    pub mounts: Vec<Mount>,
    /// What the container can't exceed.
    pub limits: Resources,
    /// What the scheduler keeps free for it.
    pub reservations: Resources,
    /// Mounts the root filesystem read-only.
    pub read_only: bool,
    /// Capabilities added to the default set.
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default set.
    pub cap_drop: Vec<String>,
    /// Name or number of the signal that asks it to end; the image's, else SIGTERM, where absent.
    pub stop_signal: Option<String>,
    /// How long it may take after that signal before SIGKILL.
    pub stop_grace_ms: u64,
    /// Labels of the container.
    pub labels: BTreeMap<String, String>,
    /// Runs an init process that reaps and forwards signals.
    pub init: bool,
    /// Namespaced kernel parameters.
    pub sysctls: BTreeMap<String, String>,
    /// Gives the process a terminal.
    pub tty: bool,
    /// Keeps standard input open for those who attach.
    pub open_stdin: bool,
    /// How it is told whether the container is well; absent: as its image says.
    pub health: Option<HealthCheck>,
    /// How long a replica's connections are waited for after it has left the balancers; absent: the default.
    pub drain_ms: Option<u64>,
    /// How it asks for names.
    pub dns: DnsSpec,
}

/// A health check, as far as a user says it: what is 0 or absent is as the image says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked; absent: the image's command.
    pub probe: Option<Probe>,
    /// Between the end of one probe and the next.
    pub interval_ms: u64,
    /// A probe that takes longer has failed.
    pub timeout_ms: u64,
    /// So long after the start a failure does not count.
    pub start_period_ms: u64,
    /// The interval while that lasts.
    pub start_interval_ms: u64,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
    /// What becomes of it then; absent: a replica is restarted by its service's policy, a plain container goes on.
    pub on_unhealthy: Option<OnUnhealthy>,
}

/// What becomes of a container that its check calls unhealthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnhealthy {
    /// It is restarted, whatever the restart policy says.
    Restart,
    /// It goes on; a replica gets no traffic until it is well again.
    Keep,
}

/// How a container is asked whether it is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Not at all, whatever the image says.
    None,
    /// By a command in the container: exit code 0 means well.
    Command {
        /// Program and arguments.
        args: Vec<String>,
        /// `args` is one text for the image's shell.
        shell: bool,
    },
    /// By a GET of the node: a status of 200 to 399 means well.
    Http {
        /// The container's.
        port: u16,
        /// Begins with `/`.
        path: String,
    },
    /// By a connection of the node.
    Tcp {
        /// The container's.
        port: u16,
    },
}

/// How a container asks for names beside those of its networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsSpec {
    /// Resolvers, asked in this order in place of the node's.
    pub servers: Vec<IpAddr>,
    /// Domains that are tried behind a name.
    pub search: Vec<String>,
    /// As resolv.conf(5) has them.
    pub options: Vec<String>,
}

/// Amounts of what a node has; 0 means none asked for, or no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// Billionths of a core.
    pub nano_cpus: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// Where a mount's content comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    /// A path of the node.
    Bind,
    /// A named volume of the node.
    Volume,
    /// Memory.
    Tmpfs,
}

/// One mount inside the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where the content comes from.
    pub kind: MountKind,
    /// The path on the node, or the volume's name; empty for tmpfs.
    pub source: String,
    /// The absolute path inside.
    pub target: String,
    /// Refuses writes.
    pub read_only: bool,
    /// 0 means half of the memory.
    pub tmpfs_size_bytes: u64,
}
