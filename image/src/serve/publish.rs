//! Images of the node's store, put into a repository as if they had been pushed here, without their bytes going anywhere.

use futures_util::future::BoxFuture;

use super::Registry;
use super::backend::Backend;
use super::catalogue::Known;
use super::check;
use super::keep::KeepError;
use super::refusal::Refusal;
use super::route::problem_of_name;
use super::spool::blocking;
use crate::digest::Digest;
use crate::manifest::MANIFEST_MAX_BYTES;
use crate::reference;

/// Indexes within indexes.
const DEPTH: usize = 4;

impl<B: Backend> Registry<B> {
    /// An image or an index under a tag. Nothing is written where anything that it names is not on this node.
    pub async fn publish(&self, repository: &str, tag: &str, digest: &Digest) -> Result<(), KeepError> {
        if let Some(problem) = problem_of_name(repository) {
            return Err(KeepError::Refused(problem));
        }
        if !reference::is_tag(tag) {
            return Err(KeepError::Refused(format!("`{tag}` is not a tag")));
        }
        let mut found = Vec::new();
        self.gather(digest, 0, &mut found).await?;
        let needs = found.iter().flat_map(|(digest, known)| known.needs.iter().chain([digest])).cloned();
        let pin = self.store.pin(needs.collect::<Vec<_>>());
        for (one, known) in &found {
            if let Some(missing) = known.needs.iter().find(|digest| !self.store.has(digest)) {
                return Err(not_here(missing));
            }
            self.hold_manifest(one, known).await?;
            self.catalogue.put(repository, one, known, (one == digest).then_some(tag)).await?;
        }
        drop(pin);
        self.backend.held_changed();
        Ok(())
    }

    /// A manifest and those that are in it; what is named comes before what names it.
    fn gather<'a>(
        &'a self,
        digest: &'a Digest,
        depth: usize,
        found: &'a mut Vec<(Digest, Known)>,
    ) -> BoxFuture<'a, Result<(), KeepError>> {
        Box::pin(async move {
            if depth > DEPTH {
                return Err(KeepError::Refused(format!("{digest}: too many indexes within indexes")));
            }
            if found.iter().any(|(known, _)| known == digest) {
                return Ok(());
            }
            if !self.store.has(digest) {
                return Err(not_here(digest));
            }
            let (store, wanted) = (self.store.clone(), digest.clone());
            let bytes = blocking(move || Ok::<_, Refusal>(store.read(&wanted, MANIFEST_MAX_BYTES)?)).await?;
            let pushed = check::read(&bytes, None)?;
            for (inner, _) in &pushed.manifests {
                self.gather(inner, depth + 1, found).await?;
            }
            let known = pushed.known(bytes.len() as u64);
            if let Some(missing) = known.needs.iter().find(|digest| !self.store.has(digest)) {
                return Err(not_here(missing));
            }
            found.push((digest.clone(), known));
            Ok(())
        })
    }
}

fn not_here(digest: &Digest) -> KeepError {
    KeepError::Refused(format!("{digest}, which the image needs, is not on this node"))
}
