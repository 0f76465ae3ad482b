//! The node's key pair. The private half stays in one file that only root may read, and is never said.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use boringtun::x25519::{PublicKey, StaticSecret};

use super::Key;
use crate::error::Error;

/// Both halves.
#[derive(Clone)]
pub(crate) struct KeyPair {
    pub(crate) secret: StaticSecret,
    pub(crate) public: PublicKey,
}

/// Without the private half.
impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").field("public", self.public.as_bytes()).finish_non_exhaustive()
    }
}

impl KeyPair {
    /// Reads the file, or makes one where there is none that can be one.
    pub(crate) fn load_or_make(path: &Path) -> Result<KeyPair, Error> {
        let failed = |operation| move |source| Error::State { path: path.to_owned(), operation, source };
        if let Ok(bytes) = fs::read(path)
            && let Ok(key) = Key::try_from(bytes.as_slice())
        {
            return Ok(KeyPair::new(key));
        }
        let mut key = Key::default();
        let random = Path::new("/dev/urandom");
        File::open(random).and_then(|mut file| file.read_exact(&mut key)).map_err(|source| Error::State {
            path: random.to_owned(),
            operation: "read",
            source,
        })?;
        let fresh = path.with_extension("new");
        let write = || {
            let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).clone();
            let mut file = options.open(&fresh)?;
            file.write_all(&key)?;
            file.sync_all()?;
            fs::rename(&fresh, path)
        };
        write().map_err(failed("write"))?;
        Ok(KeyPair::new(key))
    }

    fn new(key: Key) -> KeyPair {
        let secret = StaticSecret::from(key);
        let public = PublicKey::from(&secret);
        KeyPair { secret, public }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_root_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wireguard.key");
        let made = KeyPair::load_or_make(&path).unwrap();
        let read = KeyPair::load_or_make(&path).unwrap();
        assert_eq!(made.public, read.public);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let shown = format!("{made:?}");
        assert!(!shown.contains(&format!("{:?}", made.secret.as_bytes())), "{shown}");
        // A torn file is no key.
        fs::write(&path, [1; 31]).unwrap();
        assert_ne!(KeyPair::load_or_make(&path).unwrap().public, made.public);
    }
}
