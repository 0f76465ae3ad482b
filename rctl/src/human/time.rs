//! Times and durations. Times are in UTC, so that nodes' logs and outputs can be laid side by side.

use std::time::SystemTime;

/// Now, in milliseconds since the Unix epoch.
pub(crate) fn epoch_ms() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_millis().try_into().unwrap_or(i64::MAX)
}

/// `2 minutes ago`; a time ahead of this machine's clock counts as now.
pub(crate) fn ago(at_ms: i64, now_ms: i64) -> String {
    format!("{} ago", lasting(now_ms.saturating_sub(at_ms)))
}

/// `About an hour`, with Docker's words and thresholds.
pub(crate) fn lasting(duration_ms: i64) -> String {
    let secs = u64::try_from(duration_ms).unwrap_or_default() / 1000;
    let (mins, hours) = (secs / 60, (secs + 1800) / 3600);
    match (secs, mins, hours) {
        (0, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (2..60, ..) => format!("{secs} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, 2..60, _) => format!("{mins} minutes"),
        (_, _, 1) => "About an hour".to_owned(),
        (_, _, 2..48) => format!("{hours} hours"),
        (_, _, 48..336) => format!("{} days", hours / 24),
        (_, _, 336..1440) => format!("{} weeks", hours / 24 / 7),
        (_, _, 1440..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// `2026-01-02T03:04:05.678Z`.
pub(crate) fn rfc3339_ms(at_ms: i64) -> String {
    format!("{}.{:03}Z", to_second(at_ms.div_euclid(1000)), at_ms.rem_euclid(1000))
}

/// `2026-01-02T03:04:05.678901234Z`.
pub(crate) fn rfc3339_ns(at_ns: i64) -> String {
    let (secs, nanos) = (at_ns.div_euclid(1_000_000_000), at_ns.rem_euclid(1_000_000_000));
    format!("{}.{nanos:09}Z", to_second(secs))
}

fn to_second(secs: i64) -> String {
    let (days, of_day) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    let (year, month, day) = date_of(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// The date that many days after 1970-01-01, in the proleptic Gregorian calendar. A year is counted from
/// March on, so that the leap day is its last one; 146,097 days are 400 years.
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let month_from_march = (month + 9) % 12;
    let of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
    era * 146_097 + of_era - 719_468
}

/// A date `2026-01-02`, or a time `2026-01-02T03:04[:05[.678]]` with `Z`, `+hh:mm` or nothing (UTC), as
/// milliseconds since the Unix epoch.
pub(crate) fn parse_rfc3339_ms(text: &str) -> Option<i64> {
    let (date, time) = text.split_once(['T', 't', ' ']).unwrap_or((text, "00:00"));
    let mut date = date.splitn(3, '-').map(|part| number(part, part.len()));
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let days = days_of(year, month, day);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || date_of(days) != (year, month, day) {
        return None;
    }
    let (time, offset_mins) = match time.find(['Z', 'z', '+', '-']) {
        Some(at) => (&time[..at], offset(&time[at..])?),
        None => (time, 0),
    };
    let (time, millis) = match time.split_once('.') {
        Some((time, fraction)) => (time, millis(fraction)?),
        None => (time, 0),
    };
    let mut parts = time.splitn(3, ':').map(|part| number(part, 2));
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?);
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some((days * 86_400 + hour * 3600 + minute * 60 + second - offset_mins * 60) * 1000 + millis)
}

fn number(text: &str, length: usize) -> Option<i64> {
    (text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

fn millis(fraction: &str) -> Option<i64> {
    number(fraction, fraction.len())?;
    let padded: String = fraction.chars().chain("000".chars()).take(3).collect();
    padded.parse().ok()
}

fn offset(text: &str) -> Option<i64> {
    if text.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, rest) = text.split_at_checked(1)?;
    let (hours, mins) = rest.split_once(':')?;
    let mins = number(hours, 2)? * 60 + number(mins, 2)?;
    Some(if sign == "-" { -mins } else { mins })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn durations_use_dockers_words() {
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        let cases = [
            (Duration::from_millis(999), "Less than a second"),
            (second, "1 second"),
            (second * 59, "59 seconds"),
            (second * 119, "About a minute"),
            (second * 120, "2 minutes"),
            (second * 3599, "59 minutes"),
            (hour, "About an hour"),
            (hour * 3 / 2, "2 hours"),
            (hour * 47, "47 hours"),
            (hour * 48, "2 days"),
            (hour * 24 * 20, "2 weeks"),
            (hour * 24 * 100, "3 months"),
            (hour * 24 * 800, "2 years"),
        ];
        for (duration, text) in cases {
            assert_eq!(lasting(duration.as_millis() as i64), text);
        }
        assert_eq!(ago(10_000, 0), "Less than a second ago");
        assert_eq!(ago(0, 130_000), "2 minutes ago");
    }

    #[test]
    fn times_and_back() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_735_689_599_999, "2024-12-31T23:59:59.999Z"),
            (1_767_323_045_678, "2026-01-02T03:04:05.678Z"),
        ];
        for (at_ms, text) in cases {
            assert_eq!(rfc3339_ms(at_ms), text);
            assert_eq!(parse_rfc3339_ms(text), Some(at_ms));
        }
        assert_eq!(rfc3339_ns(1_767_323_045_678_901_234), "2026-01-02T03:04:05.678901234Z");
    }

    #[test]
    fn every_day_of_four_centuries_is_itself() {
        for days in 0..146_097 {
            let (year, month, day) = date_of(days);
            assert_eq!(days_of(year, month, day), days);
        }
    }

    #[test]
    fn other_ways_to_write_a_time() {
        let at_ms = Some(1_767_323_040_000);
        for text in
            ["2026-01-02T03:04", "2026-01-02 03:04:00", "2026-01-02T04:34+01:30", "2026-01-01T22:04-05:00"]
        {
            assert_eq!(parse_rfc3339_ms(text), at_ms, "{text}");
        }
        assert_eq!(parse_rfc3339_ms("2026-01-02"), Some(1_767_312_000_000));
        for text in ["", "10m", "2026-13-01", "2026-02-30", "2026-01-02T24:00", "2026-01-02T3:04", "1-1-1"] {
            assert_eq!(parse_rfc3339_ms(text), None, "{text}");
        }
    }
}
