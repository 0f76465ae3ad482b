//! One container under the agent's care, be it a service's task or a plain container.
//!
//! [`Driver::spawn`] starts one tokio task per container. It owns the [`machine::Machine`], reads a closed set
//! of events ([`Event`]) and carries out the machine's effects through the executor; results come back as
//! events. What the container does is told to a [`Sink`]. The task ends when the machine is done; a panic or
//! an error of one container never reaches another.
//!
//! Dropping the [`Handle`] of a running container, or ending the process, leaves the container as it is.

pub(crate) mod backoff;
pub(crate) mod machine;

use std::sync::{Arc, Mutex, PoisonError};

use rorqual_network::Attach;
use rorqual_proto::model::{ContainerSpec, OnUnhealthy, RestartPolicy, TaskStatus};
use rorqual_runtime::ContainerState;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::clock;
use crate::executor::{Executor, Prepared};
use machine::{Effect, Machine, Rules, Unhealthy};
pub(crate) use machine::{Event, Exit, Failure, Goal};

/// Events that may wait for one container's driver.
const EVENTS: usize = 32;

/// What a container is, as far as running it goes.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    /// Also the container's id: that of the task, or of the plain container.
    pub(crate) id: String,
    /// The id of the service that it is a task of.
    pub(crate) service: Option<String>,
    /// The container's host name where its specification names none.
    pub(crate) hostname: String,
    pub(crate) spec: ContainerSpec,
    pub(crate) restart: RestartPolicy,
    pub(crate) network: Networking,
    /// How long its connections are waited for once the balancers have let go of it; none where there are none.
    pub(crate) drain_ms: Option<u64>,
}

/// Where a container's packets go.
#[derive(Debug, Clone)]
pub(crate) enum Networking {
    /// Into networks of the fabric, by a namespace of its own.
    Attached(Attached),
    /// Into the node's own network.
    Host,
    /// Nowhere.
    Alone,
}

/// The networks of a container, which may be others while it runs. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Attached(Arc<Mutex<Attach>>);

impl Attached {
    pub(crate) fn new(attach: Attach) -> Self {
        Self(Arc::new(Mutex::new(attach)))
    }

    /// As they are to be now.
    pub(crate) fn get(&self) -> Attach {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on, also when the container is started anew.
    pub(crate) fn set(&self, attach: Attach) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = attach;
    }
}

impl Workload {
    fn rules(&self) -> Rules {
        Rules {
            restart: self.restart,
            grace_ms: self.spec.stop_grace_ms,
            drain_ms: self.drain_ms,
            unhealthy: self.unhealthy(),
            memory_limit_bytes: self.spec.limits.memory_bytes,
        }
    }

    fn unhealthy(&self) -> Unhealthy {
        match self.spec.health.as_ref().and_then(|check| check.on_unhealthy) {
            Some(OnUnhealthy::Keep) => Unhealthy::Keep,
            Some(OnUnhealthy::Restart) => Unhealthy::Restart,
            None if self.service.is_some() => Unhealthy::Fail,
            None => Unhealthy::Keep,
        }
    }
}

/// Who wants to know what a container does.
#[tonic::async_trait]
pub(crate) trait Sink: Send + Sync + 'static {
    /// A new status; `done` with the last one. Returns when it is kept as it has to be.
    async fn keep(&self, id: &str, status: &TaskStatus, done: bool);

    /// The status is kept, and [`Handle::observed`] gives it: it may be told to others.
    fn tell(&self, id: &str, status: &TaskStatus);
}

/// The way to a container's driver. Clones lead to the same one.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    events: mpsc::Sender<Event>,
    status: watch::Receiver<Observed>,
    task: AbortHandle,
}

/// What is seen of a container from outside.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Observed {
    pub(crate) status: TaskStatus,
    pub(crate) done: bool,
}

impl Handle {
    /// Moves the goal; a goal that is behind the present one changes nothing.
    pub(crate) async fn aim(&self, goal: Goal, grace_ms: Option<u64>) {
        // A driver that has ended has reached every goal.
        let _ = self.events.send(Event::Goal { goal, grace_ms }).await;
    }

    /// The present status.
    pub(crate) fn observed(&self) -> Observed {
        self.status.borrow().clone()
    }

    /// Waits until the container has ended for good, and everything of it is taken away.
    pub(crate) async fn done(&self) {
        // An error says that the driver is gone without having finished: nothing more will come.
        let _ = self.status.clone().wait_for(|observed| observed.done).await;
    }

    /// Lets go of the container without touching it: the daemon ends.
    pub(crate) fn abandon(&self) {
        self.task.abort();
    }
}

