//! Decides what a launch does, before anything is done: [`launch_plan`] makes the ordered [`Step`]s that the container's
//! first process executes, and what its control groups get. Pure: a specification and the facts of the host in, a plan
//! out; no file is opened, no clock read.
//!
//! Everything that a specification can ask for and this runtime does not do is refused here, with the field's name.

pub(crate) mod capabilities;
pub(crate) mod cgroup;
mod check;
mod mounts;

use std::ffi::CString;
use std::fmt;
use std::path::{Component, Path};

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use serde::{Deserialize, Serialize};

use crate::api::Rootfs;
use crate::cgroup::Layout;
use crate::spawn::Ask;
use crate::sys::Instruction;
use capabilities::Sets;
pub(crate) use check::DEV_LINKS;
pub(crate) use mounts::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, MountPlan, Source};

/// What the host offers, as far as a plan depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) layout: Layout,
    /// The greatest capability that the kernel knows.
    pub(crate) last_capability: u32,
}

/// What is to be started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) rootfs: &'a Rootfs,
    pub(crate) user: Option<&'a str>,
    /// The container's control group, with the node's; see [`group`].
    pub(crate) group: &'a str,
    /// An empty folder to mount the root file system on, inside the container's mount namespace.
    pub(crate) mountpoint: &'a Path,
}

/// A field of the specification that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    pub(crate) field: String,
    pub(crate) reason: String,
}

pub(crate) type Result<T> = std::result::Result<T, Invalid>;

pub(crate) fn invalid(field: &str, reason: &str) -> Invalid {
    Invalid { field: field.to_owned(), reason: reason.to_owned() }
}

/// Everything a launch does.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) cgroup: cgroup::CgroupPlan,
    /// CLONE_NEW* flags of the first process.
    pub(crate) namespaces: u64,
    /// Executed by the first process, in order; the last one does not return.
    pub(crate) steps: Vec<Step>,
}

/// One thing that the container's first process does.
#[derive(Clone)]
pub(crate) enum Step {
    /// Nobody may look into this process, or trace it, before it has become the container's.
    Undumpable,
    /// Joins v1 groups by writing to these `tasks` files.
    JoinCgroups(Vec<CString>),
    OomScore(i32),
    ResourceLimit {
        resource: u32,
        name: &'static str,
        soft: u64,
        hard: u64,
    },
    JoinNamespace {
        path: CString,
        kind: i32,
    },
    /// After the group is joined, since it becomes the root of what the container sees.
    NewCgroupNamespace,
    NewSession,
    /// Mounts of the host come in (or not), none goes out.
    DetachMounts {
        propagation: u64,
    },
    MountRoot {
        rootfs: Rootfs,
        mountpoint: CString,
    },
    Mount(MountPlan),
    /// Nodes and links that every container has, and those of the specification.
    Devices(Vec<Device>),
    LoopbackUp,
    Hostname(Vec<u8>),
    Domainname(Vec<u8>),
    Pivot,
    /// Below /proc/sys.
    Sysctl {
        path: CString,
        value: Vec<u8>,
    },
    Mask(CString),
    ReadOnly(CString),
    MakeDirectory(CString),
    ReadOnlyRoot,
    FindUser(User),
    /// Standard input from the container's null device; output pipes given to its user.
    Stdio,
    WorkingDirectory(CString),
    Credentials {
        sets: Sets,
        last_capability: u32,
        umask: u32,
    },
    NoNewPrivileges,
    Seccomp {
        program: Vec<Instruction>,
        flags: u64,
    },
    /// The container does not outlive its monitor.
    DieWithMonitor,
    /// Enters namespaces that exist before others are made in them (a user or pid namespace): what follows is done by
    /// another process, made with the CLONE_NEW* flags of `new`.
    Enter {
        joins: Vec<Join>,
        new: u64,
    },
    /// Something that the parent has to do.
    Ask(Ask),
    /// Everything is made: the parent is told, and the rest waits until the container is started.
    Created,
    Execute(Execute),
}

/// Namespaces to enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Join {
    Path {
        path: CString,
        /// A CLONE_NEW* flag.
        kind: i32,
    },
    /// Those of the process that the parent gives a pidfd of; CLONE_NEW* flags.
    Target { kinds: i32 },
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// Below the root, without a slash at its start.
    pub(crate) path: CString,
    /// Kind and permissions.
    pub(crate) mode: u32,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// One of those that every container has: passed over if it is there already.
    pub(crate) default: bool,
}

/// Who the process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// Numbers of the specification.
    Ids { uid: u32, gid: u32, groups: Vec<u32> },
    /// `user[:group]`, to be looked up in the container.
    Named(String),
}

