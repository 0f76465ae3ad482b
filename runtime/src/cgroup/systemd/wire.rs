//! D-Bus messages as bytes (D-Bus Specification 0.43, "Message Protocol"): what calling systemd takes of it, in this
//! machine's byte order.

use std::io;

/// A value with its type.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Byte(u8),
    Bool(bool),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    F64(f64),
    Str(String),
    /// With the signature of its items, since it may have none.
    Array(String, Vec<Value>),
    Struct(Vec<Value>),
    Variant(Box<Value>),
}

impl Value {
    pub(crate) fn str(text: impl Into<String>) -> Value {
        Value::Str(text.into())
    }

    pub(crate) fn bytes(bytes: &[u8]) -> Value {
        Value::Array("y".to_owned(), bytes.iter().map(|byte| Value::Byte(*byte)).collect())
    }

    /// The type, in D-Bus' letters.
    pub(crate) fn signature(&self) -> String {
        match self {
            Value::Byte(_) => "y".to_owned(),
            Value::Bool(_) => "b".to_owned(),
            Value::I16(_) => "n".to_owned(),
            Value::U16(_) => "q".to_owned(),
            Value::I32(_) => "i".to_owned(),
            Value::U32(_) => "u".to_owned(),
            Value::I64(_) => "x".to_owned(),
            Value::U64(_) => "t".to_owned(),
            Value::F64(_) => "d".to_owned(),
            Value::Str(_) => "s".to_owned(),
            Value::Array(items, _) => format!("a{items}"),
            Value::Struct(fields) => format!("({})", fields.iter().map(Value::signature).collect::<String>()),
            Value::Variant(_) => "v".to_owned(),
        }
    }
}

/// How values of a type are aligned, by the first letter of its signature.
fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'n' | b'q') => 2,
        Some(b'b' | b'i' | b'u' | b's' | b'o' | b'a') => 4,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 1,
    }
}

#[derive(Debug, Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn fixed<const N: usize>(&mut self, bytes: [u8; N]) {
        self.align(N);
        self.0.extend(bytes);
    }

    fn string(&mut self, text: &str) {
        self.fixed((text.len() as u32).to_ne_bytes());
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(text.len() as u8);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Byte(number) => self.0.push(*number),
            Value::Bool(on) => self.fixed(u32::from(*on).to_ne_bytes()),
            Value::I16(number) => self.fixed(number.to_ne_bytes()),
            Value::U16(number) => self.fixed(number.to_ne_bytes()),
            Value::I32(number) => self.fixed(number.to_ne_bytes()),
            Value::U32(number) => self.fixed(number.to_ne_bytes()),
            Value::I64(number) => self.fixed(number.to_ne_bytes()),
            Value::U64(number) => self.fixed(number.to_ne_bytes()),
            Value::F64(number) => self.fixed(number.to_ne_bytes()),
            Value::Str(text) => self.string(text),
            Value::Array(items, values) => self.array(items, values),
            Value::Struct(fields) => {
                self.align(8);
                fields.iter().for_each(|field| self.value(field));
            }
            Value::Variant(value) => {
                self.signature(&value.signature());
                self.value(value);
            }
        }
    }

    fn array(&mut self, items: &str, values: &[Value]) {
        self.fixed(0u32.to_ne_bytes());
        let length_at = self.0.len() - 4;
        // The padding before the first item is no part of the length, and is there without items, too.
        self.align(alignment(items));
        let start = self.0.len();
        values.iter().for_each(|value| self.value(value));
        let length = (self.0.len() - start) as u32;
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

/// Where a call goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) destination: &'a str,
    pub(crate) path: &'a str,
    pub(crate) interface: &'a str,
}

