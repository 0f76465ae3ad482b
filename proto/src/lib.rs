//! The contract between Rorqual's parts.
//!
//! `model` is the domain: distinct id types and the objects that the planner and the store reason about.
//! `validate` says what of it is acceptable, for controllers and for the command line alike, and `token`
//! is the join token. Behind feature `rpc` stand `wire`, the generated gRPC types of
//! `proto/rorqual/v1/*.proto`, and `convert`, which turns one into the other and names the field that is
//! wrong. Behind feature `tls` stands `tls`, identities in certificates and mutual TLS between nodes.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

#[cfg(feature = "rpc")]
pub mod convert;
mod invalid;
pub mod model;
#[cfg(feature = "tls")]
pub mod tls;
pub mod token;
pub mod validate;
#[cfg(feature = "rpc")]
pub mod wire;

pub use invalid::InvalidField;
