//! The launcher's side of a start: writes down what is asked for, spawns the monitor, and waits for its report.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::api::{Launch, Rootfs, RuntimeOptions};
use crate::cgroup::{Group, Reach};
use crate::error::{Error, LaunchError, Result};
use crate::init::{Failure, Kind};
use crate::plan::{self, Facts};
use crate::record::{self, Files, Record, Report, State};
use crate::sys;

/// No honest launch takes longer; a file system that hangs does.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The monitor's program, opened so that nothing that runs it can write to it.
///
/// A process of a container can get hold of the program by which it was started (CVE-2019-5736). So monitors are
/// started from a private read-only mount of the file, which is part of no mount namespace.
#[derive(Debug)]
pub(crate) struct Program {
    path: PathBuf,
    file: OwnedFd,
}

impl Program {
    pub(crate) fn open(path: &Path) -> Result<Program> {
        let open = || {
            let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
            let file = sys::open_tree(sys::CWD, &name, false)?;
            sys::mount_setattr(file.as_fd(), plan::ATTR_RDONLY, 0, 0, false)?;
            Ok(file)
        };
        let file =
            open().map_err(|source| Error::File { operation: "open", path: path.to_owned(), source })?;
        Ok(Program { path: path.to_owned(), file })
    }

    fn spawn(&self, dir: &Path) -> io::Result<Child> {
        // Only what posix_spawn can do, so that a large daemon is not copied.
        Command::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
            .arg0("rorqual-runtime")
            .arg("monitor")
            .arg(dir)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
    }
}

/// Starts a container. After an error nothing of it is left in the runtime directory and in the control groups.
pub(crate) fn launch(
    options: &RuntimeOptions,
    program: &Program,
    facts: &Facts,
    launch: Launch,
) -> Result<State, LaunchError> {
    let files = Files(options.runtime_dir.join(&launch.id));
    match fs::DirBuilder::new().mode(0o700).create(&files.0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(LaunchError::AlreadyExists { id: launch.id });
        }
        Err(source) => {
            let path = files.0.clone();
            return Err(Error::File { operation: "create", path, source }.into());
        }
    }
    let result = write_request(options, facts, &launch, &files).and_then(|group| {
        let monitor = |reason: String| LaunchError::Monitor { binary: program.path.clone(), reason };
        let mut child = program.spawn(&files.0).map_err(|error| monitor(error.to_string()))?;
        let report = report(&mut child);
        if report.is_err() {
            end_monitor(&mut child, &files);
        }
        // The process that we started is only the monitor's parent, and ends as soon as there is a monitor.
        let status = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        match report {
            Ok(Some(Report::Started(state))) => Ok(state),
            // It has cleaned up by then.
            Ok(Some(Report::Failed(failure))) => Err(from_failure(failure)),
            Ok(None) => {
                remove_groups(&launch.id, &group);
                Err(monitor(format!("it ended before the container ran ({status})")))
            }
            Err(error) => {
                remove_groups(&launch.id, &group);
                Err(match error.kind() {
                    io::ErrorKind::TimedOut => LaunchError::TimedOut {
                        id: launch.id.clone(),
                        waited_ms: DEADLINE.as_millis() as u64,
                    },
                    _ => monitor(error.to_string()),
                })
            }
        }
    });
    if result.is_err() {
        // The failure that counts is the one that is returned.
        let _ = fs::remove_dir_all(&files.0);
    }
    result
}

/// Monitors work in the root directory, so that no path they get may depend on ours.
pub(crate) fn make_absolute(path: &mut PathBuf) -> Result<()> {
    match std::path::absolute(&*path) {
        Ok(absolute) => {
            *path = absolute;
            Ok(())
        }
        Err(source) => Err(Error::File { operation: "use path", path: path.clone(), source }),
    }
}

