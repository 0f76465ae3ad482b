//! The worker of one node: runs what the leader assigns and what the node's own user asks for.
//!
//! Start reading at [`Agent`]. Its parts, each with one owner of its state:
//!
//! ```text
//!              leader                      rctl                 other nodes
//!                │ session (one task: the assignment set)          │ peer
//!                ▼                          ▼ engine               ▼
//!   store ◀── tasks ────────┐         containers ─▶ store      images, logs
//!  (sled)                   ▼            ▼
//!                     workload: one driver task per container, around a pure machine
//!                                  │
//!                              executor ──▶ image + network + runtime
//! ```
//!
//! A running container never depends on a running agent: everything here can end at any moment and start again,
//! and finds the containers as they are. An error of one container never touches another.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod agent;
mod build;
mod clock;
mod containers;
mod doctor;
mod edge;
mod engine;
mod error;
mod executor;
mod gc;
mod health;
mod held;
mod host;
mod images;
mod logs;
mod network;
mod options;
mod peer;
mod registry;
mod reports;
mod session;
mod set;
mod store;
mod takedown;
mod tasks;
mod workload;

pub use agent::Agent;
pub use engine::{EXIT_CODE_METADATA, EngineApi};
pub use error::AgentError;
pub use gc::GcThresholds;
pub use options::{
    AgentOptions, ClusterMembership, DEFAULT_CONTAINER_POOL, DEFAULT_LOCAL_POOL, DEFAULT_VIP_POOL,
};
pub use peer::PeerApi;
pub use rorqual_image::{Limits as ImageLimits, RegistrySettings};
pub use session::SessionStatus;
pub use store::StoreError;
pub use takedown::take_down;
