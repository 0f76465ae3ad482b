//! How a machine that is not yet in a cluster checks a controller: by the CA's hash in its join token.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};

use super::{ca_hash, provider};

/// The server shows no certificate with the hash in the token.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server's CA is not the one in the join token: the address or the token belongs to another cluster"
)]
pub(super) struct OtherAuthority;

/// Accepts a chain that contains the CA with the given hash, and a leaf that this CA signed for the name
/// asked for.
#[derive(Debug)]
pub(super) struct HashVerifier {
    hash: [u8; 32],
    algorithms: WebPkiSupportedAlgorithms,
}

impl HashVerifier {
    pub(super) fn new(hash: [u8; 32]) -> Self {
        Self { hash, algorithms: provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for HashVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let other = |error| Error::InvalidCertificate(CertificateError::Other(OtherError(error)));
        let ca = intermediates
            .iter()
            .find(|certificate| ca_hash(certificate) == self.hash)
            .ok_or_else(|| other(Arc::new(OtherAuthority)))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| other(Arc::new(error)))?;
        verifier.verify_server_cert(leaf, &[], name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
