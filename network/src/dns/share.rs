//! How much of the resolver one client may take: a container whose questions nobody answers, or that keeps connections
//! open, leaves the rest to the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Places, of which there are so many, and for one client at most half of them.
#[derive(Debug)]
pub(super) struct Share {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by: HashMap<IpAddr, usize>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    share: Arc<Share>,
    client: IpAddr,
}

impl Share {
    pub(super) fn new(most: usize) -> Arc<Share> {
        Arc::new(Share { most, taken: Mutex::default() })
    }

    /// `None`: all are taken, or the client has its part.
    pub(super) fn take(self: &Arc<Share>, client: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by.get(&client).copied().unwrap_or_default();
        if taken.all >= self.most || own >= self.most / 2 {
            return None;
        }
        taken.all += 1;
        taken.by.insert(client, own + 1);
        Some(Place { share: Arc::clone(self), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.share.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        match taken.by.get_mut(&self.client) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.by.remove(&self.client)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_gets_half_and_what_is_given_back_can_be_taken_again() {
        let [a, b, c] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let share = Share::new(4);
        let mut first: Vec<Place> = (0..4).filter_map(|_| share.take(a)).collect();
        assert_eq!(first.len(), 2);
        let second: Vec<Place> = (0..4).filter_map(|_| share.take(b)).collect();
        assert_eq!(second.len(), 2);
        assert!(share.take(c).is_none(), "all are taken");
        first.pop();
        assert!(share.take(c).is_some());
        drop((first, second));
        assert!(share.taken.lock().unwrap().by.is_empty(), "who has left is forgotten");
    }
}
