//! Waiting on a condition with a deadline.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Between two looks. Short, since what is waited for is also measured.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks until the condition holds and returns what it found. Panics at the deadline, with what was
/// waited for and what the last look saw instead.
#[track_caller]
pub fn wait_until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        let seen = match look() {
            Ok(found) => return found,
            Err(seen) => seen,
        };
        assert!(
            started.elapsed() < deadline,
            "{what}: not within {:.1} s; last seen: {seen}",
            deadline.as_secs_f64()
        );
        sleep(LOOK_EVERY);
    }
}

/// `Ok` when it holds, else what is seen instead: a look of [`wait_until`].
pub fn hold(holds: bool, seen: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(seen()) }
}
