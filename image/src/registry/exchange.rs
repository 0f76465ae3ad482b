//! One request and its answer: attempts with backoff, redirects, challenges.

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT,
};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::body::{Body, Content};
use super::connect::Connector;
use super::settings::Endpoint;
use super::tokens::{Scope, Tokens};
use super::{RegistryError, RegistryOptions};

const REDIRECTS_MAX: u32 = 5;
/// A token service's answer, or a registry's words about an error.
const SMALL_BODY_BYTES: u64 = 64 << 10;

/// One request.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) method: &'a Method,
    /// From the registry's root, or an address that the registry gave.
    pub(super) path: &'a str,
    pub(super) headers: &'a [(HeaderName, HeaderValue)],
    pub(super) content: Option<&'a Content>,
    /// Words for errors.
    pub(super) what: &'a str,
    /// What a token must be good for.
    pub(super) scope: &'a Scope,
}

/// Connections and tokens of one registry.
pub(super) struct Session {
    endpoint: Endpoint,
    client: Client<Connector, Body>,
    tokens: Tokens,
    options: Arc<RegistryOptions>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("base", &self.endpoint.base).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(endpoint: Endpoint, options: Arc<RegistryOptions>) -> Result<Session, RegistryError> {
        let home = endpoint.base.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
        let home = home.unwrap_or_default();
        let home = home.trim_start_matches('[').trim_end_matches(']');
        let connector = Connector::new(home, &endpoint, Arc::clone(&options))?;
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_timer(TokioTimer::new())
            .build(connector);
        let tokens = Tokens::new(options.credentials.get(&endpoint.name).cloned());
        Ok(Session { endpoint, client, tokens, options })
    }

    pub(super) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    pub(super) fn is_plain(&self) -> bool {
        self.endpoint.is_plain
    }

