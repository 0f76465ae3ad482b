//! `exec`: a further process in a container that runs.

use std::path::Path;
use std::str::FromStr as _;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process, Spec};
use serde_json::Value;

use super::args::Matches;
use super::config;
use super::console::{self, ConsoleSocket};
use super::context::Context;
use super::create::{announce_listeners, preserved, write_pid_file};
use super::error::{Error, Result};
use super::log::Log;
use super::relay::Relay;
use super::run::{self, Signals};
use super::state::Status;
use crate::exec::{self, Exec};
use crate::fault;
use crate::init::Stdio;

/// `exec`.
pub(super) fn run(context: &Context, matches: &Matches) -> Result<u8> {
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
    let preserved = preserved(matches.number("preserve-fds")?.unwrap_or(0))?;
    if let Some(process) = spec.process_mut() {
        announce_listeners(process, preserved.listening);
        if console.is_none() {
            console::size_as_ours(process);
        }
    }
    let mut master = None;
    let below: Vec<String> = matches.all("cgroup").map(str::to_owned).collect();
    let wanted = Exec {
        spec: &spec,
        user: user.as_deref(),
        id: &record.id,
        bundle: &record.bundle,
        pid: record.pid,
        start_ticks: record.start_ticks,
        group: &record.group,
        rdt: record.rdt.as_ref(),
        below: &below,
        rootfs: &record.rootfs,
        keyring: record.keyring,
        stdio: Stdio::Inherited,
        preserved_fds: preserved.all,
    };
    fault::at("exec", 0).map_err(Error::system("preparing the process"))?;
    let pid = exec::start(wanted, |fd| console::hand_over(fd, &console, Some(&mut master)))?;
    let pid_file = matches.value("pid-file").filter(|path| !path.is_empty()).map(Path::new);
    let relay = match told(pid, pid_file).and_then(|()| master.map(Relay::new).transpose()) {
        Ok(relay) => relay,
        Err(error) => {
            // It runs, but nobody would look after it.
            let _ = crate::sys::kill(pid, libc::SIGKILL);
            let _ = crate::sys::wait_for(pid);
            pid_file.map(std::fs::remove_file);
            return Err(error);
        }
    };
    let Some(mut signals) = signals else { return Ok(0) };
    signals.until_the_end(pid, relay, None)
}

/// Tells the pid of a process that runs by now.
fn told(pid: i32, file: Option<&Path>) -> Result<()> {
    fault::at("exec", 4).map_err(Error::system("writing the pid file"))?;
    file.map_or(Ok(()), |path| write_pid_file(path, pid))?;
    fault::at("exec", 5).map_err(Error::system("looking after the process"))
}

/// Puts the process that is asked for in place of the container's own. Returns a user that is named, not numbered.
fn process(spec: &mut Spec, matches: &Matches, log: &Log) -> Result<Option<String>> {
    let own = spec.process().clone().unwrap_or_default();
    if let Some(path) = matches.value("process").filter(|path| !path.is_empty()) {
        let path = Path::new(path);
        let text = with_user(config::read_limited(path)?, &own);
        let (process, warnings) = config::from_json_amended(&text, path)?;
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
    add_capabilities(&mut process, matches, log);
    let named = user(&mut process, matches)?;
    spec.set_process(Some(process));
    Ok(named)
}

/// A process file may leave the user out, which the types of a specification want: it is the container's then.
fn with_user(text: Vec<u8>, own: &Process) -> Vec<u8> {
    if let (Ok(Value::Object(mut process)), Ok(user)) =
        (serde_json::from_slice(&text), serde_json::to_value(own.user()))
        && !process.contains_key("user")
    {
        process.insert("user".to_owned(), user);
        // What has been read can be written.
        return serde_json::to_vec(&process).unwrap_or(text);
    }
    text
}

/// What a process file leaves out is as it is for the container.
pub(super) fn with_defaults(mut process: Process, own: Process) -> Process {
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
fn add_capabilities(process: &mut Process, matches: &Matches, log: &Log) {
    let mut added = Capabilities::new();
    let mut unknown = Vec::new();
    for name in matches.all("cap") {
        let upper = name.to_ascii_uppercase();
        match Capability::from_str(upper.strip_prefix("CAP_").unwrap_or(&upper)) {
            Ok(capability) => drop(added.insert(capability)),
            Err(_) => unknown.push(name),
        }
    }
    if !unknown.is_empty() {
        log.warn(&format!("ignoring unknown or unavailable capabilities: [{}]", unknown.join(" ")));
    }
    if added.is_empty() {
        return;
    }
    let mut sets: LinuxCapabilities = process.capabilities().clone().unwrap_or_default();
    let with = |set: &Option<Capabilities>| {
        Some(set.iter().flatten().copied().chain(added.iter().copied()).collect())
    };
    let (bounding, effective, permitted) =
        (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    process.set_capabilities(Some(sets));
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
