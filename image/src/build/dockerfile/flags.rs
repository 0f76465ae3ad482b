//! `--name=value` in front of an instruction's arguments.

/// The flags of one instruction; each is taken out once, and what is left at the end is unknown.
#[derive(Debug)]
pub(crate) struct Flags {
    given: Vec<(String, Option<String>)>,
}

/// Splits the flags off. A word `--` ends them.
pub(crate) fn take_flags(keyword: &str, text: &str, escape: char) -> Result<(Flags, String), String> {
    let mut given = Vec::new();
    let mut rest = text.trim_start();
    // An instruction without flags passes on what looks like one: `CMD --help`.
    let has_flags = matches!(keyword, "FROM" | "RUN" | "COPY" | "ADD" | "HEALTHCHECK");
    while has_flags && rest.starts_with("--") {
        let (word, behind) = word(rest, escape)?;
        rest = behind.trim_start();
        if word == "--" {
            break;
        }
        let word = word.trim_start_matches("--");
        given.push(match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word.to_owned(), None),
        });
    }
    Ok((Flags { given }, rest.to_owned()))
}

/// The first word, without its quotes, and what stands behind it.
fn word(text: &str, escape: char) -> Result<(String, &str), String> {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return Ok((word, &text[at..])),
            None if matches!(c, '"' | '\'') => quote = Some(c),
            Some(end) if c == end => quote = None,
            _ if c == escape && quote != Some('\'') => match chars.next() {
                // A variable is expanded later, and its escape undone then.
                Some((_, next)) if next == '$' => word.extend([c, next]),
                Some((_, next)) => word.push(next),
                None => {}
            },
            _ => word.push(c),
        }
    }
    match quote {
        None => Ok((word, "")),
        Some(_) => Err(format!("a quote in the flag `{word}` is not closed")),
    }
}

impl Flags {
    fn take(&mut self, name: &str) -> Vec<Option<String>> {
        let (taken, left) = std::mem::take(&mut self.given).into_iter().partition(|(known, _)| known == name);
        self.given = left;
        let taken: Vec<(String, Option<String>)> = taken;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    /// All values of a flag that may be repeated.
    pub(crate) fn values(&mut self, name: &str) -> Result<Vec<String>, String> {
        let wants = || format!("the flag `--{name}` wants a value: `--{name}=…`");
        self.take(name)
            .into_iter()
            .map(|value| value.filter(|text| !text.is_empty()).ok_or_else(wants))
            .collect()
    }

    /// The value of a flag that may stand there once.
    pub(crate) fn value(&mut self, name: &str) -> Result<Option<String>, String> {
        let mut values = self.values(name)?;
        if values.len() > 1 {
            return Err(format!("the flag `--{name}` stands there {} times", values.len()));
        }
        Ok(values.pop())
    }

    /// `--name`, `--name=true`, `--name=false`.
    pub(crate) fn switch(&mut self, name: &str) -> Result<Option<bool>, String> {
        match self.take(name).as_slice() {
            [] => Ok(None),
            [None] => Ok(Some(true)),
            [Some(text)] => match text.as_str() {
                "true" | "1" => Ok(Some(true)),
                "false" | "0" => Ok(Some(false)),
                other => Err(format!("the flag `--{name}` is true or false, not `{other}`")),
            },
            more => Err(format!("the flag `--{name}` stands there {} times", more.len())),
        }
    }

    /// A number.
    pub(crate) fn number(&mut self, name: &str) -> Result<Option<u64>, String> {
        let number = |text: String| text.parse().map_err(|_| format!("`--{name}={text}`: expected a number"));
        self.value(name)?.map(number).transpose()
    }

    /// `1m30s`, `500ms`; in nanoseconds.
    pub(crate) fn duration(&mut self, name: &str) -> Result<Option<u64>, String> {
        let duration = |text: String| {
            nanoseconds(&text)
                .ok_or_else(|| format!("`--{name}={text}`: expected a duration such as 30s or 1m30s"))
        };
        self.value(name)?.map(duration).transpose()
    }

    /// Refuses flags that nobody has asked for.
    pub(crate) fn done(self, keyword: &str) -> Result<(), String> {
        match self.given.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().take(40).collect();
                Err(format!("{keyword} has no flag `--{name}`"))
            }
        }
    }
}

/// Go's durations: numbers with units, one after the other.
pub(crate) fn nanoseconds(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut total = 0f64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |at| digits + at);
        let unit = match &rest[digits..unit_end] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[unit_end..];
    }
    // A year is longer than any check takes.
    (!text.is_empty() && total < 3.2e16).then_some(total as u64)
}
