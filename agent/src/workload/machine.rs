//! What one container goes through, as a pure function: an event in, effects out.
//!
//! Time is an argument, randomness too, and the next wake-up is a return value ([`Machine::wake_at_ms`]).
//! The driver carries the effects out and feeds their results back as events.
//!
//! ```text
//!  Preparing ─▶ Ready ─▶ Starting ─▶ Running ─────────────▶ Leaving ─▶ Stopping ─▶ Killing
//!      │                    ▲  │        │ exit                             │ exit      │ exit
//!      │                    │  │        ▼                                  ▼           ▼
//!      │                    └──┼──── Waiting (backoff)                 Cleaning ────▶ Done
//!      └──────────failed───────┴── policy spent, or asked to stop ───────▶ ▲
//! ```
//!
//! A container that its check calls unhealthy, and that is not to go on then ([`Unhealthy`]), goes the same way (Leaving,
//! Stopping, Killing) and is then taken for one that has failed: it waits, and starts again.
//!
//! The observed state ([`Status::state`]) only moves forward: a restart in place stays RUNNING and is told
//! apart by `healthy` and `restarts`.

use std::collections::VecDeque;

use rorqual_proto::model::{Health, RestartCondition, RestartPolicy, TaskState, TaskStatus};

use super::backoff::{self, HEALTHY_RUN_MS};

/// How long the balancers of all nodes get to let go of a container; no longer, if nobody tells that they have.
pub(crate) const WITHDRAW_MS: u64 = 2_000;

/// How long a signal may go unanswered before it is sent again.
const KILL_AGAIN_MS: i64 = 1_000;

/// What a container is to do. It only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Goal {
    /// Have everything ready, do not start.
    Prepare,
    /// Run.
    Run,
    /// End.
    Stop,
}

/// What the machine has to know of its container, once.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// Whether and when to restart.
    pub(crate) restart: RestartPolicy,
    /// From the stop signal to SIGKILL.
    pub(crate) grace_ms: u64,
    /// How long its connections are waited for once no balancer sends it new ones; none for a container behind no
    /// balancer.
    pub(crate) drain_ms: Option<u64>,
    /// What becomes of it when its check calls it unhealthy.
    pub(crate) unhealthy: Unhealthy,
    /// For the message about a kill for want of memory; 0 for no limit.
    pub(crate) memory_limit_bytes: u64,
}

/// What becomes of a container that its check calls unhealthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unhealthy {
    /// It goes on, without traffic.
    Keep,
    /// It is stopped, and has failed.
    Fail,
    /// The same, but it is restarted also where the policy knows no restarts.
    Restart,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    pub(crate) oom_killed: bool,
    pub(crate) finished_at_ms: i64,
    /// Beyond code and OOM, in words: that its monitor died.
    pub(crate) note: Option<String>,
}

/// Why a container could not be made ready or started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// In words for the user, with the remedy.
    pub(crate) message: String,
    /// As a shell would have it: 125, 126, 127.
    pub(crate) exit_code: i32,
    /// Trying again on this node can't help.
    pub(crate) permanent: bool,
}

/// What happens to a container.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// Start from nothing.
    Begin,
    /// An earlier daemon started it, and it runs.
    Adopted { pid: u32, started_at_ms: i64 },
    /// An earlier daemon started it, and it ended while there was none.
    FoundDead(Exit),
    /// Everything is there.
    Prepared,
    /// It could not be made ready.
    PrepareFailed(Failure),
    /// Its process runs; `checked`: it has a health check, and is not well before that says so.
    Started { pid: u32, started_at_ms: i64, checked: bool },
    /// What its check says has changed; the note says why.
    Health { health: Health, note: String },
    /// Its process could not be started.
    StartFailed(Failure),
    /// Its process has ended; how is not known yet.
    Dead,
    /// Its process ended.
    Exited(Exit),
    /// No balancer sends it anything new, and what it had to do is done or had its time.
    Drained,
    /// The goal moved. A grace replaces the container's own.
    Goal { goal: Goal, grace_ms: Option<u64> },
    /// The time of [`Machine::wake_at_ms`] has come.
    Due,
    /// What `Effect::Clean` asked for is done.
    Cleaned,
}

