//! What Raft applies committed entries to.

/// A replicated state machine: the same entries give the same state on every member.
pub(crate) trait Machine: Send + 'static {
    /// What a proposer learns.
    type Outcome: Send + 'static;

    /// Applies one entry. Reads no clock, and refuses only in its outcome; an error says that this version
    /// can't read the entry, and stops the member before it drifts away from the others.
    fn apply(&mut self, index: u64, data: &[u8]) -> Result<Answer<Self::Outcome>, MachineError>;

    /// The state as of now, to be encoded somewhere else. Cheap.
    fn freeze(&self) -> Frozen;

    /// Replaces the state by an encoded one.
    fn restore(&mut self, data: &[u8]) -> Result<(), MachineError>;
}

/// A state that is held still until it is encoded.
pub(crate) type Frozen = Box<dyn FnOnce() -> Vec<u8> + Send>;

/// What became of an entry, and whose it was.
pub(crate) struct Answer<O> {
    /// The process that proposed it.
    pub(crate) proposer: u64,
    /// Its number there.
    pub(crate) sequence: u64,
    pub(crate) outcome: O,
}

/// Bytes that this version can't read.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub(crate) struct MachineError {
    pub(crate) problem: String,
}
