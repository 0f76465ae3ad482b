//! Plans a further process in a running container: the same steps as a launch's, as far as they make the process and not
//! the container.

use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};

use super::{
    Facts, Keeper, Namespaces, Plan, Request, Result, Step, Terminal, become_the_container, cgroup,
    enter_namespaces, execute, filter, invalid, path, process, working_directory,
};
use crate::api::Rootfs;
use crate::cgroup::Group;

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
    /// The container's id, if it has a session keyring of its own.
    pub(crate) keyring: Option<&'a str>,
    /// So many descriptors from 3 on are the program's.
    pub(crate) preserved_fds: u32,
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
        keeper: Keeper::Caller { state: "", preserved_fds: wanted.preserved_fds },
    };
    let mut plan = Plan {
        cgroup: cgroup::CgroupPlan::default(),
        namespaces: 0,
        steps: Vec::with_capacity(32),
        prepared: Vec::new(),
        maps: None,
        net_devices: Vec::new(),
        listener: None,
    };
    let affinity = process.exec_cpu_affinity().as_ref();
    if let Some(list) = affinity.and_then(|affinity| affinity.initial().as_deref()) {
        plan.steps.push(process::affinity(list, "process.execCPUAffinity.initial")?);
    }
    enter_namespaces(&request, linux, process, facts, &namespaces, &mut plan)?;
    let steps = &mut plan.steps;
    if let Some(list) = affinity.and_then(|affinity| affinity.cpu_affinity_final().as_deref()) {
        steps.push(process::affinity(list, "process.execCPUAffinity.final")?);
    }
    enter_root(wanted, namespaces.user, facts, steps)?;
    terminal(process, steps);
    let listener = become_the_container(&request, linux, process, facts, &namespaces, steps)?;
    finish(process, wanted.preserved_fds, steps)?;
    filter::place(steps, listener.is_some());
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
    if let Some(id) = wanted.keyring {
        steps.push(process::keyring(id)?);
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

/// The program, and what has to be known of it while nothing is filtered or given up yet.
fn finish(process: &Process, preserved_fds: u32, steps: &mut Vec<Step>) -> Result<()> {
    let mut program = execute(process)?;
    program.preserved_fds = preserved_fds;
    let filtered = |step: &Step| matches!(step, Step::Seccomp { .. } | Step::Credentials { .. });
    let at = steps.iter().position(filtered).unwrap_or(steps.len());
    steps
        .splice(at..at, [Step::WorkingDirectory(working_directory(process)?), Step::LookUp(program.clone())]);
    steps.push(Step::Execute(program));
    Ok(())
}
