//! The pump: one thread that owns the [`Core`], its queue and its clock.
//!
//! It sleeps until there is an event or a tick is due that does something: ticks before that only count, and
//! are counted when it wakes. What waits in the queue is taken together, so that proposals that come in while
//! the disk works share the next barrier.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Leadership;
use super::core::{Core, RaftError, Transport};
use super::handle::{Event, View};
use super::machine::Machine;
use super::snapshotting::Spawn;
use crate::storage::LogStore;

/// Events that may wait for the pump.
pub(super) const QUEUE: usize = 4096;

/// Events that are taken together.
const TOGETHER: usize = 1024;

/// Snapshots are encoded and written on a thread of their own, which ends with an event for the pump.
pub(super) fn snapshot_threads<O: Send + 'static>(events: SyncSender<Event<O>>) -> Spawn<O> {
    Box::new(move |job| {
        let events = events.clone();
        let run = move || {
            // An error says that the pump has ended: the file is removed at the next start.
            let _ = events.send(job());
        };
        std::thread::Builder::new().name("raft-snapshot".to_owned()).spawn(run).map(drop)
    })
}

/// Starts the thread. It ends after [`Event::Shutdown`], or when it can't go on: `view.stopped` says why.
pub(super) fn start<M: Machine, S: LogStore, T: Transport>(
    core: Core<M, S, T>,
    events: Receiver<Event<M::Outcome>>,
    view: View,
) -> std::io::Result<()> {
    let thread = move || {
        let tick = core.tuning.tick;
        // The core is not looked at again after a panic.
        let ended = catch_unwind(AssertUnwindSafe(|| run(core, &events, tick)));
        let (reason, reply) = match ended {
            Ok(Ok(reply)) => ("it was shut down".to_owned(), reply),
            Ok(Err(error)) => {
                let reason = chain(&error);
                tracing::error!(reason, "the Raft member has stopped");
                (reason, None)
            }
            Err(panic) => {
                let reason = format!("Raft failed: {}", panic_words(&*panic));
                tracing::error!(reason, "the Raft member has stopped");
                (reason, None)
            }
        };
        let _ = view.stopped.set(reason.clone());
        view.leadership.send_modify(|shown| {
            *shown = Leadership {
                term: shown.term,
                applied_index: shown.applied_index,
                stopped: Some(reason),
                ..Leadership::default()
            };
        });
        drop(events);
        if let Some(reply) = reply {
            let _ = reply.send(());
        }
    };
    std::thread::Builder::new().name("raft-pump".to_owned()).spawn(thread).map(drop)
}

fn run<M: Machine, S: LogStore, T: Transport>(
    mut core: Core<M, S, T>,
    events: &Receiver<Event<M::Outcome>>,
    tick: Duration,
) -> Result<Option<oneshot::Sender<()>>, RaftError> {
    core.begin()?;
    let mut next_tick = Instant::now() + tick;
    loop {
        let quiet = core.quiet_ticks();
        let due = next_tick + tick * quiet;
        let woken = events.recv_timeout(due.saturating_duration_since(Instant::now()));
        // Before the ticks, one of which asks who has answered.
        core.take_answers();
        // Before what came: it came after them.
        for _ in 0..quiet {
            if Instant::now() < next_tick {
                break;
            }
            core.tick();
            next_tick += tick;
        }
        match woken {
            Ok(event) => {
                core.handle(event)?;
                for event in events.try_iter().take(TOGETHER) {
                    core.handle(event)?;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return core.finish(),
        }
        let now = Instant::now();
        if now >= next_tick {
            core.tick();
            // Time that was lost (a slow disk, a machine that stood still) is not made up for: a burst of
            // ticks would call elections that nobody needs.
            next_tick = (next_tick + tick).max(now);
        }
        core.settle()?;
        if core.is_closed() {
            return core.finish();
        }
    }
}

/// An error with everything that led to it.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        words.push_str(": ");
        words.push_str(&source.to_string());
        next = source.source();
    }
    words
}

fn panic_words(panic: &(dyn std::any::Any + Send)) -> &str {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("for an unknown reason")
}
