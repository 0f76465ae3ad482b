//! `--since`: a time, or a duration before now.

use super::duration;
use crate::human;

/// Milliseconds since the Unix epoch.
pub(crate) fn since(text: &str, now_ms: i64) -> Result<i64, String> {
    if let Ok(before) = duration(text) {
        return Ok(now_ms.saturating_sub(before.as_millis().try_into().unwrap_or(i64::MAX)));
    }
    if let Ok(secs) = text.parse::<i64>() {
        return Ok(secs.saturating_mul(1000));
    }
    human::parse_rfc3339_ms(text).ok_or_else(|| {
        format!("`{text}` is not a time: expected one as 10m (before now) or 2026-01-02T03:04:05Z")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_durations() {
        assert_eq!(since("10m", 1_000_000), Ok(400_000));
        assert_eq!(since("1700000000", 0), Ok(1_700_000_000_000));
        assert_eq!(since("1970-01-01T00:00:01Z", 0), Ok(1000));
        assert!(since("yesterday", 0).unwrap_err().contains("is not a time"));
    }
}
