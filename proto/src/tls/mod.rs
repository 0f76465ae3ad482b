//! Identities in certificates, and mutual TLS 1.3 between nodes.
//!
//! A cluster has one root CA ([`CertificateAuthority`]). Each node holds [`Credentials`] in a
//! [`CredentialStore`], which renewal replaces while everything runs: connections made from then on use
//! the new ones, those that stand stay. [`ServerTls`] accepts TCP connections for tonic's
//! `serve_with_incoming`; [`require_role`] tells a handler who calls. [`connect`] gives a channel to a node
//! whose certificate has to name it, [`connect_bootstrap`] one to a controller that proves itself by the
//! CA's hash in a join token.
//!
//! The cryptography is ring's, passed to each configuration by hand: nothing here reads or sets the
//! process' default provider. Sessions are never resumed, so that each connection shows its certificate.

mod alive;
mod ca;
mod client;
mod credentials;
mod identity;
mod server;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use alive::{PING_INTERVAL, PING_TIMEOUT};
pub use ca::{CertificateAuthority, ca_hash, generate_csr};
pub use client::{Expect, connect, connect_bootstrap};
pub use credentials::{CredentialStore, Credentials};
pub use identity::{CONTROLLER_NAME, Identity, REGISTRY_NAME, node_name};
pub use server::{Incoming, PeerInfo, ServerTls, TlsConn, peer_identity, require_role};

/// What can go wrong with certificates, keys and the configurations made of them.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Making a key, a request or a certificate.
    #[error("cannot make {what}")]
    Generate {
        /// What was to be made.
        what: &'static str,
        /// rcgen's reason.
        #[source]
        source: rcgen::Error,
    },
    /// A request that is not one, or whose signature is not its key's.
    #[error("the certificate signing request is not acceptable")]
    Request(#[source] rcgen::Error),
    /// The CA's certificate and key can't be used.
    #[error("the cluster's CA can't be used: {problem}")]
    Authority {
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate that does not say who its owner is.
    #[error("the certificate names no node of a cluster: {problem}")]
    Identity {
        /// What is missing or malformed.
        problem: String,
    },
    /// A certificate, its key and the CA that don't fit together.
    #[error(
        "the node's certificate, key and CA don't fit together; leave the cluster and join it again if this stays"
    )]
    Configuration(#[source] rustls::Error),
    /// The verifier can't be built from the CA.
    #[error("the cluster's CA can't be a trust anchor: {problem}")]
    Anchor {
        /// What is wrong with it.
        problem: String,
    },
    /// An address to connect to that is none.
    #[error("`{address}` is not an address to connect to: expected host:port")]
    Address {
        /// What was given.
        address: String,
    },
    /// Reading or writing credentials.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// `read`, `write`, …
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file that is there and holds something else.
    #[error("{} is not {expected}; leave the cluster and join it again", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What was expected in it.
        expected: &'static str,
    },
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The only version that nodes speak.
const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// HTTP/2, which is all that gRPC needs.
const ALPN: &[u8] = b"h2";

#[cfg(test)]
mod tests;
