//! The OCI command line, driven as its callers drive it. Real containers; needs root and busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod bad_input;
mod exec;
mod hooks;
mod lifecycle;
mod limits;
mod terminal;
mod usage;
