//! Container specs.

use std::collections::BTreeSet;

use super::{MAX_WAIT_MS, at_most, labels};
use crate::InvalidField;
use crate::model::{ContainerSpec, Mount, MountKind, Resources};

/// Less memory than this can't start a process with its kernel structures.
pub const MIN_MEMORY_BYTES: u64 = 6 * 1024 * 1024;

/// A thousandth of a core: the kernel's bandwidth control can't do less.
pub const MIN_NANO_CPUS: u64 = 1_000_000;

/// More cores than any machine has.
pub const MAX_NANO_CPUS: u64 = 8192 * 1_000_000_000;

/// The longest text of one argument or variable (MAX_ARG_STRLEN, execve(2)).
const MAX_TEXT: usize = 128 * 1024;

/// Arguments and variables together, well below the kernel's bound, so that a batch of tasks stays small.
const MAX_TEXTS: usize = 512 * 1024;

/// One container, as a service or a plain container describes it.
pub fn container_spec(spec: &ContainerSpec) -> Result<(), InvalidField> {
    image(spec)?;
    texts("entrypoint", &spec.entrypoint)?;
    texts("args", &spec.args)?;
    environment(&spec.env)?;
    if let Some(workdir) = &spec.workdir {
        absolute(workdir, "workdir")?;
    }
    if let Some(user) = &spec.user {
        user_name(user)?;
    }
    if let Some(hostname) = &spec.hostname {
        host_name(hostname)?;
    }
    mounts(&spec.mounts)?;
    resources(&spec.limits).map_err(|error| error.within("limits"))?;
    resources(&spec.reservations).map_err(|error| error.within("reservations"))?;
    within_limits(&spec.reservations, &spec.limits)?;
    capabilities("cap_add", &spec.cap_add)?;
    capabilities("cap_drop", &spec.cap_drop)?;
    if let Some(signal) = &spec.stop_signal {
        signal_number(signal).ok_or_else(|| {
            InvalidField::new("stop_signal", format!("`{signal}` is not a signal"))
                .remedy("give a name as SIGTERM or a number of 1 to 64")
        })?;
    }
    super::dns::dns(&spec.dns).map_err(|error| error.within("dns"))?;
    if spec.stop_grace_ms > MAX_WAIT_MS {
        let problem = format!("{} ms are too long: at most 24 h", spec.stop_grace_ms);
        return Err(InvalidField::new("stop_grace_ms", problem));
    }
    if let Some(ms) = spec.drain_ms.filter(|ms| *ms > MAX_WAIT_MS) {
        return Err(InvalidField::new("drain_ms", format!("{ms} ms are too long: at most 24 h")));
    }
    if let Some(check) = &spec.health {
        super::health::check(check).map_err(|error| error.within("health"))?;
    }
    labels(&spec.labels, "labels")?;
    sysctls(spec)
}

fn image(spec: &ContainerSpec) -> Result<(), InvalidField> {
    let bad = |c: char| c.is_whitespace() || c.is_control();
    if spec.image.is_empty() {
        return Err(InvalidField::new("image", "is missing").remedy("name the image to run"));
    }
    if spec.image.len() > 512 || spec.image.chars().any(bad) {
        return Err(InvalidField::new("image", format!("`{}` is not an image reference", spec.image)));
    }
    let Some(digest) = &spec.image_digest else { return Ok(()) };
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if hex.len() != 64 || !hex.bytes().all(lower_hex) {
        return Err(InvalidField::new("image_digest", format!("`{digest}` is not a digest"))
            .remedy("expected sha256: and 64 hexadecimal digits"));
    }
    Ok(())
}

pub(super) fn texts(path: &str, texts: &[String]) -> Result<(), InvalidField> {
    at_most(texts.len(), path)?;
    let sum: usize = texts.iter().map(|text| text.len() + 1).sum();
    if sum > MAX_TEXTS {
        return Err(InvalidField::new(path, format!("has {sum} bytes, at most {MAX_TEXTS} are allowed")));
    }
    match texts.iter().position(|text| text.contains('\0') || text.len() >= MAX_TEXT) {
        Some(index) => Err(InvalidField::new(
            format!("{path}[{index}]"),
            format!("contains a NUL or has more than {MAX_TEXT} bytes"),
        )),
        None => Ok(()),
    }
}

