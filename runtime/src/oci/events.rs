//! `events`: what a container uses, once or again and again, and when the kernel kills in it for want of memory.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::args::Matches;
use super::context::Context;
use super::error::{Error, Result};
use super::state::{Place, Record};
use super::write_out;
use crate::cgroup::{Oom, Stats};
use crate::sys;

/// One line of output.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

/// `events`.
pub(super) fn events(context: &Context, matches: &Matches) -> Result<u8> {
    let place = context.place(matches.word(0))?;
    let record = place.read()?;
    let interval = duration(matches.value("interval").unwrap_or("5s"))?;
    if !place.status(&record).is_alive() {
        return Err(Error::WrongState(format!("container with id {} is not running", record.id)));
    }
    if matches.is_set("stats") {
        tell("stats", &record)?;
    } else {
        follow(&place, &record, interval)?;
    }
    Ok(0)
}

fn tell(kind: &'static str, record: &Record) -> Result<()> {
    let data = (kind == "stats").then(|| {
        let intel_rdt = record.rdt.as_ref().map(|groups| groups.stats()).unwrap_or_default();
        Stats { intel_rdt, ..record.group.stats() }
    });
    let event = Event { kind, id: &record.id, data };
    write_out(&format!("{}\n", serde_json::to_string(&event).unwrap_or_default()))
}

/// Tells until the container has ended.
fn follow(place: &Place, record: &Record, interval: Duration) -> Result<()> {
    // Without a memory controller there is nothing to watch, and still something to count.
    let mut watch = record.group.oom_watch().ok();
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        // A container ends unseen by a watch that is not there.
        let wait = left.min(Duration::from_secs(1));
        let mut fds = watch.as_ref().map(|watch| watch.poll_fds()).unwrap_or_default();
        let timeout_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX).max(1);
        sys::poll(&mut fds, timeout_ms).map_err(Error::system("waiting for events"))?;
        match watch.as_mut().map(|watch| watch.look()) {
            Some(Oom::Killed) => tell("oom", record)?,
            Some(Oom::Gone) => return Ok(()),
            Some(Oom::Quiet) | None => {}
        }
        if !place.status(record).is_alive() {
            return Ok(());
        }
        if Instant::now() >= next {
            tell("stats", record)?;
            next = Instant::now() + interval;
        }
    }
}

/// A duration as Go spells it: `5s`, `1m30s`, `500ms`, `1.5h`.
fn duration(text: &str) -> Result<Duration> {
    let wrong =
        || Error::Usage(format!("invalid value {text:?} for flag -interval: use a duration such as 5s"));
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit() || c == '.');
        let end = unit_end.map_or(rest.len(), |length| digits + length);
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let seconds = match &rest[digits..end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        total += Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        rest = &rest[end..];
    }
    if total.is_zero() {
        return Err(Error::Usage("duration interval must be greater than 0".to_owned()));
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_spells_them() {
        for (text, milliseconds) in [("5s", 5000), ("1m30s", 90_000), ("500ms", 500), ("1.5h", 5_400_000)] {
            assert_eq!(duration(text).unwrap().as_millis(), milliseconds, "{text}");
        }
        for text in ["", "0s", "5", "s", "5x", "-1s", "1..2s", "1e400h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
