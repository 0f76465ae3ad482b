//! Plain containers of this node: made, started, stopped and removed by its own user.
//!
//! A container's record is on disk from `create` on; while it is meant to run, a driver looks after it, as with
//! a task. Who waits for one (`wait`, following a log) waits for a change of the whole table and looks again:
//! a node has few of them.
//!
//! A container made with `auto_remove` goes by itself when it has ended, but not before those who read its log
//! are done; what it ended with is remembered a while longer, for a `wait` that comes late.

mod guests;
pub(crate) mod info;
mod names;
mod removal;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use rorqual_proto::model::id::text_from_bits;
use rorqual_proto::model::{ContainerSpec, RestartCondition, RestartPolicy, TaskState, TaskStatus};
use rorqual_proto::validate::{self, InvalidField};
use rorqual_proto::wire;
use rorqual_runtime::ContainerState;
use tokio::sync::watch;

use crate::clock;
use crate::error::one_line;
use crate::executor::Executor;
use crate::logs::{self, Lines, Origin, Wanted};
use crate::store::{ContainerRecord, NodeStore, StoreError};
use crate::workload::{Attached, Driver, Event, Exit, Goal, Handle, Networking, Sink, Start, Workload};
use guests::Guests;

/// The most plain containers of a node.
const MOST: usize = 4_096;

/// Why an operation on a plain container was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    #[error("no container `{0}` on this node: see `rctl ps --all`")]
    NotFound(String),
    #[error("`{name}` means more than one container ({ids}): give more of the id")]
    Ambiguous { name: String, ids: String },
    #[error("the name `{name}` is taken by container {holder}: remove that one or choose another name")]
    NameTaken { name: String, holder: String },
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    #[error("{0}")]
    State(String),
    #[error("container {name} did not start: {message}")]
    NotStarted { name: String, message: String, exit_code: i32 },
    #[error("this node has {MOST} containers already: remove some")]
    TooMany,
    /// The leader's answer for a container that joins networks.
    #[error("{}", .0.message())]
    Network(tonic::Status),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the agent is shutting down")]
    Interrupted,
}

/// What a new container is made of.
#[derive(Debug, Clone)]
pub(crate) struct NewContainer {
    pub(crate) name: String,
    pub(crate) spec: ContainerSpec,
    pub(crate) ports: Vec<wire::PortSpec>,
    pub(crate) restart: RestartPolicy,
    pub(crate) auto_remove: bool,
    pub(crate) network_mode: wire::NetworkMode,
    pub(crate) networks: Vec<wire::NetworkJoin>,
}

/// The plain containers. Clones share them.
#[derive(Clone)]
pub(crate) struct Containers {
    inner: Arc<Inner>,
}

struct Inner {
    executor: Executor,
    store: NodeStore,
    table: Mutex<Table>,
    guests: Guests,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<String, Entry>,
    departed: VecDeque<ContainerRecord>,
}

#[derive(Debug, Clone)]
struct Entry {
    record: ContainerRecord,
    spec: ContainerSpec,
    handle: Option<Handle>,
    /// Its networks, where it was started with such.
    attached: Option<Attached>,
    /// One clone each for everybody who reads its log.
    readers: Arc<()>,
    /// It is being taken away.
    leaving: bool,
}

impl Entry {
    fn new(record: ContainerRecord, spec: ContainerSpec) -> Self {
        Self { record, spec, handle: None, attached: None, readers: Arc::default(), leaving: false }
    }

    fn is_live(&self) -> bool {
        self.handle.as_ref().is_some_and(|handle| !handle.observed().done)
    }

    fn status(&self) -> Option<TaskStatus> {
        self.record.status.clone().and_then(|status| TaskStatus::try_from(status).ok())
    }
}

struct ContainerSink {
    containers: Containers,
}

#[tonic::async_trait]
impl Sink for ContainerSink {
    fn tell(&self, _id: &str, _status: &TaskStatus) {
        // The driver's end is part of what waiters look at.
        self.containers.note_change();
    }

    async fn keep(&self, id: &str, status: &TaskStatus, done: bool) {
        let record = self.containers.update(id, |record| {
            // Of one run, however often its health changes.
            let ran = record.status.as_ref().is_some_and(|before| before.pid == status.pid);
            if status.state == TaskState::Running && status.pid > 0 && !ran {
                record.started_at_ms = clock::wall_ms();
            }
            if status.pid == 0 && record.finished_at_ms < record.started_at_ms {
                record.finished_at_ms = clock::wall_ms();
            }
            record.wanted &= !done;
            record.status = Some(status.into());
        });
        let Some(record) = record else { return };
        if let Err(error) = self.containers.keep(&record).await {
            tracing::error!(container = id, error = %one_line(&error), "can't keep the container's status");
        }
        if done && record.auto_remove {
            self.containers.clone().leave_by_itself(id.to_owned());
        }
    }
}

