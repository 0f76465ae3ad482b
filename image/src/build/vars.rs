//! Which variables an instruction sees, and what they stand for.
//!
//! ARGs before the first FROM are seen by FROMs alone, until a stage declares them again. In a stage ENV goes
//! before ARG. What describes the platforms is always there for FROMs, and in a stage once it is declared.

use std::collections::BTreeMap;

use super::image_config::Settings;
use crate::platform::Platform;

/// Proxies may be given without being declared, are seen by commands, and never make a difference to what
/// was built.
const PROXIES: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// `--build-arg`s and what is given by the machine.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    args: BTreeMap<String, String>,
    platform: BTreeMap<String, String>,
}

impl Given {
    /// `target` is what the image is for, `own` what it is built on.
    pub(crate) fn new(args: BTreeMap<String, String>, target: &Platform, own: &Platform) -> Given {
        let mut known = BTreeMap::new();
        for (prefix, platform) in [("TARGET", target), ("BUILD", own)] {
            known.insert(format!("{prefix}PLATFORM"), platform.to_string());
            known.insert(format!("{prefix}OS"), platform.os.clone());
            known.insert(format!("{prefix}ARCH"), platform.architecture.clone());
            known.insert(format!("{prefix}VARIANT"), platform.variant.clone().unwrap_or_default());
        }
        Given { args, platform: known }
    }

    /// What an ARG of that name is given.
    fn value(&self, name: &str) -> Option<String> {
        self.args.get(name).or_else(|| self.platform.get(name)).cloned()
    }

    pub(crate) fn arg(&self, name: &str) -> Option<&str> {
        self.args.get(name).map(String::as_str)
    }

    /// `NAME=value` of the proxies that were given.
    pub(crate) fn proxies(&self) -> Vec<String> {
        let given = |name: &&str| self.args.get(*name).map(|value| format!("{name}={value}"));
        PROXIES.iter().filter_map(given).collect()
    }

    /// Given, and declared nowhere: mostly a mistake.
    pub(crate) fn unused<'a>(&'a self, declared: &dyn Fn(&str) -> bool) -> Vec<&'a str> {
        let is_known = |name: &str| {
            PROXIES.contains(&name) || name == "SOURCE_DATE_EPOCH" || self.platform.contains_key(name)
        };
        self.args.keys().map(String::as_str).filter(|name| !is_known(name) && !declared(name)).collect()
    }
}

/// ARGs in scope.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    values: BTreeMap<String, Option<String>>,
}

impl Scope {
    /// An ARG before the first FROM.
    pub(crate) fn declare_global(&mut self, name: &str, default: Option<String>, given: &Given) {
        self.values.insert(name.to_owned(), given.value(name).or(default));
    }

    /// An ARG in a stage; without a value of its own it has that of the global one.
    pub(crate) fn declare(&mut self, name: &str, default: Option<String>, global: &Scope, given: &Given) {
        let outer = || global.values.get(name).cloned().flatten();
        let value = match (given.value(name), default) {
            (Some(given), _) => Some(given),
            (None, Some(default)) => Some(default),
            (None, None) => outer(),
        };
        self.values.insert(name.to_owned(), value);
    }

    /// What a FROM sees.
    pub(crate) fn global_lookup(&self, name: &str, given: &Given) -> Option<String> {
        match self.values.get(name) {
            Some(value) => value.clone(),
            None => given.platform.get(name).cloned(),
        }
    }

    /// What an instruction of a stage sees.
    pub(crate) fn lookup(&self, name: &str, settings: &Settings) -> Option<String> {
        match settings.variable(name) {
            Some(value) => Some(value.to_owned()),
            None => self.values.get(name).cloned().flatten(),
        }
    }

    /// `NAME=value` for a command: what has a value and is not hidden by ENV.
    pub(crate) fn environment(&self, settings: &Settings) -> Vec<String> {
        let seen = self
            .values
            .iter()
            .filter(|(name, _)| settings.variable(name).is_none() && !PROXIES.contains(&name.as_str()));
        seen.filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(args: &[(&str, &str)]) -> Given {
        let args = args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let platform =
            Platform { architecture: "arm64".into(), os: "linux".into(), variant: Some("v8".into()) };
        Given::new(args, &platform, &platform)
    }

    #[test]
    fn global_values_count_in_a_stage_once_they_are_declared_there() {
        let given = given(&[("B", "given")]);
        let mut global = Scope::default();
        global.declare_global("A", Some("outer".into()), &given);
        global.declare_global("B", Some("outer".into()), &given);
        assert_eq!(global.global_lookup("B", &given).as_deref(), Some("given"));
        assert_eq!(global.global_lookup("TARGETARCH", &given).as_deref(), Some("arm64"));
        let (mut stage, settings) = (Scope::default(), Settings::default());
        assert_eq!(stage.lookup("A", &settings), None);
        stage.declare("A", None, &global, &given);
        stage.declare("B", Some("inner".into()), &global, &given);
        stage.declare("TARGETVARIANT", None, &global, &given);
        assert_eq!(stage.lookup("A", &settings).as_deref(), Some("outer"));
        assert_eq!(stage.environment(&settings), ["A=outer", "B=given", "TARGETVARIANT=v8"]);
        stage.declare("A", Some("inner".into()), &global, &given);
        assert_eq!(stage.lookup("A", &settings).as_deref(), Some("inner"));
    }

    #[test]
    fn env_goes_before_arg_and_proxies_stay_out() {
        let given = given(&[("HTTP_PROXY", "p"), ("X", "1"), ("Y", "2")]);
        let mut stage = Scope::default();
        for name in ["HTTP_PROXY", "X"] {
            stage.declare(name, None, &Scope::default(), &given);
        }
        let settings = Settings { env: vec!["X=env".into()], ..Settings::default() };
        assert_eq!(stage.lookup("X", &settings).as_deref(), Some("env"));
        assert!(stage.environment(&settings).is_empty());
        assert_eq!(given.proxies(), ["HTTP_PROXY=p"]);
        assert_eq!(given.unused(&|name| name == "X"), ["Y"]);
    }
}
