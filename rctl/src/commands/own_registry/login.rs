//! Writes what docker and podman need to use the registry on loopback into the file where they look for it.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use rorqual_proto::wire::RegistryStatusResponse;
use serde_json::{Value, json};

use crate::failure::{Failure, Result};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// The file of credentials [default: config.json in $DOCKER_CONFIG, else ~/.docker/config.json]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: &LoginArgs, status: &RegistryStatusResponse) -> Result<()> {
    let local = status.addresses.iter().find_map(|address| address.strip_prefix("http://"));
    let Some((_, port)) = local.and_then(|address| address.rsplit_once(':')) else {
        let why = status.problems.first().map_or("this node is in no cluster", String::as_str);
        return Err(Failure::operation(format!("cannot log in: the registry does not listen here: {why}")));
    };
    let path = match &args.config {
        Some(path) => path.clone(),
        None => default_path()?,
    };
    let secret = BASE64_STANDARD.encode(format!("{}:{}", status.local_user, status.local_password));
    let hosts = ["localhost", "127.0.0.1"].map(|host| format!("{host}:{port}"));
    add(&path, &hosts, &secret)
        .map_err(|error| Failure::operation(format!("cannot log in: {}: {error}", path.display())))?;
    output::note(&format!("{} has the credentials; push to {}/NAME", path.display(), hosts[0]));
    Ok(())
}

fn default_path() -> Result<PathBuf> {
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
    let folder = folder.or_else(home);
    let folder = folder.ok_or_else(|| Failure::usage("HOME is not set: name the file with --config"))?;
    Ok(folder.join("config.json"))
}

/// Keeps everything else that is in the file.
fn add(path: &Path, hosts: &[String], secret: &str) -> io::Result<()> {
    let mut config: Value = match fs::read(path) {
        Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => json!({}),
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => json!({}),
        Err(error) => return Err(error),
    };
    let not_an_object = || io::Error::new(io::ErrorKind::InvalidData, "it is not a file of credentials");
    let config_fields = config.as_object_mut().ok_or_else(not_an_object)?;
    let auths = config_fields.entry("auths").or_insert_with(|| json!({}));
    let auths = auths.as_object_mut().ok_or_else(not_an_object)?;
    for host in hosts {
        auths.insert(host.clone(), json!({ "auth": secret }));
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Under its name only when it is whole; nobody else may read it.
    let new = path.with_extension(format!("json.{}", std::process::id()));
    let written =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).and_then(|mut file| {
            file.write_all(&serde_json::to_vec_pretty(&config)?)?;
            file.sync_all()?;
            fs::rename(&new, path)
        });
    if written.is_err() {
        // Best effort: the error is told.
        let _ = fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_else_is_in_the_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/config.json");
        add(&path, &["localhost:1".to_owned()], "c2VjcmV0").unwrap();
        fs::write(&path, r#"{"credsStore":"x","auths":{"other":{"auth":"eA=="}}}"#).unwrap();
        add(&path, &["localhost:1".to_owned()], "c2VjcmV0").unwrap();
        let config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let auths = json!({ "other": { "auth": "eA==" }, "localhost:1": { "auth": "c2VjcmV0" } });
        assert_eq!(config, json!({ "credsStore": "x", "auths": auths }));
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "[]").unwrap();
        assert!(add(&path, &["localhost:1".to_owned()], "x").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"[]");
    }
}
