//! The access log: a line of JSON for each request, in a file of bounded size.
//!
//! Lines wait in a bounded queue for the one task that writes; what does not fit is counted and told with the next line.
//! At [`MOST_BYTES`] the file becomes `access.log.1`, in place of the one before. The task ends with the last handle.
//! Queries are left out: they hold tokens and what people looked for.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::mpsc;

/// Lines that may wait.
const QUEUE: usize = 4096;
/// Lines that are written at once.
const BATCH: usize = 256;
/// A file of this size is put away.
const MOST_BYTES: u64 = 32 << 20;
/// What is kept of a text that a client sent, in characters.
const TEXT: usize = 1024;

/// One request.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Line {
    /// When it began, RFC 3339.
    pub(crate) at: String,
    pub(crate) client: String,
    /// `http/1.1`, `http/2`.
    pub(crate) protocol: &'static str,
    pub(crate) scheme: &'static str,
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) status: u16,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) took_ms: f64,
    pub(crate) service: String,
    pub(crate) route: String,
    /// Who answered: `web.3`. Empty where the edge did.
    pub(crate) replica: String,
    pub(crate) retries: u32,
    /// The answer has come to its end.
    pub(crate) whole: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) user_agent: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) referer: String,
    /// So many lines before this one are missing.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) missing: u64,
}

// serde calls it with a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Where lines go. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog {
    lines: mpsc::Sender<Line>,
    missing: Arc<AtomicU64>,
}

impl AccessLog {
    /// Opens `access.log` in a folder, and starts the task that writes into it.
    pub(crate) fn open(folder: PathBuf) -> Self {
        let (lines, queue) = mpsc::channel(QUEUE);
        tokio::spawn(write(folder, queue));
        Self { lines, missing: Arc::default() }
    }

    /// Takes a line, if there is room.
    pub(crate) fn take(&self, mut line: Line) {
        line.missing = self.missing.swap(0, Relaxed);
        let missing = line.missing;
        if self.lines.try_send(line).is_err() {
            self.missing.fetch_add(missing + 1, Relaxed);
        }
    }
}

/// What is kept of a text.
pub(crate) fn shortened(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

/// The time now, as lines have it.
pub(crate) fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(since.as_secs(), since.subsec_millis())
}

/// Days to dates as in <https://howardhinnant.github.io/date_algorithms.html>, from the year 1970 on.
fn rfc3339(seconds: u64, millis: u32) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

async fn write(folder: PathBuf, mut queue: mpsc::Receiver<Line>) {
    let mut batch = Vec::new();
    let mut place = Place { folder, file: None };
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let mut text = Vec::new();
        for line in batch.drain(..) {
            // A line is made of texts and numbers alone.
            if serde_json::to_writer(&mut text, &line).is_ok() {
                text.push(b'\n');
            }
        }
        let mut taken = place;
        let written = tokio::task::spawn_blocking(move || {
            if let Err(error) = taken.append(&text) {
                tracing::warn!(folder = %taken.folder.display(), %error, "the access log can't be written");
                taken.file = None;
            }
            taken
        });
        place = match written.await {
            Ok(place) => place,
            Err(_) => return,
        };
    }
}

/// The file, while it is open.
struct Place {
    folder: PathBuf,
    file: Option<(File, u64)>,
}

impl Place {
    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        let path = self.folder.join("access.log");
        let (mut file, size) = match self.file.take() {
            Some(open) => open,
            None => open(&self.folder, &path)?,
        };
        file.write_all(text)?;
        let size = size + text.len() as u64;
        if size < MOST_BYTES {
            self.file = Some((file, size));
            return Ok(());
        }
        fs::rename(&path, self.folder.join("access.log.1"))
    }
}

fn open(folder: &Path, path: &Path) -> io::Result<(File, u64)> {
    fs::create_dir_all(folder)?;
    let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (1_795_651_445, "2026-11-26T00:04:05.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
        ] {
            assert_eq!(rfc3339(seconds, 7), expected);
        }
    }

    #[test]
    fn a_full_file_is_put_away() {
        let folder = tempfile::tempdir().unwrap();
        let mut place = Place { folder: folder.path().join("edge"), file: None };
        place.append(&vec![b'a'; MOST_BYTES as usize - 1]).unwrap();
        place.append(b"bc").unwrap();
        place.append(b"d").unwrap();
        let size = |name: &str| fs::metadata(place.folder.join(name)).map_or(0, |data| data.len());
        assert_eq!((size("access.log.1"), size("access.log")), (MOST_BYTES + 1, 1));
    }
}