/// What the driver has to do. The result of each but the signals and `Report` comes back as an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Fetch the image, attach the network, make the folder.
    Prepare,
    /// Give that up; no event follows.
    CancelPrepare,
    /// Start the process, and watch for its end.
    Start,
    /// Watch for the end of a process that runs already.
    Watch,
    /// Ask how it is, from now on until it is to stop.
    Probe,
    /// Wait until the balancers have let go of it and its connections are over.
    Drain,
    /// Send the stop signal.
    Stop,
    /// Send SIGKILL.
    Kill,
    /// Take away what is left: control group, network, changes to the file system.
    Clean,
    /// Tell and keep the status.
    Report,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Idle,
    Preparing,
    Ready,
    Starting,
    Running { since_ms: i64 },
    Waiting { until_ms: i64 },
    Leaving { since_ms: i64, until_ms: i64 },
    Stopping { kill_at_ms: i64 },
    Killing { again_at_ms: i64 },
    Cleaning { outcome: TaskState },
    Done,
}

/// The machine of one container.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    rules: Rules,
    goal: Goal,
    phase: Phase,
    prepared: bool,
    status: TaskStatus,
    /// Failures in a row, without a healthy run between them.
    failures: u32,
    /// Its check calls it unhealthy, and it is on its way out for that: why.
    unwell: Option<String>,
    /// When it was restarted, as far as the policy's window reaches.
    attempts: VecDeque<i64>,
}

/// More restarts than this within a window are not told apart: the policy's bound is checked against less.
const MOST_ATTEMPTS: usize = 10_000;

impl Machine {
    /// A machine at its beginning, with the status that is known from before (restarts, last exit).
    pub(crate) fn new(rules: Rules, goal: Goal, status: TaskStatus) -> Self {
        let phase = if status.state.is_terminal() { Phase::Done } else { Phase::Idle };
        Self {
            rules,
            goal,
            phase,
            prepared: false,
            status,
            failures: 0,
            unwell: None,
            attempts: VecDeque::new(),
        }
    }

