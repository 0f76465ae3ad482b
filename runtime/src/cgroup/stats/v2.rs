//! Figures out of cgroup v2's files.

use std::collections::BTreeMap;
use std::path::Path;

use super::{
    BlockIo, BlockIoEntry, Cpu, HugePages, Memory, MemoryEntry, Psi, Stall, fields, number, page_sizes, text,
};

pub(super) fn cpu(dir: &Path, cpu: &mut Cpu) {
    let stat = fields(&dir.join("cpu.stat"));
    let field = |name: &str| stat.get(name).copied().unwrap_or(0);
    let ns = |name: &str| field(name).saturating_mul(1000);
    cpu.usage.total = ns("usage_usec");
    cpu.usage.user = ns("user_usec");
    cpu.usage.kernel = ns("system_usec");
    cpu.throttling.periods = field("nr_periods");
    cpu.throttling.throttled_periods = field("nr_throttled");
    cpu.throttling.throttled_time = ns("throttled_usec");
    cpu.psi = psi(&text(&dir.join("cpu.pressure")));
}

pub(super) fn memory(dir: &Path, memory: &mut Memory) {
    memory.raw = fields(&dir.join("memory.stat"));
    let raw = |name: &str| memory.raw.get(name).copied().unwrap_or(0);
    memory.cache = raw("file");
    memory.kernel.usage = raw("kernel");
    memory.usage = entry(dir, "memory");
    // Told together with memory, as v1 has it and as runc's readers expect.
    let swap = entry(dir, "memory.swap");
    memory.swap = MemoryEntry {
        usage: swap.usage + memory.usage.usage,
        max: 0,
        failcnt: swap.failcnt,
        limit: swap.limit.saturating_add(memory.usage.limit),
    };
    memory.psi = psi(&text(&dir.join("memory.pressure")));
}

/// A limit that is not set is the greatest number, as v1 tells it.
fn entry(dir: &Path, name: &str) -> MemoryEntry {
    let file = |file: &str| dir.join(format!("{name}.{file}"));
    let max = text(&file("max"));
    MemoryEntry {
        limit: if max.trim() == "max" { u64::MAX } else { max.trim().parse().unwrap_or(0) },
        usage: number(&file("current")),
        max: number(&file("peak")),
        failcnt: fields(&file("events")).get("max").copied().unwrap_or(0),
    }
}

pub(super) fn block_io(dir: &Path, block_io: &mut BlockIo) {
    block_io.psi = psi(&text(&dir.join("io.pressure")));
    // 8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252 dbytes=0 dios=0
    for line in text(&dir.join("io.stat")).lines() {
        let mut words = line.split(' ');
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            let (list, op) = match key {
                "rbytes" => (&mut block_io.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut block_io.io_service_bytes_recursive, "Write"),
                "rios" => (&mut block_io.io_serviced_recursive, "Read"),
                "wios" => (&mut block_io.io_serviced_recursive, "Write"),
                _ => continue,
            };
            list.push(BlockIoEntry { major, minor, op: op.to_owned(), value });
        }
    }
}

pub(super) fn huge_pages(dir: &Path, all: &mut BTreeMap<String, HugePages>) {
    for size in page_sizes(dir, ".current") {
        let events = fields(&dir.join(format!("hugetlb.{size}.events")));
        let entry = HugePages {
            usage: number(&dir.join(format!("hugetlb.{size}.current"))),
            max: 0,
            failcnt: events.get("max").copied().unwrap_or(0),
        };
        all.insert(size, entry);
    }
}

/// `some avg10=0.00 avg60=0.12 avg300=0.08 total=1234`; `None` where the kernel does not count it.
pub(super) fn psi(text: &str) -> Option<Psi> {
    let stall = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let value = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let average = |key| value(key).and_then(|value| value.parse().ok()).unwrap_or(0.0);
        Some(Stall {
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
            total: value("total").and_then(|value| value.parse().ok()).unwrap_or(0),
        })
    };
    Some(Psi { some: stall("some ")?, full: stall("full ").unwrap_or_default() })
}
