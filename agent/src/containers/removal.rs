//! The end of plain containers: taken away when somebody asks for it, or by themselves.

use std::sync::Arc;
use std::time::Duration;

use super::{ContainerError, Containers};
use crate::error::one_line;
use crate::workload::Goal;

/// How many ends of containers that removed themselves are remembered.
const DEPARTED: usize = 64;

/// A container that removes itself gives a client so long to ask for its log.
const LINGER: Duration = Duration::from_secs(1);

/// And those who read it so long to finish.
const READERS: Duration = Duration::from_secs(30);

impl Containers {
    /// Removes a container; one that runs only where `force` is set.
    pub(crate) async fn remove(&self, name: &str, force: bool) -> Result<String, ContainerError> {
        let entry = self.find(name)?;
        let id = entry.record.id.clone();
        if let Some(handle) = entry.handle.as_ref().filter(|_| entry.is_live()) {
            if !force {
                return Err(ContainerError::State(format!(
                    "container {} runs: stop it first (`rctl stop {}`), or remove it with --force",
                    entry.record.name, entry.record.name
                )));
            }
            handle.aim(Goal::Stop, Some(0)).await;
            handle.done().await;
        }
        self.take_away(&id).await?;
        Ok(id)
    }

    pub(super) async fn take_away(&self, id: &str) -> Result<(), ContainerError> {
        let record = match self.lock().entries.get_mut(id) {
            Some(entry) if !entry.leaving => {
                entry.leaving = true;
                Some(entry.record.clone())
            }
            _ => None,
        };
        let Some(record) = record else { return self.until_gone(id).await };
        self.inner.executor.clean(id).await;
        self.give_back(&record).await;
        self.inner.executor.remove_folder(id).await;
        let (store, key) = (self.inner.store.clone(), id.to_owned());
        let forgotten = tokio::task::spawn_blocking(move || {
            store.remove_container(&key)?;
            store.barrier()
        });
        let forgotten = forgotten.await.map_err(|_| ContainerError::Interrupted)?;
        {
            let mut table = self.lock();
            if let Some(entry) = table.entries.remove(id) {
                table.departed.push_back(entry.record);
                if table.departed.len() > DEPARTED {
                    table.departed.pop_front();
                }
            }
        }
        self.note_change();
        Ok(forgotten?)
    }

    /// Waits for one that somebody else takes away.
    async fn until_gone(&self, id: &str) -> Result<(), ContainerError> {
        loop {
            let mut changed = self.inner.changed.subscribe();
            if !self.lock().entries.contains_key(id) {
                return Ok(());
            }
            changed.changed().await.map_err(|_| ContainerError::Interrupted)?;
        }
    }

    /// Ends when the container is gone.
    pub(super) fn leave_by_itself(self, id: String) {
        tokio::spawn(async move {
            tokio::time::sleep(LINGER).await;
            let readers = self.lock().entries.get(&id).map(|entry| entry.readers.clone());
            if let Some(readers) = readers {
                let done = async {
                    // The table and this task hold one each; a reader that goes says so by a change.
                    while Arc::strong_count(&readers) > 2 {
                        let mut changed = self.inner.changed.subscribe();
                        if Arc::strong_count(&readers) <= 2 || changed.changed().await.is_err() {
                            return;
                        }
                    }
                };
                let _ = tokio::time::timeout(READERS, done).await;
            }
            if let Err(error) = self.take_away(&id).await {
                tracing::warn!(container = %id, error = %one_line(&error), "can't remove the container");
            }
        });
    }
}
