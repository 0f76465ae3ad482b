//! The client of the OCI distribution protocol: manifests and blobs, for pulling.
//!
//! ```text
//! RegistryClient ──► Session (one per registry: connections, tokens) ──► exchange.rs  one request: retries,
//!                                                                       │            redirects, challenges
//!                                                                       ├─ auth.rs    challenges and tokens
//!                                                                       └─ connect.rs TCP and TLS
//! ```
//!
//! **Invariants:** plain HTTP only to loopback and to registries that are named insecure. Credentials and
//! tokens go to the registry they are for and to the token service that it names, never along a redirect.
//! What a registry, by redirect or challenge, points at must not be this machine or link-local, unless
//! the registry itself is.

mod auth;
mod connect;
mod exchange;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue, RANGE};
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;

use self::exchange::{Purpose, Session};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_MAX_BYTES, OCI_INDEX, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::BlobWriter;

/// User name and password (or token) for one registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// The password, or an access token in its place.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// How registries are talked to.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Registries (`host` or `host:port`) that are spoken to by plain HTTP. Loopback ones are anyway.
    pub insecure: Vec<String>,
    /// By registry, as it stands in references (`docker.io`, `registry.example:5000`).
    pub credentials: HashMap<String, Credentials>,
    /// How often a request is tried.
    pub attempts: u32,
    /// The first pause between attempts; it doubles. A `Retry-After` goes before.
    pub backoff: Duration,
    /// The longest pause that a registry may ask for.
    pub backoff_max: Duration,
    /// For a connection, name resolution and TLS included.
    pub connect_timeout: Duration,
    /// For an answer's head, and between two pieces of its body.
    pub idle_timeout: Duration,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        RegistryOptions {
            insecure: Vec::new(),
            credentials: HashMap::new(),
            attempts: 5,
            backoff: Duration::from_millis(200),
            backoff_max: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
        }
    }
}

/// Why a registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// No connection.
    #[error("can't connect to {host}: is the name right, and can this node reach it?")]
    Connect {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something took too long.
    #[error("no answer within {seconds} s while {action}")]
    Timeout {
        /// What was waited for.
        action: &'static str,
        /// How long.
        seconds: u64,
    },
    /// The connection broke.
    #[error("the connection broke")]
    Http(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An answer with an error status.
    #[error("it answered {status}{}", detail(message))]
    Status {
        /// The HTTP status.
        status: StatusCode,
        /// The registry's own words, if it had any.
        message: String,
    },
    /// The image or blob isn't there, or isn't for us.
    #[error("it has no {what}: check the name and the tag{}", detail(message))]
    NotFound {
        /// What was asked for.
        what: String,
        /// The registry's own words, if it had any.
        message: String,
    },
    /// Not allowed.
    #[error(
        "it denies access: the repository does not exist, or credentials are missing or wrong{}",
        detail(message)
    )]
    Denied {
        /// The registry's own words, if it had any.
        message: String,
    },
    /// It asked to come back later than we are ready to wait.
    #[error("it is overloaded or limits this node ({status}) and asks to wait {seconds} s: try again then")]
    Busy {
        /// The HTTP status.
        status: StatusCode,
        /// What it asked for.
        seconds: u64,
    },
    /// An answer that breaks the protocol.
    #[error("its answer breaks the protocol: {0}")]
    Protocol(String),
    /// A redirect or token service that must not be followed.
    #[error("it points to {target}, which is refused: {reason}")]
    Refused {
        /// Where to.
        target: String,
        /// Why not.
        reason: String,
    },
    /// TLS can't be set up.
    #[error("no trusted certificates on this node: install the package `ca-certificates`")]
    Certificates(#[source] std::io::Error),
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

/// A manifest as a registry sent it.
#[derive(Clone, Debug)]
pub(crate) struct FetchedManifest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) media_type: Option<String>,
    pub(crate) digest: Digest,
}

/// Talks to registries; clones share connections and tokens.
#[derive(Clone, Debug)]
pub struct RegistryClient {
    options: Arc<RegistryOptions>,
    sessions: Arc<Mutex<HashMap<String, Arc<Session>>>>,
}

impl RegistryClient {
    /// A client; nothing is connected yet.
    pub fn new(options: RegistryOptions) -> RegistryClient {
        RegistryClient { options: Arc::new(options), sessions: Arc::default() }
    }

