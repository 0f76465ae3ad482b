//! One request and its answer: attempts with backoff, redirects, challenges.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE,
};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::auth::{Challenge, Token, token_uri};
use super::connect::Connector;
use super::{Credentials, RegistryError, RegistryOptions};

const REDIRECTS_MAX: u32 = 5;
/// A token service's answer, or a registry's words about an error.
const SMALL_BODY_BYTES: u64 = 64 << 10;

/// What a request is for: words for errors, and the repository that a token must cover.
#[derive(Clone, Copy)]
pub(super) struct Purpose<'a> {
    pub(super) what: &'a str,
    pub(super) repository: &'a str,
}

/// Connections and tokens of one registry.
pub(super) struct Session {
    /// `https://registry-1.docker.io`
    base: String,
    client: Client<Connector, Empty<Bytes>>,
    credentials: Option<Credentials>,
    /// By repository; basic credentials stand there as well once they were asked for.
    authorizations: Mutex<HashMap<String, (HeaderValue, Instant)>>,
    is_plain: bool,
    options: Arc<RegistryOptions>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(registry: &str, options: Arc<RegistryOptions>) -> Result<Session, RegistryError> {
        // Docker Hub answers under another name than the one it has in references.
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let is_plain = is_plain(registry, &options.insecure);
        let scheme = if is_plain { "http" } else { "https" };
        let base = format!("{scheme}://{host}");
        let home = base.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default();
        let home = home.trim_start_matches('[').trim_end_matches(']').to_owned();
        let connector = Connector::new(&home, is_plain, !is_plain, Arc::clone(&options))?;
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_timer(TokioTimer::new())
            .build(connector);
        let credentials = options.credentials.get(registry).cloned();
        Ok(Session { base, client, credentials, authorizations: Mutex::default(), is_plain, options })
    }

