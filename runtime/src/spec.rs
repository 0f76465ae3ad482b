//! Makes the OCI specification of a container from few settings, with Docker's defaults.

use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr;

use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxCapabilities, LinuxCpuBuilder, LinuxMemoryBuilder, LinuxNamespace,
    LinuxNamespaceType, LinuxPidsBuilder, LinuxResources, Mount, PosixRlimit, PosixRlimitBuilder,
    PosixRlimitType, Process, Root, Spec, User,
};

use crate::error::LaunchError;
use crate::plan::DEFAULT_PATH;
use crate::plan::capabilities;

/// The annotation that asks for the built-in seccomp profile, which is not spelt out in every `config.json`: it is a
/// program in a fraction of the time that some 400 names take to be read.
pub const SECCOMP_ANNOTATION: &str = "rorqual.runtime.seccomp";

/// The one value of [`SECCOMP_ANNOTATION`].
pub const SECCOMP_DEFAULT: &str = "default";

/// What a caller decides; everything else is Docker's default (and `noNewPrivileges` is set).
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
    /// Whether the process gets a terminal; TERM is added if it is missing.
    pub terminal: bool,
    /// Whether the root file system is read-only.
    pub read_only_rootfs: bool,
    /// Mounts beyond the default ones, in the order given. One on the place of a default mount replaces it.
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
    /// Resource limits of processes: name (`nofile`), soft, hard. Raising a hard limit takes CAP_SYS_RESOURCE.
    pub rlimits: Vec<(String, u64, u64)>,
    /// Added to the score by which the kernel picks whom to kill when the whole machine is short of memory.
    pub oom_score_adj: Option<i32>,
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

/// Docker's default capabilities.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SYS_CHROOT",
    "MKNOD",
    "AUDIT_WRITE",
    "SETFCAP",
];

const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// (destination, type, source, options)
const MOUNTS: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    ),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]),
];

/// A mount of a host's file or folder into a container.
#[must_use]
pub fn bind_mount(source: impl Into<PathBuf>, destination: impl Into<PathBuf>, read_only: bool) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination.into());
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(source.into()));
    let mode: &[&str] =
        if read_only { &["rbind", "rprivate", "ro", "rro"] } else { &["rbind", "rprivate", "rw"] };
    mount.set_options(Some(mode.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

/// A mount of an empty file system in memory.
#[must_use]
pub fn tmpfs_mount(destination: impl Into<PathBuf>, size_bytes: Option<u64>) -> Mount {
    let mut options: Vec<String> = ["nosuid", "nodev", "noexec", "mode=1777"].map(str::to_owned).to_vec();
    options.extend(size_bytes.map(|size| format!("size={size}")));
    let mut mount = Mount::default();
    mount.set_destination(destination.into());
    mount.set_typ(Some("tmpfs".to_owned()));
    mount.set_source(Some("tmpfs".into()));
    mount.set_options(Some(options));
    mount
}

/// The specification for these settings. Fails on a capability or resource limit whose name is not known.
pub fn default_spec(settings: &ContainerSettings) -> Result<Spec, LaunchError> {
    let mut spec = Spec::default();
    spec.set_version("1.2.0".to_owned());
    spec.set_root(Some(root(settings.read_only_rootfs)));
    spec.set_hostname(Some(settings.hostname.clone()).filter(|name| !name.is_empty()));
    spec.set_mounts(Some(mounts(settings)));
    spec.set_process(Some(process(settings)?));
    spec.set_linux(Some(linux(settings)));
    let annotation = (SECCOMP_ANNOTATION.to_owned(), SECCOMP_DEFAULT.to_owned());
    spec.set_annotations(Some(HashMap::from([annotation])));
    Ok(spec)
}

fn root(read_only: bool) -> Root {
    let mut root = Root::default();
    root.set_path("rootfs".into());
    root.set_readonly(Some(read_only));
    root
}

fn mounts(settings: &ContainerSettings) -> Vec<Mount> {
    let replaced = |place: &str| settings.mounts.iter().any(|mount| mount.destination().as_os_str() == place);
    let defaults =
        MOUNTS.iter().filter(|(place, ..)| !replaced(place)).map(|(place, typ, source, options)| {
            let mut mount = Mount::default();
            mount.set_destination(PathBuf::from(place));
            mount.set_typ(Some((*typ).to_owned()));
            mount.set_source(Some(PathBuf::from(source)));
            mount.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
            mount
        });
    defaults.chain(settings.mounts.iter().cloned()).collect()
}

fn process(settings: &ContainerSettings) -> Result<Process, LaunchError> {
    let mut env = settings.env.clone();
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    if !settings.hostname.is_empty() && !env.iter().any(|entry| entry.starts_with("HOSTNAME=")) {
        env.push(format!("HOSTNAME={}", settings.hostname));
    }
    if settings.terminal && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    let cwd = if settings.cwd.is_empty() { "/" } else { &settings.cwd };
    let mut process = Process::default();
    process.set_terminal(Some(settings.terminal));
    process.set_user(User::default());
    process.set_args(Some(settings.args.clone()));
    process.set_env(Some(env));
    process.set_cwd(cwd.into());
    process.set_no_new_privileges(Some(true));
    process.set_capabilities(Some(capability_sets(settings)?));
    process.set_rlimits(Some(rlimits(settings)?).filter(|limits| !limits.is_empty()));
    process.set_oom_score_adj(settings.oom_score_adj);
    Ok(process)
}

/// Inheritable and ambient stay empty: what is in them would be kept by programs that should not have it.
fn capability_sets(settings: &ContainerSettings) -> Result<LinuxCapabilities, LaunchError> {
    let known = |field: &str, name: &str| {
        capabilities::number(name).map(|number| capabilities::NAMES[number as usize]).ok_or_else(|| {
            LaunchError::InvalidSpec {
                field: field.to_owned(),
                reason: format!("{name:?} is not a capability"),
            }
        })
    };
    let is_all = |name: &String| name.eq_ignore_ascii_case("all") || name.eq_ignore_ascii_case("cap_all");
    let mut names: Vec<&str> = if settings.cap_drop.iter().any(is_all) {
        Vec::new()
    } else if settings.cap_add.iter().any(is_all) {
        capabilities::NAMES.to_vec()
    } else {
        DEFAULT_CAPABILITIES.to_vec()
    };
    for name in settings.cap_drop.iter().filter(|name| !is_all(name)) {
        let dropped = known("cap_drop", name)?;
        names.retain(|name| *name != dropped);
    }
    for name in settings.cap_add.iter().filter(|name| !is_all(name)) {
        names.push(known("cap_add", name)?);
    }
    let set: Capabilities = names.iter().filter_map(|name| Capability::from_str(name).ok()).collect();
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set.clone()));
    sets.set_effective(Some(set.clone()));
    sets.set_permitted(Some(set));
    sets.set_inheritable(None);
    sets.set_ambient(None);
    Ok(sets)
}

