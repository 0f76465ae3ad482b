//! The image configuration: read, and refused when it says something no image has a reason to say.
//!
//! The runtime and the agent rely on it: volumes and the working directory are clean absolute paths
//! (CVE-2022-23648), no string holds a NUL, environment and arguments have a bounded size.

use oci_spec::image::ImageConfiguration;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::platform::Platform;

/// Environment, command and labels together: what `execve` takes is not much more.
const STRINGS_MAX_BYTES: usize = 1 << 20;

/// Reads the configuration `digest`.
pub(crate) fn parse(digest: &Digest, bytes: &[u8]) -> Result<ImageConfiguration> {
    let what = || format!("configuration {digest}");
    let config: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|source| Error::Json { what: what(), source })?;
    check(&config).map_err(|reason| Error::document(what(), reason))?;
    Ok(config)
}

/// What the configuration says that the image is for.
pub(crate) fn platform_of(config: &ImageConfiguration) -> Platform {
    Platform {
        architecture: config.architecture().to_string(),
        os: config.os().to_string(),
        variant: config.variant().clone().filter(|variant| !variant.is_empty()),
    }
}

/// The diff-ids, lowest layer first.
pub(crate) fn diff_ids(digest: &Digest, config: &ImageConfiguration) -> Result<Vec<Digest>> {
    let parse = |text: &String| {
        text.parse().map_err(|error| {
            Error::document(format!("configuration {digest}"), format!("diff-id `{text}`: {error}"))
        })
    };
    config.rootfs().diff_ids().iter().map(parse).collect()
}

fn check(image: &ImageConfiguration) -> Result<(), String> {
    let Some(config) = image.config() else { return Ok(()) };
    let mut total = 0usize;
    let lists = [("Env", config.env()), ("Cmd", config.cmd()), ("Entrypoint", config.entrypoint())];
    for (field, list) in lists {
        for text in list.iter().flatten() {
            no_nul(field, text)?;
            total = total.saturating_add(text.len() + 1);
        }
    }
    for text in config.env().iter().flatten() {
        if text.starts_with('=') || text.is_empty() {
            return Err(format!("`Env` holds `{text}`, expected NAME=value"));
        }
    }
    for (name, value) in config.labels().iter().flatten() {
        total = total.saturating_add(name.len() + value.len());
    }
    if total > STRINGS_MAX_BYTES {
        return Err(format!(
            "environment, command and labels take {total} bytes, at most {STRINGS_MAX_BYTES} are accepted"
        ));
    }
    for volume in config.volumes().iter().flatten() {
        clean_path("Volumes", volume)?;
    }
    if let Some(folder) = config.working_dir().as_ref().filter(|folder| !folder.is_empty()) {
        clean_path("WorkingDir", folder)?;
    }
    if let Some(user) = config.user() {
        no_nul("User", user)?;
        if user.contains(['/', '\n']) {
            return Err(format!("`User` is `{user}`, expected a name or number, and `:` and a group"));
        }
    }
    Ok(())
}

fn no_nul(field: &str, text: &str) -> Result<(), String> {
    if text.contains('\0') { Err(format!("`{field}` holds a NUL character")) } else { Ok(()) }
}

fn clean_path(field: &str, path: &str) -> Result<(), String> {
    no_nul(field, path)?;
    if path.len() > 4096 {
        return Err(format!("a path in `{field}` is longer than 4096 bytes"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("`{field}` holds `{path}`: `..` is not allowed there"));
    }
    Ok(())
}