pub(crate) fn make_paths_absolute(launch: &mut Launch) -> Result<()> {
    make_absolute(&mut launch.dir)?;
    match &mut launch.rootfs {
        Rootfs::Directory(dir) => make_absolute(dir),
        Rootfs::Overlay { lowers, upper, work } => {
            lowers.iter_mut().chain([upper, work]).try_for_each(make_absolute)
        }
    }
}

/// Ends a monitor that does not report. The container's first process, if there is one, ends with it.
fn end_monitor(child: &mut Child, files: &Files) {
    let _ = child.kill();
    let pid = fs::read_to_string(files.lock()).ok().and_then(|text| text.parse().ok());
    let locked = File::open(files.lock()).and_then(|file| sys::is_locked(file.as_fd())).unwrap_or(false);
    if let Some(pid) = pid.filter(|pid| locked && *pid > 1) {
        let _ = sys::kill(pid, libc::SIGKILL);
    }
}

fn remove_groups(id: &str, group: &Group) {
    let _ = group.kill();
    let _ = group.remove(id, Duration::from_secs(2));
}

/// Writes config.json and record.json; returns the container's control groups.
fn write_request(
    options: &RuntimeOptions,
    facts: &Facts,
    launch: &Launch,
    files: &Files,
) -> Result<Group, LaunchError> {
    let invalid =
        |wrong: plan::Invalid| LaunchError::InvalidSpec { field: wrong.field, reason: wrong.reason };
    let group = plan::group(&launch.spec, &launch.id, &options.cgroup_parent).map_err(invalid)?;
    let resources = launch.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let group = Group::below(&facts.layout, &group, Reach::Needed(resources));
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| LaunchError::from(Error::File { operation, path, source })
    };
    // Of an earlier run in the same directory; its log goes on.
    let exit = record::exit_path(&launch.dir);
    match fs::remove_file(&exit) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &exit)(error)),
        _ => {}
    }
    let config = record::config_path(&launch.dir);
    let json =
        serde_json::to_vec(&launch.spec).map_err(io::Error::other).map_err(failed("write", &config))?;
    record::write(&config, &json, false).map_err(failed("write", &config))?;
    let record = Record {
        id: launch.id.clone(),
        dir: launch.dir.clone(),
        rootfs: launch.rootfs.clone(),
        user: launch.user.clone(),
        log: launch.log,
        stdin: launch.stdin,
        cgroup_parent: options.cgroup_parent.clone(),
        group: group.clone(),
        facts: facts.clone(),
    };
    let path = files.record();
    let json = serde_json::to_vec(&record).map_err(io::Error::other).map_err(failed("write", &path))?;
    record::write(&path, &json, false).map_err(failed("write", &path))?;
    Ok(group)
}

/// The monitor's report: one line; `None` if it ended without.
fn report(child: &mut Child) -> io::Result<Option<Report>> {
    let Some(pipe) = child.stdout.take() else { return Err(io::Error::other("no pipe")) };
    sys::set_nonblocking(pipe.as_fd())?;
    let mut pipe = File::from(OwnedFd::from(pipe));
    let deadline = Instant::now() + DEADLINE;
    let mut text = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => {
                text.extend_from_slice(&buffer[..count]);
                if let Some(line) = text.strip_suffix(b"\n") {
                    return serde_json::from_slice(line).map(Some).map_err(io::Error::other);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                let mut fds = [libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
                sys::poll(&mut fds, i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1))?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

pub(crate) fn from_failure(failure: Failure) -> LaunchError {
    let source = failure.error();
    let Failure { kind, subject, detail, .. } = failure;
    match kind {
        Kind::Spec => LaunchError::InvalidSpec { field: subject, reason: detail },
        Kind::CommandNotFound => LaunchError::CommandNotFound { command: subject },
        Kind::CommandNotExecutable => LaunchError::CommandNotExecutable { command: subject, source },
        Kind::UnknownUser => LaunchError::UnknownUser { user: subject, reason: detail },
        Kind::WorkingDirectory => LaunchError::WorkingDirectory { path: subject, source },
        Kind::Step => LaunchError::Step { step: subject, source },
    }
}