    /// Sends a request, and again where that helps; answers with a success.
    pub(super) async fn send(&self, call: Call<'_>) -> Result<Response<Incoming>, RegistryError> {
        let mut attempt = 0;
        loop {
            let (error, wait) = match self.try_once(call).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(passing)) => passing,
                Err(error) if is_transient(&error) => (error, None),
                Err(error) => return Err(error),
            };
            attempt += 1;
            if attempt >= self.options.attempts {
                return Err(error);
            }
            let wait = wait.unwrap_or_else(|| pause(&self.options, attempt));
            tracing::debug!(what = call.what, attempt, ?wait, error = %error, "the registry is asked again");
            tokio::time::sleep(wait).await;
        }
    }

    /// Sends a request once: a success, or an error to try again after with the pause that the registry asked for,
    /// or an error that is final.
    pub(super) async fn try_once(
        &self,
        call: Call<'_>,
    ) -> Result<Result<Response<Incoming>, (RegistryError, Option<Duration>)>, RegistryError> {
        let answer = self.send_once(call).await?;
        if answer.status().is_success() {
            return Ok(Ok(answer));
        }
        self.judge(answer, call.what).await.map(Err)
    }

    /// An error to try again after, with the pause that the registry asked for; or one that is final.
    async fn judge(
        &self,
        answer: Response<Incoming>,
        what: &str,
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
            StatusCode::NOT_FOUND => Err(RegistryError::NotFound { what: what.to_owned(), message }),
            _ => Err(RegistryError::Status { status, message }),
        }
    }

    /// Sends a request once, follows redirects, and answers one challenge.
    async fn send_once(&self, call: Call<'_>) -> Result<Response<Incoming>, RegistryError> {
        let home = parse_uri(&self.endpoint.base)?;
        let mut uri = match call.path.starts_with('/') {
            true => parse_uri(&format!("{}{}", self.endpoint.base, call.path))?,
            false => parse_uri(call.path)?,
        };
        let mut is_challenged = false;
        let mut redirects = 0;
        loop {
            let is_home = same_origin(&uri, &home);
            let authorization = if is_home { self.tokens.authorization(call.scope) } else { None };
            let shown = authorization.clone();
            let answer = self.request(call.method, &uri, call.headers, call.content, authorization).await?;
            match answer.status() {
                StatusCode::UNAUTHORIZED if is_home && !is_challenged => {
                    is_challenged = true;
                    if !self.tokens.answer(self, &answer, call.scope, shown.as_ref()).await? {
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

    /// One request to one address. Its answer may take as long as its content moves.
    pub(super) async fn request(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &[(HeaderName, HeaderValue)],
        content: Option<&Content>,
        authorization: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let (body, moved) =
            Content::open(content).await.map_err(|error| RegistryError::Http(error.into()))?;
        let mut request = Request::new(body);
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri.clone();
        request
            .headers_mut()
            .insert(USER_AGENT, HeaderValue::from_static(concat!("rorqual/", env!("CARGO_PKG_VERSION"))));
        if let Some(content) = content {
            request.headers_mut().insert(CONTENT_LENGTH, content.length().into());
        }
        request.headers_mut().extend(headers.iter().cloned());
        if let Some(mut authorization) = authorization {
            authorization.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, authorization);
        }
        let answer = self.client.request(request);
        tokio::pin!(answer);
        loop {
            let before = moved.bytes();
            match self.within(&mut answer, "waiting for the answer").await {
                Ok(answered) => return answered.map_err(unwrap_client),
                Err(_) if moved.bytes() != before => {}
                Err(error) => return Err(error),
            }
        }
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
        if to.scheme_str() == Some("http") && !self.endpoint.is_plain {
            return Err(RegistryError::Refused {
                target: shown(&to),
                reason: "a redirect must not leave HTTPS".to_owned(),
            });
        }
        Ok(to)
    }

    /// What a token service answers, at most a little.
    pub(super) async fn small(&self, answer: Response<Incoming>) -> Result<Vec<u8>, RegistryError> {
        self.collect(answer, SMALL_BODY_BYTES).await
    }

    /// Where an upload goes on: its `Location`. Behind a proxy that adds TLS, registries call themselves `http`.
    pub(super) fn location(&self, answer: &Response<Incoming>) -> Result<String, RegistryError> {
        let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location =
            location.ok_or_else(|| RegistryError::Protocol("an upload without a location".to_owned()))?;
        if location.starts_with('/') && !location.starts_with("//") {
            let home = parse_uri(&self.endpoint.base)?;
            let authority = home.authority().map_or("", |authority| authority.as_str());
            return Ok(format!("{}://{authority}{location}", home.scheme_str().unwrap_or("https")));
        }
        let to = parse_uri(location)?;
        match location.strip_prefix("http://") {
            Some(rest) if !self.endpoint.is_plain => {
                let home = parse_uri(&self.endpoint.base)?;
                if to.host() == home.host() {
                    return Ok(format!("https://{rest}"));
                }
                Err(RegistryError::Refused {
                    target: shown(&to),
                    reason: "an upload must not leave HTTPS".to_owned(),
                })
            }
            _ => Ok(location.to_owned()),
        }
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
    pub(super) async fn words(&self, answer: Response<Incoming>) -> String {
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

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
    a.scheme() == b.scheme() && a.host() == b.host() && port(a) == port(b)
}

pub(super) fn parse_uri(text: &str) -> Result<Uri, RegistryError> {
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
pub(super) fn shown(uri: &Uri) -> String {
    format!(
        "{}://{}{}",
        uri.scheme_str().unwrap_or(""),
        uri.authority().map_or("", |a| a.as_str()),
        uri.path()
    )
}

/// The connector's own error comes back wrapped: take it out, so that its words are seen.
fn unwrap_client(error: hyper_util::client::legacy::Error) -> RegistryError {
    let mut below: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = below {
        match current.downcast_ref::<RegistryError>() {
            Some(RegistryError::Refused { target, reason }) => {
                return RegistryError::Refused { target: target.clone(), reason: reason.clone() };
            }
            Some(RegistryError::Untrusted { reason }) => {
                return RegistryError::Untrusted { reason: reason.clone() };
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