/// Where a container's driver begins.
#[derive(Debug)]
pub(crate) struct Start {
    /// [`Event::Begin`], or what was found of it.
    pub(crate) event: Event,
    pub(crate) goal: Goal,
    /// What is known from before: restarts, last exit.
    pub(crate) status: TaskStatus,
    /// The event waits until this is true; the goal may move meanwhile.
    pub(crate) go: Option<watch::Receiver<bool>>,
}

/// The driver of one container.
pub(crate) struct Driver {
    executor: Executor,
    workload: Arc<Workload>,
    sink: Arc<dyn Sink>,
    machine: Machine,
    events: mpsc::Sender<Event>,
    observed: watch::Sender<Observed>,
    /// What the last preparation gave; read by the start that follows.
    prepared: Arc<Mutex<Option<Arc<Prepared>>>>,
    /// The one preparation under way. Dropping it gives it up.
    preparing: JoinSet<()>,
    /// Asking how the container is, while it runs.
    probing: JoinSet<()>,
    /// Everything else under way; dropped with the driver, so that nothing outlives the daemon's agent.
    operations: JoinSet<()>,
}

impl Driver {
    /// Starts the driver's task.
    pub(crate) fn spawn(executor: Executor, workload: Workload, start: Start, sink: Arc<dyn Sink>) -> Handle {
        let (events, inbox) = mpsc::channel(EVENTS);
        let machine = Machine::new(workload.rules(), start.goal, start.status);
        let first = Observed { status: machine.status().clone(), done: machine.is_done() };
        let (observed, status) = watch::channel(first);
        let driver = Self {
            executor,
            workload: Arc::new(workload),
            sink,
            machine,
            events: events.clone(),
            observed,
            prepared: Arc::default(),
            preparing: JoinSet::new(),
            probing: JoinSet::new(),
            operations: JoinSet::new(),
        };
        let task = tokio::spawn(driver.run(start.event, start.go, inbox)).abort_handle();
        Handle { events, status, task }
    }

    async fn run(
        mut self,
        first: Event,
        mut go: Option<watch::Receiver<bool>>,
        mut inbox: mpsc::Receiver<Event>,
    ) {
        while let Some(wait) = &mut go {
            // Both arms are cancel-safe: the queue and the watch keep what was not taken.
            let event = tokio::select! {
                // An error says that the agent is gone, which ends this task as well.
                _ = wait.wait_for(|go| *go) => break,
                event = inbox.recv() => event,
            };
            match event {
                Some(event) => self.handle(event).await,
                None => return,
            }
        }
        // Where it was told to stop meanwhile, nothing begins any more.
        self.handle(first).await;
        while !self.machine.is_done() {
            let wake_at_ms = self.machine.wake_at_ms();
            // Both arms are cancel-safe: the queue keeps what was not taken, and the sleep is computed anew.
            let event = tokio::select! {
                event = inbox.recv() => match event {
                    Some(event) => event,
                    None => return,
                },
                () = sleep_until(wake_at_ms) => Event::Due,
            };
            self.handle(event).await;
            while self.operations.try_join_next().is_some() {}
        }
    }

    async fn handle(&mut self, event: Event) {
        let before = self.machine.phase();
        if let Event::Exited(exit) = &event {
            self.probing.abort_all();
            let (code, oom_killed) = (exit.code, exit.oom_killed);
            tracing::info!(container = %self.workload.id, code, oom_killed, ?before, "process ended");
        }
        let effects = self.machine.step(event, clock::steady_ms(), rand::random());
        let after = self.machine.phase();
        if before != after {
            tracing::debug!(container = %self.workload.id, ?before, ?after, "phase");
        }
        for effect in effects {
            self.carry_out(effect).await;
        }
    }

