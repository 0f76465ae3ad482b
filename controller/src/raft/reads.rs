//! Barriers: asking a majority whether this member still leads, and at which index (ReadIndex, Raft thesis
//! 6.4). All barriers that wait at the same time share a question.

use std::collections::BTreeMap;

use raft::ReadState;

use super::core::{Core, Transport};
use super::handle::{Refusal, Reply};
use super::machine::Machine;
use crate::storage::LogStore;

/// A question that has no answer after this many ticks is asked again: heartbeats may be lost.
const PATIENCE_TICKS: u64 = 3;

/// Barriers that may wait at the same time.
const WAITING: usize = 1024;

#[derive(Default)]
pub(super) struct Reads {
    /// Not asked yet.
    queued: Vec<Reply<u64>>,
    /// Asked, by round, with the tick of the question.
    asked: BTreeMap<u64, (u64, Vec<Reply<u64>>)>,
    /// Answered, by the index that has to be applied first.
    waiting: BTreeMap<u64, Vec<Reply<u64>>>,
    round: u64,
}

impl Reads {
    pub(super) fn refuse(&mut self, refusal: &Refusal) {
        let asked = std::mem::take(&mut self.asked).into_values().flat_map(|(_, replies)| replies);
        let waiting = std::mem::take(&mut self.waiting).into_values().flatten();
        for reply in self.queued.drain(..).chain(asked).chain(waiting) {
            let _ = reply.send(Err(refusal.clone()));
        }
    }

    /// Puts questions that were not answered back into the queue.
    pub(super) fn ask_again(&mut self, now: u64) {
        let late = |(at, _): &(u64, _)| now.saturating_sub(*at) >= PATIENCE_TICKS;
        while let Some(first) = self.asked.first_entry() {
            if !late(first.get()) {
                break;
            }
            self.queued.extend(first.remove().1);
        }
    }

    /// Something may have to be asked again.
    pub(super) fn are_asked(&self) -> bool {
        !self.asked.is_empty()
    }

    fn len(&self) -> usize {
        self.queued.len()
            + self.asked.values().map(|(_, replies)| replies.len()).sum::<usize>()
            + self.waiting.values().map(Vec::len).sum::<usize>()
    }
}

impl<M: Machine, S: LogStore, T: Transport> Core<M, S, T> {
    pub(super) fn ask_read(&mut self, reply: Reply<u64>) {
        let refusal = if !self.is_leader() {
            Refusal::NotLeader { leader: self.leader() }
        } else if self.reads.len() >= WAITING {
            Refusal::Busy
        } else {
            self.reads.queued.push(reply);
            return;
        };
        let _ = reply.send(Err(refusal));
    }

    /// Asks, once this leader has committed something in its term: Raft drops the question before that.
    pub(super) fn ask_reads(&mut self) {
        if self.reads.queued.is_empty() || !self.is_leader() || !self.node.raft.commit_to_current_term() {
            return;
        }
        self.reads.round += 1;
        let round = self.reads.round;
        let replies = std::mem::take(&mut self.reads.queued);
        self.reads.asked.insert(round, (self.now, replies));
        self.node.read_index(round.to_be_bytes().to_vec());
    }

    pub(super) fn take_read_states(&mut self, states: Vec<ReadState>) {
        for state in states {
            let Ok(round) = state.request_ctx.as_slice().try_into().map(u64::from_be_bytes) else { continue };
            if let Some((_, replies)) = self.reads.asked.remove(&round) {
                self.reads.waiting.entry(state.index).or_default().extend(replies);
            }
        }
        self.answer_reads();
    }

    /// Answers those whose index is applied.
    pub(super) fn answer_reads(&mut self) {
        while let Some(first) = self.reads.waiting.first_entry() {
            if *first.key() > self.applied {
                break;
            }
            let index = *first.key();
            for reply in first.remove() {
                let _ = reply.send(Ok(index));
            }
        }
    }
}
