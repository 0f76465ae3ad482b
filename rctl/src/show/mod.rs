//! What comes from the daemon, as rows for people and as JSON for programs.
//!
//! Field names are Docker's where Docker has the field, so that scripts go on working. Everything here is
//! a function from an answer and the present time to text or a serialisable struct.

pub(crate) mod certificate;
pub(crate) mod cluster;
pub(crate) mod container;
pub(crate) mod doctor;
mod health;
pub(crate) mod image;
pub(crate) mod image_inspect;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod ports;
pub(crate) mod registry;
pub(crate) mod route;
pub(crate) mod service;
pub(crate) mod service_inspect;
pub(crate) mod task;
pub(crate) mod usage;
