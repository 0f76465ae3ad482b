//! The parent's side of a launch, for the monitor and for the OCI commands alike: makes the control groups, makes the
//! first process in them, and does for it what it cannot do for itself, until its program runs.
//!
//! ```text
//! parent                                       first process
//!   first_process ── clone3 ─────────────────> init::run: the plan's steps, in order
//!      makes the control groups                   mounts what it has by itself
//!      (a thread: network namespace) ─────────>   enters it …
//!      ──────────── groups are made ──────────>   joins the groups …
//!      answers <──────── Ask (channel) ──────────  maps, hooks, terminal, notify, created …
//!      ──────────────── answer ────────────────>
//!      the channel's end <──────────────────────  exec
//! ```
//!
//! A plan with [`crate::plan::Step::Second`] needs two processes: the one that is cloned here enters namespaces that
//! exist (a user namespace, a pid namespace), sooner or later makes the one that goes on, as our child and not as its own
//! (CLONE_PARENT), and ends. The kernel leaves the pid in memory that the two of us share and the new one does not have:
//! processes of the container may have that one in their hands, and speak for it.

mod begun;
mod channel;
pub(crate) mod groups;
mod maps;
mod netdevice;
mod prepare;
pub(crate) mod refused;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;

pub(crate) use begun::Begun;
pub(crate) use channel::{Ask, Channel, Gift, channel, send};

use crate::cgroup::systemd::Unit;
use crate::cgroup::{Made, explain_join};
use crate::fault;
use crate::init::{self, Failure, Fds, Stdio};
use crate::plan::cgroup::CgroupPlan;
use crate::plan::{IdMaps, NetDevice, Prepared, Step};
use crate::rdt;
use crate::seccomp::{self, Asked};
use crate::sys::{self, SchedAttr, SharedWord};

/// What is to be made.
pub(crate) struct Child<'a> {
    /// CLONE_NEW* flags.
    pub(crate) namespaces: u64,
    /// The cgroup2 directory to be born in.
    pub(crate) unified: Option<&'a Path>,
    /// The control groups to be made for it. It waits for them at [`Step::Await`].
    pub(crate) groups: Option<&'a CgroupPlan>,
    /// The class of service that it enters, while it waits at [`Step::Await`].
    pub(crate) rdt: Option<rdt::Entry>,
    /// Whose group that is, if systemd has made it.
    pub(crate) unit: Option<&'a Unit>,
    pub(crate) steps: &'a [Step],
    /// Mounts to be made before.
    pub(crate) prepared: &'a [Prepared],
    /// The ids of a new user namespace.
    pub(crate) maps: Option<&'a IdMaps>,
    /// Network devices of ours that become the container's.
    pub(crate) net_devices: &'a [NetDevice],
    /// What [`Ask::Schedule`] sets.
    pub(crate) schedule: Option<SchedAttr>,
    /// Whether we may write mappings and reach everything; see [`crate::plan::Facts`].
    pub(crate) privileged: bool,
    pub(crate) stdio: Stdio,
    /// A listening socket on which it waits until it is started.
    pub(crate) start: Option<OwnedFd>,
    /// What has been begun already.
    pub(crate) begun: Option<Begun>,
    /// A pidfd of the process whose namespaces it enters.
    pub(crate) target: Option<OwnedFd>,
    /// Who is asked about filtered system calls.
    pub(crate) listener: Option<Asked>,
    /// What there is to do once the process has all that it needs, when there is nothing but to wait for it.
    pub(crate) meanwhile: Option<&'a dyn Fn()>,
    /// A descriptor of ours that is none of the process' business: it closes it first of all.
    pub(crate) unneeded: Option<RawFd>,
}

/// How a question was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    GoOn,
    /// It does not wait for an answer.
    Unanswered,
    /// Nothing more is listened to: the process waits for somebody else.
    Leave,
}

/// Makes the control groups and the first process in them, and serves it until its program runs, or `answer` says
/// [`Flow::Leave`]. Returns its pid.
///
/// `answer` gets each question with the pid of the asking process, and before all others [`Ask::Born`], unless a
/// second process takes the place of the first. Upon any failure
/// the process is ended and reaped, and groups that were made are gone.
pub(crate) fn first_process(
    child: Child<'_>,
    answer: impl FnMut(&Ask, i32, Option<OwnedFd>) -> Result<Flow, Failure>,
) -> Result<i32, Failure> {
    let mut made = child.groups.map(groups::begin).transpose()?;
    let result = in_groups(child, made.as_mut(), answer);
    if let (Err(_), Some(made)) = (&result, made) {
        made.undo();
    }
    result
}

