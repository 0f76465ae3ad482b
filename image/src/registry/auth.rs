//! Challenges (`WWW-Authenticate`) and the tokens that answer them.

use std::time::{Duration, Instant};

use serde::Deserialize;

use super::RegistryError;

/// What a token service is believed to give when it doesn't say (distribution spec: 60 s).
const LIFETIME_DEFAULT: Duration = Duration::from_secs(60);

/// How a registry wants to be convinced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// Reads one `WWW-Authenticate` value; `None` for a scheme that isn't known.
    pub(super) fn parse(value: &str) -> Option<Challenge> {
        let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        for (name, value) in parameters(rest) {
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
        }
        Some(Challenge::Bearer { realm: realm?, service, scope })
    }
}

/// `name="value"` and `name=value`, separated by commas; commas within quotes belong to the value.
fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((name, rest)) = text.split_once('=') {
        let name = name.trim_matches(|c: char| c == ',' || c.is_whitespace()).to_owned();
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let mut value = String::new();
                let mut characters = quoted.char_indices();
                let mut end = quoted.len();
                while let Some((at, c)) = characters.next() {
                    match c {
                        '"' => {
                            end = at + 1;
                            break;
                        }
                        '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                        other => value.push(other),
                    }
                }
                (value, quoted.get(end..).unwrap_or(""))
            }
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].trim().to_owned(), &rest[end..])
            }
        };
        found.push((name, value));
        text = rest;
    }
    found
}

/// What a token service answers.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    refresh_token: Option<String>,
    expires_in: Option<u64>,
}

/// A bearer token, until it ends.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) value: String,
    pub(super) until: Instant,
    /// For tokens to come, where one was asked for.
    pub(super) refresh: Option<String>,
}

impl Token {
    /// Reads a token service's answer.
    pub(super) fn parse(bytes: &[u8], now: Instant) -> Result<Token, RegistryError> {
        let wrong = |reason: &str| RegistryError::Protocol(format!("the token service's answer {reason}"));
        let answer: TokenAnswer = serde_json::from_slice(bytes).map_err(|_| wrong("is not JSON"))?;
        let refresh = answer.refresh_token.filter(|token| !token.is_empty());
        let value = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let value = value.ok_or_else(|| wrong("has no token"))?;
        let lifetime =
            answer.expires_in.map_or(LIFETIME_DEFAULT, |seconds| Duration::from_secs(seconds.min(86_400)));
        // Renewed a little early, so that it doesn't end on the way.
        Ok(Token { value, until: now + lifetime.mul_f32(0.8), refresh })
    }
}

/// `base?service=…&scope=…`, percent-encoded.
pub(super) fn token_uri(realm: &str, service: Option<&str>, scopes: &[String]) -> String {
    let mut uri = realm.to_owned();
    let mut separator = if realm.contains('?') { '&' } else { '?' };
    let service = service.map(|service| ("service", service));
    for (name, value) in service.into_iter().chain(scopes.iter().map(|scope| ("scope", scope.as_str()))) {
        uri.push(separator);
        uri.push_str(&format!("{name}={}", encoded(value)));
        separator = '&';
    }
    uri
}

/// Percent-encoded (RFC 3986, unreserved characters as they are).
pub(super) fn encoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let docker = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        assert_eq!(
            Challenge::parse(docker),
            Some(Challenge::Bearer {
                realm: "https://auth.docker.io/token".into(),
                service: Some("registry.docker.io".into()),
                scope: Some("repository:a/b:pull,push".into()),
            })
        );
        assert_eq!(Challenge::parse("Basic realm=x"), Some(Challenge::Basic));
        assert_eq!(
            Challenge::parse("bearer realm=http://x , scope=y")
                .map(|c| matches!(c, Challenge::Bearer { .. })),
            Some(true)
        );
        for bad in ["Bearer", "Bearer service=\"x\"", "Digest realm=\"x\"", "", "Bearer realm"] {
            assert_eq!(Challenge::parse(bad), None, "{bad}");
        }
        // Torn quotes end at the end, and do not panic.
        assert!(Challenge::parse("Bearer realm=\"x\\").is_some());
    }

    #[test]
    fn token_addresses_are_encoded() {
        let uri = token_uri("https://a/t?x=1", Some("r s"), &["repository:a/b:pull".to_owned()]);
        assert_eq!(uri, "https://a/t?x=1&service=r%20s&scope=repository%3Aa%2Fb%3Apull");
    }

    #[test]
    fn tokens_are_read() {
        let now = Instant::now();
        assert_eq!(Token::parse(b"{\"access_token\":\"t\",\"expires_in\":100}", now).unwrap().value, "t");
        assert!(Token::parse(b"{}", now).is_err());
        assert!(Token::parse(b"<html>", now).is_err());
    }
}
