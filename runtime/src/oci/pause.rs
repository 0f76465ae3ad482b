//! `pause` and `resume`; and `checkpoint` and `restore`, which this runtime does not have.

use super::args::Matches;
use super::context::Context;
use super::error::{Error, Result};
use super::state::Status;

/// `pause`.
pub(super) fn pause(context: &Context, matches: &Matches) -> Result<u8> {
    let place = context.place(matches.word(0))?;
    let _lock = place.lock()?;
    let record = place.read()?;
    match place.status_now(&record) {
        Status::Running | Status::Created => record.group.freeze()?,
        _ => return Err(Error::NotRunning),
    }
    Ok(0)
}

/// `resume`.
pub(super) fn resume(context: &Context, matches: &Matches) -> Result<u8> {
    let place = context.place(matches.word(0))?;
    let _lock = place.lock()?;
    let record = place.read()?;
    if place.status_now(&record) != Status::Paused {
        return Err(Error::NotPaused);
    }
    record.group.thaw()?;
    Ok(0)
}

/// `checkpoint` and `restore`.
pub(super) fn no_checkpoints(_: &Context, _: &Matches) -> Result<u8> {
    Err(Error::Unsupported(
        "checkpoint and restore are not supported: start a new container instead".to_owned(),
    ))
}
