//! The contract between Rorqual's parts.
//!
//! `model` is the domain: distinct id types and the objects that the planner and the store reason about.
//! Behind feature `rpc` stand `wire`, the generated gRPC types of `proto/rorqual/v1/*.proto`, and
//! `convert`, which turns one into the other and names the field that is wrong. Behind feature `tls`
//! stands `tls`, identities in certificates and mutual TLS between nodes.
#![forbid(unsafe_code)]

pub mod model;
#[cfg(feature = "rpc")]
pub mod wire;
