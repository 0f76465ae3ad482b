//! Reads a container's log across its rotated files, from its start or its end, and goes on while it grows.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{FILE_NAME, files};
use crate::error::{Error, Result};

const BLOCK_BYTES: usize = 64 * 1024;

/// Where a record came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout = 0,
    /// Standard error.
    Stderr = 1,
}

/// One record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When the monitor read it: RFC 3339 with nanoseconds, in UTC; orders as text.
    pub time: String,
    /// Where it came from.
    pub stream: Stream,
    /// Whether the line goes on in the stream's next record.
    pub partial: bool,
    /// What the container wrote, without the end of the line.
    pub bytes: Vec<u8>,
}

/// Reads a log. [`next_record`](LogReader::next_record) gives one record after the other, and `None` at the current
/// end; called again later it gives what has come since, also when files were rotated meanwhile.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
    current: Option<Current>,
    /// Files to read after the current one.
    next: VecDeque<File>,
    buffer: Vec<u8>,
    consumed: usize,
}

#[derive(Debug)]
struct Current {
    file: File,
    inode: u64,
}

impl LogReader {
    /// Opens the log in a container's directory, at its start or so that the last `tail` lines follow. A log that does
    /// not exist yet is an empty one.
    pub fn open(dir: &Path, tail: Option<usize>) -> Result<LogReader> {
        let mut opened: VecDeque<File> = VecDeque::new();
        for path in files(dir) {
            match File::open(&path) {
                Ok(file) => opened.push_back(file),
                // Rotated away between the look and the opening; what it held is too old now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::File { operation: "open", path, source }),
            }
        }
        let mut reader =
            LogReader { dir: dir.to_owned(), current: None, next: opened, buffer: Vec::new(), consumed: 0 };
        if let Some(lines) = tail {
            reader.keep_last(lines).map_err(|source| reader.failed(source))?;
        }
        Ok(reader)
    }

    /// The next record, or `None` if there is none for now.
    pub fn next_record(&mut self) -> Result<Option<Record>> {
        loop {
            match self.next_line().map_err(|source| self.failed(source))? {
                None => return Ok(None),
                Some(line) => {
                    if let Some(record) = parse(&line) {
                        return Ok(Some(record));
                    }
                    // Not one of ours, such as the rest of a line after a crash of the machine: passed over.
                }
            }
        }
    }

