//! A command in one text, split as a shell would: quotes and backslashes, nothing expanded.

/// The words of a command line.
pub(crate) fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, ' ' | '\t' | '\n') => words.extend(word.take()),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), close) if open == close => quote = None,
            (None, '\\') => word
                .get_or_insert_default()
                .push(chars.next().ok_or_else(|| format!("`{text}` ends with a backslash"))?),
            (Some('"'), '\\') => match chars.next() {
                Some(escaped @ ('"' | '\\' | '$' | '`')) => word.get_or_insert_default().push(escaped),
                Some(other) => word.get_or_insert_default().extend(['\\', other]),
                None => break,
            },
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(quote) = quote {
        return Err(format!("`{text}` has a {quote} that is not closed"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_as_a_shell() {
        let cases: [(&str, &[&str]); 7] = [
            ("", &[]),
            ("  a  b\t", &["a", "b"]),
            ("sh -c 'echo \"$A\"; sleep 1'", &["sh", "-c", "echo \"$A\"; sleep 1"]),
            (r#"a" b\"c "d"#, &["a b\"c d"]),
            (r"a\ b '\'", &["a b", r"\"]),
            ("''", &[""]),
            (r#""\n""#, &[r"\n"]),
        ];
        for (text, expected) in cases {
            assert_eq!(words(text).unwrap(), expected, "{text}");
        }
        for text in ["'a", "\"a\\", "a\\"] {
            assert!(words(text).is_err(), "{text}");
        }
    }
}
