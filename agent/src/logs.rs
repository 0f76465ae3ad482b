//! A container's log as a stream of lines: the last ones, since a time, and on as they come.
//!
//! Files are read on tokio's blocking threads, a bounded piece at a time. Following waits on inotify (through
//! the runtime's [`LogReader::changes`]), never on a clock, and ends with the container.

use std::future::Future;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rorqual_proto::wire::LogLine;
use rorqual_runtime::log::{LogReader, Record, Stream};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::error::one_line;

/// Lines that may wait for a slow reader.
const QUEUE: usize = 256;

/// Records that are read in one go.
const PIECE: usize = 128;

/// What a reader wants of a log.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    /// Go on until the container ends.
    pub(crate) follow: bool,
    /// The last lines only.
    pub(crate) tail: Option<u32>,
    /// Nothing older, milliseconds since the Unix epoch.
    pub(crate) since_ms: Option<i64>,
}

/// Whose log it is; goes with every line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin {
    pub(crate) task_id: String,
    pub(crate) task_name: String,
    pub(crate) node: String,
}

/// The lines, as gRPC streams them.
pub(crate) type Lines = ReceiverStream<Result<LogLine, Status>>;

/// Reads the log in `folder`. `ended` resolves when nothing more will be written to it; `guard` is held for as
/// long as the files are needed.
pub(crate) fn stream<G: Send + 'static>(
    folder: PathBuf,
    wanted: Wanted,
    origin: Origin,
    ended: impl Future<Output = ()> + Send + 'static,
    guard: G,
) -> Lines {
    let (lines, queue) = mpsc::channel(QUEUE);
    // Ends with the log, or when the reader hangs up.
    tokio::spawn(async move {
        let _guard = guard;
        let reading = read(folder, wanted, origin, ended, &lines);
        tokio::select! {
            result = reading => if let Err(status) = result {
                let _ = lines.send(Err(status)).await;
            },
            // Nobody listens any more.
            () = lines.closed() => {}
        }
    });
    ReceiverStream::new(queue)
}

async fn read(
    folder: PathBuf,
    wanted: Wanted,
    origin: Origin,
    ended: impl Future<Output = ()>,
    lines: &mpsc::Sender<Result<LogLine, Status>>,
) -> Result<(), Status> {
    let tail = wanted.tail.map(|lines| usize::try_from(lines).unwrap_or(usize::MAX));
    let opened = tokio::task::spawn_blocking(move || LogReader::open(&folder, tail)).await;
    let mut reader = opened.map_err(|_| stopping())?.map_err(failed)?;
    let changes = match wanted.follow {
        // Deprecated for descriptors that something else may close; this one is owned.
        #[allow(deprecated)]
        true => Some(
            AsyncFd::new(reader.changes().map_err(failed)?)
                .map_err(|error| Status::internal(format!("can't follow the log: {error}")))?,
        ),
        false => None,
    };
    let since_ns = wanted.since_ms.map(|ms| ms.saturating_mul(1_000_000));
    // What is written while we read belongs to no last lines of before.
    let mut left = tail.filter(|_| !wanted.follow).unwrap_or(usize::MAX);
    tokio::pin!(ended);
    let mut over = false;
    loop {
        let records;
        (reader, records) = piece(reader).await?;
        if records.is_empty() {
            let Some(changes) = changes.as_ref().filter(|_| !over) else { return Ok(()) };
            // Both arms are cancel-safe: readiness stays until it is cleared, and `ended` is kept.
            tokio::select! {
                ready = changes.readable() => {
                    let mut ready =
                        ready.map_err(|error| Status::internal(format!("can't follow the log: {error}")))?;
                    drain(changes.get_ref());
                    ready.clear_ready();
                }
                // What was written last is still read before the end.
                () = &mut ended => over = true,
            }
            continue;
        }
        for record in records {
            if left == 0 {
                return Ok(());
            }
            left -= 1;
            let Some(line) = line(record, &origin, since_ns) else { continue };
            if lines.send(Ok(line)).await.is_err() {
                return Ok(());
            }
        }
    }
}

async fn piece(mut reader: LogReader) -> Result<(LogReader, Vec<Record>), Status> {
    let read = tokio::task::spawn_blocking(move || {
        let mut records = Vec::new();
        while records.len() < PIECE {
            match reader.next_record()? {
                Some(record) => records.push(record),
                None => break,
            }
        }
        Ok((reader, records))
    });
    read.await.map_err(|_| stopping())?.map_err(failed)
}

fn drain(events: &OwnedFd) {
    let mut buffer = [0_u8; 4096];
    while nix::unistd::read(events, &mut buffer).is_ok_and(|read| read > 0) {}
    tracing::trace!(descriptor = events.as_raw_fd(), "log changed");
}

