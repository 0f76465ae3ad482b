//! What waits to be sent to one member: bounded, and the oldest goes first when it is full, as Raft allows.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Messages that may wait.
const MESSAGES: usize = 1024;

/// Bytes that may wait, unless one message has more.
const BYTES: usize = 16 << 20;

/// An encoded message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parcel {
    pub(super) data: Vec<u8>,
    /// The leader waits to hear what became of it.
    pub(super) snapshot: bool,
}

#[derive(Default)]
struct Waiting {
    parcels: VecDeque<Parcel>,
    bytes: usize,
}

/// The queue; one task takes from it.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a parcel; true if a snapshot had to go for it.
    pub(super) fn push(&self, parcel: Parcel) -> bool {
        let mut waiting = self.lock();
        let mut lost_snapshot = false;
        while waiting.parcels.len() >= MESSAGES || waiting.bytes + parcel.data.len() > BYTES {
            let Some(oldest) = waiting.parcels.pop_front() else { break };
            waiting.bytes -= oldest.data.len();
            lost_snapshot |= oldest.snapshot;
        }
        waiting.bytes += parcel.data.len();
        waiting.parcels.push_back(parcel);
        drop(waiting);
        self.filled.notify_one();
        lost_snapshot
    }

    fn pop(&self) -> Option<Parcel> {
        let mut waiting = self.lock();
        let parcel = waiting.parcels.pop_front()?;
        waiting.bytes -= parcel.data.len();
        Some(parcel)
    }

    /// Waits until there is something. Cancel-safe: nothing is taken.
    pub(super) async fn filled(&self) {
        while self.lock().parcels.is_empty() {
            self.filled.notified().await;
        }
    }

    /// Takes the oldest. Cancel-safe: nothing is taken before it is returned.
    pub(super) async fn take(&self) -> Parcel {
        loop {
            if let Some(parcel) = self.pop() {
                return parcel;
            }
            self.filled.notified().await;
        }
    }

    /// Throws everything away; true if there was a snapshot.
    pub(super) fn clear(&self) -> bool {
        let mut waiting = self.lock();
        waiting.bytes = 0;
        waiting.parcels.drain(..).fold(false, |any, parcel| any | parcel.snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel(bytes: usize, snapshot: bool) -> Parcel {
        Parcel { data: vec![0; bytes], snapshot }
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let outbox = Outbox::default();
        for size in 0..MESSAGES + 3 {
            outbox.push(parcel(size, false));
        }
        assert_eq!(outbox.pop().unwrap().data.len(), 3);
    }

    #[test]
    fn bytes_are_bounded_and_a_lost_snapshot_is_told() {
        let outbox = Outbox::default();
        assert!(!outbox.push(parcel(BYTES - 10, true)));
        assert!(outbox.push(parcel(20, false)), "the snapshot had to go");
        assert!(!outbox.push(parcel(BYTES + 1, true)), "one that is too large alone still goes out");
        assert_eq!(outbox.pop().unwrap().data.len(), BYTES + 1);
        assert!(outbox.pop().is_none());
        outbox.push(parcel(1, true));
        assert!(outbox.clear());
        assert!(outbox.pop().is_none());
    }

    #[tokio::test]
    async fn taking_waits_for_something() {
        let outbox = std::sync::Arc::new(Outbox::default());
        let taker = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.take().await }
        });
        tokio::task::yield_now().await;
        outbox.push(parcel(7, false));
        assert_eq!(taker.await.unwrap().data.len(), 7);
    }
}