fn in_groups(
    mut child: Child<'_>,
    made: Option<&mut Made<'_>>,
    mut answer: impl FnMut(&Ask, i32, Option<OwnedFd>) -> Result<Flow, Failure>,
) -> Result<i32, Failure> {
    fault::at("parent", 2).map_err(|error| Failure::step("making groups", &error))?;
    let network = child.steps.iter().any(|step| matches!(step, Step::NewNetwork));
    let begun = child.begun.take().map_or_else(|| Begun::new(network), Ok);
    let mut begun = begun.map_err(|error| Failure::step("making a channel", &error))?;
    let (Some(ours), Some(theirs)) = (&begun.ours, begun.theirs.take()) else {
        return Err(Failure::step("making a channel", &io::Error::other("it is in use")));
    };
    let mounts = prepare::prepare(child.prepared)?;
    give_pipes_away(&child)?;
    fault::at("parent", 3).map_err(|error| Failure::step("making the first process", &error))?;
    let group = match child.unified {
        Some(dir) => {
            Some(File::open(dir).map_err(|error| Failure::step("opening the control group", &error))?)
        }
        None => None,
    };
    let notify = child.listener.as_ref().map(|_| SharedWord::new()).transpose();
    let notify = notify.map_err(|error| Failure::step("sharing memory", &error))?;
    let second = child.steps.iter().any(|step| matches!(step, Step::Second { .. }));
    let second = second.then(SharedWord::new).transpose();
    let second = second.map_err(|error| Failure::step("sharing memory", &error))?;
    let mut fds = Fds {
        stdio: child.stdio,
        channel: theirs,
        start: child.start,
        target: child.target,
        mounts,
        second,
        notify,
    };
    // While it mounts we make its groups.
    let moved = made.is_some() && fds.second.is_none() && waits(child.steps);
    let here = if moved { sys::keep_here() } else { None };
    let born = groups::born(child.namespaces, group.as_ref().map(AsFd::as_fd), child.unit);
    let mut pid = match born {
        Ok(None) => {
            // Else it would not see our end.
            drop(begun.ours.take());
            if let Some(fd) = child.unneeded {
                // One that stays open is closed as its program is executed.
                let _ = sys::close_range(fd as u32, fd as u32, false);
            }
            // Who made us leaves this processor to us, and may not have come to that.
            std::thread::yield_now();
            init::run(child.steps, fds)
        }
        Ok(Some(pid)) => pid,
        Err(error) => {
            let explained = child.unified.and_then(|dir| explain_join(dir, &error));
            let step = explained.unwrap_or_else(|| {
                let why = refused::explain(child.namespaces, &error);
                let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                format!("making the first process and its namespaces{why}")
            });
            return Err(Failure::step(step, &error));
        }
    };
    let (notify, second) = (fds.notify.take(), fds.second.take());
    let away = here.map(sys::Here::leave);
    if moved {
        // The thread that makes the network is where we are now, and is waited for sooner than the groups.
        sys::wait_until_network_is_sent();
    }
    drop(fds);
    let first = pid;
    let mut answer = |ask: &Ask, pid: i32, fd| match (ask, child.maps) {
        _ if pid != first && !is_foreseen(ask, child.steps) => Err(unanswered(ask)),
        (Ask::MapIds, Some(ids)) => maps::write(pid, ids, child.privileged).map(|()| Flow::GoOn),
        (Ask::NetDevices, _) => netdevice::move_all(child.net_devices, pid).map(|()| Flow::GoOn),
        (Ask::Schedule, _) => match &child.schedule {
            Some(attr) => sys::sched_setattr(pid, attr)
                .map(|()| Flow::GoOn)
                .map_err(|error| Failure::step(Step::Scheduler(*attr), &error)),
            None => Err(unanswered(ask)),
        },
        (Ask::Notify, _) => {
            if let (Some(asked), Some(word)) = (&child.listener, &notify) {
                seccomp::listener::hand_over(asked, pid, word)?;
            }
            Ok(Flow::Unanswered)
        }
        _ => answer(ask, pid, fd),
    };
    let told = if second.is_some() { Ok(Flow::Unanswered) } else { answer(&Ask::Born(pid), pid, None) };
    let served = told.and_then(|_| beside(made, child.rdt, (pid, moved), child.steps, ours));
    if let (Ok(()), Some(meanwhile)) = (&served, child.meanwhile) {
        meanwhile();
    }
    match served.and_then(|()| serve(ours, &mut pid, second.as_ref(), away, &mut answer)) {
        Ok(()) => Ok(pid),
        Err(failure) => {
            // Whatever it is doing, it is of no use any more; and it may be gone already.
            let _ = sys::kill(pid, libc::SIGKILL);
            let _ = sys::wait_for(pid);
            Err(failure)
        }
    }
}