const ORDER: u8 = if cfg!(target_endian = "big") { b'B' } else { b'l' };
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// A method call with its header.
pub(crate) fn call(serial: u32, target: Target<'_>, member: &str, arguments: &[Value]) -> Vec<u8> {
    let mut body = Writer::default();
    arguments.iter().for_each(|value| body.value(value));
    let mut message = Writer(vec![ORDER, CALL, 0, 1]);
    message.fixed((body.0.len() as u32).to_ne_bytes());
    message.fixed(serial.to_ne_bytes());
    // Object paths and signatures have types of their own, of which nothing else here has need.
    let mut fields = Writer(message.0);
    fields.fixed(0u32.to_ne_bytes());
    let start = fields.0.len();
    for (code, kind, text) in
        [(1, "o", target.path), (2, "s", target.interface), (3, "s", member), (6, "s", target.destination)]
    {
        fields.align(8);
        fields.0.push(code);
        fields.signature(kind);
        fields.string(text);
    }
    if !arguments.is_empty() {
        fields.align(8);
        fields.0.push(8);
        fields.signature("g");
        fields.signature(&arguments.iter().map(Value::signature).collect::<String>());
    }
    let length = (fields.0.len() - start) as u32;
    fields.0[start - 4..start].copy_from_slice(&length.to_ne_bytes());
    fields.align(8);
    fields.0.append(&mut body.0);
    fields.0
}

/// A message that has come.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    /// The call that it answers.
    pub(crate) reply_to: u32,
    /// The name of a signal, or of an error.
    pub(crate) name: String,
    pub(crate) signature: String,
    pub(crate) body: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    Return,
    Error,
    Signal,
    /// A call of ours, or something newer than this code.
    #[default]
    Other,
}

/// What stands before the variable part of each message.
pub(crate) const PREFIX: usize = 16;

/// More than systemd ever says.
const LIMIT: usize = 1 << 20;

/// How many bytes follow the first [`PREFIX`] ones: header fields with their padding, and the body.
pub(crate) fn rest(prefix: &[u8; PREFIX]) -> io::Result<(usize, usize)> {
    if prefix[0] != ORDER {
        return Err(broken("a message in another byte order"));
    }
    let number =
        |at: usize| u32::from_ne_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]) as usize;
    let (body, fields) = (number(4), number(12));
    if body > LIMIT || fields > LIMIT {
        return Err(broken("a message of more than a megabyte"));
    }
    Ok((fields.next_multiple_of(8), body))
}

/// Takes a message apart: its first bytes, its header fields, its body.
pub(crate) fn parse(prefix: &[u8; PREFIX], fields: &[u8], body: Vec<u8>) -> io::Result<Message> {
    let kind = match prefix[1] {
        RETURN => Kind::Return,
        ERROR => Kind::Error,
        SIGNAL => Kind::Signal,
        _ => Kind::Other,
    };
    let mut message = Message { kind, body, ..Message::default() };
    let length = u32::from_ne_bytes([prefix[12], prefix[13], prefix[14], prefix[15]]) as usize;
    // They start at a multiple of 8, so that their own offsets are aligned as the message's.
    let mut reader = Reader { bytes: fields.get(..length).unwrap_or(fields), at: 0 };
    while reader.at < reader.bytes.len() {
        reader.align(8);
        let code = reader.byte()?;
        match (code, reader.signature()?.as_str()) {
            (3 | 4, "s") => message.name = reader.string()?,
            (5, "u") => message.reply_to = reader.u32()?,
            (8, "g") => message.signature = reader.signature()?,
            (_, "s" | "o") => drop(reader.string()?),
            (_, "u") => drop(reader.u32()?),
            (_, "g") => drop(reader.signature()?),
            _ => return Err(broken("a header field of an unknown type")),
        }
    }
    Ok(message)
}

