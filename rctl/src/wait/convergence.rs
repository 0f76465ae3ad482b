//! When a service has come to where it was sent, and when it never will. Pure: time is an argument.
//!
//! ```text
//! view ──▶ Wait ──▶ Reached      every slot runs the present spec and gets traffic; what was to end has
//!           │                    ended, or had its time to
//!           └─────▶ Impossible   tasks fail again and again, or wait for what does not come
//! ```
//! What is to end on a node that does not answer ends when the node is back: nothing here waits for that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rorqual_proto::model::container::DEFAULT_DRAIN_MS;
use rorqual_proto::wire::restart_policy::Condition;
use rorqual_proto::wire::{DesiredState, ServiceView, Task, TaskState, TaskStatus, service_spec::Mode};

/// A reason that stays for so long without any progress is final: a node that was silent for a moment is
/// back by then.
const STUCK: Duration = Duration::from_secs(5);

/// Every slot has failed and nothing has moved for so long.
const SETTLED: Duration = Duration::from_secs(3);

/// Tasks of one slot, or of the whole service, that fail for the same reason before that is final.
const SAME_FAILURES: usize = 3;

/// Restarts in place of one task before that is final.
const RESTARTS: u32 = 4;

/// What tasks that end may take beyond their grace period: leaving the balancer, and being reported.
const STOP_SLACK: Duration = Duration::from_secs(3);

/// Where a service is to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// It runs as its spec says.
    Running,
    /// It is gone, with its tasks.
    Removed,
}

/// What follows from what is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not yet. Look again after so long (since the beginning) even if nothing is heard.
    Wait { until: Option<Duration> },
    /// Done; so many tasks that were asked to end are still there.
    Reached { still_stopping: usize },
    /// It won't be: why.
    Impossible(Vec<String>),
}

/// What has been seen of one service since it was changed.
pub(crate) struct Convergence {
    goal: Goal,
    /// Views of an older version don't know of the change yet.
    min_version: u64,
    view: Option<ServiceView>,
    /// Reason → slot → tasks that failed for it.
    failures: BTreeMap<String, BTreeMap<u32, BTreeSet<String>>>,
    /// Restarts of each task when it was first seen.
    restarts: BTreeMap<String, u32>,
    signature: Vec<String>,
    /// When anything has last changed.
    moved_at: Duration,
    /// When everything but the ending of old tasks was done.
    running_at: Option<Duration>,
}

impl Convergence {
    pub(crate) fn new(goal: Goal, min_version: u64) -> Self {
        Self {
            goal,
            min_version,
            view: None,
            failures: BTreeMap::new(),
            restarts: BTreeMap::new(),
            signature: Vec::new(),
            moved_at: Duration::ZERO,
            running_at: None,
        }
    }

    /// Takes in a view at `now` since the beginning.
    pub(crate) fn observe(&mut self, view: ServiceView, now: Duration) -> Verdict {
        let version = view.service.as_ref().and_then(|service| service.meta).unwrap_or_default().version;
        if !view.removed && version < self.min_version {
            return Verdict::Wait { until: None };
        }
        for task in &view.tasks {
            self.restarts.entry(task.id.clone()).or_insert(status(task).restarts);
            let new = task.meta.unwrap_or_default().version > self.min_version;
            if new && is_present(&view, task) && has_failed(task) {
                let slots = self.failures.entry(reason(task)).or_default();
                slots.entry(task.slot).or_default().insert(task.id.clone());
            }
        }
        let signature = signature(&view);
        if signature != self.signature {
            self.signature = signature;
            self.moved_at = now;
        }
        self.view = Some(view);
        self.verdict(now)
    }

    /// What follows from the last view at `now`.
    pub(crate) fn verdict(&mut self, now: Duration) -> Verdict {
        let Some(view) = &self.view else { return Verdict::Wait { until: None } };
        match self.goal {
            Goal::Removed if view.removed => return Verdict::Reached { still_stopping: 0 },
            Goal::Removed => return Verdict::Wait { until: None },
            Goal::Running if view.removed => {
                return Verdict::Impossible(vec!["the service was removed meanwhile".to_owned()]);
            }
            Goal::Running => {}
        }
        let standing = Standing::of(view, self.min_version);
        if standing.done() >= standing.wanted && standing.running <= standing.wanted && !standing.outdated {
            let problems = view.port_problems.clone();
            return match view.port_unserved && standing.wanted > 0 {
                false => self.ending(&standing, now),
                // It runs, and nobody can reach it: unless that ends soon, it is not what was asked for.
                true if now.saturating_sub(self.moved_at) < STUCK => {
                    Verdict::Wait { until: Some(self.moved_at + STUCK) }
                }
                true => Verdict::Impossible(problems),
            };
        }
        self.running_at = None;
        match self.final_failures(&standing, now) {
            Some(reasons) => Verdict::Impossible(reasons),
            None => Verdict::Wait { until: self.next_look(now) },
        }
    }

