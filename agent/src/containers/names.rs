//! Names of containers: given ones are checked, missing ones are made up.

use rorqual_proto::validate::InvalidField;

const ADJECTIVES: [&str; 32] = [
    "agile", "amber", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "coral", "deep",
    "eager", "early", "gentle", "glad", "golden", "grand", "happy", "keen", "kind", "lively", "lucky",
    "mellow", "noble", "proud", "quick", "quiet", "rapid", "silent", "swift", "vivid", "warm",
];

const NOUNS: [&str; 32] = [
    "anchor", "bay", "beacon", "blue", "bowhead", "bryde", "calf", "cove", "current", "dolphin", "fin",
    "fjord", "fluke", "gray", "harbour", "humpback", "island", "krill", "lagoon", "minke", "narwhal",
    "ocean", "orca", "pilot", "pod", "porpoise", "reef", "sail", "sei", "tide", "wave", "whale",
];

/// A name that is not taken: `calm_humpback`, with a number where chance is short of words.
pub(super) fn generate(taken: impl Fn(&str) -> bool) -> String {
    loop {
        let pick = |words: &[&'static str; 32]| words[rand::random_range(0..words.len())];
        let name = format!("{}_{}", pick(&ADJECTIVES), pick(&NOUNS));
        if !taken(&name) {
            return name;
        }
        let numbered = format!("{name}_{}", rand::random_range(2..100_000));
        if !taken(&numbered) {
            return numbered;
        }
    }
}

/// A name as Docker takes it.
pub(super) fn check(name: &str) -> Result<(), InvalidField> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let valid = (2..=128).contains(&name.len())
        && name.bytes().all(allowed)
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if valid {
        return Ok(());
    }
    Err(InvalidField::new("name", format!("`{name}` is not a container name"))
        .remedy("use 2 to 128 letters, digits, `_`, `.` and `-`, beginning with a letter or digit"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn generated_names_are_valid_and_never_taken_twice() {
        let mut names = BTreeSet::new();
        for _ in 0..3_000 {
            let name = generate(|name| names.contains(name));
            check(&name).unwrap();
            assert!(names.insert(name));
        }
    }

    #[test]
    fn given_names_are_checked() {
        for good in ["web", "web-1.a_b", "0x"] {
            check(good).unwrap();
        }
        for bad in ["", "a", "-web", "we/b", "we b", &"x".repeat(129)] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
