//! A record: a small document that somebody keeps in the store, and that nothing is planned by.

/// A record as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its name; what stands before the first `/` says whose it is.
    pub key: String,
    /// The Raft index of its last write; ignored in a write.
    pub version: u64,
    /// Whatever its owner makes of it.
    pub value: Vec<u8>,
}

impl Record {
    /// What it takes, roughly.
    pub fn size_bytes(&self) -> u64 {
        (self.key.len() + self.value.len()) as u64
    }
}
