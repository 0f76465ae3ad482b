//! `create`, and what it has in common with `run`: from a bundle to a first process that waits.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use oci_spec::runtime::{Process, Spec};

use super::args::Matches;
use super::config::{self, Bundle};
use super::console::{self, ConsoleSocket};
use super::context::{Context, Manager};
use super::error::{Error, Result};
use super::log;
use super::state::{Lock, Place, Record, State, Status};
use super::{delete, notify, start};
use crate::api::Rootfs;
use crate::cgroup::{self, Group, Layout, Wanted};
use crate::fault;
use crate::hooks::{self, Environment};
use crate::host;
use crate::init::{Failure, Kind, Stdio};
use crate::plan::{self, Facts, Keeper, LISTEN_PID, Plan, Request};
use crate::rdt;
use crate::record;
use crate::seccomp::Asked;
use crate::spawn::{self, Ask, Begun, Child, Flow};
use crate::sys;

/// What the options of `create` and `run` ask for.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) pid_file: Option<PathBuf>,
    pub(super) console: Option<ConsoleSocket>,
    /// So many descriptors from 3 on are the program's; how many of them are LISTEN_FDS'.
    preserved: Preserved,
    no_pivot: bool,
    no_new_keyring: bool,
}

/// Descriptors for the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Preserved {
    pub(super) all: u32,
    pub(super) listening: u32,
}

impl Options {
    pub(super) fn new(matches: &Matches) -> Result<Options> {
        let console = matches.value("console-socket").filter(|path| !path.is_empty());
        Ok(Options {
            pid_file: matches.value("pid-file").filter(|path| !path.is_empty()).map(PathBuf::from),
            console: console.map(|path| ConsoleSocket::connect(Path::new(path))).transpose()?,
            preserved: preserved(matches.number("preserve-fds")?.unwrap_or(0))?,
            no_pivot: matches.is_set("no-pivot"),
            no_new_keyring: matches.is_set("no-new-keyring"),
        })
    }
}

/// Descriptors that are passed on: those of socket activation (sd_listen_fds(3)) and `more`. All have to be open.
pub(super) fn preserved(more: u32) -> Result<Preserved> {
    let text = std::env::var("LISTEN_FDS").unwrap_or_default();
    let listening = if text.is_empty() {
        0
    } else {
        text.parse().map_err(|_| Error::Usage(format!("LISTEN_FDS is {text:?}, which is not a number")))?
    };
    let all: u32 = more.saturating_add(listening);
    for fd in (3..).take(all as usize) {
        if !sys::is_open(fd) {
            return Err(Error::Usage(format!(
                "descriptor {fd} is not open, and {all} from 3 on are to be passed on (LISTEN_FDS and --preserve-fds)"
            )));
        }
    }
    Ok(Preserved { all, listening })
}

/// A container that is being made. Until it is done, dropping it has to be told to take it away ([`Making::undo`]).
pub(super) struct Making<'a> {
    context: &'a Context,
    pub(super) place: Place,
    pub(super) record: Record,
    pub(super) spec: Box<Spec>,
    facts: Facts,
    options: &'a Options,
    /// Until then the groups that the record names may be somebody else's.
    has_groups: bool,
    /// The class of service that is to be made.
    rdt: Option<rdt::Making>,
    has_rdt: bool,
    lock: Option<Lock>,
    /// Until the first process is made.
    begun: Option<Begun>,
}

/// `create`.
pub(super) fn create(context: &Context, matches: &Matches) -> Result<u8> {
    let options = Options::new(matches)?;
    sys::begin_ahead();
    sys::make_ready();
    let mut making = Making::begin(context, matches, &options, false)?;
    let made = start::listen(&making.place).and_then(|listener| {
        making.first_process(Some(listener), None)?;
        making.write_pid_file()
    });
    if let Err(error) = made {
        making.undo();
        return Err(error);
    }
    Ok(0)
}

