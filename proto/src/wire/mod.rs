//! The generated gRPC types and services of `proto/rorqual/v1/*.proto`; `tests/generated.rs` writes them.

#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::all, clippy::pedantic)]

include!("rorqual.v1.rs");
