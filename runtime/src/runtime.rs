//! [`Runtime`]: the containers of one node, found by what lies on disk, so that it makes no difference which daemon
//! started them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;

use crate::api::{
    CgroupVersion, ContainerState, Exec, ExitStatus, HostFacts, Launch, RuntimeOptions, Started, Stats,
};
use crate::attach::{FRAME_BYTES, Frame};
use crate::cgroup::Layout;
use crate::error::{Error, LaunchError, Result};
use crate::host;
use crate::launch::{self, Program};
use crate::plan::Facts;
use crate::record::{self, Files, Record, SOCKET, State};
use crate::sys;

/// How long a monitor may take to greet a watcher, and to end after it has recorded the container's end.
const MONITOR_DEADLINE: Duration = Duration::from_secs(5);

/// How long the processes of a container that has ended may take to leave its control groups.
const GROUP_DEADLINE: Duration = Duration::from_secs(10);

/// The containers of one node. Safe to share; two values on the same directory see the same containers.
#[derive(Debug)]
pub struct Runtime {
    options: RuntimeOptions,
    facts: Facts,
    host: HostFacts,
    program: Program,
    /// Launches under way: not lost, although no monitor answers for them yet.
    launching: Mutex<BTreeSet<String>>,
}

impl Runtime {
    /// Prepares the runtime directory and the parent control group.
    pub fn new(mut options: RuntimeOptions) -> Result<Self> {
        launch::make_absolute(&mut options.runtime_dir)?;
        let dir = &options.runtime_dir;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| Error::File {
            operation: "create",
            path: dir.clone(),
            source,
        })?;
        let layout = Layout::discover()?;
        layout.prepare_parent(&options.cgroup_parent)?;
        let host = host_facts(layout.version())?;
        let facts = host::facts(layout)?;
        let program = Program::open(&options.binary)?;
        Ok(Runtime { options, facts, host, program, launching: Mutex::default() })
    }

    /// What this machine offers.
    #[must_use]
    pub fn host(&self) -> HostFacts {
        self.host.clone()
    }

    /// Starts a container, and returns once its process has been executed. After an error nothing is left of it.
    pub fn launch(&self, mut launch: Launch) -> Result<Started, LaunchError> {
        let id = launch.id.clone();
        check_id(&id)?;
        launch::make_paths_absolute(&mut launch)?;
        lock(&self.launching).insert(id.clone());
        let result = launch::launch(&self.options, &self.program, &self.facts, launch);
        lock(&self.launching).remove(&id);
        result.map(started)
    }

    /// The state of one container.
    pub fn state(&self, id: &str) -> Result<ContainerState> {
        check_id(id)?;
        self.look(id).map(|found| found.map_or(ContainerState::Unknown, |(_, state)| state))
    }

    /// All containers of this runtime directory, ordered by id.
    pub fn list(&self) -> Result<Vec<(String, ContainerState)>> {
        let dir = &self.options.runtime_dir;
        let failed = |source| Error::File { operation: "list", path: dir.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(id) = name.to_str().filter(|id| check_id(id).is_ok()) else { continue };
            if let Some((_, state)) = self.look(id)? {
                found.push((id.to_owned(), state));
            }
        }
        found.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(found)
    }

    /// A stream that gives one line, [`ExitStatus`] as JSON, when the container has ended (at once if it has), and then
    /// ends. Where it runs until then, an empty line before that says that its first process has ended: how is told once
    /// it is on disk. An end without a line means that the monitor died, and the container with it.
    pub fn watch(&self, id: &str) -> Result<UnixStream> {
        check_id(id)?;
        let deadline = Instant::now() + MONITOR_DEADLINE;
        loop {
            let failed = |source| Error::Monitor { id: id.to_owned(), source };
            match self.look(id)? {
                None => return Err(Error::NotFound { id: id.to_owned() }),
                Some((_, ContainerState::Exited(status))) => return ended(Some(&status)).map_err(failed),
                Some((_, ContainerState::Lost)) => return ended(None).map_err(failed),
                Some((_, ContainerState::Running(_))) => {
                    // No greeting: it has just ended, and the next look will see it.
                    match connect(&self.files(id).0) {
                        Ok(stream) => return Ok(stream),
                        Err(error) if Instant::now() > deadline => return Err(failed(error)),
                        Err(_) => {}
                    }
                }
                Some(_) if Instant::now() > deadline => return Err(Error::NotRunning { id: id.to_owned() }),
                Some(_) => {}
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The input and output of a running container: frames of [`crate::attach`] in both directions, beginning with what
    /// it wrote before anybody was attached. Any number may be attached at once.
    pub fn attach(&self, id: &str) -> Result<UnixStream> {
        self.say(id, &Frame::Attach)
    }

    /// Runs a further program in a running container; returns once it runs. The stream carries its input and output as
    /// frames of [`crate::attach`], and how it ended. It goes on when the stream is dropped.
    pub fn exec(&self, id: &str, exec: &Exec) -> Result<UnixStream, LaunchError> {
        let monitor = |source| Error::Monitor { id: id.to_owned(), source };
        let request = serde_json::to_vec(exec).map_err(io::Error::other).map_err(monitor)?;
        if request.len() >= FRAME_BYTES {
            return Err(LaunchError::InvalidSpec {
                field: "args, env".to_owned(),
                reason: format!("{} bytes in all, {FRAME_BYTES} are allowed", request.len()),
            });
        }
        let ask = Frame::Execute { terminal: exec.terminal, stdin: exec.stdin, request };
        let mut stream = self.say(id, &ask)?;
        stream.set_read_timeout(Some(launch::DEADLINE)).map_err(monitor)?;
        let answer = Frame::read(&mut stream).map_err(monitor)?;
        stream.set_read_timeout(None).map_err(monitor)?;
        match answer {
            Frame::Executed => Ok(stream),
            Frame::NotExecuted(json) => match serde_json::from_slice(&json) {
                Ok(failure) => Err(launch::from_failure(failure)),
                Err(error) => Err(monitor(error.into()).into()),
            },
            _ => Err(monitor(io::ErrorKind::InvalidData.into()).into()),
        }
    }

    /// Connects to the monitor of a running container and says something.
    fn say(&self, id: &str, frame: &Frame) -> Result<UnixStream> {
        let failed = |source| Error::Monitor { id: id.to_owned(), source };
        check_id(id)?;
        match self.look(id)?.ok_or_else(|| Error::NotFound { id: id.to_owned() })? {
            (Some(_), ContainerState::Running(_)) => {}
            _ => return Err(Error::NotRunning { id: id.to_owned() }),
        }
        let mut stream = match connect(&self.files(id).0) {
            // It has ended since.
            Err(_) if !monitor_lives(&self.files(id)) => return Err(Error::NotRunning { id: id.to_owned() }),
            other => other.map_err(failed)?,
        };
        stream.write_all(&frame.encode()).map_err(failed)?;
        Ok(stream)
    }

    /// Sends a signal to the container's first process; SIGKILL goes to all of its processes.
    pub fn kill(&self, id: &str, signal: i32) -> Result<()> {
        check_id(id)?;
        if !(1..=64).contains(&signal) {
            return Err(Error::InvalidSignal { signal });
        }
        let not_running = || Error::NotRunning { id: id.to_owned() };
        let (record, state) = match self.look(id)?.ok_or_else(|| Error::NotFound { id: id.to_owned() })? {
            (Some(record), ContainerState::Running(_)) => {
                (record, self.process(id)?.ok_or_else(not_running)?)
            }
            _ => return Err(not_running()),
        };
        let failed =
            |source| Error::File { operation: "signal process", path: state.pid.to_string().into(), source };
        let gone = |error: &io::Error| error.raw_os_error() == Some(libc::ESRCH);
        let process = match sys::pidfd_open(state.pid) {
            Err(error) if gone(&error) => return Err(not_running()),
            other => other.map_err(failed)?,
        };
        // Looked at after it was opened: if it is the right one now, the descriptor is of the right one.
        if record::start_ticks(state.pid) != Some(state.start_ticks) {
            return Err(not_running());
        }
        match sys::pidfd_send_signal(process.as_fd(), signal) {
            Err(error) if gone(&error) => return Err(not_running()),
            other => other.map_err(failed)?,
        }
        if signal == libc::SIGKILL {
            // The kernel ends a pid namespace with its first process; this reaches what has been put into the group.
            if let Some(dir) = &record.group.unified {
                let _ = fs::write(dir.join("cgroup.kill"), "1");
            }
        }
        Ok(())
    }

    /// Takes away what is left of a container that has ended: control group, socket, state. Its directory stays. No
    /// error if there is nothing to take away.
    pub fn delete(&self, id: &str) -> Result<()> {
        check_id(id)?;
        let Some((record, state)) = self.look(id)? else { return Ok(()) };
        if matches!(state, ContainerState::Running(_) | ContainerState::Starting) {
            return Err(Error::StillRunning { id: id.to_owned() });
        }
        let files = self.files(id);
        self.await_monitor(id, &files)?;
        let mut errors = Vec::new();
        if let Some(record) = &record {
            if let Err(error) = record.group.kill() {
                errors.push(error);
            }
            errors.append(&mut record.group.remove(id, GROUP_DEADLINE));
        }
        if errors.is_empty() {
            // Last, since it is what the container is found by: a removal that failed can be tried again.
            match fs::remove_dir_all(&files.0) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    errors.push(Error::File { operation: "remove", path: files.0, source });
                }
                _ => {}
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Error::Removal { id: id.to_owned(), errors }) }
    }

    /// Changes limits of a running container: what `resources` names is set, everything else stays.
    pub fn update(&self, id: &str, resources: &LinuxResources) -> Result<()> {
        let record = self.running(id)?;
        record.group.update(&record.facts.layout, resources)
    }

    /// Stops all processes of a running container where they are; they keep their memory and their connections.
    pub fn pause(&self, id: &str) -> Result<()> {
        self.running(id)?.group.freeze()
    }

    /// Lets a paused container go on.
    pub fn resume(&self, id: &str) -> Result<()> {
        self.running(id)?.group.thaw()
    }

    fn running(&self, id: &str) -> Result<Record> {
        check_id(id)?;
        match self.look(id)? {
            None => Err(Error::NotFound { id: id.to_owned() }),
            Some((Some(record), ContainerState::Running(_))) => Ok(record),
            Some(_) => Err(Error::NotRunning { id: id.to_owned() }),
        }
    }

    /// What a running container uses.
    pub fn stats(&self, id: &str) -> Result<Stats> {
        Ok(self.running(id)?.group.usage())
    }

    /// Takes the node's parent control group and the runtime directory away, for a node that is taken down for good.
    /// Fails if a container is left.
    pub fn remove_node(&self) -> Result<()> {
        if let Some((id, _)) = self.list()?.into_iter().next() {
            return Err(Error::StillRunning { id });
        }
        self.facts.layout.remove_parent(&self.options.cgroup_parent)?;
        let path = &self.options.runtime_dir;
        fs::remove_dir(path).map_err(|source| Error::File { operation: "remove", path: path.clone(), source })
    }

    fn files(&self, id: &str) -> Files {
        Files(self.options.runtime_dir.join(id))
    }

    fn process(&self, id: &str) -> Result<Option<State>> {
        record::read(&self.files(id).state())
    }

    /// What is known of a container; `None` if nothing is.
    fn look(&self, id: &str) -> Result<Option<(Option<Record>, ContainerState)>> {
        let files = self.files(id);
        if !files.0.exists() {
            return Ok(None);
        }
        if lock(&self.launching).contains(id) {
            return Ok(Some((None, ContainerState::Starting)));
        }
        // Before the files: what it does while we read them, it does with the lock held.
        let alive = monitor_lives(&files);
        let Some(record) = record::read::<Record>(&files.record())? else {
            return Ok(Some((None, if alive { ContainerState::Starting } else { ContainerState::Lost })));
        };
        let state = match self.process(id)? {
            None if alive => ContainerState::Starting,
            None => ContainerState::Lost,
            Some(process) => match record::read::<ExitStatus>(&record::exit_path(&record.dir))? {
                Some(status) => ContainerState::Exited(status),
                None if alive => ContainerState::Running(started(process)),
                None => ContainerState::Lost,
            },
        };
        Ok(Some((Some(record), state)))
    }

    /// Waits until the monitor of a container that has ended has gone, too.
    fn await_monitor(&self, id: &str, files: &Files) -> Result<()> {
        let deadline = Instant::now() + MONITOR_DEADLINE;
        while monitor_lives(files) {
            if Instant::now() > deadline {
                let source = io::Error::from(io::ErrorKind::TimedOut);
                return Err(Error::Monitor { id: id.to_owned(), source });
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(())
    }
}

fn started(state: State) -> Started {
    Started { pid: state.pid, started_at_ms: state.started_at_ms }
}

/// The data behind a lock stays usable if a thread panicked: each change to it is a single call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the monitor's lock is held, by which it lives.
fn monitor_lives(files: &Files) -> bool {
    match File::open(files.lock()) {
        Ok(file) => sys::is_locked(file.as_fd()).unwrap_or(false),
        Err(_) => false,
    }
}

fn connect(dir: &Path) -> io::Result<UnixStream> {
    let dir = File::open(dir)?;
    let mut stream = UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))?;
    stream.set_read_timeout(Some(MONITOR_DEADLINE))?;
    let mut greeting = [0; 3];
    stream.read_exact(&mut greeting)?;
    stream.set_read_timeout(None)?;
    Ok(stream)
}

/// A stream like that of a monitor whose container has ended.
fn ended(status: Option<&ExitStatus>) -> io::Result<UnixStream> {
    let (mine, theirs) = UnixStream::pair()?;
    if let Some(status) = status {
        (&mine).write_all(record::exit_line(status).as_bytes())?;
    }
    Ok(theirs)
}

fn check_id(id: &str) -> Result<()> {
    let valid = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if valid && (1..=128).contains(&id.len()) && !id.starts_with(['.', '-']) {
        Ok(())
    } else {
        Err(Error::InvalidId { id: id.to_owned() })
    }
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| Error::File {
        operation: "read",
        path: path.to_owned(),
        source,
    })
}

fn host_facts(cgroup: CgroupVersion) -> Result<HostFacts> {
    let meminfo = read_text(Path::new("/proc/meminfo"))?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: u64 = total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Ok(HostFacts {
        nano_cpus: cpus * 1_000_000_000,
        memory_bytes: kib * 1024,
        kernel: read_text(Path::new("/proc/sys/kernel/osrelease"))?.trim().to_owned(),
        arch: arch.to_owned(),
        cgroup,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_file_names() {
        for id in ["a", "web.1-x_2", &"x".repeat(128)] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", ".monitors", "-a", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }
}
