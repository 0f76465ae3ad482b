//! `kill`: signals for a container.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::Signal;

use super::args::Matches;
use super::context::Context;
use super::error::{Error, Result};
use super::state::{Record, Status};
use crate::exec;
use crate::sys;

/// The real-time signals that programs have for themselves, by the names that everybody knows them by. What libc says
/// depends on how many it keeps for itself.
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// `kill`.
pub(super) fn kill(context: &Context, matches: &Matches) -> Result<u8> {
    let place = context.place(matches.word(0))?;
    let record = place.read()?;
    let signal = signal(matches.words.get(1).map_or("SIGTERM", String::as_str))?;
    if matches.is_set("all") {
        record.group.signal_all(signal)?;
    } else {
        first_process(&record, place.status(&record), signal)?;
    }
    Ok(0)
}

/// A signal by number or by name, with or without SIG.
fn signal(text: &str) -> Result<i32> {
    let unknown = || Error::UnknownSignal(text.to_owned());
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=SIGRTMAX).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let of_base = |name: &str, base: i32, sign: i32| {
        let rest = bare.strip_prefix(name)?;
        let offset: i32 = if rest.is_empty() { 0 } else { rest.strip_prefix(['+', '-'])?.parse().ok()? };
        let number = base + sign * offset;
        (SIGRTMIN..=SIGRTMAX).contains(&number).then_some(number)
    };
    let aliases = [("CLD", libc::SIGCHLD), ("POLL", libc::SIGIO), ("IOT", libc::SIGABRT)];
    let alias = aliases.iter().find(|(name, _)| *name == bare).map(|(_, number)| *number);
    let known = format!("SIG{bare}").parse::<Signal>().ok().map(|signal| signal as i32);
    known
        .or(alias)
        .or_else(|| of_base("RTMIN", SIGRTMIN, 1))
        .or_else(|| of_base("RTMAX", SIGRTMAX, -1))
        .ok_or_else(unknown)
}

/// Signals the first process; tells whether it is there by the error.
pub(super) fn first_process(record: &Record, status: Status, signal: i32) -> Result<()> {
    if !status.is_alive() {
        return Err(Error::NotRunning);
    }
    let Some(process) = open(record)? else { return Err(Error::NotRunning) };
    match sys::pidfd_send_signal(process.as_fd(), signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Err(Error::NotRunning),
        other => other.map_err(Error::system("sending the signal"))?,
    }
    if signal == libc::SIGKILL && status == Status::Paused {
        // In a frozen v1 group nobody dies.
        record.group.thaw()?;
    }
    Ok(())
}

/// The first process, if it is there.
pub(super) fn open(record: &Record) -> Result<Option<OwnedFd>> {
    exec::open_process(record.pid, record.start_ticks).map_err(Error::system("opening the first process"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in
            [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("term", 15), ("0", 0), ("RTMIN", 34), ("SIGRTMIN+3", 37)]
        {
            assert_eq!(signal(text).unwrap(), number, "{text}");
        }
        assert_eq!(signal("RTMAX-1").unwrap(), 63);
        assert_eq!(signal("64").unwrap(), 64);
        for text in ["", "FOO", "65", "-1", "RTMIN+99", "SIG", "9x"] {
            assert_eq!(signal(text).unwrap_err().to_string(), format!("unknown signal {text:?}"));
        }
    }
}
