//! Reported task statuses become writes: one task gathers what all sessions report while a batch is on
//! its way and writes it as the next, so that a hundred reports cost a few commits.
//!
//! That a replica is down goes to all nodes at once, and into the log after that (`adr/0075`).
//!
//! A batch that fails because this controller no longer leads is dropped: the agents' sessions end with the
//! leadership, and their next Hello names every status again.

use std::time::Duration;

use rorqual_planner::{Action, ActionKind, State};
use rorqual_proto::model::{NodeId, TaskId, TaskState, TaskStatus};
use rorqual_proto::wire;
use tokio::sync::mpsc;
use tonic::Status;

use super::fanout::FanoutHandle;
use crate::store::{ProposeError, Store};

/// How many reports may wait.
const QUEUE: usize = 1_024;

/// The most statuses in one log entry.
const BATCH: usize = 512;

const RETRY_DELAY: Duration = Duration::from_millis(20);

struct Report {
    node: NodeId,
    task: TaskId,
    status: TaskStatus,
    /// The fan-out was told, and waits to hear that it is written.
    withdrawn: bool,
}

/// Where sessions put what agents report.
#[derive(Clone)]
pub(super) struct StatusHandle {
    store: Store,
    fanout: FanoutHandle,
    queue: mpsc::Sender<Report>,
}

impl StatusHandle {
    /// Queues the statuses that a node reported; waits while the queue is full, which slows the node down.
    pub(super) async fn report(
        &self,
        node: &NodeId,
        statuses: Vec<wire::ReportedStatus>,
    ) -> Result<(), Status> {
        let statuses = statuses.into_iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let down = self.store.read(|state| {
            let down = statuses.iter().filter(|(task, status)| goes_down(state, node, task, status));
            down.map(|(task, _)| task.clone()).collect::<Vec<_>>()
        });
        if !down.is_empty() {
            self.fanout.withdraw(down.clone()).await;
        }
        for (task, status) in statuses {
            let withdrawn = down.contains(&task);
            let report = Report { node: node.clone(), task, status, withdrawn };
            if self.queue.send(report).await.is_err() {
                return Err(Status::unavailable("this controller is shutting down"));
            }
        }
        Ok(())
    }
}

/// A task that gets new connections, and may get none by what its own node says.
fn goes_down(state: &State, node: &NodeId, task: &TaskId, status: &TaskStatus) -> bool {
    let serves = status.state == TaskState::Running && status.healthy;
    !serves && state.task(task).is_some_and(|task| task.node_id.as_ref() == Some(node) && task.is_endpoint())
}

fn parse(reported: wire::ReportedStatus) -> Result<(TaskId, TaskStatus), Status> {
    let task = reported
        .task_id
        .parse()
        .map_err(|error| Status::invalid_argument(format!("statuses.task_id: {error}")))?;
    let status = reported
        .status
        .ok_or_else(|| Status::invalid_argument(format!("statuses of task {task}: no status")))?;
    let status = TaskStatus::try_from(status)
        .map_err(|error| Status::invalid_argument(format!("status of task {task}: {error}")))?;
    Ok((task, status))
}

/// Starts the task; it ends when every handle is gone.
pub(super) fn start(store: Store, fanout: FanoutHandle) -> StatusHandle {
    let (queue, reports) = mpsc::channel(QUEUE);
    tokio::spawn(run(store.clone(), fanout.clone(), reports));
    StatusHandle { store, fanout, queue }
}

async fn run(store: Store, fanout: FanoutHandle, mut reports: mpsc::Receiver<Report>) {
    let mut batch = Vec::with_capacity(BATCH);
    while reports.recv_many(&mut batch, BATCH).await > 0 {
        let withdrawn = batch.iter().filter(|report| report.withdrawn);
        let withdrawn: Vec<TaskId> = withdrawn.map(|report| report.task.clone()).collect();
        let actions = writes(&store, batch.drain(..));
        if !actions.is_empty() {
            write(&store, actions).await;
        }
        if !withdrawn.is_empty() {
            fanout.written(withdrawn).await;
        }
    }
}

async fn write(store: &Store, actions: Vec<Action>) {
    loop {
        match store.propose(actions.clone()).await {
            Ok(_) => return,
            Err(ProposeError::NotLeader { .. }) => return,
            Err(ProposeError::Conflict { .. }) => {
                tracing::warn!("a status write without a version was refused");
                return;
            }
            Err(error) => {
                tracing::debug!(%error, "writing statuses again");
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
    }
}

/// Only what is news, and only of tasks that are bound to the node that reports.
fn writes(store: &Store, reports: impl Iterator<Item = Report>) -> Vec<Action> {
    store.read(|state| {
        reports
            .filter(|report| {
                state.task(&report.task).is_some_and(|task| {
                    task.node_id.as_ref() == Some(&report.node) && task.status != report.status
                })
            })
            .map(|report| Action::new(ActionKind::TaskStatus { task_id: report.task, status: report.status }))
            .collect()
    })
}
