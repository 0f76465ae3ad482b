//! Decides what a launch does, before anything is done: [`launch_plan`] makes the ordered [`Step`]s that the container's
//! first process executes, and what its control groups get. Pure: a specification and the facts of the host in, a plan
//! out; no file is opened, no clock read.
//!
//! Everything that a specification can ask for and this runtime does not do is refused here, with the field's name.

pub(crate) mod amend;
mod beside;
pub(crate) mod capabilities;
pub(crate) mod cgroup;
mod check;
mod exec;
mod filter;
mod identity;
mod keeper;
mod mounts;
mod namespaces;
mod options;
pub(crate) mod process;
pub(crate) mod rdt;
mod step;
mod unseen;

use std::ffi::CString;
use std::path::{Component, Path};

use oci_spec::runtime::{Process, Spec};
use serde::{Deserialize, Serialize};

use crate::api::Rootfs;
use crate::cgroup::{Group, Layout};
use crate::seccomp::Listener;
use crate::spawn::Ask;
use crate::sys::SchedAttr;
use capabilities::Sets;
pub(crate) use check::DEV_LINKS;
pub(crate) use exec::{ExecRequest, exec_plan};
pub(crate) use identity::{IdMaps, Range};
pub(crate) use keeper::{Keeper, of_the_host};
use mounts::{Dev, Found, Mounts};
pub(crate) use mounts::{Filesystem, Idmap, MountPlan, Owners, Prepared, Source, Tree};
use namespaces::{Namespaces, Propagation};
pub(crate) use namespaces::{makes_network, seems_to_make_network};
pub(crate) use options::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, Change};
pub(crate) use step::{Device, Execute, Join, NetDevice, RootSource, Step, Terminal, User};

/// What the host offers, as far as a plan depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) layout: Layout,
    /// The greatest capability that the kernel knows.
    pub(crate) last_capability: u32,
    /// The process that makes the container has CAP_SYS_ADMIN, at least in its user namespace.
    pub(crate) privileged: bool,
    /// Its user namespace is not the machine's first one.
    pub(crate) user_namespace: bool,
    /// Its user namespace lets groups be changed.
    pub(crate) setgroups: bool,
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
    /// What relative sources of bind mounts start from.
    pub(crate) bundle: Option<&'a Path>,
    /// The root is moved instead of pivoted into: for an initramfs as the host's root.
    pub(crate) no_pivot: bool,
    /// Whether it gets a session keyring of its own; else it keeps that of the process that makes it.
    pub(crate) keyring: bool,
    pub(crate) keeper: Keeper<'a>,
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
    /// Made by the parent before the process.
    pub(crate) prepared: Vec<Prepared>,
    /// The ids of a new user namespace, for [`Ask::MapIds`].
    pub(crate) maps: Option<IdMaps>,
    /// For [`Ask::NetDevices`].
    pub(crate) net_devices: Vec<NetDevice>,
    /// For [`Ask::Schedule`].
    pub(crate) schedule: Option<SchedAttr>,
    /// Who is asked about filtered system calls, for [`Ask::Notify`].
    pub(crate) listener: Option<Listener>,
}