    async fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Prepare => self.prepare(),
            // Waits until it is really gone, so that the clean-up that follows finds all of it.
            Effect::CancelPrepare => self.preparing.shutdown().await,
            Effect::Start => self.start(),
            Effect::Watch => self.watch(),
            Effect::Probe => self.probe(),
            Effect::Drain => self.drain(),
            Effect::Stop => self.signal(false),
            Effect::Kill => self.signal(true),
            Effect::Clean => self.clean(),
            Effect::Report => self.report().await,
        }
    }

    fn prepare(&mut self) {
        let (executor, workload) = (self.executor.clone(), self.workload.clone());
        let (slot, events) = (self.prepared.clone(), self.events.clone());
        self.preparing.spawn(async move {
            let event = match executor.prepare(&workload).await {
                Ok(prepared) => {
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(prepared));
                    Event::Prepared
                }
                Err(failure) => {
                    tracing::warn!(container = %workload.id, error = failure.message, "can't make the container ready");
                    Event::PrepareFailed(failure)
                }
            };
            // The driver has ended: nobody waits for the result.
            let _ = events.send(event).await;
        });
    }

    /// Ends with the container's process.
    fn start(&mut self) {
        let (executor, workload) = (self.executor.clone(), self.workload.clone());
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let events = self.events.clone();
        let checked = prepared.as_ref().is_some_and(|prepared| prepared.is_checked());
        self.operations.spawn(async move {
            let started = match prepared {
                Some(prepared) => executor.start(&workload, &prepared).await,
                None => Err(Failure {
                    message: "started before it was ready".to_owned(),
                    exit_code: 125,
                    permanent: false,
                }),
            };
            match started {
                Ok(started) => {
                    let pid = u32::try_from(started.pid).unwrap_or(0);
                    let event = Event::Started { pid, started_at_ms: started.started_at_ms, checked };
                    if events.send(event).await.is_ok() {
                        let exit = executor.exit(&workload.id, Some(&events)).await;
                        let _ = events.send(Event::Exited(exit)).await;
                    }
                }
                Err(failure) => {
                    tracing::warn!(container = %workload.id, error = failure.message, "can't start the container");
                    drop(events.send(Event::StartFailed(failure)).await);
                }
            }
        });
    }

    fn watch(&mut self) {
        let (executor, workload, events) =
            (self.executor.clone(), self.workload.clone(), self.events.clone());
        self.operations.spawn(async move {
            // What a restart in place needs of the network is made sure of while the container runs.
            executor.readopt(&workload).await;
            let exit = executor.exit(&workload.id, Some(&events)).await;
            let _ = events.send(Event::Exited(exit)).await;
        });
    }

    /// Ends when the container is to stop, or has ended.
    fn probe(&mut self) {
        let (executor, workload, events) =
            (self.executor.clone(), self.workload.clone(), self.events.clone());
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let known = self.machine.status().health;
        self.probing.abort_all();
        self.probing.spawn(async move {
            let Some(prober) = executor.prober(&workload, prepared.as_deref()).await else { return };
            prober.run(known, &events).await;
        });
    }

    fn drain(&mut self) {
        self.probing.abort_all();
        let (executor, workload, events) =
            (self.executor.clone(), self.workload.clone(), self.events.clone());
        self.operations.spawn(async move {
            executor.drain(&workload).await;
            let _ = events.send(Event::Drained).await;
        });
    }

    fn signal(&mut self, kill: bool) {
        self.probing.abort_all();
        let (executor, workload) = (self.executor.clone(), self.workload.clone());
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.operations.spawn(async move {
            let sent = if kill {
                executor.kill(&workload.id).await
            } else {
                executor.stop(&workload, prepared.as_deref()).await
            };
            if let Err(error) = sent {
                // It may have ended by itself meanwhile; where it has not, SIGKILL follows, again and again.
                tracing::debug!(container = %workload.id, error = %crate::error::one_line(&error), "signal");
            }
        });
    }

    fn clean(&mut self) {
        let (executor, workload, events) =
            (self.executor.clone(), self.workload.clone(), self.events.clone());
        self.operations.spawn(async move {
            executor.clean(&workload.id).await;
            let _ = events.send(Event::Cleaned).await;
        });
    }

    async fn report(&mut self) {
        let mut status = self.machine.status().clone();
        let last = self.observed.borrow().status.clone();
        status.at_ms =
            if status.state == last.state && last.at_ms > 0 { last.at_ms } else { clock::wall_ms() };
        let done = self.machine.is_done();
        self.sink.keep(&self.workload.id, &status, done).await;
        self.observed.send_replace(Observed { status: status.clone(), done });
        self.sink.tell(&self.workload.id, &status);
    }
}

async fn sleep_until(at_ms: Option<i64>) {
    match at_ms {
        Some(at_ms) => tokio::time::sleep(clock::until(at_ms)).await,
        None => std::future::pending().await,
    }
}

impl Event {
    /// What a driver starts with where a container was found; none where there is nothing to take over.
    pub(crate) fn found(state: Option<&ContainerState>) -> Option<Self> {
        match state? {
            ContainerState::Running(started) => Some(Self::Adopted {
                pid: u32::try_from(started.pid).unwrap_or(0),
                started_at_ms: started.started_at_ms,
            }),
            ContainerState::Exited(exit) => Some(Self::FoundDead(Exit {
                code: exit.code,
                oom_killed: exit.oom_killed,
                finished_at_ms: exit.finished_at_ms,
                note: None,
            })),
            ContainerState::Lost => {
                Some(Self::FoundDead(Exit::unseen("the container's monitor died, and the container with it")))
            }
            ContainerState::Starting | ContainerState::Unknown => None,
        }
    }
}

impl Exit {
    /// An end that nobody saw, with the reason in words.
    pub(crate) fn unseen(note: &str) -> Self {
        Self { code: 137, oom_killed: false, finished_at_ms: clock::wall_ms(), note: Some(note.to_owned()) }
    }
}