fn environment(env: &[String]) -> Result<(), InvalidField> {
    texts("env", env)?;
    match env.iter().position(|text| text.find('=').is_none_or(|at| at == 0)) {
        Some(index) => {
            Err(InvalidField::new(format!("env[{index}]"), format!("`{}` is not NAME=value", env[index])))
        }
        None => Ok(()),
    }
}

fn absolute(path: &str, field: &str) -> Result<(), InvalidField> {
    let problem = match path {
        path if path.contains('\0') || path.len() >= 4096 => "contains a NUL or is too long".to_owned(),
        path if !path.starts_with('/') => format!("`{path}` is not an absolute path"),
        path if path.split('/').any(|part| part == "..") => format!("`{path}` contains `..`"),
        _ => return Ok(()),
    };
    Err(InvalidField::new(field, problem).remedy("give the whole path, beginning with /"))
}

fn user_name(user: &str) -> Result<(), InvalidField> {
    let part = |text: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '$');
        (1..=256).contains(&text.len()) && text.chars().all(allowed)
    };
    let mut parts = user.split(':');
    let valid = parts.next().is_some_and(part) && parts.next().is_none_or(part) && parts.next().is_none();
    if valid {
        return Ok(());
    }
    Err(InvalidField::new("user", format!("`{user}` is not a user"))
        .remedy("give name, uid, name:group or uid:gid"))
}

fn host_name(name: &str) -> Result<(), InvalidField> {
    let label = |label: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
        (1..=63).contains(&label.len())
            && label.chars().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // The kernel's bound (uname(2)), not DNS's.
    if name.len() <= 64 && name.split('.').all(label) {
        return Ok(());
    }
    Err(InvalidField::new("hostname", format!("`{name}` is not a host name"))
        .remedy("use at most 64 of a–z, 0–9, `-` and `.`, with a letter or digit at both ends of each label"))
}

/// Mounts: absolute targets, none twice, and sources that fit their kind.
pub fn mounts(mounts: &[Mount]) -> Result<(), InvalidField> {
    at_most(mounts.len(), "mounts")?;
    let mut targets = BTreeSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        one_mount(mount).map_err(|error| error.within(&format!("mounts[{index}]")))?;
        if !targets.insert(mount.target.trim_end_matches('/')) {
            let problem = format!("two mounts on `{}`", mount.target);
            return Err(InvalidField::new(format!("mounts[{index}].target"), problem));
        }
    }
    Ok(())
}

fn one_mount(mount: &Mount) -> Result<(), InvalidField> {
    absolute(&mount.target, "target")?;
    if mount.target.trim_matches('/').is_empty() {
        return Err(InvalidField::new("target", "is the root itself").remedy("mount on a folder below /"));
    }
    match mount.kind {
        MountKind::Bind => absolute(&mount.source, "source")?,
        MountKind::Volume => volume_name(&mount.source)?,
        MountKind::Tmpfs if !mount.source.is_empty() => {
            let problem = format!("`{}`: a tmpfs has no source", mount.source);
            return Err(InvalidField::new("source", problem).remedy("leave it out"));
        }
        MountKind::Tmpfs => {}
    }
    if mount.kind != MountKind::Tmpfs && mount.tmpfs_size_bytes != 0 {
        return Err(InvalidField::new("tmpfs_size_bytes", "only a tmpfs has a size").remedy("leave it out"));
    }
    Ok(())
}

fn volume_name(name: &str) -> Result<(), InvalidField> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let valid = (1..=255).contains(&name.len())
        && name.chars().all(allowed)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if valid {
        return Ok(());
    }
    Err(InvalidField::new("source", format!("`{name}` is not the name of a volume"))
        .remedy("use letters, digits, `_`, `.` and `-`, beginning with a letter or digit"))
}

