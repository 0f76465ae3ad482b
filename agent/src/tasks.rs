//! The tasks that the leader has assigned to this node: one driver each.
//!
//! What the assignment set says goes in ([`Tasks::apply`], [`Tasks::restore`]); statuses go out through
//! `TaskSink`: to the node's store, to the network (a task that is down gets no traffic here), and to the
//! session's [`Reports`]. A terminal status is on disk before it is told, and is kept until the task leaves
//! the set, so that no controller misses it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use rorqual_network::{Attach, Join};
use rorqual_proto::model::container::DEFAULT_DRAIN_MS;
use rorqual_proto::model::{DesiredState, Task, TaskAddress, TaskState, TaskStatus};
use rorqual_proto::wire;
use rorqual_runtime::ContainerState;
use tokio::sync::watch;

use crate::clock;
use crate::error::one_line;
use crate::executor::Executor;
use crate::logs::{self, Lines, Origin, Wanted};
use crate::network::Network;
use crate::reports::Reports;
use crate::store::{NodeStore, StoreError, TaskRecord};
use crate::workload::{Attached, Driver, Event, Goal, Handle, Networking, Observed, Sink, Start, Workload};

/// The tasks of this node. Clones share them.
#[derive(Clone)]
pub(crate) struct Tasks {
    inner: Arc<Inner>,
}

struct Inner {
    executor: Executor,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Tasks of the set that have no driver, and why.
    refused: Mutex<BTreeMap<String, wire::TaskStatus>>,
    sink: Arc<TaskSink>,
    /// Tasks of which nothing was found when the daemon started may begin.
    go: watch::Sender<bool>,
}

/// One task of the set, or one that has left it and is being taken away.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) task: Arc<Task>,
    handle: Handle,
    leaving: bool,
}

impl Entry {
    pub(crate) fn observed(&self) -> Observed {
        self.handle.observed()
    }
}

struct TaskSink {
    executor: Executor,
    store: NodeStore,
    network: Network,
    reports: Reports,
}

#[tonic::async_trait]
impl Sink for TaskSink {
    async fn keep(&self, id: &str, status: &TaskStatus, done: bool) {
        if is_urgent(status) {
            // Before the controllers hear of it: this node's balancer is the quickest.
            self.network.health(id, status.healthy).await;
        }
        self.write(id, status, done).await;
        if done {
            self.executor.remove_changes(id).await;
        }
    }

    fn tell(&self, id: &str, status: &TaskStatus) {
        self.reports.push(id, status.into(), is_urgent(status));
    }
}

/// It may change who gets traffic, or it is the end.
fn is_urgent(status: &TaskStatus) -> bool {
    status.state >= TaskState::Running
}

impl TaskSink {
    /// Keeps the status; a last one durably. A store that fails is told in the log, and the task goes on: its
    /// status reaches the controllers all the same.
    async fn write(&self, id: &str, status: &TaskStatus, durably: bool) {
        let (store, id) = (self.store.clone(), id.to_owned());
        let record = TaskRecord { status: Some(status.into()) };
        let kept = if durably {
            let write = move || {
                store.put_task(&id, &record)?;
                store.barrier()
            };
            tokio::task::spawn_blocking(write).await.unwrap_or(Ok(()))
        } else {
            store.put_task(&id, &record)
        };
        if let Err(error) = kept {
            tracing::error!(error = %one_line(&error), "can't keep a task's status");
        }
    }
}

impl Tasks {
    pub(crate) fn new(executor: Executor, store: NodeStore, network: Network) -> Self {
        let sink = TaskSink { executor: executor.clone(), store, network, reports: Reports::default() };
        let (entries, refused) = Default::default();
        let go = watch::Sender::new(false);
        Self { inner: Arc::new(Inner { executor, entries, refused, sink: Arc::new(sink), go }) }
    }

