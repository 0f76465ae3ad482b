//! The smaller parts of a specification: what is refused, devices, sysctls, the filter, names of limits.

use oci_spec::runtime::{Hooks, Linux, LinuxDeviceType, PosixRlimitType, Spec};

use super::cgroup::numbers::sorted;
use super::namespaces::Namespaces;
use super::{Device, NetDevice, Result, Step, below_root, invalid, text};

/// Refuses what this runtime does not do: a field that is passed over in silence would be a promise broken.
pub(super) fn supported(spec: &Spec) -> Result<()> {
    let unsupported = [
        ("vm", spec.vm().is_some()),
        ("windows", spec.windows().is_some()),
        ("solaris", spec.solaris().is_some()),
    ];
    if let Some((field, _)) = unsupported.iter().find(|(_, set)| *set) {
        return Err(invalid(field, "not supported by this runtime: leave it out"));
    }
    if spec.annotations().as_ref().is_some_and(|annotations| annotations.contains_key("")) {
        return Err(invalid("annotations", "one has an empty name"));
    }
    spec.hooks().as_ref().map_or(Ok(()), hooks)
}

#[allow(deprecated, reason = "prestart hooks are what Docker and NVIDIA's toolkit use")]
fn hooks(hooks: &Hooks) -> Result<()> {
    for (point, list) in [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ] {
        for (index, hook) in list.iter().flatten().enumerate() {
            let field = |name: &str| format!("hooks.{point}[{index}].{name}");
            if !hook.path().is_absolute() {
                let reason = format!("{:?} is not absolute: start it with '/'", hook.path());
                return Err(invalid(&field("path"), &reason));
            }
            if let Some(seconds) = hook.timeout().filter(|seconds| *seconds <= 0) {
                let reason = format!("{seconds} is no time: leave it out to wait as long as it takes");
                return Err(invalid(&field("timeout"), &reason));
            }
        }
    }
    Ok(())
}

/// Devices for the container's network, which has to be another than ours.
pub(super) fn net_devices(linux: &Linux, namespaces: &Namespaces) -> Result<Vec<NetDevice>> {
    const FIELD: &str = "linux.netDevices";
    let mut devices = Vec::new();
    for (host, device) in sorted(linux.net_devices()) {
        let field = format!("{FIELD}.{host}");
        let given = device.name().as_deref().filter(|name| !name.is_empty());
        let container = given.unwrap_or(host);
        for (name, field) in [(host.as_str(), field.clone()), (container, format!("{field}.name"))] {
            // As the kernel has it (dev_valid_name).
            let wrong =
                |letter: char| letter == '/' || letter == ':' || letter.is_whitespace() || letter == '\0';
            if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(wrong) {
                let reason = format!(
                    "{name:?} cannot be the name of a device: up to 15 bytes without '/', ':', spaces"
                );
                return Err(invalid(&field, &reason));
            }
        }
        if devices.iter().any(|other: &NetDevice| other.container == container) {
            return Err(invalid(&format!("{field}.name"), &format!("another device is {container:?}, too")));
        }
        devices.push(NetDevice { host: host.clone(), container: container.to_owned() });
    }
    if !devices.is_empty() && !namespaces.is_own(libc::CLONE_NEWNET) {
        return Err(invalid(FIELD, "needs a network namespace in linux.namespaces"));
    }
    Ok(devices)
}

/// Without a mount namespace every mount would be one of the host, and stay there.
pub(super) fn without_mounts(spec: &Spec, linux: &Linux) -> Result<()> {
    let filled = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let read_only = spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true));
    let asked = [
        ("mounts", spec.mounts().as_ref().is_some_and(|list| !list.is_empty())),
        ("linux.maskedPaths", filled(linux.masked_paths())),
        ("linux.readonlyPaths", filled(linux.readonly_paths())),
        ("linux.rootfsPropagation", linux.rootfs_propagation().as_ref().is_some_and(|word| !word.is_empty())),
        ("root.readonly", read_only),
    ];
    match asked.iter().find(|(_, set)| *set) {
        Some((field, _)) => Err(invalid(
            field,
            "needs a mount namespace in linux.namespaces: it would change the mounts of the host",
        )),
        None => Ok(()),
    }
}

/// Nodes that the specification promises every container (config-linux.md, Default Devices).
const DEFAULT_DEVICES: [(&std::ffi::CStr, u32, u32); 6] = [
    (c"dev/null", 1, 3),
    (c"dev/zero", 1, 5),
    (c"dev/full", 1, 7),
    (c"dev/random", 1, 8),
    (c"dev/urandom", 1, 9),
    (c"dev/tty", 5, 0),
];

