//! The cluster's root CA: made at `cluster init`, kept in the replicated store, signs node certificates.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Identity, TlsError};
use crate::model::ClusterId;

/// How long the root is valid: longer than a cluster is likely to live.
const CA_VALIDITY: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// Certificates begin this long before they are made, for nodes whose clocks are behind.
const BACKDATED: Duration = Duration::from_secs(3600);

/// SHA-256 of a certificate (DER), as a join token carries it.
pub fn ca_hash(certificate_der: &[u8]) -> [u8; 32] {
    Sha256::digest(certificate_der).into()
}

/// A fresh key (PKCS#8 DER) and a request (PKCS#10 DER) for a certificate on it. The request carries
/// nothing but the key: the authority decides what the certificate says.
pub fn generate_csr() -> Result<(Vec<u8>, Vec<u8>), TlsError> {
    let error = |source| TlsError::Generate { what: "a certificate signing request", source };
    let key = KeyPair::generate().map_err(error)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(error)?;
    Ok((key.serialize_der(), request.der().to_vec()))
}

/// The root certificate and its key.
pub struct CertificateAuthority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl CertificateAuthority {
    /// A new root for a cluster.
    pub fn generate(cluster_id: &ClusterId) -> Result<Self, TlsError> {
        let error = |source| TlsError::Generate { what: "the cluster's CA", source };
        let key = KeyPair::generate().map_err(error)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, cluster_id.as_str());
        name.push(DnType::CommonName, "rorqual-ca");
        params.distinguished_name = name;
        let now = SystemTime::now();
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + CA_VALIDITY).into();
        let certificate = params.self_signed(&key).map_err(error)?.der().clone();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// The root as it was kept: the certificate (DER) and its key (PKCS#8 DER).
    pub fn from_der(certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let authority = |problem: String| TlsError::Authority { problem };
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(key))
            .map_err(|error| authority(format!("its key can't be read ({error})")))?;
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|error| authority(format!("its certificate can't be read ({error})")))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(authority("its key is not its certificate's".to_owned()));
        }
        let certificate = CertificateDer::from(certificate.to_vec());
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| authority(format!("its certificate can't sign ({error})")))?;
        Ok(Self { certificate, issuer })
    }

    /// The certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The private key, PKCS#8 DER. Never log it.
    pub fn key_der(&self) -> &[u8] {
        self.issuer.key().serialized_der()
    }

    /// SHA-256 of the certificate, as a join token carries it.
    pub fn hash(&self) -> [u8; 32] {
        ca_hash(&self.certificate)
    }

    /// A certificate for `identity` on the key of a request (PKCS#10 DER), from an hour ago until
    /// `validity` from now. Whatever else the request says is ignored.
    pub fn issue(
        &self,
        csr_der: &[u8],
        identity: &Identity,
        validity: Duration,
    ) -> Result<CertificateDer<'static>, TlsError> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
            .map_err(TlsError::Request)?;
        let error = |source| TlsError::Generate { what: "a node's certificate", source };
        let mut params = CertificateParams::new(identity.dns_names()).map_err(error)?;
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, identity.cluster_id.as_str());
        name.push(DnType::OrganizationalUnitName, identity.unit());
        name.push(DnType::CommonName, identity.node_id.as_str());
        params.distinguished_name = name;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let now = SystemTime::now();
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + validity).into();
        let certificate = params.signed_by(&request.public_key, &self.issuer).map_err(error)?;
        Ok(certificate.der().clone())
    }
}
