//! Tells when the kernel kills processes of a group for want of memory, as it happens.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use super::{Group, file};
use crate::error::{Error, Result};
use crate::sys;

/// What a look at the watch gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Oom {
    /// Nothing new.
    Quiet,
    /// Since the last look the kernel has killed for want of memory.
    Killed,
    /// The container has ended.
    Gone,
}

/// A watch on one group's memory.
#[derive(Debug)]
pub(crate) struct OomWatch {
    dir: PathBuf,
    kills: u64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// `memory.events` and `cgroup.events`; the kernel tells changes of both by POLLPRI.
    V2 { memory: File, events: File, populated: bool },
    /// An eventfd that is written to upon an OOM, and when the group goes.
    V1 { events: OwnedFd },
}

impl Group {
    /// Starts a watch.
    pub(crate) fn oom_watch(&self) -> Result<OomWatch> {
        if let Some(dir) = self.v1_of("memory") {
            let path = dir.join("memory.oom_control");
            let control = File::open(&path).map_err(file("open", &path))?;
            let events = sys::eventfd().map_err(file("make an eventfd for", &path))?;
            let order = dir.join("cgroup.event_control");
            fs::write(&order, format!("{} {}", events.as_raw_fd(), control.as_raw_fd()))
                .map_err(file("write to", &order))?;
            return Ok(OomWatch { dir: dir.to_owned(), kills: 0, source: Source::V1 { events } });
        }
        let dir =
            self.unified.as_ref().filter(|dir| dir.join("memory.events").exists()).ok_or_else(|| {
                Error::Unsupported {
                    what: "the memory controller in the container's control group".to_owned(),
                    remedy: "start the container with a memory limit (linux.resources.memory.limit)"
                        .to_owned(),
                }
            })?;
        let open = |name: &str| File::open(dir.join(name)).map_err(file("open", &dir.join(name)));
        let source =
            Source::V2 { memory: open("memory.events")?, events: open("cgroup.events")?, populated: false };
        let mut watch = OomWatch { dir: dir.clone(), kills: 0, source };
        // What has been before is no news; and the kernel tells changes only of what has been read.
        let _ = watch.look();
        Ok(watch)
    }
}

impl OomWatch {
    /// What to poll for before the next look.
    pub(crate) fn poll_fds(&self) -> Vec<libc::pollfd> {
        let interest = |fd, events| libc::pollfd { fd, events, revents: 0 };
        match &self.source {
            Source::V2 { memory, events, .. } => {
                vec![interest(memory.as_raw_fd(), libc::POLLPRI), interest(events.as_raw_fd(), libc::POLLPRI)]
            }
            Source::V1 { events } => vec![interest(events.as_fd().as_raw_fd(), libc::POLLIN)],
        }
    }

    /// Looks what has happened; does not wait.
    pub(crate) fn look(&mut self) -> Oom {
        match &mut self.source {
            Source::V2 { memory, events, populated } => {
                // Reading fails when the group has gone.
                let (Ok(text), Ok(state)) = (read_again(memory), read_again(events)) else {
                    return Oom::Gone;
                };
                let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
                let kills = count.unwrap_or(0);
                if kills > self.kills {
                    self.kills = kills;
                    Oom::Killed
                } else if state.lines().any(|line| line == "populated 1") {
                    *populated = true;
                    Oom::Quiet
                } else if *populated {
                    Oom::Gone
                } else {
                    // Made, and not started yet.
                    Oom::Quiet
                }
            }
            Source::V1 { events } => {
                let told = sys::take_events(events.as_fd()).is_ok_and(|count| count > 0);
                match (told, self.dir.exists()) {
                    (_, false) => Oom::Gone,
                    (true, true) => Oom::Killed,
                    (false, true) => Oom::Quiet,
                }
            }
        }
    }
}

fn read_again(file: &mut File) -> io::Result<String> {
    use std::io::Seek as _;
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}
