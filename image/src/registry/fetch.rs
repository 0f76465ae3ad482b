//! Fetching manifests and blobs: from a registry's mirrors in order, and from the registry.

use std::sync::Arc;

use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue, RANGE};
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;

use super::exchange::{Call, Session, is_transient, pause};
use super::tokens::Scope;
use super::{RegistryClient, RegistryError};
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result, one_line};
use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_MAX_BYTES, OCI_INDEX, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::BlobWriter;

/// A manifest as a registry sent it.
#[derive(Clone, Debug)]
pub(crate) struct FetchedManifest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) media_type: Option<String>,
    pub(crate) digest: Digest,
}

impl RegistryClient {
    /// The digest that the reference's tag has now: of an index, if the image has several platforms.
    pub async fn resolve(&self, reference: &Reference) -> Result<Digest> {
        if let Some(digest) = reference.digest() {
            return Ok(digest.clone());
        }
        let what = format!("manifest `{}`", reference.familiar());
        let (what, scope) = (what.as_str(), Scope::pull(reference.repository()));
        let mut failed = None;
        for (place, session) in self.places(reference) {
            let asked = match session {
                Ok(session) => head_manifest(&session, reference, (what, &scope)).await,
                Err(error) => Err(Failure::Registry(error)),
            };
            match asked {
                Ok(digest) => return Ok(digest),
                Err(failure) => failed = Some(self.passed_over(reference, &place, what, failure)),
            }
        }
        Err(failed.unwrap_or_else(|| Error::NeedsRegistry(reference.familiar())))
    }

    /// Fetches a manifest or index by `digest`, or else by the reference's tag.
    pub(crate) async fn manifest(
        &self,
        reference: &Reference,
        digest: Option<&Digest>,
    ) -> Result<FetchedManifest> {
        let what = match digest {
            Some(digest) => format!("manifest {digest} of `{}`", reference.familiar()),
            None => format!("manifest `{}`", reference.familiar()),
        };
        let mut failed = None;
        for (place, session) in self.places(reference) {
            let asked = match session {
                Ok(session) => get_manifest(&session, reference, digest, &what).await,
                Err(error) => Err(Failure::Registry(error)),
            };
            match asked {
                Ok(fetched) => return Ok(fetched),
                Err(failure) => failed = Some(self.passed_over(reference, &place, &what, failure)),
            }
        }
        Err(failed.unwrap_or_else(|| Error::NeedsRegistry(reference.familiar())))
    }

    /// Fetches a blob into `writer`, which knows its digest. A broken transfer goes on where it stopped.
    pub(crate) async fn blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        writer: &mut BlobWriter,
    ) -> Result<()> {
        let what = format!("blob {digest}");
        let endpoints = self.options.endpoints(reference.registry());
        let last = endpoints.len().saturating_sub(1);
        for (at, endpoint) in endpoints.into_iter().enumerate() {
            let mirror = endpoint.name.clone();
            let wrap = |source| self.error(reference.registry(), &what, source);
            let fetched = match self.session(endpoint) {
                Ok(session) => self.blob_from(&session, reference, digest, writer).await,
                Err(error) => Err(Failure::Registry(error)),
            };
            let failed = match fetched {
                // A mirror's word is checked here, since the registry may do better.
                Ok(()) if at == last => return Ok(()),
                Ok(()) => match writer.verify() {
                    Ok(_) => return Ok(()),
                    Err(error) => error,
                },
                Err(Failure::Store(error)) => return Err(error),
                Err(Failure::Registry(error)) if at == last => return Err(wrap(error)),
                Err(Failure::Registry(error)) => wrap(error),
            };
            tracing::debug!(%mirror, %digest, error = %one_line(&failed), "a mirror did not give a blob");
            writer.reset()?;
        }
        Ok(())
    }

    async fn blob_from(
        &self,
        session: &Session,
        reference: &Reference,
        digest: &Digest,
        writer: &mut BlobWriter,
    ) -> Result<(), Failure> {
        let path = format!("/v2/{}/blobs/{digest}", reference.repository());
        let (what, scope) = (format!("blob {digest}"), Scope::pull(reference.repository()));
        let mut attempt = 0;
        loop {
            let broken = match transfer(session, &path, (&what, &scope), writer).await {
                Ok(()) => return Ok(()),
                Err((Failure::Registry(error), true)) => error,
                Err((failure, _)) => return Err(failure),
            };
            attempt += 1;
            if attempt >= self.options.attempts {
                return Err(Failure::Registry(broken));
            }
            tracing::debug!(registry = reference.registry(), %digest, at_bytes = writer.written_bytes(), "a transfer broke; going on");
            tokio::time::sleep(pause(&self.options, attempt)).await;
        }
    }

    /// Where to ask, mirrors first; the error of the last one, which is the registry itself, is the one that counts.
    fn places(&self, reference: &Reference) -> Vec<(String, Result<Arc<Session>, RegistryError>)> {
        let endpoints = self.options.endpoints(reference.registry()).into_iter();
        endpoints.map(|endpoint| (endpoint.name.clone(), self.session(endpoint))).collect()
    }

    fn passed_over(&self, reference: &Reference, place: &str, what: &str, failure: Failure) -> Error {
        let error = match failure {
            Failure::Store(error) => error,
            Failure::Registry(error) => self.error(reference.registry(), what, error),
        };
        tracing::debug!(place, what, error = %one_line(&error), "a registry or mirror did not answer");
        error
    }
}

