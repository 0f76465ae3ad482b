//! Reads what a group uses.

use std::fs;
use std::path::{Path, PathBuf};

use super::Layout;
use crate::api::Stats;

/// What a container's group uses now. Figures whose files are not there are 0.
pub(crate) fn stats(layout: &Layout, group: &str) -> Stats {
    match &layout.unified {
        Some(mount) if layout.v1.is_empty() => v2(&mount.join(group)),
        _ => v1(layout, group),
    }
}

/// The file whose `oom_kill` says how often the kernel killed a process of the group because its memory limit was
/// reached.
pub(crate) fn oom_file(layout: &Layout, group: &str) -> PathBuf {
    match (&layout.unified, layout.v1_of("memory")) {
        (_, Some(memory)) => memory.mount.join(group).join("memory.oom_control"),
        (Some(mount), None) => mount.join(group).join("memory.events"),
        (None, None) => PathBuf::new(),
    }
}

fn v2(dir: &Path) -> Stats {
    let memory = number(&dir.join("memory.current"));
    Stats {
        memory_bytes: memory.saturating_sub(field(&dir.join("memory.stat"), "inactive_file")),
        memory_limit_bytes: limit(&dir.join("memory.max")),
        cpu_ns: field(&dir.join("cpu.stat"), "usage_usec").saturating_mul(1000),
        pids: number(&dir.join("pids.current")),
        oom_kills: field(&dir.join("memory.events"), "oom_kill"),
    }
}

fn v1(layout: &Layout, group: &str) -> Stats {
    let path = |controller: &str, file: &str| {
        layout.v1_of(controller).map(|hierarchy| hierarchy.mount.join(group).join(file)).unwrap_or_default()
    };
    let memory = number(&path("memory", "memory.usage_in_bytes"));
    Stats {
        memory_bytes: memory.saturating_sub(field(&path("memory", "memory.stat"), "total_inactive_file")),
        memory_limit_bytes: limit(&path("memory", "memory.limit_in_bytes")),
        cpu_ns: number(&path("cpuacct", "cpuacct.usage")),
        pids: number(&path("pids", "pids.current")),
        oom_kills: field(&oom_file(layout, group), "oom_kill"),
    }
}

fn number(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// v2 says "max", v1 a number near 2^63, for no limit.
fn limit(path: &Path) -> Option<u64> {
    let limit: u64 = fs::read_to_string(path).ok()?.trim().parse().ok()?;
    (limit < 1 << 62).then_some(limit)
}

fn field(path: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let values = text.lines().filter_map(|line| line.split_once(' '));
    values.filter(|(key, _)| *key == name).find_map(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}
