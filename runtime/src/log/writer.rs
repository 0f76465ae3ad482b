//! Writes the log files: the monitor's side. Takes what comes out of the container as it comes, cuts it into records,
//! and rotates.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{FILE_NAME, Stream, rotated, write_time};
use crate::api::LogPolicy;

/// A longer line is cut into several records.
const LINE_BYTES: usize = 16 * 1024;

/// The writer of one container's log.
#[derive(Debug)]
pub(crate) struct LogWriter {
    dir: PathBuf,
    policy: LogPolicy,
    file: Option<File>,
    size: u64,
    /// Lines that have not ended yet, per stream.
    pending: [Vec<u8>; 2],
    /// Records that are about to be written.
    out: Vec<u8>,
    /// Records that could not be written (a full disk) since the last one that could.
    dropped: u64,
}

impl LogWriter {
    /// Goes on with the log in this directory, or starts one.
    pub(crate) fn open(dir: PathBuf, policy: LogPolicy) -> LogWriter {
        let mut writer = LogWriter {
            dir,
            policy: LogPolicy { max_bytes: policy.max_bytes.max(1), max_files: policy.max_files.max(1) },
            file: None,
            size: 0,
            pending: [Vec::new(), Vec::new()],
            out: Vec::new(),
            dropped: 0,
        };
        // Tried again with the first record: a disk that is full now need not stay so.
        let _ = writer.reopen();
        writer
    }

    fn reopen(&mut self) -> io::Result<()> {
        let path = self.dir.join(FILE_NAME);
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Takes what a stream has given.
    pub(crate) fn take(&mut self, stream: Stream, mut bytes: &[u8]) {
        let (seconds, nanoseconds) = now();
        while !bytes.is_empty() {
            let space = LINE_BYTES - self.pending[stream as usize].len();
            let window = &bytes[..bytes.len().min(space)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.record(stream, true, &window[..end], seconds, nanoseconds);
                    bytes = &bytes[end + 1..];
                }
                None if window.len() == space => {
                    self.record(stream, false, window, seconds, nanoseconds);
                    bytes = &bytes[window.len()..];
                }
                None => {
                    self.pending[stream as usize].extend_from_slice(window);
                    bytes = &[];
                }
            }
        }
        self.flush();
    }

    /// Writes what is left of a stream that has ended: a last line without its end.
    pub(crate) fn finish(&mut self, stream: Stream) {
        if !self.pending[stream as usize].is_empty() {
            let (seconds, nanoseconds) = now();
            self.record(stream, false, &[], seconds, nanoseconds);
        }
        self.flush();
    }

    /// Adds a record of what is pending and `rest`.
    fn record(&mut self, stream: Stream, full: bool, rest: &[u8], seconds: i64, nanoseconds: u32) {
        let start = self.out.len();
        write_time(seconds, nanoseconds, &mut self.out);
        self.out.extend_from_slice(if stream == Stream::Stdout { b" stdout " } else { b" stderr " });
        self.out.extend_from_slice(if full { b"F " } else { b"P " });
        self.out.append(&mut self.pending[stream as usize]);
        self.out.extend_from_slice(rest);
        self.out.push(b'\n');
        if self.size + self.out.len() as u64 > self.policy.max_bytes && self.size + start as u64 > 0 {
            let record = self.out.split_off(start);
            self.flush();
            self.rotate();
            self.out = record;
        }
    }

    fn flush(&mut self) {
        if self.out.is_empty() {
            return;
        }
        if self.dropped > 0 {
            self.own_up();
        }
        let records = std::mem::take(&mut self.out);
        if self.append(&records).is_err() {
            self.dropped += records.iter().filter(|byte| **byte == b'\n').count() as u64;
        }
        // Kept for the next time, unless a burst has made it large.
        self.out = records;
        self.out.clear();
        self.out.shrink_to(2 * LINE_BYTES);
    }

