//! The container's first process, between its making and the program: it executes the plan's steps in order. Nothing is
//! decided here. The first step that fails ends it, with a [`Failure`] for the monitor.

mod copyup;
mod devices;
mod files;
mod label;
mod mount;
mod namespace;
mod proc;
mod program;
mod root;
mod terminal;
mod user;

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use oci_spec::runtime::Hook;
use serde::{Deserialize, Serialize};

use crate::fault;
use crate::hooks;
use crate::plan::Step;
use crate::plan::capabilities::Sets;
use crate::seccomp;
use crate::spawn::{Ask, Channel, Gift};
use crate::sys::{self, SharedWord};

pub(crate) use root::{detached as detached_root, unescaped};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use user::resolved;

/// Why a container did not start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    /// What it was about: a command, a user, a step.
    pub(crate) subject: String,
    /// The kernel's answer, if it was one.
    pub(crate) errno: Option<i32>,
    /// More about it.
    pub(crate) detail: String,
}

/// What a failure is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Spec,
    CommandNotFound,
    CommandNotExecutable,
    UnknownUser,
    WorkingDirectory,
    Step,
}

impl Failure {
    /// A step that the kernel refused.
    pub(crate) fn step(step: impl ToString, error: &io::Error) -> Failure {
        Failure::new(Kind::Step, step, error)
    }

    fn new(kind: Kind, subject: impl ToString, error: &io::Error) -> Failure {
        let detail = if error.raw_os_error().is_some() { String::new() } else { error.to_string() };
        Failure { kind, subject: subject.to_string(), errno: error.raw_os_error(), detail }
    }

    /// The error again, for a caller.
    pub(crate) fn error(&self) -> io::Error {
        match self.errno {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::other(self.detail.clone()),
        }
    }
}

/// What becomes of standard input, output and error.
#[derive(Debug)]
pub(crate) enum Stdio {
    /// Output goes into these; input comes from the one, or from the container's null device.
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
    /// They are those of the process that makes the container.
    Inherited,
}

/// The descriptors that the first process gets from its parent.
#[derive(Debug)]
pub(crate) struct Fds {
    pub(crate) stdio: Stdio,
    /// Closed by a successful exec; else it carries the failure.
    pub(crate) channel: Channel,
    /// Where [`Step::Created`] waits until the container is started; `None`: it is started at once.
    pub(crate) start: Option<OwnedFd>,
    /// A pidfd of the process whose namespaces [`Step::Enter`] enters.
    pub(crate) target: Option<OwnedFd>,
    /// What the plan calls prepared: mounts that are attached nowhere yet.
    pub(crate) mounts: Vec<OwnedFd>,
    /// Where [`Step::Second`] leaves the pid of the process that it makes.
    pub(crate) second: Option<SharedWord>,
    /// Where a filter that asks leaves the number of the descriptor that it asks with.
    pub(crate) notify: Option<SharedWord>,
}

impl Fds {
    /// All that are needed behind [`Step::Enter`].
    fn numbers(&self) -> Vec<RawFd> {
        let pipes = match &self.stdio {
            Stdio::Pipes { stdin, stdout, stderr } => {
                vec![
                    stdin.as_ref().map(AsRawFd::as_raw_fd),
                    Some(stdout.as_raw_fd()),
                    Some(stderr.as_raw_fd()),
                ]
            }
            Stdio::Inherited => Vec::new(),
        };
        let start = self.start.as_ref().map(AsRawFd::as_raw_fd);
        let mounts = self.mounts.iter().map(AsRawFd::as_raw_fd);
        pipes.into_iter().chain([start, Some(self.channel.number())]).flatten().chain(mounts).collect()
    }
}

/// What one step leaves for a later one.
#[derive(Debug, Default)]
struct State {
    root: Option<OwnedFd>,
    /// The container's proc file system, before anything could be mounted on it.
    proc: Option<OwnedFd>,
    /// Proc file systems of the pid namespace that is joined, to be mounted.
    proc_contexts: Vec<OwnedFd>,
    /// Its null device, checked.
    null: Option<OwnedFd>,
    /// Mounts that are made read-only once all is mounted.
    unsealed: Vec<OwnedFd>,
    /// An empty read-only folder, of which copies are mounted on masked folders.
    empty: Option<OwnedFd>,
    user: user::Identity,
    /// Standard input, output and error are a terminal of the container's own.
    terminal: bool,
    /// What the parent has given: files to join the groups by, and a network namespace.
    groups: Option<Vec<OwnedFd>>,
    network: Option<Option<OwnedFd>>,
}

impl State {
    fn root(&self) -> io::Result<BorrowedFd<'_>> {
        self.root.as_ref().map(AsFd::as_fd).ok_or_else(|| io::Error::other("no root file system is mounted"))
    }
}

