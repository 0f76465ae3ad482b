//! Pushing blobs and manifests (distribution spec, "Push").
//!
//! ```text
//! HEAD ─ there ─► done
//!   └─ POST (mount from another repository) ─ 201 ─► done
//!        └─ PUT, all at once ─► done
//!             ├─ broke: GET how far it is ─► PATCH the rest, PUT ─► done
//!             └─ in vain, since another blob failed: DELETE
//! ```

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, RANGE};
use http::{Method, StatusCode};
use tokio::sync::watch;

use super::auth::encoded;
use super::body::Content;
use super::exchange::{Call, Session, is_transient, pause};
use super::tokens::Scope;
use super::{RegistryClient, RegistryError};
use crate::digest::Digest;
use crate::error::Result;
use crate::reference::Reference;

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// How a blob came to be in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Uploaded {
    /// It was there.
    Present,
    /// The registry took it from another repository of its own.
    Mounted(String),
    /// It was sent.
    Sent,
}

/// A blob to be sent.
pub(crate) struct Outgoing<'a> {
    pub(crate) digest: &'a Digest,
    pub(crate) path: &'a Path,
    pub(crate) size_bytes: u64,
    /// A repository of the same registry that may have it.
    pub(crate) mount_from: Option<&'a str>,
    /// Is told how much was sent.
    pub(crate) observer: Arc<dyn Fn(u64) + Send + Sync>,
    /// Becomes true when the whole is in vain, because another blob could not be sent.
    pub(crate) in_vain: watch::Receiver<bool>,
}

/// How long a registry is asked to take away what came of a blob.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// An error, and how long the registry asks to wait.
type Failed = (RegistryError, Option<Duration>);

fn final_error(error: RegistryError) -> Failed {
    (error, None)
}

/// Where an upload is.
struct Upload {
    location: String,
    sent_bytes: u64,
}

impl RegistryClient {
    /// Has the blob in the reference's repository; `None` if that was given up as being in vain. Then the registry is told
    /// to keep nothing of it.
    pub(crate) async fn upload(
        &self,
        reference: &Reference,
        blob: &Outgoing<'_>,
    ) -> Result<Option<Uploaded>> {
        let what = format!("blob {}", blob.digest);
        let uploaded = async {
            let session = self.home(reference)?;
            let from: Vec<String> = blob.mount_from.iter().map(|from| (*from).to_owned()).collect();
            let scope = Scope::push(reference.repository(), &from);
            let begun = Mutex::new(None);
            let sending =
                Sending { client: self, session: &session, reference, what: &what, scope: &scope, begun };
            let mut in_vain = blob.in_vain.clone();
            tokio::select! {
                sent = sending.blob(blob) => return sent.map(Some),
                Ok(_) = in_vain.wait_for(|in_vain| *in_vain) => {}
            }
            sending.cancel().await;
            Ok(None)
        };
        uploaded.await.map_err(|source| self.error(reference.registry(), &what, source))
    }

    /// Puts a manifest or index under `name`, a tag or its digest.
    pub(crate) async fn put_manifest(
        &self,
        reference: &Reference,
        name: &str,
        (media_type, bytes): (&str, Vec<u8>),
    ) -> Result<()> {
        let what = format!("manifest `{name}` of {}", reference.repository());
        let put = async {
            let session = self.home(reference)?;
            let scope = Scope::push(reference.repository(), &[]);
            let media_type = HeaderValue::from_str(media_type)
                .map_err(|_| RegistryError::Protocol(format!("`{media_type}` is no media type")))?;
            let path = format!("/v2/{}/manifests/{name}", reference.repository());
            let (headers, content) = ([(CONTENT_TYPE, media_type)], Content::Bytes(Bytes::from(bytes)));
            let call = Call {
                method: &Method::PUT,
                path: &path,
                headers: &headers,
                content: Some(&content),
                what: &what,
                scope: &scope,
            };
            session.send(call).await.map(drop)
        };
        put.await.map_err(|source| self.error(reference.registry(), &what, source))
    }
}

struct Sending<'a> {
    client: &'a RegistryClient,
    session: &'a Session,
    reference: &'a Reference,
    what: &'a str,
    scope: &'a Scope,
    /// Where the upload is that the registry has begun.
    begun: Mutex<Option<String>>,
}

