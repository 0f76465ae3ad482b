//! Values in GVariant's text form (GLib: "GVariant Text Format"), as annotations give them: texts, numbers, booleans,
//! lists and tuples, with a type before them where it is not the usual one.

use super::wire::Value;

/// Reads one value.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut parser = Parser { rest: text, depth: 0 };
    let value = parser.value(None)?;
    match parser.rest.trim() {
        "" => Ok(value),
        rest => Err(format!("{rest:?} stands behind the value")),
    }
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

/// The numbers' words, with their letters.
const WORDS: [(&str, char); 10] = [
    ("byte", 'y'),
    ("boolean", 'b'),
    ("int16", 'n'),
    ("uint16", 'q'),
    ("int32", 'i'),
    ("uint32", 'u'),
    ("int64", 'x'),
    ("uint64", 't'),
    ("double", 'd'),
    ("string", 's'),
];

impl Parser<'_> {
    /// `wanted`: the letters of the type that was named before it, or that its list has.
    fn value(&mut self, wanted: Option<&str>) -> Result<Value, String> {
        self.depth += 1;
        if self.depth > 16 {
            return Err("is nested too deeply".to_owned());
        }
        let value = self.inner(wanted);
        self.depth -= 1;
        value
    }

    fn inner(&mut self, wanted: Option<&str>) -> Result<Value, String> {
        self.rest = self.rest.trim_start();
        match self.rest.chars().next() {
            None => Err("is empty: give a value, such as 'text', true or uint64 5".to_owned()),
            Some('@') => {
                let end = self.rest.find(char::is_whitespace).unwrap_or(self.rest.len());
                let kind = self.rest[1..end].to_owned();
                self.rest = &self.rest[end..];
                self.value(Some(&kind))
            }
            Some(quote @ ('\'' | '"')) => self.quoted(quote),
            Some('[') => self.list(wanted),
            Some('(') => {
                let fields = self.items('(', ')', |parser, _| parser.value(None))?;
                Ok(Value::Struct(fields))
            }
            Some('<') => {
                self.rest = &self.rest[1..];
                let value = self.value(None)?;
                self.expect('>')?;
                Ok(Value::Variant(Box::new(value)))
            }
            Some(_) => self.word(wanted),
        }
    }

    fn word(&mut self, wanted: Option<&str>) -> Result<Value, String> {
        let end = self.rest.find([' ', ',', ']', ')', '>', '\t', '\n']).unwrap_or(self.rest.len());
        let word = &self.rest[..end];
        self.rest = &self.rest[end..];
        if let Some((_, letter)) = WORDS.iter().find(|(name, _)| *name == word) {
            return self.value(Some(&letter.to_string()));
        }
        match word {
            "true" => return Ok(Value::Bool(true)),
            "false" => return Ok(Value::Bool(false)),
            _ => {}
        }
        number(word, wanted).ok_or_else(|| format!("{word:?} is no value: texts stand in quotes"))
    }

    fn quoted(&mut self, quote: char) -> Result<Value, String> {
        let mut text = String::new();
        let mut letters = self.rest.char_indices().skip(1);
        while let Some((at, letter)) = letters.next() {
            match letter {
                '\\' => match letters.next().map(|(_, letter)| letter) {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some(other) => text.push(other),
                    None => break,
                },
                _ if letter == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(Value::Str(text));
                }
                _ => text.push(letter),
            }
        }
        Err(format!("a text has no {quote} at its end"))
    }

    fn list(&mut self, wanted: Option<&str>) -> Result<Value, String> {
        let mut kind = wanted.and_then(|wanted| wanted.strip_prefix('a')).map(str::to_owned);
        let items = self.items('[', ']', |parser, first: Option<&Value>| {
            let kind = kind.clone().or_else(|| first.map(Value::signature));
            parser.value(kind.as_deref())
        })?;
        kind = kind.or_else(|| items.first().map(Value::signature));
        let kind = kind.ok_or("is a list without items: say of what, such as @as []")?;
        match items.iter().find(|item| item.signature() != kind) {
            Some(item) => Err(format!("a list of {kind} has an item of {}", item.signature())),
            None => Ok(Value::Array(kind, items)),
        }
    }

    fn items(
        &mut self,
        open: char,
        close: char,
        mut item: impl FnMut(&mut Self, Option<&Value>) -> Result<Value, String>,
    ) -> Result<Vec<Value>, String> {
        self.expect(open)?;
        let mut items = Vec::new();
        loop {
            self.rest = self.rest.trim_start();
            if self.expect(close).is_ok() {
                return Ok(items);
            }
            if !items.is_empty() {
                self.expect(',')?;
                self.rest = self.rest.trim_start();
                // A tuple of one has a comma behind it.
                if open == '(' && self.expect(close).is_ok() {
                    return Ok(items);
                }
            }
            let next = item(self, items.first())?;
            items.push(next);
        }
    }

    fn expect(&mut self, letter: char) -> Result<(), String> {
        self.rest = self.rest.trim_start();
        self.rest = self
            .rest
            .strip_prefix(letter)
            .ok_or_else(|| format!("lacks a {letter:?} before {:?}", self.rest))?;
        Ok(())
    }
}

