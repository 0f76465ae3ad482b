//! Decides what a launch does, before anything is done: [`launch_plan`] makes the ordered [`Step`]s that the container's
//! first process executes, and what its control groups get. Pure: a specification and the facts of the host in, a plan
//! out; no file is opened, no clock read.
//!
//! Everything that a specification can ask for and this runtime does not do is refused here, with the field's name.

pub(crate) mod capabilities;
pub(crate) mod cgroup;
mod check;
mod mounts;
mod namespaces;
mod step;

use std::ffi::CString;
use std::path::{Component, Path};

use oci_spec::runtime::{Process, Spec};
use serde::{Deserialize, Serialize};

use crate::api::Rootfs;
use crate::cgroup::{Group, Layout};
use capabilities::Sets;
pub(crate) use check::DEV_LINKS;
pub(crate) use mounts::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, MountPlan, Source};
use namespaces::Namespaces;
pub(crate) use step::{Device, Execute, Join, Step, User};

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
    /// The container's control groups.
    pub(crate) group: &'a Group,
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

/// Plans a launch.
pub(crate) fn launch_plan(request: &Request<'_>, facts: &Facts) -> Result<Plan> {
    let spec = request.spec;
    let linux = spec.linux().as_ref().ok_or_else(|| invalid("linux", "is missing"))?;
    let process = spec.process().as_ref().ok_or_else(|| invalid("process", "is missing"))?;
    check::supported(spec, linux, process)?;

    let cgroup = cgroup::plan(&facts.layout, request.group, linux.resources().as_ref(), None)?;
    let namespaces = Namespaces::of(linux)?;
    let mut steps = vec![Step::Undumpable];
    if !request.group.v1.is_empty() {
        let v1 = request.group.v1.iter();
        let tasks = v1.map(|member| path(&member.dir.join("tasks"), "linux.cgroupsPath"));
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
    let groups: Vec<_> = request.group.dirs().map(Path::to_owned).collect();
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

#[cfg(test)]
mod tests;
