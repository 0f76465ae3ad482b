//! The registry: the OCI distribution specification, version 1.1, on top of a [`Store`].
//!
//! ```text
//! listen.rs ── connections ──► Registry::answer ─┬─ route.rs      what a path means
//!                                                ├─ access.rs     who asks, and what they may
//!                                                ├─ blobs.rs      pull blobs      ┐
//!                                                ├─ uploads.rs    push blobs      │  catalogue.rs   what belongs
//!                                                │    └ spool.rs  on the disk     ├─► to which repository: records
//!                                                ├─ manifests.rs  and check.rs    │  of a Backend
//!                                                └─ lists.rs      tags, referrers ┘
//! ```
//! Content is the store's: verified by digest before it gets a name, and kept by *holds*, one for each manifest
//! that was pushed here, and one for each blob that no manifest names yet. Which repository has what is in the
//! [`Backend`]'s table, which all nodes of a cluster share; a blob that is not here comes from a node that has it.
//!
//! **Invariants:** a repository's blobs are read by nobody who may not pull from it, however their digests were
//! found out. Who holds a manifest has all that it names. Every queue, body and wait has a limit.

mod access;
mod answer;
mod backend;
mod blobs;
mod catalogue;
mod check;
mod keep;
mod listen;
mod lists;
mod manifests;
mod publish;
mod refusal;
mod route;
mod spool;
mod uploads;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};

pub use self::answer::Body;
pub use self::backend::{Backend, BackendError, Change, Entry, Grant, Right, Rights};
pub use self::keep::{KeepError, Kept, Repository, Swept};
pub use self::listen::{Door, Tls, Trust, listen};

use self::access::{Access, Visitor};
use self::catalogue::Catalogue;
use self::refusal::{Code, Refusal};
use self::route::{Query, Route};
use self::spool::Spool;
use crate::error::Result;
use crate::store::Store;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// What is read of a body that is refused, so that the client gets to read why.
const DRAINED_BYTES: usize = 4 << 20;
/// How long that may take.
const DRAINED_WITHIN: Duration = Duration::from_secs(5);

/// Limits of the registry.
#[derive(Clone, Debug)]
pub struct Options {
    /// Uploads that are under way.
    pub uploads_max: usize,
    /// Requests that are answered at a time.
    pub requests_max: usize,
    /// How long a client may send nothing.
    pub idle_timeout: Duration,
    /// How long an upload is kept that nobody goes on with, and a blob that no manifest names.
    pub upload_life: Duration,
    /// How long a hold is left alone by [`Registry::collect`] although no record names it (yet).
    pub settle: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            uploads_max: 4096,
            requests_max: 256,
            idle_timeout: Duration::from_secs(60),
            upload_life: Duration::from_secs(24 * 3600),
            settle: Duration::from_secs(600),
        }
    }
}

/// At which door a request came, and who is behind it as far as that is known.
#[derive(Clone, Debug)]
pub struct Caller {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Where the door is, for requests that don't say which host they want.
    pub host: String,
    /// May do everything.
    pub is_trusted: bool,
}

/// The registry; clones share it.
pub struct Registry<B> {
    inner: Arc<Inner<B>>,
}

/// What clones share.
pub struct Inner<B> {
    store: Store,
    backend: Arc<B>,
    catalogue: Catalogue<B>,
    spool: Spool,
    access: Access,
    options: Options,
    places: Arc<tokio::sync::Semaphore>,
}

impl<B> Clone for Registry<B> {
    fn clone(&self) -> Self {
        Registry { inner: Arc::clone(&self.inner) }
    }
}

impl<B> std::ops::Deref for Registry<B> {
    type Target = Inner<B>;

    fn deref(&self) -> &Inner<B> {
        &self.inner
    }
}

impl<B: Backend> Registry<B> {
    /// A registry on that store. Reads which uploads an earlier run left: waits for the disk.
    pub fn open(store: Store, backend: B, options: Options) -> Result<Self> {
        let backend = Arc::new(backend);
        let inner = Inner {
            spool: Spool::open(&store, options.uploads_max)?,
            catalogue: Catalogue::new(Arc::clone(&backend)),
            access: Access::new(),
            places: Arc::new(tokio::sync::Semaphore::new(options.requests_max)),
            store,
            backend,
            options,
        };
        Ok(Registry { inner: Arc::new(inner) })
    }

