//! The runtime beneath other people's engines, as their users install it: Podman, also rootless, containerd through
//! runc's shim, and Docker. Each test has a [`world::World`] of its own.
//!
//! `RORQUAL_RUNTIME` names the program under test. With crun's or runc's path it shows whether a failure is the
//! runtime's or the test's.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod containerd;
mod docker;
mod podman;
mod podman_limits;
mod podman_options;
mod podman_systemd;
mod rootless;
mod world;