/// Executes the steps. Returns only by ending the process.
pub(crate) fn run(steps: &[Step], mut fds: Fds) -> ! {
    let failure = match execute(steps, &mut fds) {
        Ok(()) => {
            Failure::new(Kind::Step, "executing the plan", &io::Error::other("the plan has no program"))
        }
        Err(failure) => failure,
    };
    // The parent sees the end of the channel at least, and our exit code.
    let _ = fds.channel.tell(&Ask::Failed(failure));
    sys::exit_now(1)
}

fn execute(steps: &[Step], fds: &mut Fds) -> Result<(), Failure> {
    let mut state = State::default();
    for (index, step) in steps.iter().enumerate() {
        fault::at("init", index).map_err(|error| Failure::step(step, &error))?;
        match step {
            Step::FindUser(wanted) => {
                let found =
                    state.root().map_err(|error| error.to_string()).and_then(|root| user::find(wanted, root));
                let subject = || match wanted {
                    crate::plan::User::Named(name) => name.clone(),
                    crate::plan::User::Ids { uid, gid, .. } => format!("{uid}:{gid}"),
                };
                state.user = found.map_err(|detail| Failure {
                    kind: Kind::UnknownUser,
                    subject: subject(),
                    errno: None,
                    detail,
                })?;
            }
            Step::MakeDirectory(path) | Step::WorkingDirectory(path) => {
                let making = matches!(step, Step::MakeDirectory(_));
                let result = state.root().and_then(|root| files::working_directory(root, path, making));
                result.map_err(|error| {
                    Failure::new(Kind::WorkingDirectory, format!("/{}", path.to_string_lossy()), &error)
                })?;
            }
            Step::Await => receive(&mut state, fds, |state| state.groups.is_some())?,
            Step::NewNetwork => {
                receive(&mut state, fds, |state| state.network.is_some())?;
                let given = state.network.take().flatten();
                namespace::network(given).map_err(|error| Failure::step(step, &error))?;
            }
            Step::Ask(ask) => fds.channel.ask(ask, None)?,
            Step::Created => wait_for_start(fds)?,
            Step::Hooks { point, hooks, state: told } => run_hooks(point, hooks, told, &state)?,
            Step::LookUp(program) => program::look_up(program, &state)?,
            Step::Execute(program) => return Err(program::exec(program, &state)),
            other => perform(other, &mut state, fds).map_err(|error| Failure::step(other, &error))?,
        }
    }
    Ok(())
}

