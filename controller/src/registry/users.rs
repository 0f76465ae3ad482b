//! The registry's users: a record each, with what is kept of the password and what the user may do.

use std::num::NonZeroU32;

use prost::Message as _;
use rand::Rng as _;
use ring::pbkdf2;
use rorqual_planner::State;
use rorqual_proto::wire;

/// What stands before the names of users in keys.
pub(crate) const USERS: &str = "registry-user/";
/// Whoever asks; has no password.
pub(crate) const EVERYBODY: &str = "everybody";
/// Kept for nodes' own programs.
const LOCAL: &str = "local";

/// OWASP's number for PBKDF2-HMAC-SHA256: a guess costs some tenths of a second.
const ITERATIONS: u32 = 600_000;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
/// The shortest password.
const PASSWORD_MIN: usize = 8;
/// The longest one: it has to fit into a header.
const PASSWORD_MAX: usize = 1024;

/// The record of a user.
pub(crate) fn find(state: &State, name: &str) -> Option<wire::RegistryUser> {
    let record = state.record(&format!("{USERS}{name}"))?;
    wire::RegistryUser::decode(record.value.as_slice()).ok()
}

/// Whether a user can have this name.
pub(crate) fn problem_of_name(name: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'@');
    if name == EVERYBODY || name == LOCAL {
        return Some(format!("name: `{name}` means something else: choose another name"));
    }
    let fits = (1..=64).contains(&name.len()) && name.bytes().all(allowed);
    (!fits).then(|| format!("name: `{name}` is not 1 to 64 letters, digits, `-`, `_`, `.` or `@`"))
}

/// Whether this can be a password.
pub(crate) fn problem_of_password(password: &str) -> Option<String> {
    let fits = (PASSWORD_MIN..=PASSWORD_MAX).contains(&password.len());
    let plain = !password.chars().any(char::is_control);
    (!fits || !plain).then(|| {
        format!("password: expected {PASSWORD_MIN} to {PASSWORD_MAX} bytes without control characters")
    })
}

/// A user with that password and these rights. Takes some tenths of a second.
pub(crate) fn with_password(password: &str, grants: Vec<wire::RegistryGrant>) -> wire::RegistryUser {
    let salt: [u8; SALT_BYTES] = rand::rng().random();
    let mut hash = [0; HASH_BYTES];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds(ITERATIONS), &salt, password.as_bytes(), &mut hash);
    wire::RegistryUser { salt: salt.to_vec(), hash: hash.to_vec(), iterations: ITERATIONS, grants }
}

/// Whether that is the user's password. As slow for a user that does not exist: how long it takes tells
/// nobody who there is.
pub(crate) fn is_right(user: Option<&wire::RegistryUser>, password: &str) -> bool {
    let nobody =
        wire::RegistryUser { hash: vec![0; HASH_BYTES], iterations: ITERATIONS, ..Default::default() };
    let known = user.filter(|user| user.hash.len() == HASH_BYTES);
    let checked = known.unwrap_or(&nobody);
    let rounds = rounds(checked.iterations);
    let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
    let fits = pbkdf2::verify(algorithm, rounds, &checked.salt, password.as_bytes(), &checked.hash).is_ok();
    fits && known.is_some() && password.len() <= PASSWORD_MAX
}

fn rounds(iterations: u32) -> NonZeroU32 {
    NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_is_right() {
        let user = with_password("correct horse", Vec::new());
        assert!(is_right(Some(&user), "correct horse"));
        assert!(!is_right(Some(&user), "correct horsE"));
        assert!(!is_right(None, ""));
        let without = wire::RegistryUser::default();
        assert!(!is_right(Some(&without), ""), "everybody has no password");
        let again = with_password("correct horse", Vec::new());
        assert_ne!(user.hash, again.hash, "each has a salt of its own");
    }

    #[test]
    fn names_that_mean_something_else_are_refused() {
        assert_eq!(problem_of_name("dev-1@team.x"), None);
        for bad in ["", "everybody", "local", "a b", "a:b", "a/b", &"x".repeat(65)] {
            assert!(problem_of_name(bad).is_some(), "{bad}");
        }
        assert!(problem_of_password("short").is_some());
        assert!(problem_of_password("with\nbreak").is_some());
        assert_eq!(problem_of_password("long enough"), None);
    }
}
