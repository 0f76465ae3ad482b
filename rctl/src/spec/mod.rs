//! Flags that become a spec.
//!
//! [`container`] has those that `run` and `service create` share; what one of them calls differently, or
//! has alone, stands with the command. [`check`] turns a refusal of the shared validation, which names a
//! field, into one that names the flag.

pub(crate) mod check;
pub(crate) mod container;
pub(crate) mod dns;
pub(crate) mod env;
pub(crate) mod health;
pub(crate) mod image;
