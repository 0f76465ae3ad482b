//! Distinct id types: 25 characters of base 36, so that an id of one kind is never taken for another's.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// How many characters an id has.
pub const ID_LENGTH: usize = 25;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an id: expected {ID_LENGTH} characters of a–z and 0–9")]
pub struct InvalidId {
    /// What was given.
    pub text: String,
}

/// The text of an id made from 128 random bits, which the caller draws.
pub fn text_from_bits(mut bits: u128) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut text = [b'0'; ID_LENGTH];
    for place in text.iter_mut().rev() {
        *place = DIGITS[(bits % 36) as usize];
        bits /= 36;
    }
    text.iter().map(|byte| char::from(*byte)).collect()
}

fn check(text: &str) -> Result<(), InvalidId> {
    let valid = text.len() == ID_LENGTH
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if valid { Ok(()) } else { Err(InvalidId { text: text.to_owned() }) }
}

macro_rules! id_types {
    ($($(#[$doc:meta])* $name:ident;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id made from 128 random bits, which the caller draws.
            pub fn from_bits(bits: u128) -> Self {
                Self(text_from_bits(bits).into())
            }

            /// The id's 25 characters.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }
    )+};
}

id_types! {
    /// Names a cluster.
    ClusterId;
    /// Names a node for as long as it is a member.
    NodeId;
    /// Names a service.
    ServiceId;
    /// Names a task.
    TaskId;
    /// Names a network.
    NetworkId;
    /// Names a plain container in networks of the cluster: the container's id.
    GuestId;
}
