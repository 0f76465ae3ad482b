//! A blob while it arrives: what was written so far can be read, so that a layer is unpacked while it downloads.
//!
//! ```text
//! BlobWriter ── written bytes ──► Arrival ◄── waits ── Follower ──► unpacking
//!     └─ verified: whole;  reset or dropped: lost
//! ```
//!
//! **Invariant:** a follower comes to the end only after the blob's digest was verified.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What the writer tells.
#[derive(Debug, Default)]
pub(super) struct Arrival {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    written_bytes: u64,
    end: End,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    Whole,
    Lost,
}

impl Arrival {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn advance(&self, written_bytes: u64) {
        self.state().written_bytes = written_bytes;
        self.moved.notify_all();
    }

    /// The blob is complete and what its digest says.
    pub(super) fn complete(&self) {
        self.state().end = End::Whole;
        self.moved.notify_all();
    }

    /// What was written does not count any more, unless it was whole.
    pub(super) fn lose(&self) {
        let mut state = self.state();
        if state.end == End::Open {
            state.end = End::Lost;
        }
        drop(state);
        self.moved.notify_all();
    }
}

/// Tells followers that nobody wants their layers any more, once it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Interest(Arc<AtomicBool>);

impl Drop for Interest {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads a blob while it arrives; waits where nothing has come yet.
#[derive(Debug)]
pub(crate) struct Follower {
    file: File,
    at: u64,
    arrival: Arc<Arrival>,
    is_given_up: Arc<AtomicBool>,
}

impl Follower {
    pub(super) fn new(file: File, arrival: Arc<Arrival>, interest: &Interest) -> Follower {
        Follower { file, at: 0, arrival, is_given_up: Arc::clone(&interest.0) }
    }

    /// Something to ask later, when the follower itself is gone, whether its blob was lost.
    pub(crate) fn fate(&self) -> Fate {
        Fate(Arc::clone(&self.arrival))
    }
}

/// Whether what was read has turned out not to count.
pub(crate) struct Fate(Arc<Arrival>);

impl Fate {
    pub(crate) fn is_lost(&self) -> bool {
        self.0.state().end == End::Lost
    }
}

impl Read for Follower {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.arrival.state();
        let ahead = loop {
            if state.end == End::Lost || self.is_given_up.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the transfer was given up"));
            }
            match (state.written_bytes - self.at, state.end) {
                (0, End::Whole) => return Ok(0),
                (0, _) => state = self.arrival.moved.wait(state).unwrap_or_else(PoisonError::into_inner),
                (ahead, _) => break ahead,
            }
        };
        drop(state);
        let most = usize::try_from(ahead).unwrap_or(usize::MAX).min(buffer.len());
        let length = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += length as u64;
        if length == 0 && most > 0 {
            // Cut off between our look and our read: it begins anew.
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the transfer was given up"));
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn pair() -> (File, Arc<Arrival>, Interest, Follower) {
        let (mut file, arrival, interest) =
            (tempfile::tempfile().unwrap(), Arc::<Arrival>::default(), Interest::default());
        file.write_all(b"content").unwrap();
        let follower = Follower::new(file.try_clone().unwrap(), Arc::clone(&arrival), &interest);
        (file, arrival, interest, follower)
    }

    #[test]
    fn the_end_comes_only_with_the_verdict() {
        let (_file, arrival, _interest, mut follower) = pair();
        let reader = std::thread::spawn(move || {
            let mut read = Vec::new();
            follower.read_to_end(&mut read).map(|_| read)
        });
        arrival.advance(3);
        arrival.advance(7);
        assert!(!reader.is_finished());
        arrival.complete();
        assert_eq!(reader.join().unwrap().unwrap(), b"content");
    }

    #[test]
    fn what_is_lost_ends_with_an_error() {
        let (_file, arrival, _interest, mut follower) = pair();
        arrival.advance(7);
        arrival.lose();
        assert!(follower.read(&mut [0; 8]).is_err());
        assert!(follower.fate().is_lost());
        // A blob that was whole stays so.
        let (_file, arrival, interest, mut follower) = pair();
        arrival.advance(7);
        arrival.complete();
        arrival.lose();
        assert_eq!(follower.read(&mut [0; 8]).unwrap(), 7);
        drop(interest);
        assert!(follower.read(&mut [0; 8]).is_err());
    }
}
