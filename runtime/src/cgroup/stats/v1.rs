//! Figures out of cgroup v1's files.

use std::collections::BTreeMap;
use std::path::Path;

use super::{
    BlockIo, BlockIoEntry, Cpu, Cpuset, HugePages, Memory, MemoryEntry, fields, number, page_sizes, text,
};

/// `cpuacct.stat` counts in these: USER_HZ, which is 100 for user space on every architecture but Alpha.
const TICK_NS: u64 = 1_000_000_000 / 100;

pub(super) fn cpu(usage: Option<&Path>, throttling: Option<&Path>, cpu: &mut Cpu) {
    if let Some(dir) = usage {
        cpu.usage.total = number(&dir.join("cpuacct.usage"));
        let numbers = text(&dir.join("cpuacct.usage_percpu"));
        cpu.usage.percpu = numbers.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        let stat = fields(&dir.join("cpuacct.stat"));
        let ticks = |name: &str| stat.get(name).copied().unwrap_or(0).saturating_mul(TICK_NS);
        (cpu.usage.user, cpu.usage.kernel) = (ticks("user"), ticks("system"));
        // cpu user system
        for line in text(&dir.join("cpuacct.usage_all")).lines().skip(1) {
            let mut numbers = line.split(' ').skip(1).filter_map(|word| word.parse().ok());
            if let (Some(user), Some(system)) = (numbers.next(), numbers.next()) {
                cpu.usage.percpu_user.push(user);
                cpu.usage.percpu_kernel.push(system);
            }
        }
    }
    if let Some(dir) = throttling {
        let stat = fields(&dir.join("cpu.stat"));
        let field = |name: &str| stat.get(name).copied().unwrap_or(0);
        cpu.throttling.periods = field("nr_periods");
        cpu.throttling.throttled_periods = field("nr_throttled");
        cpu.throttling.throttled_time = field("throttled_time");
    }
}

pub(super) fn memory(dir: &Path, memory: &mut Memory) {
    memory.raw = fields(&dir.join("memory.stat"));
    memory.cache = memory.raw.get("cache").copied().unwrap_or(0);
    let entry = |name: &str| {
        let file = |file: &str| number(&dir.join(format!("memory.{name}{file}")));
        MemoryEntry {
            limit: file("limit_in_bytes"),
            usage: file("usage_in_bytes"),
            max: file("max_usage_in_bytes"),
            failcnt: file("failcnt"),
        }
    };
    memory.usage = entry("");
    memory.swap = entry("memsw.");
    memory.kernel = entry("kmem.");
    memory.kernel_tcp = entry("kmem.tcp.");
}

pub(super) fn block_io(dir: &Path, block_io: &mut BlockIo) {
    let read = |name: &str| entries(&text(&dir.join(format!("blkio.{name}"))));
    // BFQ counts only what goes through it; the throttling layer counts everything that is not.
    let bfq = read("bfq.io_serviced_recursive");
    if bfq.iter().any(|entry| entry.value != 0) {
        block_io.io_serviced_recursive = bfq;
        block_io.io_service_bytes_recursive = read("bfq.io_service_bytes_recursive");
        block_io.io_queued_recursive = read("bfq.io_queued_recursive");
        block_io.io_service_time_recursive = read("bfq.io_service_time_recursive");
        block_io.io_wait_time_recursive = read("bfq.io_wait_time_recursive");
        block_io.io_merged_recursive = read("bfq.io_merged_recursive");
        block_io.io_time_recursive = read("bfq.time_recursive");
        block_io.sectors_recursive = read("bfq.sectors_recursive");
    } else {
        block_io.io_serviced_recursive = read("throttle.io_serviced_recursive");
        block_io.io_service_bytes_recursive = read("throttle.io_service_bytes_recursive");
    }
}

/// `8:0 Read 4096`, or `8:0 4096` where there is one kind only. The last line, a total, is none.
pub(super) fn entries(text: &str) -> Vec<BlockIoEntry> {
    let entry = |line: &str| {
        let mut words = line.split([' ', ':']);
        let (major, minor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let word = words.next()?;
        match words.next() {
            Some(value) => {
                Some(BlockIoEntry { major, minor, op: word.to_owned(), value: value.parse().ok()? })
            }
            None => Some(BlockIoEntry { major, minor, op: String::new(), value: word.parse().ok()? }),
        }
    };
    text.lines().filter_map(entry).collect()
}

pub(super) fn cpuset(dir: &Path, cpuset: &mut Cpuset) {
    let flag = |name: &str| number(&dir.join(format!("cpuset.{name}")));
    cpuset.cpus = list(&text(&dir.join("cpuset.cpus")));
    cpuset.mems = list(&text(&dir.join("cpuset.mems")));
    cpuset.cpu_exclusive = flag("cpu_exclusive");
    cpuset.mem_hardwall = flag("mem_hardwall");
    cpuset.mem_exclusive = flag("mem_exclusive");
    cpuset.memory_migrate = flag("memory_migrate");
    cpuset.memory_spread_page = flag("memory_spread_page");
    cpuset.memory_spread_slab = flag("memory_spread_slab");
    cpuset.memory_pressure = flag("memory_pressure");
    cpuset.sched_load_balance = flag("sched_load_balance");
    let level = text(&dir.join("cpuset.sched_relax_domain_level"));
    cpuset.sched_relax_domain_level = level.trim().parse().unwrap_or(0);
}

/// `0-2,5`, one by one.
pub(super) fn list(text: &str) -> Vec<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

pub(super) fn huge_pages(dir: &Path, all: &mut BTreeMap<String, HugePages>) {
    for size in page_sizes(dir, ".usage_in_bytes") {
        let file = |file: &str| number(&dir.join(format!("hugetlb.{size}.{file}")));
        let entry = HugePages {
            usage: file("usage_in_bytes"),
            max: file("max_usage_in_bytes"),
            failcnt: file("failcnt"),
        };
        all.insert(size, entry);
    }
}
