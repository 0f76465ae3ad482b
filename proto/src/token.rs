//! The join token: what a machine needs to prove the cluster to itself and itself to the cluster.
//!
//! `RQTKN-1-<hash of the CA>-<secret>`: 50 characters of base 36 for the SHA-256 of the CA certificate
//! (DER), and 25 for the 128 bits of the secret. The joining node sends the secret only after the server
//! has shown a chain to a CA with that hash; a role has its own token, so the secret also says the role.

use std::fmt;
use std::str::FromStr;

use crate::model::id::{ID_LENGTH, text_from_bits};

/// What every token of this form begins with.
pub const PREFIX: &str = "RQTKN-1-";

/// Digits of base 36 that 256 bits need.
const HASH_LENGTH: usize = 50;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the CA certificate, DER.
    pub ca_hash: [u8; 32],
    /// The secret part, 25 characters. Never logged.
    pub secret: String,
}

/// Why a text is not a join token. The text itself is not repeated: it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// It is something else altogether.
    #[error(
        "this is not a join token: expected `{PREFIX}<hash>-<secret>`; `rctl cluster token worker` on a controller prints one"
    )]
    Prefix,
    /// Made by a later version.
    #[error(
        "the join token is of form {0}, and this version of rorquald knows form 1; install the cluster's version on this node"
    )]
    Version(String),
    /// Cut off, or with something appended.
    #[error("the join token has {found} parts, expected 4 (`{PREFIX}<hash>-<secret>`); copy it whole")]
    Parts {
        /// How many parts there are between dashes.
        found: usize,
    },
    /// A part that was cut off.
    #[error("the join token's {part} has {found} characters, expected {expected}; copy it whole")]
    Length {
        /// `hash` or `secret`.
        part: &'static str,
        /// How many there are.
        found: usize,
        /// How many there have to be.
        expected: usize,
    },
    /// A character that can't be in a token.
    #[error("the join token's {part} contains `{found}`, expected a–z and 0–9 only; copy it again")]
    Character {
        /// `hash` or `secret`.
        part: &'static str,
        /// The character.
        found: char,
    },
    /// Fifty characters that stand for more than 256 bits.
    #[error("the join token's hash is too large for a SHA-256; copy it again")]
    HashRange,
}

impl JoinToken {
    /// A token whose secret is made from 128 random bits, which the caller draws.
    pub fn from_bits(ca_hash: [u8; 32], bits: u128) -> Self {
        Self { ca_hash, secret: text_from_bits(bits) }
    }

    /// Whether `given` is this token's secret, in a time that does not depend on where they differ.
    pub fn secret_matches(&self, given: &str) -> bool {
        let (own, given) = (self.secret.as_bytes(), given.as_bytes());
        let difference = own.iter().zip(given).fold(0, |sum, (own, given)| sum | (own ^ given));
        own.len() == given.len() && std::hint::black_box(difference) == 0
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let text = text.trim();
        let parts: Vec<&str> = text.split('-').collect();
        if parts.first() != Some(&"RQTKN") {
            return Err(InvalidToken::Prefix);
        }
        match parts.as_slice() {
            [_, version, ..] if *version != "1" => Err(InvalidToken::Version((*version).to_owned())),
            [_, _, hash, secret] => {
                check("hash", hash, HASH_LENGTH)?;
                check("secret", secret, ID_LENGTH)?;
                let ca_hash = hash_from_base36(hash).ok_or(InvalidToken::HashRange)?;
                Ok(Self { ca_hash, secret: (*secret).to_owned() })
            }
            _ => Err(InvalidToken::Parts { found: parts.len() }),
        }
    }
}

fn check(part: &'static str, text: &str, expected: usize) -> Result<(), InvalidToken> {
    let strange = |c: &char| !c.is_ascii_lowercase() && !c.is_ascii_digit();
    if let Some(found) = text.chars().find(strange) {
        return Err(InvalidToken::Character { part, found });
    }
    match text.len() {
        found if found == expected => Ok(()),
        found => Err(InvalidToken::Length { part, found, expected }),
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{PREFIX}{}-{}", hash_to_base36(self.ca_hash), self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("JoinToken").field("ca_hash", &hash_to_base36(self.ca_hash)).finish_non_exhaustive()
    }
}

/// Long division of the big-endian number by 36, fifty times.
fn hash_to_base36(mut number: [u8; 32]) -> String {
    let mut digits = [0_u8; HASH_LENGTH];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0_u32;
        for byte in &mut number {
            let value = remainder << 8 | u32::from(*byte);
            *byte = (value / 36) as u8;
            remainder = value % 36;
        }
        *digit = remainder as u8;
    }
    digits.iter().filter_map(|digit| char::from_digit(u32::from(*digit), 36)).collect()
}

/// `None` where the number has more than 256 bits or a character is no digit.
fn hash_from_base36(text: &str) -> Option<[u8; 32]> {
    let mut number = [0_u8; 32];
    for c in text.chars() {
        let mut carry = c.to_digit(36)?;
        for byte in number.iter_mut().rev() {
            let value = u32::from(*byte) * 36 + carry;
            *byte = (value & 0xff) as u8;
            carry = value >> 8;
        }
        if carry != 0 {
            return None;
        }
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        let mut hash = [0; 32];
        for (index, byte) in hash.iter_mut().enumerate() {
            *byte = (index * 37 + 11) as u8;
        }
        JoinToken::from_bits(hash, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef)
    }

    #[test]
    fn text_and_back() {
        let text = token().to_string();
        assert_eq!(text.len(), PREFIX.len() + HASH_LENGTH + 1 + ID_LENGTH);
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!("  {text}\n").parse(), Ok(token()));
        for hash in [[0; 32], [0xff; 32]] {
            let token = JoinToken { ca_hash: hash, ..token() };
            assert_eq!(token.to_string().parse(), Ok(token));
        }
    }

    #[test]
    fn each_defect_is_named() {
        let good = token().to_string();
        let refusal = |text: &str| text.parse::<JoinToken>().unwrap_err();
        assert_eq!(refusal(""), InvalidToken::Prefix);
        assert_eq!(refusal("SWMTKN-1-abc-def"), InvalidToken::Prefix);
        assert_eq!(refusal(&good.replace("-1-", "-2-")), InvalidToken::Version("2".into()));
        assert_eq!(refusal("RQTKN-1-abc"), InvalidToken::Parts { found: 3 });
        assert_eq!(refusal(&format!("{good}-x")), InvalidToken::Parts { found: 5 });
        assert_eq!(
            refusal(&good[..good.len() - 1]),
            InvalidToken::Length { part: "secret", found: 24, expected: 25 }
        );
        let secret = token().secret;
        let shouted = good.replace(&secret, &secret.replace('0', "O"));
        assert_eq!(refusal(&shouted), InvalidToken::Character { part: "secret", found: 'O' });
        let huge = format!("{PREFIX}{}-{}", "z".repeat(50), token().secret);
        assert_eq!(refusal(&huge), InvalidToken::HashRange);
    }

    #[test]
    fn only_the_same_secret_matches() {
        let token = token();
        assert!(token.secret_matches(&token.secret));
        assert!(!token.secret_matches(&token.secret[1..]));
        assert!(!token.secret_matches(""));
        assert!(!token.secret_matches(&"0".repeat(25)));
    }

    #[test]
    fn the_secret_is_not_in_debug_output() {
        assert!(!format!("{:?}", token()).contains(&token().secret));
    }
}
