//! Pure decisions: what tasks there are, where they run, which addresses they get.
//!
//! Nothing here does I/O, reads a clock or draws a random number: the time and a seed are arguments, the
//! next wake-up is a return value. The same state, dirty sets, time and seed give the same plan.
//!
//! Start with [`State`] (the replicated objects and the indices over them), [`Action`] and [`Change`]
//! (what goes into the state and what comes out), then [`Planner`], which is fed with changes and turns
//! what they touch into a bounded [`Plan`]:
//!
//! ```text
//! Change ─▶ Planner::observe ─▶ dirty services, slots, nodes
//!                                    │ Planner::plan(state, now, seed)
//!             orchestrate ─▶ allocate ─▶ schedule ─▶ assigned tasks ─▶ Plan { actions, wake_at }
//! ```
//!
//! [`prepare`] turns a user's wish into an action or a refusal, [`assign`] says what a node has to know,
//! [`liveness`] says which nodes are silent, and [`invariants`] checks a state, for every test to use.
//!
//! Architecture invariant: work per change follows the size of the change. [`State`] keeps what the stages
//! ask for in indices, updated with every action; no stage walks over all tasks, except after
//! [`Planner::observe_all`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod action;
mod allocate;
pub mod assign;
mod draft;
pub mod invariants;
pub mod liveness;
mod orchestrate;
mod planner;
pub mod prepare;
mod schedule;
mod state;

pub use action::{Action, ActionKind, Change, Conflict};
pub use allocate::DYNAMIC_PORTS;
pub use draft::MAX_ACTIONS;
pub use orchestrate::{HISTORY, RETIRE_MS};
pub use planner::{Plan, Planner};
pub use state::{Objects, ReplicaCounts, State};
