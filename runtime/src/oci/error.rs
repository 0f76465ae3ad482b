//! Why a command failed, in the words that callers of OCI runtimes look for: Podman, containerd and Docker tell "there is
//! no such container" and "there is no such program" from other failures by the text.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::chain;
use crate::init::{Failure, Kind};

pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Wrong options or words.
    #[error("{0}")]
    Usage(String),
    #[error("container does not exist")]
    NotFound,
    #[error("container with given ID already exists")]
    Exists,
    #[error("invalid container ID format")]
    InvalidId,
    #[error("container not running")]
    NotRunning,
    #[error("container not paused")]
    NotPaused,
    #[error("{0}")]
    WrongState(String),
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped { id: String, status: &'static str },
    #[error("unknown signal {0:?}")]
    UnknownSignal(String),
    #[error("invalid format option")]
    Format,
    #[error("JSON specification file {0} not found")]
    NoConfig(String),
    /// A file that does not say what it should.
    #[error("{}: {reason}", path.display())]
    Invalid { path: PathBuf, reason: String },
    #[error("{operation} {}: {}", path.display(), plain(source))]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{operation}: {}", plain(source))]
    System { operation: String, source: io::Error },
    /// A container or a process in one did not start.
    #[error("unable to start container process: {}", failure(.0))]
    Start(Box<Failure>),
    /// What this runtime does not do.
    #[error("{0}")]
    Unsupported(String),
    /// Something of the machine or of control groups.
    #[error("{}", chain(.0))]
    Runtime(#[from] crate::Error),
    /// Taking away went on after each of these.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
}

impl Error {
    pub(super) fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::File { operation, path, source }
    }

    pub(super) fn system(operation: impl ToString) -> impl FnOnce(io::Error) -> Error {
        let operation = operation.to_string();
        move |source| Error::System { operation, source }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        Error::Start(Box::new(failure))
    }
}

/// An error of the system as C and Go spell it: in lower case and without its number.
pub(super) fn plain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => {
            let text = error.to_string();
            text.strip_suffix(&format!(" (os error {errno})")).unwrap_or(&text).to_lowercase()
        }
        None => error.to_string(),
    }
}

fn failure(failure: &Failure) -> String {
    let subject = &failure.subject;
    let answer = match failure.errno {
        Some(_) => plain(&failure.error()),
        None => failure.detail.clone(),
    };
    match failure.kind {
        Kind::Spec => format!("invalid specification: {subject}: {}", failure.detail),
        Kind::CommandNotFound if subject.contains('/') => {
            format!("exec: {subject:?}: stat {subject}: no such file or directory")
        }
        Kind::CommandNotFound => format!("exec: {subject:?}: executable file not found in $PATH"),
        Kind::CommandNotExecutable => format!("exec: {subject:?}: {answer}"),
        Kind::UnknownUser => format!("user {subject:?}: {}", failure.detail),
        Kind::WorkingDirectory => format!("chdir to cwd ({subject:?}) set in config.json failed: {answer}"),
        Kind::Step => format!("{subject}: {answer}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_find_the_words_that_they_look_for() {
        let text = |kind, subject: &str, errno| {
            let failure = Failure { kind, subject: subject.to_owned(), errno, detail: "detail".to_owned() };
            Error::from(failure).to_string()
        };
        assert_eq!(
            text(Kind::CommandNotFound, "web", Some(2)),
            "unable to start container process: exec: \"web\": executable file not found in $PATH"
        );
        assert!(text(Kind::CommandNotFound, "/web", Some(2)).ends_with("no such file or directory"));
        assert!(text(Kind::CommandNotExecutable, "/web", Some(13)).ends_with("\"/web\": permission denied"));
        assert!(text(Kind::CommandNotExecutable, "/web", None).ends_with("\"/web\": detail"));
        assert!(text(Kind::Step, "mounting /x", Some(1)).ends_with("mounting /x: operation not permitted"));
    }
}
