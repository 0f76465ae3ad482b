//! One file or folder for each group of commands.

pub(crate) mod build;
pub(crate) mod certificate;
pub(crate) mod cluster;
pub(crate) mod completion;
pub(crate) mod container;
pub(crate) mod doctor;
pub(crate) mod image;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod own_registry;
pub(crate) mod registry;
pub(crate) mod route;
pub(crate) mod service;
pub(crate) mod system;
pub(crate) mod version;

use crate::failure::{Failure, Result};
use crate::output;

/// The outcome of something that was done to several objects one after the other: every failure is told,
/// and the last one is the command's.
pub(crate) struct Each {
    failed: Option<Failure>,
}

impl Each {
    pub(crate) fn new() -> Self {
        Self { failed: None }
    }

    /// Takes in one outcome; gives what was made where it went well.
    pub(crate) fn take<T>(
        &mut self,
        attempt: &str,
        result: std::result::Result<T, tonic::Status>,
    ) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(status) => {
                let failure = Failure::from(status).doing(attempt);
                if let Some(earlier) = self.failed.replace(failure) {
                    output::complain(&earlier.message.unwrap_or_default());
                }
                None
            }
        }
    }

    pub(crate) fn end(self) -> Result<()> {
        self.failed.map_or(Ok(()), Err)
    }
}