/// Why something was not fetched.
enum Failure {
    /// The registry's fault.
    Registry(RegistryError),
    /// Something else's: the disk's, or what came is not what it should be.
    Store(Error),
}

async fn head_manifest(
    session: &Session,
    reference: &Reference,
    (what, scope): (&str, &Scope),
) -> Result<Digest, Failure> {
    let (path, headers) = (manifest_path(reference, None), [(ACCEPT, accepted())]);
    let call = Call { method: &Method::HEAD, path: &path, headers: &headers, content: None, what, scope };
    let answer = session.send(call).await.map_err(Failure::Registry)?;
    let named = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
    match named.and_then(|text| text.parse().ok()) {
        Some(digest) => Ok(digest),
        // Old registries don't say it: then the manifest itself does.
        None => get_manifest(session, reference, None, what).await.map(|fetched| fetched.digest),
    }
}

async fn get_manifest(
    session: &Session,
    reference: &Reference,
    digest: Option<&Digest>,
    what: &str,
) -> Result<FetchedManifest, Failure> {
    let (path, scope) = (manifest_path(reference, digest), Scope::pull(reference.repository()));
    let headers = [(ACCEPT, accepted())];
    let call =
        Call { method: &Method::GET, path: &path, headers: &headers, content: None, what, scope: &scope };
    let answer = session.send(call).await.map_err(Failure::Registry)?;
    let header =
        |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let media_type =
        header(CONTENT_TYPE.as_str()).map(|value| value.split(';').next().unwrap_or("").trim().to_owned());
    let claimed: Option<Digest> = header("docker-content-digest").and_then(|text| text.parse().ok());
    let bytes = session.collect(answer, MANIFEST_MAX_BYTES).await.map_err(Failure::Registry)?;
    // By tag, the registry's word is checked against what it sent.
    let expected = digest.cloned().or(claimed);
    let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
    let actual = Digest::of_with(algorithm, &bytes);
    match expected {
        Some(expected) if expected != actual => Err(Failure::Store(Error::DigestMismatch {
            what: format!("{what} from {}", reference.registry()),
            expected,
            actual,
        })),
        _ => Ok(FetchedManifest { bytes, media_type, digest: actual }),
    }
}

/// Fetches what is not there yet; an error comes with whether the rest can be asked for.
async fn transfer(
    session: &Session,
    path: &str,
    (what, scope): (&str, &Scope),
    writer: &mut BlobWriter,
) -> Result<(), (Failure, bool)> {
    let start = writer.written_bytes();
    let range = HeaderValue::from_str(&format!("bytes={start}-"));
    let headers: Vec<_> = range.ok().filter(|_| start > 0).map(|range| (RANGE, range)).into_iter().collect();
    let call = Call { method: &Method::GET, path, headers: &headers, content: None, what, scope };
    let answer = session.send(call).await.map_err(|error| (Failure::Registry(error), false))?;
    let store = |error| (Failure::Store(error), false);
    if start > 0 {
        let range = answer.headers().get(http::header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let goes_on = answer.status() == StatusCode::PARTIAL_CONTENT
            && range.is_some_and(|range| range.starts_with(&format!("bytes {start}-")));
        if !goes_on {
            writer.reset().map_err(store)?;
        }
        if answer.status() == StatusCode::PARTIAL_CONTENT && !goes_on {
            let error = RegistryError::Protocol("a part was sent that was not asked for".to_owned());
            return Err((Failure::Registry(error), false));
        }
    }
    let mut body = answer.into_body();
    let broken = |error: RegistryError| {
        let is_passing = is_transient(&error);
        (Failure::Registry(error), is_passing)
    };
    while let Some(frame) = session.within(body.frame(), "reading the blob").await.map_err(broken)? {
        let frame = frame.map_err(|error| broken(RegistryError::Http(Box::new(error))))?;
        if let Some(bytes) = frame.data_ref() {
            writer.write(bytes).map_err(store)?;
        }
    }
    Ok(())
}

fn manifest_path(reference: &Reference, digest: Option<&Digest>) -> String {
    let name = match digest {
        Some(digest) => digest.to_string(),
        None => reference.tag().unwrap_or("latest").to_owned(),
    };
    format!("/v2/{}/manifests/{name}", reference.repository())
}

fn accepted() -> HeaderValue {
    static ACCEPTED: std::sync::OnceLock<HeaderValue> = std::sync::OnceLock::new();
    ACCEPTED
        .get_or_init(|| {
            let types = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
            HeaderValue::from_str(&types).unwrap_or(HeaderValue::from_static("*/*"))
        })
        .clone()
}
