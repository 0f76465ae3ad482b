//! Certificates as users give them: read, and refused at once where no client could use them.

use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Longest chain and key, bytes.
const MOST_BYTES: usize = 64 << 10;
/// Names of one certificate.
const MOST_HOSTS: usize = 256;

/// A certificate that can be served.
#[derive(Debug)]
pub(crate) struct Readable {
    pub(crate) hosts: Vec<String>,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) not_before_ms: i64,
    pub(crate) not_after_ms: i64,
}

/// Whether a certificate can have this name.
pub(crate) fn problem_of_name(name: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'*');
    let fits = (1..=255).contains(&name.len()) && name.bytes().all(allowed);
    (!fits).then(|| format!("name: `{name}` is not 1 to 255 letters, digits, `-`, `_`, `.` or `*`"))
}

/// Reads a chain and its key, PEM.
pub(crate) fn read(chain: &[u8], key: &[u8], now_ms: i64) -> Result<Readable, String> {
    if chain.len() > MOST_BYTES || key.len() > MOST_BYTES {
        return Err(format!("chain and key: expected at most {MOST_BYTES} bytes each"));
    }
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("chain: this is not PEM: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| format!("key: there is no private key in PEM that is not encrypted: {error}"))?;
    checked(chain, key, now_ms)
}

/// Checks a chain and its key.
pub(crate) fn checked(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    now_ms: i64,
) -> Result<Readable, String> {
    let first = chain.first().ok_or("chain: there is no certificate in it")?;
    let wrong = |error: String| format!("chain: the first certificate can't be read: {error}");
    let (_, leaf) = X509Certificate::from_der(first).map_err(|error| wrong(error.to_string()))?;
    let hosts = hosts(&leaf)?;
    let millis = |seconds: i64| seconds.saturating_mul(1000);
    let (not_before_ms, not_after_ms) =
        (millis(leaf.validity.not_before.timestamp()), millis(leaf.validity.not_after.timestamp()));
    if not_after_ms <= now_ms {
        return Err(format!("chain: the certificate has expired ({})", leaf.validity.not_after));
    }
    for pair in chain.windows(2) {
        let read = |der| X509Certificate::from_der(der).map(|(_, certificate)| certificate);
        if let (Ok(one), Ok(next)) = (read(&pair[0]), read(&pair[1]))
            && one.issuer() != next.subject()
        {
            let (issuer, subject) = (one.issuer(), next.subject());
            return Err(format!(
                "chain: behind a certificate that `{issuer}` has signed stands that of `{subject}`: put the \
                 server's certificate first, then each signer's"
            ));
        }
    }
    let signing = any_supported_type(&key).map_err(|error| format!("key: {error}"))?;
    CertifiedKey::new(chain.clone(), signing)
        .keys_match()
        .map_err(|_| "key: it is not the first certificate's key".to_owned())?;
    let chain = chain.iter().map(|der| der.to_vec()).collect();
    Ok(Readable { hosts, chain, key, not_before_ms, not_after_ms })
}

/// The DNS names that it is for.
fn hosts(leaf: &X509Certificate<'_>) -> Result<Vec<String>, String> {
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let mut hosts: Vec<String> = names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect();
    hosts.sort();
    hosts.dedup();
    match hosts.len() {
        0 => Err("chain: the certificate names no host (a DNS name as subject alternative name)".to_owned()),
        1..=MOST_HOSTS => Ok(hosts),
        many => Err(format!("chain: the certificate names {many} hosts: at most {MOST_HOSTS}")),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};

    use super::*;

    fn params(hosts: &[&str]) -> CertificateParams {
        CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    const NOW_MS: i64 = 1_800_000_000_000;

    #[test]
    fn a_chain_with_its_key_is_read() {
        let mut root = params(&[]);
        root.distinguished_name.push(rcgen::DnType::CommonName, "root");
        root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = params(&["B.example", "*.a.example"]).signed_by(&key, &root).unwrap();
        let chain = leaf.pem() + &root.pem();
        let read_one = read(chain.as_bytes(), key.serialize_pem().as_bytes(), NOW_MS).unwrap();
        assert_eq!(read_one.hosts, ["*.a.example", "b.example"]);
        assert_eq!(read_one.chain.len(), 2);
        assert!(read_one.not_before_ms < NOW_MS && NOW_MS < read_one.not_after_ms);

        let refused = |chain: String, key: &KeyPair, now_ms| {
            read(chain.as_bytes(), key.serialize_pem().as_bytes(), now_ms).unwrap_err()
        };
        let other = KeyPair::generate().unwrap();
        assert!(refused(chain.clone(), &other, NOW_MS).contains("not the first certificate's key"));
        assert!(refused(chain.clone(), &key, i64::MAX / 2).contains("expired"));
        let foreign = params(&["c.example"]).self_signed(&other).unwrap();
        let mixed = leaf.pem() + &foreign.pem();
        assert!(refused(mixed, &key, NOW_MS).contains("each signer's"));
        let nobody = params(&[]).self_signed(&other).unwrap();
        assert!(refused(nobody.pem(), &other, NOW_MS).contains("names no host"));
        assert!(refused(String::new(), &key, NOW_MS).contains("no certificate"));
        let no_key = read(chain.as_bytes(), chain.as_bytes(), NOW_MS).unwrap_err();
        assert!(no_key.contains("no private key"), "{no_key}");
    }
}