    /// The digest that the reference's tag has now: of an index, if the image has several platforms.
    pub async fn resolve(&self, reference: &Reference) -> Result<Digest> {
        if let Some(digest) = reference.digest() {
            return Ok(digest.clone());
        }
        let what = format!("manifest `{}`", reference.familiar());
        let wrap = |source| self.error(reference, &what, source);
        let session = self.session(reference).map_err(wrap)?;
        let path = manifest_path(reference, None);
        let purpose = Purpose { what: &what, repository: reference.repository() };
        let answer =
            session.send(Method::HEAD, &path, &[(ACCEPT, accepted())], purpose).await.map_err(wrap)?;
        let named = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        match named.and_then(|text| text.parse().ok()) {
            Some(digest) => Ok(digest),
            // Old registries don't say it: then the manifest itself does.
            None => self.manifest(reference, None).await.map(|manifest| manifest.digest),
        }
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
        let wrap = |source| self.error(reference, &what, source);
        let session = self.session(reference).map_err(wrap)?;
        let path = manifest_path(reference, digest);
        let purpose = Purpose { what: &what, repository: reference.repository() };
        let answer =
            session.send(Method::GET, &path, &[(ACCEPT, accepted())], purpose).await.map_err(wrap)?;
        let header =
            |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let media_type = header(CONTENT_TYPE.as_str())
            .map(|value| value.split(';').next().unwrap_or("").trim().to_owned());
        let claimed: Option<Digest> = header("docker-content-digest").and_then(|text| text.parse().ok());
        let bytes = session.collect(answer, MANIFEST_MAX_BYTES).await.map_err(wrap)?;
        // By tag, the registry's word is checked against what it sent.
        let expected = digest.cloned().or(claimed);
        let algorithm = expected.as_ref().map_or(crate::digest::Algorithm::Sha256, Digest::algorithm);
        let actual = Digest::of_with(algorithm, &bytes);
        match expected {
            Some(expected) if expected != actual => Err(Error::DigestMismatch {
                what: format!("{what} from {}", reference.registry()),
                expected,
                actual,
            }),
            _ => Ok(FetchedManifest { bytes, media_type, digest: actual }),
        }
    }

    /// Fetches a blob into `writer`, which knows its digest. A broken transfer goes on where it stopped.
    pub(crate) async fn blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        writer: &mut BlobWriter,
    ) -> Result<()> {
        let what = format!("blob {digest}");
        let wrap = |source| self.error(reference, &what, source);
        let session = self.session(reference).map_err(wrap)?;
        let path = format!("/v2/{}/blobs/{digest}", reference.repository());
        let mut attempt = 0;
        loop {
            let purpose = Purpose { what: &what, repository: reference.repository() };
            let broken = match self.transfer(&session, &path, purpose, writer).await {
                Ok(()) => return Ok(()),
                Err(Transfer::Store(error)) => return Err(error),
                Err(Transfer::Registry(error)) => return Err(wrap(error)),
                Err(Transfer::Broken(error)) => error,
            };
            attempt += 1;
            if attempt >= self.options.attempts {
                return Err(wrap(broken));
            }
            tracing::debug!(registry = reference.registry(), %digest, at_bytes = writer.written_bytes(), "a transfer broke; going on");
            tokio::time::sleep(exchange::pause(&self.options, attempt)).await;
        }
    }

    async fn transfer(
        &self,
        session: &Session,
        path: &str,
        purpose: Purpose<'_>,
        writer: &mut BlobWriter,
    ) -> Result<(), Transfer> {
        let start = writer.written_bytes();
        let range = HeaderValue::from_str(&format!("bytes={start}-"));
        let headers: Vec<_> =
            range.ok().filter(|_| start > 0).map(|range| (RANGE, range)).into_iter().collect();
        let answer = session.send(Method::GET, path, &headers, purpose).await.map_err(Transfer::Registry)?;
        if start > 0 {
            let range =
                answer.headers().get(http::header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let goes_on = answer.status() == StatusCode::PARTIAL_CONTENT
                && range.is_some_and(|range| range.starts_with(&format!("bytes {start}-")));
            if !goes_on {
                writer.reset().map_err(Transfer::Store)?;
            }
            if answer.status() == StatusCode::PARTIAL_CONTENT && !goes_on {
                let error = RegistryError::Protocol("a part was sent that was not asked for".to_owned());
                return Err(Transfer::Registry(error));
            }
        }
        let mut body = answer.into_body();
        while let Some(frame) =
            session.within(body.frame(), "reading the blob").await.map_err(Transfer::Broken)?
        {
            let frame = frame.map_err(|error| Transfer::Broken(RegistryError::Http(Box::new(error))))?;
            if let Some(bytes) = frame.data_ref() {
                writer.write(bytes).map_err(Transfer::Store)?;
            }
        }
        Ok(())
    }

    fn session(&self, reference: &Reference) -> Result<Arc<Session>, RegistryError> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = sessions.get(reference.registry()) {
            return Ok(Arc::clone(session));
        }
        let session = Arc::new(Session::new(reference.registry(), Arc::clone(&self.options))?);
        sessions.insert(reference.registry().to_owned(), Arc::clone(&session));
        Ok(session)
    }

    fn error(&self, reference: &Reference, what: &str, source: RegistryError) -> Error {
        Error::Registry { registry: reference.registry().to_owned(), what: what.to_owned(), source }
    }
}

/// Whose fault it is that a transfer ended.
enum Transfer {
    /// Final: what may be tried again was tried again.
    Registry(RegistryError),
    /// The body broke off; the rest can be asked for.
    Broken(RegistryError),
    Store(Error),
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
