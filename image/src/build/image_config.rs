//! An image's configuration while it is being built: what OCI names, what Docker adds (`Healthcheck`,
//! `Shell`, `OnBuild`), and whatever else the base image has.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::platform::Platform;

/// What shell forms are run by where SHELL says nothing else.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// What an image without a PATH gets.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The configuration's document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ImageConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) author: Option<String>,
    pub(crate) architecture: String,
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
    #[serde(default)]
    pub(crate) config: Settings,
    #[serde(default)]
    pub(crate) rootfs: RootFs,
    #[serde(default)]
    pub(crate) history: Vec<History>,
    /// Of the base image, not known here.
    #[serde(flatten)]
    pub(crate) other: BTreeMap<String, Value>,
}

/// What a container of the image gets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Settings {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) user: String,
    #[serde(skip_serializing_if = "null_or_empty", deserialize_with = "nullable")]
    pub(crate) exposed_ports: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) env: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "null_or_empty", deserialize_with = "nullable")]
    pub(crate) volumes: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) working_dir: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) stop_signal: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) healthcheck: Option<Health>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) shell: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(crate) on_build: Vec<String>,
    #[serde(flatten)]
    pub(crate) other: BTreeMap<String, Value>,
}

/// Docker's `Healthcheck`; times in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Health {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) test: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) interval: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) start_period: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) start_interval: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retries: Option<u64>,
}

/// Which layers there are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RootFs {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(deserialize_with = "nullable", default)]
    pub(crate) diff_ids: Vec<String>,
}

impl Default for RootFs {
    fn default() -> Self {
        RootFs { kind: "layers".to_owned(), diff_ids: Vec::new() }
    }
}

/// What an instruction did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct History {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) comment: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) empty_layer: bool,
    #[serde(flatten)]
    pub(crate) other: BTreeMap<String, Value>,
}

fn null_or_empty(map: &BTreeMap<String, Value>) -> bool {
    map.is_empty()
}

/// Go writes `null` for what is empty.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl ImageConfig {
    /// The configuration of `FROM scratch`.
    pub(crate) fn scratch(platform: &Platform) -> ImageConfig {
        ImageConfig {
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            variant: platform.variant.clone(),
            config: Settings {
                env: vec![format!("PATH={DEFAULT_PATH}")],
                working_dir: "/".to_owned(),
                ..Settings::default()
            },
            ..ImageConfig::default()
        }
    }
}

impl Settings {
    /// The shell of shell forms.
    pub(crate) fn shell(&self) -> Vec<String> {
        if self.shell.is_empty() { SHELL.map(str::to_owned).to_vec() } else { self.shell.clone() }
    }

    /// The value of an environment variable.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
    }

    /// Sets one; it keeps its place.
    pub(crate) fn set_variable(&mut self, name: &str, value: &str) {
        let entry = format!("{name}={value}");
        let known = self
            .env
            .iter_mut()
            .find(|entry| entry.strip_prefix(name).is_some_and(|rest| rest.starts_with('=')));
        match known {
            Some(known) => *known = entry,
            None => self.env.push(entry),
        }
    }

    /// An absolute path without `.` and `..`; relative ones begin in the working folder.
    pub(crate) fn absolute(&self, path: &str) -> String {
        let whole =
            if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", self.working_dir) };
        clean(&whole)
    }
}

/// The path from `/`, with `.` and `..` worked out; above `/` is `/`.
pub(crate) fn clean(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_here_is_kept() {
        let text = r#"{"architecture":"amd64","os":"linux","os.version":"1","config":{"Env":["A=1"],"Volumes":null,
            "ArgsEscaped":true,"OnBuild":null,"Healthcheck":{"Test":["NONE"]}},
            "rootfs":{"type":"layers","diff_ids":null},"history":[{"created_by":"x","author":"y"}]}"#;
        let config: ImageConfig = serde_json::from_str(text).unwrap();
        let again = serde_json::to_value(&config).unwrap();
        assert_eq!(again["os.version"], "1");
        assert_eq!(again["config"]["ArgsEscaped"], true);
        assert_eq!(again["history"][0]["author"], "y");
        assert!(again["config"].get("Volumes").is_none());
    }

    #[test]
    fn paths_are_worked_out_from_the_working_folder() {
        let settings = Settings { working_dir: "/a/b".into(), ..Settings::default() };
        for (path, expected) in [("c", "/a/b/c"), ("../c/.", "/a/c"), ("/x//y", "/x/y"), ("../../../..", "/")]
        {
            assert_eq!(settings.absolute(path), expected);
        }
    }

    #[test]
    fn a_variable_keeps_its_place() {
        let mut settings = Settings { env: vec!["A=1".into(), "AB=2".into()], ..Settings::default() };
        settings.set_variable("A", "3");
        settings.set_variable("C", "4");
        assert_eq!(settings.env, ["A=3", "AB=2", "C=4"]);
        assert_eq!(settings.variable("AB"), Some("2"));
    }
}
