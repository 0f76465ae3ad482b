//! Words: quotes, escapes, and `$variables`, as the Dockerfile reference has them (a small part of what a
//! shell does). Start at [`expand`] for one value, [`split`] for a list of words.

use super::super::pattern::{Beginning, Glob};

/// What one expansion may grow to: `ENV A=$A$A` doubles with each line.
const EXPANDED_MAX_BYTES: usize = 1 << 20;
/// `${a:-${b:-…}}` within each other.
const DEPTH_MAX: usize = 32;

/// Whether quotes and escapes stay in the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quotes {
    Keep,
    Remove,
}

/// Splits at white space that is not quoted. Nothing is expanded.
pub(crate) fn split(text: &str, escape: char, quotes: Quotes) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    let keep = quotes == Quotes::Keep;
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => words.extend(word.take()),
            None if matches!(c, '\'' | '"') => {
                quote = Some(c);
                let word = word.get_or_insert_default();
                if keep {
                    word.push(c);
                }
            }
            Some(end) if c == end => {
                quote = None;
                if keep {
                    word.get_or_insert_default().push(c);
                }
            }
            _ if c == escape && quote != Some('\'') => {
                let word = word.get_or_insert_default();
                let next = chars.next();
                let is_special = quote.is_none() || next.is_some_and(|n| n == '"' || n == '$' || n == escape);
                if keep || !is_special {
                    word.push(c);
                }
                word.extend(next);
            }
            _ => word.get_or_insert_default().push(c),
        }
    }
    if let Some(quote) = quote {
        return Err(format!("a {} quote is opened and not closed", quote_name(quote)));
    }
    words.extend(word);
    Ok(words)
}

fn quote_name(quote: char) -> &'static str {
    if quote == '"' { "double" } else { "single" }
}

/// A list of values from a JSON array of strings; `None` when it is something else.
pub(crate) fn json_list(text: &str) -> Option<Vec<String>> {
    if !text.starts_with('[') {
        return None;
    }
    serde_json::from_str(text).ok()
}

/// Says what a variable stands for.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Expands variables, and takes quotes and escapes away.
pub(crate) fn expand(text: &str, escape: char, lookup: Lookup<'_>) -> Result<String, String> {
    Expansion { escape, lookup, mode: Mode::Word }.run(text, 0)
}

/// As [`expand`]; values that are not quoted are split at their white space.
pub(crate) fn expand_list(text: &str, escape: char, lookup: Lookup<'_>) -> Result<Vec<String>, String> {
    let expanded = Expansion { escape, lookup, mode: Mode::KeepQuotes }.run(text, 0)?;
    split(&expanded, escape, Quotes::Remove)
}

/// Expands variables in a here-document: there quotes mean nothing, and `\` only before `$`, `` ` `` and `\`.
pub(crate) fn expand_heredoc(text: &str, lookup: Lookup<'_>) -> Result<String, String> {
    Expansion { escape: '\\', lookup, mode: Mode::Heredoc }.run(text, 0)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Word,
    KeepQuotes,
    Heredoc,
}

struct Expansion<'a> {
    escape: char,
    lookup: Lookup<'a>,
    mode: Mode,
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

