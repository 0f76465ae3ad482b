//! The planner as a whole, in a world of pretended nodes: scenarios, golden plans and generated histories.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod assignments;
mod balance;
mod edge;
mod encryption;
mod golden;
mod guests;
mod networks;
mod order;
mod properties;
mod ranges6;
mod records;
mod rollback;
mod rules;
mod silence;
mod world;
