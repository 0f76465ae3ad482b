//! The generated gRPC types and services of `proto/rorqual/v1/*.proto`; `tests/generated.rs` writes them.

#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::all, clippy::pedantic)]

include!("rorqual.v1.rs");

/// A secret must not get into a log by way of a request that is written there.
impl ::core::fmt::Debug for RegistryCredentials {
    fn fmt(&self, out: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
        out.debug_struct("RegistryCredentials").field("username", &self.username).finish_non_exhaustive()
    }
}