/// Pipes for a user namespace: its root can then give them to its user; ours it could not touch.
fn give_pipes_away(child: &Child<'_>) -> Result<(), Failure> {
    let (Stdio::Pipes { stdin, stdout, stderr }, Some(maps), true) =
        (&child.stdio, child.maps, child.privileged)
    else {
        return Ok(());
    };
    let (uid, gid) = (maps.outside_root(false), maps.outside_root(true));
    stdin
        .iter()
        .chain([stdout, stderr])
        .try_for_each(|pipe| sys::fchown(pipe.as_fd(), uid, gid))
        .map_err(|error| Failure::step("giving the pipes away", &error))
}

/// What is left to do while the process mounts what it has by itself; then it may go on, with the files by which it joins
/// the groups: it may be where it does not find them any more. `moved`: it has [our processor](sys::keep_here).
fn beside(
    made: Option<&mut Made<'_>>,
    class: Option<rdt::Entry>,
    (pid, moved): (i32, bool),
    steps: &[Step],
    channel: &Channel,
) -> Result<(), Failure> {
    made.map_or(Ok(()), groups::finish)?;
    if let Some(class) = class {
        class.enter(pid).map_err(|error| Failure::step("entering the class of linux.intelRdt", &error))?;
    }
    if moved {
        let step = "letting the first process use all processors";
        sys::may_be_everywhere(pid).map_err(|error| Failure::step(step, &error))?;
    }
    if waits(steps) {
        let files = steps.iter().find_map(|step| match step {
            Step::JoinCgroups(files) => Some((step, files.as_slice())),
            _ => None,
        });
        let files = files.map_or(Ok(Vec::new()), |(step, files)| groups::open(step, files))?;
        // One that has ended has said why, which is read next.
        let _ = channel.give_groups(&files.iter().map(AsFd::as_fd).collect::<Vec<_>>());
    }
    Ok(())
}

/// Whether there is a step at which the process waits for its groups.
fn waits(steps: &[Step]) -> bool {
    steps.iter().any(|step| matches!(step, Step::Await))
}

fn serve(
    channel: &Channel,
    pid: &mut i32,
    second: Option<&SharedWord>,
    mut away: Option<sys::Away>,
    answer: &mut impl FnMut(&Ask, i32, Option<OwnedFd>) -> Result<Flow, Failure>,
) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::step("waiting for the first process", &error);
    while let Some((ask, fd)) = channel.receive().map_err(failed)? {
        follow(pid, second);
        // Who answers may make processes, which begin where we may be.
        away.take();
        if let Ask::Failed(failure) = ask {
            return Err(failure);
        }
        match answer(&ask, *pid, fd) {
            Ok(Flow::Unanswered) => {}
            Ok(flow) => {
                channel.answer(Ok(())).map_err(failed)?;
                if flow == Flow::Leave {
                    return Ok(());
                }
            }
            Err(failure) => {
                // It could not go on anyway; why, the caller knows better than it.
                let _ = channel.answer(Err(&failure));
                return Err(failure);
            }
        }
    }
    follow(pid, second);
    Ok(())
}

/// Whether a second process has this to ask. Others may have it in their hands, and it is not to ask for more than that.
fn is_foreseen(ask: &Ask, steps: &[Step]) -> bool {
    let by_then = steps.iter().skip_while(|step| !matches!(step, Step::Second { .. }));
    let mut by_then = by_then.map(|step| match (step, ask) {
        (Step::Ask(planned), _) => planned == ask,
        (Step::Terminal(_), Ask::Terminal) | (Step::Seccomp { .. }, Ask::Notify) => true,
        _ => false,
    });
    matches!(ask, Ask::Created | Ask::Failed(_)) || by_then.any(|planned| planned)
}

/// Turns to the second process, if there is one by now: the first one asks nothing once it has made it.
fn follow(pid: &mut i32, second: Option<&SharedWord>) {
    let made = second.map_or(0, SharedWord::get) as i32;
    if made != 0 && made != *pid {
        // It has nothing left to do but to end.
        let _ = sys::wait_for(*pid);
        *pid = made;
    }
}

/// The answer to what a parent does not do.
pub(crate) fn unanswered(ask: &Ask) -> Failure {
    Failure::step(
        "answering the first process",
        &io::Error::other(format!("{ask:?} is nothing that is done here")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_asks_only_for_what_was_planned() {
        let steps = [Step::Ask(Ask::Hooks), Step::Second { new: 0 }, Step::Ask(Ask::Schedule), Step::Created];
        for (ask, expected) in [
            (Ask::Hooks, false),
            (Ask::Schedule, true),
            (Ask::Created, true),
            (Ask::MapIds, false),
            (Ask::Terminal, false),
            (Ask::Notify, false),
        ] {
            assert_eq!(is_foreseen(&ask, &steps), expected, "{ask:?}");
        }
        let filtered = [Step::Second { new: 0 }, Step::Seccomp { program: Vec::new(), flags: 0 }];
        assert!(is_foreseen(&Ask::Notify, &filtered));
    }
}
