//! Why a build failed: where in which file, and what to do.

use std::io;
use std::path::Path;

use super::dockerfile::{Place, SyntaxError};
use super::ignore::Ignore;
use crate::error::Error;

/// What a build ends with when it fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The Dockerfile says something that can't be done.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// An instruction failed for a reason outside of the Dockerfile.
    #[error("{place}: {instruction} failed{}", place.excerpt())]
    Step {
        /// Where it stands.
        place: Place,
        /// Its first word.
        instruction: String,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// A command of RUN ended badly.
    #[error("{place}: the command ended with exit code {code}{}{}", hint(*code), place.excerpt())]
    Command {
        /// Where it stands.
        place: Place,
        /// The exit code.
        code: i32,
    },
    /// An option of the build can't be followed.
    #[error("{option}: {reason}")]
    Option {
        /// Which one.
        option: String,
        /// Why.
        reason: String,
    },
    /// The steps did not get to where they were to go.
    #[error("--cache-to {name}")]
    Export {
        /// Where to.
        name: String,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(Box<Error>),
    /// Nobody wants the build any more.
    #[error("the build was cancelled")]
    Cancelled,
}

impl From<Error> for BuildError {
    fn from(error: Error) -> Self {
        BuildError::Store(Box::new(error))
    }
}

fn hint(code: i32) -> &'static str {
    match code {
        126 => " (it can't be executed)",
        127 => " (a program of it was not found in the image)",
        137 => " (it was killed: the machine may be short of memory)",
        _ => "",
    }
}

/// Why a step failed, before it is known where it stands.
#[derive(Debug)]
pub(crate) enum StepError {
    /// The user's fault, in words.
    Reason(String),
    /// The store's, the disk's or the network's.
    Store(Error),
    /// A command's exit code.
    Exit(i32),
    Cancelled,
}

impl StepError {
    pub(crate) fn at(self, place: &Place, instruction: &str) -> BuildError {
        match self {
            StepError::Reason(reason) => BuildError::Syntax(place.refuse(reason)),
            StepError::Store(source) => BuildError::Step {
                place: place.clone(),
                instruction: instruction.to_owned(),
                source: Box::new(source),
            },
            StepError::Exit(code) => BuildError::Command { place: place.clone(), code },
            StepError::Cancelled => BuildError::Cancelled,
        }
    }

    /// An error of a file operation.
    pub(crate) fn io(
        action: &'static str,
        path: impl AsRef<Path>,
        source: impl Into<io::Error>,
    ) -> StepError {
        StepError::Store(Error::io(action, path.as_ref(), source.into()))
    }
}

impl From<Error> for StepError {
    fn from(error: Error) -> Self {
        StepError::Store(error)
    }
}

impl From<String> for StepError {
    fn from(reason: String) -> Self {
        StepError::Reason(reason)
    }
}

impl From<&str> for StepError {
    fn from(reason: &str) -> Self {
        StepError::Reason(reason.to_owned())
    }
}

/// Reads the patterns of an option or a flag.
pub(crate) fn patterns(what: &str, list: &[String]) -> Result<Ignore, String> {
    Ignore::of(list.iter().map(String::as_str)).map_err(|error| format!("{what}: {error}"))
}
