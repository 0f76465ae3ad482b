//! Pax extended headers: `<length> <key>=<value>\n`, as POSIX.1-2001 has them.

use std::ffi::CString;

/// What an extended header says, as far as it matters for a layer.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) target: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, i64)>,
    pub(super) xattrs: Vec<(CString, Vec<u8>)>,
    /// The real size of a sparse file whose map stands in front of its data (GNU format 1.0).
    pub(super) sparse_size: Option<u64>,
}

impl Pax {
    /// Reads the records; the error says what is wrong with them.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Pax, String> {
        let mut pax = Pax::default();
        let (mut major, mut minor, mut real_size, mut real_name) = (None, None, None, None);
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or("a pax record is malformed")?;
            bytes = rest;
            match key {
                b"path" => pax.path = text(value)?,
                b"linkpath" => pax.target = text(value)?,
                b"size" => pax.size = number(key, value)?,
                b"uid" => pax.uid = number(key, value)?,
                b"gid" => pax.gid = number(key, value)?,
                b"mtime" => pax.mtime = time(value)?,
                b"GNU.sparse.major" => major = number(key, value)?,
                b"GNU.sparse.minor" => minor = number(key, value)?,
                b"GNU.sparse.realsize" => real_size = number(key, value)?,
                b"GNU.sparse.name" => real_name = text(value)?,
                b"GNU.sparse.map" | b"GNU.sparse.offset" | b"GNU.sparse.size" => {
                    return Err(
                        "sparse files of GNU format 0 are not supported: build the image with format 1.0"
                            .into(),
                    );
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        let name =
                            CString::new(name).map_err(|_| "an extended attribute's name holds a NUL")?;
                        pax.xattrs.push((name, value.to_vec()));
                    }
                }
            }
        }
        match (major, minor) {
            (None, _) => {}
            (Some(1), Some(0)) => {
                pax.sparse_size = Some(real_size.ok_or("a sparse file without its real size")?);
                pax.path = real_name.or(pax.path);
            }
            _ => return Err("a sparse file of unknown format".into()),
        }
        Ok(pax)
    }
}

/// Key, value and what follows.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..blank]).ok()?.parse().ok()?;
    if length <= blank + 1 || length > bytes.len() {
        return None;
    }
    let (record, rest) = bytes.split_at(length);
    let body = record[blank + 1..].strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], rest))
}

/// An empty value takes an earlier one back.
fn text(value: &[u8]) -> Result<Option<Vec<u8>>, String> {
    if value.contains(&0) {
        return Err("a name in a pax record holds a NUL".into());
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn number(key: &[u8], value: &[u8]) -> Result<Option<u64>, String> {
    if value.is_empty() {
        return Ok(None);
    }
    let parsed = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| format!("pax record `{}` is not a number", String::from_utf8_lossy(key)))
}

/// Seconds with an optional fraction; before 1970 with a minus sign.
fn time(value: &[u8]) -> Result<Option<(i64, i64)>, String> {
    if value.is_empty() {
        return Ok(None);
    }
    let wrong = || "pax record `mtime` is not a time".to_owned();
    let text = std::str::from_utf8(value).map_err(|_| wrong())?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let (seconds, nanoseconds): (i64, i64) =
        (seconds.parse().map_err(|_| wrong())?, digits.parse().map_err(|_| wrong())?);
    if text.starts_with('-') && nanoseconds > 0 {
        return Ok(Some((seconds.checked_sub(1).ok_or_else(wrong)?, 1_000_000_000 - nanoseconds)));
    }
    Ok(Some((seconds, nanoseconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read() {
        let pax = Pax::parse(b"12 path=a/b\n22 mtime=1700000000.5\n27 SCHILY.xattr.user.a=b=c\n").unwrap();
        assert_eq!(pax.path.unwrap(), b"a/b");
        assert_eq!(pax.mtime, Some((1_700_000_000, 500_000_000)));
        assert_eq!(pax.xattrs, [(c"user.a".to_owned(), b"b=c".to_vec())]);
        assert_eq!(time(b"-1.25").unwrap(), Some((-2, 750_000_000)));
    }

    #[test]
    fn malformed_records_are_refused() {
        for bytes in [
            &b"x"[..],
            b"5 a=",
            b"0 a=b\n",
            b"3 a=b\n",
            b"99 a=b\n",
            b"6 abc\n",
            b"7 a=b\nx",
            b"18446744073709551616 a=b\n",
            b"10 size=x\n",
            b"11 path=a\0\n",
            b"11 mtime=x\n",
        ] {
            assert!(Pax::parse(bytes).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
