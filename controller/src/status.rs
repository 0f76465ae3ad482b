//! Our errors as gRPC statuses: which code, and words that name the remedy.

use rorqual_planner::prepare::Refusal;
use rorqual_proto::InvalidField;
use tonic::Status;

use crate::store::ProposeError;

/// A proposal that was not committed.
pub(crate) fn from_propose(error: ProposeError) -> Status {
    match error {
        ProposeError::Conflict { .. } => {
            Status::aborted("it was changed by somebody else meanwhile: read it again and repeat")
        }
        ProposeError::NotLeader { .. } => Status::unavailable("this controller no longer leads"),
        ProposeError::Busy => Status::unavailable("the leader has too much to write just now: repeat"),
        ProposeError::Refused { problem } => Status::failed_precondition(problem),
        error @ ProposeError::TooLarge { .. } => Status::invalid_argument(error.to_string()),
        error @ ProposeError::Stopped { .. } => Status::unavailable(error.to_string()),
        error => Status::unavailable(format!("{error}: look before you repeat it")),
    }
}

/// A field that can't be as it was given.
pub(crate) fn from_field(error: InvalidField) -> Status {
    Status::invalid_argument(error.to_string())
}

/// A service or network that can't be written as asked.
pub(crate) fn from_refusal(error: Refusal) -> Status {
    let text = error.to_string();
    match error {
        Refusal::NotFound { .. } => Status::not_found(text),
        Refusal::NameTaken { .. } => Status::already_exists(text),
        Refusal::VersionMoved { .. } => Status::aborted(text),
        Refusal::Edge(_)
        | Refusal::NoNetwork(_)
        | Refusal::NoOwnRange(_)
        | Refusal::NoOwnRange6(_)
        | Refusal::NotBeside { .. }
        | Refusal::OutOfRange { .. }
        | Refusal::Renamed { .. }
        | Refusal::SubnetTaken { .. } => Status::invalid_argument(text),
        _ => Status::failed_precondition(text),
    }
}