impl<'a> Making<'a> {
    /// Reads the bundle and writes down that the container is being made. `attached`: we stay until it ends.
    pub(super) fn begin(
        context: &'a Context,
        matches: &Matches,
        options: &'a Options,
        attached: bool,
    ) -> Result<Making<'a>> {
        let place = context.place(matches.word(0))?;
        let Bundle { dir, rootfs, mut spec, text, warnings } =
            config::load(matches.value("bundle").unwrap_or("."), matches.value("config"), |text| {
                // So that the kernel can make its network namespace while we think about all else.
                if plan::seems_to_make_network(text) {
                    sys::begin_new_network();
                }
            })?;
        let terminal = spec.process().as_ref().is_some_and(|process| process.terminal() == Some(true));
        console::check(terminal, options.console.is_some(), attached)?;
        let begun = Begun::new(plan::makes_network(&spec)).map_err(Error::system("making a channel"))?;
        warnings.iter().for_each(|warning| context.log.warn(warning));
        let lock = place.create()?;
        let fault = |source| Error::System { operation: "making the container".to_owned(), source };
        let making = || -> Result<Making<'a>> {
            if let Some(process) = spec.process_mut() {
                announce_listeners(process, options.preserved.listening);
            }
            notify::announce(&place, &mut spec)?;
            if let (Some(process), None) = (spec.process_mut(), &options.console) {
                console::size_as_ours(process);
            }
            let facts = host::facts(Layout::discover()?)?;
            let rdt = rdt(&spec, &place.id)?;
            let annotations = spec.annotations().iter().flatten();
            let record = Record {
                oci_version: spec.version().clone(),
                id: place.id.clone(),
                pid: 0,
                start_ticks: 0,
                bundle: dir,
                rootfs,
                created: log::now(9),
                owner: sys::euid(),
                keyring: !options.no_new_keyring,
                hooks: spec.hooks().is_some(),
                annotations: annotations
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect::<BTreeMap<_, _>>(),
                group: group(context, &facts, &spec, &place.id)?,
                rdt: rdt.as_ref().map(|making| making.groups().clone()),
            };
            fault::at("parent", 0).map_err(fault)?;
            place.write(&record, &text)?;
            fault::at("parent", 1).map_err(fault)?;
            let place = place.clone();
            let (lock, begun) = (Some(lock), Some(begun));
            let (has_groups, has_rdt) = (false, false);
            Ok(Making { context, place, record, spec, facts, options, has_groups, rdt, has_rdt, lock, begun })
        };
        making().inspect_err(|_| {
            // The failure that counts is the one that is returned.
            let _ = place.remove();
        })
    }

    /// Makes groups and first process. With a `listener` it waits there to be started, and nobody listens to it any
    /// more; else it goes on at once, and this returns when its program runs. `terminal` gets the master of its
    /// terminal, if no socket does.
    pub(super) fn first_process(
        &mut self,
        listener: Option<OwnedFd>,
        mut terminal: Option<&mut Option<OwnedFd>>,
    ) -> Result<()> {
        let leave = listener.is_some();
        let plan = self.plan(leave)?;
        let begun = self.begun.take();
        let group = self.record.group.clone();
        let rdt = self.rdt.take().map(rdt::Making::make).transpose()?;
        self.has_rdt = rdt.is_some();
        let asked = plan.listener.as_ref();
        let asked =
            asked.map(|listener| Asked::creating(listener, &self.record.id, &self.record.bundle, &self.spec));
        // Our file is in a mount that goes away with the last descriptor: once the kernel is sure that nobody can be in it.
        // That takes a while.
        let (context, place) = (self.context, self.place.clone());
        let meanwhile = || {
            drop(context.program.take());
            if !leave {
                place.prepare_next();
            }
        };
        let child = Child {
            namespaces: plan.namespaces,
            groups: Some(&plan.cgroup),
            rdt,
            unified: group.unified.as_deref(),
            unit: group.unit.as_ref(),
            steps: &plan.steps,
            prepared: &plan.prepared,
            maps: plan.maps.as_ref(),
            net_devices: &plan.net_devices,
            schedule: plan.schedule,
            privileged: self.facts.privileged,
            stdio: Stdio::Inherited,
            start: listener,
            begun,
            target: None,
            listener: asked,
            meanwhile: Some(&meanwhile),
            unneeded: context.program.borrow().as_ref().map(AsRawFd::as_raw_fd),
        };
        let mut waits = false;
        let pid = spawn::first_process(child, |ask, pid, fd| match (ask, fd) {
            (Ask::Hooks, _) => self.host_hooks(pid).map(|()| Flow::GoOn),
            (Ask::Terminal, Some(master)) => {
                console::hand_over(master, &self.options.console, terminal.as_deref_mut())
                    .map(|()| Flow::GoOn)
            }
            (Ask::Born(_), _) => self.has_process(pid).map(|()| Flow::Unanswered),
            (Ask::Created, _) => {
                waits = leave;
                self.is_made(pid).map(|()| if leave { Flow::Leave } else { Flow::GoOn })
            }
            (other, _) => Err(spawn::unanswered(other)),
        })?;
        self.has_groups = true;
        if !waits && !record::has_executed(pid) {
            // It was killed before it could say anything.
            let status = ExitStatus::from_raw(sys::wait_for(pid).unwrap_or(0));
            let killed = status.signal() == Some(libc::SIGKILL);
            let why = if killed { " (is its memory limit too low?)" } else { "" };
            let ended = io::Error::other(format!("it ended too early, with {status}{why}"));
            return Err(Failure::step("waiting for the first process", &ended).into());
        }
        Ok(self.is_made(pid)?)
    }

    /// All can see that it is made. Told more than once it makes no difference.
    fn is_made(&mut self, pid: i32) -> Result<(), Failure> {
        // One that has gone on in the place of another is not known yet.
        if self.record.pid != pid {
            self.has_process(pid)?;
        }
        let made = self.lock.as_ref().map_or(Ok(()), Lock::made);
        made.map_err(|error| Failure::step("telling that the container is made", &error))
    }

    /// `waits`: until it is started.
    fn plan(&self, waits: bool) -> Result<Plan> {
        let rootfs = Rootfs::Directory(self.record.rootfs.clone());
        // Only hooks are told.
        let state = self.record.hooks.then(|| State::new(&self.record, Status::Creating).json());
        let request = Request {
            spec: &self.spec,
            rootfs: &rootfs,
            user: None,
            group: &self.record.group,
            mountpoint: &self.record.rootfs,
            bundle: Some(&self.record.bundle),
            no_pivot: self.options.no_pivot,
            keyring: self.record.keyring,
            keeper: Keeper::Caller {
                waits,
                state: state.as_deref().unwrap_or_default(),
                preserved_fds: self.options.preserved.all,
            },
        };
        plan::launch_plan(&request, &self.facts).map_err(invalid)
    }

    fn host_hooks(&self, pid: i32) -> Result<(), Failure> {
        let Some(hooks) = self.spec.hooks() else { return Ok(()) };
        let state = State { pid, ..State::new(&self.record, Status::Creating) }.json();
        for (index, (point, hook)) in plan::of_the_host(hooks).into_iter().enumerate() {
            hooks::run(std::slice::from_ref(hook), &state, Environment::Ours).map_err(|failed| {
                Failure::step(
                    format!("error running {point} hook #{index}"),
                    &io::Error::other(failed.reason),
                )
            })?;
        }
        Ok(())
    }

    /// Writes down the first process. It cannot go on before that, nor outlive us if it is not.
    fn has_process(&mut self, pid: i32) -> Result<(), Failure> {
        self.record.pid = pid;
        // It is our child and not reaped, so it is there, even if it has ended already.
        self.record.start_ticks = record::start_ticks(pid).unwrap_or(0);
        let failed = |error: String| Failure::step("writing the container's state", &io::Error::other(error));
        fault::at("parent", 4).map_err(|error| failed(error.to_string()))?;
        self.place.write_process(pid, self.record.start_ticks).map_err(|error| failed(error.to_string()))?;
        fault::at("parent", 5).map_err(|error| failed(error.to_string()))
    }

    pub(super) fn write_pid_file(&self) -> Result<()> {
        fault::at("parent", 6).map_err(Error::system("writing the pid file"))?;
        match &self.options.pid_file {
            Some(path) => write_pid_file(path, self.record.pid),
            None => Ok(()),
        }
    }

    /// The container is made: from here on other commands may change it, and take it away.
    pub(super) fn unlock(&mut self) {
        self.lock = None;
    }

    /// Takes away what there is of the container.
    pub(super) fn undo(&self) {
        let mut record = self.record.clone();
        if !self.has_groups {
            record.group = Group::default();
        }
        if !self.has_rdt {
            record.rdt = None;
        }
        if let Err(error) = delete::take_away(self.context, &self.place, Some(&record)) {
            self.context.log.warn(&format!("taking the half-made container away: {error}"));
        }
    }
}

