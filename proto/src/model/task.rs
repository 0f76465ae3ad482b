//! A task: one replica of a service in one slot, bound to one node for its whole life.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{ContainerSpec, Meta, NetworkId, NodeId, RestartPolicy, ServiceId, TaskId};

/// Observed state. It only moves forward; the order of the variants is that order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskState {
    /// Made by the orchestrator.
    New,
    /// Has its addresses.
    Pending,
    /// Has its node.
    Assigned,
    /// The node's agent has it on disk.
    Accepted,
    /// The image and the network are being made ready.
    Preparing,
    /// Everything is there.
    Ready,
    /// The container is being started.
    Starting,
    /// The container runs (or is being restarted in place by the agent).
    Running,
    /// It ended well and is not to be restarted.
    Complete,
    /// It was asked to stop and has stopped.
    Shutdown,
    /// It ended badly and the restart policy is spent.
    Failed,
    /// The node could not run it at all; the message says why.
    Rejected,
    /// Its node is gone for good.
    Orphaned,
}

impl TaskState {
    /// Nothing follows: the container does not run and will not run again.
    pub fn is_terminal(self) -> bool {
        self >= Self::Complete
    }
}

/// Desired state, written by the orchestrator. It only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DesiredState {
    /// Prepare everything, do not start.
    Ready,
    /// Run.
    Running,
    /// Run on until the slot's next task serves.
    Retiring,
    /// Stop and keep the record.
    Shutdown,
    /// Stop and forget.
    Remove,
}

/// What a container's health check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It has not been well yet, and may still come up.
    Starting,
    /// It is well.
    Healthy,
    /// It has failed so often in a row that it counts.
    Unhealthy,
}

/// What the agent (or, before there is one, the allocator and scheduler) has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskStatus {
    /// How far it is.
    pub state: TaskState,
    /// Why, in words for the user; empty where all is well.
    pub message: String,
    /// When the state was entered, milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// The last exit of the container.
    pub exit_code: Option<i32>,
    /// The last exit was the kernel's for want of memory.
    pub oom_killed: bool,
    /// Restarts in place so far.
    pub restarts: u32,
    /// The container's first process as the node sees it; 0 for none.
    pub pid: u32,
    /// The container runs and may get traffic.
    pub healthy: bool,
    /// What its health check says; none where it has no check.
    pub health: Option<Health>,
}

impl TaskStatus {
    /// The status of a task that was just made.
    pub fn new(at_ms: i64) -> Self {
        Self {
            state: TaskState::New,
            message: String::new(),
            at_ms,
            exit_code: None,
            oom_killed: false,
            restarts: 0,
            pid: 0,
            healthy: false,
            health: None,
        }
    }
}

/// Where tasks of a service may run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// `node.hostname==a`, `node.labels.disk!=hdd`, `node.role==worker`, `node.id==…`; all must hold.
    pub constraints: Vec<String>,
    /// 0 means no bound.
    pub max_replicas_per_node: u32,
}

/// A task's address in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskAddress {
    /// The network.
    pub network_id: NetworkId,
    /// The address, from a block leased to the task's node.
    pub address: Ipv4Addr,
    /// The one beside it, where the network has IPv6 ranges of its own.
    pub address6: Option<Ipv6Addr>,
}

/// A task as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Version and times.
    pub meta: Meta,
    /// The service it belongs to.
    pub service_id: ServiceId,
    /// The service's name, for people.
    pub service_name: String,
    /// Counts from 1.
    pub slot: u32,
    /// The [`super::Service::spec_version`] that it runs.
    pub spec_version: u64,
    /// What it runs.
    pub container: ContainerSpec,
    /// How the agent restarts it.
    pub restart: RestartPolicy,
    /// Where it may run.
    pub placement: Placement,
    /// Networks of the service, by name.
    pub networks: Vec<String>,
    /// Written once, by the scheduler.
    pub node_id: Option<NodeId>,
    /// Written by the orchestrator.
    pub desired_state: DesiredState,
    /// Written by the agent.
    pub status: TaskStatus,
    /// Written once, by the allocator.
    pub addresses: Vec<TaskAddress>,
}

impl Task {
    /// `web.3`: how people and DNS call it.
    pub fn name(&self) -> String {
        format!("{}.{}", self.service_name, self.slot)
    }

    /// It runs, is meant to run, and may get traffic.
    pub fn is_endpoint(&self) -> bool {
        matches!(self.desired_state, DesiredState::Running | DesiredState::Retiring)
            && self.status.state == TaskState::Running
            && self.status.healthy
    }
}