impl Expansion<'_> {
    fn run(&self, text: &str, depth: usize) -> Result<String, String> {
        if depth > DEPTH_MAX {
            return Err(format!("more than {DEPTH_MAX} variables stand within each other"));
        }
        let mut out = String::with_capacity(text.len());
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            if out.len() > EXPANDED_MAX_BYTES {
                return Err(format!("with its variables it is longer than {EXPANDED_MAX_BYTES} bytes"));
            }
            match c {
                '$' => out.push_str(&self.dollar(&mut chars, depth)?),
                _ if self.mode == Mode::Heredoc => self.heredoc_char(c, &mut chars, &mut out),
                '\'' => self.single(&mut chars, &mut out)?,
                '"' => self.double(&mut chars, &mut out, depth)?,
                _ if c == self.escape => {
                    if self.mode == Mode::KeepQuotes {
                        out.push(c);
                    }
                    out.extend(chars.next());
                }
                _ => out.push(c),
            }
        }
        Ok(out)
    }

    fn heredoc_char(&self, c: char, chars: &mut Chars<'_>, out: &mut String) {
        match chars.peek() {
            Some(&next) if c == '\\' && matches!(next, '$' | '`' | '\\') => {
                chars.next();
                out.push(next);
            }
            _ => out.push(c),
        }
    }

    fn single(&self, chars: &mut Chars<'_>, out: &mut String) -> Result<(), String> {
        let keep = self.mode == Mode::KeepQuotes;
        if keep {
            out.push('\'');
        }
        loop {
            match chars.next() {
                Some('\'') => break,
                Some(c) => out.push(c),
                None => return Err("a single quote is opened and not closed".to_owned()),
            }
        }
        if keep {
            out.push('\'');
        }
        Ok(())
    }

    fn double(&self, chars: &mut Chars<'_>, out: &mut String, depth: usize) -> Result<(), String> {
        let keep = self.mode == Mode::KeepQuotes;
        if keep {
            out.push('"');
        }
        loop {
            match chars.next() {
                Some('"') => break,
                Some('$') => out.push_str(&self.dollar(chars, depth)?),
                Some(c) if c == self.escape => match chars.next() {
                    Some(next) if matches!(next, '"' | '$') || next == self.escape => {
                        if keep {
                            out.push(c);
                        }
                        out.push(next);
                    }
                    Some(next) => out.extend([c, next]),
                    None => return Err("a double quote is opened and not closed".to_owned()),
                },
                Some(c) => out.push(c),
                None => return Err("a double quote is opened and not closed".to_owned()),
            }
            if out.len() > EXPANDED_MAX_BYTES {
                return Err(format!("with its variables it is longer than {EXPANDED_MAX_BYTES} bytes"));
            }
        }
        if keep {
            out.push('"');
        }
        Ok(())
    }

    /// What stands behind a `$`.
    fn dollar(&self, chars: &mut Chars<'_>, depth: usize) -> Result<String, String> {
        if chars.peek() == Some(&'{') {
            chars.next();
            return self.braces(chars, depth);
        }
        let name = name(chars);
        if name.is_empty() {
            return Ok("$".to_owned());
        }
        Ok((self.lookup)(&name).unwrap_or_default())
    }

    fn braces(&self, chars: &mut Chars<'_>, depth: usize) -> Result<String, String> {
        let name = name(chars);
        if name.is_empty() {
            return Err("`${` is not followed by the name of a variable".to_owned());
        }
        let value = (self.lookup)(&name);
        let Some(next) = chars.next() else { return Err(unclosed(&name)) };
        let colon = next == ':';
        let operator = if colon { chars.next().ok_or_else(|| unclosed(&name))? } else { next };
        let is_set = value.as_ref().is_some_and(|value| !colon || !value.is_empty());
        let word = |this: &Self, chars: &mut Chars<'_>| {
            let text = until_brace(chars, this.escape).ok_or_else(|| unclosed(&name))?;
            this.run(&text, depth + 1)
        };
        match operator {
            '}' if !colon => Ok(value.unwrap_or_default()),
            '-' => {
                let word = word(self, chars)?;
                Ok(if is_set { value.unwrap_or_default() } else { word })
            }
            '+' => {
                let word = word(self, chars)?;
                Ok(if is_set { word } else { String::new() })
            }
            '?' => {
                let word = word(self, chars)?;
                let why = if word.is_empty() { "it is not set".to_owned() } else { word };
                if is_set { Ok(value.unwrap_or_default()) } else { Err(format!("variable `{name}`: {why}")) }
            }
            '#' | '%' if !colon => {
                let doubled = chars.next_if_eq(&operator).is_some();
                let cut = word(self, chars)?;
                Ok(trimmed(&value.unwrap_or_default(), &cut, operator == '#', doubled))
            }
            '/' if !colon => {
                let all = chars.next_if_eq(&'/').is_some();
                let both = until_brace(chars, self.escape).ok_or_else(|| unclosed(&name))?;
                let (from, to) = both.split_once('/').unwrap_or((&both, ""));
                let (from, to) = (self.run(from, depth + 1)?, self.run(to, depth + 1)?);
                Ok(replaced(&value.unwrap_or_default(), &from, &to, all))
            }
            other => Err(format!(
                "`{other}` behind `${{{name}` is not understood: `:-`, `:+`, `:?`, `#`, `%` and `/` are"
            )),
        }
    }
}

fn unclosed(name: &str) -> String {
    format!("`${{{name}` has no closing brace")
}

/// A variable's name; a digit or a special character is one by itself.
fn name(chars: &mut Chars<'_>) -> String {
    let mut name = String::new();
    match chars.peek() {
        Some(&c) if c.is_ascii_digit() || matches!(c, '@' | '*' | '#' | '?' | '!') => {
            chars.next();
            name.push(c);
            return name;
        }
        _ => {}
    }
    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        name.push(c);
    }
    name
}

/// Up to the brace that closes; those within are counted.
fn until_brace(chars: &mut Chars<'_>, escape: char) -> Option<String> {
    let mut text = String::new();
    let mut open = 0usize;
    let mut before = '\0';
    loop {
        let c = chars.next()?;
        match c {
            _ if c == escape => {
                // A brace that is escaped closes nothing; the escape is undone later.
                text.push(c);
                text.push(chars.next()?);
                before = '\0';
                continue;
            }
            '{' if before == '$' => open += 1,
            '}' if open == 0 => return Some(text),
            '}' => open -= 1,
            _ => {}
        }
        text.push(c);
        before = c;
    }
}

/// Without the shortest (longest) beginning (end) that `cut` describes.
fn trimmed(value: &str, cut: &str, front: bool, longest: bool) -> String {
    let glob = Glob::new(cut);
    let fits = if front {
        glob.beginning(value.chars(), 0, longest)
    } else {
        glob.reversed().beginning(value.chars().rev(), 0, longest)
    };
    let Beginning::Fits(length) = fits else { return value.to_owned() };
    let count = value.chars().count();
    if front { value.chars().skip(length).collect() } else { value.chars().take(count - length).collect() }
}