fn rlimits(settings: &ContainerSettings) -> Result<Vec<PosixRlimit>, LaunchError> {
    let mut limits = Vec::new();
    for (name, soft, hard) in &settings.rlimits {
        let full = format!("RLIMIT_{}", name.to_ascii_uppercase());
        let typ = PosixRlimitType::from_str(&full).map_err(|_| LaunchError::InvalidSpec {
            field: "rlimits".to_owned(),
            reason: format!(
                "{name:?} is not a resource limit: nofile, nproc, core, stack and their like are"
            ),
        })?;
        // All three are given, so the builder has nothing to miss.
        limits.extend(PosixRlimitBuilder::default().typ(typ).soft(*soft).hard(*hard).build());
    }
    Ok(limits)
}

fn linux(settings: &ContainerSettings) -> Linux {
    use LinuxNamespaceType as Type;
    let namespaces = [Type::Pid, Type::Network, Type::Ipc, Type::Uts, Type::Mount, Type::Cgroup].map(|typ| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ);
        namespace.set_path(settings.netns_path.clone().filter(|_| typ == Type::Network));
        namespace
    });
    let strings = |list: &[&str]| Some(list.iter().map(|text| (*text).to_owned()).collect());
    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces.to_vec()));
    linux.set_resources(Some(resources(&settings.limits)));
    linux.set_cgroups_path(
        Some(PathBuf::from(&settings.cgroups_path)).filter(|path| !path.as_os_str().is_empty()),
    );
    linux.set_masked_paths(strings(&MASKED));
    linux.set_readonly_paths(strings(&READ_ONLY));
    linux.set_sysctl(
        Some(settings.sysctls.iter().cloned().collect()).filter(|map: &HashMap<_, _>| !map.is_empty()),
    );
    linux
}

fn resources(limits: &Limits) -> LinuxResources {
    let mut resources = LinuxResources::default();
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    if let Some(limit) = limits.memory_bytes {
        let swap = limits.memory_swap_bytes.unwrap_or_else(|| limit.saturating_mul(2));
        let memory = LinuxMemoryBuilder::default().limit(bytes(limit)).swap(bytes(swap)).build();
        resources.set_memory(memory.ok());
    }
    if limits.nano_cpus.is_some() || limits.cpu_shares.is_some() {
        const PERIOD_US: u64 = 100_000;
        let mut cpu = LinuxCpuBuilder::default();
        if let Some(nano_cpus) = limits.nano_cpus {
            // The kernel takes no quota below 1 ms.
            let quota_us = (u128::from(nano_cpus) * u128::from(PERIOD_US) / 1_000_000_000).max(1000);
            cpu = cpu.period(PERIOD_US).quota(i64::try_from(quota_us).unwrap_or(-1));
        }
        if let Some(shares) = limits.cpu_shares {
            cpu = cpu.shares(shares);
        }
        resources.set_cpu(cpu.build().ok());
    }
    if let Some(pids) = limits.pids {
        resources.set_pids(LinuxPidsBuilder::default().limit(bytes(pids)).build().ok());
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(settings: &ContainerSettings) -> Vec<String> {
        let sets = capability_sets(settings).unwrap();
        let mut names: Vec<String> = sets.bounding().iter().flatten().map(ToString::to_string).collect();
        names.sort();
        names
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let settings = |add: &[&str], drop: &[&str]| ContainerSettings {
            cap_add: add.iter().map(|name| (*name).to_owned()).collect(),
            cap_drop: drop.iter().map(|name| (*name).to_owned()).collect(),
            ..ContainerSettings::default()
        };
        assert_eq!(names(&settings(&[], &[])).len(), 14);
        assert_eq!(names(&settings(&["net_admin"], &["ALL"])), ["NET_ADMIN"]);
        assert_eq!(names(&settings(&["ALL"], &["CAP_SYS_ADMIN"])).len(), 40);
        assert!(capability_sets(&settings(&["FLYING"], &[])).is_err());
    }

    #[test]
    fn a_mount_of_the_caller_replaces_the_default_one() {
        let mounts = vec![tmpfs_mount("/dev/shm", Some(1 << 20))];
        let spec = default_spec(&ContainerSettings { mounts, ..ContainerSettings::default() }).unwrap();
        let places =
            spec.mounts().as_ref().unwrap().iter().filter(|mount| mount.destination().ends_with("shm"));
        assert_eq!(places.count(), 1);
    }

    #[test]
    fn half_a_cpu_is_half_the_period() {
        let resources = resources(&Limits { nano_cpus: Some(500_000_000), ..Limits::default() });
        assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(50_000));
    }
}
