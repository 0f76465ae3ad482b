//! The replicas of a service behind a route, and which of them gets the next request.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::time::Instant;

use crate::backend::{Backend, InFlight};
use crate::model::{Endpoint, Protocol};

/// The replicas of one service, for one port and one way of speaking to them.
#[derive(Debug)]
pub(crate) struct Upstream {
    port: u16,
    protocol: Protocol,
    threads: usize,
    backends: RwLock<Arc<[Arc<Backend>]>>,
    /// Who is looked at first: among equals they take turns.
    turn: AtomicUsize,
}

impl Upstream {
    pub(crate) fn new(port: u16, protocol: Protocol, threads: usize) -> Self {
        let none: [Arc<Backend>; 0] = [];
        Self { port, protocol, threads, backends: RwLock::new(Arc::new(none)), turn: AtomicUsize::new(0) }
    }

    /// Those that stay keep their connections; those that go get nothing new.
    pub(crate) fn set(&self, endpoints: &[Endpoint]) {
        let old = self.backends();
        let known = |endpoint: &Endpoint| old.iter().find(|backend| backend.endpoint == *endpoint).cloned();
        let new = |endpoint: &Endpoint| {
            Arc::new(Backend::new(endpoint.clone(), self.port, self.protocol, self.threads))
        };
        let list: Arc<[Arc<Backend>]> =
            endpoints.iter().map(|endpoint| known(endpoint).unwrap_or_else(|| new(endpoint))).collect();
        *self.backends.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&list);
        let gone = old.iter().filter(|backend| !list.iter().any(|stays| Arc::ptr_eq(stays, backend)));
        gone.for_each(|backend| backend.retire());
    }

    pub(crate) fn backends(&self) -> Arc<[Arc<Backend>]> {
        Arc::clone(&self.backends.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The replica with the fewest requests in flight, of those that were not tried and are not left out. Where more
    /// than half of all are left out it is likely not their fault, and all count.
    pub(crate) fn choose(&self, tried: &[Arc<Backend>]) -> Option<InFlight> {
        let backends = self.backends();
        let now = Instant::now();
        let left_out = backends.iter().filter(|backend| backend.is_left_out(now)).count();
        let all_count = left_out * 2 > backends.len();
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let fits = |backend: &&Arc<Backend>| !tried.iter().any(|other| Arc::ptr_eq(other, backend));
        let in_turn = (0..backends.len()).map(|step| &backends[(first.wrapping_add(step)) % backends.len()]);
        let candidates = in_turn.filter(fits);
        let best = match all_count || left_out == 0 {
            true => candidates.min_by_key(|backend| backend.in_flight()),
            // Those that are left out come last.
            false => candidates.min_by_key(|backend| (backend.is_left_out(now), backend.in_flight())),
        };
        best.map(InFlight::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(names: &[&str]) -> Vec<Endpoint> {
        let endpoint = |name: &&str| Endpoint {
            id: (*name).to_owned(),
            name: (*name).to_owned(),
            address: "127.0.0.1".parse().unwrap(),
        };
        names.iter().map(endpoint).collect()
    }

    fn upstream(names: &[&str]) -> Upstream {
        let upstream = Upstream::new(80, Protocol::Http1, 1);
        upstream.set(&endpoints(names));
        upstream
    }

    fn name(chosen: &InFlight) -> String {
        chosen.backend().endpoint.name.clone()
    }

    #[test]
    fn the_one_with_the_fewest_requests_is_next_and_equals_take_turns() {
        let upstream = upstream(&["a", "b", "c"]);
        let mut held: Vec<InFlight> = (0..3).map(|_| upstream.choose(&[]).unwrap()).collect();
        let mut names: Vec<String> = held.iter().map(name).collect();
        names.sort();
        assert_eq!(names, ["a", "b", "c"]);
        let free = name(&held.remove(1));
        for _ in 0..3 {
            assert_eq!(name(&upstream.choose(&[]).unwrap()), free, "it is the only one without a request");
        }
    }

    #[test]
    fn who_was_tried_is_not_tried_again() {
        let upstream = upstream(&["a", "b"]);
        let first = upstream.choose(&[]).unwrap();
        let second = upstream.choose(&[Arc::clone(first.backend())]).unwrap();
        assert_ne!(name(&first), name(&second));
        assert!(upstream.choose(&[Arc::clone(first.backend()), Arc::clone(second.backend())]).is_none());
    }

    #[test]
    fn who_fails_is_left_out_unless_most_do() {
        let upstream = upstream(&["a", "b", "c", "d"]);
        let backends = upstream.backends();
        let chosen = || {
            (0..8).map(|_| name(&upstream.choose(&[]).unwrap())).collect::<std::collections::BTreeSet<_>>()
        };
        (0..3).for_each(|_| backends[0].failed(2));
        assert_eq!(chosen().into_iter().collect::<Vec<_>>(), ["b", "c", "d"]);
        backends[0].succeeded();
        assert_eq!(chosen().len(), 4);
        for backend in &backends[..3] {
            (0..6).for_each(|_| backend.failed(1));
        }
        assert_eq!(chosen().len(), 4, "three of four: it is not their fault");
    }

    #[test]
    fn who_stays_keeps_what_is_known_of_it() {
        let upstream = upstream(&["a", "b"]);
        let before = upstream.backends();
        upstream.set(&endpoints(&["b", "c"]));
        let after = upstream.backends();
        assert!(Arc::ptr_eq(&before[1], &after[0]));
        assert_eq!(after[1].endpoint.name, "c");
    }
}
