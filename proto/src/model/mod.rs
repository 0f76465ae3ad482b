//! The domain model: what the planner and the store reason about, free of wire types.
//!
//! Start with [`service::ServiceSpec`] (what a user asks for), [`task::Task`] (one replica of it, bound
//! to one node for life) and [`node::Node`]. Desired and observed state are separate fields with one
//! writer each; see `docs/architecture.md`.

pub mod cluster;
pub mod constraint;
pub mod container;
pub mod edge;
pub mod id;
pub mod network;
pub mod node;
pub mod order;
pub mod record;
pub mod service;
pub mod task;

pub use cluster::Cluster;
pub use constraint::{Constraint, ConstraintKey, InvalidConstraint};
pub use container::{ContainerSpec, DnsSpec, HealthCheck, Mount, MountKind, OnUnhealthy, Probe, Resources};
pub use edge::{EdgeSettings, RouteBackend, RouteSpec};
pub use id::{ClusterId, GuestId, NetworkId, NodeId, ServiceId, TaskId};
pub use network::{BlockLease, Guest, Network, NetworkJoin, NetworkSpec};
pub use node::{
    Availability, HeldPort, Node, NodeDescription, NodeEncryption, NodeSpec, NodeState, NodeStatus, Role,
};
pub use order::UpdateOrder;
pub use record::Record;
pub use service::{
    PortClaim, PortSpec, Protocol, RestartCondition, RestartPolicy, Service, ServiceMode, ServiceSpec, Vip,
};
pub use task::{DesiredState, Health, Placement, Task, TaskAddress, TaskState, TaskStatus};

/// When an object was written, and at which place in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meta {
    /// The Raft index of the last write; 0 before the object is stored.
    pub version: u64,
    /// Milliseconds since the Unix epoch, stamped by the leader.
    pub created_at_ms: i64,
    /// Milliseconds since the Unix epoch, stamped by the leader.
    pub updated_at_ms: i64,
}