/// The program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Execute {
    /// Where it may be, in the order of PATH.
    pub(crate) candidates: Vec<CString>,
    pub(crate) args: Vec<CString>,
    pub(crate) env: Vec<CString>,
    /// Whether HOME is to be added from the user's entry.
    pub(crate) needs_home: bool,
}

/// Plans a launch.
pub(crate) fn launch_plan(request: &Request<'_>, facts: &Facts) -> Result<Plan> {
    let spec = request.spec;
    let linux = spec.linux().as_ref().ok_or_else(|| invalid("linux", "is missing"))?;
    let process = spec.process().as_ref().ok_or_else(|| invalid("process", "is missing"))?;
    check::supported(spec, linux, process)?;

    let cgroup = cgroup::plan(&facts.layout, request.group, linux.resources().as_ref())?;
    let namespaces = Namespaces::of(linux)?;
    let mut steps = vec![Step::Undumpable];
    if !cgroup.v1.is_empty() {
        let tasks = cgroup.v1.iter().map(|dir| path(&dir.join("tasks"), "linux.cgroupsPath"));
        steps.push(Step::JoinCgroups(tasks.collect::<Result<_>>()?));
    }
    if let Some(score) = process.oom_score_adj() {
        steps.push(Step::OomScore(score));
    }
    resource_limits(process, &mut steps)?;
    steps.extend(namespaces.joined);
    if namespaces.cgroup {
        steps.push(Step::NewCgroupNamespace);
    }
    steps.push(Step::NewSession);
    steps.push(Step::DetachMounts { propagation: check::propagation(linux)? });
    let mountpoint = path(request.mountpoint, "root")?;
    steps.push(Step::MountRoot { rootfs: request.rootfs.clone(), mountpoint });
    let groups = cgroup.unified.iter().chain(&cgroup.v1).cloned().collect::<Vec<_>>();
    mounts::plan(spec, &facts.layout, &groups, &mut steps)?;
    steps.push(Step::Devices(check::devices(linux)?));
    if namespaces.flags & libc::CLONE_NEWNET as u64 != 0 {
        steps.push(Step::LoopbackUp);
    }
    names(spec, namespaces.flags, &mut steps)?;
    steps.push(Step::Pivot);
    check::sysctls(linux, namespaces.own, &mut steps)?;
    for (field, list, masked) in [
        ("linux.maskedPaths", linux.masked_paths(), true),
        ("linux.readonlyPaths", linux.readonly_paths(), false),
    ] {
        for text in list.iter().flatten() {
            let path = below_root(Path::new(text), field)?;
            steps.push(if masked { Step::Mask(path) } else { Step::ReadOnly(path) });
        }
    }
    let cwd = working_directory(process)?;
    steps.push(Step::MakeDirectory(below_root(process.cwd(), "process.cwd")?));
    if spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true)) {
        steps.push(Step::ReadOnlyRoot);
    }
    become_the_container(request, linux, process, facts, &mut steps)?;
    steps.push(Step::DieWithMonitor);
    let workdir =
        steps.iter().position(|step| matches!(step, Step::Credentials { .. })).unwrap_or(steps.len());
    steps.insert(workdir, Step::WorkingDirectory(cwd));
    steps.push(Step::Execute(execute(process)?));
    Ok(Plan { cgroup, namespaces: namespaces.flags, steps })
}

/// User, privileges and filter, in the order in which each step still may do what it does.
fn become_the_container(
    request: &Request<'_>,
    linux: &oci_spec::runtime::Linux,
    process: &Process,
    facts: &Facts,
    steps: &mut Vec<Step>,
) -> Result<()> {
    let user = process.user();
    steps.push(Step::FindUser(match request.user {
        Some(name) if !name.is_empty() => User::Named(name.to_owned()),
        _ => User::Ids {
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
        },
    }));
    steps.push(Step::Stdio);
    let sets = Sets::of(process.capabilities().as_ref(), facts.last_capability);
    let credentials = Step::Credentials {
        sets,
        last_capability: facts.last_capability,
        umask: user.umask().unwrap_or(0o022),
    };
    let filter = check::filter(linux, request.spec, sets.bounding)?;
    if process.no_new_privileges() == Some(true) {
        steps.push(credentials);
        steps.push(Step::NoNewPrivileges);
        steps.extend(filter);
    } else {
        // Without it only CAP_SYS_ADMIN may load a filter, so it has to come before the capabilities go.
        steps.extend(filter);
        steps.push(credentials);
    }
    Ok(())
}