/// With the first part (all parts) that `from` describes replaced; each is as long as can be.
fn replaced(value: &str, from: &str, to: &str, all: bool) -> String {
    let glob = Glob::new(from);
    let mut out = String::new();
    let mut rest = value;
    while let Some(first) = rest.chars().next() {
        match glob.beginning(rest.chars(), 1, true) {
            Beginning::Fits(length) => {
                out.push_str(to);
                rest = rest.char_indices().nth(length).map_or("", |(at, _)| &rest[at..]);
                if !all || out.len() > EXPANDED_MAX_BYTES {
                    break;
                }
            }
            Beginning::Never => break,
            Beginning::Other => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(name: &str) -> Option<String> {
        let value = match name {
            "foo" => "bar",
            "empty" => "",
            "list" => "a b",
            "version" => "1.22.3",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn variables_expand_as_the_reference_says() {
        for (text, expected) in [
            ("$foo", "bar"),
            ("${foo}x", "barx"),
            ("$foox", ""),
            ("${foo}_${none}", "bar_"),
            (r"\$foo", "$foo"),
            (r"\${foo}", "${foo}"),
            (r"\\$foo", r"\bar"),
            ("'$foo'", "$foo"),
            ("\"$foo\"", "bar"),
            ("\"a\\nb\"", "a\\nb"),
            ("${none:-w}", "w"),
            ("${empty:-w}", "w"),
            ("${empty-w}", ""),
            ("${none-w}", "w"),
            ("${foo:+w}", "w"),
            ("${empty:+w}", ""),
            ("${empty+w}", "w"),
            ("${none+w}", ""),
            ("${none:-${foo}}", "bar"),
            ("${none:-a\\}b}", "a}b"),
            ("${version%.*}", "1.22"),
            ("${version%%.*}", "1"),
            ("${version#*.}", "22.3"),
            ("${version##*.}", "3"),
            ("${version//./_}", "1_22_3"),
            ("${version/./_}", "1_22.3"),
            ("${version/2*2/x}", "1.x.3"),
            ("${version//?2/x}", "1x2.3"),
            ("${version//*/x}", "x"),
            ("${version/*9/x}", "1.22.3"),
            ("a$", "a$"),
            ("$ x", "$ x"),
            ("it\\'s", "it's"),
        ] {
            assert_eq!(expand(text, '\\', &vars).as_deref(), Ok(expected), "{text}");
        }
        assert_eq!(expand("`$foo \\", '`', &vars).as_deref(), Ok("$foo \\"));
    }

    #[test]
    fn what_is_no_expansion_says_why() {
        for (text, part) in [
            ("${foo", "no closing brace"),
            ("${}", "not followed by the name"),
            ("${foo:=x}", "`=` behind `${foo`"),
            ("${none:?say it}", "variable `none`: say it"),
            ("'x", "single quote"),
            ("\"x", "double quote"),
        ] {
            let error = expand(text, '\\', &vars).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_list_is_split_behind_its_variables() {
        assert_eq!(expand_list("80 $list \"$list\"", '\\', &vars).unwrap(), ["80", "a", "b", "a b"]);
    }

    #[test]
    fn here_documents_keep_quotes_and_backslashes() {
        assert_eq!(
            expand_heredoc("a \"$foo\" '$foo' \\$foo \\.php \\\\", &vars).unwrap(),
            "a \"bar\" 'bar' $foo \\.php \\"
        );
    }

    #[test]
    fn expansion_is_bounded() {
        let long = "x".repeat(1 << 19);
        let lookup = move |_: &str| Some(long.clone());
        assert!(expand("$a$a$a$a$a", '\\', &lookup).unwrap_err().contains("longer than"));
        let nested = "${a:-".repeat(40) + &"}".repeat(40);
        assert!(expand(&nested, '\\', &|_| None).unwrap_err().contains("within each other"));
        // Every place of a long value is looked at once, whatever the pattern.
        let long = "ab".repeat(100_000);
        let lookup = |_: &str| Some(long.clone());
        for text in ["${a/a*c/x}", "${a//b?c/x}", "${a//*b*b*b*c/x}", "${a%%c*b}", "${a##a*c}"] {
            assert_eq!(expand(text, '\\', &lookup).as_ref(), Ok(&long), "{text}");
        }
        assert_eq!(expand("${a//a/b}", '\\', &lookup), Ok("bb".repeat(100_000)));
    }

    #[test]
    fn words_keep_or_lose_their_quotes() {
        assert_eq!(
            split(r#"a "b c" d\ e '' f'g'"#, '\\', Quotes::Remove).unwrap(),
            ["a", "b c", "d e", "", "fg"]
        );
        assert_eq!(split(r#"a="b c" d\ e"#, '\\', Quotes::Keep).unwrap(), [r#"a="b c""#, r"d\ e"]);
    }
}