    /// How the last view reads: `7 of 10 run, 2 preparing, 1 pending`.
    pub(crate) fn summary(&self) -> Summary {
        self.view.as_ref().map(|view| Summary::of(view, self.min_version)).unwrap_or_default()
    }

    /// What is to be known although the service has come to where it was sent.
    pub(crate) fn warnings(&self) -> &[String] {
        self.view.as_ref().map(|view| view.port_problems.as_slice()).unwrap_or_default()
    }

    /// It runs as asked, but for a port that leads to it nowhere.
    pub(crate) fn is_unserved(&self) -> bool {
        let summary = self.summary();
        summary.done >= summary.wanted && self.view.as_ref().is_some_and(|view| view.port_unserved)
    }

    /// Tasks that end when their nodes answer again.
    pub(crate) fn ending_later(&self) -> usize {
        let Some(view) = &self.view else { return 0 };
        view.tasks.iter().filter(|task| ends(task, self.min_version) && is_silent(view, task)).count()
    }

    /// Why it is not there yet, as far as is known.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let mut reasons: Vec<String> =
            self.failures.iter().map(|(reason, slots)| told(reason, slots)).collect();
        if let Some(view) = &self.view {
            reasons.extend(waits_for(view));
            reasons.extend(view.port_problems.iter().cloned());
        }
        reasons
    }

    fn ending(&mut self, standing: &Standing, now: Duration) -> Verdict {
        let running_at = *self.running_at.get_or_insert(now);
        let until = running_at + standing.grace + STOP_SLACK;
        if standing.stopping > 0 && now < until {
            return Verdict::Wait { until: Some(until) };
        }
        Verdict::Reached { still_stopping: standing.stopping }
    }

    fn next_look(&self, now: Duration) -> Option<Duration> {
        [self.moved_at + SETTLED, self.moved_at + STUCK].into_iter().find(|at| *at > now)
    }

    /// The reasons, if they are such that waiting on is in vain.
    fn final_failures(&self, standing: &Standing, now: Duration) -> Option<Vec<String>> {
        let view = self.view.as_ref()?;
        let still = now.saturating_sub(self.moved_at);
        let same = |(_, slots): &(&String, &BTreeMap<u32, BTreeSet<String>>)| {
            let one_slot = slots.values().any(|tasks| tasks.len() >= SAME_FAILURES);
            let all: usize = slots.values().map(BTreeSet::len).sum();
            one_slot || (all >= SAME_FAILURES && standing.updated == 0)
        };
        let mut reasons: Vec<String> =
            self.failures.iter().filter(same).map(|(reason, slots)| told(reason, slots)).collect();
        reasons.extend(self.restarting(view));
        if !reasons.is_empty() {
            return Some(reasons);
        }
        let failed: BTreeSet<u32> = self.failures.values().flat_map(BTreeMap::keys).copied().collect();
        let every_slot =
            !failed.is_empty() && failed.len() + standing.done() as usize >= standing.wanted as usize;
        let settled = still >= SETTLED && standing.updated == 0;
        if every_slot && (standing.never_restarted || settled) {
            return Some(self.reasons());
        }
        let waits = waits_for(view);
        (!waits.is_empty() && still >= STUCK).then_some(waits)
    }

    /// Tasks whose container ends again and again on their nodes.
    fn restarting(&self, view: &ServiceView) -> Vec<String> {
        let crashes = |task: &&Task| {
            let before = self.restarts.get(&task.id).copied().unwrap_or_default();
            status(task).restarts.saturating_sub(before) >= RESTARTS && is_present(view, task)
        };
        let tell = |task: &Task| {
            let restarts = status(task).restarts;
            format!(
                "{}.{} ends again and again, restarted {restarts} times: {}",
                task.service_name,
                task.slot,
                reason(task)
            )
        };
        view.tasks.iter().filter(crashes).map(tell).collect()
    }
}

/// The numbers of one view.
struct Standing {
    wanted: u32,
    running: u32,
    updated: u32,
    /// Slots whose task ended well and is not to run again.
    completed: u32,
    stopping: usize,
    /// A task of an older spec is still meant to run.
    outdated: bool,
    never_restarted: bool,
    grace: Duration,
}

