//! Runs containers: an OCI runtime as a library, and the monitor process that looks after each container.
//!
//! Start reading at [`Runtime`]: it launches containers, finds them again after a restart of the daemon, and says how
//! they ended. Nothing in here knows of clusters, images or networks.
//!
//! ```text
//! Runtime::launch ── writes record.json and config.json, spawns ──> rorqual-runtime monitor
//!                                                                     │  plan::launch_plan (pure)
//!                                                                     │  monitor::setup    (pipes; spawn: cgroup, clone, what init asks for)
//!                                                                     ├──> init: executes the plan's steps, execs
//!                                                                     └──> monitor::serve  (logs, exit status, socket)
//! ```
//!
//! A container belongs to its monitor, never to the daemon: `Runtime` values come and go, and each one sees the same
//! containers, because all that is known of them lies in the runtime directory and in the container's own directory.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod api;
pub mod attach;
mod begin;
mod cgroup;
mod error;
mod exec;
mod fault;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod hooks;
mod host;
mod init;
mod launch;
pub mod log;
pub mod monitor;
pub mod oci;
mod plan;
mod rdt;
mod record;
mod runtime;
mod seccomp;
mod spawn;
pub mod spec;
mod sys;

pub use api::{
    CgroupVersion, ContainerState, Exec, ExitStatus, HostFacts, Launch, LogPolicy, Rootfs, RuntimeOptions,
    Started, Stats,
};
#[doc(hidden)]
pub use begin::begin;
pub use error::{Error, LaunchError, Result};
pub use oci_spec;
pub use runtime::Runtime;
pub use sys::Arena;