/// The container's control group below each hierarchy: the one that the specification names, else its id, in `parent`.
pub(crate) fn group(spec: &Spec, id: &str, parent: &str) -> Result<String> {
    const FIELD: &str = "linux.cgroupsPath";
    let wanted = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    let Some(path) = wanted.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(format!("{parent}/{id}"));
    };
    let text = path.to_str().ok_or_else(|| invalid(FIELD, "is not UTF-8"))?;
    let name = text.trim_matches('/');
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || name.is_empty() || name.starts_with('.') {
        return Err(invalid(
            FIELD,
            "has to be a path below the node's group, without '..' and no leading '.'",
        ));
    }
    Ok(format!("{parent}/{name}"))
}

#[derive(Default)]
struct Namespaces {
    flags: u64,
    joined: Vec<Step>,
    cgroup: bool,
    /// Those that are not the host's, joined ones included, as CLONE_NEW* flags.
    own: u64,
}

impl Namespaces {
    fn of(linux: &oci_spec::runtime::Linux) -> Result<Namespaces> {
        const FIELD: &str = "linux.namespaces";
        let mut result = Namespaces::default();
        for namespace in linux.namespaces().iter().flatten() {
            let typ = namespace.typ();
            let flag = typ as u64;
            if result.own & flag != 0 {
                return Err(invalid(FIELD, &format!("names {typ} twice")));
            }
            result.own |= flag;
            match (typ, namespace.path()) {
                (LinuxNamespaceType::User | LinuxNamespaceType::Time, _) => {
                    return Err(invalid(
                        FIELD,
                        &format!("{typ} namespaces are not supported by this runtime yet"),
                    ));
                }
                (
                    LinuxNamespaceType::Network | LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts,
                    Some(file),
                ) => {
                    result.joined.push(Step::JoinNamespace { path: path(file, FIELD)?, kind: flag as i32 });
                }
                (_, Some(_)) => {
                    return Err(invalid(
                        FIELD,
                        &format!("joining a {typ} namespace by path is not supported yet"),
                    ));
                }
                (LinuxNamespaceType::Cgroup, None) => result.cgroup = true,
                (_, None) => result.flags |= flag,
            }
        }
        for (typ, why) in [
            (LinuxNamespaceType::Mount, "the root file system is mounted in it"),
            (LinuxNamespaceType::Pid, "it is what ends all processes with the first one"),
        ] {
            if result.flags & typ as u64 == 0 {
                return Err(invalid(FIELD, &format!("needs a new {typ} namespace: {why}")));
            }
        }
        Ok(result)
    }
}

fn resource_limits(process: &Process, steps: &mut Vec<Step>) -> Result<()> {
    for limit in process.rlimits().iter().flatten() {
        let (resource, name) = check::resource(limit.typ());
        if limit.soft() > limit.hard() {
            return Err(invalid("process.rlimits", &format!("{name}: the soft limit is above the hard one")));
        }
        steps.push(Step::ResourceLimit { resource, name, soft: limit.soft(), hard: limit.hard() });
    }
    Ok(())
}

fn names(spec: &Spec, flags: u64, steps: &mut Vec<Step>) -> Result<()> {
    for (field, name, domain) in
        [("hostname", spec.hostname(), false), ("domainname", spec.domainname(), true)]
    {
        let Some(name) = name.as_ref().filter(|name| !name.is_empty()) else { continue };
        if flags & libc::CLONE_NEWUTS as u64 == 0 {
            return Err(invalid(field, "needs a new uts namespace: it would change the name of the host"));
        }
        if name.len() > 64 {
            return Err(invalid(field, "is longer than 64 bytes"));
        }
        let bytes = name.clone().into_bytes();
        steps.push(if domain { Step::Domainname(bytes) } else { Step::Hostname(bytes) });
    }
    Ok(())
}

fn working_directory(process: &Process) -> Result<CString> {
    const FIELD: &str = "process.cwd";
    if !process.cwd().is_absolute() {
        return Err(invalid(FIELD, &format!("{:?} is not absolute: start it with '/'", process.cwd())));
    }
    below_root(process.cwd(), FIELD)
}

fn execute(process: &Process) -> Result<Execute> {
    let args = process.args().as_deref().unwrap_or_default();
    let command = args.first().filter(|command| !command.is_empty());
    let command = command
        .ok_or_else(|| invalid("process.args", "no command: name one, or use an image that has one"))?;
    let env = process.env().as_deref().unwrap_or_default();
    for entry in env {
        if !entry.contains('=') || entry.starts_with('=') {
            return Err(invalid("process.env", &format!("{entry:?} is not NAME=value")));
        }
    }
    let candidates = if command.contains('/') {
        vec![text(command, "process.args")?]
    } else {
        let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
        // A relative folder would make it depend on the working directory which program runs.
        let folders = path.split(':').filter(|folder| folder.starts_with('/'));
        folders.map(|folder| text(&format!("{folder}/{command}"), "process.args")).collect::<Result<_>>()?
    };
    Ok(Execute {
        candidates,
        args: args.iter().map(|arg| text(arg, "process.args")).collect::<Result<_>>()?,
        env: env.iter().map(|entry| text(entry, "process.env")).collect::<Result<_>>()?,
        needs_home: !env.iter().any(|entry| entry.starts_with("HOME=")),
    })
}

