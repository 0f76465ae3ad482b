//! How registries are talked to: what the user and the node's administrator say about them.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What proves to one registry who asks.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// For basic authentication, and for the registry's token service.
    Password {
        /// The user.
        username: String,
        /// The password, or an access token in its place.
        password: String,
    },
    /// A refresh token, for the registry's token service (`identitytoken` in Docker's configuration).
    Identity {
        /// The token.
        token: String,
    },
    /// An access token that goes to the registry as it is (`registrytoken`).
    Bearer {
        /// The token.
        token: String,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Password { username, .. } => {
                f.debug_struct("Password").field("username", username).finish_non_exhaustive()
            }
            Credentials::Identity { .. } => f.write_str("Identity"),
            Credentials::Bearer { .. } => f.write_str("Bearer"),
        }
    }
}

/// What is special about one registry: a table of `registries.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistrySettings {
    /// Asked before the registry itself when something is pulled, in this order: `https://HOST[:PORT][/PREFIX]`,
    /// `http://…`, or `HOST[:PORT]`.
    pub mirrors: Vec<String>,
    /// It is spoken to without TLS.
    pub plain_http: bool,
    /// Its certificate may be of one of these authorities (PEM files), beside those that the system trusts.
    pub ca: Vec<PathBuf>,
    /// Its certificate is not looked at. For tests: whoever stands in between can read and change everything.
    pub skip_verify: bool,
}

/// How registries are talked to.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Registries (`host` or `host:port`) that are spoken to by plain HTTP. Loopback ones are anyway.
    pub insecure: Vec<String>,
    /// By registry, as it stands in references (`docker.io`, `registry.example:5000`), or by a mirror's host.
    pub credentials: HashMap<String, Credentials>,
    /// By registry as well.
    pub registries: HashMap<String, RegistrySettings>,
    /// How often a request is tried.
    pub attempts: u32,
    /// The first pause between attempts; it doubles. A `Retry-After` goes before.
    pub backoff: Duration,
    /// The longest pause that a registry may ask for.
    pub backoff_max: Duration,
    /// For a connection, name resolution and TLS included.
    pub connect_timeout: Duration,
    /// For an answer's head, and between two pieces of a body.
    pub idle_timeout: Duration,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        RegistryOptions {
            insecure: Vec::new(),
            credentials: HashMap::new(),
            registries: HashMap::new(),
            attempts: 5,
            backoff: Duration::from_millis(200),
            backoff_max: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
        }
    }
}

/// One place to ask: the registry itself, or a mirror of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Its host as settings and credentials name it.
    pub(super) name: String,
    /// `https://registry-1.docker.io`
    pub(super) base: String,
    pub(super) is_plain: bool,
    /// It is on this machine or without TLS, so it may point here as well.
    pub(super) is_trusting: bool,
}

impl RegistryOptions {
    fn settings(&self, name: &str) -> RegistrySettings {
        self.registries.get(name).cloned().unwrap_or_default()
    }

    pub(super) fn ca(&self, name: &str) -> Vec<PathBuf> {
        self.settings(name).ca
    }

    pub(super) fn skips_verification(&self, name: &str) -> bool {
        self.settings(name).skip_verify
    }

    /// The registry itself.
    pub(super) fn endpoint(&self, registry: &str) -> Endpoint {
        // Docker Hub answers under another name than the one it has in references.
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let is_plain = self.is_plain(registry);
        let scheme = if is_plain { "http" } else { "https" };
        Endpoint {
            name: registry.to_owned(),
            base: format!("{scheme}://{host}"),
            is_plain,
            is_trusting: is_plain || is_loopback(host_of(registry)),
        }
    }

    /// Its mirrors, in order, and then the registry.
    pub(super) fn endpoints(&self, registry: &str) -> Vec<Endpoint> {
        let mirrors = self.settings(registry).mirrors;
        let mut endpoints: Vec<Endpoint> = mirrors.iter().map(|mirror| self.mirror(mirror)).collect();
        endpoints.push(self.endpoint(registry));
        endpoints
    }

    fn mirror(&self, text: &str) -> Endpoint {
        let text = text.trim_end_matches('/');
        let (is_plain, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme == "http", rest),
            None => (self.is_plain(text.split('/').next().unwrap_or(text)), text),
        };
        let name = rest.split('/').next().unwrap_or(rest).to_owned();
        let scheme = if is_plain { "http" } else { "https" };
        let is_trusting = is_plain || is_loopback(host_of(&name));
        Endpoint { base: format!("{scheme}://{rest}"), name, is_plain, is_trusting }
    }

    /// Loopback, or named insecure with or without its port.
    fn is_plain(&self, registry: &str) -> bool {
        let (host, settings) = (host_of(registry), self.settings(registry));
        let speaks_tls = !settings.ca.is_empty() || settings.skip_verify;
        settings.plain_http
            || (is_loopback(host) && !speaks_tls)
            || self.insecure.iter().any(|named| named == registry || named == host)
    }
}

fn host_of(registry: &str) -> &str {
    match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => registry.split(':').next().unwrap_or(registry),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_who_is_named() {
        let insecure = vec!["registry.lan".to_owned(), "other.lan:5000".to_owned()];
        let tls = RegistrySettings { ca: vec!["/x.pem".into()], ..RegistrySettings::default() };
        let plain = RegistrySettings { plain_http: true, ..RegistrySettings::default() };
        let registries = HashMap::from([("127.0.0.1:5443".to_owned(), tls), ("plain.lan".to_owned(), plain)]);
        let options = RegistryOptions { insecure, registries, ..RegistryOptions::default() };
        for (registry, plain) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.0.0.1:5443", false),
            ("127.8.8.8", true),
            ("[::1]:5000", true),
            ("registry.lan", true),
            ("registry.lan:80", true),
            ("other.lan:5000", true),
            ("other.lan", false),
            ("plain.lan", true),
            ("docker.io", false),
            ("localhost.example", false),
            ("127.0.0.1.example", false),
            ("10.0.0.1:5000", false),
            ("[fd00::1]:5000", false),
        ] {
            assert_eq!(options.endpoint(registry).is_plain, plain, "{registry}");
        }
        assert_eq!(options.endpoint("docker.io").base, "https://registry-1.docker.io");
    }

    #[test]
    fn mirrors_are_asked_first_and_under_their_own_name() {
        let mirrors = ["http://10.0.0.1:5000", "mirror.lan/hub/", "https://m2.lan"].map(str::to_owned);
        let settings = RegistrySettings { mirrors: mirrors.to_vec(), ..RegistrySettings::default() };
        let registries = HashMap::from([("docker.io".to_owned(), settings)]);
        let options = RegistryOptions { registries, ..RegistryOptions::default() };
        let seen: Vec<(String, String)> =
            options.endpoints("docker.io").into_iter().map(|one| (one.name, one.base)).collect();
        let expected = [
            ("10.0.0.1:5000", "http://10.0.0.1:5000"),
            ("mirror.lan", "https://mirror.lan/hub"),
            ("m2.lan", "https://m2.lan"),
            ("docker.io", "https://registry-1.docker.io"),
        ];
        assert_eq!(seen, expected.map(|(name, base)| (name.to_owned(), base.to_owned())));
        assert_eq!(options.endpoints("ghcr.io").len(), 1);
    }

    #[test]
    fn secrets_are_not_shown() {
        let all = [
            Credentials::Password { username: "u".into(), password: "hush".into() },
            Credentials::Identity { token: "hush".into() },
            Credentials::Bearer { token: "hush".into() },
        ];
        assert!(all.iter().all(|one| !format!("{one:?}").contains("hush")));
    }
}
