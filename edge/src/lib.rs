//! The HTTP edge of one node: listens, reads requests, and passes each to a replica of the service whose route fits.
//!
//! What is wanted comes in whole objects ([`Change`]); what came of it can be read ([`Edge::report`]). The crate knows
//! nothing of clusters: the agent feeds it from the node's assignment set, so that its endpoints are never staler than
//! those of the balancer in the kernel.
//!
//! Where to start reading: [`edge`] owns the desired state and the listeners, `threads` what they run on, `listen` the
//! connections, `proxy` the way of one request. `table` decides whose request it is, `upstream` which replica gets it,
//! `backend` owns the connections to one replica, `headers` says what passes and what does not; `certificates` are
//! chosen by SNI, `log` writes the access log.
//!
//! Architecture invariant: a request reads the state once, as it begins. A change drops no connection and ends no
//! request; what a change takes away gets no new request.
#![cfg_attr(test, allow(clippy::unwrap_used))]
#![forbid(unsafe_code)]

mod backend;
mod body;
mod certificates;
mod copy;
mod edge;
mod error;
mod forward;
mod headers;
mod limits;
mod listen;
mod log;
mod model;
mod proxy;
mod stats;
mod stream;
mod table;
mod threads;
mod upstream;

pub use certificates::Certificate;
pub use edge::{Edge, Report};
pub use error::EdgeError;
pub use limits::Limits;
pub use model::{Change, Endpoint, Protocol, Route, Service, Settings};
pub use rustls::pki_types;
pub use stats::RouteStats;
