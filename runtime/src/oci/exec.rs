//! `exec`: a further process in a container that runs.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process, Spec};

use super::args::Matches;
use super::config;
use super::console::{self, ConsoleSocket};
use super::context::Context;
use super::create::{preserved, write_pid_file};
use super::error::{Error, Result};
use super::kill;
use super::log::Log;
use super::relay::Relay;
use super::run::{self, Signals};
use super::state::{Record, Status};
use crate::cgroup::{Group, Layout};
use crate::host;
use crate::init::{Failure, Kind, Stdio};
use crate::plan::{self, ExecRequest};
use crate::spawn::{self, Ask, Child, Flow};

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

/// `exec`.
pub(super) fn exec(context: &Context, matches: &Matches) -> Result<u8> {
    let detached = matches.is_set("detach");
    if !detached {
        run::become_subreaper()?;
    }
    let place = context.place(matches.word(0))?;
    let record = place.read()?;
    let frozen = record.group.is_frozen();
    match place.status(&record) {
        Status::Stopped => return Err(Error::WrongState("cannot exec in a stopped container".to_owned())),
        Status::Creating => return Err(Error::NotRunning),
        Status::Paused | Status::Created | Status::Running if frozen && !matches.is_set("ignore-paused") => {
            return Err(Error::WrongState(
                "cannot exec in a paused container (use --ignore-paused to override)".to_owned(),
            ));
        }
        _ => {}
    }
    let mut spec = place.spec()?;
    let user = process(&mut spec, matches, &context.log)?;
    let terminal = spec.process().as_ref().is_some_and(|process| process.terminal() == Some(true));
    let console = matches.value("console-socket").filter(|path| !path.is_empty());
    console::check(terminal, console.is_some(), !detached)?;
    let console = console.map(|path| ConsoleSocket::connect(Path::new(path))).transpose()?;
    // Before there is a process whose end could be missed.
    let signals = if detached { None } else { Some(Signals::take()?) };
    let mut master = None;
    let wanted = Wanted { record: &record, spec: &spec, user: user.as_deref(), matches, console: &console };
    let pid = wanted.start(&mut master)?;
    if let Some(path) = matches.value("pid-file").filter(|path| !path.is_empty())
        && let Err(error) = write_pid_file(&PathBuf::from(path), pid)
    {
        let _ = crate::sys::kill(pid, libc::SIGKILL);
        let _ = crate::sys::wait_for(pid);
        return Err(error);
    }
    let Some(mut signals) = signals else { return Ok(0) };
    let relay = master.map(Relay::new).transpose()?;
    signals.until_the_end(pid, relay)
}

/// A process that is to be started.
struct Wanted<'a> {
    record: &'a Record,
    spec: &'a Spec,
    user: Option<&'a str>,
    matches: &'a Matches,
    console: &'a Option<ConsoleSocket>,
}

impl Wanted<'_> {
    fn start(&self, master: &mut Option<OwnedFd>) -> Result<i32> {
        let target = kill::open(self.record)?.ok_or(Error::NotRunning)?;
        let layout = Layout::discover()?;
        let group = self.group(&layout)?;
        let facts = host::facts(layout)?;
        let wanted = ExecRequest {
            spec: self.spec,
            user: self.user,
            group: &group,
            namespaces: foreign_namespaces(self.record.pid)?,
            rootfs: &self.record.rootfs,
            keyring: self.record.keyring.then_some(self.record.id.as_str()),
            preserved_fds: preserved(self.matches.number("preserve-fds")?.unwrap_or(0))?.all,
        };
        let plan = plan::exec_plan(&wanted, &facts).map_err(|wrong| Failure {
            kind: Kind::Spec,
            subject: wrong.field,
            errno: None,
            detail: wrong.reason,
        })?;
        let child = Child {
            namespaces: plan.namespaces,
            unified: group.unified.as_deref(),
            steps: &plan.steps,
            prepared: &plan.prepared,
            maps: None,
            net_devices: &[],
            privileged: facts.privileged,
            stdio: Stdio::Inherited,
            start: None,
            target: Some(target),
        };
        let pid = spawn::first_process(child, |ask, _, fd| match (ask, fd) {
            (Ask::Terminal, Some(fd)) => {
                console::hand_over(fd, self.console, Some(&mut *master)).map(|()| Flow::GoOn)
            }
            (other, _) => Err(spawn::unanswered(other)),
        })?;
        Ok(pid)
    }

    /// The groups to join: the container's, or groups below them.
    fn group(&self, layout: &Layout) -> Result<Group> {
        let below: Vec<String> = self.matches.all("cgroup").map(str::to_owned).collect();
        if !below.is_empty() {
            return Ok(self.record.group.sub(&below)?);
        }
        let mut group = self.record.group.clone();
        if group.is_v2() {
            // Its own group takes no process once it has handed controllers down.
            group.unified = layout.unified_of(self.record.pid).or(group.unified);
        }
        Ok(group)
    }
}