    pub(crate) fn status(&self) -> &TaskStatus {
        &self.status
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// When [`Event::Due`] is wanted.
    pub(crate) fn wake_at_ms(&self) -> Option<i64> {
        match self.phase {
            Phase::Waiting { until_ms } | Phase::Leaving { until_ms, .. } => Some(until_ms),
            Phase::Stopping { kill_at_ms } => Some(kill_at_ms),
            Phase::Killing { again_at_ms } => Some(again_at_ms),
            _ => None,
        }
    }

    /// One event. Unexpected ones (an answer that comes too late) change nothing.
    pub(crate) fn step(&mut self, event: Event, now_ms: i64, jitter: f64) -> Vec<Effect> {
        match (event, self.phase) {
            (_, Phase::Done) => Vec::new(),
            (Event::Begin, Phase::Idle) => self.begin(now_ms),
            (Event::Adopted { pid, started_at_ms }, Phase::Idle) => {
                // What its check said last holds until it says something else.
                let known = self.status.health;
                let mut effects = self.running(pid, started_at_ms, known, now_ms);
                if known == Some(Health::Unhealthy) && self.goal != Goal::Stop {
                    effects.extend(self.found(
                        Health::Unhealthy,
                        "before the daemon began".to_owned(),
                        now_ms,
                    ));
                }
                effects.insert(0, Effect::Watch);
                effects
            }
            (Event::FoundDead(exit), Phase::Idle) => {
                self.advance(TaskState::Running, now_ms);
                self.ended(exit, self.status.at_ms, now_ms, jitter)
            }
            (Event::Goal { goal, grace_ms }, _) => self.move_goal(goal, grace_ms, now_ms),
            (Event::Prepared, Phase::Preparing) => self.ready(now_ms),
            (Event::PrepareFailed(failure), Phase::Preparing) => self.failed(failure, now_ms, jitter),
            (Event::Started { pid, started_at_ms, checked }, Phase::Starting) => {
                self.running(pid, started_at_ms, checked.then_some(Health::Starting), now_ms)
            }
            (Event::Health { health, note }, Phase::Running { .. }) => self.found(health, note, now_ms),
            (Event::StartFailed(failure), Phase::Starting) => self.failed(failure, now_ms, jitter),
            // Nothing is to be sent to it from now on.
            (Event::Dead, Phase::Running { .. }) if std::mem::take(&mut self.status.healthy) => {
                vec![Effect::Report]
            }
            (Event::Exited(exit), Phase::Running { since_ms } | Phase::Leaving { since_ms, .. }) => {
                self.ended(exit, since_ms, now_ms, jitter)
            }
            (Event::Exited(exit), Phase::Stopping { .. } | Phase::Killing { .. }) => {
                self.ended(exit, now_ms, now_ms, jitter)
            }
            (Event::Drained, Phase::Leaving { .. }) => self.stop(now_ms),
            (Event::Due, phase) => self.due(phase, now_ms),
            (Event::Cleaned, Phase::Cleaning { outcome }) => {
                self.phase = Phase::Done;
                self.advance(outcome, now_ms);
                vec![Effect::Report]
            }
            _ => Vec::new(),
        }
    }

    fn advance(&mut self, state: TaskState, now_ms: i64) {
        if state > self.status.state {
            self.status.state = state;
            self.status.at_ms = now_ms;
        }
    }

    fn begin(&mut self, now_ms: i64) -> Vec<Effect> {
        if self.goal == Goal::Stop {
            return self.finish(TaskState::Shutdown, String::new());
        }
        self.phase = Phase::Preparing;
        self.advance(TaskState::Preparing, now_ms);
        self.status.healthy = false;
        self.status.pid = 0;
        vec![Effect::Report, Effect::Prepare]
    }

    fn ready(&mut self, now_ms: i64) -> Vec<Effect> {
        self.prepared = true;
        self.advance(TaskState::Ready, now_ms);
        if self.goal == Goal::Prepare {
            self.phase = Phase::Ready;
            return vec![Effect::Report];
        }
        self.start(now_ms)
    }

    fn start(&mut self, now_ms: i64) -> Vec<Effect> {
        if !self.prepared {
            self.phase = Phase::Preparing;
            return vec![Effect::Prepare];
        }
        self.phase = Phase::Starting;
        self.advance(TaskState::Starting, now_ms);
        vec![Effect::Start, Effect::Report]
    }

    fn running(&mut self, pid: u32, since_ms: i64, health: Option<Health>, now_ms: i64) -> Vec<Effect> {
        self.phase = Phase::Running { since_ms };
        self.status.pid = pid;
        self.status.health = health;
        self.advance(TaskState::Running, now_ms);
        if self.goal == Goal::Stop {
            return self.leave(now_ms);
        }
        self.status.healthy = health.is_none_or(|health| health == Health::Healthy);
        self.status.message.clear();
        match health {
            Some(_) => vec![Effect::Report, Effect::Probe],
            None => vec![Effect::Report],
        }
    }

    /// What the check says now.
    fn found(&mut self, health: Health, note: String, now_ms: i64) -> Vec<Effect> {
        self.status.health = Some(health);
        if health != Health::Unhealthy {
            self.status.healthy = health == Health::Healthy;
            self.status.message.clear();
            return vec![Effect::Report];
        }
        let reason = format!("unhealthy: {note}");
        self.status.message.clone_from(&reason);
        if self.rules.unhealthy != Unhealthy::Keep {
            self.unwell = Some(reason);
            return self.leave(now_ms);
        }
        self.status.healthy = false;
        vec![Effect::Report]
    }

    /// The process has ended, and by the goal and the policy something follows.
    fn ended(&mut self, exit: Exit, since_ms: i64, now_ms: i64, jitter: f64) -> Vec<Effect> {
        let unwell = self.unwell.take();
        let good = exit.code == 0 && !exit.oom_killed && unwell.is_none();
        let asked_for = unwell.is_some() && self.rules.unhealthy == Unhealthy::Restart;
        let reason = unwell.unwrap_or_else(|| self.reason(&exit));
        self.status.exit_code = Some(exit.code);
        self.status.oom_killed = exit.oom_killed;
        self.status.healthy = false;
        self.status.pid = 0;
        if self.goal == Goal::Stop {
            let message = if exit.oom_killed { reason } else { String::new() };
            return self.finish(TaskState::Shutdown, message);
        }
        let again = match self.rules.restart.condition {
            RestartCondition::None => asked_for,
            RestartCondition::OnFailure => !good,
            RestartCondition::Any => true,
        };
        if !again {
            let (outcome, message) =
                if good { (TaskState::Complete, String::new()) } else { (TaskState::Failed, reason) };
            return self.finish(outcome, message);
        }
        if exit.finished_at_ms.saturating_sub(since_ms) >= HEALTHY_RUN_MS {
            self.failures = 0;
        }
        self.again(reason, now_ms, jitter)
    }

    /// It could not be made ready or started. Never hot: the first wait is the policy's delay.
    fn failed(&mut self, failure: Failure, now_ms: i64, jitter: f64) -> Vec<Effect> {
        if self.goal == Goal::Stop {
            return self.finish(TaskState::Shutdown, String::new());
        }
        self.status.exit_code = Some(failure.exit_code);
        let has_run = self.status.state >= TaskState::Running;
        let again = !failure.permanent && self.rules.restart.condition != RestartCondition::None;
        if !again {
            let outcome = if has_run { TaskState::Failed } else { TaskState::Rejected };
            return self.finish(outcome, failure.message);
        }
        self.failures = self.failures.max(1);
        self.again(failure.message, now_ms, jitter)
    }

    fn again(&mut self, reason: String, now_ms: i64, jitter: f64) -> Vec<Effect> {
        let policy = self.rules.restart;
        if policy.window_ms > 0 {
            let from = now_ms.saturating_sub_unsigned(policy.window_ms);
            while self.attempts.front().is_some_and(|at| *at < from) {
                self.attempts.pop_front();
            }
        }
        if policy.max_attempts > 0 && self.attempts.len() >= policy.max_attempts as usize {
            let spent = format!("{reason}; not restarted again after {} restarts", policy.max_attempts);
            return self.finish(TaskState::Failed, spent);
        }
        let wait_ms = backoff::delay_ms(self.failures, policy.delay_ms, policy.max_delay_ms, jitter);
        self.failures = self.failures.saturating_add(1);
        if self.attempts.len() == MOST_ATTEMPTS {
            self.attempts.pop_front();
        }
        self.attempts.push_back(now_ms);
        // What never came to a start is tried again, not restarted.
        if self.prepared || self.status.state >= TaskState::Running {
            self.status.restarts = self.status.restarts.saturating_add(1);
        }
        if wait_ms == 0 {
            self.status.message = format!("{reason}; restarting");
            let mut effects = vec![Effect::Report];
            effects.extend(self.start(now_ms));
            return effects;
        }
        self.status.message = format!("{reason}; restarts after {wait_ms} ms");
        self.phase = Phase::Waiting { until_ms: now_ms.saturating_add_unsigned(wait_ms) };
        vec![Effect::Report]
    }

    fn move_goal(&mut self, goal: Goal, grace_ms: Option<u64>, now_ms: i64) -> Vec<Effect> {
        if let Some(grace_ms) = grace_ms {
            self.rules.grace_ms = grace_ms;
        }
        let before = self.goal;
        self.goal = self.goal.max(goal);
        match (self.goal, self.phase) {
            (Goal::Run, Phase::Ready) => self.start(now_ms),
            (Goal::Stop, Phase::Idle | Phase::Ready | Phase::Waiting { .. }) => {
                self.finish(TaskState::Shutdown, String::new())
            }
            (Goal::Stop, Phase::Preparing) => {
                let mut effects = vec![Effect::CancelPrepare];
                effects.extend(self.finish(TaskState::Shutdown, String::new()));
                effects
            }
            (Goal::Stop, Phase::Running { .. }) => self.leave(now_ms),
            // Asked again with less patience.
            (Goal::Stop, Phase::Stopping { kill_at_ms }) if before == Goal::Stop => {
                let sooner = now_ms.saturating_add_unsigned(self.rules.grace_ms);
                self.phase = Phase::Stopping { kill_at_ms: kill_at_ms.min(sooner) };
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// First the balancers, then the process.
    fn leave(&mut self, now_ms: i64) -> Vec<Effect> {
        let was_healthy = std::mem::take(&mut self.status.healthy);
        let Phase::Running { since_ms } = self.phase else { return Vec::new() };
        if let Some(drain_ms) = self.rules.drain_ms.filter(|_| was_healthy) {
            // Whoever waits for it ends sooner; this is for the case that nobody does.
            let most_ms = WITHDRAW_MS.saturating_mul(2).saturating_add(drain_ms);
            let until_ms = now_ms.saturating_add_unsigned(most_ms);
            self.phase = Phase::Leaving { since_ms, until_ms };
            return vec![Effect::Report, Effect::Drain];
        }
        let mut effects = vec![Effect::Report];
        effects.extend(self.stop(now_ms));
        effects
    }

    fn stop(&mut self, now_ms: i64) -> Vec<Effect> {
        if self.rules.grace_ms == 0 {
            self.phase = Phase::Killing { again_at_ms: now_ms.saturating_add(KILL_AGAIN_MS) };
            return vec![Effect::Kill];
        }
        self.phase = Phase::Stopping { kill_at_ms: now_ms.saturating_add_unsigned(self.rules.grace_ms) };
        vec![Effect::Stop]
    }

    fn due(&mut self, phase: Phase, now_ms: i64) -> Vec<Effect> {
        if self.wake_at_ms().is_none_or(|at_ms| at_ms > now_ms) {
            return Vec::new();
        }
        match phase {
            Phase::Waiting { .. } => self.start(now_ms),
            Phase::Leaving { .. } => self.stop(now_ms),
            Phase::Stopping { .. } | Phase::Killing { .. } => {
                self.phase = Phase::Killing { again_at_ms: now_ms.saturating_add(KILL_AGAIN_MS) };
                vec![Effect::Kill]
            }
            _ => Vec::new(),
        }
    }

    /// The end: what is left is taken away first, then the outcome is told, so that an address is free when
    /// the controllers learn of it.
    fn finish(&mut self, outcome: TaskState, message: String) -> Vec<Effect> {
        self.phase = Phase::Cleaning { outcome };
        self.status.message = message;
        self.status.pid = 0;
        self.status.health = None;
        let told = self.status.state >= TaskState::Running && outcome != TaskState::Shutdown;
        self.status.healthy = false;
        if told { vec![Effect::Report, Effect::Clean] } else { vec![Effect::Clean] }
    }

    fn reason(&self, exit: &Exit) -> String {
        if let Some(note) = &exit.note {
            return note.clone();
        }
        match (exit.oom_killed, self.rules.memory_limit_bytes) {
            (true, 0) => "killed: out of memory (the node has none left)".to_owned(),
            (true, limit) => format!("killed: out of memory (limit {})", size(limit)),
            (false, _) if exit.code > 128 => {
                format!("ended by signal {} (exit code {})", exit.code - 128, exit.code)
            }
            (false, _) => format!("exited with code {}", exit.code),
        }
    }
}

/// `64 MiB`, `1.5 GiB`: what a person would have written.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (unit, name) in UNITS {
        if bytes >= unit {
            let tenths = bytes.saturating_mul(10) / unit;
            return match tenths % 10 {
                0 => format!("{} {name}", tenths / 10),
                rest => format!("{}.{rest} {name}", tenths / 10),
            };
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