fn invalid(wrong: plan::Invalid) -> Error {
    Failure { kind: Kind::Spec, subject: wrong.field, errno: None, detail: wrong.reason }.into()
}

/// The class of service that the container is going to have, if it says anything about that.
fn rdt(spec: &Spec, id: &str) -> Result<Option<rdt::Making>> {
    let plan = spec.linux().as_ref().map_or(Ok(None), |linux| plan::rdt::rdt(linux, id)).map_err(invalid)?;
    Ok(plan.map(rdt::Making::begin).transpose()?)
}

/// Written under another name and then renamed, so that whoever waits for it finds it whole. One of an earlier container
/// goes first: in its place ext4 would write the new one to the disk at once.
pub(super) fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let temporary = path.with_file_name(format!(".{name}"));
    let written = fs::write(&temporary, pid.to_string());
    // If it cannot be removed, it is replaced.
    let _ = fs::remove_file(path);
    written.and_then(|()| fs::rename(&temporary, path)).map_err(Error::file("write pid file", path))
}

/// Where the container's control groups are to be.
fn group(context: &Context, facts: &Facts, spec: &Spec, id: &str) -> Result<Group> {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    let wanted = Wanted {
        cgroups_path: path.and_then(|path| path.to_str()),
        id,
        systemd: context.manager == Manager::Systemd,
        rootless: context.rootless(facts),
    };
    match context.manager {
        Manager::Disabled => Ok(Group::default()),
        _ => Ok(cgroup::locate(&facts.layout, &wanted)?),
    }
}

/// Tells the program of its sockets, as sd_listen_fds(3) looks for them.
pub(super) fn announce_listeners(process: &mut Process, listening: u32) {
    if listening == 0 {
        return;
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.retain(|entry| !entry.starts_with("LISTEN_FDS=") && !entry.starts_with("LISTEN_PID="));
    env.extend([format!("LISTEN_FDS={listening}"), LISTEN_PID.to_owned()]);
    process.set_env(Some(env));
}
