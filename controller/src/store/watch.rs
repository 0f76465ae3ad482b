//! Watches: what each applied batch changed, fed to everyone who listens.
//!
//! The feed is bounded. A watcher that falls behind, or that was there when a snapshot replaced the whole
//! state, gets [`WatchError::Lagged`] and looks at everything.

use std::sync::{Arc, Mutex, PoisonError};

use rorqual_planner::Change;
use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};

/// Batches that a watcher may be behind.
const FEED_BATCHES: usize = 1024;

/// One applied batch.
#[derive(Debug, Clone)]
pub struct Applied {
    /// Its place in the log.
    pub index: u64,
    /// What it changed, in order; never empty.
    pub changes: Arc<[Change]>,
}

/// Why a watcher gets no batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// Batches were missed: look at everything.
    #[error("changes were missed: look at the whole state")]
    Lagged,
    /// The store has stopped.
    #[error("the store has stopped")]
    Closed,
}

#[derive(Debug, Clone)]
enum Item {
    Batch(Applied),
    /// A snapshot replaced the state.
    Everything,
}

/// The sending side, shared by the state machine and the store. It ends for all when it is closed.
#[derive(Debug, Clone)]
pub(crate) struct Feed {
    sender: Arc<Mutex<Option<broadcast::Sender<Item>>>>,
}

impl Feed {
    pub(crate) fn new() -> Self {
        Self { sender: Arc::new(Mutex::new(Some(broadcast::Sender::new(FEED_BATCHES)))) }
    }

    pub(crate) fn batch(&self, applied: Applied) {
        self.send(Item::Batch(applied));
    }

    pub(crate) fn everything(&self) {
        self.send(Item::Everything);
    }

    /// Watchers see [`WatchError::Closed`] after what is still in the feed.
    pub(crate) fn close(&self) {
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn watch(&self) -> Watch {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        Watch { receiver: sender.as_ref().map(broadcast::Sender::subscribe) }
    }

    fn send(&self, item: Item) {
        if let Some(sender) = self.sender.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            // An error says that nobody listens.
            let _ = sender.send(item);
        }
    }
}

/// Gets every batch that is applied after it was made.
#[derive(Debug)]
pub struct Watch {
    /// Absent when the store had stopped before the watch began.
    receiver: Option<broadcast::Receiver<Item>>,
}

impl Watch {
    /// Waits for the next batch. Cancel-safe: a batch that was not returned stays in the feed.
    pub async fn recv(&mut self) -> Result<Applied, WatchError> {
        let receiver = self.receiver.as_mut().ok_or(WatchError::Closed)?;
        match receiver.recv().await {
            Ok(Item::Batch(applied)) => Ok(applied),
            Ok(Item::Everything) | Err(RecvError::Lagged(_)) => Err(WatchError::Lagged),
            Err(RecvError::Closed) => Err(WatchError::Closed),
        }
    }

    /// The next batch if it is there already.
    pub fn try_recv(&mut self) -> Option<Result<Applied, WatchError>> {
        let Some(receiver) = self.receiver.as_mut() else { return Some(Err(WatchError::Closed)) };
        match receiver.try_recv() {
            Ok(Item::Batch(applied)) => Some(Ok(applied)),
            Ok(Item::Everything) | Err(TryRecvError::Lagged(_)) => Some(Err(WatchError::Lagged)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Closed) => Some(Err(WatchError::Closed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(index: u64) -> Applied {
        Applied { index, changes: Arc::from([Change::Cluster]) }
    }

    #[test]
    fn a_watcher_that_falls_behind_is_told_and_goes_on() {
        let feed = Feed::new();
        let mut watch = feed.watch();
        for index in 0..FEED_BATCHES as u64 + 10 {
            feed.batch(batch(index));
        }
        assert_eq!(watch.try_recv().unwrap().unwrap_err(), WatchError::Lagged);
        let next = watch.try_recv().unwrap().unwrap();
        assert_eq!(next.index, 10, "the oldest that is still there");
    }

    #[test]
    fn a_replaced_state_means_look_at_everything() {
        let feed = Feed::new();
        let mut watch = feed.watch();
        feed.everything();
        assert_eq!(watch.try_recv().unwrap().unwrap_err(), WatchError::Lagged);
        assert!(watch.try_recv().is_none());
    }

    #[test]
    fn a_closed_feed_ends_watches_made_before_and_after() {
        let feed = Feed::new();
        let mut before = feed.watch();
        feed.batch(batch(7));
        feed.close();
        assert_eq!(before.try_recv().unwrap().unwrap().index, 7);
        assert_eq!(before.try_recv().unwrap().unwrap_err(), WatchError::Closed);
        assert_eq!(feed.watch().try_recv().unwrap().unwrap_err(), WatchError::Closed);
    }
}
