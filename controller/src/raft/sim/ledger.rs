//! A machine that remembers whose proposals were applied, in order.

use std::sync::{Arc, Mutex};

use super::super::machine::{Answer, Frozen, Machine, MachineError};

/// Index, proposer and sequence of each proposal that was applied.
pub(super) type Pages = Vec<(u64, u64, u64)>;

#[derive(Clone, Default)]
pub(super) struct Ledger {
    pub(super) pages: Arc<Mutex<Pages>>,
    /// Times that a snapshot took the place of everything.
    pub(super) restored: Arc<Mutex<u32>>,
}

pub(super) fn proposal(proposer: u64, sequence: u64) -> Vec<u8> {
    [proposer.to_be_bytes(), sequence.to_be_bytes()].concat()
}

fn numbers<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut numbers = [0; N];
    for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
        *number = u64::from_be_bytes(bytes.try_into().unwrap());
    }
    numbers
}

impl Machine for Ledger {
    type Outcome = u64;

    fn apply(&mut self, index: u64, data: &[u8]) -> Result<Answer<u64>, MachineError> {
        let [proposer, sequence] = numbers(data);
        self.pages.lock().unwrap().push((index, proposer, sequence));
        Ok(Answer { proposer, sequence, outcome: index })
    }

    fn freeze(&self) -> Frozen {
        let pages = self.pages.lock().unwrap().clone();
        Box::new(move || pages.iter().flat_map(|(a, b, c)| [*a, *b, *c]).flat_map(u64::to_be_bytes).collect())
    }

    fn restore(&mut self, data: &[u8]) -> Result<(), MachineError> {
        let pages = data.chunks_exact(24).map(|page| {
            let [index, proposer, sequence] = numbers(page);
            (index, proposer, sequence)
        });
        *self.pages.lock().unwrap() = pages.collect();
        *self.restored.lock().unwrap() += 1;
        Ok(())
    }
}