fn resources(resources: &Resources) -> Result<(), InvalidField> {
    let nano_cpus = resources.nano_cpus;
    if nano_cpus != 0 && !(MIN_NANO_CPUS..=MAX_NANO_CPUS).contains(&nano_cpus) {
        let problem = format!("{nano_cpus} billionths of a core are too few or too many");
        return Err(InvalidField::new("nano_cpus", problem).remedy("give 0.001 to 8192 cores"));
    }
    let memory = resources.memory_bytes;
    if memory != 0 && memory < MIN_MEMORY_BYTES {
        return Err(InvalidField::new("memory_bytes", format!("{memory} bytes are too few"))
            .remedy("give at least 6 MiB"));
    }
    if i64::try_from(memory).is_err() {
        return Err(InvalidField::new("memory_bytes", format!("{memory} bytes are more than there can be")));
    }
    // The kernel's bound on process ids, PID_MAX_LIMIT.
    if resources.pids > 1 << 22 {
        let problem = format!("{} are too many: at most {}", resources.pids, 1 << 22);
        return Err(InvalidField::new("pids", problem));
    }
    Ok(())
}

fn within_limits(reservations: &Resources, limits: &Resources) -> Result<(), InvalidField> {
    let pairs = [
        ("nano_cpus", reservations.nano_cpus, limits.nano_cpus),
        ("memory_bytes", reservations.memory_bytes, limits.memory_bytes),
    ];
    for (field, reserved, limit) in pairs {
        if limit != 0 && reserved > limit {
            let problem = format!("{reserved} is more than the limit, {limit}");
            return Err(InvalidField::new(format!("reservations.{field}"), problem)
                .remedy("reserve at most what the container may use"));
        }
    }
    if reservations.pids != 0 {
        return Err(InvalidField::new("reservations.pids", "process ids can't be reserved")
            .remedy("set limits.pids instead"));
    }
    Ok(())
}

/// Every capability that Linux has, capabilities(7), without CAP_.
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

fn capabilities(path: &str, names: &[String]) -> Result<(), InvalidField> {
    at_most(names.len(), path)?;
    for (index, name) in names.iter().enumerate() {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if bare != "ALL" && !CAPABILITIES.contains(&bare) {
            return Err(InvalidField::new(
                format!("{path}[{index}]"),
                format!("`{name}` is not a capability"),
            )
            .remedy("give a name of capabilities(7), as NET_ADMIN, or ALL"));
        }
    }
    Ok(())
}

/// Signals by name, without SIG, and their numbers on Linux (signal(7)).
pub const SIGNALS: [(&str, u8); 32] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("POLL", 29),
];

/// The number of a signal given as `SIGTERM`, `term`, `15`, `RTMIN+3` or `RTMAX-2`.
pub fn signal_number(text: &str) -> Option<u8> {
    if let Ok(number) = text.parse::<u8>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    // Real-time signals as glibc counts them: it keeps 32 and 33 for itself.
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => 34,
        (Some(offset), _) => 34_u8.checked_add(offset.strip_prefix('+')?.parse().ok()?)?,
        (_, Some("")) => 64,
        (_, Some(offset)) => 64_u8.checked_sub(offset.strip_prefix('-')?.parse().ok()?)?,
        _ => return None,
    };
    (34..=64).contains(&number).then_some(number)
}

/// Only what a container has of its own: the network and IPC namespaces' parameters.
fn sysctls(spec: &ContainerSpec) -> Result<(), InvalidField> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    at_most(spec.sysctls.len(), "sysctls")?;
    for (name, value) in &spec.sysctls {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
        let well_formed = name.chars().all(allowed) && !name.split(['.', '/']).any(|part| part.is_empty());
        let namespaced =
            name.starts_with("net.") || name.starts_with("fs.mqueue.") || IPC.contains(&name.as_str());
        if !well_formed || !namespaced {
            let problem = format!("`{name}` is not a parameter that a container has of its own");
            return Err(InvalidField::new(format!("sysctls.{name}"), problem)
                .remedy("expected net.*, fs.mqueue.*, kernel.msg*, kernel.sem or kernel.shm*"));
        }
        if value.contains('\0') || value.contains('\n') || value.len() > 4096 {
            return Err(InvalidField::new(format!("sysctls.{name}"), "the value is not one short line"));
        }
    }
    Ok(())
}
