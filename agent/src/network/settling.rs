//! Tells that what was applied is in effect: a moment after the fabric leads new connections elsewhere, when those of
//! what left are forgotten. A UDP client talks to a replica until then, so whoever ends replicas waits for it here.
//! The next change does not.
//!
//! ```text
//!   applied ──▶ next ──(nothing is waited for)──▶ now ──the fabric has forgotten──▶ told
//! ```

use std::pin::Pin;
use std::sync::Arc;

use rorqual_network::{Error, Fabric};
use tokio::sync::{RwLock, oneshot, watch};

/// Ends when everything is forgotten that was to be when it began.
type Forgotten = Pin<Box<dyn Future<Output = Result<(), Error>> + Send + Sync>>;

/// What to tell.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// The number of the last set that is in effect.
    pub(super) set: u64,
    /// Who waits for it.
    pub(super) replies: Vec<oneshot::Sender<u64>>,
}

impl Settled {
    pub(super) fn tell(self, in_effect: &watch::Sender<u64>) {
        in_effect.send_if_modified(|known| std::mem::replace(known, self.set) != self.set);
        for reply in self.replies {
            // Nobody waits any more: it had to go without.
            let _ = reply.send(self.set);
        }
    }

    /// Both are told at once: a later set has all that an earlier one has.
    fn join(&mut self, mut later: Settled) {
        self.set = later.set;
        self.replies.append(&mut later.replies);
        self.replies.retain(|reply| !reply.is_closed());
    }
}

/// What is to be told.
pub(super) struct Settling {
    /// Begins to wait.
    begin: Box<dyn Fn() -> Forgotten + Send + Sync>,
    now: Option<(Settled, Forgotten)>,
    next: Option<Settled>,
}

impl Settling {
    pub(super) fn new(fabric: Arc<RwLock<Option<Fabric>>>) -> Self {
        Self::after(move || {
            let fabric = fabric.clone();
            Box::pin(async move {
                let forgotten = fabric.read().await.as_ref().ok_or(Error::Stopped)?.forgotten();
                forgotten.await
            })
        })
    }

    fn after(begin: impl Fn() -> Forgotten + Send + Sync + 'static) -> Self {
        Self { begin: Box::new(begin), now: None, next: None }
    }

    /// Whether everything was told.
    pub(super) fn is_idle(&self) -> bool {
        self.now.is_none() && self.next.is_none()
    }

    /// Something is in effect but for what is to be forgotten.
    pub(super) fn add(&mut self, settled: Settled) {
        match &mut self.next {
            Some(next) => next.join(settled),
            None => self.next = Some(settled),
        }
        self.go_on();
    }

    /// What is in effect and can be told now. After an error it is kept until something is added. Cancel-safe: what is
    /// waited for is kept.
    pub(super) async fn settled(&mut self) -> Result<Settled, Error> {
        let Some((_, forgotten)) = &mut self.now else { return std::future::pending().await };
        let outcome = forgotten.await;
        let settled = self.now.take().map(|(settled, _)| settled).unwrap_or_default();
        if let Err(error) = outcome {
            let mut both = settled;
            if let Some(later) = self.next.take() {
                both.join(later);
            }
            self.next = Some(both);
            return Err(error);
        }
        self.go_on();
        Ok(settled)
    }

    fn go_on(&mut self) {
        if self.now.is_none() {
            self.now = self.next.take().map(|next| (next, (self.begin)()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// What ends each wait, in their order.
    type Waits = Arc<Mutex<Vec<oneshot::Sender<Result<(), Error>>>>>;

    /// One whose waits end as the test says.
    fn settling() -> (Settling, Waits) {
        let waits = Waits::default();
        let begun = waits.clone();
        let settling = Settling::after(move || {
            let (end, ended) = oneshot::channel();
            begun.lock().unwrap().push(end);
            Box::pin(async move { ended.await.unwrap() })
        });
        (settling, waits)
    }

    fn set(number: u64) -> (Settled, oneshot::Receiver<u64>) {
        let (reply, answer) = oneshot::channel();
        (Settled { set: number, replies: vec![reply] }, answer)
    }

    #[tokio::test]
    async fn a_set_is_in_effect_when_what_left_with_it_is_forgotten_and_later_ones_wait_together() {
        let (mut settling, waits) = settling();
        let (in_effect, seen) = watch::channel(0);
        let [(first, mut one), (second, mut two), (third, mut three)] = [1, 2, 3].map(set);
        settling.add(first);
        settling.add(second);
        settling.add(third);
        assert_eq!(waits.lock().unwrap().len(), 1, "later ones wait for the first");
        assert!(one.try_recv().is_err() && !settling.is_idle());
        waits.lock().unwrap().remove(0).send(Ok(())).unwrap();
        settling.settled().await.unwrap().tell(&in_effect);
        assert_eq!((*seen.borrow(), one.try_recv()), (1, Ok(1)));
        assert!(two.try_recv().is_err(), "what left with it may not be forgotten");
        waits.lock().unwrap().remove(0).send(Ok(())).unwrap();
        settling.settled().await.unwrap().tell(&in_effect);
        assert_eq!((*seen.borrow(), two.try_recv(), three.try_recv()), (3, Ok(3), Ok(3)));
        assert!(settling.is_idle() && waits.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn after_an_error_nothing_is_in_effect_before_it_is_applied_again() {
        let (mut settling, waits) = settling();
        let (in_effect, seen) = watch::channel(0);
        let [(first, mut one), (second, mut two)] = [1, 2].map(set);
        settling.add(first);
        waits.lock().unwrap().remove(0).send(Err(Error::Stopped)).unwrap();
        assert!(settling.settled().await.is_err());
        assert!(one.try_recv().is_err() && waits.lock().unwrap().is_empty());
        settling.add(second);
        waits.lock().unwrap().remove(0).send(Ok(())).unwrap();
        settling.settled().await.unwrap().tell(&in_effect);
        assert_eq!((*seen.borrow(), one.try_recv(), two.try_recv()), (2, Ok(2), Ok(2)));
    }
}