/// Which namespaces of a process are not our own.
fn foreign_namespaces(pid: i32) -> Result<u64> {
    let mut foreign = 0;
    for (name, flag) in NAMESPACES {
        let theirs = PathBuf::from(format!("/proc/{pid}/ns/{name}"));
        let ours = PathBuf::from(format!("/proc/self/ns/{name}"));
        // A kernel without time namespaces has no such file.
        let Ok(ours) = fs::metadata(&ours) else { continue };
        let theirs = fs::metadata(&theirs).map_err(Error::file("open", &theirs))?;
        if (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()) {
            foreign |= flag as u64;
        }
    }
    Ok(foreign)
}

/// Puts the process that is asked for in place of the container's own. Returns a user that is named, not numbered.
fn process(spec: &mut Spec, matches: &Matches, log: &Log) -> Result<Option<String>> {
    let own = spec.process().clone().unwrap_or_default();
    if let Some(path) = matches.value("process").filter(|path| !path.is_empty()) {
        let path = Path::new(path);
        let (process, warnings) = config::from_json_amended(&config::read_limited(path)?, path)?;
        warnings.iter().for_each(|warning| log.warn(warning));
        spec.set_process(Some(with_defaults(process, own)));
        return Ok(None);
    }
    let mut process = own;
    if matches.words.len() < 2 {
        return Err(Error::Usage("process args cannot be empty".to_owned()));
    }
    process.set_args(Some(matches.words[1..].to_vec()));
    process.set_terminal(Some(matches.is_set("tty")));
    process.set_console_size(None);
    if let Some(cwd) = matches.value("cwd") {
        process.set_cwd(cwd.into());
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(matches.all("env").map(str::to_owned));
    process.set_env(Some(env));
    if let Some(label) = matches.value("process-label") {
        process.set_selinux_label(Some(label.to_owned()));
    }
    if let Some(profile) = matches.value("apparmor") {
        process.set_apparmor_profile(Some(profile.to_owned()));
    }
    if let Some(on) = matches.value("no-new-privs") {
        process.set_no_new_privileges(Some(on == "true"));
    }
    add_capabilities(&mut process, matches)?;
    let named = user(&mut process, matches)?;
    spec.set_process(Some(process));
    Ok(named)
}

/// What a process file leaves out is as it is for the container.
fn with_defaults(mut process: Process, own: Process) -> Process {
    if process.capabilities().is_none() {
        process.set_capabilities(own.capabilities().clone());
    }
    if process.rlimits().as_ref().is_none_or(Vec::is_empty) {
        process.set_rlimits(own.rlimits().clone());
    }
    if process.no_new_privileges().is_none() {
        process.set_no_new_privileges(own.no_new_privileges());
    }
    let missing = |text: &Option<String>| text.as_ref().is_none_or(String::is_empty);
    if missing(process.apparmor_profile()) {
        process.set_apparmor_profile(own.apparmor_profile().clone());
    }
    if missing(process.selinux_label()) {
        process.set_selinux_label(own.selinux_label().clone());
    }
    if process.oom_score_adj().is_none() {
        process.set_oom_score_adj(own.oom_score_adj());
    }
    if process.scheduler().is_none() {
        process.set_scheduler(own.scheduler().clone());
    }
    if process.io_priority().is_none() {
        process.set_io_priority(*own.io_priority());
    }
    process
}

/// `--cap`: not into the inheritable set, from which programs without need would take them (CVE-2022-29162).
fn add_capabilities(process: &mut Process, matches: &Matches) -> Result<()> {
    let mut added = Capabilities::new();
    for name in matches.all("cap") {
        let upper = name.to_ascii_uppercase();
        let capability = Capability::from_str(upper.strip_prefix("CAP_").unwrap_or(&upper))
            .map_err(|_| Error::Usage(format!("unknown capability {name:?}")))?;
        added.insert(capability);
    }
    if added.is_empty() {
        return Ok(());
    }
    let mut sets: LinuxCapabilities = process.capabilities().clone().unwrap_or_default();
    let with = |set: &Option<Capabilities>| {
        Some(set.iter().flatten().copied().chain(added.iter().copied()).collect())
    };
    let (bounding, effective, permitted) =
        (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    process.set_capabilities(Some(sets));
    Ok(())
}

/// `--user` and `--additional-gids`. Returns the user if it is a name of the container's own files.
fn user(process: &mut Process, matches: &Matches) -> Result<Option<String>> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| i32::try_from(*number).is_ok());
    let mut user = process.user().clone();
    let mut named = None;
    if let Some(text) = matches.value("user").filter(|text| !text.is_empty()) {
        let (uid, gid) = match text.split_once(':') {
            Some((uid, gid)) => (uid, Some(gid)),
            None => (text, None),
        };
        match (number(uid), gid.map(number)) {
            (Some(uid), None) => drop(user.set_uid(uid)),
            (Some(uid), Some(Some(gid))) => drop(user.set_uid(uid).set_gid(gid)),
            _ => named = Some(text.to_owned()),
        }
    }
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    for text in matches.all("additional-gids") {
        let wrong = || {
            Error::Usage(format!("invalid value {text:?} for flag -additional-gids: it has to be a number"))
        };
        groups.push(number(text).ok_or_else(wrong)?);
    }
    user.set_additional_gids(Some(groups).filter(|groups| !groups.is_empty()));
    process.set_user(user);
    Ok(named)
}