    /// Answers one request.
    pub async fn answer<R>(&self, request: Request<R>, caller: &Caller) -> Response<Body>
    where
        R: hyper::body::Body<Data = Bytes> + Unpin,
        R::Error: std::fmt::Display,
    {
        let (head, mut body) = request.into_parts();
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let refusal = Refusal::busy("the registry answers as many requests as it can: try again");
            return finished(refusal.into_response());
        };
        let answered = self.dispatch(&head, &mut body, caller).await;
        let response = match answered {
            Ok(response) => response,
            Err(refusal) => {
                if refusal.is_ours() {
                    tracing::warn!(method = %head.method, path = head.uri.path(), reason = refusal.message(), "the registry could not answer");
                }
                if !refusal.is_silence() {
                    drain(&head.headers, &mut body).await;
                }
                refusal.into_response()
            }
        };
        finished(response.map(|body| answer::with_place(body, place)))
    }

    async fn dispatch<R>(
        &self,
        head: &http::request::Parts,
        body: &mut R,
        caller: &Caller,
    ) -> Result<Response<Body>, Refusal>
    where
        R: hyper::body::Body<Data = Bytes> + Unpin,
        R::Error: std::fmt::Display,
    {
        let (method, headers) = (&head.method, &head.headers);
        let route = Route::read(head.uri.path())?;
        let query = Query::read(&head.uri)?;
        if route == Route::Token {
            return match *method {
                Method::GET | Method::HEAD => self.token(caller, headers, &query).await,
                _ => Err(not_allowed("GET, HEAD")),
            };
        }
        let visitor = self.visitor(caller, headers).await?;
        let admit = |name: &str, right| self.admit(caller, headers, &visitor, name, right);
        match (route, method) {
            (Route::Base, &Method::GET | &Method::HEAD) => {
                self.admit_base(caller, headers, &visitor)?;
                let mut response = Response::new(answer::full("{}"));
                answer::set(&mut response, http::header::CONTENT_TYPE, "application/json");
                Ok(response)
            }
            (Route::Catalog, &Method::GET) => {
                self.admit_catalog(caller, headers, &visitor)?;
                self.catalog(&visitor, &query).await
            }
            (Route::Tags(name), &Method::GET) => {
                admit(&name, Right::Pull)?;
                self.tags(&name, &query).await
            }
            (Route::Referrers(name, digest), &Method::GET) => {
                admit(&name, Right::Pull)?;
                self.referrers(&name, &digest, &query).await
            }
            (Route::Manifest(name, named), &Method::GET | &Method::HEAD) => {
                admit(&name, Right::Pull)?;
                self.get_manifest(&name, &named, method, headers).await
            }
            (Route::Manifest(name, named), &Method::PUT) => {
                admit(&name, Right::Push)?;
                self.put_manifest(&name, &named, headers, body).await
            }
            (Route::Manifest(name, named), &Method::DELETE) => {
                admit(&name, Right::Delete)?;
                self.delete_manifest(&name, &named).await
            }
            (Route::Blob(name, digest), &Method::GET | &Method::HEAD) => {
                admit(&name, Right::Pull)?;
                self.get_blob(&name, &digest, method, headers).await
            }
            (Route::Blob(name, digest), &Method::DELETE) => {
                admit(&name, Right::Delete)?;
                self.delete_blob(&name, &digest).await
            }
            (Route::Uploads(name), &Method::POST) => {
                admit(&name, Right::Push)?;
                self.begin_upload(&name, &visitor, &query, headers, body).await
            }
            (Route::Upload(name, id), method) => {
                admit(&name, Right::Push)?;
                match *method {
                    Method::GET => self.upload_status(&name, &id).await,
                    Method::PATCH => self.patch_upload(&name, &id, headers, body).await,
                    Method::PUT => self.put_upload(&name, &id, &query, headers, body).await,
                    Method::DELETE => self.cancel_upload(&name, &id).await,
                    _ => Err(not_allowed("GET, PATCH, PUT, DELETE")),
                }
            }
            (route, _) => Err(not_allowed(match route {
                Route::Manifest(..) => "GET, HEAD, PUT, DELETE",
                Route::Blob(..) => "GET, HEAD, DELETE",
                Route::Uploads(_) => "POST",
                _ => "GET",
            })),
        }
    }
}

fn not_allowed(allowed: &'static str) -> Refusal {
    let message = format!("this can be asked with {allowed} only");
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, message)
        .with(ALLOW, HeaderValue::from_static(allowed))
}

/// What every answer says.
fn finished(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    // Nothing here is a page for a browser to make something of.
    let nosniff = HeaderName::from_static("x-content-type-options");
    response.headers_mut().insert(nosniff, HeaderValue::from_static("nosniff"));
    response
}

/// Reads some of a body that nobody wants: a connection that is closed with bytes unread is reset, and the
/// client may never see the answer. One that waits to be asked for its body gets the answer instead.
async fn drain<R>(headers: &HeaderMap, body: &mut R)
where
    R: hyper::body::Body<Data = Bytes> + Unpin,
    R::Error: std::fmt::Display,
{
    if headers.contains_key(http::header::EXPECT) {
        return;
    }
    let reading = async {
        let mut read = 0;
        while read < DRAINED_BYTES {
            match answer::next(body, DRAINED_WITHIN).await {
                Ok(Some(data)) => read += data.len(),
                // At its end, or broken: there is nothing more to read.
                Ok(None) | Err(_) => return,
            }
        }
    };
    // Too slow: then it is reset.
    let _ = tokio::time::timeout(DRAINED_WITHIN, reading).await;
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Random bytes of the system's generator.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let filled = rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes);
    assert!(filled.is_ok(), "the system gives no random numbers");
    bytes
}
