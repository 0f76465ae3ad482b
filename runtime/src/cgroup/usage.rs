//! Reads what a group uses, in few figures.

use std::fs;
use std::path::Path;

use super::Group;
use crate::api::Stats;

impl Group {
    /// What the group uses now. Figures whose files are not there are 0.
    pub(crate) fn usage(&self) -> Stats {
        let (mut stats, v2) = (Stats::default(), self.unified.as_deref());
        if let Some(dir) = self.v1_of("memory") {
            let used = number(&dir.join("memory.usage_in_bytes"));
            let cache = field(&dir.join("memory.stat"), "total_inactive_file");
            stats.memory_bytes = used.saturating_sub(cache);
            stats.memory_limit_bytes = limit(&dir.join("memory.limit_in_bytes"));
        } else if let Some(dir) = v2 {
            let used = number(&dir.join("memory.current"));
            stats.memory_bytes = used.saturating_sub(field(&dir.join("memory.stat"), "inactive_file"));
            stats.memory_limit_bytes = limit(&dir.join("memory.max"));
        }
        stats.oom_kills = field(&self.oom_file(), "oom_kill");
        if let Some(dir) = self.v1_of("cpuacct") {
            stats.cpu_ns = number(&dir.join("cpuacct.usage"));
        } else if let Some(dir) = v2 {
            stats.cpu_ns = field(&dir.join("cpu.stat"), "usage_usec").saturating_mul(1000);
        }
        if let Some(dir) = self.v1_of("pids").or(v2) {
            stats.pids = number(&dir.join("pids.current"));
        }
        stats
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