impl Sending<'_> {
    fn call<'c>(
        &'c self,
        method: &'c Method,
        path: &'c str,
        headers: &'c [(HeaderName, HeaderValue)],
        content: Option<&'c Content>,
    ) -> Call<'c> {
        Call { method, path, headers, content, what: self.what, scope: self.scope }
    }

    async fn blob(&self, blob: &Outgoing<'_>) -> Result<Uploaded, RegistryError> {
        let path = format!("/v2/{}/blobs/{}", self.reference.repository(), blob.digest);
        match self.session.send(self.call(&Method::HEAD, &path, &[], None)).await {
            Ok(_) => return Ok(Uploaded::Present),
            Err(RegistryError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let mut upload = match self.begin(blob.mount_from.map(|from| (blob.digest, from))).await? {
            Some(upload) => upload,
            None => return Ok(Uploaded::Mounted(blob.mount_from.unwrap_or_default().to_owned())),
        };
        let mut attempt = 0;
        loop {
            let (error, wait) = match self.send_rest(blob, &upload).await {
                Ok(()) => return Ok(Uploaded::Sent),
                Err(failed) => failed,
            };
            let is_out_of_step = matches!(&error, RegistryError::NotFound { .. })
                || matches!(&error, RegistryError::Status { status, .. } if *status == StatusCode::RANGE_NOT_SATISFIABLE);
            attempt += 1;
            if attempt >= self.client.options.attempts || !(is_transient(&error) || is_out_of_step) {
                return Err(error);
            }
            tracing::debug!(what = self.what, attempt, error = %error, "an upload broke; going on");
            tokio::time::sleep(wait.unwrap_or_else(|| pause(&self.client.options, attempt))).await;
            upload = match self.progress(&upload).await {
                Some(upload) => upload,
                None => match self.begin(None).await? {
                    Some(upload) => upload,
                    None => return Ok(Uploaded::Sent),
                },
            };
        }
    }

    /// Begins an upload; `None` when the registry has mounted the blob instead.
    async fn begin(&self, mount: Option<(&Digest, &str)>) -> Result<Option<Upload>, RegistryError> {
        let mut path = format!("/v2/{}/blobs/uploads/", self.reference.repository());
        if let Some((digest, from)) = mount {
            path.push_str(&format!("?mount={}&from={}", encoded(&digest.to_string()), encoded(from)));
        }
        let nothing = Content::Bytes(Bytes::new());
        let answer = self.session.send(self.call(&Method::POST, &path, &[], Some(&nothing))).await?;
        if mount.is_some() && answer.status() == StatusCode::CREATED {
            return Ok(None);
        }
        let location = self.session.location(&answer)?;
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(location.clone());
        Ok(Some(Upload { location, sent_bytes: 0 }))
    }

    /// Gives the upload up. One that the registry keeps all the same expires there.
    async fn cancel(&self) {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(location) = begun else { return };
        let asked = self.session.send(self.call(&Method::DELETE, &location, &[], None));
        match tokio::time::timeout(CANCEL_TIMEOUT, asked).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(what = self.what, %error, "an upload was not given up"),
            Err(_) => tracing::debug!(what = self.what, "an upload was not given up in time"),
        }
    }

    /// How far the registry says that it is; `None` when the upload is gone, or nothing of it was kept.
    async fn progress(&self, upload: &Upload) -> Option<Upload> {
        let answer = self.session.send(self.call(&Method::GET, &upload.location, &[], None)).await.ok()?;
        let location = self.session.location(&answer).unwrap_or_else(|_| upload.location.clone());
        let range = answer.headers().get(RANGE)?.to_str().ok()?;
        let last: u64 = range.rsplit('-').next()?.trim().parse().ok()?;
        // `0-0` is also what some say when they have nothing.
        (last > 0).then(|| Upload { location, sent_bytes: last + 1 })
    }

    /// Sends what is missing and closes the upload.
    async fn send_rest(&self, blob: &Outgoing<'_>, upload: &Upload) -> Result<(), Failed> {
        let content = Content::File {
            path: blob.path.to_owned(),
            offset: upload.sent_bytes,
            length: blob.size_bytes.saturating_sub(upload.sent_bytes),
            observer: Arc::clone(&blob.observer),
        };
        if upload.sent_bytes == 0 {
            return self.close(&upload.location, blob.digest, Some(&content)).await;
        }
        let mut location = upload.location.clone();
        if content.length() > 0 {
            let range = format!("{}-{}", upload.sent_bytes, blob.size_bytes - 1);
            let range = HeaderValue::from_str(&range)
                .map_err(|error| final_error(RegistryError::Http(error.into())))?;
            let headers = [(CONTENT_TYPE, OCTETS), (CONTENT_RANGE, range)];
            let call = self.call(&Method::PATCH, &location, &headers, Some(&content));
            let answer = self.session.try_once(call).await.map_err(final_error)??;
            location = self.session.location(&answer).map_err(final_error)?;
        }
        self.close(&location, blob.digest, None).await
    }

    async fn close(&self, location: &str, digest: &Digest, content: Option<&Content>) -> Result<(), Failed> {
        let separator = if location.contains('?') { '&' } else { '?' };
        let address = format!("{location}{separator}digest={}", encoded(&digest.to_string()));
        let nothing = Content::Bytes(Bytes::new());
        let headers = [(CONTENT_TYPE, OCTETS)];
        let call = self.call(&Method::PUT, &address, &headers, Some(content.unwrap_or(&nothing)));
        // Once: what was sent in vain is known only to the registry.
        self.session.try_once(call).await.map_err(final_error)?.map(drop)
    }
}
