//! The streams of other members that are open here. A member that has none left has hung up: its process ended,
//! or its connection broke. A new stream may be there before the old one's end is known, so they are counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::handle::{Event, Handle};

/// The counts. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Streams {
    open: Arc<Mutex<BTreeMap<u64, usize>>>,
}

/// A stream that is open. Dropped, it is not, and the pump hears of it if it was its member's last.
pub(super) struct OpenStream<O> {
    from: u64,
    streams: Streams,
    pump: Handle<O>,
}

impl Streams {
    pub(super) fn open<O>(&self, from: u64, pump: Handle<O>) -> OpenStream<O> {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner).entry(from).or_default() += 1;
        OpenStream { from, streams: self.clone(), pump }
    }

    /// True if it was the last of its member.
    fn close(&self, from: u64) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let left = open.get(&from).copied().unwrap_or_default().saturating_sub(1);
        if left > 0 {
            open.insert(from, left);
            return false;
        }
        open.remove(&from);
        true
    }
}

impl<O> Drop for OpenStream<O> {
    fn drop(&mut self) {
        if self.streams.close(self.from) {
            self.pump.tell(Event::HungUp(self.from));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};
    use std::time::Duration;

    use super::super::handle::View;
    use super::*;

    fn pump() -> (Handle<()>, Receiver<Event<()>>) {
        let (sender, events) = sync_channel(8);
        (Handle::new(sender, View::new(), 1, Duration::from_secs(1)), events)
    }

    #[test]
    fn a_member_has_hung_up_when_its_last_stream_ends() {
        let (pump, events) = pump();
        let streams = Streams::default();
        let (first, other) = (streams.open(2, pump.clone()), streams.open(3, pump.clone()));
        let second = streams.open(2, pump.clone());
        drop(first);
        assert!(events.try_recv().is_err(), "a newer stream is open");
        drop(second);
        assert!(matches!(events.try_recv(), Ok(Event::HungUp(2))));
        drop(other);
        assert!(matches!(events.try_recv(), Ok(Event::HungUp(3))));
        drop(streams.open(2, pump));
        assert!(matches!(events.try_recv(), Ok(Event::HungUp(2))), "as often as it comes and goes");
    }
}
