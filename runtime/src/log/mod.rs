//! The container's log files: how a record looks, how the monitor writes them, and how to read them.
//!
//! In the container's directory lie `container.log`, which is being written, and `container.log.1` (the one before it)
//! up to `container.log.<max_files - 1>` (the oldest). A record is one line, as in Kubernetes' container runtime
//! interface: `<RFC 3339 time with nanoseconds, UTC> <stdout|stderr> <F|P> <bytes>`. `P` marks a part of a line that
//! goes on in the stream's next record; `F` the end of a line.
//!
//! Start at [`LogReader::open`].

mod reader;
pub(crate) mod writer;

use std::path::{Path, PathBuf};

pub use reader::{LogReader, Record, Stream};

/// The name of the file that is being written.
pub const FILE_NAME: &str = "container.log";

/// The log files of a container that are there now, the oldest first; the last one is being written.
#[must_use]
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = vec![dir.join(FILE_NAME)];
    for index in 1.. {
        let path = rotated(dir, index);
        if !path.exists() {
            break;
        }
        files.push(path);
    }
    files.retain(|path| path.exists());
    files.reverse();
    files
}

fn rotated(dir: &Path, index: u32) -> PathBuf {
    dir.join(format!("{FILE_NAME}.{index}"))
}

/// Days since 1970 as year, month, day (proleptic Gregorian; after Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month as u32, day as u32)
}

/// Appends a time as `2026-01-02T03:04:05.000000006Z`.
pub(crate) fn write_time(seconds: i64, nanoseconds: u32, out: &mut Vec<u8>) {
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    let rest = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let mut number = |value: u64, digits: u32, after: u8| {
        for place in (0..digits).rev() {
            out.push(b'0' + (value / 10u64.pow(place) % 10) as u8);
        }
        out.push(after);
    };
    number(year.unsigned_abs(), 4, b'-');
    number(month.into(), 2, b'-');
    number(day.into(), 2, b'T');
    number(hour as u64, 2, b':');
    number(minute as u64, 2, b':');
    number(second as u64, 2, b'.');
    number(nanoseconds.into(), 9, b'Z');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        let time = |seconds, nanoseconds| {
            let mut out = Vec::new();
            write_time(seconds, nanoseconds, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(time(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(time(951_782_400, 1), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(time(1_798_761_599, 999_999_999), "2026-12-31T23:59:59.999999999Z");
        assert_eq!(time(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
    }
}
