//! How a command ends badly: an exit code, and what to tell the user.

use rorqual_proto::InvalidField;
use tonic::{Code, Status};

/// The operation failed.
pub(crate) const OPERATION_FAILED: u8 = 1;
/// The command line is wrong.
pub(crate) const WRONG_USAGE: u8 = 2;
/// `run`: the engine failed before the command could be tried.
pub(crate) const ENGINE_FAILED: u8 = 125;
/// `run`: the command is there and can't be executed.
pub(crate) const CANNOT_RUN: u8 = 126;
/// `run`: the command is not in the image.
pub(crate) const NOT_FOUND: u8 = 127;
/// Ended by signal n: 128 + n.
pub(crate) const SIGNALLED: u8 = 128;

/// Why the process ends with something else than 0, or early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// What stands on stderr after `rctl: `; nothing is said where it is `None`.
    pub(crate) message: Option<String>,
}

impl Failure {
    pub(crate) fn operation(message: impl Into<String>) -> Self {
        Self { code: OPERATION_FAILED, message: Some(message.into()) }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: WRONG_USAGE, message: Some(message.into()) }
    }

    /// Ends without a word: the reason has been told, or nobody listens any more.
    pub(crate) fn silent(code: u8) -> Self {
        Self { code, message: None }
    }

    /// Puts in front what was attempted: `cannot create service web`.
    #[must_use]
    pub(crate) fn doing(mut self, attempt: &str) -> Self {
        self.message = self.message.map(|message| format!("{attempt}: {message}"));
        self
    }

    #[must_use]
    pub(crate) fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let message = match (status.code(), status.message()) {
            (Code::DeadlineExceeded | Code::Cancelled, _) => {
                "rorquald did not answer in time; its log says why (journalctl -u rorquald)".to_owned()
            }
            (Code::Unimplemented, _) => {
                "this rorquald does not know the request; rctl and rorquald have to be of one version"
                    .to_owned()
            }
            (Code::Unknown | Code::Unavailable, message) if is_transport(&status) => {
                format!("the connection to rorquald was lost ({message}); try again")
            }
            (code, "") => format!("rorquald answered {code:?} without a reason"),
            (_, message) => message.to_owned(),
        };
        Self::operation(message)
    }
}

/// Whether the status was made on this side, out of a broken connection.
pub(crate) fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

impl From<InvalidField> for Failure {
    fn from(field: InvalidField) -> Self {
        Self::usage(field.to_string())
    }
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_attempted_stands_in_front() {
        let failure = Failure::from(Status::already_exists("there is a service web already"));
        let failure = failure.doing("cannot create service web");
        let message = "cannot create service web: there is a service web already";
        assert_eq!(failure, Failure { code: 1, message: Some(message.into()) });
        assert_eq!(Failure::silent(3).doing("x"), Failure { code: 3, message: None });
    }

    #[test]
    fn a_status_without_words_still_says_something() {
        let failure = Failure::from(Status::new(Code::Internal, ""));
        assert_eq!(failure.message.as_deref(), Some("rorquald answered Internal without a reason"));
    }
}
