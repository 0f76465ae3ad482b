//! What the machine looks like: namespaces, links, mounts, cgroups, nft tables, folders and processes.
//!
//! The machine is shared with other labs and other tests; what bears another one's name is theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::wait_until;

/// The kernel lets go of dead processes, namespaces and cgroups a moment after the fact.
const SETTLE_DEADLINE: Duration = Duration::from_secs(10);

/// Where cgroups are looked for below each hierarchy.
const CGROUP_DEPTH: usize = 4;

/// Stands with a process that may be a lab's.
const OURS: &str = "(apart)";

/// As much of a command line as is told.
const COMMAND_LENGTH: usize = 160;

/// What there is, one line each: `mount /run/x`, `link eth0`, `process 17 nginx: worker`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    lines: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at the machine.
    pub fn take() -> Self {
        let mut lines = BTreeSet::new();
        let mut add = |kind: &str, names: Vec<String>| {
            lines.extend(names.into_iter().map(|name| format!("{kind} {name}")));
        };
        add("namespace", names_in(Path::new("/run/netns")));
        add("link", names_in(Path::new("/sys/class/net")));
        add("mount", mount_points(|_| true));
        add("cgroup", cgroups());
        add("nft", nft_tables());
        add("folder", folders());
        add("process", processes());
        Self { lines }
    }

    /// What is there now and was not there before.
    pub fn added_since(&self, before: &Self) -> Vec<String> {
        self.lines.difference(&before.lines).cloned().collect()
    }
}

/// Nothing has come since that could be this lab's. Panics with a list.
#[track_caller]
pub fn assert_nothing_left(before: &Snapshot, lab: &str) {
    wait_until(&format!("nothing left of lab {lab}"), SETTLE_DEADLINE, || {
        let mut added = Snapshot::take().added_since(before);
        added.retain(|line| !is_anothers(line, lab));
        if added.is_empty() { Ok(()) } else { Err(format!("\n  {}", added.join("\n  "))) }
    });
}

/// Whether the line bears the mark of another lab or test, or tells of something that no lab makes.
fn is_anothers(line: &str, lab: &str) -> bool {
    if ["rq-", "rorqual-", "rorqual-lab/"].iter().any(|mark| line.contains(&format!("{mark}{lab}"))) {
        return false;
    }
    // On a shared machine other programs come and go; `processes` marks those that may be ours.
    let foreign_process = line.starts_with("process ") && !line.contains(OURS);
    foreign_process || ["rq-", "rqt-", "rorqual-"].iter().any(|mark| line.contains(mark))
}

/// When a process was started, in clock ticks since boot; `None` when it has ended.
pub fn start_ticks(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name, in brackets, may hold blanks and brackets.
    let mut rest = stat.rsplit_once(") ")?.1.split(' ');
    (rest.next()? != "Z").then_some(())?;
    rest.nth(18).map(str::to_owned)
}

/// The processes with a cgroup path (ending in `/`) that fits; the value tells a reused pid apart.
pub fn processes_where(fits: impl Fn(&str) -> bool) -> BTreeMap<u32, String> {
    let mut found = BTreeMap::new();
    for pid in pids() {
        if cgroup_paths(pid).iter().any(|path| fits(path))
            && let Some(start) = start_ticks(pid)
        {
            found.insert(pid, format!("{start} {}", command_name(pid)));
        }
    }
    found
}

/// Whether the process is in a cgroup whose path has this in it.
pub fn cgroup_has(pid: u32, part: &str) -> bool {
    cgroup_paths(pid).iter().any(|path| path.contains(part))
}

/// The process's place in each hierarchy, with a `/` at the end.
fn cgroup_paths(pid: u32) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    table.lines().filter_map(|line| Some(format!("{}/", line.splitn(3, ':').nth(2)?))).collect()
}

/// Whether the process is the first in a pid namespace below the machine's own.
pub fn is_first_process(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let spaces = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let numbers: Vec<&str> = spaces.split_whitespace().collect();
    numbers.len() > 1 && numbers.last() == Some(&"1")
}

/// Processor time that the process has used so far, in clock ticks (100 a second).
pub fn cpu_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// The process's short name.
pub fn command_name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn pids() -> Vec<u32> {
    names_in(Path::new("/proc")).iter().filter_map(|name| name.parse().ok()).collect()
}

fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Mount points of the file systems whose type fits.
fn mount_points(fits: impl Fn(&str) -> bool) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let point = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        fits(right.split(' ').next()?).then(|| left.split(' ').nth(4).unwrap_or_default().to_owned())
    };
    table.lines().filter_map(point).collect()
}

fn cgroups() -> Vec<String> {
    let mut found = Vec::new();
    for root in mount_points(|kind| kind.starts_with("cgroup")) {
        folders_below(Path::new(&root), CGROUP_DEPTH, &mut found);
    }
    found.into_iter().map(|path| path.display().to_string()).collect()
}

fn folders_below(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            folders_below(&entry.path(), depth - 1, found);
            found.push(entry.path());
        }
    }
}

fn nft_tables() -> Vec<String> {
    let output = Command::new("nft").args(["list", "tables"]).output().expect("nft is missing");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

fn folders() -> Vec<String> {
    let mut found = Vec::new();
    for parent in ["/run", "/var/lib", "/etc", "/run/rorqual-lab", "/var/lib/rorqual-lab"] {
        let names = names_in(Path::new(parent)).into_iter();
        found.extend(
            names
                .filter(|name| parent.ends_with("-lab") || name.starts_with("rorqual"))
                .map(|name| format!("{parent}/{name}")),
        );
    }
    found
}

/// Every process with a command line. [`OURS`] stands with those that are one of our programs, or in a
/// network or mount namespace that is not ours, or in a group of one of our nodes, which is told as well.
fn processes() -> Vec<String> {
    let space = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let own = (space("self", "net"), space("self", "mnt"));
    let mut found = Vec::new();
    for number in pids() {
        let pid = number.to_string();
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let theirs = (space(&pid, "net"), space(&pid, "mnt"));
        // Without a command line it is the kernel's, or has ended.
        if line.is_empty() || theirs.0.is_none() {
            continue;
        }
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let program = line.split(' ').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        let paths = cgroup_paths(number).concat();
        let group = paths.split('/').find(|part| part.starts_with("rorqual-")).unwrap_or_default();
        let ours =
            theirs != own || !group.is_empty() || program == "rorquald" || program == "rorqual-runtime";
        let mark = if ours { OURS } else { "" };
        let line: String = line.trim().chars().take(COMMAND_LENGTH).collect();
        found.push(format!("{pid} {mark} {group} {line}"));
    }
    found
}
