//! The process that starts a further program in the container for the monitor (see `super::session`), and ends as soon as
//! it runs: the program is the monitor's child from then on, since that is the next subreaper.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::Path;

use oci_spec::runtime::{BoxBuilder, Process, Spec};

use super::stdio::handed_over;
use crate::api::Exec;
use crate::error::chain;
use crate::exec::Exec as Program;
use crate::init::{Failure, Kind, Stdio};
use crate::record::{self, Files, Record, State};
use crate::spawn::{Ask, Channel};

/// `args`: the container's folder in the runtime directory, the channel, where to read the request.
pub(super) fn run(args: &[String]) -> u8 {
    let [dir, channel, request] = args else { return 2 };
    let (Some(channel), Some(request)) = (handed_over(channel), handed_over(request)) else {
        return 2;
    };
    let channel = Channel::from_fd(channel);
    let told = match execute(Path::new(dir), File::from(request), &channel) {
        Ok(pid) => channel.tell(&Ask::Born(pid)),
        Err(failure) => channel.tell(&Ask::Failed(failure)),
    };
    // Nobody to tell: the monitor has died, and the container with it.
    if told.is_ok() { 0 } else { 1 }
}

fn execute(dir: &Path, mut request: File, channel: &Channel) -> Result<i32, Failure> {
    let unreadable = |error: io::Error| Failure::step("reading the request", &error);
    let mut json = Vec::new();
    request.read_to_end(&mut json).map_err(unreadable)?;
    let exec: Exec = serde_json::from_slice(&json).map_err(|error| unreadable(error.into()))?;
    let files = Files(dir.to_owned());
    let record: Record = known(record::read(&files.record()))?;
    let state: State = known(record::read(&files.state()))?;
    let mut spec: Spec = known(record::read(&record::config_path(&record.dir)))?;
    if record.group.is_frozen() {
        let paused = io::Error::other("the container is paused: resume it first");
        return Err(Failure::step("executing a program", &paused));
    }
    let user = exec.user.clone().or_else(|| record.user.clone());
    let process = spec.process().clone().unwrap_or_default();
    spec.set_process(Some(with(process, exec)));
    let program = Program {
        id: &record.id,
        bundle: &record.dir,
        spec: &spec,
        user: user.as_deref(),
        pid: state.pid,
        start_ticks: state.start_ticks,
        group: &record.group,
        rdt: None,
        below: &[],
        // It has a mount namespace of its own.
        rootfs: Path::new("/"),
        keyring: true,
        stdio: Stdio::Inherited,
        preserved_fds: 0,
    };
    crate::exec::start(program, |terminal| channel.ask(&Ask::Terminal, Some(terminal.as_fd())))
}

/// The container's own process, changed to what is asked for: privileges and limits stay.
fn with(mut process: Process, exec: Exec) -> Process {
    let mut env = process.env().clone().unwrap_or_default();
    for variable in exec.env {
        let name = variable.split_once('=').map_or(variable.as_str(), |(name, _)| name).to_owned();
        env.retain(|known| known.split_once('=').is_none_or(|(known, _)| known != name));
        env.push(variable);
    }
    if exec.terminal && !env.iter().any(|known| known.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    process.set_args(Some(exec.args));
    process.set_env(Some(env));
    process.set_terminal(Some(exec.terminal));
    // Without one of the two numbers it would not be made.
    process.set_console_size(exec.size.and_then(|(columns, rows)| {
        BoxBuilder::default().height(u64::from(rows)).width(u64::from(columns)).build().ok()
    }));
    if let Some(cwd) = exec.cwd {
        process.set_cwd(cwd.into());
    }
    process
}

fn known<T>(found: crate::Result<Option<T>>) -> Result<T, Failure> {
    found.map_err(|error| failure(&error))?.ok_or_else(|| Failure {
        kind: Kind::Step,
        subject: "finding the container".to_owned(),
        errno: Some(libc::ENOENT),
        detail: String::new(),
    })
}

fn failure(error: &crate::Error) -> Failure {
    Failure::step("entering the container", &io::Error::other(chain(error)))
}