    /// Sends a request, and again where that helps; answers with a success.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        purpose: Purpose<'_>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut attempt = 0;
        loop {
            let outcome = self.send_once(&method, path, headers, purpose).await;
            let (error, wait) = match outcome {
                Ok(answer) if answer.status().is_success() => return Ok(answer),
                Ok(answer) => self.judge(answer, purpose).await?,
                Err(error) if is_transient(&error) => (error, None),
                Err(error) => return Err(error),
            };
            attempt += 1;
            if attempt >= self.options.attempts {
                return Err(error);
            }
            let wait = wait.unwrap_or_else(|| pause(&self.options, attempt));
            tracing::debug!(what = purpose.what, attempt, ?wait, error = %error, "the registry is asked again");
            tokio::time::sleep(wait).await;
        }
    }

    /// An error to try again after, with the pause that the registry asked for; or one that is final.
    async fn judge(
        &self,
        answer: Response<Incoming>,
        purpose: Purpose<'_>,
    ) -> Result<(RegistryError, Option<Duration>), RegistryError> {
        let status = answer.status();
        let asked =
            answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let message = self.words(answer).await;
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::SERVICE_UNAVAILABLE
                if asked.is_some_and(|seconds| Duration::from_secs(seconds) > self.options.backoff_max) =>
            {
                Err(RegistryError::Busy { status, seconds: asked.unwrap_or(0) })
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                Ok((RegistryError::Status { status, message }, asked.map(Duration::from_secs)))
            }
            _ if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => {
                Ok((RegistryError::Status { status, message }, asked.map(Duration::from_secs)))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(RegistryError::Denied { message }),
            StatusCode::NOT_FOUND => Err(RegistryError::NotFound { what: purpose.what.to_owned(), message }),
            _ => Err(RegistryError::Status { status, message }),
        }
    }

    /// Sends a request once, follows redirects, and answers one challenge.
    async fn send_once(
        &self,
        method: &Method,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        purpose: Purpose<'_>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let home = parse_uri(&format!("{}{path}", self.base))?;
        let mut uri = home.clone();
        let mut is_challenged = false;
        let mut redirects = 0;
        loop {
            let is_home = same_origin(&uri, &home);
            let authorization = if is_home { self.authorization(purpose.repository) } else { None };
            let answer = self.request(method, &uri, headers, authorization).await?;
            match answer.status() {
                StatusCode::UNAUTHORIZED if is_home && !is_challenged => {
                    is_challenged = true;
                    if !self.answer_challenge(&answer, purpose.repository).await? {
                        return Ok(answer);
                    }
                }
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => {
                    redirects += 1;
                    if redirects > REDIRECTS_MAX {
                        return Err(RegistryError::Protocol(format!("more than {REDIRECTS_MAX} redirects")));
                    }
                    uri = self.redirect(&uri, &answer)?;
                }
                _ => return Ok(answer),
            }
        }
    }

    async fn request(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &[(HeaderName, HeaderValue)],
        authorization: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri.clone();
        request
            .headers_mut()
            .insert(USER_AGENT, HeaderValue::from_static(concat!("rorqual/", env!("CARGO_PKG_VERSION"))));
        request.headers_mut().extend(headers.iter().cloned());
        if let Some(mut authorization) = authorization {
            authorization.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, authorization);
        }
        self.within(self.client.request(request), "waiting for the answer").await?.map_err(unwrap_client)
    }

    /// Where a redirect leads; never from HTTPS to HTTP.
    fn redirect(&self, from: &Uri, answer: &Response<Incoming>) -> Result<Uri, RegistryError> {
        let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location =
            location.ok_or_else(|| RegistryError::Protocol("a redirect without a location".to_owned()))?;
        let absolute = if location.starts_with('/') && !location.starts_with("//") {
            let authority = from.authority().map_or("", |authority| authority.as_str());
            format!("{}://{authority}{location}", from.scheme_str().unwrap_or("https"))
        } else {
            location.to_owned()
        };
        let to = parse_uri(&absolute)?;
        if to.scheme_str() == Some("http") && !self.is_plain {
            return Err(RegistryError::Refused {
                target: shown(&to),
                reason: "a redirect must not leave HTTPS".to_owned(),
            });
        }
        Ok(to)
    }

    fn authorization(&self, repository: &str) -> Option<HeaderValue> {
        let authorizations = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, until) = authorizations.get(repository)?;
        (Instant::now() < *until).then(|| value.clone())
    }

    /// Gets what a 401 asks for; `false` when there is nothing to answer with.
    async fn answer_challenge(
        &self,
        answer: &Response<Incoming>,
        repository: &str,
    ) -> Result<bool, RegistryError> {
        let challenges = answer.headers().get_all(WWW_AUTHENTICATE).into_iter();
        let mut challenges = challenges.filter_map(|value| Challenge::parse(value.to_str().ok()?));
        let (value, until) = match challenges.next() {
            Some(Challenge::Basic) => match &self.credentials {
                Some(credentials) => (basic(credentials), Instant::now() + Duration::from_secs(3600)),
                None => return Ok(false),
            },
            Some(Challenge::Bearer { realm, service, scope: _ }) => {
                // What we need, not what the challenge would like us to hold.
                let scope = format!("repository:{repository}:pull");
                let token = self.token(&token_uri(&realm, service.as_deref(), &scope)).await?;
                (format!("Bearer {}", token.value), token.until)
            }
            None => return Ok(false),
        };
        let value = HeaderValue::from_str(&value)
            .map_err(|_| RegistryError::Protocol("the token can't be sent in a header".to_owned()))?;
        let mut authorizations = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        authorizations.retain(|_, (_, until)| Instant::now() < *until);
        authorizations.insert(repository.to_owned(), (value, until));
        Ok(true)
    }

    async fn token(&self, uri: &str) -> Result<Token, RegistryError> {
        let uri = parse_uri(uri)?;
        if uri.scheme_str() == Some("http") && !self.is_plain {
            return Err(RegistryError::Refused {
                target: shown(&uri),
                reason: "a token service must be HTTPS".to_owned(),
            });
        }
        let authorization = match &self.credentials {
            Some(credentials) => HeaderValue::from_str(&basic(credentials)).ok(),
            None => None,
        };
        // A redirect is not followed: the credentials are for the service that was named.
        let answer = self.request(&Method::GET, &uri, &[], authorization).await?;
        let status = answer.status();
        if !status.is_success() {
            let message = self.words(answer).await;
            return Err(match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied { message },
                _ => RegistryError::Status { status, message },
            });
        }
        let bytes = self.collect(answer, SMALL_BODY_BYTES).await?;
        Token::parse(&bytes, Instant::now())
    }

    /// The whole body, at most `limit_bytes`.
    pub(super) async fn collect(
        &self,
        answer: Response<Incoming>,
        limit_bytes: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut body = answer.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = self.within(body.frame(), "reading the answer").await? {
            let frame = frame.map_err(|error| RegistryError::Http(Box::new(error)))?;
            if let Some(data) = frame.data_ref() {
                if bytes.len() as u64 + data.len() as u64 > limit_bytes {
                    return Err(RegistryError::Protocol(format!(
                        "the answer is longer than {limit_bytes} bytes"
                    )));
                }
                bytes.extend_from_slice(data);
            }
        }
        Ok(bytes)
    }

    /// The registry's own words about an error (distribution spec, "Error Codes").
    async fn words(&self, answer: Response<Incoming>) -> String {
        #[derive(serde::Deserialize)]
        struct Errors {
            errors: Vec<One>,
        }
        #[derive(serde::Deserialize)]
        struct One {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let bytes = self.collect(answer, SMALL_BODY_BYTES).await.unwrap_or_default();
        let errors = serde_json::from_slice::<Errors>(&bytes).map(|body| body.errors).unwrap_or_default();
        let text = errors.iter().map(|one| format!("{} {}", one.code, one.message).trim().to_owned());
        let text = text.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(", ");
        text.chars().filter(|c| !c.is_control()).take(200).collect()
    }

    /// Waits for `future` no longer than a silent peer may take.
    pub(super) async fn within<T>(
        &self,
        future: impl Future<Output = T>,
        action: &'static str,
    ) -> Result<T, RegistryError> {
        let limit = self.options.idle_timeout;
        tokio::time::timeout(limit, future)
            .await
            .map_err(|_| RegistryError::Timeout { action, seconds: limit.as_secs() })
    }
}

