//! The harness of the suites that cross crates: real clusters on one machine, one network namespace per
//! node. Start reading at [`Lab`]; `deploy/lab` is what makes the nodes, this crate drives it.
//!
//! - [`Lab`] and [`Node`]: a cluster, what is done to it, and the certainty that it goes away again
//! - [`command`]: programs with a deadline; `rctl` is one of them
//! - [`view`]: what `rctl --format json` says, as the suites read it
//! - [`wait`]: waiting on a condition; nothing here sleeps for a fixed time
//! - [`host`]: what the machine looks like before and after
//! - [`http`]: requests from outside of the cluster
//! - [`images`]: the images that the suites run, whole and spoilt
//! - [`registry`]: registries that demand to know who asks
//! - [`load`]: many requests at a steady rate
//! - [`figures`]: what was measured, for the end of `tests/run`
//!
//! Everything here panics when it cannot do what the test asked for: that is how a test fails.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

pub mod command;
pub mod figures;
pub mod host;
pub mod http;
pub mod images;
mod lab;
pub mod load;
mod node;
pub mod registry;
pub mod source;
pub mod view;
pub mod wait;

pub use command::Output;
pub use lab::Lab;
pub use node::Node;
pub use wait::wait_until;

use std::path::PathBuf;

/// The checkout.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Where the release builds of `rorquald` and `rctl` are; `tests/run` says it in `RORQUAL_BIN_DIR`.
pub fn bin_dir() -> PathBuf {
    match std::env::var_os("RORQUAL_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root().join("target"), PathBuf::from)
            .join("release"),
    }
}
