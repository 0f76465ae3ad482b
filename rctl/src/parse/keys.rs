//! Keys as `--detach-keys` names them: `ctrl-p,ctrl-q`, as Docker has it.

/// The bytes that a terminal sends for these keys.
pub(crate) fn keys(text: &str) -> Result<Vec<u8>, String> {
    text.split(',').map(|name| key(name).ok_or_else(|| wrong(name))).collect()
}

fn key(name: &str) -> Option<u8> {
    match name.strip_prefix("ctrl-").map(str::as_bytes) {
        Some([letter @ (b'a'..=b'z' | b'A'..=b'Z')]) => Some(letter.to_ascii_uppercase() - b'@'),
        Some([sign @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]) => Some(sign - b'@'),
        Some(_) => None,
        None => match name.as_bytes() {
            [letter] if letter.is_ascii_graphic() => Some(*letter),
            _ => None,
        },
    }
}

fn wrong(name: &str) -> String {
    format!("`{name}` is not a key: use a letter, or ctrl- and one of a-z @ [ \\ ] ^ _, with commas between")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_bytes_that_a_terminal_sends() {
        assert_eq!(keys("ctrl-p,ctrl-q"), Ok(vec![16, 17]));
        assert_eq!(keys("ctrl-@,ctrl-[,x,ctrl-_"), Ok(vec![0, 27, b'x', 31]));
        for wrong in ["", "ctrl-", "ctrl-1", "alt-x", "ctrl-p,,ctrl-q", "xy"] {
            assert!(keys(wrong).is_err(), "{wrong}");
        }
    }
}