fn perform(step: &Step, state: &mut State, fds: &Fds) -> io::Result<()> {
    match step {
        Step::Undumpable => sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop),
        // "0" is this very thread. Written by ourselves into `tasks` it spares the kernel the wait that moving another
        // process costs: measured 0.45 ms instead of 9.6 ms.
        Step::JoinCgroups(paths) => match state.groups.take() {
            Some(files) => files.into_iter().try_for_each(|file| File::from(file).write_all(b"0")),
            None => paths.iter().try_for_each(|path| files::write(sys::CWD, path, b"0")),
        },
        Step::OomScore(score) => {
            files::write(sys::CWD, c"/proc/self/oom_score_adj", score.to_string().as_bytes())
        }
        Step::ResourceLimit { resource, soft, hard, .. } => sys::setrlimit(*resource, *soft, *hard),
        Step::IoPriority(priority) => sys::ioprio_set(*priority),
        Step::Scheduler(attr) => sys::sched_setattr(0, attr),
        Step::CpuAffinity(mask) => sys::sched_setaffinity(mask),
        Step::MemoryPolicy { mode, nodes } => sys::set_mempolicy(*mode, nodes),
        Step::Personality(persona) => sys::personality(*persona),
        Step::AppArmor(text) => label::apparmor(text),
        Step::SeLinux { label, keyring } => label::selinux(label, *keyring),
        Step::Keyring => match sys::new_session_keyring() {
            // A kernel without keys has none to hide.
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            other => other,
        },
        Step::JoinNamespace(join) => namespace::join(join, fds),
        Step::NewTimeNamespace { offsets } => namespace::new_time(offsets),
        Step::BecomeRoot { setgroups } => {
            let none: &[u32] = &[];
            sys::become_user(0, 0, setgroups.then_some(none))
        }
        Step::NewCgroupNamespace => sys::unshare(libc::CLONE_NEWCGROUP),
        Step::NewSession => nix::unistd::setsid().map(drop).map_err(io::Error::from),
        Step::DetachMounts { propagation } => sys::mount(c"", c"/", c"", *propagation, c""),
        Step::MountRoot { source, mountpoint, shared } => {
            state.root = Some(root::mount_root(source, mountpoint, *shared, &fds.mounts)?);
            Ok(())
        }
        Step::OpenRoot(path) => {
            state.root = Some(sys::openat2(sys::CWD, path, libc::O_PATH | libc::O_DIRECTORY, 0, 0)?);
            Ok(())
        }
        Step::Mount(plan) => {
            let contexts = &mut std::mem::take(&mut state.proc_contexts);
            let mounted = mount::mount(state.root()?, plan, &fds.mounts, contexts)?;
            state.proc_contexts = std::mem::take(contexts);
            if plan.target.as_bytes() == b"proc" {
                state.proc = Some(mounted);
            } else if plan.seal {
                state.unsealed.push(mounted);
            }
            Ok(())
        }
        Step::Link { path, target } => files::make_link(state.root()?, path, target),
        Step::Seal => state.unsealed.drain(..).try_for_each(|mount| root::read_only(mount.as_fd())),
        Step::Devices { devices, bind } => {
            state.null = Some(devices::make(state.root()?, devices, *bind)?);
            Ok(())
        }
        Step::GivenDevices => {
            state.null = devices::null(state.root()?)?;
            Ok(())
        }
        Step::LoopbackUp => sys::loopback_up(),
        Step::Hostname(name) => sys::set_name(false, name),
        Step::Domainname(name) => sys::set_name(true, name),
        Step::Pivot { shared } => root::pivot(state.root()?, *shared),
        Step::MoveRoot => root::move_root(state.root()?),
        Step::ChangeRoot => root::change_root(state.root()?),
        Step::RootPropagation(propagation) => sys::mount_setattr(state.root()?, 0, 0, *propagation, false),
        Step::Sysctl { path, value } => {
            let proc = state.proc.as_ref().ok_or_else(|| io::Error::other("/proc is not mounted"))?;
            files::write_below(proc.as_fd(), path, value)
        }
        Step::Mask(path) => mask(state, path),
        Step::ReadOnly(path) => root::make_read_only(state.root()?, path),
        Step::ReadOnlyRoot => root::read_only(state.root()?),
        Step::Stdio => stdio(state, &fds.stdio),
        Step::Credentials { sets, last_capability, umask, setgroups } => {
            sys::umask(*umask);
            let groups = setgroups.then_some(state.user.groups.as_slice());
            credentials(sets, *last_capability, &state.user, groups)
        }
        Step::NoNewPrivileges => sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop),
        Step::CloseOnExec { first } => {
            sys::reset_signals().and_then(|()| sys::close_range(*first, u32::MAX, true))
        }
        Step::Seccomp { program, flags } => match &fds.notify {
            Some(word) => {
                fds.channel.tell(&Ask::Notify)?;
                seccomp::listener::load(program, *flags, word)
            }
            None => sys::load_seccomp(program, *flags).map(drop),
        },
        Step::DieWithMonitor => die_with_monitor(fds),
        Step::Terminal(wanted) => {
            terminal::make(wanted, state.root()?, &fds.channel)?;
            state.terminal = true;
            Ok(())
        }
        Step::ControlTerminal => sys::make_controlling_terminal(io::stdin().as_fd()),
        Step::OpenProc { namespace, count, filter } => {
            state.proc_contexts = proc::open(namespace, *count, filter, fds)?;
            Ok(())
        }
        Step::Enter(joins) => namespace::enter(joins, fds),
        Step::Second { new } => namespace::second(*new, fds),
        Step::FindUser(_)
        | Step::MakeDirectory(_)
        | Step::WorkingDirectory(_)
        | Step::Await
        | Step::NewNetwork
        | Step::Ask(_)
        | Step::Created
        | Step::Hooks { .. }
        | Step::LookUp(_)
        | Step::Execute(_) => Ok(()),
    }
}

/// Takes what the parent gives, until what is needed is there: it comes in no certain order.
fn receive(state: &mut State, fds: &Fds, is_there: fn(&State) -> bool) -> Result<(), Failure> {
    while !is_there(state) {
        match fds.channel.gift()? {
            Gift::Groups(files) => state.groups = Some(files),
            Gift::Network(network) => state.network = Some(network),
        }
    }
    Ok(())
}

