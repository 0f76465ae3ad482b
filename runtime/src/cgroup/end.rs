//! The processes of a group: listing, signalling and killing them, and removing the group.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::{Group, file, systemd};
use crate::error::{Error, Result};
use crate::sys;

impl Group {
    /// All processes of the group and of the groups that the container has made below it, as this process sees them;
    /// ordered.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let mut pids = self.witness().map(pids_below).unwrap_or_default();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Whether the group is there.
    #[cfg(test)]
    pub(crate) fn exists(&self) -> bool {
        self.witness().is_some_and(Path::exists)
    }

    /// The directory that is asked for processes. Every process of the container is in every hierarchy, so one will do.
    fn witness(&self) -> Option<&Path> {
        self.dirs().next()
    }

    /// Sends a signal to every process. Frozen meanwhile, so that none is born behind our back; SIGKILL goes by
    /// `cgroup.kill` where there is one.
    pub(crate) fn signal_all(&self, signal: i32) -> Result<()> {
        if signal == libc::SIGKILL {
            return self.kill();
        }
        let frozen_before = self.is_frozen();
        // Without a freezer the signal reaches those who are there, which is all that can be done.
        let frozen = !frozen_before && self.freeze().is_ok();
        for pid in self.pids() {
            // Gone meanwhile: nobody left to be told.
            let _ = sys::kill(pid, signal);
        }
        if frozen { self.thaw() } else { Ok(()) }
    }

    /// Kills every process, also frozen ones. Returns once the signals are sent.
    pub(crate) fn kill(&self) -> Result<()> {
        // Since Linux 5.14, on cgroup2 only: whole, at once, and nothing can fork away from it.
        if let Some(dir) = &self.unified
            && fs::write(dir.join("cgroup.kill"), "1").is_ok()
        {
            // A v1 freezer holds even who is killed.
            return if self.v1_of("freezer").is_some() { self.thaw_v1() } else { Ok(()) };
        }
        let Some(dir) = self.witness() else { return Ok(()) };
        for _ in 0..100 {
            let pids = pids_below(dir);
            if pids.is_empty() {
                return Ok(());
            }
            // v1: what is frozen cannot fork, and dies as soon as it is thawed.
            let frozen = self.freeze().is_ok();
            for pid in pids_below(dir) {
                let _ = sys::kill(pid, libc::SIGKILL);
            }
            if frozen {
                self.thaw()?;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let source = io::Error::new(
            io::ErrorKind::TimedOut,
            "its processes make new ones faster than they can be killed",
        );
        Err(file("kill what is in", dir)(source))
    }

    /// Kills what is in the groups and removes them. Goes on after an error, and returns all.
    ///
    /// Mostly nothing is in them any more, and then they just go: who kills first opens files that have no reader.
    pub(crate) fn clear(&self, id: &str, wait: Duration) -> Vec<Error> {
        let empty = |dir: &Path| match fs::remove_dir(dir) {
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(()) => true,
        };
        if self.unit.is_none() && self.dirs().all(empty) {
            return Vec::new();
        }
        let mut errors: Vec<Error> = self.kill().err().into_iter().collect();
        errors.extend(self.remove(id, wait));
        errors
    }

    /// Removes the groups with those that the container has made below them. Waits for processes that are just ending.
    /// Goes on after an error, and returns all.
    pub(crate) fn remove(&self, id: &str, wait: Duration) -> Vec<Error> {
        let mut errors = Vec::new();
        if let Some(unit) = &self.unit
            && let Err(error) = systemd::stop(unit)
        {
            errors.push(error);
        }
        for dir in self.dirs() {
            match remove_tree(dir, wait) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    let waited_ms = wait.as_millis() as u64;
                    errors.push(Error::CgroupBusy { id: id.to_owned(), path: dir.to_owned(), waited_ms });
                }
                Err(source) => errors.push(file("remove control group", dir)(source)),
            }
        }
        errors
    }
}

/// The processes of a group and of those below it.
pub(crate) fn pids_below(dir: &Path) -> Vec<i32> {
    // A threaded group does not tell its processes (EOPNOTSUPP), but its threads, any of which can be signalled.
    let text = fs::read_to_string(dir.join("cgroup.procs"))
        .or_else(|_| fs::read_to_string(dir.join("cgroup.threads")))
        .unwrap_or_default();
    let mut pids: Vec<i32> =
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect();
    for child in children(dir) {
        pids.append(&mut pids_below(&child));
    }
    pids
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path()).collect()
}

/// Removes a group and those below it. Waits for processes that are just ending.
pub(super) fn remove_tree(dir: &Path, wait: Duration) -> io::Result<()> {
    let deadline = Instant::now() + wait;
    let mut pause_us = 200;
    loop {
        // Most have no groups below them, so that is tried first.
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                let below = children(dir);
                let left = deadline.saturating_duration_since(Instant::now());
                if below.is_empty() && left.is_zero() {
                    return Err(error);
                }
                for child in &below {
                    remove_tree(child, left)?;
                }
                if below.is_empty() {
                    thread::sleep(Duration::from_micros(pause_us));
                    pause_us = (pause_us * 2).min(20_000);
                }
            }
            Err(error) => return Err(error),
        }
    }
}