/// Plans a launch.
pub(crate) fn launch_plan(request: &Request<'_>, facts: &Facts) -> Result<Plan> {
    let spec = request.spec;
    let linux = spec.linux().as_ref().ok_or_else(|| invalid("linux", "is missing"))?;
    let process = spec.process().as_ref().ok_or_else(|| invalid("process", "is missing"))?;
    check::supported(spec)?;

    let namespaces = Namespaces::of(linux, facts)?;
    let options = cgroup::Options {
        owner: group_owner(spec, &namespaces),
        rootless: facts.user_namespace || !facts.privileged,
        annotations: spec.annotations().as_ref(),
    };
    let cgroup = cgroup::plan(&facts.layout, request.group, linux.resources().as_ref(), options)?;
    let mut plan = Plan {
        cgroup,
        namespaces: if namespaces.needs_enter() { 0 } else { namespaces.at_birth() },
        steps: Vec::with_capacity(64),
        prepared: Vec::new(),
        maps: namespaces.maps.clone(),
        net_devices: check::net_devices(linux, &namespaces)?,
        schedule: None,
        listener: None,
    };
    enter_namespaces(request, linux, process, facts, &namespaces, &mut plan)?;
    if namespaces.needs_enter() {
        plan.steps.push(Step::Second { new: namespaces.at_birth() });
    }
    if let Some(offsets) = &namespaces.time_offsets {
        plan.steps.push(Step::NewTimeNamespace { offsets: offsets.clone() });
    }
    plan.steps.push(Step::NewSession);
    let sealed = file_system(request, linux, facts, &namespaces, &mut plan)?;
    let steps = &mut plan.steps;
    check::sysctls(linux, &namespaces, steps)?;
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
    if sealed {
        steps.push(Step::Seal);
    }
    if spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true)) {
        steps.push(Step::ReadOnlyRoot);
    }
    plan.listener = become_the_container(request, linux, process, facts, &namespaces, steps)?;
    let steps = &mut plan.steps;
    let workdir =
        steps.iter().position(|step| matches!(step, Step::Credentials { .. })).unwrap_or(steps.len());
    steps.insert(workdir, Step::WorkingDirectory(cwd));
    steps.push(Step::Execute(execute(process)?));
    keeper::add(request.keeper, spec, process, steps)?;
    filter::place(steps, plan.listener.is_some());
    if let Some(namespace) = unseen::joined(spec, &namespaces) {
        unseen::arrange(&mut plan, namespace);
    }
    let steps = &mut plan.steps;
    plan.schedule = process::scheduler_of_the_second(steps);
    beside::place(&namespaces, steps);
    Ok(plan)
}

/// What still takes the host's privileges, then the namespaces that exist.
fn enter_namespaces(
    request: &Request<'_>,
    linux: &oci_spec::runtime::Linux,
    process: &Process,
    facts: &Facts,
    namespaces: &Namespaces,
    plan: &mut Plan,
) -> Result<()> {
    let steps = &mut plan.steps;
    // Without privileges the parent, too, is kept from a process that hides itself, and has its ids to map.
    if facts.privileged {
        steps.push(Step::Undumpable);
    }
    if !request.group.v1.is_empty() {
        let v1 = request.group.v1.iter();
        let tasks = v1.map(|member| path(&member.dir.join("tasks"), "linux.cgroupsPath"));
        steps.push(Step::JoinCgroups(tasks.collect::<Result<_>>()?));
    }
    process::limits(process, steps)?;
    if namespaces.user {
        process::scheduling(process, linux, steps)?;
    }
    process::labels(process, request.keyring, steps)?;
    let joins = namespaces.joined.clone();
    if namespaces.needs_enter() {
        steps.push(Step::Enter(joins));
    } else {
        steps.extend(joins.into_iter().map(Step::JoinNamespace));
    }
    Ok(())
}

