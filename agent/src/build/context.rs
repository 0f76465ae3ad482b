//! The files of a build context, which are the client's: every look at them is a question to it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rorqual_image::build::{Cancel, Entry, EntryKind, Files, Take};
use rorqual_image::{Credentials, Digest, Error};
use rorqual_proto::wire::{self, build_response, context_entry, context_query};
use tokio::sync::mpsc;

use super::Sender;
use crate::images::read_credentials;

/// Answers that wait for who asked; others wait with them, and the client too.
const WAITING: usize = 32;
/// Paths in one question.
const PATHS_MAX: usize = 1000;

/// Who waits for answers, by the question's number.
#[derive(Clone, Default)]
pub(super) struct Answers(Arc<Waiting>);

#[derive(Default)]
struct Waiting {
    next: AtomicU64,
    by_id: Mutex<HashMap<u64, mpsc::Sender<wire::ContextAnswer>>>,
    closed: std::sync::atomic::AtomicBool,
}

impl Answers {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, mpsc::Sender<wire::ContextAnswer>>> {
        self.0.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self) -> (u64, mpsc::Receiver<wire::ContextAnswer>) {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, receiver) = mpsc::channel(WAITING);
        let mut waiting = self.lock();
        if !self.0.closed.load(Ordering::Relaxed) {
            waiting.insert(id, sender);
        }
        (id, receiver)
    }

    /// An answer that nobody waits for any more is dropped.
    pub(super) async fn pass_on(&self, answer: wire::ContextAnswer) {
        let (id, is_last) = (answer.id, answer.last || !answer.error.is_empty());
        let waiting = self.lock().get(&id).cloned();
        if let Some(waiting) = waiting {
            let _ = waiting.send(answer).await;
        }
        if is_last {
            self.lock().remove(&id);
        }
    }

    /// The client is gone: nobody will be answered.
    pub(super) fn close(&self) {
        let mut waiting = self.lock();
        self.0.closed.store(true, Ordering::Relaxed);
        waiting.clear();
    }
}

/// The files of one of the client's contexts.
#[derive(Clone)]
pub(super) struct ClientFiles {
    /// Its name; empty for the build's own.
    context: String,
    sender: Sender,
    answers: Answers,
    cancel: Cancel,
}

impl ClientFiles {
    pub(super) fn new(context: &str, sender: Sender, answers: Answers, cancel: Cancel) -> Self {
        Self { context: context.to_owned(), sender, answers, cancel }
    }

    /// Asks, and hands over each answer until the last one.
    fn ask(
        &self,
        kind: context_query::Kind,
        paths: &[String],
        take: &mut dyn FnMut(wire::ContextAnswer) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for (number, part) in paths.chunks(PATHS_MAX).enumerate() {
            let (id, mut answers) = self.answers.expect();
            let query = wire::ContextQuery {
                id,
                context: self.context.clone(),
                kind: kind.into(),
                paths: part.to_vec(),
            };
            let message = wire::BuildResponse { kind: Some(build_response::Kind::Query(query)) };
            self.sender.blocking_send(Ok(message)).map_err(|_| self.gone())?;
            loop {
                let mut answer = answers.blocking_recv().ok_or_else(|| self.gone())?;
                if !answer.error.is_empty() {
                    let what = if self.context.is_empty() {
                        "the build context".to_owned()
                    } else {
                        format!("the context `{}`", self.context)
                    };
                    return Err(Error::Source { what, reason: answer.error });
                }
                if usize::try_from(answer.index).is_ok_and(|index| index >= part.len()) {
                    return Err(self.wrong());
                }
                let is_last = answer.last;
                answer.index += u32::try_from(number * PATHS_MAX).unwrap_or(u32::MAX);
                take(answer)?;
                if is_last {
                    break;
                }
            }
        }
        Ok(())
    }

    /// What the client keeps for a registry.
    pub(super) fn credentials(&self, registry: &str) -> Result<Option<Credentials>, Error> {
        let mut kept = None;
        self.ask(context_query::Kind::Credentials, &[registry.to_owned()], &mut |answer| {
            kept = kept.take().or(answer.credentials);
            Ok(())
        })?;
        Ok(kept.and_then(read_credentials))
    }

    fn gone(&self) -> Error {
        self.cancel.cancel();
        Error::Source { what: "the build context".to_owned(), reason: "the client has gone away".to_owned() }
    }

    fn wrong(&self) -> Error {
        let reason =
            "rctl has answered what was not asked; rctl and rorquald have to be of one version".to_owned();
        Error::Source { what: "the build context".to_owned(), reason }
    }
}

impl Files for ClientFiles {
    fn list(&self, folders: &[String]) -> Result<Vec<Vec<Entry>>, Error> {
        let mut listed = vec![Vec::new(); folders.len()];
        self.ask(context_query::Kind::List, folders, &mut |answer| {
            let folder = listed.get_mut(answer.index as usize).ok_or_else(|| self.wrong())?;
            for entry in answer.entries {
                folder.push(read_entry(entry).ok_or_else(|| self.wrong())?);
            }
            Ok(())
        })?;
        Ok(listed)
    }

    fn digests(&self, files: &[String]) -> Result<Vec<Digest>, Error> {
        let mut digests = vec![None; files.len()];
        self.ask(context_query::Kind::Digest, files, &mut |answer| {
            if !answer.digest.is_empty() {
                let digest = answer.digest.parse().map_err(|_| self.wrong())?;
                *digests.get_mut(answer.index as usize).ok_or_else(|| self.wrong())? = Some(digest);
            }
            Ok(())
        })?;
        digests.into_iter().map(|digest| digest.ok_or_else(|| self.wrong())).collect()
    }

    fn read(&self, files: &[String], take: Take<'_>) -> Result<(), Error> {
        self.ask(context_query::Kind::Read, files, &mut |answer| {
            if answer.data.is_empty() { Ok(()) } else { take(answer.index as usize, &answer.data) }
        })
    }
}

/// `None` for what no folder holds.
fn read_entry(entry: wire::ContextEntry) -> Option<Entry> {
    let kind = match entry.kind() {
        context_entry::Kind::File => EntryKind::File,
        context_entry::Kind::Folder => EntryKind::Folder,
        context_entry::Kind::Symlink => EntryKind::Symlink,
        context_entry::Kind::Pipe => EntryKind::Pipe,
        context_entry::Kind::Other | context_entry::Kind::Unspecified => EntryKind::Other,
    };
    if matches!(entry.name.as_str(), "" | "." | "..")
        || entry.name.contains(['/', '\0'])
        || entry.target.contains('\0')
    {
        return None;
    }
    Some(Entry {
        name: entry.name,
        kind,
        mode: entry.mode & 0o7777,
        uid: 0,
        gid: 0,
        mtime_s: entry.mtime_s,
        size_bytes: entry.size_bytes,
        target: entry.target,
        is_tentative: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_leads_out_is_refused() {
        let entry = |name: &str| wire::ContextEntry {
            name: name.into(),
            kind: context_entry::Kind::File.into(),
            mode: 0o100_644,
            ..wire::ContextEntry::default()
        };
        for name in ["", ".", "..", "a/b", "/a", "a\0"] {
            assert_eq!(read_entry(entry(name)), None, "{name:?}");
        }
        assert_eq!(read_entry(entry("a")).map(|entry| entry.mode), Some(0o644));
    }
}
