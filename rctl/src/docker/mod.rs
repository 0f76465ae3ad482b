//! Credentials for registries, where Docker keeps them: `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`, and
//! the programs `docker-credential-NAME` that it names.
//!
//! What this file holds beside credentials is left as it is. Start at [`Keys::open`].

mod helper;

use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rorqual_proto::wire::RegistryCredentials;
use serde_json::{Map, Value, json};

use self::helper::Helper;
use crate::failure::{Failure, Result};
use crate::output;

/// Docker Hub, as references name it.
const HUB: &str = "docker.io";
/// Under which Docker Hub's credentials are kept.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name with which a program says that the secret is a refresh token.
const TOKEN_USER: &str = "<token>";

/// The credentials of one user.
pub(crate) struct Keys {
    path: PathBuf,
    config: Map<String, Value>,
}

impl Keys {
    /// Reads the file; none is as good as an empty one.
    pub(crate) fn open() -> Result<Self> {
        let folder = match (std::env::var_os("DOCKER_CONFIG"), std::env::var_os("HOME")) {
            (Some(folder), _) if !folder.is_empty() => PathBuf::from(folder),
            (_, Some(home)) if !home.is_empty() => Path::new(&home).join(".docker"),
            _ => return Ok(Self { path: PathBuf::new(), config: Map::new() }),
        };
        Self::read(folder.join("config.json"))
    }

    fn read(path: PathBuf) -> Result<Self> {
        let wrong = |reason: String| Failure::operation(format!("cannot read {}: {reason}", path.display()));
        let config = match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(Value::Object(config)) => config,
                Ok(_) => return Err(wrong("it is not a JSON object".to_owned())),
                Err(error) => return Err(wrong(error.to_string())),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
            Err(error) => return Err(wrong(error.to_string())),
        };
        Ok(Self { path, config })
    }

    /// What is kept for `registry`, as references name it.
    pub(crate) fn of(&self, registry: &str) -> Result<Option<RegistryCredentials>> {
        if let Some(helper) = self.helper(registry) {
            return Ok(helper.get(&key(registry))?.map(|(username, secret)| with(username, secret)));
        }
        let Some(Value::Object(auths)) = self.config.get("auths") else { return Ok(None) };
        let found = auths.iter().find(|(name, _)| registry_of(name) == registry);
        let Some((_, Value::Object(entry))) = found else { return Ok(None) };
        let text = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (mut username, mut password) = (text("username"), text("password"));
        if let Some(decoded) = decode(&text("auth"))
            && let Some((user, word)) = decoded.split_once(':')
        {
            (username, password) = (user.to_owned(), word.trim_end_matches('\0').to_owned());
        }
        let credentials = RegistryCredentials {
            username,
            password,
            identity_token: text("identitytoken"),
            registry_token: text("registrytoken"),
        };
        Ok((credentials != RegistryCredentials::default()).then_some(credentials))
    }

    /// Keeps the credentials; says where.
    pub(crate) fn keep(&mut self, registry: &str, credentials: &RegistryCredentials) -> Result<String> {
        let name = key(registry);
        let RegistryCredentials { username, password, identity_token, .. } = credentials;
        if let Some(helper) = self.helper(registry) {
            match identity_token.is_empty() {
                true => helper.store(&name, username, password)?,
                false => helper.store(&name, TOKEN_USER, identity_token)?,
            }
            return Ok(format!("the credential helper `{}`", helper.name()));
        }
        let mut entry = json!({ "auth": encode(&format!("{username}:{password}")) });
        if !identity_token.is_empty() {
            // The password is not needed any more; the user is for people.
            entry = json!({ "auth": encode(&format!("{username}:")), "identitytoken": identity_token });
        }
        self.forget_entries(registry);
        let auths = self.config.entry("auths").or_insert_with(|| json!({}));
        if let Value::Object(auths) = auths {
            auths.insert(name, entry);
        }
        self.write()?;
        Ok(format!("{} (readable, not encrypted)", self.path.display()))
    }

    /// Forgets what is kept; `false` when nothing was.
    pub(crate) fn forget(&mut self, registry: &str) -> Result<bool> {
        let mut had = false;
        if let Some(helper) = self.helper(registry) {
            had = helper.get(&key(registry))?.is_some();
            if had {
                helper.erase(&key(registry))?;
            }
        }
        if self.forget_entries(registry) {
            self.write()?;
            had = true;
        }
        Ok(had)
    }

    fn forget_entries(&mut self, registry: &str) -> bool {
        let Some(Value::Object(auths)) = self.config.get_mut("auths") else { return false };
        let before = auths.len();
        auths.retain(|name, _| registry_of(name) != registry);
        auths.len() != before
    }

    /// The program that keeps this registry's credentials, if one does.
    fn helper(&self, registry: &str) -> Option<Helper> {
        let special = self.config.get("credHelpers").and_then(Value::as_object);
        let special = special.and_then(|all| all.iter().find(|(name, _)| registry_of(name) == registry));
        let name = special.map(|(_, name)| name).or_else(|| self.config.get("credsStore"))?;
        name.as_str().filter(|name| !name.is_empty()).map(Helper::new)
    }

    /// Replaces the file as a whole, for its owner alone.
    fn write(&self) -> Result<()> {
        let failed = |error: std::io::Error| {
            Failure::operation(format!("cannot write {}: {error}", self.path.display()))
        };
        if self.path.as_os_str().is_empty() {
            return Err(Failure::operation("neither HOME nor DOCKER_CONFIG says where credentials are kept"));
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(failed)?;
        let temporary = self.path.with_extension(format!("json.{}", std::process::id()));
        let text = serde_json::to_vec_pretty(&self.config).map_err(|error| failed(error.into()))?;
        // A link is followed, as people keep this file elsewhere.
        let target = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let mode = std::fs::metadata(&target).map_or(0o600, |found| found.permissions().mode() & 0o7700);
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(mode | 0o600);
        let written = options
            .open(&temporary)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&temporary, &target));
        if written.is_err() {
            // Best effort: the error that counts is the other one.
            let _ = std::fs::remove_file(&temporary);
        }
        written.map_err(failed)
    }
}

