//! Waiting on a condition with a deadline.

use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Between two looks. Short, since what is waited for is also measured.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The deadline as it is on this machine: `RORQUAL_TEST_SLOWNESS` says how many times longer everything may
/// take on one that is slow throughout, as an emulated one is.
pub fn patient(deadline: Duration) -> Duration {
    static SLOWNESS: OnceLock<u32> = OnceLock::new();
    let slowness = SLOWNESS.get_or_init(|| match std::env::var("RORQUAL_TEST_SLOWNESS") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("RORQUAL_TEST_SLOWNESS: {text:?} is no number")),
        Err(_) => 1,
    });
    deadline * *slowness
}

/// Looks until the condition holds and returns what it found. Panics at the deadline, with what was
/// waited for and what the last look saw instead.
#[track_caller]
pub fn wait_until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let (started, deadline) = (Instant::now(), patient(deadline));
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