impl Message {
    /// The first text of the body: an object path, an error's text, or the value of a property.
    pub(crate) fn text(&self) -> io::Result<String> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        match self.signature.as_bytes().first() {
            Some(b's' | b'o') => reader.string(),
            Some(b'v') if matches!(reader.signature()?.as_str(), "s" | "o") => reader.string(),
            _ => Err(broken("an answer that is no text")),
        }
    }

    /// The job and the result that a `JobRemoved` signal tells.
    pub(crate) fn job(&self) -> io::Result<(String, String)> {
        if self.signature != "uoss" {
            return Err(broken("a JobRemoved signal of another form"));
        }
        let mut reader = Reader { bytes: &self.body, at: 0 };
        reader.u32()?;
        let job = reader.string()?;
        reader.string()?;
        Ok((job, reader.string()?))
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> io::Result<&[u8]> {
        let end = self.at.checked_add(count).ok_or_else(|| broken("a wrong length"))?;
        let taken = self.bytes.get(self.at..end).ok_or_else(|| broken("a message that ends too early"))?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> io::Result<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.align(4);
        let bytes = self.take(4)?;
        Ok(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn string(&mut self) -> io::Result<String> {
        let length = self.u32()? as usize;
        self.text(length)
    }

    fn signature(&mut self) -> io::Result<String> {
        let length = self.byte()?.into();
        self.text(length)
    }

    fn text(&mut self, length: usize) -> io::Result<String> {
        let bytes = self.take(length)?.to_vec();
        self.take(1)?;
        String::from_utf8(bytes).map_err(|_| broken("a text that is not UTF-8"))
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the bus sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call, read again as if it had come.
    fn read(bytes: &[u8]) -> io::Result<Message> {
        let prefix: [u8; PREFIX] = bytes[..PREFIX].try_into().unwrap();
        let (fields, body) = rest(&prefix)?;
        assert_eq!(bytes.len(), PREFIX + fields + body);
        parse(&prefix, &bytes[PREFIX..PREFIX + fields], bytes[PREFIX + fields..].to_vec())
    }

    const TARGET: Target<'_> = Target { destination: "org.example", path: "/a", interface: "org.example.I" };

    #[test]
    fn a_call_has_the_form_of_the_specification() {
        let bytes = call(7, TARGET, "Do", &[Value::str("hi"), Value::Bool(true)]);
        assert_eq!(&bytes[..4], &[ORDER, 1, 0, 1]);
        assert_eq!(&bytes[8..12], &7u32.to_ne_bytes());
        let message = read(&bytes).unwrap();
        assert_eq!((message.name.as_str(), message.signature.as_str()), ("Do", "sb"));
        // 4 + "hi\0", padded to 8, then the boolean.
        assert_eq!(message.body.len(), 12);
        assert_eq!(message.text().unwrap(), "hi");
    }

    #[test]
    fn containers_are_aligned() {
        let pairs = |items: Vec<Value>| Value::Array("(sv)".to_owned(), items);
        let item = Value::Struct(vec![Value::str("A"), Value::Variant(Box::new(Value::U64(5)))]);
        assert_eq!(pairs(vec![]).signature(), "a(sv)");
        assert_eq!(item.signature(), "(sv)");
        let mut writer = Writer::default();
        writer.value(&pairs(vec![item]));
        // Length, padding to 8; text of 1 with its length, "t" as a signature, padding, the number.
        let expected = [
            &24u32.to_ne_bytes()[..],
            &[0; 4],
            &1u32.to_ne_bytes(),
            b"A\0",
            b"\x01t\0",
            &[0; 7],
            &5u64.to_ne_bytes(),
        ]
        .concat();
        assert_eq!(writer.0, expected);
        let mut writer = Writer::default();
        writer.value(&pairs(vec![]));
        assert_eq!(writer.0, [0; 8], "padded without items, too");
    }

    #[test]
    fn broken_messages_are_errors_and_no_more() {
        let good = call(7, TARGET, "Do", &[Value::str("hi")]);
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                let prefix: [u8; PREFIX] = bytes[..PREFIX].try_into().unwrap();
                let Ok((fields, _)) = rest(&prefix) else { continue };
                let end = (PREFIX + fields).min(bytes.len());
                // It must come back, with whatever.
                if let Ok(message) = parse(&prefix, &bytes[PREFIX..end], bytes[end..].to_vec()) {
                    let _ = (message.text(), message.job());
                }
            }
        }
    }
}
