//! Content digests: the names of everything in the store.
//!
//! A [`Digest`] is `sha256:<64 hex>` or `sha512:<128 hex>`, always validated and in lower case; a
//! [`Hasher`] computes one while content streams by.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// A hash function that may name content (OCI image-spec, "registered algorithms").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, 64 hex digits.
    Sha256,
    /// SHA-512, 128 hex digits.
    Sha512,
}

impl Algorithm {
    /// The name in front of the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// How many hex digits a digest of this algorithm has.
    pub fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// The digest of a blob, a manifest or an unpacked layer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

/// Why a string is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no `algorithm:` in front.
    #[error("`{0}` is not a digest: expected `sha256:` and 64 hex digits")]
    NoAlgorithm(String),
    /// An algorithm that is not sha256 or sha512.
    #[error("digest algorithm `{0}` is not supported: use sha256 or sha512")]
    UnknownAlgorithm(String),
    /// The wrong number of digits.
    #[error("a {algorithm} digest has {expected} hex digits, this one has {actual}")]
    Length {
        /// Name of the algorithm.
        algorithm: &'static str,
        /// Digits that it needs.
        expected: usize,
        /// Digits that were given.
        actual: usize,
    },
    /// A character that is not in `0-9a-f`.
    #[error("character `{0}` is not a lower-case hex digit")]
    NotHex(char),
}

impl Digest {
    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hex digits, without the algorithm.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The first twelve digits, for display.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }

    /// The SHA-256 digest of `content`.
    pub fn of(content: &[u8]) -> Digest {
        Self::of_with(Algorithm::Sha256, content)
    }

    /// The digest of `content` by `algorithm`.
    pub fn of_with(algorithm: Algorithm, content: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        hasher.finish()
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, hex) =
            text.split_once(':').ok_or_else(|| DigestError::NoAlgorithm(text.chars().take(80).collect()))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            other => return Err(DigestError::UnknownAlgorithm(other.chars().take(40).collect())),
        };
        if let Some(bad) = hex.chars().find(|c| !matches!(c, '0'..='9' | 'a'..='f')) {
            return Err(DigestError::NotHex(bad));
        }
        if hex.len() != algorithm.hex_len() {
            return Err(DigestError::Length {
                algorithm: algorithm.as_str(),
                expected: algorithm.hex_len(),
                actual: hex.len(),
            });
        }
        Ok(Digest { algorithm, hex: hex.into() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a [`Digest`] of what is written to it.
#[derive(Clone)]
pub struct Hasher(Inner);

#[derive(Clone)]
enum Inner {
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    /// A hasher that has seen nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => Inner::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Inner::Sha512(Box::new(sha2::Sha512::new())),
        })
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Inner::Sha256(hasher) => hasher.update(bytes),
            Inner::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of everything that was added.
    pub fn finish(self) -> Digest {
        match self.0 {
            Inner::Sha256(hasher) => Digest { algorithm: Algorithm::Sha256, hex: hex(&hasher.finalize()) },
            Inner::Sha512(hasher) => Digest { algorithm: Algorithm::Sha512, hex: hex(&hasher.finalize()) },
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

fn hex(bytes: &[u8]) -> Box<str> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)] as char, DIGITS[usize::from(byte & 15)] as char])
        .collect::<String>()
        .into_boxed_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digests() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse::<Digest>().unwrap(), Digest::of(b""));
        assert!(
            Digest::of_with(Algorithm::Sha512, b"abc").to_string().starts_with("sha512:ddaf35a193617aba")
        );
    }

    #[test]
    fn bad_digests_are_told_apart() {
        let upper = format!("sha256:{}", "A".repeat(64));
        for (text, part) in [
            ("abc", "expected `sha256:`"),
            ("md5:abcd", "`md5` is not supported"),
            ("sha256:abcd", "this one has 4"),
            (upper.as_str(), "`A` is not"),
            ("sha256:../../etc/passwd", "not a lower-case hex"),
        ] {
            let message = text.parse::<Digest>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn serde_is_the_string() {
        let digest = Digest::of(b"x");
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(json, format!("\"{digest}\""));
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        assert!(serde_json::from_str::<Digest>("\"sha256:zz\"").is_err());
    }
}