impl Standing {
    fn of(view: &ServiceView, min_version: u64) -> Self {
        let spec = view.service.as_ref().and_then(|service| service.spec.as_ref());
        let wanted = match spec.and_then(|spec| spec.mode.as_ref()) {
            Some(Mode::Replicated(replicated)) => replicated.replicas,
            None => view.desired,
        };
        let condition = spec.and_then(|spec| spec.restart).unwrap_or_default().condition();
        let again = matches!(condition, Condition::Any | Condition::Unspecified);
        let completed: BTreeSet<u32> = view
            .tasks
            .iter()
            .filter(|task| !again && is_present(view, task) && status(task).state() == TaskState::Complete)
            .map(|task| task.slot)
            .collect();
        let grace_ms = view
            .tasks
            .iter()
            .filter_map(|task| task.container.as_ref())
            .map(|container| {
                container.stop_grace_ms.saturating_add(container.drain_ms.unwrap_or(DEFAULT_DRAIN_MS))
            })
            .max();
        let stopping = |task: &&Task| ends(task, min_version) && !is_silent(view, task);
        Self {
            wanted,
            running: view.running,
            updated: view.updated,
            completed: completed.len() as u32,
            stopping: view.tasks.iter().filter(stopping).count(),
            outdated: view
                .tasks
                .iter()
                .any(|task| is_alive(task) && !is_stopping(task) && !is_present(view, task)),
            never_restarted: condition == Condition::None,
            grace: Duration::from_millis(grace_ms.unwrap_or_default()),
        }
    }

    fn done(&self) -> u32 {
        self.updated + self.completed
    }
}

/// A view in a few words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) done: u64,
    pub(crate) wanted: u64,
    pub(crate) text: String,
}

impl Summary {
    fn of(view: &ServiceView, min_version: u64) -> Self {
        let standing = Standing::of(view, min_version);
        let mut states: BTreeMap<TaskState, u32> = BTreeMap::new();
        for task in view.tasks.iter().filter(|task| is_alive(task) && !is_stopping(task)) {
            *states.entry(status(task).state()).or_default() += 1;
        }
        let mut text = format!("{}/{} running", standing.updated, standing.wanted);
        let words = [
            (TaskState::New, "new"),
            (TaskState::Pending, "pending"),
            (TaskState::Assigned, "assigned"),
            (TaskState::Accepted, "accepted"),
            (TaskState::Preparing, "preparing"),
            (TaskState::Ready, "ready"),
            (TaskState::Starting, "starting"),
        ];
        for (state, word) in words {
            if let Some(count) = states.get(&state) {
                text.push_str(&format!(", {count} {word}"));
            }
        }
        if standing.completed > 0 {
            text.push_str(&format!(", {} complete", standing.completed));
        }
        if standing.stopping > 0 {
            text.push_str(&format!(", {} stopping", standing.stopping));
        }
        if let Some(reason) = waits_for(view).first() {
            text.push_str(&format!(" ({reason})"));
        }
        Self { done: standing.done().into(), wanted: standing.wanted.into(), text }
    }
}

fn status(task: &Task) -> TaskStatus {
    task.status.clone().unwrap_or_default()
}

fn is_present(view: &ServiceView, task: &Task) -> bool {
    view.service.as_ref().is_some_and(|service| service.spec_version == task.spec_version)
}

fn is_alive(task: &Task) -> bool {
    status(task).state() < TaskState::Complete
}

fn is_stopping(task: &Task) -> bool {
    task.desired_state() > DesiredState::Running
}

/// It was told to stop since the change, and has not ended.
fn ends(task: &Task, min_version: u64) -> bool {
    is_alive(task) && is_stopping(task) && task.meta.unwrap_or_default().version > min_version
}

/// Its node does not answer.
fn is_silent(view: &ServiceView, task: &Task) -> bool {
    view.silent_nodes.contains(&task.node_id)
}

fn has_failed(task: &Task) -> bool {
    matches!(status(task).state(), TaskState::Failed | TaskState::Rejected)
}

/// Why a task ended, in the node's words, else from its exit.
fn reason(task: &Task) -> String {
    let status = status(task);
    match (status.message.as_str(), status.oom_killed, status.exit_code) {
        ("", true, _) => "killed by the kernel for want of memory; raise --limit-memory".to_owned(),
        ("", _, Some(code)) => format!("ended with exit code {code}"),
        ("", ..) => "no reason was given".to_owned(),
        (message, ..) => message.to_owned(),
    }
}

fn told(reason: &str, slots: &BTreeMap<u32, BTreeSet<String>>) -> String {
    match slots.values().map(BTreeSet::len).sum::<usize>() {
        1 => reason.to_owned(),
        tasks => format!("{reason} ({tasks} tasks)"),
    }
}

/// What the controllers say that the service or its tasks wait for.
fn waits_for(view: &ServiceView) -> Vec<String> {
    let problem = view.service.as_ref().map(|service| service.problem.clone()).unwrap_or_default();
    let all = std::iter::once(problem).chain(view.explanations.iter().cloned());
    let mut seen = BTreeSet::new();
    all.filter(|reason| !reason.is_empty() && seen.insert(reason.clone())).collect()
}

/// What has to change for anything to have moved.
fn signature(view: &ServiceView) -> Vec<String> {
    let mut parts: Vec<String> = view
        .tasks
        .iter()
        .map(|task| format!("{} {} {}", task.id, status(task).state, task.desired_state))
        .collect();
    parts.push(format!("{} {} {} {}", view.desired, view.running, view.updated, view.port_unserved));
    parts
}

#[cfg(test)]
mod tests;
