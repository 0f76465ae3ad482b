//! Executes a further process in a container that runs: for the OCI command line and for the monitor alike.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::cgroup::{Group, Layout};
use crate::error::chain;
use crate::fault;
use crate::host;
use crate::init::{Failure, Kind, Stdio};
use crate::plan::{self, ExecRequest};
use crate::rdt;
use crate::record;
use crate::seccomp::Asked;
use crate::spawn::{self, Ask, Child, Flow};
use crate::sys;

/// The namespaces of a process: files below /proc/<pid>/ns and their CLONE_NEW* flags.
const NAMESPACES: [(&str, i32); 8] = [
    ("user", libc::CLONE_NEWUSER),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("net", libc::CLONE_NEWNET),
    ("pid", libc::CLONE_NEWPID),
    ("time", 0x80),
    ("mnt", libc::CLONE_NEWNS),
];

/// What is executed, and where.
#[derive(Debug)]
pub(crate) struct Exec<'a> {
    /// The container's specification, with the new process in place of its own.
    pub(crate) spec: &'a Spec,
    /// `user[:group]`, each by name or number, to be looked up in the container instead of the specification's numbers.
    pub(crate) user: Option<&'a str>,
    /// The container's id and bundle, for whoever is asked about filtered system calls.
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
    /// The container's first process, and when the kernel started it.
    pub(crate) pid: i32,
    pub(crate) start_ticks: u64,
    /// The container's groups.
    pub(crate) group: &'a Group,
    /// Its class of service.
    pub(crate) rdt: Option<&'a rdt::Groups>,
    /// Groups below the container's to join instead, as `[controller:]path`.
    pub(crate) below: &'a [String],
    pub(crate) rootfs: &'a Path,
    /// Whether the container keeps out of the host's session keyring.
    pub(crate) keyring: bool,
    pub(crate) stdio: Stdio,
    /// So many descriptors from 3 on are the program's.
    pub(crate) preserved_fds: u32,
}

/// Starts the process, and returns its pid once its program has been executed: a child of ours. `terminal` gets the
/// master of its terminal, if the process has one.
pub(crate) fn start(
    exec: Exec<'_>,
    mut terminal: impl FnMut(OwnedFd) -> Result<(), Failure>,
) -> Result<i32, Failure> {
    let failed = |error: crate::Error| Failure::step("reading the machine", &io::Error::other(chain(&error)));
    let target = open_process(exec.pid, exec.start_ticks)
        .and_then(|target| target.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(|error| Failure::step("opening the container's first process", &error))?;
    fault::at("exec", 1).map_err(|error| Failure::step("looking at the container", &error))?;
    let layout = Layout::discover().map_err(failed)?;
    let group = group(&exec, &layout).map_err(failed)?;
    let facts = host::facts(layout).map_err(failed)?;
    let rdt = exec.rdt.and_then(rdt::Groups::entry);
    let wanted = ExecRequest {
        spec: exec.spec,
        user: exec.user,
        group: &group,
        namespaces: foreign_namespaces(exec.pid)?,
        rootfs: exec.rootfs,
        keyring: exec.keyring,
        bounding: bounding_capabilities(exec.pid),
        preserved_fds: exec.preserved_fds,
        waits: rdt.is_some(),
    };
    let plan = plan::exec_plan(&wanted, &facts).map_err(|wrong| Failure {
        kind: Kind::Spec,
        subject: wrong.field,
        errno: None,
        detail: wrong.reason,
    })?;
    let asked = |listener| Asked::running(listener, exec.id, exec.bundle, exec.spec, exec.pid);
    let child = Child {
        namespaces: plan.namespaces,
        groups: None,
        rdt,
        unified: group.unified.as_deref(),
        unit: group.unit.as_ref(),
        steps: &plan.steps,
        prepared: &plan.prepared,
        maps: None,
        net_devices: &[],
        schedule: plan.schedule,
        privileged: facts.privileged,
        stdio: exec.stdio,
        start: None,
        begun: None,
        meanwhile: None,
        unneeded: None,
        target: Some(target),
        listener: plan.listener.as_ref().map(asked),
    };
    // Once: it comes while the process is out of the container's reach.
    let mut terminals =
        u32::from(exec.spec.process().as_ref().is_some_and(|process| process.terminal() == Some(true)));
    spawn::first_process(child, |ask, _, fd| match (ask, fd) {
        (Ask::Terminal, Some(fd)) if terminals > 0 => {
            terminals -= 1;
            let fault = |error: io::Error| Failure::step("handing out the terminal", &error);
            fault::at("exec", 2).map_err(fault)?;
            terminal(fd)?;
            fault::at("exec", 3).map_err(fault).map(|()| Flow::GoOn)
        }
        (Ask::Born(_), _) => Ok(Flow::Unanswered),
        (other, _) => Err(spawn::unanswered(other)),
    })
}

/// The bounding set of a process; all that there are if it cannot be told.
fn bounding_capabilities(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let found = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    found.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(u64::MAX)
}

/// A process by a descriptor that no other can come to stand for; `None` if it is gone.
pub(crate) fn open_process(pid: i32, start_ticks: u64) -> io::Result<Option<OwnedFd>> {
    let process = match sys::pidfd_open(pid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        other => other?,
    };
    // Looked at after it was opened: if it is the right one now, the descriptor is of the right one.
    Ok((record::start_ticks(pid) == Some(start_ticks)).then_some(process))
}

/// The groups to join: the container's, or groups below them.
fn group(exec: &Exec<'_>, layout: &Layout) -> crate::Result<Group> {
    if !exec.below.is_empty() {
        return exec.group.sub(exec.below);
    }
    let mut group = exec.group.clone();
    if group.is_v2() {
        // Its own group takes no process once it has handed controllers down.
        group.unified = layout.unified_of(exec.pid).or(group.unified);
    }
    Ok(group)
}

/// Which namespaces of a process are not our own.
fn foreign_namespaces(pid: i32) -> Result<u64, Failure> {
    let mut foreign = 0;
    for (name, flag) in NAMESPACES {
        // A kernel without time namespaces has no such file.
        let Ok(ours) = fs::metadata(format!("/proc/self/ns/{name}")) else { continue };
        let path = PathBuf::from(format!("/proc/{pid}/ns/{name}"));
        let theirs = fs::metadata(&path)
            .map_err(|error| Failure::step(format!("looking at namespace {}", path.display()), &error))?;
        if (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()) {
            foreign |= flag as u64;
        }
    }
    Ok(foreign)
}