/// Everything that is mounted and made below the root, until the process is in it. Returns whether some of it waits to
/// be made read-only.
fn file_system(
    request: &Request<'_>,
    linux: &oci_spec::runtime::Linux,
    facts: &Facts,
    namespaces: &Namespaces,
    plan: &mut Plan,
) -> Result<bool> {
    let spec = request.spec;
    let own_mounts = namespaces.is_own(libc::CLONE_NEWNS);
    let wants_shared = |mount: &oci_spec::runtime::Mount| {
        let words = mount.options().iter().flatten();
        words
            .filter_map(|word| options::propagation_of(word))
            .any(|(flag, _)| flag == libc::MS_SHARED || flag == libc::MS_SLAVE)
    };
    let asked = spec.mounts().iter().flatten().any(wants_shared);
    let mut propagation = Propagation::of(linux, asked)?;
    if own_mounts {
        if !namespaces.is_new(libc::CLONE_NEWNS) {
            // Others are in it: its mounts are theirs, too.
            (propagation.before, propagation.shared) = (0, true);
        } else if propagation.before != 0 {
            plan.steps.push(Step::DetachMounts { propagation: propagation.before });
        }
        mount_root(request, facts, namespaces, &propagation, plan)?;
    } else {
        check::without_mounts(spec, linux)?;
        let Rootfs::Directory(dir) = request.rootfs else {
            return Err(invalid("linux.namespaces", "an overlay needs a mount namespace"));
        };
        plan.steps.push(Step::OpenRoot(path(dir, "root.path")?));
    }
    if namespaces.user {
        if plan.maps.is_some() {
            plan.steps.push(Step::Ask(Ask::MapIds));
        }
        let setgroups = plan.maps.as_ref().map_or(facts.setgroups, |maps| setgroups(maps, facts));
        plan.steps.push(Step::BecomeRoot { setgroups });
    }
    if !facts.privileged {
        plan.steps.push(Step::Undumpable);
    }
    if !plan.net_devices.is_empty() {
        plan.steps.push(Step::Ask(Ask::NetDevices));
    }
    if namespaces.is_new(libc::CLONE_NEWCGROUP) {
        plan.steps.push(Step::NewCgroupNamespace);
    }
    if request.keyring {
        plan.steps.push(Step::Keyring);
    }
    let private = Change { propagation: libc::MS_PRIVATE, recursive: true, ..Change::default() };
    let mut mounts = Mounts {
        spec,
        facts,
        namespaces,
        group: request.group,
        bundle: request.bundle,
        propagation: propagation.private.then_some(private),
        prepared_propagation: propagation.of_prepared(namespaces.user),
        steps: &mut plan.steps,
        prepared: &mut plan.prepared,
    };
    let Found { sealed, dev } = mounts.plan()?;
    plan.steps.push(match dev {
        // The host's, or a copy: what is in it is for whoever has made it to decide.
        Dev::Given => Step::GivenDevices,
        Dev::Made => {
            Step::Devices { devices: check::devices(linux)?, bind: namespaces.user || facts.user_namespace }
        }
    });
    if namespaces.is_new(libc::CLONE_NEWNET) && !namespaces.makes_network() {
        plan.steps.push(Step::LoopbackUp);
    }
    names(spec, namespaces, &mut plan.steps)?;
    plan.steps.push(match (own_mounts, request.no_pivot) {
        (false, _) => Step::ChangeRoot,
        (true, true) => Step::MoveRoot,
        (true, false) => Step::Pivot { shared: propagation.before == 0 },
    });
    if own_mounts && propagation.after != 0 {
        plan.steps.push(Step::RootPropagation(propagation.after));
    }
    Ok(sealed)
}

fn mount_root(
    request: &Request<'_>,
    facts: &Facts,
    namespaces: &Namespaces,
    propagation: &Propagation,
    plan: &mut Plan,
) -> Result<()> {
    let mountpoint = match request.rootfs {
        // In a namespace that exists already ours may not be there.
        Rootfs::Directory(dir) if !namespaces.is_new(libc::CLONE_NEWNS) => path(dir, "root.path")?,
        _ => path(request.mountpoint, "root")?,
    };
    let rootfs = request.rootfs.clone();
    let source = if namespaces.user && facts.privileged {
        let propagation = propagation.of_prepared(namespaces.user);
        plan.prepared.push(Prepared { tree: Tree::Root(rootfs), propagation });
        RootSource::Prepared(plan.prepared.len() - 1)
    } else {
        RootSource::Own(rootfs)
    };
    plan.steps.push(Step::MountRoot { source, mountpoint, shared: propagation.shared });
    Ok(())
}

/// Whether processes of a new user namespace may change their groups. Without privileges a single group is mapped only
/// if they may not (user_namespaces(7)); newgidmap lets them.
fn setgroups(maps: &IdMaps, facts: &Facts) -> bool {
    facts.setgroups && (facts.privileged || !matches!(maps.gids[..], [(_, _, 1)]))
}

