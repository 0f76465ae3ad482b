//! Plans a further process in a running container: the same steps as a launch's, as far as they make the process and not
//! the container.

use std::path::Path;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Process, Spec};

use super::{
    Execute, Facts, Keeper, Namespaces, Plan, Request, Result, Sets, Step, Terminal, become_the_container,
    capabilities, cgroup, enter_namespaces, execute, filter, invalid, path, process, working_directory,
};
use crate::api::Rootfs;
use crate::cgroup::Group;
use crate::seccomp;

/// What is to be executed, and where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExecRequest<'a> {
    /// The container's specification, with the new process in place of its own.
    pub(crate) spec: &'a Spec,
    /// `user[:group]` by name, instead of the numbers of the specification.
    pub(crate) user: Option<&'a str>,
    /// The groups that it joins.
    pub(crate) group: &'a Group,
    /// The container's namespaces that are not our own, as CLONE_NEW* flags.
    pub(crate) namespaces: u64,
    /// The container's root file system, for one that has no mount namespace.
    pub(crate) rootfs: &'a Path,
    /// Whether it gets a session keyring of its own.
    pub(crate) keyring: bool,
    /// What processes of the container can have, as a bit set: the bounding set of its first one.
    pub(crate) bounding: u64,
    /// So many descriptors from 3 on are the program's.
    pub(crate) preserved_fds: u32,
    /// Before it is where others see it, or makes another one, its parent has something to do with it.
    pub(crate) waits: bool,
}

/// Plans a process in a container that runs.
pub(crate) fn exec_plan(wanted: &ExecRequest<'_>, facts: &Facts) -> Result<Plan> {
    let spec = wanted.spec;
    let linux = spec.linux().as_ref().ok_or_else(|| invalid("linux", "is missing"))?;
    let process = spec.process().as_ref().ok_or_else(|| invalid("process", "is missing"))?;
    let namespaces = Namespaces::joining(linux, facts, wanted.namespaces)?;
    let rootfs = Rootfs::Directory(wanted.rootfs.to_owned());
    let request = Request {
        spec,
        rootfs: &rootfs,
        user: wanted.user,
        group: wanted.group,
        mountpoint: wanted.rootfs,
        bundle: None,
        no_pivot: false,
        keyring: wanted.keyring,
        keeper: Keeper::Caller { waits: false, state: "", preserved_fds: wanted.preserved_fds },
    };
    let mut plan = Plan {
        cgroup: cgroup::CgroupPlan::default(),
        namespaces: 0,
        steps: Vec::with_capacity(32),
        prepared: Vec::new(),
        maps: None,
        net_devices: Vec::new(),
        schedule: None,
        listener: None,
    };
    let affinity = process.exec_cpu_affinity().as_ref();
    if let Some(list) = affinity.and_then(|affinity| affinity.initial().as_deref()) {
        plan.steps.push(process::affinity(list, "process.execCPUAffinity.initial")?);
    }
    enter_namespaces(&request, linux, process, facts, &namespaces, &mut plan)?;
    let steps = &mut plan.steps;
    if wanted.waits {
        let at = usize::from(matches!(steps.first(), Some(Step::Undumpable)));
        steps.insert(at, Step::Await);
    }
    if let Some(list) = affinity.and_then(|affinity| affinity.cpu_affinity_final().as_deref()) {
        steps.push(process::affinity(list, "process.execCPUAffinity.final")?);
    }
    // From the caller's terminal, before anybody in the container can get hold of this process.
    steps.push(Step::NewSession);
    enter_root(wanted, namespaces.user, facts, steps)?;
    terminal(process, steps);
    let listener = become_the_container(&request, linux, process, facts, &namespaces, steps)?;
    let mut program = execute(process)?;
    program.preserved_fds = wanted.preserved_fds;
    let at = steps.iter().position(is_reduction).unwrap_or(steps.len());
    steps.insert(at, Step::WorkingDirectory(working_directory(process)?));
    steps.push(Step::Execute(program.clone()));
    if namespaces.needs_enter() {
        let traced = !namespaces.user && may_be_traced(wanted, process, facts);
        let allowed = listener.is_none() && filter::find(steps).is_some_and(seccomp::allows_a_second_process);
        second(program, traced || allowed, steps);
    } else {
        steps.insert(at + 1, Step::LookUp(program));
    }
    filter::place(steps, listener.is_some());
    plan.schedule = process::scheduler_of_the_second(steps);
    plan.listener = listener;
    Ok(plan)
}

fn enter_root(wanted: &ExecRequest<'_>, user: bool, facts: &Facts, steps: &mut Vec<Step>) -> Result<()> {
    if wanted.namespaces & LinuxNamespaceType::Mount as u64 != 0 {
        // Behind the entry of its mount namespace this is the container's root.
        steps.push(Step::OpenRoot(c"/".to_owned()));
    } else {
        steps.push(Step::OpenRoot(path(wanted.rootfs, "root.path")?));
    }
    if user {
        steps.push(Step::BecomeRoot { setgroups: facts.setgroups });
    }
    if !facts.privileged {
        steps.push(Step::Undumpable);
    }
    if wanted.keyring {
        steps.push(Step::Keyring);
    }
    if wanted.namespaces & LinuxNamespaceType::Mount as u64 == 0 {
        steps.push(Step::ChangeRoot);
    }
    Ok(())
}

fn terminal(process: &Process, steps: &mut Vec<Step>) {
    if process.terminal() == Some(true) {
        steps.push(Step::Terminal(Terminal { size: super::keeper::size(process), console: false }));
    }
}

