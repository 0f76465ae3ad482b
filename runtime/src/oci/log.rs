//! `--log` and `--log-format`: lines in the form of logrus, which containerd's shim and conmon read back.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;

use super::error::{Error, Result};
use crate::log::write_time;

/// Where messages go. Errors that end the command go to standard error, too.
#[derive(Debug, Default)]
pub(super) struct Log {
    path: Option<PathBuf>,
    json: bool,
    debug: bool,
}

impl Log {
    pub(super) fn new(path: Option<&str>, format: Option<&str>, debug: bool) -> Result<Log> {
        let json = match format {
            None | Some("text" | "") => false,
            Some("json") => true,
            Some(other) => return Err(Error::Usage(format!("invalid log-format: {other}"))),
        };
        let path = path.filter(|path| !path.is_empty() && *path != "/dev/stderr").map(PathBuf::from);
        let log = Log { path, json, debug };
        if let Some(path) = &log.path {
            log.open().map_err(Error::file("open", path))?;
        }
        Ok(log)
    }

    fn open(&self) -> io::Result<Option<File>> {
        let open = |path| File::options().append(true).create(true).open(path);
        self.path.as_ref().map(open).transpose()
    }

    /// Says what is done, if that was asked for.
    pub(super) fn debug(&self, message: impl FnOnce() -> String) {
        if self.debug {
            self.write("debug", &message());
        }
    }

    pub(super) fn warn(&self, message: &str) {
        self.write("warning", message);
    }

    /// The last word of a command.
    pub(super) fn error(&self, message: &str) {
        self.write("error", message);
        if self.path.is_some() {
            let _ = writeln!(io::stderr(), "{message}");
        }
    }

    fn write(&self, level: &str, message: &str) {
        let line = line(level, message, self.json);
        // Nothing can be told about a log that cannot be written, except in the log.
        let _ = match self.open() {
            Ok(Some(mut file)) => file.write_all(&line),
            _ => io::stderr().write_all(&line),
        };
    }
}

fn line(level: &str, message: &str, json: bool) -> Vec<u8> {
    let quoted = serde_json::to_string(message).unwrap_or_default();
    let time = now(0);
    let line = if json {
        format!("{{\"level\":\"{level}\",\"msg\":{quoted},\"time\":\"{time}\"}}\n")
    } else {
        format!("time=\"{time}\" level={level} msg={quoted}\n")
    };
    line.into_bytes()
}

/// The time in RFC 3339, with 0 or 9 digits of the second's fraction.
pub(super) fn now(digits: usize) -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut text = Vec::with_capacity(32);
    write_time(i64::try_from(since.as_secs()).unwrap_or(0), since.subsec_nanos(), &mut text);
    let mut text = String::from_utf8(text).unwrap_or_default();
    if digits == 0 {
        text.truncate(text.len().saturating_sub("000000000Z".len() + 1));
        text.push('Z');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_form_that_is_read_back() {
        let text = String::from_utf8(line("error", "no \"x\"\n", true)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((value["level"].as_str(), value["msg"].as_str()), (Some("error"), Some("no \"x\"\n")));
        assert_eq!(value["time"].as_str().unwrap().len(), "2026-01-02T03:04:05Z".len());
        let text = String::from_utf8(line("error", "no", false)).unwrap();
        assert!(text.starts_with("time=\"2") && text.ends_with("Z\" level=error msg=\"no\"\n"), "{text}");
        assert_eq!(now(9).len(), "2026-01-02T03:04:05.000000000Z".len());
    }
}