    /// A descriptor that becomes readable when the log may have grown, to be polled between calls of
    /// [`next_record`](LogReader::next_record). Make it first, then read up to the end, then wait: so nothing is
    /// missed. Read it empty, its content does not matter.
    pub fn changes(&self) -> Result<OwnedFd> {
        let failed = |errno: nix::errno::Errno| self.failed(errno.into());
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
        let events = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(&self.dir, events).map_err(failed)?;
        Ok(OwnedFd::from(inotify))
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::File { operation: "read log in", path: self.dir.clone(), source }
    }

    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(length) = self.buffer[self.consumed..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer[self.consumed..self.consumed + length].to_vec();
                self.consumed += length + 1;
                return Ok(Some(line));
            }
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
            if !self.fill()? && !self.advance()? {
                return Ok(None);
            }
        }
    }

    fn fill(&mut self) -> io::Result<bool> {
        let Some(current) = &mut self.current else { return Ok(false) };
        let start = self.buffer.len();
        self.buffer.resize(start + BLOCK_BYTES, 0);
        let read = current.file.read(&mut self.buffer[start..]);
        let count = *read.as_ref().unwrap_or(&0);
        self.buffer.truncate(start + count);
        read.map(|count| count > 0)
    }

    /// Goes to the next file, if the current one is at its end for good.
    fn advance(&mut self) -> io::Result<bool> {
        if self.next.is_empty() {
            self.find_newer()?;
            // The writer finishes a file before it makes the next: what came between our last look and the rotation.
            if !self.next.is_empty() && self.fill()? {
                return Ok(true);
            }
        }
        let Some(file) = self.next.pop_front() else { return Ok(false) };
        let inode = file.metadata()?.ino();
        self.current = Some(Current { file, inode });
        // A torn last line of the file before is no part of this one.
        self.buffer.clear();
        self.consumed = 0;
        Ok(true)
    }

    /// Looks for files that are newer than the current one. If that is gone already, all files are.
    fn find_newer(&mut self) -> io::Result<()> {
        let newest = match std::fs::metadata(self.dir.join(FILE_NAME)) {
            Ok(metadata) => Some(metadata.ino()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let inode = self.current.as_ref().map(|current| current.inode);
        if newest.is_none() || newest == inode {
            return Ok(());
        }
        let mut newer = VecDeque::new();
        for path in files(&self.dir).into_iter().rev() {
            let Ok(file) = File::open(path) else { continue };
            let found = file.metadata()?.ino();
            if Some(found) == inode {
                break;
            }
            newer.push_front(file);
        }
        self.next = newer;
        Ok(())
    }

    /// Drops what comes before the last lines.
    fn keep_last(&mut self, lines: usize) -> io::Result<()> {
        let mut wanted = lines;
        let mut keep = VecDeque::new();
        while let Some(mut file) = self.next.pop_back() {
            let (start, found) = last_lines(&mut file, wanted)?;
            file.seek(SeekFrom::Start(start))?;
            keep.push_front(file);
            wanted -= found;
            if wanted == 0 {
                break;
            }
        }
        self.next = keep;
        // Straight to the first one, so that a rotation from here on finds us in it.
        if let Some(file) = self.next.pop_front() {
            let inode = file.metadata()?.ino();
            self.current = Some(Current { file, inode });
        }
        Ok(())
    }
}

/// Where the last `wanted` lines of a file start, and how many there are, at most as many as wanted.
fn last_lines(file: &mut File, wanted: usize) -> io::Result<(u64, usize)> {
    let mut end = file.metadata()?.len();
    let mut found = 0;
    let mut block = vec![0; BLOCK_BYTES];
    if wanted == 0 {
        return Ok((end, 0));
    }
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES as u64);
        let length = (end - start) as usize;
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block[..length])?;
        for index in (0..length).rev().filter(|index| block[*index] == b'\n') {
            if found == wanted {
                return Ok((start + index as u64 + 1, found));
            }
            found += 1;
        }
        end = start;
    }
    Ok((0, found))
}

fn parse(line: &[u8]) -> Option<Record> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?.to_owned();
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let partial = match fields.next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Record { time, stream, partial, bytes: fields.next()?.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::super::writer::LogWriter;
    use super::*;
    use crate::api::LogPolicy;

    fn rest(reader: &mut LogReader) -> Vec<String> {
        let mut found = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            found.push(String::from_utf8(record.bytes).unwrap());
        }
        found
    }

    #[test]
    fn a_reader_follows_through_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = LogReader::open(dir.path(), None).unwrap();
        assert_eq!(reader.next_record().unwrap(), None);
        let policy = LogPolicy { max_bytes: 500, max_files: 20 };
        let mut writer = LogWriter::open(dir.path().to_owned(), policy);
        let mut found = Vec::new();
        for index in 0..100 {
            writer.take(Stream::Stdout, format!("{index}\n").as_bytes());
            if index % 17 == 0 {
                found.append(&mut rest(&mut reader));
            }
        }
        found.append(&mut rest(&mut reader));
        assert_eq!(found, (0..100).map(|index| index.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn tail_counts_across_files() {
        let dir = tempfile::tempdir().unwrap();
        let policy = LogPolicy { max_bytes: 300, max_files: 10 };
        let mut writer = LogWriter::open(dir.path().to_owned(), policy);
        for index in 0..30 {
            writer.take(Stream::Stdout, format!("{index}\n").as_bytes());
        }
        for wanted in [0, 1, 7, 29, 30, 100] {
            let mut reader = LogReader::open(dir.path(), Some(wanted)).unwrap();
            let expected: Vec<String> = (30 - wanted.min(30)..30).map(|index| index.to_string()).collect();
            assert_eq!(rest(&mut reader), expected);
        }
        let mut reader = LogReader::open(dir.path(), Some(0)).unwrap();
        assert_eq!(rest(&mut reader), Vec::<String>::new());
        writer.take(Stream::Stderr, b"new\n");
        assert_eq!(rest(&mut reader), ["new"]);
    }
}
