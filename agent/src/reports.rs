//! Statuses on their way to the leader: the newest of each task, sent in batches.
//!
//! What changes the balancer or ends a task is urgent and goes at once, up to a burst; then, and for all that
//! is not urgent, one batch per [`PACE_MS`]. The pace is a pure function of the time ([`Pace`]).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rorqual_proto::wire;
use tokio::sync::Notify;

use crate::clock;

/// Between two batches, once the burst is spent.
const PACE_MS: i64 = 50;

/// Batches that may follow each other at once: ten tasks that start together are told without a wait.
const BURST: i64 = 8;

/// What has not been sent yet.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    pending: Mutex<Pending>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    statuses: BTreeMap<String, wire::TaskStatus>,
    urgent: bool,
    /// When the first of them came.
    since_ms: i64,
    pace: Pace,
}

impl Reports {
    /// Puts a task's newest status in place of an older one that waits.
    pub(crate) fn push(&self, task: &str, status: wire::TaskStatus, urgent: bool) {
        let mut pending = self.lock();
        if pending.statuses.is_empty() {
            pending.since_ms = clock::steady_ms();
        }
        pending.statuses.insert(task.to_owned(), status);
        pending.urgent |= urgent;
        drop(pending);
        self.changed.notify_one();
    }

    /// Forgets what waits: a Hello is about to name every status.
    pub(crate) fn clear(&self) {
        let mut pending = self.lock();
        pending.statuses.clear();
        pending.urgent = false;
    }

    /// The next batch, when its time has come. Cancel-safe: nothing is taken before it is returned.
    pub(crate) async fn next_batch(&self) -> wire::StatusBatch {
        loop {
            let wait_ms = {
                let mut pending = self.lock();
                let now_ms = clock::steady_ms();
                match pending.wait_ms(now_ms) {
                    Some(0) => return pending.take(now_ms),
                    wait_ms => wait_ms,
                }
            };
            // Both arms are cancel-safe: a notification that comes in between is kept.
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_ms(wait_ms) => {}
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sleep_ms(wait_ms: Option<i64>) {
    match wait_ms {
        Some(ms) => tokio::time::sleep(std::time::Duration::from_millis(ms.unsigned_abs())).await,
        None => std::future::pending().await,
    }
}

impl Pending {
    fn wait_ms(&mut self, now_ms: i64) -> Option<i64> {
        if self.statuses.is_empty() {
            return None;
        }
        let paced = self.pace.wait_ms(now_ms);
        if self.urgent {
            return Some(paced);
        }
        Some(paced.max(self.since_ms.saturating_add(PACE_MS).saturating_sub(now_ms)).max(0))
    }

    fn take(&mut self, now_ms: i64) -> wire::StatusBatch {
        self.pace.spend(now_ms);
        self.urgent = false;
        let statuses = std::mem::take(&mut self.statuses).into_iter();
        let statuses = statuses
            .map(|(task_id, status)| wire::ReportedStatus { task_id, status: Some(status) })
            .collect();
        wire::StatusBatch { statuses }
    }
}

/// A bucket of [`BURST`] batches that gains one every [`PACE_MS`].
#[derive(Debug)]
struct Pace {
    tokens: i64,
    gained_at_ms: i64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { tokens: BURST, gained_at_ms: 0 }
    }
}

impl Pace {
    fn gain(&mut self, now_ms: i64) {
        let gained = now_ms.saturating_sub(self.gained_at_ms).max(0) / PACE_MS;
        self.gained_at_ms = self.gained_at_ms.saturating_add(gained * PACE_MS);
        self.tokens = self.tokens.saturating_add(gained).min(BURST);
    }

    /// Until a batch may go.
    fn wait_ms(&mut self, now_ms: i64) -> i64 {
        self.gain(now_ms);
        if self.tokens > 0 { 0 } else { self.gained_at_ms.saturating_add(PACE_MS).saturating_sub(now_ms) }
    }

    fn spend(&mut self, now_ms: i64) {
        self.gain(now_ms);
        self.tokens = self.tokens.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_then_one_per_pace() {
        let mut pace = Pace::default();
        let mut sent_at = Vec::new();
        let mut now_ms = 1_000;
        while sent_at.len() < 12 {
            match pace.wait_ms(now_ms) {
                0 => {
                    pace.spend(now_ms);
                    sent_at.push(now_ms);
                }
                wait => now_ms += wait,
            }
        }
        assert!(sent_at[..8].iter().all(|at| *at == 1_000));
        assert_eq!(sent_at[8..], [1_050, 1_100, 1_150, 1_200]);
    }

    #[tokio::test]
    async fn the_newest_status_of_a_task_is_sent_once() {
        let reports = Reports::default();
        reports.push("a", wire::TaskStatus { restarts: 1, ..Default::default() }, false);
        reports.push("a", wire::TaskStatus { restarts: 2, ..Default::default() }, true);
        let batch = reports.next_batch().await;
        assert_eq!(batch.statuses.len(), 1);
        assert_eq!(batch.statuses[0].status.as_ref().unwrap().restarts, 2);
        reports.push("b", wire::TaskStatus::default(), false);
        reports.clear();
        let nothing = tokio::time::timeout(std::time::Duration::from_millis(120), reports.next_batch());
        assert!(nothing.await.is_err());
    }
}
