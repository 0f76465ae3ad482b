//! Blobs that are on their way here, for peers that want them too: what has come is sent on at once, so that a blob
//! passes through several nodes in about the time of one.
//!
//! Nothing of it is verified yet. Whoever gets it verifies it, as with everything that comes from a peer.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::{Inner, Store, lock};
use crate::digest::Digest;

/// How far a blob is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Bytes that can be read.
    pub bytes: u64,
    /// It is complete and what its digest says.
    pub is_whole: bool,
    /// It comes no more, or begins anew: what was read does not count.
    pub is_lost: bool,
}

/// The writer's side.
#[derive(Debug)]
pub(super) struct Coming {
    file: File,
    size_bytes: Option<u64>,
    arrived: watch::Sender<Arrived>,
}

impl Coming {
    pub(super) fn new(file: &File, size_bytes: Option<u64>) -> io::Result<Arc<Coming>> {
        let arrived = watch::Sender::new(Arrived::default());
        Ok(Arc::new(Coming { file: file.try_clone()?, size_bytes, arrived }))
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.arrived.send_modify(|arrived| arrived.bytes = bytes);
    }

    pub(super) fn complete(&self) {
        self.arrived.send_modify(|arrived| arrived.is_whole = true);
    }

    pub(super) fn lose(&self) {
        self.arrived.send_modify(|arrived| arrived.is_lost = !arrived.is_whole);
    }
}

/// A blob that is on its way here, to be read as far as it is.
#[derive(Debug)]
pub struct Along {
    coming: Arc<Coming>,
    arrived: watch::Receiver<Arrived>,
}

impl Along {
    /// Its length, where it is known.
    pub fn size_bytes(&self) -> Option<u64> {
        self.coming.size_bytes
    }

    /// How far it is.
    pub fn arrived(&self) -> Arrived {
        *self.arrived.borrow()
    }

    /// Waits until there are more than `bytes` of it, or there will be none. Cancel-safe.
    pub async fn beyond(&mut self, bytes: u64) -> Arrived {
        let more = self.arrived.wait_for(|now| now.bytes > bytes || now.is_whole || now.is_lost).await;
        // The sender lives in what we hold.
        more.map_or(Arrived { is_lost: true, ..Arrived::default() }, |arrived| *arrived)
    }

    /// Reads what has arrived; waits for the disk.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.coming.file.read_at(buffer, at)
    }
}

impl Inner {
    pub(super) fn note_coming(&self, digest: &Digest, coming: &Arc<Coming>) {
        let mut map = lock(&self.coming);
        map.retain(|_, coming| coming.strong_count() > 0);
        map.insert(digest.clone(), Arc::downgrade(coming));
    }
}

impl Store {
    /// The blob, while it is being written; `None` when nobody does.
    pub fn along(&self, digest: &Digest) -> Option<Along> {
        let coming = lock(&self.inner.coming).get(digest).and_then(Weak::upgrade)?;
        let arrived = coming.arrived.subscribe();
        Some(Along { coming, arrived })
    }
}