/// Whether trying again may help.
pub(super) fn is_transient(error: &RegistryError) -> bool {
    match error {
        RegistryError::Connect { source, .. } => source.kind() != std::io::ErrorKind::InvalidData,
        RegistryError::Timeout { .. } | RegistryError::Http(_) => true,
        RegistryError::Status { status, .. } => {
            status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
        }
        _ => false,
    }
}

/// The pause before attempt `attempt + 1`: doubling, between half and the whole of it, so that nodes
/// that failed together don't come back together.
pub(super) fn pause(options: &RegistryOptions, attempt: u32) -> Duration {
    let whole = options.backoff.saturating_mul(1 << (attempt - 1).min(16)).min(options.backoff_max);
    let draw = std::collections::hash_map::RandomState::new().build_hasher().finish() % 1000;
    whole.mul_f64(0.5 + draw as f64 / 2000.0)
}

/// Loopback, or named insecure with or without its port.
fn is_plain(registry: &str, insecure: &[String]) -> bool {
    let host = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => registry.split(':').next().unwrap_or(registry),
    };
    host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        || insecure.iter().any(|named| named == registry || named == host)
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
    a.scheme() == b.scheme() && a.host() == b.host() && port(a) == port(b)
}

fn parse_uri(text: &str) -> Result<Uri, RegistryError> {
    let wrong = || {
        RegistryError::Protocol(format!(
            "`{}` is not a web address",
            text.chars().take(200).collect::<String>()
        ))
    };
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let is_web =
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty());
    let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if is_web && !has_user { Ok(uri) } else { Err(wrong()) }
}

/// An address without its query, which may hold signatures.
fn shown(uri: &Uri) -> String {
    format!(
        "{}://{}{}",
        uri.scheme_str().unwrap_or(""),
        uri.authority().map_or("", |a| a.as_str()),
        uri.path()
    )
}

fn basic(credentials: &Credentials) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{}:{}", credentials.username, credentials.password)))
}

/// The connector's own error comes back wrapped: take it out, so that its words are seen.
fn unwrap_client(error: hyper_util::client::legacy::Error) -> RegistryError {
    let mut below: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = below {
        match current.downcast_ref::<RegistryError>() {
            Some(RegistryError::Refused { target, reason }) => {
                return RegistryError::Refused { target: target.clone(), reason: reason.clone() };
            }
            Some(RegistryError::Timeout { action, seconds }) => {
                return RegistryError::Timeout { action, seconds: *seconds };
            }
            Some(RegistryError::Connect { host, source }) => {
                let source = std::io::Error::new(source.kind(), source.to_string());
                return RegistryError::Connect { host: host.clone(), source };
            }
            _ => below = current.source(),
        }
    }
    RegistryError::Http(Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_who_is_named() {
        let named = ["registry.lan".to_owned(), "other.lan:5000".to_owned()];
        for (registry, plain) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.8.8.8", true),
            ("[::1]:5000", true),
            ("registry.lan", true),
            ("registry.lan:80", true),
            ("other.lan:5000", true),
            ("other.lan", false),
            ("docker.io", false),
            ("localhost.example", false),
            ("127.0.0.1.example", false),
            ("10.0.0.1:5000", false),
            ("[fd00::1]:5000", false),
        ] {
            assert_eq!(is_plain(registry, &named), plain, "{registry}");
        }
    }

    #[test]
    fn credentials_stay_with_scheme_host_and_port() {
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        let home = uri("https://r.example/v2/");
        assert!(same_origin(&home, &uri("https://r.example:443/x")));
        for other in
            ["http://r.example/", "https://r.example:444/", "https://r.example.evil/", "https://s.example/"]
        {
            assert!(!same_origin(&home, &uri(other)), "{other}");
        }
    }

    #[test]
    fn addresses_that_lead_astray_are_refused() {
        for bad in [
            "file:///etc/passwd",
            "ftp://x/",
            "/relative",
            "https://",
            "https://user:pass@r.example/",
            "gopher://x",
        ] {
            assert!(parse_uri(bad).is_err(), "{bad}");
        }
        assert_eq!(shown(&parse_uri("https://r.example/x?signature=secret").unwrap()), "https://r.example/x");
    }

    #[test]
    fn pauses_double_and_end() {
        let options = RegistryOptions::default();
        let first = pause(&options, 1);
        assert!(first >= options.backoff / 2 && first <= options.backoff);
        assert!(pause(&options, 3) >= options.backoff * 2);
        assert!(pause(&options, 60) <= options.backoff_max);
    }
}
