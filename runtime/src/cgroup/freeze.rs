//! Stops all processes of a group, and lets them go on.
//!
//! By the cgroup2 where one is mounted, with controllers or without: it is quicker than v1's freezer, and who is frozen
//! can still be killed. v1's freezer is for machines that have no cgroup2.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::{Group, file};
use crate::error::{Error, Result};
use crate::sys;

/// How long the kernel may take. A process in the middle of a disk's answer is frozen when it has come.
const PATIENCE: Duration = Duration::from_secs(10);

impl Group {
    /// Stops every process; returns once all have stopped. After an error they run.
    pub(crate) fn freeze(&self) -> Result<()> {
        let result = match (&self.unified, self.v1_of("freezer")) {
            (Some(dir), _) => freeze_v2(dir),
            (None, Some(dir)) => freeze_v1(dir),
            (None, None) => {
                return Err(Error::Unsupported {
                    what: "a freezer for the container's processes".to_owned(),
                    remedy: "mount a cgroup2 (mount -t cgroup2 none /sys/fs/cgroup/unified) or v1's freezer"
                        .to_owned(),
                });
            }
        };
        if result.is_err() {
            // The error that counts is the first one.
            let _ = self.thaw();
        }
        result
    }

    /// Lets them go on. A group that is gone holds nobody: systemd takes one away as soon as its last process has ended,
    /// which one that is killed while it is frozen does at once.
    pub(crate) fn thaw(&self) -> Result<()> {
        if let Some(dir) = &self.unified {
            let path = dir.join("cgroup.freeze");
            unless_gone(fs::write(&path, "0")).map_err(file("write 0 to", &path))?;
        }
        // Also beside a cgroup2: somebody else may have frozen it there.
        self.thaw_v1()
    }

    pub(super) fn thaw_v1(&self) -> Result<()> {
        let Some(dir) = self.v1_of("freezer") else { return Ok(()) };
        let path = dir.join("freezer.state");
        unless_gone(fs::write(&path, "THAWED")).map_err(file("write THAWED to", &path))
    }

    /// Whether it has been frozen, by whomever.
    pub(crate) fn is_frozen(&self) -> bool {
        let v2 = self.unified.as_ref().is_some_and(|dir| {
            fs::read_to_string(dir.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
        });
        v2 || self.v1_of("freezer").is_some_and(|dir| {
            fs::read_to_string(dir.join("freezer.state")).is_ok_and(|text| text.trim() != "THAWED")
        })
    }
}

/// ENODEV is of a group that goes between the opening and the writing.
fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
        other => other,
    }
}

/// The kernel tells changes of `cgroup.events` by POLLPRI.
fn freeze_v2(dir: &Path) -> Result<()> {
    let (order, path) = (dir.join("cgroup.freeze"), dir.join("cgroup.events"));
    let mut events = File::open(&path).map_err(file("open", &path))?;
    fs::write(&order, "1").map_err(file("write 1 to", &order))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = read_again(&mut events).map_err(file("read", &path))?;
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late(dir));
        }
        let mut fds = [libc::pollfd { fd: events.as_fd().as_raw_fd(), events: libc::POLLPRI, revents: 0 }];
        // No longer than this without a look: an event between the read and the wait is not lost that way either.
        let wait_ms = left.min(Duration::from_millis(100)).as_millis() as i32;
        sys::poll(&mut fds, wait_ms.max(1)).map_err(file("wait for", &path))?;
    }
}

fn read_again(file: &mut File) -> io::Result<String> {
    use std::io::{Read as _, Seek as _};
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// v1 gets stuck in FREEZING when processes come and go meanwhile, until it is told again or they are let go on for a
/// moment.
fn freeze_v1(dir: &Path) -> Result<()> {
    let path = dir.join("freezer.state");
    let deadline = Instant::now() + PATIENCE;
    for round in 0.. {
        // Thawed for a moment now and then, so that who is half-way through a vfork or the like can come out of it.
        if round % 50 == 49 {
            fs::write(&path, "THAWED").map_err(file("write THAWED to", &path))?;
            thread::sleep(Duration::from_millis(10));
        }
        fs::write(&path, "FROZEN").map_err(file("write FROZEN to", &path))?;
        if round % 25 == 24 {
            thread::sleep(Duration::from_micros(10));
        }
        let state = fs::read_to_string(&path).map_err(file("read", &path))?;
        match state.trim() {
            "FROZEN" => return Ok(()),
            _ if Instant::now() > deadline => return Err(late(dir)),
            _ => {}
        }
    }
    Err(late(dir))
}

fn late(dir: &Path) -> Error {
    let reason = format!(
        "not all processes had stopped after {} s: one of them waits in the kernel, mostly for a disk",
        PATIENCE.as_secs()
    );
    file("freeze", dir)(io::Error::new(io::ErrorKind::TimedOut, reason))
}