/// User, privileges and filter, in the order in which each step still may do what it does.
fn become_the_container(
    request: &Request<'_>,
    linux: &oci_spec::runtime::Linux,
    process: &Process,
    facts: &Facts,
    namespaces: &Namespaces,
    steps: &mut Vec<Step>,
) -> Result<Option<Listener>> {
    let user = process.user();
    let groups = user.additional_gids().clone().unwrap_or_default();
    let in_new_user = namespaces.maps.as_ref();
    let setgroups = in_new_user.map_or(facts.setgroups, |maps| setgroups(maps, facts));
    if !setgroups && !groups.is_empty() {
        return Err(invalid(
            "process.user.additionalGids",
            "groups cannot be changed in a user namespace that maps only one's own group",
        ));
    }
    namespaces.check_mapped(user.uid(), false, "process.user.uid")?;
    namespaces.check_mapped(user.gid(), true, "process.user.gid")?;
    for (index, group) in groups.iter().enumerate() {
        namespaces.check_mapped(*group, true, &format!("process.user.additionalGids[{index}]"))?;
    }
    steps.push(Step::FindUser(match request.user {
        Some(name) if !name.is_empty() => User::Named(name.to_owned()),
        _ => User::Ids { uid: user.uid(), gid: user.gid(), groups },
    }));
    steps.push(Step::Stdio);
    if !namespaces.user {
        process::scheduling(process, linux, steps)?;
    }
    process::personality(linux, steps)?;
    let sets = Sets::of(process.capabilities().as_ref(), facts.last_capability);
    sets.check()?;
    let umask = user.umask().unwrap_or(0o022);
    if umask > 0o777 {
        let reason = format!("{umask} is more than 511, which is 0777: JSON has only decimal numbers");
        return Err(invalid("process.user.umask", &reason));
    }
    let credentials = Step::Credentials { sets, last_capability: facts.last_capability, umask, setgroups };
    let (filter, listener) = filter::step(linux, request.spec, sets.bounding)?;
    if process.no_new_privileges() == Some(true) {
        steps.push(credentials);
        steps.push(Step::NoNewPrivileges);
        steps.extend(filter);
    } else {
        // Without it only CAP_SYS_ADMIN may load a filter, so it has to come before the capabilities go.
        steps.extend(filter);
        steps.push(credentials);
    }
    Ok(listener)
}

/// Who gets the container's control group: root of its user namespace, if it can see no other group and may write to
/// this one.
fn group_owner(spec: &Spec, namespaces: &Namespaces) -> Option<u32> {
    let writable = spec.mounts().iter().flatten().any(|mount| {
        matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"))
            && !mount.options().iter().flatten().any(|option| option == "ro")
    });
    let maps = namespaces.maps.as_ref().filter(|_| writable && namespaces.is_new(libc::CLONE_NEWCGROUP))?;
    maps.uids.iter().find(|(inside, ..)| *inside == 0).map(|(_, outside, _)| *outside)
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

fn names(spec: &Spec, namespaces: &Namespaces, steps: &mut Vec<Step>) -> Result<()> {
    for (field, name, domain) in
        [("hostname", spec.hostname(), false), ("domainname", spec.domainname(), true)]
    {
        let Some(name) = name.as_ref().filter(|name| !name.is_empty()) else { continue };
        if !namespaces.is_own(libc::CLONE_NEWUTS) {
            return Err(invalid(field, "needs a uts namespace: it would change the name of the host"));
        }
        if name.contains('\0') {
            return Err(invalid(field, "contains a NUL byte"));
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
        preserved_fds: 0,
    })
}

/// A variable that gets the number by which the process knows itself.
pub(crate) const LISTEN_PID: &str = "LISTEN_PID=";

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
mod hostile;
#[cfg(test)]
mod tests;
