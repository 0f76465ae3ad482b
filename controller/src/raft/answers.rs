//! Answers to heartbeats that can wait until the pump wakes for something else.
//!
//! A leader whose followers have everything learns from such an answer only that its sender lives. That is asked
//! once in an election timeout, and until then the next heartbeat is due, for which the pump wakes anyway.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use raft::eraftpb::{Message, MessageType};

/// Answers that wait; more wake the pump. Between two heartbeats there is one a member.
const WAITING: usize = 64;

/// What the pump and the tasks that receive messages share. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Answers {
    /// The term in which answers can wait; 0 for never.
    idle_term: Arc<AtomicU64>,
    waiting: Arc<Mutex<Vec<Message>>>,
}

impl Answers {
    /// Lets the answers of this term wait, or none. One that is kept by what was said before waits too long by no
    /// more than a heartbeat, which is how late it may be on any network.
    pub(super) fn may_wait(&self, idle_term: Option<u64>) {
        self.idle_term.store(idle_term.unwrap_or_default(), Ordering::Relaxed);
    }

    /// Keeps the message for later, unless it is one for which the pump has to wake.
    pub(super) fn keep(&self, message: Box<Message>) -> Result<(), Box<Message>> {
        let can_wait = message.get_msg_type() == MessageType::MsgHeartbeatResponse
            // A barrier's question comes back with its heartbeat.
            && message.context.is_empty()
            && message.term != 0
            && message.term == self.idle_term.load(Ordering::Relaxed);
        if !can_wait {
            return Err(message);
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= WAITING {
            return Err(message);
        }
        waiting.push(*message);
        Ok(())
    }

    /// Takes what waits, in the order in which it came.
    pub(super) fn take(&self) -> Vec<Message> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(term: u64) -> Box<Message> {
        let mut message = Message { term, from: 2, to: 1, ..Message::default() };
        message.set_msg_type(MessageType::MsgHeartbeatResponse);
        Box::new(message)
    }

    #[test]
    fn only_plain_answers_of_the_idle_term_wait() {
        let answers = Answers::default();
        assert!(answers.keep(answer(3)).is_err(), "nobody has said that they can");
        assert!(answers.keep(answer(0)).is_err());
        answers.may_wait(Some(3));
        assert!(answers.keep(answer(4)).is_err());
        let mut asked = answer(3);
        asked.context = vec![1].into();
        assert!(answers.keep(asked).is_err(), "a barrier waits for it");
        let mut append = answer(3);
        append.set_msg_type(MessageType::MsgAppendResponse);
        assert!(answers.keep(append).is_err());
        assert!(answers.keep(answer(3)).is_ok());
        answers.may_wait(None);
        assert!(answers.keep(answer(3)).is_err());
        assert_eq!(answers.take(), [*answer(3)]);
        assert!(answers.take().is_empty());
    }

    #[test]
    fn a_flood_wakes_the_pump() {
        let answers = Answers::default();
        answers.may_wait(Some(1));
        for _ in 0..WAITING {
            assert!(answers.keep(answer(1)).is_ok());
        }
        assert!(answers.keep(answer(1)).is_err());
    }
}