/// What is kept for a registry. Trouble with that is no reason not to ask without.
pub(crate) fn kept(registry: &str) -> Option<RegistryCredentials> {
    match Keys::open().and_then(|keys| keys.of(registry)) {
        Ok(credentials) => credentials,
        Err(failure) => {
            output::note(&format!(
                "warning: {}; asking without credentials",
                failure.message.unwrap_or_default()
            ));
            None
        }
    }
}

/// The registry of an image's name: what stands before the first slash, where that can't be a user of Docker Hub.
pub(crate) fn registry_in(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => registry_of(first),
        _ => HUB,
    }
}

/// A registry as references name it, from any way in which people and files name it.
pub(crate) fn registry_of(name: &str) -> &str {
    let name = name.split_once("://").map_or(name, |(_, rest)| rest);
    match name.split('/').next().unwrap_or(name) {
        "" | HUB | "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => HUB,
        other => other,
    }
}

/// Under which name a registry's credentials are kept.
fn key(registry: &str) -> String {
    if registry == HUB { HUB_KEY.to_owned() } else { registry.to_owned() }
}

fn with(username: String, secret: String) -> RegistryCredentials {
    match username.as_str() {
        TOKEN_USER => RegistryCredentials { identity_token: secret, ..RegistryCredentials::default() },
        _ => RegistryCredentials { username, password: secret, ..RegistryCredentials::default() },
    }
}

