//! Forgets connections of what is gone, in a thread of its own: the kernel looks through its table of all connections for
//! it, ten milliseconds where that is of the usual size, in which no other change and no container should have to wait. What is asked
//! for during one look is put together and takes one look more, however much it is.
//!
//! ```text
//!   engine ──ask──▶ waiting ──all of it──▶ under way ──a look at the table──▶ forgotten ──▶ those who wait are told
//!                      ▲                                      │
//!                      └───────failed: after a pause──────────┘
//! ```
//!
//! It is asked after the rules have changed, so that no packet brings back what was forgotten. Three wait until it is done:
//! who gives an address to a container and who leads traffic to an endpoint or a node that is back, because what is left of the
//! address's past would be the new owner's, or its new connections would go with the old ([`Forgetter::wait_for`]); and who
//! ends the program behind an endpoint that left, because a UDP client may be talking to it until then
//! ([`crate::Fabric::forgotten`]).

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::Reply;
use crate::error::{self, Error};
use crate::netlink::conntrack::{Kind, Ranges, is_single};

/// What failed is tried again after this time, and then ever more rarely; at once when there is something new or somebody
/// waits.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MOST: Duration = Duration::from_secs(60);

/// The thread. Dropping this tries what waits once more and ends it.
#[derive(Debug)]
pub(super) struct Forgetter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Batch,
    under_way: Batch,
    /// Why the last look failed.
    failure: Option<Arc<Error>>,
    failures: u64,
    /// The pause after a failure ends now.
    hurry: bool,
    closed: bool,
    /// The thread is no more.
    ended: bool,
}

/// What one look at the table is for.
#[derive(Debug, Default)]
struct Batch {
    ranges: Ranges,
    replies: Vec<Reply<()>>,
}

impl Batch {
    /// A range that is in both is forgotten with all that either wants.
    fn add(&mut self, ranges: impl IntoIterator<Item = (IpNet, Kind)>) {
        for (range, kind) in ranges {
            let known = self.ranges.entry(range).or_insert(kind);
            *known = kind.max(*known);
        }
    }

    fn meets(&self, wanted: &[IpNet]) -> bool {
        let wide: Vec<&IpNet> = self.ranges.keys().filter(|range| !is_single(range)).collect();
        wanted.iter().any(|one| {
            let overlaps = |range: &IpNet| range.contains(one) || one.contains(range);
            self.ranges.contains_key(one)
                || wide.iter().any(|range| overlaps(range))
                || (!is_single(one) && self.ranges.keys().any(overlaps))
        })
    }
}

impl Forgetter {
    /// Starts the thread. `forget` takes a look at the table.
    pub(super) fn start(
        forget: impl FnMut(&Ranges) -> Result<(), Error> + Send + 'static,
    ) -> Result<Forgetter, Error> {
        let shared = Arc::new(Shared::default());
        let work = End(Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("rorqual-forget".to_owned())
            .spawn(move || work.0.run(forget))
            .map_err(|source| Error::Namespace {
                operation: "start the thread that forgets connections".to_owned(),
                source,
            })?;
        Ok(Forgetter { shared, thread: Some(thread) })
    }

    /// Has connections that are answered from these ranges forgotten.
    pub(super) fn ask(&self, ranges: impl IntoIterator<Item = (IpNet, Kind)>) {
        let mut batch = Batch::default();
        batch.add(ranges);
        if batch.ranges.is_empty() {
            return;
        }
        let mut state = self.shared.lock();
        state.waiting.add(batch.ranges);
        state.hurry = true;
        self.shared.changed.notify_all();
    }

    /// Answers as soon as all is forgotten that was asked for until now.
    pub(super) fn tell(&self, reply: Reply<()>) {
        let mut state = self.shared.lock();
        if state.ended {
            // A reply that is dropped says so.
        } else if !state.waiting.ranges.is_empty() {
            // What is under way comes before it, or once more with it.
            state.waiting.replies.push(reply);
        } else if !state.under_way.ranges.is_empty() {
            state.under_way.replies.push(reply);
        } else {
            // Who does not wait any more needs no answer.
            drop(reply.send(Ok(())));
        }
    }

    /// Whether nothing is to be forgotten.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.shared.lock();
        state.waiting.ranges.is_empty() && state.under_way.ranges.is_empty()
    }

    /// Waits until nothing of these ranges is left to be forgotten, or a look has failed.
    pub(super) fn wait_for(&self, wanted: &[IpNet]) -> Result<(), Error> {
        let mut state = self.shared.lock();
        let failures = state.failures;
        while state.waiting.meets(wanted) || state.under_way.meets(wanted) {
            if state.ended {
                return Err(Error::Stopped);
            }
            if state.failures != failures {
                return state.outcome();
            }
            state.hurry = true;
            self.shared.changed.notify_all();
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Why something could not be forgotten, as long as that is so.
    pub(super) fn problem(&self) -> String {
        self.shared.lock().outcome().err().as_ref().map(error::chain).unwrap_or_default()
    }

    /// Ends the thread, with what waits done if that can be.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that forgets connections ended in a panic");
        }
        self.shared.lock().outcome()
    }
}

