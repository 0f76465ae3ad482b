//! Patterns on file names: Go's `filepath.Match`, which COPY and ADD use, and a plain `*`/`?` for variables.

/// A pattern that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` is not a pattern: {reason}")]
pub struct PatternError {
    /// As it was given.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// One step of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// `*`: any characters but `/`.
    Many,
    /// `?`: one character but `/`.
    One,
    /// Itself.
    Char(char),
    /// `[a-z]`, `[^a-z]`.
    Class { negated: bool, ranges: Vec<(char, char)> },
}

/// A pattern in Go's `filepath.Match` syntax: `*` and `?` don't match `/`, `[a-z]` and `[^a-z]` are classes,
/// `\` takes the meaning from the next character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    steps: Vec<Step>,
}

impl Pattern {
    /// Reads a pattern.
    pub fn new(text: &str) -> Result<Pattern, PatternError> {
        let refuse = |reason| PatternError { pattern: text.to_owned(), reason };
        let mut steps = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            steps.push(match c {
                '*' => {
                    if steps.last() == Some(&Step::Many) {
                        continue;
                    }
                    Step::Many
                }
                '?' => Step::One,
                '\\' => Step::Char(chars.next().ok_or_else(|| refuse("it ends with a backslash"))?),
                '[' => class(&mut chars).map_err(refuse)?,
                _ => Step::Char(c),
            });
        }
        Ok(Pattern { steps })
    }

    /// Whether the whole of `text` is described.
    pub fn matches(&self, text: &str) -> bool {
        walk(&self.steps, text)
    }
}

/// What stands behind a `[`.
fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Step, &'static str> {
    // A `-` that means itself has to be escaped, as in Go.
    let escaped = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>, c| match c {
        Some('\\') => chars.next(),
        Some(']' | '-') => None,
        other => other,
    };
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        let next = chars.next();
        if next == Some(']') && !ranges.is_empty() {
            return Ok(Step::Class { negated, ranges });
        }
        let low = escaped(chars, next).ok_or("a class `[…]` is empty or does not end")?;
        let mut high = low;
        if chars.next_if_eq(&'-').is_some() {
            let next = chars.next();
            high = escaped(chars, next).ok_or("a range of a class has no end")?;
        }
        ranges.push((low, high));
    }
}

/// Whether a name holds anything that makes it a pattern.
pub(crate) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '\\'])
}

/// `*` and `?` alone, `/` being a character like others: what is looked for in values of variables.
#[derive(Clone, Debug)]
pub(crate) struct Glob {
    steps: Vec<Step>,
}

/// How a text begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// So many of its characters are described.
    Fits(usize),
    /// None are.
    Other,
    /// None are, and nothing that begins further on is: a `*` has seen all of the text.
    Never,
}

impl Glob {
    pub(crate) fn new(pattern: &str) -> Glob {
        let mut steps = Vec::new();
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            steps.push(match c {
                '*' => Step::Many,
                '?' => Step::One,
                '\\' => Step::Char(chars.next().unwrap_or('\\')),
                _ => Step::Char(c),
            });
        }
        Glob { steps }
    }

    /// For texts that are read from their ends.
    pub(crate) fn reversed(mut self) -> Glob {
        self.steps.reverse();
        self
    }

    /// The shortest, or longest, beginning of at least `least` characters that is described. Takes the text's length
    /// times the pattern's at most, and ends where nothing can follow any more.
    pub(crate) fn beginning(
        &self,
        text: impl Iterator<Item = char>,
        least: usize,
        longest: bool,
    ) -> Beginning {
        let end = self.steps.len();
        // All places in the pattern that are reached by what has been read.
        let mut places = vec![false; end + 1];
        places[0] = true;
        let mut found = None;
        let mut text = text.fuse();
        for read in 0.. {
            for at in 0..end {
                places[at + 1] |= places[at] && self.steps[at] == Step::Many;
            }
            if places[end] && read >= least {
                found = Some(read);
            }
            let Some(next) = text.next().filter(|_| longest || found.is_none()) else { break };
            // From the end, so that what is looked at is still what it was.
            for at in (0..=end).rev() {
                let stays = at < end && places[at] && self.steps[at] == Step::Many;
                let comes = at > 0 && places[at - 1] && takes(&self.steps[at - 1], next);
                places[at] = stays || comes;
            }
            if !places.contains(&true) {
                break;
            }
        }
        let waits = (0..end).any(|at| places[at] && self.steps[at] == Step::Many);
        match found {
            Some(length) => Beginning::Fits(length),
            None if waits => Beginning::Never,
            None => Beginning::Other,
        }
    }
}

/// Whether a step of a [`Glob`] takes one character.
fn takes(step: &Step, next: char) -> bool {
    match step {
        Step::One => true,
        Step::Char(wanted) => *wanted == next,
        Step::Many | Step::Class { .. } => false,
    }
}

/// Goes back to the last star only, so that the time is bounded by pattern times text.
fn walk(steps: &[Step], text: &str) -> bool {
    let wild = |c: char| c != '/';
    let text: Vec<char> = text.chars().collect();
    let (mut step, mut at) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let fits = match (steps.get(step), text.get(at)) {
            (None, None) => return true,
            (Some(Step::Many), _) => {
                star = Some((step, at));
                step += 1;
                continue;
            }
            (Some(Step::One), Some(c)) => wild(*c),
            (Some(Step::Char(wanted)), Some(c)) => wanted == c,
            (Some(Step::Class { negated, ranges }), Some(c)) => {
                wild(*c) && ranges.iter().any(|(low, high)| low <= c && c <= high) != *negated
            }
            _ => false,
        };
        if fits {
            step += 1;
            at += 1;
            continue;
        }
        match star {
            Some((after, taken)) if text.get(taken).is_some_and(|c| wild(*c)) => {
                star = Some((after, taken + 1));
                step = after + 1;
                at = taken + 1;
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_go() {
        for (pattern, text, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("[a-ζ]*", "α", true),
            ("a?b", "a/b", false),
            ("[\\]a]", "]", true),
            ("*x", "xxx", true),
            ("*.go", ".go", true),
            ("", "", true),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(text), expected, "{pattern} {text}");
        }
        for bad in ["[]a]", "[-]", "[a-]", "[", "[^", "[a", "a[", "a\\", "[x-"] {
            assert!(Pattern::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn beginnings_are_the_shortest_or_the_longest() {
        for (pattern, text, least, shortest, longest) in [
            ("a*b", "axbxbx", 1, Beginning::Fits(3), Beginning::Fits(5)),
            ("*", "abc", 1, Beginning::Fits(1), Beginning::Fits(3)),
            ("*", "", 0, Beginning::Fits(0), Beginning::Fits(0)),
            ("a?", "ab", 1, Beginning::Fits(2), Beginning::Fits(2)),
            ("", "a", 1, Beginning::Other, Beginning::Other),
            ("b", "ab", 1, Beginning::Other, Beginning::Other),
            ("a*c", "abb", 1, Beginning::Never, Beginning::Never),
            ("\\**", "*/", 1, Beginning::Fits(1), Beginning::Fits(2)),
        ] {
            let glob = Glob::new(pattern);
            assert_eq!(glob.beginning(text.chars(), least, false), shortest, "{pattern} {text}");
            assert_eq!(glob.beginning(text.chars(), least, true), longest, "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = Pattern::new(&"a*".repeat(200)).unwrap();
        assert!(!pattern.matches(&("a".repeat(5000) + "b/")));
    }
}
