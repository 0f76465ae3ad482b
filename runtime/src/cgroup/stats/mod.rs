//! What a group uses, in the shape in which runc's `events` tells it (runc: types/events.go), so that its readers
//! (containerd, cri-o, Docker) can read ours. Reading starts at [`Group::stats`]; `v1` and `v2` fill it in.
//!
//! A file that is not there counts as 0: the kernel may have been built without it. Bytes and nanoseconds throughout.

mod v1;
mod v2;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::Group;
use crate::rdt;

/// All figures of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Stats {
    pub(crate) cpu: Cpu,
    pub(crate) cpuset: Cpuset,
    pub(crate) memory: Memory,
    pub(crate) pids: Pids,
    pub(crate) blkio: BlockIo,
    /// By page size, such as `2MB`.
    pub(crate) hugetlb: BTreeMap<String, HugePages>,
    /// By device.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) rdma: BTreeMap<String, Rdma>,
    /// Empty unless somebody else fills it in: not of control groups.
    pub(crate) intel_rdt: rdt::Stats,
    /// Never known to a control group.
    pub(crate) network_interfaces: Option<()>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Cpu {
    pub(crate) usage: CpuUsage,
    pub(crate) throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) psi: Option<Psi>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct CpuUsage {
    #[serde(skip_serializing_if = "zero")]
    pub(crate) total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) percpu: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) percpu_kernel: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) percpu_user: Vec<u64>,
    pub(crate) kernel: u64,
    pub(crate) user: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Throttling {
    #[serde(skip_serializing_if = "zero")]
    pub(crate) periods: u64,
    #[serde(skip_serializing_if = "zero")]
    pub(crate) throttled_periods: u64,
    #[serde(skip_serializing_if = "zero")]
    pub(crate) throttled_time: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Cpuset {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) cpus: Vec<u16>,
    pub(crate) cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) mems: Vec<u16>,
    pub(crate) mem_hardwall: u64,
    pub(crate) mem_exclusive: u64,
    pub(crate) memory_migrate: u64,
    pub(crate) memory_spread_page: u64,
    pub(crate) memory_spread_slab: u64,
    pub(crate) memory_pressure: u64,
    pub(crate) sched_load_balance: u64,
    pub(crate) sched_relax_domain_level: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Memory {
    #[serde(skip_serializing_if = "zero")]
    pub(crate) cache: u64,
    pub(crate) usage: MemoryEntry,
    pub(crate) swap: MemoryEntry,
    pub(crate) kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    pub(crate) kernel_tcp: MemoryEntry,
    /// `memory.stat`, as it is.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) psi: Option<Psi>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct MemoryEntry {
    pub(crate) limit: u64,
    #[serde(skip_serializing_if = "zero")]
    pub(crate) usage: u64,
    #[serde(skip_serializing_if = "zero")]
    pub(crate) max: u64,
    pub(crate) failcnt: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Pids {
    #[serde(skip_serializing_if = "zero")]
    pub(crate) current: u64,
    /// 0: not limited.
    #[serde(skip_serializing_if = "zero")]
    pub(crate) limit: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BlockIo {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) io_service_bytes_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) io_serviced_recursive: Vec<BlockIoEntry>,
    #[serde(rename = "ioQueueRecursive", skip_serializing_if = "Vec::is_empty")]
    pub(crate) io_queued_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) io_service_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) io_wait_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) io_merged_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) io_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) sectors_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) psi: Option<Psi>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct BlockIoEntry {
    #[serde(skip_serializing_if = "zero")]
    pub(crate) major: u64,
    #[serde(skip_serializing_if = "zero")]
    pub(crate) minor: u64,
    /// `Read`, `Write` and their like.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) op: String,
    #[serde(skip_serializing_if = "zero")]
    pub(crate) value: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct HugePages {
    #[serde(skip_serializing_if = "zero")]
    pub(crate) usage: u64,
    #[serde(skip_serializing_if = "zero")]
    pub(crate) max: u64,
    pub(crate) failcnt: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Rdma {
    pub(crate) hca_handles: u64,
    pub(crate) hca_objects: u64,
}

/// Pressure stall information (kernel: Documentation/accounting/psi.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Psi {
    pub(crate) some: Stall,
    pub(crate) full: Stall,
}

/// Shares of the time in percent, and microseconds in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Stall {
    pub(crate) avg10: f64,
    pub(crate) avg60: f64,
    pub(crate) avg300: f64,
    pub(crate) total: u64,
}

impl Group {
    /// All figures. Each controller is read where the container has it, so that a hybrid machine gives all of them.
    pub(crate) fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        let unified = self.unified.as_deref();
        match (self.v1_of("cpuacct"), self.v1_of("cpu"), unified) {
            (None, None, Some(dir)) => v2::cpu(dir, &mut stats.cpu),
            (usage, throttling, _) => v1::cpu(usage, throttling, &mut stats.cpu),
        }
        match (self.v1_of("memory"), unified) {
            (Some(dir), _) => v1::memory(dir, &mut stats.memory),
            (None, Some(dir)) => v2::memory(dir, &mut stats.memory),
            (None, None) => {}
        }
        match (self.v1_of("blkio"), unified) {
            (Some(dir), _) => v1::block_io(dir, &mut stats.blkio),
            (None, Some(dir)) => v2::block_io(dir, &mut stats.blkio),
            (None, None) => {}
        }
        if let Some(dir) = self.v1_of("cpuset") {
            v1::cpuset(dir, &mut stats.cpuset);
        }
        if let Some(dir) = self.v1_of("pids").or(unified) {
            stats.pids =
                Pids { current: number(&dir.join("pids.current")), limit: number(&dir.join("pids.max")) };
        }
        if let Some(dir) = self.v1_of("rdma").or(unified) {
            rdma(dir, &mut stats.rdma);
        }
        match (self.v1_of("hugetlb"), unified) {
            (Some(dir), _) => v1::huge_pages(dir, &mut stats.hugetlb),
            (None, Some(dir)) => v2::huge_pages(dir, &mut stats.hugetlb),
            (None, None) => {}
        }
        stats
    }
}

/// `mlx4_0 hca_handle=1 hca_object=20`; the same file on v1 and v2.
fn rdma(dir: &Path, all: &mut BTreeMap<String, Rdma>) {
    for line in text(&dir.join("rdma.current")).lines() {
        let Some((device, rest)) = line.split_once(' ') else { continue };
        let value =
            |key| rest.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok());
        let entry = Rdma {
            hca_handles: value("hca_handle").unwrap_or(0),
            hca_objects: value("hca_object").unwrap_or(0),
        };
        all.insert(device.to_owned(), entry);
    }
}

/// The page sizes for which a group has files, such as `2MB`.
fn page_sizes(dir: &Path, suffix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let size = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?;
        (!size.contains('.')).then(|| size.to_owned())
    };
    entries.flatten().filter_map(size).collect()
}

fn zero(number: &u64) -> bool {
    *number == 0
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The number in a file; 0 for `max` and for a file that is not there.
fn number(path: &Path) -> u64 {
    text(path).trim().parse().unwrap_or(0)
}

/// Lines of a name and a number.
fn fields(path: &Path) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text(path).lines().filter_map(pair).collect()
}

#[cfg(test)]
mod tests;
