//! The client of the OCI distribution protocol.
//!
//! ```text
//! RegistryClient ─ fetch.rs, upload.rs, list.rs: what is asked for
//!     └► Session (one per registry or mirror: connections, tokens) ─► exchange.rs  one request: retries, redirects
//!                                                                     ├─ body.rs     what it carries
//!                                                                     ├─ tokens.rs   what is shown (auth.rs: how
//!                                                                     │              challenges are read)
//!                                                                     └─ connect.rs  TCP and TLS
//! ```
//!
//! **Invariants:** plain HTTP only to loopback and to registries that are named insecure. Credentials and
//! tokens go to the registry they are for and to the token service that it names, never along a redirect,
//! never to another registry's mirror. What a registry, by redirect or challenge, points at must not be this
//! machine or link-local, unless the registry itself is.

mod auth;
mod body;
mod connect;
mod error;
mod exchange;
mod fetch;
mod list;
mod settings;
mod tokens;
mod upload;
mod url;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::Method;

pub use self::error::RegistryError;
use self::exchange::{Call, Session};
pub use self::list::SearchHit;
use self::settings::Endpoint;
pub use self::settings::{Credentials, RegistryOptions, RegistrySettings};
use self::tokens::Scope;
pub(crate) use self::upload::{Outgoing, Uploaded};
use crate::error::{Error, Result};
use crate::reference::Reference;

/// Talks to registries; clones share connections and tokens.
#[derive(Clone, Debug)]
pub struct RegistryClient {
    options: Arc<RegistryOptions>,
    /// By base address.
    sessions: Arc<Mutex<HashMap<String, Arc<Session>>>>,
}

impl RegistryClient {
    /// A client; nothing is connected yet.
    pub fn new(options: RegistryOptions) -> RegistryClient {
        RegistryClient { options: Arc::new(options), sessions: Arc::default() }
    }

    /// The same, for someone who has `credentials` for `registry`. It shares neither connections nor tokens.
    pub fn with_credentials(&self, registry: &str, credentials: Credentials) -> RegistryClient {
        let mut options = (*self.options).clone();
        options.credentials.insert(registry.to_owned(), credentials);
        RegistryClient::new(options)
    }

    /// Asks the registry whether it takes the credentials that this client has for it. Answers with a refresh
    /// token, where the registry gives one to use in place of the password.
    pub async fn login(&self, registry: &str) -> Result<Option<String>> {
        let what = "the login";
        let wrap = |source| self.error(registry, what, source);
        let session = self.session(self.options.endpoint(registry)).map_err(wrap)?;
        let (method, scope) = (Method::GET, Scope::nothing());
        let call = Call { method: &method, path: "/v2/", headers: &[], content: None, what, scope: &scope };
        session.send(call).await.map_err(wrap)?;
        Ok(session.tokens().refresh())
    }

    /// The refresh token that a registry has given in place of the one that this client has for it; whoever keeps
    /// that one has to keep this instead.
    pub fn renewed_identity(&self, registry: &str) -> Option<String> {
        let Some(Credentials::Identity { token }) = self.options.credentials.get(registry) else {
            return None;
        };
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.get(&self.options.endpoint(registry).base)?;
        session.tokens().refresh().filter(|present| present != token)
    }

    fn session(&self, endpoint: Endpoint) -> Result<Arc<Session>, RegistryError> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = sessions.get(&endpoint.base) {
            return Ok(Arc::clone(session));
        }
        let base = endpoint.base.clone();
        let session = Arc::new(Session::new(endpoint, Arc::clone(&self.options))?);
        sessions.insert(base, Arc::clone(&session));
        Ok(session)
    }

    /// The registry itself, for what a mirror can't do.
    fn home(&self, reference: &Reference) -> Result<Arc<Session>, RegistryError> {
        self.session(self.options.endpoint(reference.registry()))
    }

    fn error(&self, registry: &str, what: &str, source: RegistryError) -> Error {
        Error::Registry { registry: registry.to_owned(), what: what.to_owned(), source }
    }
}
