//! What a node shows: its chain, its key and the CA; kept in memory and in a folder, replaced by renewal.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::identity::validity_secs;
use super::{ALPN, Identity, TlsError, VERSIONS, provider};

/// A node's certificate, its key and the CA that signed it.
pub struct Credentials {
    /// The cluster's root.
    pub ca: CertificateDer<'static>,
    /// The node's certificate. It is shown together with the CA's.
    pub certificate: CertificateDer<'static>,
    /// The key of the certificate, PKCS#8. Never logged.
    pub key: PrivatePkcs8KeyDer<'static>,
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self { ca: self.ca.clone(), certificate: self.certificate.clone(), key: self.key.clone_key() }
    }
}

impl Credentials {
    /// From DER as it comes from the wire and from [`super::generate_csr`].
    pub fn from_der(ca: Vec<u8>, certificate: Vec<u8>, key: Vec<u8>) -> Self {
        Self { ca: ca.into(), certificate: certificate.into(), key: key.into() }
    }

    /// Whose they are.
    pub fn identity(&self) -> Result<Identity, TlsError> {
        Identity::from_certificate(&self.certificate)
    }
}

/// Everything that is made from one set of credentials.
pub(super) struct Loaded {
    credentials: Credentials,
    identity: Identity,
    not_before: SystemTime,
    not_after: SystemTime,
    pub(super) server: Arc<ServerConfig>,
    /// For clients that are no nodes: HTTP, and no certificate is asked for.
    public: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
}

/// The present credentials of this node. Clones share them.
#[derive(Clone)]
pub struct CredentialStore {
    present: Arc<RwLock<Arc<Loaded>>>,
}

impl CredentialStore {
    /// Fails where certificate, key and CA don't fit together.
    pub fn new(credentials: Credentials) -> Result<Self, TlsError> {
        Ok(Self { present: Arc::new(RwLock::new(Arc::new(Loaded::new(credentials)?))) })
    }

    /// Puts new ones in their place, for every connection from now on; on an error the old ones stay.
    pub fn replace(&self, credentials: Credentials) -> Result<(), TlsError> {
        let loaded = Arc::new(Loaded::new(credentials)?);
        *self.present.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    /// A copy of the present ones.
    pub fn credentials(&self) -> Credentials {
        self.present().credentials.clone()
    }

    /// Whose they are.
    pub fn identity(&self) -> Identity {
        self.present().identity.clone()
    }

    /// The settings of a port for clients that are no nodes: HTTP/1.1 in TLS 1.3, with the node's present
    /// certificate.
    pub fn public_server(&self) -> Arc<ServerConfig> {
        self.present().public.clone()
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> SystemTime {
        self.present().not_after
    }

    /// When to renew: after half of the certificate's life.
    pub fn renew_at(&self) -> SystemTime {
        let present = self.present();
        let life = present.not_after.duration_since(present.not_before).unwrap_or_default();
        present.not_before + life / 2
    }

    /// Reads what [`Self::save`] wrote; `None` where nothing was saved yet.
    pub fn load(folder: &Path) -> Result<Option<Self>, TlsError> {
        let path = folder.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => Self::new(decode(&bytes, path)?).map(Some),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(TlsError::File { operation: "read", path, source }),
        }
    }

    /// Writes them to one file of the folder, readable by the owner alone, so that a crash leaves the old
    /// ones or the new ones.
    pub fn save(&self, folder: &Path) -> Result<(), TlsError> {
        let error = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::File { operation, path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(error("create", folder))?;
        let path = folder.join(FILE);
        let temporary = folder.join(format!("{FILE}.new"));
        match fs::remove_file(&temporary) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(error("remove", &temporary)(source));
            }
            _ => {}
        }
        let bytes = encode(&self.present().credentials);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(error("create", &temporary))?;
        file.write_all(&bytes).map_err(error("write", &temporary))?;
        file.sync_all().map_err(error("sync", &temporary))?;
        fs::rename(&temporary, &path).map_err(error("rename", &temporary))?;
        let folder_file = fs::File::open(folder).map_err(error("open", folder))?;
        folder_file.sync_all().map_err(error("sync", folder))
    }

    /// Takes away what [`Self::save`] wrote, for a node that has left; fine where there is nothing.
    pub fn remove(folder: &Path) -> Result<(), TlsError> {
        let path = folder.join(FILE);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(TlsError::File { operation: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn present(&self) -> Arc<Loaded> {
        self.present.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Loaded {
    fn new(credentials: Credentials) -> Result<Self, TlsError> {
        let identity = credentials.identity()?;
        let (not_before, not_after) = validity_secs(&credentials.certificate)?;
        let mut roots = RootCertStore::empty();
        roots.add(credentials.ca.clone()).map_err(|error| TlsError::Anchor { problem: error.to_string() })?;
        let roots = Arc::new(roots);
        Ok(Self {
            server: Arc::new(server_config(&credentials, roots.clone())?),
            public: Arc::new(public_config(&credentials)?),
            client: Arc::new(client_config(&credentials, roots)?),
            identity,
            not_before: epoch_secs(not_before),
            not_after: epoch_secs(not_after),
            credentials,
        })
    }
}

fn epoch_secs(secs: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(secs.try_into().unwrap_or_default())
}

/// The leaf, then the CA: who bootstraps needs the CA in the chain to compare its hash.
fn chain(credentials: &Credentials) -> Vec<CertificateDer<'static>> {
    vec![credentials.certificate.clone(), credentials.ca.clone()]
}

fn key(credentials: &Credentials) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(credentials.key.clone_key())
}

fn server_config(credentials: &Credentials, roots: Arc<RootCertStore>) -> Result<ServerConfig, TlsError> {
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::Anchor { problem: error.to_string() })?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(TlsError::Configuration)?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain(credentials), key(credentials))
        .map_err(TlsError::Configuration)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn public_config(credentials: &Credentials) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(TlsError::Configuration)?
        .with_no_client_auth()
        .with_single_cert(chain(credentials), key(credentials))
        .map_err(TlsError::Configuration)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn client_config(credentials: &Credentials, roots: Arc<RootCertStore>) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(TlsError::Configuration)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain(credentials), key(credentials))
        .map_err(TlsError::Configuration)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// One file for all three parts: a certificate without its key is never seen, not even after a crash.
const FILE: &str = "credentials";

/// Names the layout of the file.
const MAGIC: &[u8] = b"rorqual-credentials-1\n";

/// Each part with its length in front, big-endian.
fn encode(credentials: &Credentials) -> Vec<u8> {
    let parts = [credentials.ca.as_ref(), &credentials.certificate, credentials.key.secret_pkcs8_der()];
    let mut bytes = MAGIC.to_vec();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

fn decode(bytes: &[u8], path: PathBuf) -> Result<Credentials, TlsError> {
    fn part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (length, after) = rest.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_be_bytes(*length)).ok()?;
        let (part, after) = after.split_at_checked(length)?;
        *rest = after;
        Some(part)
    }
    let parts = bytes.strip_prefix(MAGIC).and_then(|mut rest| {
        let parts = (part(&mut rest)?, part(&mut rest)?, part(&mut rest)?);
        rest.is_empty().then_some(parts)
    });
    match parts {
        Some((ca, certificate, key)) => {
            Ok(Credentials::from_der(ca.to_vec(), certificate.to_vec(), key.to_vec()))
        }
        None => Err(TlsError::Content { path, expected: "a file of this node's credentials" }),
    }
}