    /// Says in the log that something is missing from it.
    fn own_up(&mut self) {
        let (seconds, nanoseconds) = now();
        let mut line = Vec::new();
        write_time(seconds, nanoseconds, &mut line);
        line.extend_from_slice(
            format!(" stderr F [{} log records were lost: the disk was full]\n", self.dropped).as_bytes(),
        );
        if self.append(&line).is_ok() {
            self.dropped = 0;
        }
    }

    /// Appends whole records or nothing.
    fn append(&mut self, records: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.reopen()?;
        }
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        match file.write_all(records) {
            Ok(()) => {
                self.size += records.len() as u64;
                Ok(())
            }
            Err(error) => {
                // A part of it may be there; readers would take it for a whole record.
                file.set_len(self.size)?;
                Err(error)
            }
        }
    }

    /// The current file becomes number 1, every other one the next, and the last one goes. Errors leave the current
    /// file in use: better a log that is too long than none.
    fn rotate(&mut self) {
        let current = self.dir.join(FILE_NAME);
        let last = self.policy.max_files - 1;
        if last == 0 {
            if fs::remove_file(&current).is_err() {
                return;
            }
        } else {
            for index in (1..last).rev() {
                // Not there yet, in a young log.
                let _ = fs::rename(rotated(&self.dir, index), rotated(&self.dir, index + 1));
            }
            if fs::rename(&current, rotated(&self.dir, 1)).is_err() {
                return;
            }
        }
        self.file = None;
        let _ = self.reopen();
    }
}

fn now() -> (i64, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs() as i64, since.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::super::LogReader;
    use super::*;

    fn texts(dir: &std::path::Path) -> Vec<(Stream, bool, String)> {
        let mut reader = LogReader::open(dir, None).unwrap();
        let mut found = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            found.push((record.stream, record.partial, String::from_utf8(record.bytes).unwrap()));
        }
        found
    }

    #[test]
    fn lines_are_cut_and_kept_apart_by_stream() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::open(dir.path().to_owned(), LogPolicy::default());
        writer.take(Stream::Stdout, b"one\ntw");
        writer.take(Stream::Stderr, b"bad\n");
        writer.take(Stream::Stdout, b"o\n\nno end");
        writer.finish(Stream::Stdout);
        let text = |text: &str| text.to_owned();
        assert_eq!(
            texts(dir.path()),
            [
                (Stream::Stdout, false, text("one")),
                (Stream::Stderr, false, text("bad")),
                (Stream::Stdout, false, text("two")),
                (Stream::Stdout, false, text("")),
                (Stream::Stdout, true, text("no end")),
            ]
        );
    }

    #[test]
    fn long_lines_come_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::open(dir.path().to_owned(), LogPolicy::default());
        let line = "x".repeat(2 * LINE_BYTES + 5);
        writer.take(Stream::Stdout, line.as_bytes());
        writer.take(Stream::Stdout, b"\n");
        let records = texts(dir.path());
        assert_eq!(records.iter().map(|(_, partial, _)| *partial).collect::<Vec<_>>(), [true, true, false]);
        assert_eq!(records.into_iter().map(|(.., text)| text).collect::<String>(), line);
    }

    #[test]
    fn files_rotate_by_size_and_stay_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let policy = LogPolicy { max_bytes: 1000, max_files: 3 };
        let mut writer = LogWriter::open(dir.path().to_owned(), policy);
        for index in 0..200 {
            writer.take(Stream::Stdout, format!("line {index}\n").as_bytes());
        }
        let files = super::super::files(dir.path());
        assert_eq!(files.len(), 3);
        assert!(files.iter().all(|path| fs::metadata(path).unwrap().len() <= 1000));
        let lines: Vec<String> = texts(dir.path()).into_iter().map(|(.., text)| text).collect();
        let first: usize = lines[0].trim_start_matches("line ").parse().unwrap();
        let expected: Vec<String> = (first..200).map(|index| format!("line {index}")).collect();
        assert_eq!(lines, expected);
    }
}
