//! `--cache-from` and `--cache-to`: where steps of other nodes are, and where this build's go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rorqual_proto::wire::{BuildCacheFrom, BuildCacheTo};

use super::context::Context;
use crate::docker::kept as credentials;
use crate::docker::registry_in;
use crate::failure::{Failure, Result};
use crate::output;

/// Kinds that belong to services of others.
const ELSEWHERE: [&str; 3] = ["gha", "s3", "azblob"];

/// What `--cache-to` comes to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct To {
    pub(super) targets: Vec<BuildCacheTo>,
    /// Where what comes back is written to.
    pub(super) folder: Option<PathBuf>,
    pub(super) inline: bool,
}

/// One value of an option: its kind, and the other keys.
struct Keys<'a> {
    option: &'static str,
    text: &'a str,
    keys: BTreeMap<&'a str, &'a str>,
}

impl<'a> Keys<'a> {
    /// A name alone is that of an image.
    fn read(option: &'static str, text: &'a str) -> Result<(String, Keys<'a>)> {
        let mut keys = Keys { option, text, keys: BTreeMap::new() };
        if !text.contains('=') {
            keys.keys.insert("ref", text);
            return Ok(("registry".to_owned(), keys));
        }
        for part in text.split(',') {
            let Some((key, value)) = part.split_once('=').filter(|(_, value)| !value.is_empty()) else {
                return Err(keys.wrong(&format!("`{part}` is not understood: expected KEY=VALUE")));
            };
            if keys.keys.insert(key.trim(), value).is_some() {
                return Err(keys.wrong(&format!("`{key}=` stands there twice")));
            }
        }
        let kind =
            keys.keys.remove("type").ok_or_else(|| keys.wrong("it wants type=registry or type=local"))?;
        if ELSEWHERE.contains(&kind) {
            return Err(keys.wrong(&format!(
                "type={kind} is a service of others, which is not supported; use type=registry or type=local"
            )));
        }
        Ok((kind.to_owned(), keys))
    }

    fn wrong(&self, reason: &str) -> Failure {
        Failure::usage(format!("{} {}: {reason}", self.option, self.text))
    }

    fn need(&mut self, key: &str, what: &str) -> Result<String> {
        let value = self.keys.remove(key);
        value.map(str::to_owned).ok_or_else(|| self.wrong(&format!("it wants {key}={what}")))
    }

    fn flag(&mut self, key: &str, default: bool) -> Result<bool> {
        match self.keys.remove(key) {
            None => Ok(default),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(self.wrong(&format!("{key}= is true or false, not `{other}`"))),
        }
    }

    /// What is written is an image in OCI's types; a key that asks for something else can't be followed.
    fn only_images(&mut self) -> Result<()> {
        for key in ["oci-mediatypes", "image-manifest"] {
            if !self.flag(key, true)? {
                return Err(self.wrong(&format!("{key}=false is not supported: an OCI image is written")));
            }
        }
        Ok(())
    }

    fn done(self) -> Result<()> {
        match self.keys.keys().next() {
            None => Ok(()),
            Some(key) => Err(self.wrong(&format!("`{key}=` is not supported"))),
        }
    }
}

/// Where steps come from. Folders become contexts of names that nobody else can give.
pub(super) fn from(list: &[String], contexts: &mut BTreeMap<String, Context>) -> Result<Vec<BuildCacheFrom>> {
    let mut sources = Vec::new();
    for (number, text) in list.iter().enumerate() {
        let (kind, mut keys) = Keys::read("--cache-from", text)?;
        match kind.as_str() {
            "registry" => {
                let reference = keys.need("ref", "NAME")?;
                keys.done()?;
                let credentials = credentials(registry_in(&reference));
                let name = reference.clone();
                sources.push(BuildCacheFrom { reference, credentials, name, ..BuildCacheFrom::default() });
            }
            "local" => {
                let folder = keys.need("src", "FOLDER")?;
                keys.done()?;
                if !Path::new(&folder).exists() {
                    output::note(&format!("warning: --cache-from {text}: {folder} is not there yet"));
                    continue;
                }
                let context = format!("=cache-{number}");
                contexts.insert(context.clone(), Context::folder(Path::new(&folder))?);
                sources.push(BuildCacheFrom { context, name: folder, ..BuildCacheFrom::default() });
            }
            other => {
                return Err(keys.wrong(&format!("type={other} is not supported: registry and local are")));
            }
        }
    }
    Ok(sources)
}