fn encode(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

/// `None` for what is not base64, or not text.
fn decode(text: &str) -> Option<String> {
    let bytes = BASE64_STANDARD.decode(text.trim()).ok()?;
    String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(folder: &Path, config: &Value) -> Keys {
        let path = folder.join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        Keys::read(path).unwrap()
    }

    fn user(name: &str, word: &str) -> RegistryCredentials {
        RegistryCredentials { username: name.into(), password: word.into(), ..Default::default() }
    }

    #[test]
    fn registries_are_known_by_all_of_their_names() {
        for (image, registry) in [
            ("nginx", "docker.io"),
            ("library/nginx:1", "docker.io"),
            ("docker.io/library/nginx", "docker.io"),
            ("index.docker.io/x", "docker.io"),
            ("localhost/x", "localhost"),
            ("localhost:5000/x:1", "localhost:5000"),
            ("r.example/a/b@sha256:0", "r.example"),
        ] {
            assert_eq!(registry_in(image), registry, "{image}");
        }
        assert_eq!(registry_of("https://index.docker.io/v1/"), "docker.io");
        assert_eq!(registry_of("https://r.example:5000/v2/"), "r.example:5000");
    }

    #[test]
    fn dockers_file_is_read_and_the_rest_of_it_kept() {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({
            "psFormat": "table",
            "auths": {
                "https://index.docker.io/v1/": { "auth": encode("me:pa:ss") },
                "https://r.example/v2/": { "auth": encode("you:"), "identitytoken": "t" },
                "plain.example": { "username": "u", "password": "p" },
                "empty.example": {},
            },
        });
        let mut keys = keys(folder.path(), &config);
        assert_eq!(keys.of("docker.io").unwrap(), Some(user("me", "pa:ss")));
        assert_eq!(keys.of("r.example").unwrap().unwrap().identity_token, "t");
        assert_eq!(keys.of("plain.example").unwrap(), Some(user("u", "p")));
        assert_eq!((keys.of("empty.example").unwrap(), keys.of("x.example").unwrap()), (None, None));

        keys.keep("r.example", &user("new", "word")).unwrap();
        assert!(keys.forget("docker.io").unwrap());
        assert!(!keys.forget("docker.io").unwrap());
        let again = Keys::read(keys.path.clone()).unwrap();
        assert_eq!(again.of("r.example").unwrap(), Some(user("new", "word")));
        assert_eq!(again.of("docker.io").unwrap(), None);
        assert_eq!(again.config["psFormat"], "table");
        let fresh = Keys::read(folder.path().join("new/config.json")).unwrap();
        assert_eq!(fresh.of("docker.io").unwrap(), None);
    }

    #[test]
    fn a_new_file_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut keys = Keys::read(folder.path().join("new/config.json")).unwrap();
        keys.keep("docker.io", &user("me", "secret")).unwrap();
        let mode = std::fs::metadata(&keys.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = std::fs::read_to_string(&keys.path).unwrap();
        assert!(text.contains(HUB_KEY) && !text.contains("secret"), "{text}");
    }

    #[test]
    fn helpers_keep_what_is_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("docker-credential-test");
        let script = format!(
            "#!/bin/sh\nread -r line\necho \"$1 $line\" >>{0}/calls\ncase $1 in\n\
             get) case $line in known*) echo '{{\"Username\":\"<token>\",\"Secret\":\"t0ken\"}}' ;;\n\
             *) echo 'credentials not found in native keychain'; exit 1 ;; esac ;;\nesac\n",
            folder.path().display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = json!({
            "credHelpers": { "known.example": program, "other.example": program },
            "auths": { "known.example": { "auth": encode("old:old") } },
        });
        let mut keys = keys(folder.path(), &config);
        assert_eq!(keys.of("known.example").unwrap().unwrap().identity_token, "t0ken");
        assert_eq!(keys.of("other.example").unwrap(), None);
        let place = keys.keep("other.example", &user("me", "word")).unwrap();
        assert!(place.contains("credential helper"), "{place}");
        assert!(!keys.config["auths"].as_object().unwrap().contains_key("other.example"));
        assert!(keys.forget("known.example").unwrap());
        let calls = std::fs::read_to_string(folder.path().join("calls")).unwrap();
        let stored = r#"store {"Secret":"word","ServerURL":"other.example","Username":"me"}"#;
        assert!(calls.contains(stored) && calls.contains("erase known.example"), "{calls}");

        let missing = json!({ "credsStore": "no-such-program-here" });
        let failure = self::keys(folder.path(), &missing).of("x.example").unwrap_err();
        assert!(failure.message.unwrap().contains("docker-credential-no-such-program-here"));
    }
}
