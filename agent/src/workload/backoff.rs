//! How long to wait before a container is started again: a pure function of the policy and its recent past.

/// A run that lasted so long was a healthy one: the next restart is immediate again.
pub(crate) const HEALTHY_RUN_MS: i64 = 10_000;

/// The wait after the `failures`-th failure in a row (counted from 0): nothing after the first, then
/// `delay_ms` doubling up to `max_delay_ms`. `jitter` (0.0 to 1.0) spreads it over −20 % … +20 %, so that
/// replicas that died together do not come back together.
pub(crate) fn delay_ms(failures: u32, delay_ms: u64, max_delay_ms: u64, jitter: f64) -> u64 {
    if failures == 0 {
        return 0;
    }
    let doubled = delay_ms.saturating_mul(1u64.checked_shl(failures - 1).unwrap_or(u64::MAX));
    let bounded = doubled.min(max_delay_ms.max(delay_ms));
    let spread = bounded / 5;
    let offset = (jitter.clamp(0.0, 1.0) * (2 * spread) as f64) as u64;
    bounded - spread + offset
}

#[cfg(test)]
mod tests {
    use super::delay_ms;

    #[test]
    fn the_first_failure_waits_for_nothing() {
        assert_eq!(delay_ms(0, 100, 60_000, 1.0), 0);
    }

    #[test]
    fn later_ones_double_up_to_the_bound() {
        let middle: Vec<u64> = (1..13).map(|n| delay_ms(n, 100, 60_000, 0.5)).collect();
        assert_eq!(middle, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000]);
        assert_eq!(delay_ms(200, 100, 60_000, 0.5), 60_000);
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        assert_eq!(delay_ms(1, 100, 60_000, 0.0), 80);
        assert_eq!(delay_ms(1, 100, 60_000, 1.0), 120);
        assert_eq!(delay_ms(1, 0, 0, 1.0), 0);
    }

    #[test]
    fn a_bound_below_the_first_wait_is_raised_to_it() {
        assert_eq!(delay_ms(3, 500, 100, 0.5), 500);
    }
}