/// Docker's search path.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn text(text: &str, field: &str) -> Result<CString> {
    CString::new(text).map_err(|_| invalid(field, "contains a NUL byte"))
}

fn path(path: &Path, field: &str) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).map_err(|_| invalid(field, "contains a NUL byte"))
}

/// A path of the container, relative to its root and without `.` and `..`; `.` for the root itself.
fn below_root(given: &Path, field: &str) -> Result<CString> {
    let mut clean = std::path::PathBuf::new();
    for part in given.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if clean.as_os_str().is_empty() {
        clean.push(".");
    }
    path(&clean, field)
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What an error message says was being done.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = |path: &CString| path.to_string_lossy().into_owned();
        match self {
            Step::Undumpable => write!(f, "protecting the process against tracing"),
            Step::JoinCgroups(_) => write!(f, "joining the control groups"),
            Step::OomScore(score) => {
                write!(f, "setting oomScoreAdj to {score} (lowering it needs CAP_SYS_RESOURCE)")
            }
            Step::ResourceLimit { name, soft, hard, .. } => {
                write!(
                    f,
                    "setting rlimit {name} to {soft}:{hard} (raising a hard limit needs CAP_SYS_RESOURCE)"
                )
            }
            Step::JoinNamespace { path, .. } => write!(f, "joining namespace {}", s(path)),
            Step::NewCgroupNamespace => write!(f, "making a cgroup namespace"),
            Step::NewSession => write!(f, "making a session"),
            Step::DetachMounts { .. } => write!(f, "detaching mounts from the host's"),
            Step::MountRoot { rootfs: Rootfs::Directory(dir), .. } => {
                write!(f, "mounting root {}", dir.display())
            }
            Step::MountRoot { rootfs: Rootfs::Overlay { lowers, upper, .. }, .. } => {
                write!(f, "mounting an overlay of {} layers with upper {}", lowers.len(), upper.display())
            }
            Step::Mount(mount) => write!(f, "{mount}"),
            Step::Devices(_) => write!(f, "making /dev"),
            Step::LoopbackUp => write!(f, "bringing the loopback device up"),
            Step::Hostname(_) => write!(f, "setting the host name"),
            Step::Domainname(_) => write!(f, "setting the domain name"),
            Step::Pivot => write!(f, "pivoting into the root file system"),
            Step::Sysctl { path, .. } => write!(f, "setting sysctl {}", s(path)),
            Step::Mask(path) => write!(f, "masking /{}", s(path)),
            Step::ReadOnly(path) => write!(f, "making /{} read-only", s(path)),
            Step::MakeDirectory(path) | Step::WorkingDirectory(path) => {
                write!(f, "using working directory /{}", s(path))
            }
            Step::ReadOnlyRoot => write!(f, "making the root file system read-only"),
            Step::FindUser(User::Named(name)) => write!(f, "looking up user {name:?}"),
            Step::FindUser(User::Ids { uid, gid, .. }) => write!(f, "looking up user {uid}:{gid}"),
            Step::Stdio => write!(f, "connecting standard input and output"),
            Step::Credentials { .. } => write!(f, "setting user, groups and capabilities"),
            Step::NoNewPrivileges => write!(f, "setting no_new_privs"),
            Step::Seccomp { program, .. } => {
                write!(f, "loading the seccomp filter ({} instructions)", program.len())
            }
            Step::DieWithMonitor => write!(f, "tying the process to its monitor"),
            Step::Enter { joins, .. } => {
                let paths = joins.iter().map(|join| match join {
                    Join::Path { path, .. } => s(path),
                    Join::Target { .. } => "of the container".to_owned(),
                });
                write!(f, "entering namespaces {}", paths.collect::<Vec<_>>().join(", "))
            }
            Step::Ask(Ask::MapIds) => write!(f, "mapping users and groups"),
            Step::Ask(Ask::Hooks) => write!(f, "running hooks"),
            Step::Ask(_) => write!(f, "asking the runtime"),
            Step::Created => write!(f, "waiting to be started"),
            Step::Execute(execute) => {
                write!(f, "executing {}", execute.args.first().map(s).unwrap_or_default())
            }
        }
    }
}

#[cfg(test)]
mod tests;
