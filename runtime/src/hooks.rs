//! Runs hooks: programs that a specification names for certain points of a container's life. Used on the host and, by the
//! first process, inside the container.
//!
//! A hook gets the container's state on standard input. Its output goes nowhere, unless it fails: then the end of what
//! it wrote is part of the failure.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use oci_spec::runtime::Hook;

use crate::sys;

/// More of a failed hook's output is not told.
const TOLD_BYTES: usize = 2048;

/// Which hook of a list failed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) index: usize,
    pub(crate) reason: String,
}

/// What a hook without `env` gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Environment {
    /// Ours: hooks of the host count on PATH.
    Ours,
    Empty,
}

/// Runs hooks one after the other, up to the first that fails.
pub(crate) fn run(hooks: &[Hook], state: &str, environment: Environment) -> Result<(), Failed> {
    for (index, hook) in hooks.iter().enumerate() {
        one(hook, state, environment).map_err(|reason| Failed { index, reason })?;
    }
    Ok(())
}

/// Runs all hooks; returns those that failed.
pub(crate) fn run_all(hooks: &[Hook], state: &str, environment: Environment) -> Vec<Failed> {
    let mut failed = Vec::new();
    for (index, hook) in hooks.iter().enumerate() {
        if let Err(reason) = one(hook, state, environment) {
            failed.push(Failed { index, reason });
        }
    }
    failed
}

fn one(hook: &Hook, state: &str, environment: Environment) -> Result<(), String> {
    let path = hook.path().display();
    let failed = |error: io::Error| format!("{path}: {error}");
    let mut output = memory_file().map_err(failed)?;
    let mut child = spawn(hook, state, environment, &output).map_err(failed)?;
    let limit = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    let status = wait(&mut child, limit).map_err(failed)?;
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("{path}: {}{}", describe(status), written(&mut output))),
        None => {
            let seconds = limit.unwrap_or_default().as_secs();
            Err(format!("{path}: had not ended after its timeout of {seconds} s{}", written(&mut output)))
        }
    }
}

fn spawn(hook: &Hook, state: &str, environment: Environment, output: &File) -> io::Result<Child> {
    // A file, so that nobody waits for a hook that does not read.
    let mut input = memory_file()?;
    input.write_all(state.as_bytes())?;
    input.seek(SeekFrom::Start(0))?;
    let mut command = Command::new(hook.path());
    let mut args = hook.args().iter().flatten();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args);
    if hook.env().is_some() || environment == Environment::Empty {
        command.env_clear();
    }
    for entry in hook.env().iter().flatten() {
        if let Some((name, value)) = entry.split_once('=') {
            command.env(name, value);
        }
    }
    // A group of its own, so that what it has started ends with it at its timeout.
    command.process_group(0).stdin(input).stdout(output.try_clone()?).stderr(output.try_clone()?);
    command.spawn()
}

fn memory_file() -> io::Result<File> {
    let fd = nix::sys::memfd::memfd_create(c"hook", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    Ok(File::from(fd))
}

/// `None`: it took longer than it may, and was killed.
fn wait(child: &mut Child, limit: Option<Duration>) -> io::Result<Option<ExitStatus>> {
    let Some(limit) = limit else { return child.wait().map(Some) };
    let deadline = Instant::now() + limit;
    let pid = child.id() as i32;
    let process = sys::pidfd_open(pid)?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [libc::pollfd { fd: process.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        let timeout_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        if sys::poll(&mut fds, timeout_ms)? > 0 {
            return child.wait().map(Some);
        }
        if left.is_zero() {
            // The whole group; not reaped yet, so the number is still its own.
            let _ = sys::kill(-pid, libc::SIGKILL);
            child.wait()?;
            return Ok(None);
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(libc::SIGSYS) => format!("signal {}: bad system call", libc::SIGSYS),
        Some(signal) => format!("signal {signal}"),
        None => format!("exit status {}", status.code().unwrap_or(-1)),
    }
}

fn written(output: &mut File) -> String {
    let length = output.metadata().map_or(0, |metadata| metadata.len());
    let start = length.saturating_sub(TOLD_BYTES as u64);
    let mut bytes = Vec::new();
    // Best effort: it only adds to a message.
    let _ = output.seek(SeekFrom::Start(start)).and_then(|_| output.read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    if text.trim().is_empty() { String::new() } else { format!(": {}", text.trim()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(args: &[&str], env: Option<&[&str]>, timeout: Option<i64>) -> Hook {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let mut hook = Hook::default();
        hook.set_path("/bin/sh".into())
            .set_args(Some(owned(args)))
            .set_env(env.map(owned))
            .set_timeout(timeout);
        hook
    }

    #[test]
    fn a_hook_gets_state_arguments_and_environment() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = format!("(cat; echo; echo $0 $1 $A${{HOME-unset}}) > {}", out.display());
        let one = hook(&["sh", "-c", &script, "zero", "one"], Some(&["A=1"]), Some(30));
        run(&[one], "{\"pid\":1}", Environment::Ours).unwrap();
        assert_eq!(std::fs::read_to_string(out).unwrap(), "{\"pid\":1}\nzero one 1unset\n");
    }

    #[test]
    fn the_first_failure_ends_a_list_and_tells_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark").display().to_string();
        let hooks = [
            hook(
                &["sh", "-c", "cat >/dev/null; yes | head -c 100000; echo; echo why >&2; exit 3"],
                None,
                None,
            ),
            hook(&["sh", "-c", &format!("touch {mark}")], None, None),
        ];
        let failed = run(&hooks, "{}", Environment::Ours).unwrap_err();
        assert_eq!(failed.index, 0);
        assert!(
            failed.reason.contains("exit status 3") && failed.reason.ends_with("why"),
            "{}",
            failed.reason
        );
        assert!(failed.reason.len() < 3000);
        assert!(!std::path::Path::new(&mark).exists());
        assert_eq!(run_all(&hooks, "{}", Environment::Ours).len(), 1);
        assert!(std::path::Path::new(&mark).exists());
    }

    #[test]
    fn a_hook_that_hangs_is_ended_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
        let start = Instant::now();
        let failed =
            run(&[hook(&["sh", "-c", &script], None, Some(5))], "{}", Environment::Ours).unwrap_err();
        assert!(failed.reason.contains("timeout of 5 s"), "{}", failed.reason);
        assert!(start.elapsed() < Duration::from_secs(60));
        let pid = std::fs::read_to_string(pid).unwrap();
        let lives = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while lives() {
            assert!(Instant::now() < deadline, "its child lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_hook_that_is_not_there_is_named() {
        let mut hook = Hook::default();
        hook.set_path("/no/such/hook".into());
        let failed = run(&[hook], "{}", Environment::Empty).unwrap_err();
        assert!(failed.reason.starts_with("/no/such/hook: No such file"), "{}", failed.reason);
    }
}
