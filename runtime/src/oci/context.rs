//! What the global options say.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::args::Matches;
use super::error::{Error, Result};
use super::log::Log;
use super::state::Place;
use crate::plan::Facts;
use crate::sys;

/// Who makes the control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manager {
    Cgroupfs,
    Systemd,
    /// Nobody: the container stays in its caller's groups.
    Disabled,
}

/// Global options.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) root: PathBuf,
    pub(super) log: Log,
    pub(super) manager: Manager,
    /// What our program is executed from, if it is something that goes away with us.
    pub(super) program: RefCell<Option<OwnedFd>>,
    /// Control groups that may not be made are done without; `None`: if we are no root.
    rootless: Option<bool>,
}

impl Context {
    pub(super) fn new(global: &Matches) -> Result<Context> {
        let log = Log::new(global.value("log"), global.value("log-format"), global.is_set("debug"))?;
        let manager = match (global.value("cgroup-manager"), global.is_set("systemd-cgroup")) {
            (None | Some("systemd"), true) | (Some("systemd"), false) => Manager::Systemd,
            (None | Some("cgroupfs"), _) => Manager::Cgroupfs,
            (Some("disabled"), _) => Manager::Disabled,
            (Some(other), _) => {
                return Err(Error::Usage(format!(
                    "unknown cgroup manager {other:?}: cgroupfs, systemd and disabled are known"
                )));
            }
        };
        let rootless = match global.value("rootless") {
            Some("true") => Some(true),
            Some("false") => Some(false),
            None | Some("auto" | "") => None,
            Some(other) => return Err(Error::Usage(format!("invalid value {other:?} for flag -rootless"))),
        };
        let root = match global.value("root").filter(|root| !root.is_empty()) {
            Some(root) => std::path::absolute(root).map_err(Error::file("use root", &PathBuf::from(root)))?,
            None => default_root(),
        };
        Ok(Context { root, log, manager, program: RefCell::default(), rootless })
    }

    /// Whether control groups that may not be made are done without.
    pub(super) fn rootless(&self, facts: &Facts) -> bool {
        self.rootless.unwrap_or(facts.user_namespace || sys::euid() != 0)
    }

    pub(super) fn place(&self, id: &str) -> Result<Place> {
        Place::new(&self.root, id)
    }
}

/// Whether this is no root, or the root of a user namespace only.
fn is_rootless() -> bool {
    if sys::euid() != 0 {
        return true;
    }
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut first = map.split_ascii_whitespace();
    let whole = (first.next(), first.next(), first.next()) == (Some("0"), Some("0"), Some("4294967295"));
    !whole
}

fn default_root() -> PathBuf {
    let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    match runtime_dir {
        Some(dir) if is_rootless() => PathBuf::from(dir).join("rorqual-runtime"),
        _ => PathBuf::from("/run/rorqual-runtime"),
    }
}
