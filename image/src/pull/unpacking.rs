//! Layers are unpacked while they download.
//!
//! A download does not wait for its layer, and a layer whose blob was given up half-way (another source had to begin
//! anew) is unpacked once more when the blob is whole.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::Descriptor;
use crate::store::{BlobWriter, Interest, Store};

/// More at once only make the disk seek.
const PARALLEL: usize = 4;

/// What unpacks the layers of one pull; when it is dropped, what was begun is given up.
pub(super) struct Unpacking {
    store: Store,
    places: Arc<Semaphore>,
    interest: Interest,
}

/// A layer that is being unpacked.
pub(super) struct Job {
    layer: Descriptor,
    diff_id: Digest,
    /// Whether it came to its end; `None` when nothing was begun.
    begun: Option<JoinHandle<Result<bool>>>,
}

impl Job {
    /// The digest of its blob.
    pub(super) fn layer(&self) -> &Digest {
        &self.layer.digest
    }
}

impl Unpacking {
    pub(super) fn new(store: &Store) -> Unpacking {
        let (places, interest) = (Arc::new(Semaphore::new(PARALLEL)), Interest::default());
        Unpacking { store: store.clone(), places, interest }
    }

    /// For a layer whose blob is here already.
    pub(super) fn later(layer: &Descriptor, diff_id: &Digest) -> Job {
        Job { layer: layer.clone(), diff_id: diff_id.clone(), begun: None }
    }

    /// Begins to unpack what `writer` is about to take.
    pub(super) fn begin(&self, writer: &mut BlobWriter, layer: &Descriptor, diff_id: &Digest) -> Result<Job> {
        let follower = writer.follow(&self.interest)?;
        let (store, places) = (self.store.clone(), Arc::clone(&self.places));
        let (digest, wanted) = (layer.digest.clone(), diff_id.clone());
        // Ends with the blob: whole, or lost with its writer.
        let begun = tokio::spawn(async move {
            let _place = places.acquire_owned().await;
            let unpacking =
                tokio::task::spawn_blocking(move || store.unpack_while_arriving(&digest, follower, &wanted));
            unpacking.await.unwrap_or_else(|_| Err(interrupted()))
        });
        Ok(Job { layer: layer.clone(), diff_id: diff_id.clone(), begun: Some(begun) })
    }

    /// Waits until the layer is unpacked. Its blob must be here by now.
    pub(super) async fn finish(&self, job: Job) -> Result<()> {
        if let Some(begun) = job.begun
            && begun.await.unwrap_or_else(|_| Err(interrupted()))?
        {
            return Ok(());
        }
        let place = Arc::clone(&self.places).acquire_owned().await;
        let store = self.store.clone();
        let unpacking = tokio::task::spawn_blocking(move || {
            // Until the thread ends, whoever waits for it.
            let _place = place;
            store.unpack(&job.layer, &job.diff_id)
        });
        unpacking.await.unwrap_or_else(|_| Err(interrupted()))
    }

    /// Gives up what was begun, and waits until nothing of it is left.
    pub(super) async fn give_up(self) {
        let Unpacking { places, interest, .. } = self;
        drop(interest);
        // Who holds a place is still at work.
        let _all = places.acquire_many(PARALLEL as u32).await;
    }
}

fn interrupted() -> Error {
    Error::Interrupted("a layer".to_owned())
}