impl Containers {
    pub(crate) fn new(executor: Executor, store: NodeStore) -> Self {
        let (changed, _) = watch::channel(0);
        Self {
            inner: Arc::new(Inner {
                executor,
                store,
                table: Mutex::default(),
                guests: Guests::default(),
                changed,
            }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.inner.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_change(&self) {
        self.inner.changed.send_modify(|count| *count += 1);
    }

    fn update(&self, id: &str, change: impl FnOnce(&mut ContainerRecord)) -> Option<ContainerRecord> {
        let record = {
            let mut table = self.lock();
            let entry = table.entries.get_mut(id)?;
            change(&mut entry.record);
            entry.record.clone()
        };
        self.note_change();
        Some(record)
    }

    async fn keep(&self, record: &ContainerRecord) -> Result<(), ContainerError> {
        let (store, record) = (self.inner.store.clone(), record.clone());
        let kept = tokio::task::spawn_blocking(move || {
            store.put_container(&record)?;
            store.barrier()
        });
        Ok(kept.await.map_err(|_| ContainerError::Interrupted)??)
    }

    /// Reads the records, and takes over what an earlier daemon ran. A container that ran when the machine went
    /// down is started again where its policy says so.
    pub(crate) fn restore(&self, found: &BTreeMap<String, ContainerState>) -> Result<(), StoreError> {
        for record in self.inner.store.containers()? {
            let id = record.id.clone();
            let spec = record.spec.clone().map(ContainerSpec::try_from);
            let Some(Ok(spec)) = spec else {
                tracing::warn!(container = %id, "the container's record can't be read; left alone");
                continue;
            };
            let entry = Entry::new(record, spec);
            let (wanted, leaves) = (entry.record.wanted, entry.record.auto_remove);
            let started = entry.record.status.is_some();
            let event = beginning(found.get(&id), restart(&entry.record).condition);
            self.lock().entries.insert(id.clone(), entry);
            if wanted {
                self.drive(&id, event);
            } else if leaves && started {
                self.clone().leave_by_itself(id);
            }
        }
        Ok(())
    }

    /// Ids of all containers, for the search for leftovers.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.lock().entries.keys().cloned().collect()
    }

    /// Every record, with its specification.
    pub(crate) fn records(&self) -> Vec<(ContainerRecord, ContainerSpec)> {
        self.lock().entries.values().map(|entry| (entry.record.clone(), entry.spec.clone())).collect()
    }

    /// One record by name, unique prefix of the id, or id.
    pub(crate) fn record(&self, name: &str) -> Result<ContainerRecord, ContainerError> {
        self.find(name).map(|entry| entry.record)
    }

    fn find(&self, name: &str) -> Result<Entry, ContainerError> {
        let table = self.lock();
        let exact = table.entries.values().find(|e| e.record.name == name || e.record.id == name);
        if let Some(entry) = exact {
            return Ok(entry.clone());
        }
        let matches: Vec<&Entry> = match name {
            "" => Vec::new(),
            prefix => table.entries.values().filter(|e| e.record.id.starts_with(prefix)).collect(),
        };
        match matches.as_slice() {
            [] => Err(ContainerError::NotFound(name.to_owned())),
            [entry] => Ok((*entry).clone()),
            several => Err(ContainerError::Ambiguous {
                name: name.to_owned(),
                ids: several.iter().map(|e| e.record.id.as_str()).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// Makes a container; it does not run yet. Returns its id.
    pub(crate) async fn create(&self, new: NewContainer) -> Result<String, ContainerError> {
        validate::container_spec(&new.spec).map_err(|error| error.within("spec"))?;
        validate::restart_policy(&new.restart).map_err(|error| error.within("restart"))?;
        info::check_ports(&new.ports)?;
        info::check_network(new.network_mode, &new.ports, &new.spec)?;
        guests::check_joins(new.network_mode, &new.networks)?;
        if !new.name.is_empty() {
            names::check(&new.name)?;
        }
        let id = text_from_bits(rand::random());
        let record = {
            let mut table = self.lock();
            if table.entries.len() >= MOST {
                return Err(ContainerError::TooMany);
            }
            let taken = |name: &str| table.entries.values().find(|entry| entry.record.name == name);
            let name = match new.name.as_str() {
                "" => names::generate(|name| taken(name).is_some()),
                name => match taken(name) {
                    Some(holder) => {
                        let holder = holder.record.id.clone();
                        return Err(ContainerError::NameTaken { name: name.to_owned(), holder });
                    }
                    None => name.to_owned(),
                },
            };
            let record = ContainerRecord {
                id: id.clone(),
                name,
                spec: Some((&new.spec).into()),
                ports: new.ports,
                restart: Some((&new.restart).into()),
                auto_remove: new.auto_remove,
                network_mode: new.network_mode.into(),
                joins: guests::records_of(new.networks),
                created_at_ms: clock::wall_ms(),
                ..ContainerRecord::default()
            };
            table.entries.insert(id.clone(), Entry::new(record.clone(), new.spec));
            record
        };
        let folder = self.inner.executor.folder(&id);
        // A reader of its log may come before it starts.
        let made = tokio::task::spawn_blocking(move || folder.make()).await;
        let kept = match made {
            Ok(Ok(())) => self.keep(&record).await,
            Ok(Err(error)) => Err(ContainerError::State(one_line(&error))),
            Err(_) => Err(ContainerError::Interrupted),
        };
        if let Err(error) = kept {
            self.lock().entries.remove(&id);
            return Err(error);
        }
        // It is on disk first: what the leader gives to one that nobody knows any more is given back.
        let joined = match self.ask(&record, false).await {
            Ok(joins) if joins == record.joins => Ok(()),
            Ok(joins) => self.keep_joins(&ContainerRecord { joins, ..record }).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = joined {
            self.take_away(&id).await?;
            return Err(error);
        }
        self.note_change();
        Ok(id)
    }

    /// Starts a container, and returns once its process runs, or has run.
    pub(crate) async fn start(&self, name: &str) -> Result<ContainerRecord, ContainerError> {
        let entry = self.find(name)?;
        let id = entry.record.id.clone();
        if entry.is_live() {
            return Err(ContainerError::State(format!("container {} runs already", entry.record.name)));
        }
        if entry.leaving {
            return Err(ContainerError::NotFound(name.to_owned()));
        }
        let joins = self.ask_to_start(&entry.record).await?;
        let record = self.update(&id, |record| {
            record.wanted = true;
            record.status = None;
            record.joins = joins;
        });
        let record = record.ok_or_else(|| ContainerError::NotFound(name.to_owned()))?;
        self.keep(&record).await?;
        self.drive(&id, Event::Begin);
        loop {
            let mut changed = self.inner.changed.subscribe();
            let record = self.find_or_departed(&id)?;
            let status = record.status.clone().and_then(|status| TaskStatus::try_from(status).ok());
            match status {
                Some(status) if status.state == TaskState::Rejected => {
                    return Err(ContainerError::NotStarted {
                        name: record.name,
                        message: status.message,
                        exit_code: status.exit_code.unwrap_or(125),
                    });
                }
                Some(status) if status.state >= TaskState::Running => return Ok(record),
                _ => changed.changed().await.map_err(|_| ContainerError::Interrupted)?,
            }
        }
    }

    fn drive(&self, id: &str, event: Event) {
        let mut table = self.lock();
        let Some(entry) = table.entries.get_mut(id) else { return };
        if entry.is_live() {
            return;
        }
        let record = &entry.record;
        let mut status = entry.status().unwrap_or_else(|| TaskStatus::new(clock::wall_ms()));
        if status.state.is_terminal() {
            status = TaskStatus::new(clock::wall_ms());
        }
        entry.attached = match record.network_mode() {
            wire::NetworkMode::Unspecified => Some(Attached::new(guests::attach_of(record))),
            wire::NetworkMode::Host | wire::NetworkMode::None => None,
        };
        let workload = Workload {
            id: record.id.clone(),
            service: None,
            hostname: info::short_id(&record.id).to_owned(),
            spec: entry.spec.clone(),
            restart: restart(record),
            network: match (&entry.attached, record.network_mode()) {
                (Some(attached), _) => Networking::Attached(attached.clone()),
                (None, wire::NetworkMode::Host) => Networking::Host,
                (None, _) => Networking::Alone,
            },
            drain_ms: None,
        };
        let sink = Arc::new(ContainerSink { containers: self.clone() });
        let start = Start { event, goal: Goal::Run, status, go: None };
        entry.handle = Some(Driver::spawn(self.inner.executor.clone(), workload, start, sink));
    }

    /// Stops a container and waits until it has ended. One that does not run is fine.
    pub(crate) async fn stop(
        &self,
        name: &str,
        grace_ms: Option<u64>,
    ) -> Result<ContainerRecord, ContainerError> {
        let entry = self.find(name)?;
        if let Some(handle) = &entry.handle {
            self.update(&entry.record.id, |record| record.wanted = false);
            handle.aim(Goal::Stop, grace_ms).await;
            handle.done().await;
        }
        self.find_or_departed(&entry.record.id)
    }

    /// Sends a signal. SIGKILL and the stop signal also end its restarts.
    pub(crate) async fn kill(&self, name: &str, signal: &str) -> Result<ContainerRecord, ContainerError> {
        let entry = self.find(name)?;
        let text = if signal.is_empty() { "SIGKILL" } else { signal };
        let number = validate::signal_number(text).map(i32::from).ok_or_else(|| {
            InvalidField::new("signal", format!("`{text}` is not a signal"))
                .remedy("give a name as SIGTERM or a number of 1 to 64")
        })?;
        let Some(handle) = entry.handle.as_ref().filter(|_| entry.is_live()) else {
            return Err(ContainerError::State(format!("container {} does not run", entry.record.name)));
        };
        if number == 9 {
            handle.aim(Goal::Stop, Some(0)).await;
            handle.done().await;
        } else if number == stop_signal(&entry.spec) {
            // As `stop`, but for the patience, which has no end.
            handle.aim(Goal::Stop, Some(validate::MAX_WAIT_MS)).await;
        } else {
            let sent = self.inner.executor.signal(&entry.record.id, number).await;
            sent.map_err(|error| ContainerError::State(one_line(&error)))?;
        }
        self.find_or_departed(&entry.record.id)
    }

    fn find_or_departed(&self, name: &str) -> Result<ContainerRecord, ContainerError> {
        match self.find(name) {
            Err(ContainerError::NotFound(_)) => {
                let table = self.lock();
                let departed = table.departed.iter().rev();
                let found = departed.into_iter().find(|record| record.id == name || record.name == name);
                found.cloned().ok_or_else(|| ContainerError::NotFound(name.to_owned()))
            }
            found => found.map(|entry| entry.record),
        }
    }

    /// Waits until a container has ended and is not started again; one that was not started yet is waited for.
    pub(crate) async fn wait(&self, name: &str) -> Result<ContainerRecord, ContainerError> {
        let id = self.find_or_departed(name)?.id;
        loop {
            let mut changed = self.inner.changed.subscribe();
            let record = self.find_or_departed(&id)?;
            if info::has_ended(&record) {
                return Ok(record);
            }
            changed.changed().await.map_err(|_| ContainerError::Interrupted)?;
        }
    }

    /// A container's log. Following ends with the container.
    pub(crate) fn logs(&self, name: &str, wanted: Wanted, node: &str) -> Result<Lines, ContainerError> {
        let entry = self.find(name)?;
        let id = entry.record.id.clone();
        let folder = self.inner.executor.folder(&id).path().to_owned();
        let origin = Origin { node: node.to_owned(), ..Origin::default() };
        let guard = Reader { containers: self.clone(), readers: Some(entry.readers) };
        let containers = self.clone();
        let ended = async move { drop(containers.wait(&id).await) };
        Ok(logs::stream(folder, wanted, origin, ended, guard))
    }

    /// Lets go of every container without touching it.
    pub(crate) fn abandon(&self) {
        self.inner.guests.stop();
        for entry in self.lock().entries.values() {
            if let Some(handle) = &entry.handle {
                handle.abandon();
            }
        }
    }
}

/// Somebody who reads a log.
struct Reader {
    containers: Containers,
    readers: Option<Arc<()>>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.readers = None;
        self.containers.note_change();
    }
}

fn stop_signal(spec: &ContainerSpec) -> i32 {
    let named = spec.stop_signal.as_deref().and_then(validate::signal_number);
    named.map_or(15, i32::from)
}

fn restart(record: &ContainerRecord) -> RestartPolicy {
    let none = RestartPolicy { condition: RestartCondition::None, ..RestartPolicy::default() };
    let given = record.restart.and_then(|policy| RestartPolicy::try_from(policy).ok());
    given.unwrap_or(none)
}

fn beginning(found: Option<&ContainerState>, condition: RestartCondition) -> Event {
    Event::found(found).unwrap_or_else(|| match condition {
        RestartCondition::None => Event::FoundDead(Exit::unseen("the machine was restarted")),
        RestartCondition::OnFailure | RestartCondition::Any => Event::Begin,
    })
}
