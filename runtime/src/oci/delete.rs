//! `delete`: takes a container away, whole.

use std::time::Duration;

use super::args::Matches;
use super::context::Context;
use super::error::{Error, Result};
use super::kill;
use super::state::{Place, Record, State, Status};
use crate::hooks::{self, Environment};
use crate::sys;

/// How long processes that were killed may take to be gone.
const WAIT: Duration = Duration::from_secs(10);

/// `delete`.
pub(super) fn delete(context: &Context, matches: &Matches) -> Result<u8> {
    let place = context.place(matches.word(0))?;
    let force = matches.is_set("force");
    let found = place.lock().and_then(|lock| place.read_any().map(|record| (lock, record)));
    let (_lock, record) = match found {
        Err(Error::NotFound) if force => return Ok(0),
        other => other?,
    };
    if let Some(record) = &record {
        match place.status_now(record) {
            Status::Stopped | Status::Creating => {}
            // It has not run yet, so nothing is lost.
            status @ Status::Created => end(record, status)?,
            status @ (Status::Running | Status::Paused) if force => end(record, status)?,
            status => return Err(Error::NotStopped { id: place.id.clone(), status: status.name() }),
        }
    }
    take_away(context, &place, record.as_ref())?;
    Ok(0)
}

/// Kills the first process and waits until it is gone.
fn end(record: &Record, status: Status) -> Result<()> {
    let Some(process) = kill::open(record)? else { return Ok(()) };
    match kill::first_process(record, status, libc::SIGKILL) {
        Err(Error::NotRunning) => return Ok(()),
        other => other?,
    }
    let mut fds =
        [libc::pollfd { fd: std::os::fd::AsRawFd::as_raw_fd(&process), events: libc::POLLIN, revents: 0 }];
    let timeout_ms = i32::try_from(WAIT.as_millis()).unwrap_or(i32::MAX);
    if sys::poll(&mut fds, timeout_ms).map_err(Error::system("waiting for the first process"))? == 0 {
        return Err(Error::WrongState(format!(
            "container {} has not ended {} s after it was killed",
            record.id,
            WAIT.as_secs()
        )));
    }
    Ok(())
}

/// Takes everything away that there may be of a container, and goes on after an error. The state goes last, and only if
/// all else is gone, since it is what the container is found by.
pub(super) fn take_away(context: &Context, place: &Place, record: Option<&Record>) -> Result<()> {
    let mut errors = Vec::new();
    if let Some(record) = record {
        errors.extend(record.group.clear(&record.id, WAIT).into_iter().map(Error::from));
        errors.extend(record.rdt.as_ref().and_then(|rdt| rdt.remove().err()).map(Error::from));
        after_stop(context, place, record);
    }
    if errors.is_empty() {
        errors.extend(place.remove().err());
    }
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(Error::Several(errors)),
    }
}

/// Hooks of the time when the container is gone. What they do wrong is told in the log (runtime.md, lifecycle, step 13).
fn after_stop(context: &Context, place: &Place, record: &Record) {
    // Made for a process that never was: there is nothing that hooks could have followed.
    if record.pid == 0 || !record.hooks {
        return;
    }
    let spec = match place.spec() {
        Ok(spec) => spec,
        Err(error) => return context.log.warn(&format!("poststop hooks are not run: {error}")),
    };
    let Some(hooks) = spec.hooks().as_ref().and_then(|hooks| hooks.poststop().as_ref()) else { return };
    let state = State::new(record, Status::Stopped).json();
    for failed in hooks::run_all(hooks, &state, Environment::Ours) {
        context.log.warn(&format!("error running poststop hook #{}: {}", failed.index, failed.reason));
    }
}
