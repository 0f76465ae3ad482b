//! What is known of a container, what state it is in, and how that is told.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(super) use super::place::{Lock, Place, START_SOCKET, all};
use crate::cgroup::Group;
use crate::rdt;

/// What is known of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) oci_version: String,
    pub(super) id: String,
    /// 0 as long as there is no first process. In the file it stands before all else, since it comes later.
    #[serde(skip)]
    pub(super) pid: i32,
    /// When the kernel started it, in clock ticks since boot: tells it from a later process of the same number.
    #[serde(skip)]
    pub(super) start_ticks: u64,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    /// RFC 3339.
    pub(super) created: String,
    pub(super) owner: u32,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) group: Group,
    /// Its class of service, and what of that was made for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rdt: Option<rdt::Groups>,
    /// Whether it has a session keyring of its own.
    pub(super) keyring: bool,
    /// Whether its specification has hooks: it need not be looked at to run none.
    pub(super) hooks: bool,
}

/// The state that a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }

    /// Whether there is a process.
    pub(super) fn is_alive(self) -> bool {
        matches!(self, Status::Created | Status::Running | Status::Paused)
    }
}

/// Whether the container's first process is there, and has not ended.
pub(super) fn is_alive(record: &Record) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{}/stat", record.pid)) else { return false };
    // The second field, the command, is in brackets and may hold anything.
    let Some((_, fields)) = text.rsplit_once(") ") else { return false };
    // Fields 3 (state), 9 (flags) and 22 (start time) of proc_pid_stat(5).
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok());
    let dead = matches!(fields.first(), Some(&("Z" | "X")));
    // The first process of a pid namespace is not dead before all others have been reaped.
    let exiting = number(6).is_some_and(|flags| flags & PF_EXITING != 0);
    !dead && !exiting && number(19) == Some(record.start_ticks)
}

/// The kernel's flag of a process that is ending (include/linux/sched.h).
const PF_EXITING: u64 = 4;

/// The state of a container as the specification has it, for `state`, `list` and hooks.
#[derive(Debug, Serialize)]
pub(super) struct State<'a> {
    #[serde(rename = "ociVersion")]
    pub(super) oci_version: &'a str,
    pub(super) id: &'a str,
    pub(super) pid: i32,
    pub(super) status: &'static str,
    pub(super) bundle: &'a Path,
    pub(super) rootfs: &'a Path,
    pub(super) created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: &'a BTreeMap<String, String>,
    pub(super) owner: String,
}

impl<'a> State<'a> {
    pub(super) fn new(record: &'a Record, status: Status) -> State<'a> {
        State {
            oci_version: &record.oci_version,
            id: &record.id,
            pid: if status.is_alive() { record.pid } else { 0 },
            status: status.name(),
            bundle: &record.bundle,
            rootfs: &record.rootfs,
            created: &record.created,
            annotations: &record.annotations,
            owner: owner(record.owner),
        }
    }

    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A user's name, or else its number.
fn owner(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| uid.to_string())
}
