//! The edge before replicas of this process, and clients of every kind.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod http1;
mod http2;
mod threads;
mod tls;
mod trusted;
mod world;
