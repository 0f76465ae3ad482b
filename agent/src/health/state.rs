//! What follows from a row of answers. Pure: time is an argument.
//!
//! A container is asked at once, and then soon again and again until it is well for the first time, so that it is known
//! as early as it can be. How long it may take for that is as long as with Docker: the start period, and then as many
//! intervals as there are retries. One that was well has to fail so often in a row to be unhealthy.

use std::time::Duration;

use rorqual_proto::model::Health;

use super::Times;

/// The first wait after a failure of one that was never well; it doubles.
const SOON: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    times: Times,
    began_ms: i64,
    health: Health,
    /// Failures in a row.
    failures: u32,
}

impl State {
    /// `health` is what is known from before.
    pub(super) fn new(times: Times, health: Health, now_ms: i64) -> Self {
        Self { times, began_ms: now_ms, health, failures: 0 }
    }

    pub(super) fn health(&self) -> Health {
        self.health
    }

    /// How long to wait before it is asked again.
    pub(super) fn pause(&self) -> Duration {
        match self.health {
            Health::Starting => {
                let doubled = SOON.saturating_mul(1 << self.failures.saturating_sub(1).min(16));
                doubled.min(self.times.start_interval).min(self.times.interval)
            }
            Health::Healthy | Health::Unhealthy => self.times.interval,
        }
    }

    /// One answer. True where the container's health is another one now.
    pub(super) fn take(&mut self, well: bool, now_ms: i64) -> bool {
        let before = self.health;
        if well {
            self.failures = 0;
            self.health = Health::Healthy;
            return before != self.health;
        }
        self.failures = self.failures.saturating_add(1);
        let unhealthy = match before {
            Health::Starting => {
                let patience =
                    self.times.start_period + self.times.interval.saturating_mul(self.times.retries);
                let patience_ms = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
                now_ms.saturating_sub(self.began_ms) >= patience_ms
            }
            Health::Healthy => self.failures >= self.times.retries,
            Health::Unhealthy => true,
        };
        if unhealthy {
            self.health = Health::Unhealthy;
        }
        before != self.health
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times() -> Times {
        Times {
            interval: Duration::from_secs(2),
            start_period: Duration::from_secs(10),
            start_interval: Duration::from_secs(1),
            ..Times::default()
        }
    }

    #[test]
    fn one_that_starts_is_asked_soon_and_has_its_time() {
        let mut state = State::new(times(), Health::Starting, 1_000);
        let mut pauses = Vec::new();
        for second in 0..6 {
            assert!(!state.take(false, 1_000 + second * 1_000));
            pauses.push(state.pause().as_millis());
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1_000, 1_000]);
        assert!(!state.take(false, 16_999) && state.health() == Health::Starting);
        assert!(state.take(false, 17_000) && state.health() == Health::Unhealthy);
        assert_eq!(state.pause(), Duration::from_secs(2));
    }

    #[test]
    fn one_that_was_well_fails_several_times_in_a_row_before_it_counts() {
        let mut state = State::new(times(), Health::Starting, 0);
        assert!(state.take(true, 1) && state.health() == Health::Healthy);
        assert!(!state.take(false, 2) && !state.take(false, 3));
        assert!(!state.take(true, 4) && !state.take(false, 5) && !state.take(false, 6));
        assert!(state.take(false, 7) && state.health() == Health::Unhealthy);
        assert!(!state.take(false, 8));
        assert!(state.take(true, 9) && state.health() == Health::Healthy);
    }

    #[test]
    fn what_is_known_from_before_holds_on() {
        let mut state = State::new(times(), Health::Healthy, 0);
        assert!(!state.take(true, 1) && !state.take(false, 2));
        assert_eq!(state.health(), Health::Healthy);
    }
}
