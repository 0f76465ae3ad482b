//! One write-out of the file system for all who need one at the same time.
//!
//! A layer is thousands of files, so it is made durable by writing out its file system as a whole. Several layers
//! that become ready while that goes on are all served by the next one.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::sys;

/// The barrier of one file system.
#[derive(Debug)]
pub(super) struct Barrier {
    folder: File,
    rounds: Mutex<Rounds>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Rounds {
    begun: u64,
    ended: u64,
    /// The latest round that failed, and how.
    failed: Option<(u64, Option<i32>)>,
}

impl Barrier {
    /// For the file system that `folder` lies on.
    pub(super) fn new(folder: &Path) -> Result<Barrier> {
        let folder = File::open(folder).map_err(|error| Error::io("open", folder, error))?;
        Ok(Barrier { folder, rounds: Mutex::default(), ended: Condvar::new() })
    }

    /// Comes back when everything is on disk that was written before the call.
    pub(super) fn sync(&self) -> io::Result<()> {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        // A round that goes on already may have passed over what we have written.
        let wanted = rounds.begun + 1;
        while rounds.ended < wanted {
            if rounds.begun > rounds.ended {
                rounds = self.ended.wait(rounds).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            rounds.begun += 1;
            let own = rounds.begun;
            drop(rounds);
            let synced = sys::sync_filesystem(&self.folder);
            rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
            rounds.ended = own;
            if let Err(error) = synced {
                rounds.failed = Some((own, error.raw_os_error()));
            }
            self.ended.notify_all();
        }
        match rounds.failed {
            Some((round, code)) if round >= wanted => Err(code.map_or_else(
                || io::Error::other("the file system could not be written out"),
                io::Error::from_raw_os_error,
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn many_are_served_by_few_rounds() {
        let folder = tempfile::tempdir().unwrap();
        let barrier = Barrier::new(folder.path()).unwrap();
        let served = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    for _ in 0..4 {
                        barrier.sync().unwrap();
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        let rounds = barrier.rounds.into_inner().unwrap();
        assert_eq!((served.into_inner(), rounds.begun), (64, rounds.ended));
        // Each of a thread's own four calls needs another round; nobody needs more than that and one in between.
        assert!((4..=64).contains(&rounds.ended), "{rounds:?}");
    }
}
