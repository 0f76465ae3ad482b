//! Manifests: pulled, pushed, taken away.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, IF_NONE_MATCH, LOCATION,
};
use http::{Method, Response, StatusCode};

use super::answer::{self, Body, header, plain, set};
use super::backend::Backend;
use super::blobs::matches;
use super::catalogue::Known;
use super::check::{self, Pushed};
use super::refusal::{Code, Refusal};
use super::route::Named;
use super::spool::blocking;
use super::uploads::lease_name;
use super::{CONTENT_DIGEST, Registry, now_ms};
use crate::digest::Digest;
use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, Document, MANIFEST_MAX_BYTES, OCI_INDEX, OCI_MANIFEST};
use crate::store::Hold;

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// The beginning of the names of holds for manifests.
pub(super) const MANIFESTS: &str = "manifest-";

/// The name of the hold that keeps a manifest and what it needs.
pub(super) fn hold_name(digest: &Digest) -> String {
    format!("{MANIFESTS}{}-{}", digest.algorithm().as_str(), digest.hex())
}

impl<B: Backend> Registry<B> {
    /// `GET` and `HEAD` of a manifest.
    pub(super) async fn get_manifest(
        &self,
        name: &str,
        named: &Named,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Refusal> {
        let (mut digest, mut known) = self.find(name, named).await?;
        if !accepts(headers, &known.media_type) {
            // Clients from before indexes want the image for the registry's own platform.
            let chosen = match named {
                Named::Tag(_) if is_index(&known.media_type) => self.choose(name, &digest, headers).await?,
                _ => None,
            };
            (digest, known) = chosen.ok_or_else(|| {
                let message =
                    format!("the manifest is of type `{}`, which is not in Accept", known.media_type);
                Refusal::missing(Code::ManifestUnknown, message)
            })?;
        }
        let tag = format!("\"{digest}\"");
        if header(headers, IF_NONE_MATCH).is_some_and(|condition| matches(condition, &tag)) {
            let mut response = plain(StatusCode::NOT_MODIFIED);
            set(&mut response, ETAG, tag);
            return Ok(response);
        }
        let body = if *method == Method::HEAD {
            answer::empty()
        } else {
            answer::full(self.content(&digest).await?)
        };
        let mut response = Response::new(body);
        set(&mut response, CONTENT_LENGTH, known.size.to_string());
        set(&mut response, CONTENT_TYPE, &known.media_type);
        set(&mut response, CONTENT_DIGEST, digest.to_string());
        set(&mut response, ETAG, tag);
        Ok(response)
    }

    /// `PUT` of a manifest.
    pub(super) async fn put_manifest<R>(
        &self,
        name: &str,
        named: &Named,
        headers: &HeaderMap,
        body: &mut R,
    ) -> Result<Response<Body>, Refusal>
    where
        R: hyper::body::Body<Data = Bytes> + Unpin,
        R::Error: std::fmt::Display,
    {
        let limit = usize::try_from(MANIFEST_MAX_BYTES).unwrap_or(usize::MAX);
        let bytes = answer::collect(headers, body, limit, self.options.idle_timeout).await?;
        let pushed = check::read(&bytes, header(headers, CONTENT_TYPE))?;
        let (digest, tag) = match named {
            Named::Tag(tag) => (Digest::of(&bytes), Some(tag.as_str())),
            Named::Digest(wanted) => {
                let actual = Digest::of_with(wanted.algorithm(), &bytes);
                if actual != *wanted {
                    let message = format!("the manifest has digest {actual}, not {wanted}");
                    return Err(Refusal::bad(Code::DigestInvalid, message));
                }
                (actual, None)
            }
        };
        // All that it needs stays while it is looked at, and until the hold keeps it.
        let known = pushed.known(bytes.len() as u64);
        let pin = self.store.pin(known.needs.iter().cloned().chain([digest.clone()]));
        self.check_needs(name, &pushed).await?;
        self.keep(&digest, bytes).await?;
        self.hold_manifest(&digest, &known).await?;
        self.catalogue.put(name, &digest, &known, tag).await?;
        drop(pin);
        self.backend.held_changed();
        self.end_leases(name, &known).await?;
        let mut response = plain(StatusCode::CREATED);
        set(&mut response, LOCATION, format!("/v2/{name}/manifests/{digest}"));
        set(&mut response, CONTENT_DIGEST, digest.to_string());
        if let Some(subject) = &pushed.subject {
            set(&mut response, SUBJECT, subject.to_string());
        }
        Ok(response)
    }

    /// `DELETE` of a manifest, or of a tag.
    pub(super) async fn delete_manifest(&self, name: &str, named: &Named) -> Result<Response<Body>, Refusal> {
        let is_gone = match named {
            Named::Tag(tag) => self.catalogue.remove_tag(name, tag).await?,
            Named::Digest(digest) => self.remove_manifest(name, digest).await?,
        };
        if is_gone { Ok(plain(StatusCode::ACCEPTED)) } else { Err(self.no_manifest(name, named).await) }
    }

    /// Takes a manifest away. What it named and no other manifest of the repository does stays the repository's
    /// until the next look at the holds, so that clients can delete it themselves.
    async fn remove_manifest(&self, name: &str, digest: &Digest) -> Result<bool, Refusal> {
        let Some(known) = self.catalogue.manifest(name, digest).await? else { return Ok(false) };
        let pin = self.store.pin(known.needs.iter().cloned());
        if !self.catalogue.remove(name, digest).await? {
            return Ok(false);
        }
        for blob in known.needs.iter().filter(|blob| self.store.has(blob)) {
            if self.catalogue.reasons(name, blob).await?.is_empty() {
                self.lease(name, blob, 0).await?;
            }
        }
        if !self.catalogue.is_needed(digest).await? {
            self.give_up(digest).await?;
        }
        drop(pin);
        Ok(true)
    }

    /// The manifest that a tag or digest means.
    pub(super) async fn find(&self, name: &str, named: &Named) -> Result<(Digest, Known), Refusal> {
        let digest = match named {
            Named::Digest(digest) => Some(digest.clone()),
            Named::Tag(tag) => self.catalogue.tagged(name, tag).await?,
        };
        if let Some(digest) = digest
            && let Some(known) = self.catalogue.manifest(name, &digest).await?
        {
            return Ok((digest, known));
        }
        Err(self.no_manifest(name, named).await)
    }

    async fn no_manifest(&self, name: &str, named: &Named) -> Refusal {
        let wanted = match named {
            Named::Tag(tag) => format!("tag `{tag}`"),
            Named::Digest(digest) => format!("manifest {digest}"),
        };
        match self.catalogue.has_repository(name).await {
            Ok(true) => {
                Refusal::missing(Code::ManifestUnknown, format!("repository `{name}` has no {wanted}"))
            }
            Ok(false) => Refusal::missing(Code::NameUnknown, format!("there is no repository `{name}`")),
            Err(error) => error.into(),
        }
    }

    /// A manifest's bytes, from here or from a node that has it.
    pub(super) async fn content(&self, digest: &Digest) -> Result<Vec<u8>, Refusal> {
        if self.obtain(digest, std::slice::from_ref(digest)).await?.is_none() {
            return Err(Refusal::unavailable(format!(
                "no node that has manifest {digest} can be reached: try again later, or push it again"
            )));
        }
        let (store, digest) = (self.store.clone(), digest.clone());
        blocking(move || Ok(store.read(&digest, MANIFEST_MAX_BYTES)?)).await
    }

    /// The manifest in an index that is for this node's platform, if the client accepts it.
    async fn choose(
        &self,
        name: &str,
        index: &Digest,
        headers: &HeaderMap,
    ) -> Result<Option<(Digest, Known)>, Refusal> {
        let bytes = self.content(index).await?;
        let what = format!("index {index}");
        let Ok(Document::Index(listed)) = Document::parse(&what, &bytes, None) else { return Ok(None) };
        let Ok(entry) = self.store.platform().choose(&what, &listed) else { return Ok(None) };
        let known = self.catalogue.manifest(name, &entry.digest).await?;
        let accepted = known.filter(|known| accepts(headers, &known.media_type));
        Ok(accepted.map(|known| (entry.digest.clone(), known)))
    }

    /// Every blob and manifest that is named has to be in the repository, and comes here if it isn't.
    async fn check_needs(&self, name: &str, pushed: &Pushed) -> Result<(), Refusal> {
        let unknown = |digest: &Digest| {
            let message = format!("the manifest names {digest}, which repository `{name}` does not have");
            Refusal::missing(Code::ManifestBlobUnknown, message)
                .detail(serde_json::json!({ "digest": digest.to_string() }))
        };
        for (digest, size) in &pushed.blobs {
            let reasons = self.blob_in(name, digest).await?.ok_or_else(|| unknown(digest))?;
            let blob = self.obtain(digest, &reasons).await?.ok_or_else(|| unknown(digest))?;
            check_size(digest, *size, blob.size_bytes)?;
        }
        for (digest, size) in &pushed.manifests {
            let known = self.catalogue.manifest(name, digest).await?.ok_or_else(|| unknown(digest))?;
            check_size(digest, *size, known.size)?;
            self.bring(name, digest, known).await?;
        }
        Ok(())
    }

    /// Has a manifest of the repository here with all that it names, and all that is named by manifests in it:
    /// held as if it had been pushed here.
    pub(super) fn bring<'a>(
        &'a self,
        name: &'a str,
        digest: &'a Digest,
        known: Known,
    ) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(async move {
            if self.store.is_held(&hold_name(digest)) {
                return Ok(());
            }
            let pin = self.store.pin(known.needs.iter().cloned().chain([digest.clone()]));
            for blob in known.needs.iter().chain([digest]) {
                if self.obtain(blob, std::slice::from_ref(digest)).await?.is_none() {
                    return Err(Refusal::unavailable(format!(
                        "no node that has {blob} can be reached: try again later, or push it again"
                    )));
                }
                if let Some(inner) = self.catalogue.manifest(name, blob).await?.filter(|_| blob != digest) {
                    self.bring(name, blob, inner).await?;
                }
            }
            self.hold_manifest(digest, &known).await?;
            drop(pin);
            self.backend.held_changed();
            Ok(())
        })
    }

    /// Puts a manifest into the store.
    async fn keep(&self, digest: &Digest, bytes: Vec<u8>) -> Result<(), Refusal> {
        let (store, digest) = (self.store.clone(), digest.clone());
        blocking(move || {
            if !store.has(&digest) {
                let mut writer = store.ingest(&digest, Some(bytes.len() as u64))?;
                writer.write(&bytes)?;
                writer.commit()?;
            }
            Ok(())
        })
        .await
    }

    /// Holds a manifest, which is here, with all that it needs.
    pub(super) async fn hold_manifest(&self, digest: &Digest, known: &Known) -> Result<(), Refusal> {
        let digests = known.needs.iter().cloned().chain([digest.clone()]).collect();
        let hold = Hold { digests, label: known.media_type.clone(), since_ms: now_ms() };
        let (store, name) = (self.store.clone(), hold_name(digest));
        blocking(move || Ok(store.hold(&name, hold)?)).await
    }

    /// What a manifest names needs no lease of its own any more.
    async fn end_leases(&self, name: &str, known: &Known) -> Result<(), Refusal> {
        let leases: Vec<String> = known.needs.iter().map(|digest| lease_name(name, digest)).collect();
        let store = self.store.clone();
        blocking(move || {
            for lease in leases.iter().filter(|lease| store.is_held(lease)) {
                store.release(lease)?;
            }
            Ok(())
        })
        .await
    }

    /// Holds a manifest no longer. What only it needed goes with the next sweep.
    pub(super) async fn give_up(&self, digest: &Digest) -> Result<bool, Refusal> {
        let (store, name) = (self.store.clone(), hold_name(digest));
        let was_held = blocking(move || Ok(store.release(&name)?)).await?;
        if was_held {
            self.backend.held_changed();
        }
        Ok(was_held)
    }
}

fn check_size(digest: &Digest, said: u64, actual: u64) -> Result<(), Refusal> {
    if said == actual {
        return Ok(());
    }
    let message = format!("the manifest says that {digest} has {said} bytes, and it has {actual}");
    Err(Refusal::bad(Code::ManifestInvalid, message))
}

fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

/// Whether the client takes such a manifest. One that names no kind of manifest at all takes any.
fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    let mut names_a_manifest = false;
    for value in headers.get_all(ACCEPT) {
        let Ok(text) = value.to_str() else { continue };
        for kind in text.split(',').map(|kind| kind.split(';').next().unwrap_or("").trim()) {
            if kind == media_type || matches!(kind, "*/*" | "application/*") {
                return true;
            }
            names_a_manifest |= matches!(kind, OCI_INDEX | DOCKER_LIST | OCI_MANIFEST | DOCKER_MANIFEST);
        }
    }
    !names_a_manifest
}