fn failed(error: rorqual_runtime::Error) -> Status {
    Status::internal(one_line(&error))
}

fn stopping() -> Status {
    Status::unavailable("the agent is shutting down")
}

fn line(record: Record, origin: &Origin, since_ns: Option<i64>) -> Option<LogLine> {
    let at_ns = nanoseconds(&record.time).unwrap_or_default();
    if since_ns.is_some_and(|since| at_ns < since) {
        return None;
    }
    let mut data = record.bytes;
    if !record.partial {
        data.push(b'\n');
    }
    Some(LogLine {
        at_ns,
        stream: match record.stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
        .to_owned(),
        data: data.into(),
        task_id: origin.task_id.clone(),
        task_name: origin.task_name.clone(),
        node_hostname: origin.node.clone(),
    })
}

/// A time in RFC 3339 and UTC as milliseconds since the Unix epoch.
pub(crate) fn milliseconds(time: &str) -> Option<i64> {
    let whole = if time.contains('.') { time.to_owned() } else { time.replace('Z', ".0Z") };
    nanoseconds(&whole).map(|ns| ns / 1_000_000)
}

/// `2026-01-02T03:04:05.000000006Z` as nanoseconds since the Unix epoch.
fn nanoseconds(time: &str) -> Option<i64> {
    let part = |from: usize, to: usize| time.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
    let (hour, minute, second) = (part(11, 13)?, part(14, 16)?, part(17, 19)?);
    let fraction = time.get(20..)?.strip_suffix('Z')?;
    let nanos = format!("{fraction:0<9}").get(..9)?.parse::<i64>().ok()?;
    // Days since 1970, after Howard Hinnant's `days_from_civil`.
    let (year, month_shifted) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * month_shifted + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write as _;
    use std::path::Path;
    use std::time::Duration;

    use tokio_stream::StreamExt as _;

    use super::*;

    #[test]
    fn times_are_read_back() {
        assert_eq!(nanoseconds("1970-01-01T00:00:00.000000001Z"), Some(1));
        assert_eq!(nanoseconds("2000-02-29T00:00:00.5Z"), Some(951_782_400_500_000_000));
        assert_eq!(nanoseconds("2026-12-31T23:59:59.999999999Z"), Some(1_798_761_599_999_999_999));
        assert_eq!(nanoseconds("yesterday"), None);
        assert_eq!(milliseconds("1970-01-01T00:00:01Z"), Some(1_000));
    }

    fn append(folder: &Path, second: u32, text: &str) {
        let path = folder.join(rorqual_runtime::log::FILE_NAME);
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        writeln!(file, "2026-01-02T03:04:{second:02}.000000000Z stdout F {text}").unwrap();
    }

    async fn next(lines: &mut Lines) -> Option<String> {
        let line = tokio::time::timeout(Duration::from_secs(5), lines.next()).await.unwrap()?;
        Some(String::from_utf8(line.unwrap().data.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn tail_and_since_leave_out_what_is_older() {
        let folder = tempfile::tempdir().unwrap();
        for second in 0..5 {
            append(folder.path(), second, &format!("line {second}"));
        }
        let path = folder.path().to_owned();
        let wanted = Wanted { tail: Some(2), ..Wanted::default() };
        let mut lines = stream(path.clone(), wanted, Origin::default(), std::future::pending(), ());
        assert_eq!(next(&mut lines).await.as_deref(), Some("line 3\n"));
        assert_eq!(next(&mut lines).await.as_deref(), Some("line 4\n"));
        assert_eq!(next(&mut lines).await, None);
        let since = nanoseconds("2026-01-02T03:04:04.000000000Z").unwrap() / 1_000_000;
        let wanted = Wanted { since_ms: Some(since), ..Wanted::default() };
        let mut lines = stream(path, wanted, Origin::default(), std::future::pending(), ());
        assert_eq!(next(&mut lines).await.as_deref(), Some("line 4\n"));
        assert_eq!(next(&mut lines).await, None);
    }

    #[tokio::test]
    async fn following_sees_new_lines_and_ends_with_the_container() {
        let folder = tempfile::tempdir().unwrap();
        append(folder.path(), 0, "before");
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let wanted = Wanted { follow: true, ..Wanted::default() };
        let ended = async move { drop(ended.await) };
        let mut lines = stream(folder.path().to_owned(), wanted, Origin::default(), ended, ());
        assert_eq!(next(&mut lines).await.as_deref(), Some("before\n"));
        append(folder.path(), 1, "after");
        assert_eq!(next(&mut lines).await.as_deref(), Some("after\n"));
        append(folder.path(), 2, "last");
        end.send(()).unwrap();
        assert_eq!(next(&mut lines).await.as_deref(), Some("last\n"));
        assert_eq!(next(&mut lines).await, None);
    }
}
