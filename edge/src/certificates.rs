//! Certificates by host, and what a TLS handshake gets of them.
//!
//! The table is replaced whole; a handshake reads it once. Keys are in memory alone.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};

/// A certificate with its key.
pub struct Certificate {
    /// Its name in the cluster.
    pub name: String,
    /// The names that it is for, in small letters; `*.example` for one label before it. Of two certificates for one
    /// host the later one of the list counts.
    pub hosts: Vec<String>,
    /// The certificate, then those that lead to the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Certificate").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All certificates of the node.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    by_host: RwLock<Arc<BTreeMap<String, Arc<CertifiedKey>>>>,
}

impl Certificates {
    /// Takes the place of all that were. One that can't be used is left out and logged.
    pub(crate) fn set(&self, list: Vec<Certificate>) {
        let mut by_host = BTreeMap::new();
        for certificate in list {
            let Certificate { name, hosts, chain, key } = certificate;
            match ring::sign::any_supported_type(&key) {
                Ok(key) => {
                    let certified = Arc::new(CertifiedKey::new(chain, key));
                    by_host.extend(hosts.into_iter().map(|host| (host, Arc::clone(&certified))));
                }
                Err(error) => tracing::warn!(name, %error, "a certificate's key can't be used; left out"),
            }
        }
        *self.by_host.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(by_host);
    }

    /// The one for a host, in small letters.
    pub(crate) fn find(&self, host: &str) -> Option<Arc<CertifiedKey>> {
        let by_host = Arc::clone(&self.by_host.read().unwrap_or_else(PoisonError::into_inner));
        let wildcard = || host.split_once('.').and_then(|(_, rest)| by_host.get(&format!("*.{rest}")));
        by_host.get(host).or_else(wildcard).cloned()
    }

    /// Whether two hosts have the same one, so that a connection for the one may serve the other.
    pub(crate) fn share(&self, one: &str, other: &str) -> bool {
        match (self.find(one), self.find(other)) {
            (Some(one), Some(other)) => Arc::ptr_eq(&one, &other) || one.cert == other.cert,
            _ => false,
        }
    }
}

/// Chooses by the name that the client asks for. Without a name, or for another one, the handshake fails.
#[derive(Debug)]
struct BySni(Arc<Certificates>);

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.find(&hello.server_name()?.to_ascii_lowercase())
    }
}

/// How TLS is spoken: 1.2 and 1.3, HTTP/2 before HTTP/1.1.
pub(crate) fn server_config(certificates: &Arc<Certificates>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(BySni(Arc::clone(certificates))));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = ring::Ticketer::new()?;
    Ok(Arc::new(config))
}
