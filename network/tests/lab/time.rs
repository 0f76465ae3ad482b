//! How long things may take: more on a machine that says so (`RORQUAL_TEST_SLOWNESS`), as an emulated one does.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

static SLOWNESS: LazyLock<u32> = LazyLock::new(|| match std::env::var("RORQUAL_TEST_SLOWNESS") {
    Ok(text) => text.parse().unwrap_or_else(|_| panic!("RORQUAL_TEST_SLOWNESS: {text:?} is no number")),
    Err(_) => 1,
});

/// A time as it is on this machine.
pub fn slow(time: Duration) -> Duration {
    time * *SLOWNESS
}

/// For an answer that is sure to come.
pub fn patience() -> Duration {
    slow(Duration::from_secs(5))
}

/// For a datagram that comes now or never.
pub fn moment() -> Duration {
    slow(Duration::from_millis(300))
}

/// An answer that takes longer was not given at once.
pub fn at_once() -> Duration {
    slow(Duration::from_millis(900))
}

/// Waits for something to become true.
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    within(patience(), what, condition);
}

/// The same, for what takes longer than others.
pub fn within(time: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + time;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {time:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
