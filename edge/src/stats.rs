//! What a route has seen: requests, errors, bytes, and how long answers took.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Classes of latency: each is twice as long as the one before, from 128 µs.
const CLASSES: usize = 24;
const FIRST_US: u64 = 128;

/// Counters of a route, since this edge was started.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    by_class: [AtomicU64; 5],
    /// Answers that the edge gave in the replicas' place: none reachable, none in time, a connection that broke.
    failed: AtomicU64,
    retried: AtomicU64,
    in_flight: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    latency: [AtomicU64; CLASSES],
}

/// What a route has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteStats {
    /// The route's host.
    pub host: String,
    /// The route's path.
    pub path: String,
    /// Whose it is.
    pub service: String,
    /// Replicas that may get requests.
    pub endpoints: usize,
    /// Of them, those that are left out for a while because requests to them failed.
    pub ejected: usize,
    /// Answers with status 1xx, 2xx, … 5xx.
    pub by_class: [u64; 5],
    /// Of them, those that the edge gave in the replicas' place.
    pub failed: u64,
    /// Further replicas that were tried.
    pub retried: u64,
    /// Requests that are being answered.
    pub in_flight: u64,
    /// Bytes of requests' bodies.
    pub received_bytes: u64,
    /// Bytes of answers' bodies.
    pub sent_bytes: u64,
    /// How many answers took up to 128 µs, 256 µs, and so on.
    pub latency: Vec<u64>,
}

/// The upper bound of a class of latency.
pub(crate) fn latency_us(class: usize) -> u64 {
    FIRST_US << class.min(CLASSES - 1)
}

fn class_of(took: Duration) -> usize {
    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    (0..CLASSES).find(|class| took_us <= latency_us(*class)).unwrap_or(CLASSES - 1)
}

impl Counters {
    pub(crate) fn began(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(crate) fn retried(&self) {
        self.retried.fetch_add(1, Relaxed);
    }

    pub(crate) fn received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Relaxed);
    }

    /// A request is answered whole, or will never be.
    pub(crate) fn ended(&self, end: End) {
        self.in_flight.fetch_sub(1, Relaxed);
        let class = usize::from(end.status / 100).clamp(1, 5) - 1;
        self.by_class[class].fetch_add(1, Relaxed);
        if end.is_failure {
            self.failed.fetch_add(1, Relaxed);
        }
        self.sent_bytes.fetch_add(end.sent_bytes, Relaxed);
        self.latency[class_of(end.took)].fetch_add(1, Relaxed);
    }

    /// The counts as they are now; what the route is stays to be filled in.
    pub(crate) fn read(&self) -> RouteStats {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        RouteStats {
            by_class: std::array::from_fn(|class| read(&self.by_class[class])),
            failed: read(&self.failed),
            retried: read(&self.retried),
            in_flight: read(&self.in_flight),
            received_bytes: read(&self.received_bytes),
            sent_bytes: read(&self.sent_bytes),
            latency: self.latency.iter().map(read).collect(),
            ..RouteStats::default()
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) status: u16,
    pub(crate) is_failure: bool,
    pub(crate) sent_bytes: u64,
    pub(crate) took: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_say_what_happened() {
        let counters = Counters::default();
        for (status, is_failure, took_us) in [(200, false, 100), (204, false, 129), (503, true, u64::MAX / 4)]
        {
            counters.began();
            let took = Duration::from_micros(took_us);
            counters.ended(End { status, is_failure, sent_bytes: 7, took });
        }
        counters.began();
        let seen = counters.read();
        assert_eq!((seen.by_class, seen.failed, seen.in_flight), ([0, 2, 0, 0, 1], 1, 1));
        assert_eq!(seen.sent_bytes, 21);
        assert_eq!((seen.latency[0], seen.latency[1], seen.latency[CLASSES - 1]), (1, 1, 1));
    }
}