/// Where steps go to.
pub(super) fn to(list: &[String]) -> Result<To> {
    let mut found = To::default();
    for text in list {
        let (kind, mut keys) = Keys::read("--cache-to", text)?;
        let all = match keys.keys.remove("mode") {
            None | Some("min") => false,
            Some("max") => true,
            Some(other) => return Err(keys.wrong(&format!("mode= is min or max, not `{other}`"))),
        };
        let ignore_error = keys.flag("ignore-error", false)?;
        let target = BuildCacheTo { all, ignore_error, ..BuildCacheTo::default() };
        match kind.as_str() {
            "registry" => {
                let reference = keys.need("ref", "NAME")?;
                keys.only_images()?;
                keys.done()?;
                let credentials = credentials(registry_in(&reference));
                found.targets.push(BuildCacheTo {
                    name: reference.clone(),
                    reference,
                    credentials,
                    ..target
                });
            }
            "local" => {
                let folder = keys.need("dest", "FOLDER")?;
                keys.only_images()?;
                if found.folder.is_some() {
                    return Err(keys.wrong("there can be one folder"));
                }
                keys.done()?;
                found.folder = Some(PathBuf::from(&folder));
                found.targets.push(BuildCacheTo { name: folder, ..target });
            }
            "inline" if all => {
                return Err(keys.wrong("an image can't hold the steps of other stages (mode=max)"));
            }
            "inline" => {
                keys.done()?;
                found.inline = true;
            }
            other => {
                return Err(
                    keys.wrong(&format!("type={other} is not supported: registry, local and inline are"))
                );
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn places_of_steps_are_told_apart() {
        let found = to(&list(&["type=inline", "type=local,dest=/x,mode=max"])).unwrap();
        assert!(found.inline && found.targets[0].all && found.targets[0].reference.is_empty());
        assert_eq!(found.folder, Some(PathBuf::from("/x")));
        let found =
            to(&list(&["127.0.0.1:1/c:x", "type=registry,ref=127.0.0.1:1/d,ignore-error=true"])).unwrap();
        assert_eq!(found.targets[0].reference, "127.0.0.1:1/c:x");
        assert!(found.targets[1].ignore_error && !found.targets[1].all);
        let folder = tempfile::tempdir().unwrap();
        let mut contexts = BTreeMap::new();
        let local = format!("type=local,src={}", folder.path().display());
        let found = from(&list(&[&local, "type=local,src=/no/such", "app:1"]), &mut contexts).unwrap();
        assert_eq!((found.len(), contexts.len()), (2, 1));
        assert!(contexts.contains_key(&found[0].context));
        assert_eq!(found[1].reference, "app:1");
    }

    #[test]
    fn what_can_not_be_done_is_refused() {
        for (text, part) in [
            ("type=gha", "type=gha is a service of others"),
            ("type=s3,region=x,bucket=y", "type=s3 is a service of others"),
            ("type=azblob,name=x", "not supported"),
            ("type=disk", "registry, local and inline are"),
            ("type=registry", "it wants ref=NAME"),
            ("type=local,src=/x", "it wants dest=FOLDER"),
            ("type=inline,mode=max", "can't hold"),
            ("ref=x", "it wants type="),
            ("type=registry,ref=x,mode=some", "min or max"),
            ("type=registry,ref=x,compression=zstd", "`compression=` is not supported"),
            ("type=registry,ref=x,image-manifest=false", "an OCI image is written"),
            ("type=registry,ref=x,ref=y", "twice"),
        ] {
            let message = to(&list(&[text])).unwrap_err().message.unwrap();
            assert!(message.contains(part), "{text}: {message}");
        }
        for text in ["type=gha", "type=inline", "type=local", "type=registry,ref=x,mode=max"] {
            assert!(from(&list(&[text]), &mut BTreeMap::new()).is_err(), "{text}");
        }
    }
}
