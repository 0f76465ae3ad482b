//! Listening to the controllers until services are where they were sent.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use clap::Args;
use rorqual_proto::wire::{ServiceView, WatchServiceRequest};
use tonic::Code;

use super::convergence::{Convergence, Goal, Verdict};
use crate::connect::Daemon;
use crate::failure::{Failure, Result, SIGNALLED};
use crate::output;
use crate::parse;
use crate::progress::Progress;

/// Between attempts to listen again after the connection or the leader was lost.
const RETRY: Duration = Duration::from_millis(200);

/// How long the controllers may be silent, or gone, before the wait is given up.
const LOST: Duration = Duration::from_secs(20);

/// How a command waits.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct WaitArgs {
    /// Return at once, while the cluster works on it
    #[arg(long, short = 'd')]
    pub(crate) detach: bool,
    /// Give up waiting after so long; the cluster goes on
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse::duration)]
    pub(crate) timeout: Duration,
    /// Show no progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// One service to wait for.
pub(crate) struct Target {
    pub(crate) id: String,
    pub(crate) name: String,
    /// The version that the change made.
    pub(crate) version: u64,
}

/// Waits for all of them, each for as long as there is hope. Says what is known of every one that did not
/// get there, and fails with the first.
pub(crate) async fn services(
    daemon: &Daemon,
    targets: Vec<Target>,
    goal: Goal,
    args: WaitArgs,
) -> Result<()> {
    let progress = RefCell::new(Progress::new(args.quiet));
    let waits = targets.iter().map(|target| one(daemon, target, goal, args.timeout, &progress));
    let all = futures_util::future::join_all(waits);
    // Cancel-safe: on an interrupt nothing is waited for any more, and the cluster goes on by itself.
    let results = tokio::select! {
        results = all => results,
        _ = tokio::signal::ctrl_c() => {
            progress.borrow_mut().abandon();
            let names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
            output::note(&format!("The cluster goes on with it; `rctl service ps {}` shows how far it is.", names.join(" ")));
            return Err(Failure::silent(SIGNALLED + 2));
        }
    };
    progress.borrow_mut().abandon();
    let mut failures: Vec<Failure> = results.into_iter().filter_map(Result::err).collect();
    let last = failures.pop();
    for failure in failures {
        output::complain(&failure.message.unwrap_or_default());
    }
    last.map_or(Ok(()), Err)
}

async fn one(
    daemon: &Daemon,
    target: &Target,
    goal: Goal,
    timeout: Duration,
    progress: &RefCell<Progress>,
) -> Result<()> {
    let start = Instant::now();
    let mut convergence = Convergence::new(goal, target.version);
    let mut verdict = Verdict::Wait { until: None };
    let mut views = Views::new(daemon, &target.id);
    loop {
        let until = match verdict {
            Verdict::Wait { until } => until.unwrap_or(timeout).min(timeout),
            Verdict::Reached { still_stopping } => {
                let text = finished(goal, &convergence, still_stopping);
                progress.borrow_mut().finish(&target.name, &text);
                for warning in convergence.warnings().iter().filter(|_| goal == Goal::Running) {
                    output::note(&format!("warning: {}: {}", target.name, crate::table::printable(warning)));
                }
                return Ok(());
            }
            Verdict::Impossible(reasons) => return Err(not_reached(target, goal, &convergence, &reasons)),
        };
        // Cancel-safe: what was not heard yet is heard the next time.
        verdict = match tokio::time::timeout_at((start + until).into(), views.next()).await {
            Ok(view) => {
                let verdict = convergence.observe(view?, start.elapsed());
                let summary = convergence.summary();
                let text = if goal == Goal::Removed { "removing" } else { &summary.text };
                progress.borrow_mut().show(&target.name, summary.done, summary.wanted, text);
                verdict
            }
            Err(_) if start.elapsed() >= timeout => {
                let mut reasons = convergence.reasons();
                reasons.insert(0, format!("not there after {} s (--timeout)", timeout.as_secs()));
                Verdict::Impossible(reasons)
            }
            Err(_) => convergence.verdict(start.elapsed()),
        };
    }
}

fn finished(goal: Goal, convergence: &Convergence, still_stopping: usize) -> String {
    let summary = convergence.summary();
    let running = format!("{}/{} running", summary.done, summary.wanted);
    match (goal, still_stopping, convergence.ending_later()) {
        (Goal::Removed, ..) => "removed".to_owned(),
        (Goal::Running, 0, 0) => summary.text,
        (Goal::Running, 0, later) => {
            format!("{running}; {later} tasks on nodes that do not answer end when these are back")
        }
        (Goal::Running, tasks, _) => format!("{running}; {tasks} tasks have not ended in their time"),
    }
}

fn not_reached(target: &Target, goal: Goal, convergence: &Convergence, reasons: &[String]) -> Failure {
    let name = &target.name;
    let summary = convergence.summary();
    let mut text = match goal {
        Goal::Running if convergence.is_unserved() => {
            format!("service {name} can't be reached: {} of {} replicas run", summary.done, summary.wanted)
        }
        Goal::Running => {
            format!("service {name} does not get to run: {} of {} replicas run", summary.done, summary.wanted)
        }
        Goal::Removed => format!("service {name} is not removed yet"),
    };
    for reason in reasons {
        text.push_str("\n  ");
        text.push_str(&crate::table::printable(reason));
    }
    match goal {
        Goal::Running => text.push_str(&format!(
            "\nThe cluster keeps trying. `rctl service ps {name}` and `rctl service logs {name}` tell more; \
             `rctl service update` changes it, `rctl service rm {name}` takes it away."
        )),
        Goal::Removed => {
            text.push_str(&format!(
                "\nThe cluster goes on with it; `rctl service ps {name}` tells what is left."
            ));
        }
    }
    Failure::operation(text)
}

/// The views of one service, over as many streams as it takes.
struct Views<'a> {
    daemon: &'a Daemon,
    id: &'a str,
    stream: Option<tonic::Streaming<ServiceView>>,
    lost_at: Option<Instant>,
}

impl<'a> Views<'a> {
    fn new(daemon: &'a Daemon, id: &'a str) -> Self {
        Self { daemon, id, stream: None, lost_at: None }
    }

    /// The next view. Cancel-safe: a stream that is open stays.
    async fn next(&mut self) -> Result<ServiceView> {
        loop {
            let result = match &mut self.stream {
                Some(stream) => stream.message().await,
                None => {
                    let request = WatchServiceRequest { name: self.id.to_owned() };
                    match self.daemon.control().watch_service(request).await {
                        Ok(response) => {
                            self.stream = Some(response.into_inner());
                            continue;
                        }
                        Err(status) => Err(status),
                    }
                }
            };
            match result {
                Ok(Some(view)) => {
                    self.lost_at = None;
                    return Ok(view);
                }
                Err(status) if status.code() == Code::NotFound => {
                    return Ok(ServiceView { removed: true, ..ServiceView::default() });
                }
                Err(status) if self.lost_for() >= LOST || !passes(status.code()) => {
                    return Err(Failure::from(status).doing("cannot follow the service"));
                }
                Ok(None) | Err(_) => {
                    self.stream = None;
                    self.lost_at.get_or_insert_with(Instant::now);
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    fn lost_for(&self) -> Duration {
        self.lost_at.map_or(Duration::ZERO, |at| at.elapsed())
    }
}

/// Whether a failure is one that a new leader or a restarted daemon ends.
fn passes(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::Unknown
            | Code::Aborted
            | Code::Cancelled
            | Code::ResourceExhausted
            | Code::Internal
    )
}
