//! Control groups as files: which hierarchies the machine has ([`Layout`]), where a container's groups are ([`Group`]),
//! and everything that is done with them. What is written into a group is decided in `plan::cgroup`.
//!
//! ```text
//! layout    what is mounted            make      makes a planned group       freeze   stops, thaws
//! locate    cgroupsPath -> Group       update    new limits while it runs    end      signals, kills, removes
//! node      a node's parent group      stats     figures, as `events` tells  oom      waits for kills
//! ```

mod end;
mod freeze;
mod layout;
mod locate;
mod make;
mod node;
mod oom;
mod stats;
pub(crate) mod systemd;
mod update;
mod usage;

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use crate::error::Error;

pub(crate) use layout::{Hierarchy, Layout};
pub(crate) use locate::{Wanted, locate};
pub(crate) use make::{Made, begin, explain_join};
pub(crate) use oom::Oom;
pub(crate) use stats::Stats;

/// The controllers whose v1 hierarchies each container joins, whatever its limits: for what is told of it, and for what
/// is enforced always. One hierarchy more costs some 50 µs a container.
const ALWAYS: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "devices"];

/// Where the groups of one container are: a directory in each hierarchy that it takes part in. Kept with the container's
/// state, so that it is found again whatever is mounted then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    /// In the cgroup2, if there is one.
    pub(crate) unified: Option<PathBuf>,
    /// In v1 hierarchies.
    pub(crate) v1: Vec<Member>,
    /// Whose groups they are, if systemd makes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unit: Option<systemd::Unit>,
}

/// A group in a v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// As in [`Hierarchy`].
    pub(crate) controllers: Vec<String>,
    pub(crate) dir: PathBuf,
}

/// Which v1 hierarchies a container joins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reach<'a> {
    /// All, as callers of an OCI runtime expect, who look into them by themselves.
    All,
    /// Only those that something is enforced or counted with.
    Needed(Option<&'a LinuxResources>),
}

impl Group {
    /// The groups at the same path below each mount point.
    pub(crate) fn below(layout: &Layout, path: &str, reach: Reach<'_>) -> Group {
        let wanted = |hierarchy: &&Hierarchy| match reach {
            Reach::All => true,
            Reach::Needed(resources) => hierarchy.controllers.iter().any(|controller| {
                ALWAYS.contains(&controller.as_str())
                    || (controller == "freezer" && layout.unified.is_none())
                    || crate::plan::cgroup::names(resources, controller)
            }),
        };
        let member = |hierarchy: &Hierarchy| Member {
            controllers: hierarchy.controllers.clone(),
            dir: hierarchy.mount.join(path),
        };
        let named = layout.named.iter().filter(|_| matches!(reach, Reach::All));
        Group {
            unified: layout.unified.as_ref().map(|mount| mount.join(path)),
            v1: layout.v1.iter().filter(wanted).chain(named).map(member).collect(),
            unit: None,
        }
    }

    /// The directory in the v1 hierarchy of a controller.
    pub(crate) fn v1_of(&self, controller: &str) -> Option<&Path> {
        let of = |member: &&Member| member.controllers.iter().any(|known| known == controller);
        self.v1.iter().find(of).map(|member| member.dir.as_path())
    }

    /// Whether the controllers are those of the cgroup2.
    pub(crate) fn is_v2(&self) -> bool {
        self.unified.is_some() && self.v1.iter().all(Member::is_named)
    }

    /// All directories: the cgroup2's first.
    pub(crate) fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.unified.iter().map(PathBuf::as_path).chain(self.v1.iter().map(|member| member.dir.as_path()))
    }

    /// The file of the cgroup2 or of v1 whose `oom_kill` says how often the kernel killed a process of the group because
    /// its memory limit was reached.
    pub(crate) fn oom_file(&self) -> PathBuf {
        match (self.v1_of("memory"), &self.unified) {
            (Some(dir), _) => dir.join("memory.oom_control"),
            (None, Some(dir)) => dir.join("memory.events"),
            (None, None) => PathBuf::new(),
        }
    }
}

impl Member {
    fn is_named(&self) -> bool {
        self.controllers.iter().any(|name| name.starts_with("name="))
    }
}

fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { operation, path, source }
}

#[cfg(test)]
mod kernel_tests;