pub(super) fn devices(linux: &Linux) -> Result<Vec<Device>> {
    let mut devices: Vec<Device> = DEFAULT_DEVICES
        .iter()
        .map(|(path, major, minor)| Device {
            path: (*path).to_owned(),
            mode: libc::S_IFCHR | 0o666,
            major: *major,
            minor: *minor,
            uid: 0,
            gid: 0,
            default: true,
        })
        .collect();
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        let field = format!("linux.devices[{index}]");
        let path = below_root(device.path(), &field)?;
        if devices.iter().any(|known| known.path == path) {
            continue;
        }
        let kind = match device.typ() {
            LinuxDeviceType::B => libc::S_IFBLK,
            LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
            LinuxDeviceType::P => libc::S_IFIFO,
            LinuxDeviceType::A => return Err(invalid(&field, "type has to be c, b, u or p")),
        };
        if kind != libc::S_IFIFO && (device.major(), device.minor()) == (0, 0) {
            return Err(invalid(&field, "major and minor are missing: 0:0 is no device"));
        }
        let number =
            |number: i64| u32::try_from(number).map_err(|_| invalid(&field, "device number out of range"));
        devices.push(Device {
            path,
            mode: kind | device.file_mode().unwrap_or(0o666) & 0o7777,
            major: number(device.major())?,
            minor: number(device.minor())?,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
            default: false,
        });
    }
    Ok(devices)
}

/// Only what belongs to a namespace of the container's own: everything else would change the host.
pub(super) fn sysctls(linux: &Linux, namespaces: &Namespaces, steps: &mut Vec<Step>) -> Result<()> {
    const FIELD: &str = "linux.sysctl";
    const OF_IPC: [&str; 8] = [
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
        "kernel/shm_rmid_forced",
    ];
    for (name, value) in sorted(linux.sysctl()) {
        let field = format!("{FIELD}.{name}");
        let path = sysctl_path(name);
        let clean = path.split('/').all(|part| !part.is_empty() && part != ".." && part != ".");
        let (namespace, flag) = match path.as_str() {
            path if path.starts_with("net/") => ("network", libc::CLONE_NEWNET),
            path if path.starts_with("fs/mqueue/") || OF_IPC.contains(&path) => ("ipc", libc::CLONE_NEWIPC),
            path if path.starts_with("user/") => ("user", libc::CLONE_NEWUSER),
            "kernel/domainname" => ("uts", libc::CLONE_NEWUTS),
            "kernel/hostname" => return Err(invalid(&field, "has a field of its own: set hostname")),
            _ => ("", 0),
        };
        if !clean || namespace.is_empty() {
            return Err(invalid(
                &field,
                "does not belong to a container: net.*, fs.mqueue.*, user.*, kernel.domainname and \
                 kernel.{msg*,sem,shm*} do",
            ));
        }
        if !namespaces.is_own(flag) {
            let reason = format!("would change the host: it needs a {namespace} namespace of its own");
            return Err(invalid(&field, &reason));
        }
        let path = text(&format!("sys/{path}"), &field)?;
        steps.push(Step::Sysctl { path, value: value.clone().into_bytes() });
    }
    Ok(())
}

/// As sysctl(8) has it: the first separator is the one that counts, and the other one is a part of names
/// (`net.ipv4.conf.eth0/1.rp_filter`).
fn sysctl_path(name: &str) -> String {
    if name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'/') {
        return name.to_owned();
    }
    let swap = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(swap).collect()
}

/// Its number, whose type is not the same for every libc, and name.
pub(super) fn resource(typ: PosixRlimitType) -> (i64, &'static str) {
    use PosixRlimitType as Type;
    let (number, name) = match typ {
        Type::RlimitCpu => (libc::RLIMIT_CPU, "cpu"),
        Type::RlimitFsize => (libc::RLIMIT_FSIZE, "fsize"),
        Type::RlimitData => (libc::RLIMIT_DATA, "data"),
        Type::RlimitStack => (libc::RLIMIT_STACK, "stack"),
        Type::RlimitCore => (libc::RLIMIT_CORE, "core"),
        Type::RlimitRss => (libc::RLIMIT_RSS, "rss"),
        Type::RlimitNproc => (libc::RLIMIT_NPROC, "nproc"),
        Type::RlimitNofile => (libc::RLIMIT_NOFILE, "nofile"),
        Type::RlimitMemlock => (libc::RLIMIT_MEMLOCK, "memlock"),
        Type::RlimitAs => (libc::RLIMIT_AS, "as"),
        Type::RlimitLocks => (libc::RLIMIT_LOCKS, "locks"),
        Type::RlimitSigpending => (libc::RLIMIT_SIGPENDING, "sigpending"),
        Type::RlimitMsgqueue => (libc::RLIMIT_MSGQUEUE, "msgqueue"),
        Type::RlimitNice => (libc::RLIMIT_NICE, "nice"),
        Type::RlimitRtprio => (libc::RLIMIT_RTPRIO, "rtprio"),
        Type::RlimitRttime => (libc::RLIMIT_RTTIME, "rttime"),
    };
    (number.into(), name)
}

/// Links that every container has in /dev: (path, where it leads).
pub(crate) const DEV_LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];