fn mask(state: &mut State, path: &CStr) -> io::Result<()> {
    let Some(target) = files::open_fixed(state.root()?, path)? else { return Ok(()) };
    let is_dir = sys::fstat(target.as_fd())?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    let source = match (is_dir, &state.empty, &state.null) {
        (true, Some(empty), _) => empty,
        (false, _, Some(null)) => null,
        (true, None, _) => {
            // The first one is mounted itself: before Linux 6.15 only a mount that is attached can be copied.
            let empty = root::empty_folder()?;
            sys::move_mount(empty.as_fd(), target.as_fd())?;
            state.empty = Some(empty);
            return Ok(());
        }
        (false, _, None) => return Err(io::Error::other("there is no null device")),
    };
    let copy = sys::open_tree(source.as_raw_fd(), c"", false)?;
    sys::move_mount(copy.as_fd(), target.as_fd())
}

fn stdio(state: &State, stdio: &Stdio) -> io::Result<()> {
    let own = |fd: BorrowedFd<'_>, gid: u32| match sys::fchown(fd, state.user.uid, gid) {
        // Not ours to give away (rootless, read-only): it stays usable as it is open.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EINVAL | libc::EROFS)) => {
            Ok(())
        }
        other => other,
    };
    match stdio {
        Stdio::Pipes { stdin, stdout, stderr } => {
            if stdin.is_none() {
                // The host's null device would do as well, but its owner and mode could then be changed from inside.
                let flags = libc::O_RDONLY | libc::O_NOFOLLOW;
                let null = sys::openat2(state.root()?.as_raw_fd(), c"dev/null", flags, 0, 0)?;
                files::check_null(null.as_fd())?;
                sys::dup_to(null.as_fd(), 0)?;
            }
            let input = stdin.iter().map(|pipe| (pipe, 0));
            for (pipe, number) in input.chain([(stdout, 1), (stderr, 2)]) {
                // So that a program without privileges can open /dev/stdout.
                own(pipe.as_fd(), state.user.gid)?;
                sys::dup_to(pipe.as_fd(), number)?;
            }
        }
        // Its group is the one that devpts gives to all terminals.
        Stdio::Inherited if state.terminal => own(io::stdin().as_fd(), u32::MAX)?,
        Stdio::Inherited => {
            for fd in [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()] {
                // Pipes and sockets of the caller, made for this; a null device, a file or a terminal of the host is
                // everybody's.
                let kind = sys::fstat(fd)?.st_mode & libc::S_IFMT;
                if kind == libc::S_IFIFO || kind == libc::S_IFSOCK {
                    own(fd, state.user.gid)?;
                }
            }
        }
    }
    Ok(())
}

/// Says that all is made, and waits until it is to be started. From then on failures go to whoever started it.
fn wait_for_start(fds: &mut Fds) -> Result<(), Failure> {
    fds.channel.ask(&Ask::Created, None)?;
    let Some(listener) = fds.start.take() else { return Ok(()) };
    let failed = |error: io::Error| Failure::step("waiting to be started", &error);
    let connection = sys::accept(listener.as_fd()).map_err(failed)?;
    fds.channel = Channel::from_fd(connection);
    fds.channel.ask(&Ask::Created, None)
}

fn credentials(
    sets: &Sets,
    last_capability: u32,
    user: &user::Identity,
    groups: Option<&[u32]>,
) -> io::Result<()> {
    for capability in 0..=last_capability {
        if sets.bounding & (1 << capability) == 0 {
            sys::prctl(libc::PR_CAPBSET_DROP, capability.into(), 0)?;
        }
    }
    sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0)?;
    sys::become_user(user.uid, user.gid, groups)?;
    sys::prctl(libc::PR_SET_KEEPCAPS, 0, 0)?;
    sys::capset(sets.effective, sets.permitted, sets.inheritable)?;
    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)?;
    for capability in (0..=last_capability).filter(|capability| sets.ambient & (1 << capability) != 0) {
        sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, capability.into())?;
    }
    Ok(())
}

/// A change of user clears the wish to die with the parent, so this comes late; the monitor may have died meanwhile,
/// which shows in the channel.
fn die_with_monitor(fds: &Fds) -> io::Result<()> {
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0)?;
    if fds.channel.is_closed()? {
        return Err(io::Error::other("the monitor has died"));
    }
    Ok(())
}

fn run_hooks(point: &str, hooks: &[Hook], told: &str, state: &State) -> Result<(), Failure> {
    if point == "createContainer" {
        // Where runc lets them start, too: they reach into the root file system before it is entered.
        let inside = state.root().and_then(|root| Ok(nix::unistd::fchdir(root)?));
        inside.map_err(|error| Failure::step("changing to the root file system", &error))?;
    }
    // As it is seen from in here.
    let told = told.replacen("\"pid\":0", &format!("\"pid\":{}", std::process::id()), 1);
    hooks::run(hooks, &told, hooks::Environment::Empty).map_err(|failed| {
        let step = format!("error running {point} hook #{}", failed.index);
        Failure::step(step, &io::Error::other(failed.reason))
    })
}
