//! Durations `1m30s`.

use std::time::Duration;

/// A duration as Go writes them: `300ms`, `1.5s`, `1m30s`, `2h`; 0 needs no unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("`{text}` is not a duration: expected one as 500ms, 10s or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refuse)?;
        let (number, after) = rest.split_at(digits);
        let unit_length = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_length);
        let unit_secs = match unit {
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(refuse()),
        };
        let number: f64 = number.parse().map_err(|_| refuse())?;
        let part = Duration::try_from_secs_f64(number * unit_secs).map_err(|_| refuse())?;
        sum = sum.checked_add(part).ok_or_else(refuse)?;
        rest = after;
    }
    if text.is_empty() { Err(refuse()) } else { Ok(sum) }
}

/// A wait of a spec, in milliseconds. On the wire 0 means unset, so "at once" is 1 ms.
pub(crate) fn wait(text: &str) -> Result<u64, String> {
    seconds(text).map(|millis| millis.max(1))
}

/// A number of seconds, as Docker has it in places, or a duration; in milliseconds.
pub(crate) fn seconds(text: &str) -> Result<u64, String> {
    match text.parse::<u32>() {
        Ok(secs) => Ok(u64::from(secs) * 1000),
        Err(_) => duration(text)?.as_millis().try_into().map_err(|_| format!("`{text}` is too long")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let cases = [
            ("0", 0),
            ("0s", 0),
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("1.5s", 1_500),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("300ms", 300),
            ("1h0m0.5s", 3_600_500),
        ];
        for (text, millis) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "10", "s", "-1s", "1 s", "1x", "1..5s", "999999999999999999999h", "5m3"] {
            assert!(duration(text).unwrap_err().contains("is not a duration"), "{text}");
        }
    }

    #[test]
    fn at_once_is_not_unset() {
        assert_eq!(wait("0s"), Ok(1));
        assert_eq!(wait("0"), Ok(1));
        assert_eq!(wait("10s"), Ok(10_000));
        assert_eq!(wait("10"), Ok(10_000));
    }

    #[test]
    fn plain_seconds_are_understood_too() {
        assert_eq!(seconds("10"), Ok(10_000));
        assert_eq!(seconds("1.5s"), Ok(1_500));
        assert!(seconds("x").is_err());
    }
}
