//! What a registry is shown: basic credentials, or a token from the service that it names.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;

use super::RegistryError;
use super::auth::{Challenge, Token, encoded, token_uri};
use super::body::Content;
use super::exchange::{Session, parse_uri, shown};
use super::settings::Credentials;

/// Basic credentials are the same for everything; they are asked for anew after a while.
const BASIC_LIFETIME: Duration = Duration::from_secs(3600);

/// What a token must be good for, as token services have it: one `repository:NAME:ACTIONS` each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Scope(Vec<String>);

impl Scope {
    /// To fetch from a repository.
    pub(super) fn pull(repository: &str) -> Scope {
        Scope(vec![format!("repository:{repository}:pull")])
    }

    /// To push to a repository, and to mount from others.
    pub(super) fn push(repository: &str, from: &[String]) -> Scope {
        let mut scopes = vec![format!("repository:{repository}:pull,push")];
        scopes.extend(from.iter().map(|other| format!("repository:{other}:pull")));
        Scope(scopes)
    }

    /// The list of repositories.
    pub(super) fn catalog() -> Scope {
        Scope(vec!["registry:catalog:*".to_owned()])
    }

    /// Nothing but who one is.
    pub(super) fn nothing() -> Scope {
        Scope(Vec::new())
    }
}

/// Credentials of one registry, and the tokens that they brought.
pub(super) struct Tokens {
    credentials: Option<Credentials>,
    authorizations: Mutex<HashMap<Scope, (HeaderValue, Instant)>>,
    /// The latest one that the service has given.
    refresh: Mutex<Option<String>>,
    /// One asks at a time: a refresh token may be good for one question.
    turn: tokio::sync::Mutex<()>,
}

impl Tokens {
    pub(super) fn new(credentials: Option<Credentials>) -> Tokens {
        Tokens {
            credentials,
            authorizations: Mutex::default(),
            refresh: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// A refresh token that the service has given: at a login, or in place of the one it was shown.
    pub(super) fn refresh(&self) -> Option<String> {
        self.refresh.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn authorization(&self, scope: &Scope) -> Option<HeaderValue> {
        if let Some(Credentials::Bearer { token }) = &self.credentials {
            return HeaderValue::from_str(&format!("Bearer {token}")).ok();
        }
        let authorizations = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, until) = authorizations.get(scope)?;
        (Instant::now() < *until).then(|| value.clone())
    }

    /// Gets what a 401 asks for, which refused `shown`; `false` when there is nothing to answer with.
    pub(super) async fn answer(
        &self,
        session: &Session,
        answer: &Response<Incoming>,
        scope: &Scope,
        shown: Option<&HeaderValue>,
    ) -> Result<bool, RegistryError> {
        let _turn = self.turn.lock().await;
        if self.authorization(scope).is_some_and(|present| Some(&present) != shown) {
            // Another request has asked meanwhile.
            return Ok(true);
        }
        let challenges = answer.headers().get_all(WWW_AUTHENTICATE).into_iter();
        let mut challenges = challenges.filter_map(|value| Challenge::parse(value.to_str().ok()?));
        let (value, until) = match challenges.next() {
            Some(Challenge::Basic) => match &self.credentials {
                Some(Credentials::Password { username, password }) => {
                    (basic(username, password), Instant::now() + BASIC_LIFETIME)
                }
                _ => return Ok(false),
            },
            Some(Challenge::Bearer { .. })
                if matches!(self.credentials, Some(Credentials::Bearer { .. })) =>
            {
                return Ok(false);
            }
            Some(Challenge::Bearer { realm, service, scope: _ }) => {
                // What we need, not what the challenge would like us to hold.
                let is_login = *scope == Scope::nothing();
                let token = self.fetch(session, &realm, service.as_deref(), scope, is_login).await?;
                // Unasked for, it matters to who has shown one: that one may be void now.
                let is_renewed = matches!(self.credentials, Some(Credentials::Identity { .. }));
                if let Some(refresh) = token.refresh.filter(|_| is_login || is_renewed) {
                    *self.refresh.lock().unwrap_or_else(PoisonError::into_inner) = Some(refresh);
                }
                (format!("Bearer {}", token.value), token.until)
            }
            None => return Ok(false),
        };
        let value = HeaderValue::from_str(&value)
            .map_err(|_| RegistryError::Protocol("the token can't be sent in a header".to_owned()))?;
        let mut authorizations = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        authorizations.retain(|_, (_, until)| Instant::now() < *until);
        authorizations.insert(scope.clone(), (value, until));
        Ok(true)
    }

    /// Asks the token service. With `offline`, for a refresh token as well, where it gives such.
    pub(super) async fn fetch(
        &self,
        session: &Session,
        realm: &str,
        service: Option<&str>,
        scope: &Scope,
        offline: bool,
    ) -> Result<Token, RegistryError> {
        let (method, address, content, authorization) = match &self.credentials {
            Some(Credentials::Identity { token }) => {
                let token = &self.refresh().unwrap_or_else(|| token.clone());
                // RFC 6749, section 6, as registries have it.
                let fields = [
                    ("grant_type", "refresh_token"),
                    ("service", service.unwrap_or_default()),
                    ("scope", &scope.0.join(" ")),
                    ("client_id", "rorqual"),
                    ("refresh_token", token),
                ];
                let form = fields.map(|(name, value)| format!("{name}={}", encoded(value))).join("&");
                (Method::POST, realm.to_owned(), Some(Content::Bytes(Bytes::from(form))), None)
            }
            credentials => {
                let mut address = token_uri(realm, service, &scope.0);
                let authorization = match credentials {
                    Some(Credentials::Password { username, password }) => {
                        if offline {
                            address.push_str("&offline_token=true&client_id=rorqual");
                        }
                        HeaderValue::from_str(&basic(username, password)).ok()
                    }
                    _ => None,
                };
                (Method::GET, address, None, authorization)
            }
        };
        let uri = parse_uri(&address)?;
        if uri.scheme_str() == Some("http") && !session.is_plain() {
            return Err(RegistryError::Refused {
                target: shown(&uri),
                reason: "a token service must be HTTPS".to_owned(),
            });
        }
        let form = [(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))];
        let headers = if content.is_some() { &form[..] } else { &[] };
        // A redirect is not followed: the credentials are for the service that was named.
        let answer = session.request(&method, &uri, headers, content.as_ref(), authorization).await?;
        let status = answer.status();
        if !status.is_success() {
            let message = session.words(answer).await;
            return Err(match status {
                StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    RegistryError::Denied { message }
                }
                _ => RegistryError::Status { status, message },
            });
        }
        Token::parse(&session.small(answer).await?, Instant::now())
    }
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}")))
}
