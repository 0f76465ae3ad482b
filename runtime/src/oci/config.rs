//! Reads a bundle's specification.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::de::DeserializeOwned;

use super::error::{Error, Result};
use crate::plan::amend;
use crate::sys;

/// No honest specification is larger.
const LIMIT_BYTES: u64 = 16 << 20;

/// A bundle, read.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) dir: PathBuf,
    pub(super) rootfs: PathBuf,
    /// In a box, since it is large, and handed on more than once.
    pub(super) spec: Box<Spec>,
    /// The specification as it was read.
    pub(super) text: Vec<u8>,
    /// What was passed over in it.
    pub(super) warnings: Vec<String>,
}

/// Reads the bundle in a folder. `config`: a file other than its `config.json`. `seen` gets the specification's text, before
/// it is understood.
pub(super) fn load(dir: &str, config: Option<&str>, seen: impl FnOnce(&[u8])) -> Result<Bundle> {
    let given = if dir.is_empty() { "." } else { dir };
    let dir = sys::real_path(Path::new(given)).map_err(Error::file("chdir", Path::new(given)))?;
    let name = config.unwrap_or("config.json");
    let path = dir.join(name);
    let text = match read_limited(&path) {
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NoConfig(name.to_owned()));
        }
        other => other?,
    };
    seen(&text);
    let (spec, warnings) = parse(&text, &path)?;
    let root = spec.root().as_ref().ok_or_else(|| Error::Invalid {
        path: path.clone(),
        reason: "root is missing: name the folder of the root file system in root.path".to_owned(),
    })?;
    if root.path().as_os_str().is_empty() {
        let reason = "root.path is missing: name the folder of the root file system".to_owned();
        return Err(Error::Invalid { path, reason });
    }
    let rootfs = dir.join(root.path());
    let rootfs = sys::real_path(&rootfs).map_err(|source| Error::System {
        operation: format!("invalid rootfs: {}", rootfs.display()),
        source,
    })?;
    Ok(Bundle { dir, rootfs, spec, text, warnings })
}

/// Reads a whole file, if it has a sensible size.
pub(super) fn read_limited(path: &Path) -> Result<Vec<u8>> {
    let length = fs::metadata(path).map_err(Error::file("open", path))?.len();
    if length > LIMIT_BYTES {
        let reason = format!("is larger than {LIMIT_BYTES} bytes");
        return Err(Error::Invalid { path: path.to_owned(), reason });
    }
    fs::read(path).map_err(Error::file("read", path))
}

/// Reads a specification, of a version that is known; with warnings about what was passed over.
pub(super) fn parse(text: &[u8], path: &Path) -> Result<(Box<Spec>, Vec<String>)> {
    let (mut spec, warnings) = from_json_amended::<Box<Spec>>(text, path)?;
    amend::counters(text, &mut spec).map_err(|(field, reason)| Error::Invalid {
        path: path.to_owned(),
        reason: format!("{field}: {reason}"),
    })?;
    if version_is_known(spec.version()) {
        Ok((spec, warnings))
    } else {
        let reason = format!("ociVersion: {:?} is not supported: 1.0.0 to 1.3.x are", spec.version());
        Err(Error::Invalid { path: path.to_owned(), reason })
    }
}

/// A specification or a process, without what is fine and cannot be had; with warnings about that.
pub(super) fn from_json_amended<T: DeserializeOwned>(text: &[u8], path: &Path) -> Result<(T, Vec<String>)> {
    match from_json(text, path) {
        Ok(read) => Ok((read, Vec::new())),
        Err(error) => match amend::amend(text) {
            Some((amended, warnings)) => Ok((from_json(&amended, path)?, warnings)),
            None => Err(error),
        },
    }
}

/// The error names the field.
pub(super) fn from_json<T: DeserializeOwned>(text: &[u8], path: &Path) -> Result<T> {
    // A list would be taken for the fields of an object in their order.
    if text.trim_ascii_start().starts_with(b"[") {
        let reason = "is a list and not an object: start it with '{'".to_owned();
        return Err(Error::Invalid { path: path.to_owned(), reason });
    }
    serde_json::from_slice(text)
        .map_err(|plain| Error::Invalid { path: path.to_owned(), reason: wrong_json::<T>(text, &plain) })
}

/// What is wrong, and where. Apart from the usual case, whose stack it would make larger.
#[cold]
#[inline(never)]
fn wrong_json<T: DeserializeOwned>(text: &[u8], plain: &serde_json::Error) -> String {
    // Read again in the slower way that knows where it is.
    let deserializer = &mut serde_json::Deserializer::from_slice(text);
    match serde_path_to_error::deserialize::<_, T>(deserializer) {
        Err(error) if !matches!(error.path().to_string().as_str(), "." | "?") => {
            format!("{}: {}", error.path(), error.inner())
        }
        _ => plain.to_string(),
    }
}

/// 1.0.x to 1.3.x, with or without something like `-dev` behind it.
fn version_is_known(version: &str) -> bool {
    let number = version.split(['-', '+']).next().unwrap_or("");
    let parts: Vec<Option<u32>> = number.split('.').map(|part| part.parse().ok()).collect();
    matches!(parts[..], [Some(1), Some(minor), Some(_)] if minor <= 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_from_1_0_to_1_3_are_known() {
        for version in ["1.0.0", "1.0.2-dev", "1.1.0-rc.1", "1.3.5"] {
            assert!(version_is_known(version), "{version}");
        }
        for version in ["", "1", "1.0", "0.9.0", "1.4.0", "2.0.0", "1.x.0", "1.0.0.0"] {
            assert!(!version_is_known(version), "{version}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        let reason =
            |text: &str| parse(text.as_bytes(), Path::new("/b/config.json")).unwrap_err().to_string();
        let text = r#"{"ociVersion":"1.0.2","process":{"cwd":"/","user":{"uid":0,"gid":0},"args":["x",7]}}"#;
        assert!(reason(text).contains("process.args[1]"), "{}", reason(text));
        let text = r#"{"ociVersion":"1.0.2","linux":{"namespaces":[{"type":"pids"}]}}"#;
        assert!(reason(text).contains("linux.namespaces[0].type"), "{}", reason(text));
        assert!(reason("{").starts_with("/b/config.json: EOF"), "{}", reason("{"));
        assert!(reason("{}").contains("ociVersion"));
        assert!(reason(" [{}]").contains("is a list"), "{}", reason(" [{}]"));
    }
}
