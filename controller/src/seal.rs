//! What only controllers can read of the store: sealed with a key that lies beside the store and is in neither the log
//! nor a snapshot.
//!
//! One key a cluster. The founding node makes it, and a controller that joins is given it over TLS; each keeps it in
//! its folder of certificates, for the owner alone. A sealed value is a version, a random nonce, and what
//! ChaCha20-Poly1305 makes of the content (RFC 8439); whose it is goes into the tag, so that a value that is put in
//! another one's place does not open.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::Rng as _;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// Length of a key, in bytes.
const KEY_BYTES: usize = 32;
/// Names the cipher and the layout of a sealed value.
const VERSION: u8 = 1;
/// In the folder of certificates.
const FILE: &str = "seal-key";

/// The key. Clones share it; it is not shown.
#[derive(Clone)]
pub struct SealKey {
    inner: Arc<Inner>,
}

struct Inner {
    bytes: [u8; KEY_BYTES],
    key: LessSafeKey,
}

/// Why a key is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum SealKeyError {
    /// Its file can't be read or written.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{place} is no key of {KEY_BYTES} bytes: copy certs/{FILE} from another controller")]
    Content {
        /// Where it came from.
        place: String,
    },
}

/// A value that was not sealed with this key, or for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it was sealed with another key than this controller's, or is damaged: copy certs/{FILE} from another controller"
)]
pub(crate) struct Unsealable;

impl SealKey {
    /// A new one.
    pub fn generate() -> Self {
        Self::new(rand::rng().random()).unwrap_or_else(|| unreachable!("the length is the cipher's"))
    }

    fn new(bytes: [u8; KEY_BYTES]) -> Option<Self> {
        let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &bytes).ok()?);
        Some(Self { inner: Arc::new(Inner { bytes, key }) })
    }

    /// As [`Self::bytes`] gave it; `place` says where it came from.
    pub fn from_bytes(bytes: &[u8], place: &str) -> Result<Self, SealKeyError> {
        let bytes = <[u8; KEY_BYTES]>::try_from(bytes).ok();
        bytes.and_then(Self::new).ok_or_else(|| SealKeyError::Content { place: place.to_owned() })
    }

    /// To be given to another controller, and to nobody else.
    pub fn bytes(&self) -> &[u8] {
        &self.inner.bytes
    }

    /// Reads what [`Self::save`] wrote; `None` where nothing was.
    pub fn load(folder: &Path) -> Result<Option<Self>, SealKeyError> {
        let path = folder.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => Self::from_bytes(&bytes, &path.display().to_string()).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SealKeyError::File { operation: "read", path, source }),
        }
    }

    /// Writes it into the folder, for the owner alone; durable when it returns.
    pub fn save(&self, folder: &Path) -> Result<(), SealKeyError> {
        let path = folder.join(FILE);
        let new = folder.join(format!("{FILE}.new"));
        let write = || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(self.bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            fs::File::open(folder)?.sync_all()
        };
        write().map_err(|source| SealKeyError::File { operation: "write", path: path.clone(), source })
    }

    /// `content`, readable with this key alone and as that of `whose` alone.
    pub(crate) fn seal(&self, whose: &str, content: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = rand::rng().random();
        let mut body = content.to_vec();
        let tag = self.inner.key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(whose.as_bytes()),
            &mut body,
        );
        // Fails for contents of many gigabytes alone.
        let Ok(tag) = tag else { return Vec::new() };
        [&[VERSION], nonce.as_slice(), &body, tag.as_ref()].concat()
    }

    /// What was sealed for `whose`.
    pub(crate) fn open(&self, whose: &str, sealed: &[u8]) -> Result<Vec<u8>, Unsealable> {
        let rest = sealed.strip_prefix(&[VERSION]).ok_or(Unsealable)?;
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or(Unsealable)?;
        let mut body = body.to_vec();
        let (nonce, aad) = (Nonce::assume_unique_for_key(*nonce), Aad::from(whose.as_bytes()));
        let content = self.inner.key.open_in_place(nonce, aad, &mut body).map_err(|_| Unsealable)?;
        let length = content.len();
        body.truncate(length);
        Ok(body)
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("SealKey")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_the_key_and_the_right_place_open_a_value() {
        let key = SealKey::generate();
        let sealed = key.seal("a", b"secret");
        assert_eq!(key.open("a", &sealed).unwrap(), b"secret");
        assert_ne!(key.seal("a", b"secret"), sealed, "a nonce is used once");
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(key.open("b", &sealed), Err(Unsealable));
        assert_eq!(SealKey::generate().open("a", &sealed), Err(Unsealable));
        for at in 0..sealed.len() {
            let mut other = sealed.clone();
            other[at] ^= 1;
            assert_eq!(key.open("a", &other), Err(Unsealable), "byte {at}");
            assert_eq!(key.open("a", &sealed[..at]), Err(Unsealable), "cut at {at}");
        }
        assert!(!format!("{key:?}").contains(&format!("{:?}", key.bytes())));
    }

    #[test]
    fn the_key_is_kept_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let certs = folder.path().join("certs");
        assert!(SealKey::load(&certs).unwrap().is_none());
        let key = SealKey::generate();
        key.save(&certs).unwrap();
        key.save(&certs).unwrap();
        assert_eq!(SealKey::load(&certs).unwrap().unwrap().bytes(), key.bytes());
        let mode = fs::metadata(certs.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(certs.join(FILE), b"short").unwrap();
        let error = SealKey::load(&certs).unwrap_err().to_string();
        assert!(error.contains("seal-key") && error.contains("another controller"), "{error}");
    }
}