/// What takes something away from the process.
fn is_reduction(step: &Step) -> bool {
    matches!(step, Step::Seccomp { .. } | Step::Credentials { .. })
}

/// Puts the steps in their places by which the process gets into the container's pid namespace. From then on those in it
/// see it, and who may trace everything (CAP_SYS_PTRACE) can make it do what it likes: so by then it is to be one of the
/// container's own in all that it may do (CVE-2016-9962). Only its program is missing.
///
/// A filter is loaded before that as well if `filter_first`. Else it comes behind these steps, so that it need not allow
/// what they take; and without no_new_privs, where only CAP_SYS_ADMIN may load one, the capabilities go behind it.
fn second(program: Execute, filter_first: bool, steps: &mut Vec<Step>) {
    let position = |wanted: fn(&Step) -> bool| steps.iter().position(wanted);
    let filter = position(|step| matches!(step, Step::Seccomp { .. }));
    let at = filter.filter(|_| !filter_first).unwrap_or(steps.len() - 1);
    let mut late = vec![Step::Second { new: 0 }, Step::NewSession];
    late.extend(position(|step| matches!(step, Step::Terminal(_))).map(|_| Step::ControlTerminal));
    if filter.is_none() || !filter_first {
        // Here, since its path may lead through the process' own folder in /proc.
        late.push(Step::LookUp(program));
    }
    steps.splice(at..at, late);
}

/// Whether somebody in the container may be able to trace all that is in its pid namespace: its own processes, the one
/// that is planned, or those of another container with which it shares the namespace.
fn may_be_traced(wanted: &ExecRequest<'_>, process: &Process, facts: &Facts) -> bool {
    let new = Sets::of(process.capabilities().as_ref(), facts.last_capability);
    let namespaces = wanted.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let shared = |namespace: &LinuxNamespace| {
        namespace.typ() == LinuxNamespaceType::Pid
            && namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty())
    };
    (wanted.bounding | new.bounding) & capabilities::SYS_PTRACE != 0
        || namespaces.into_iter().flatten().any(shared)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cgroup::Layout;

    /// The order of what matters, for a container in a pid namespace of its own.
    fn order(no_new_privileges: bool, bounding: u64, seccomp: Value, terminal: bool) -> Vec<&'static str> {
        let spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.0.2",
            "root": { "path": "rootfs" },
            "process": {
                "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["true"],
                "noNewPrivileges": no_new_privileges, "terminal": terminal,
            },
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }], "seccomp": seccomp },
        }))
        .unwrap();
        let facts = Facts {
            layout: Layout::default(),
            last_capability: 40,
            privileged: true,
            user_namespace: false,
            setgroups: true,
        };
        let wanted = ExecRequest {
            spec: &spec,
            user: None,
            group: &Group::default(),
            namespaces: LinuxNamespaceType::Pid as u64 | LinuxNamespaceType::Mount as u64,
            rootfs: Path::new("/rootfs"),
            keyring: true,
            bounding,
            preserved_fds: 0,
            waits: false,
        };
        let plan = exec_plan(&wanted, &facts).unwrap();
        let name = |step: &Step| match step {
            Step::Enter(_) => Some("enter"),
            Step::Second { .. } => Some("second"),
            Step::NewSession => Some("session"),
            Step::Terminal(_) => Some("terminal"),
            Step::ControlTerminal => Some("control"),
            Step::Credentials { .. } => Some("credentials"),
            Step::NoNewPrivileges => Some("no_new_privs"),
            Step::Seccomp { .. } => Some("filter"),
            Step::LookUp(_) => Some("look up"),
            Step::Execute(_) => Some("execute"),
            _ => None,
        };
        plan.steps.iter().filter_map(name).collect()
    }

    fn filter(refused: &[&str]) -> Value {
        json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": refused, "action": "SCMP_ACT_ERRNO" }],
        })
    }

    #[test]
    fn nothing_is_given_up_in_the_containers_sight() {
        let second = ["second", "session", "look up", "execute"];
        let plain = order(true, 0, Value::Null, false);
        assert_eq!(plain, [&["enter", "session", "credentials", "no_new_privs"], &second[..]].concat());
        let second = ["second", "session", "control", "execute"];
        let (mount, clone) = (filter(&["mount"]), filter(&["clone"]));
        for (bounding, profile) in [(0, &mount), (capabilities::SYS_PTRACE, &mount), (u64::MAX, &clone)] {
            let begin = ["enter", "session", "terminal", "filter", "credentials"];
            assert_eq!(order(false, bounding, profile.clone(), true), [&begin[..], &second].concat());
            let begin = ["enter", "session", "terminal", "credentials", "no_new_privs", "filter"];
            assert_eq!(order(true, bounding, profile.clone(), true), [&begin[..], &second].concat());
        }
    }

    #[test]
    fn a_filter_need_not_allow_what_nobody_can_make_use_of() {
        let enter = ["enter", "session"];
        let second = ["second", "session", "look up"];
        for refused in ["clone", "setsid", "ioctl", "exit_group", "sendmsg", "recvmsg"] {
            let profile = || filter(&[refused]);
            let end = ["filter", "credentials", "execute"];
            assert_eq!(order(false, 0, profile(), false), [&enter[..], &second, &end].concat(), "{refused}");
            let (begin, end) = (["credentials", "no_new_privs"], ["filter", "execute"]);
            let expected = [&enter[..], &begin, &second, &end].concat();
            assert_eq!(order(true, 0, profile(), false), expected, "{refused}");
        }
    }
}
