//! What can go wrong, for the caller: [`Error`] for everything that acts on a container that exists, [`LaunchError`]
//! for a start that failed, with the exit code that a shell would give it.

use std::io;
use std::path::PathBuf;

/// The result of everything but a launch.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation on containers that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The id cannot be a file name.
    #[error(
        "container id {id:?} is not valid: use 1 to 128 letters, digits, '_', '.' and '-', not starting with '.' or '-'"
    )]
    InvalidId {
        /// What was given.
        id: String,
    },
    /// No container of that id is known in this runtime directory.
    #[error("no container {id}")]
    NotFound {
        /// The container's id.
        id: String,
    },
    /// The container is running, and has to have ended for this.
    #[error("container {id} is still running: kill it first")]
    StillRunning {
        /// The container's id.
        id: String,
    },
    /// The container does not run (any more).
    #[error("container {id} is not running")]
    NotRunning {
        /// The container's id.
        id: String,
    },
    /// The signal number does not exist.
    #[error("{signal} is not a signal: 1 to 64 are")]
    InvalidSignal {
        /// What was given.
        signal: i32,
    },
    /// A file or folder could not be used.
    #[error("{operation} {}", path.display())]
    File {
        /// What was tried, such as "write".
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file that this crate wrote is not readable any more.
    #[error("{} is damaged: delete the container", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The machine lacks something that containers need.
    #[error("{what} is missing on this machine: {remedy}")]
    Unsupported {
        /// What is missing.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// A limit that the kernel did not take.
    #[error("{field}: writing {value:?} to {}: {remedy}", path.display())]
    Limit {
        /// The limit's path in the specification, such as `linux.resources.memory.limit`.
        field: String,
        /// The control group's file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// What it is about, and what to do.
        remedy: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A control group controller that a limit needs cannot be had in the container's group.
    #[error("{field}: no {controller} controller by {}: {remedy}", path.display())]
    Controller {
        /// The controller.
        controller: String,
        /// The limit that needs it, such as `linux.resources.memory.limit`.
        field: String,
        /// Where it was asked for.
        path: PathBuf,
        /// What is in the way, and what to do.
        remedy: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// systemd did not do what was asked of it.
    #[error("cannot {operation}")]
    Systemd {
        /// What was asked.
        operation: String,
        /// Its answer, or what the connection to it says.
        #[source]
        source: io::Error,
    },
    /// A change of limits that makes no sense, or that this container cannot have.
    #[error("{field}: {reason}")]
    InvalidLimit {
        /// The limit's path in the specification.
        field: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The cgroup could not be taken away.
    #[error("processes of container {id} are still in {} after {waited_ms} ms", path.display())]
    CgroupBusy {
        /// The container's id.
        id: String,
        /// The group that is not empty.
        path: PathBuf,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// The monitor does not answer on its socket.
    #[error("the monitor of container {id} does not answer")]
    Monitor {
        /// The container's id.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Several steps of taking a container away failed; all others were done.
    #[error("container {id} is not wholly removed: {}", join(errors))]
    Removal {
        /// The container's id.
        id: String,
        /// Every step that failed.
        errors: Vec<Error>,
    },
}

fn join(errors: &[Error]) -> String {
    let texts: Vec<String> = errors.iter().map(|error| chain(error)).collect();
    texts.join("; ")
}

/// An error with what it came from.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// A container that did not start. Nothing of it is left on the machine but its own directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// A container of that id exists already in this runtime directory.
    #[error("container {id} exists already: delete it first")]
    AlreadyExists {
        /// The container's id.
        id: String,
    },
    /// The specification asks for something that is wrong or not supported.
    #[error("{field}: {reason}")]
    InvalidSpec {
        /// The field's path, as in `process.args`.
        field: String,
        /// What is wrong, and what was expected.
        reason: String,
    },
    /// The command is not in the container's file system.
    #[error("command {command:?} not found in the container: check the command, the image and PATH")]
    CommandNotFound {
        /// The first word of the command.
        command: String,
    },
    /// The command is there and cannot be executed.
    #[error(
        "command {command:?} cannot be executed: is it a program for this machine, with its execute bit set?"
    )]
    CommandNotExecutable {
        /// The first word of the command.
        command: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The user or a group is not in the container's passwd and group files.
    #[error("user {user:?}: {reason}")]
    UnknownUser {
        /// The user as it was asked for.
        user: String,
        /// What was looked for and where.
        reason: String,
    },
    /// The working directory cannot be used.
    #[error("working directory {path:?} cannot be used")]
    WorkingDirectory {
        /// The directory, as it was asked for.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A step of the set-up failed.
    #[error("container not started: {step}")]
    Step {
        /// What was done, with the names it was done on.
        step: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The monitor could not be started, or ended before it had reported.
    #[error("monitor {} failed: {reason}", binary.display())]
    Monitor {
        /// The program that was started as the monitor.
        binary: PathBuf,
        /// How it ended.
        reason: String,
    },
    /// The container had not started within the time that a launch may take.
    #[error("container {id} had not started after {waited_ms} ms and was taken away")]
    TimedOut {
        /// The container's id.
        id: String,
        /// The time limit.
        waited_ms: u64,
    },
    /// Something around the launch failed.
    #[error(transparent)]
    Runtime(#[from] Error),
}

impl LaunchError {
    /// The exit code that stands for this failure, as shells and Docker have it: 127 for a command that is not there,
    /// 126 for one that cannot be executed, 125 for everything else.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            LaunchError::CommandNotFound { .. } => 127,
            LaunchError::CommandNotExecutable { .. } => 126,
            _ => 125,
        }
    }
}