    /// Statuses on their way to the leader.
    pub(crate) fn reports(&self) -> &Reports {
        &self.inner.sink.reports
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Entry>> {
        self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every task of this node.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.lock().values().cloned().collect()
    }

    /// Ids of tasks that have a container, or had one whose log is kept.
    pub(crate) fn ids(&self) -> BTreeSet<String> {
        self.lock().keys().cloned().collect()
    }

    /// Every status, for a Hello.
    pub(crate) fn statuses(&self) -> Vec<wire::ReportedStatus> {
        let report = |(id, entry): (&String, &Entry)| wire::ReportedStatus {
            task_id: id.clone(),
            status: Some((&entry.observed().status).into()),
        };
        let mut statuses: Vec<_> =
            self.lock().iter().filter(|(_, entry)| !entry.leaving).map(report).collect();
        let refused = self.refused();
        statuses.extend(
            refused.iter().map(|(id, status)| wire::ReportedStatus {
                task_id: id.clone(),
                status: Some(status.clone()),
            }),
        );
        statuses
    }

    /// Takes over what an earlier daemon ran: the tasks of the set that is on disk. Those of which nothing is left
    /// (their node lost its power) wait for [`Self::release`]: they may have been replaced meanwhile.
    pub(crate) async fn restore(
        &self,
        tasks: Vec<wire::Task>,
        found: &BTreeMap<String, ContainerState>,
    ) -> Result<(), StoreError> {
        self.inner.go.send_replace(false);
        for task in tasks {
            let record = self.inner.sink.store.task(&task.id)?;
            if !found.contains_key(&task.id) {
                self.inner.sink.network.health(&task.id, false).await;
            }
            self.put(task, record, Some(found));
        }
        // Left the set, and an earlier daemon ended before it had forgotten them.
        let store = &self.inner.sink.store;
        let known = self.ids();
        for id in store.task_ids()?.iter().filter(|id| !known.contains(*id)) {
            store.remove_task(id)?;
        }
        Ok(())
    }

    /// The leader has spoken, or can't be found: what waited since [`Self::restore`] begins. True where it is the
    /// first time.
    pub(crate) fn release(&self) -> bool {
        !self.inner.go.send_replace(true)
    }

    /// Brings the tasks in line with what a set changed.
    pub(crate) async fn apply(&self, put: Vec<wire::Task>, removed: Vec<String>) {
        for task in put {
            let known = self.lock().get(&task.id).cloned();
            match known {
                Some(entry) => self.aim(&entry, task).await,
                None => {
                    let record = self.inner.sink.store.task(&task.id).unwrap_or_default();
                    self.put(task, record, None);
                }
            }
        }
        for id in removed {
            self.remove(id);
        }
    }

    async fn aim(&self, entry: &Entry, task: wire::Task) {
        match Task::try_from(task) {
            Ok(task) => {
                let goal = goal(task.desired_state);
                if let Some(entry) = self.lock().get_mut(task.id.as_str()) {
                    entry.task = Arc::new(task);
                }
                entry.handle.aim(goal, None).await;
            }
            Err(error) => {
                tracing::warn!(task = %entry.task.id, %error, "a change of the task can't be read");
            }
        }
    }

    /// Starts a driver for a task that has none; `found` is what a daemon that starts found of all containers.
    fn put(
        &self,
        task: wire::Task,
        record: Option<TaskRecord>,
        found: Option<&BTreeMap<String, ContainerState>>,
    ) {
        let id = task.id.clone();
        let task = match Task::try_from(task) {
            Ok(task) => task,
            Err(error) => {
                // An order of a newer version, perhaps.
                return self
                    .refuse(id, format!("the task can't be read: {error}; are all nodes of one version?"));
            }
        };
        let known =
            record.and_then(|record| record.status).and_then(|status| TaskStatus::try_from(status).ok());
        if known.is_none() && task.status.state.is_terminal() {
            // It ended before, and its controllers know.
            return;
        }
        let mut status = known.unwrap_or_else(|| task.status.clone());
        if status.state < TaskState::Accepted {
            status.state = TaskState::Accepted;
            status.at_ms = clock::wall_ms();
        }
        let event = beginning(&status, found.and_then(|found| found.get(&id)));
        let waits = found.is_some() && matches!(event, Event::Begin) && !status.state.is_terminal();
        if waits {
            (status.healthy, status.pid) = (false, 0);
        }
        let go = waits.then(|| self.inner.go.subscribe());
        let start = Start { event, goal: goal(task.desired_state), status, go };
        let handle =
            Driver::spawn(self.inner.executor.clone(), workload(&task), start, self.inner.sink.clone());
        self.lock().insert(id, Entry { task: Arc::new(task), handle, leaving: false });
    }

    /// A task that no driver can be made for; the others go on.
    fn refuse(&self, id: String, message: String) {
        tracing::warn!(task = %id, message, "task refused");
        let mut status = TaskStatus::new(clock::wall_ms());
        status.state = TaskState::Rejected;
        status.message = message;
        let status = wire::TaskStatus::from(&status);
        self.refused().insert(id.clone(), status.clone());
        self.reports().push(&id, status, true);
    }

    fn refused(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, wire::TaskStatus>> {
        self.inner.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task that left the set: stopped if it runs, and forgotten.
    fn remove(&self, id: String) {
        self.refused().remove(&id);
        let entry = match self.lock().get_mut(&id) {
            Some(entry) if !entry.leaving => {
                entry.leaving = true;
                entry.clone()
            }
            Some(_) => return,
            None => {
                let _ = self.inner.sink.store.remove_task(&id);
                return;
            }
        };
        let tasks = self.clone();
        // Ends when the container is gone; a daemon that ends earlier finds it as a leftover.
        tokio::spawn(async move {
            entry.handle.aim(Goal::Stop, None).await;
            entry.handle.done().await;
            tasks.inner.executor.remove_folder(&id).await;
            if let Err(error) = tasks.inner.sink.store.remove_task(&id) {
                tracing::warn!(task = %id, error = %one_line(&error), "can't forget the task");
            }
            tasks.lock().remove(&id);
        });
    }

    /// Stops every task and waits until all are gone: the node leaves its cluster.
    pub(crate) async fn remove_all(&self) {
        let entries = self.entries();
        for entry in &entries {
            self.remove(entry.task.id.to_string());
        }
        for entry in &entries {
            entry.handle.done().await;
        }
        self.refused().clear();
        self.reports().clear();
    }

    /// Lets go of every task without touching its container.
    pub(crate) fn abandon(&self) {
        for entry in std::mem::take(&mut *self.lock()).into_values() {
            entry.handle.abandon();
        }
    }

    /// A task's log; `None` where the task is not on this node.
    pub(crate) fn logs(&self, id: &str, wanted: Wanted, node: &str) -> Option<Lines> {
        let entry = self.lock().get(id).cloned()?;
        let origin = Origin { task_id: id.to_owned(), task_name: entry.task.name(), node: node.to_owned() };
        let folder = self.inner.executor.folder(id).path().to_owned();
        let handle = entry.handle;
        Some(logs::stream(folder, wanted, origin, async move { handle.done().await }, ()))
    }
}

/// Where a driver starts, by what is known of the task and what is found of its container.
fn beginning(status: &TaskStatus, found: Option<&ContainerState>) -> Event {
    if status.state.is_terminal() {
        return Event::Begin;
    }
    // A launch that was cut off is begun again: what is left of it is taken away before.
    Event::found(found).unwrap_or(Event::Begin)
}

fn goal(desired: DesiredState) -> Goal {
    match desired {
        DesiredState::Ready => Goal::Prepare,
        DesiredState::Running | DesiredState::Retiring => Goal::Run,
        DesiredState::Shutdown | DesiredState::Remove => Goal::Stop,
    }
}

fn workload(task: &Task) -> Workload {
    let join = |given: &TaskAddress| Join {
        address6: given.address6,
        ..Join::new(given.network_id.as_str(), Some(given.address))
    };
    Workload {
        id: task.id.to_string(),
        service: Some(task.service_id.to_string()),
        hostname: task.name().replace('.', "-"),
        spec: task.container.clone(),
        restart: task.restart,
        network: Networking::Attached(Attached::new(Attach {
            resolvers: task.container.dns.servers.clone(),
            id: task.id.to_string(),
            name: task.name(),
            networks: task.addresses.iter().map(join).collect(),
            ports: Vec::new(),
        })),
        drain_ms: Some(task.container.drain_ms.unwrap_or(DEFAULT_DRAIN_MS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_decides_where_a_driver_begins() {
        let mut status = TaskStatus::new(0);
        status.state = TaskState::Running;
        let running = ContainerState::Running(rorqual_runtime::Started { pid: 7, started_at_ms: 5 });
        assert!(matches!(beginning(&status, Some(&running)), Event::Adopted { pid: 7, started_at_ms: 5 }));
        assert!(matches!(beginning(&status, Some(&ContainerState::Lost)), Event::FoundDead(_)));
        assert!(matches!(beginning(&status, Some(&ContainerState::Starting)), Event::Begin));
        assert!(matches!(beginning(&status, None), Event::Begin));
        status.state = TaskState::Failed;
        assert!(matches!(beginning(&status, Some(&running)), Event::Begin));
    }
}