impl Drop for Forgetter {
    fn drop(&mut self) {
        // A failure is in the log already.
        drop(self.finish());
    }
}

impl State {
    fn outcome(&self) -> Result<(), Error> {
        self.failure.as_ref().map_or(Ok(()), |source| Err(Error::Forget { source: Arc::clone(source) }))
    }
}

/// However the thread ends, nobody waits for it any more.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ended = true;
        state.waiting.replies.clear();
        state.under_way.replies.clear();
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut forget: impl FnMut(&Ranges) -> Result<(), Error>) {
        let mut pause = Duration::ZERO;
        while let Some(ranges) = self.next(pause) {
            let outcome = forget(&ranges);
            let is_closed = self.note(outcome.map_err(Arc::new), &mut pause);
            if is_closed && !pause.is_zero() {
                return;
            }
        }
    }

    /// What is to be forgotten next; nothing comes once this is closed.
    fn next(&self, pause: Duration) -> Option<Ranges> {
        let due = Instant::now() + pause;
        let mut state = self.lock();
        loop {
            let left = due.saturating_duration_since(Instant::now());
            let any = !state.waiting.ranges.is_empty();
            if any && (left.is_zero() || state.hurry || state.closed) {
                state.hurry = false;
                state.under_way = std::mem::take(&mut state.waiting);
                return Some(state.under_way.ranges.clone());
            }
            if state.closed {
                return None;
            }
            state = if any {
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
            } else {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
        }
    }

    /// Takes note of what became of what was under way, and of the pause that follows. Says whether this is closed.
    fn note(&self, outcome: Result<(), Arc<Error>>, pause: &mut Duration) -> bool {
        let mut state = self.lock();
        let done = std::mem::take(&mut state.under_way);
        match outcome {
            Ok(()) => {
                *pause = Duration::ZERO;
                state.failure = None;
                for reply in done.replies {
                    // Who does not wait any more needs no answer.
                    drop(reply.send(Ok(())));
                }
            }
            Err(error) => {
                *pause = if pause.is_zero() { PAUSE } else { (*pause * 2).min(PAUSE_MOST) };
                tracing::warn!(error = %error::chain(&error), "connections to what is gone are not forgotten; trying again");
                // Whoever was in a hurry has heard of it, unless it came meanwhile.
                state.hurry &= !state.waiting.ranges.is_empty();
                state.waiting.add(done.ranges);
                state.waiting.replies.extend(done.replies);
                state.failure = Some(error);
                state.failures += 1;
            }
        }
        self.changed.notify_all();
        state.closed
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};

    use nix::sched::{CloneFlags, unshare};
    use tokio::sync::oneshot;

    use super::*;
    use crate::netlink::{Netlink, conntrack};

    fn range(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// One that tells what each look is for, and goes on with the outcome that it is given.
    fn gated() -> (Forgetter, Receiver<Ranges>, Sender<Result<(), Error>>) {
        let (begins, begun) = channel();
        let (outcomes, outcome) = channel();
        let forgetter = Forgetter::start(move |ranges| {
            begins.send(ranges.clone()).unwrap();
            outcome.recv().unwrap()
        });
        (forgetter.unwrap(), begun, outcomes)
    }

    fn asked(forgetter: &Forgetter) -> oneshot::Receiver<Result<(), Error>> {
        let (reply, answer) = oneshot::channel();
        forgetter.tell(reply);
        answer
    }

    #[test]
    fn what_waits_is_merged_and_the_stronger_wins() {
        let mut batch = Batch::default();
        batch.add([(range("10.0.0.1/32"), Kind::Datagrams), (range("10.0.0.2/32"), Kind::All)]);
        batch.add([(range("10.0.0.2/32"), Kind::Datagrams), (range("10.0.0.1/32"), Kind::All)]);
        batch.add([(range("10.0.1.0/26"), Kind::Datagrams)]);
        let merged =
            [("10.0.0.1/32", Kind::All), ("10.0.0.2/32", Kind::All), ("10.0.1.0/26", Kind::Datagrams)];
        assert_eq!(batch.ranges, merged.map(|(text, kind)| (range(text), kind)).into());
        for (wanted, meets) in [
            ("10.0.0.1/32", true),
            ("10.0.0.3/32", false),
            ("10.0.1.9/32", true),
            ("10.0.0.0/30", true),
            ("fd00::1/128", false),
        ] {
            assert_eq!(batch.meets(&[range(wanted)]), meets, "{wanted}");
        }
    }

    #[test]
    fn what_is_asked_for_during_a_look_takes_one_look_more_and_is_told_after_it() {
        let (mut forgetter, begun, outcomes) = gated();
        let single = |n: u8| (IpNet::V4(Ipv4Addr::new(10, 0, 0, n).into()), Kind::Datagrams);
        forgetter.ask([single(0)]);
        assert_eq!(begun.recv().unwrap().len(), 1);
        let mut first = asked(&forgetter);
        (1..=100).for_each(|n| forgetter.ask([single(n)]));
        let mut second = asked(&forgetter);
        assert!(first.try_recv().is_err() && second.try_recv().is_err());
        outcomes.send(Ok(())).unwrap();
        assert_eq!(begun.recv().unwrap(), (1..=100).map(single).collect());
        assert!(first.blocking_recv().unwrap().is_ok() && second.try_recv().is_err());
        outcomes.send(Ok(())).unwrap();
        assert!(second.blocking_recv().unwrap().is_ok());
        assert!(asked(&forgetter).blocking_recv().unwrap().is_ok(), "nothing is left");
        forgetter.finish().unwrap();
        assert!(begun.try_recv().is_err(), "two looks were enough");
    }

    #[test]
    fn who_uses_an_address_again_waits_and_nobody_else() {
        let (forgetter, begun, outcomes) = gated();
        forgetter.ask([(range("10.0.0.0/26"), Kind::All)]);
        begun.recv().unwrap();
        forgetter.wait_for(&[range("10.0.0.64/32")]).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                forgetter.wait_for(&[range("10.0.0.9/32")]).unwrap();
                done.load(Ordering::Acquire)
            });
            // Until it waits, or does not.
            while !waiter.is_finished() && !forgetter.shared.lock().hurry {
                std::thread::yield_now();
            }
            done.store(true, Ordering::Release);
            outcomes.send(Ok(())).unwrap();
            assert!(waiter.join().unwrap());
        });
    }

    #[test]
    fn the_end_loses_nothing_that_waits() {
        let (mut forgetter, begun, outcomes) = gated();
        forgetter.ask([(range("10.0.0.1/32"), Kind::All)]);
        begun.recv().unwrap();
        forgetter.ask([(range("10.0.0.2/32"), Kind::All)]);
        let shared = Arc::clone(&forgetter.shared);
        let finish = std::thread::spawn(move || forgetter.finish());
        while !shared.lock().closed {
            std::thread::yield_now();
        }
        outcomes.send(Ok(())).unwrap();
        outcomes.send(Err(Error::Busy)).unwrap();
        assert!(matches!(finish.join().unwrap(), Err(Error::Forget { .. })), "it is told what stays");
        assert_eq!(begun.recv().unwrap(), [(range("10.0.0.2/32"), Kind::All)].into());
    }

    /// The kernel refuses and forgets, in a network namespace of its own. Needs root.
    #[test]
    fn what_the_kernel_refuses_is_told_and_tried_again() {
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            crate::nft::run(
                "add table inet t\nadd chain inet t c { type filter hook output priority 0; }\nadd rule inet t c ct state new accept\n",
            )
            .unwrap();
            let server = UdpSocket::bind(("127.0.0.2", 0)).unwrap();
            let client = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
            client.send_to(b"x", server.local_addr().unwrap()).unwrap();
            let known = || conntrack::count(&mut conntrack::open().unwrap(), [127, 0, 0, 2].into()).unwrap();
            assert_eq!(known(), 1);
            let refuse = Arc::new(AtomicBool::new(true));
            let refused = Arc::clone(&refuse);
            // The one knows no connections.
            let (mut wrong, mut right) = (Netlink::route().unwrap(), conntrack::open().unwrap());
            let forgetter = Forgetter::start(move |ranges| {
                conntrack::forget(if refused.load(Ordering::Acquire) { &mut wrong } else { &mut right }, ranges)
            })
            .unwrap();
            forgetter.ask([(range("127.0.0.2/32"), Kind::Datagrams)]);
            let failed = forgetter.wait_for(&[range("127.0.0.2/32")]);
            assert!(matches!(failed, Err(Error::Forget { .. })), "{failed:?}");
            assert!(forgetter.problem().contains("list connections to 127.0.0.2/32"), "{}", forgetter.problem());
            let answer = asked(&forgetter);
            assert_eq!(known(), 1);
            refuse.store(false, Ordering::Release);
            // Nobody asks again.
            answer.blocking_recv().unwrap().unwrap();
            assert_eq!((known(), forgetter.problem().as_str()), (0, ""));
        })
        .join()
        .unwrap();
    }
}
