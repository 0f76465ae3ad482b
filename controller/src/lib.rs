//! The controller role of a node: Raft, the replicated store, and what the leader does with it.
//!
//! Start with [`Controller`], which puts the parts together. `raft` and `store` are the consensus half;
//! `leader` is the control loop that plans, `dispatch` gives every node what it has to do, `control` answers
//! `rctl`, `bootstrap` and `membership` decide who belongs to the cluster.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod access;
mod auths;
mod bootstrap;
mod clock;
mod control;
mod controller;
mod dispatch;
mod edge;
mod forward;
mod founding;
mod leader;
mod membership;
pub mod raft;
mod registry;
mod seal;
mod status;
pub mod storage;
pub mod store;

pub use control::Control;
pub use controller::{Controller, ControllerOptions};
pub use founding::{FIRST_RAFT_ID, Founded, Founding, FoundingError, found};
pub use rorqual_planner::Action;
pub use seal::{SealKey, SealKeyError};