fn number(word: &str, wanted: Option<&str>) -> Option<Value> {
    let (negative, digits) = word.strip_prefix('-').map_or((false, word), |digits| (true, digits));
    let whole = match digits.strip_prefix("0x") {
        Some(hex) => i128::from_str_radix(hex, 16).ok(),
        None => digits.parse::<u64>().ok().map(i128::from),
    };
    let whole = whole.map(|number| if negative { -number } else { number });
    match wanted.unwrap_or(if whole.is_some() { "i" } else { "d" }) {
        "y" => whole.and_then(|number| number.try_into().ok()).map(Value::Byte),
        "n" => whole.and_then(|number| number.try_into().ok()).map(Value::I16),
        "q" => whole.and_then(|number| number.try_into().ok()).map(Value::U16),
        "i" => whole.and_then(|number| number.try_into().ok()).map(Value::I32),
        "u" => whole.and_then(|number| number.try_into().ok()).map(Value::U32),
        "x" => whole.and_then(|number| number.try_into().ok()).map(Value::I64),
        "t" => whole.and_then(|number| number.try_into().ok()).map(Value::U64),
        "d" => word.parse().ok().map(Value::F64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read() {
        let array = |kind: &str, items: Vec<Value>| Value::Array(kind.to_owned(), items);
        let table = [
            ("'it''", None),
            ("'a\\'b'", Some(Value::str("a'b"))),
            ("\"a b\"", Some(Value::str("a b"))),
            ("true", Some(Value::Bool(true))),
            ("5", Some(Value::I32(5))),
            ("-5", Some(Value::I32(-5))),
            ("uint64 0x10", Some(Value::U64(16))),
            ("@t 7", Some(Value::U64(7))),
            ("byte 300", None),
            ("1.5", Some(Value::F64(1.5))),
            ("['a', 'b']", Some(array("s", vec![Value::str("a"), Value::str("b")]))),
            ("@as []", Some(array("s", vec![]))),
            ("[]", None),
            ("[uint32 1, 2]", Some(array("u", vec![Value::U32(1), Value::U32(2)]))),
            ("[1, 'a']", None),
            ("('a', 1)", Some(Value::Struct(vec![Value::str("a"), Value::I32(1)]))),
            ("('a',)", Some(Value::Struct(vec![Value::str("a")]))),
            (
                "[('a', 'b')]",
                Some(array("(ss)", vec![Value::Struct(vec![Value::str("a"), Value::str("b")])])),
            ),
            ("<5>", Some(Value::Variant(Box::new(Value::I32(5))))),
            ("infinity and", None),
            ("", None),
            ("1 2", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text).ok(), expected, "{text}");
        }
        assert!(parse(&"[".repeat(1000)).is_err());
    }
}
