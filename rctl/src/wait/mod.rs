//! Waiting until the cluster has done what was asked, or can't.
//!
//! [`convergence`] decides, from what the controllers say about a service and the time that has passed;
//! [`services`] listens to them, shows the progress and keeps the deadline.

mod convergence;
mod services;

pub(crate) use convergence::Goal;
pub(crate) use services::{Target, WaitArgs, services};
