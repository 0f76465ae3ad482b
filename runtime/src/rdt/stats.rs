//! What a class may use and its container uses, in the shape in which runc's `events` tells it (runc: types/events.go).
//! A file that is not there leaves its figure out.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// All figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Stats {
    #[serde(skip_serializing_if = "Option::is_none")]
    l3_cache_info: Option<CacheInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    l3_cache_schema_root: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    l3_cache_schema: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_bw_info: Option<MemoryInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_bw_schema_root: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_bw_schema: Option<String>,
    /// By cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    mbm_stats: Option<Vec<Bandwidth>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmt_stats: Option<Vec<Occupancy>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct CacheInfo {
    cbm_mask: String,
    min_cbm_bits: u64,
    num_closids: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct MemoryInfo {
    bandwidth_gran: u64,
    delay_linear: u64,
    min_bandwidth: u64,
    num_closids: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Bandwidth {
    mbm_total_bytes: u64,
    mbm_local_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Occupancy {
    llc_occupancy: u64,
}

/// Reads them: of the group that counts for the container alone, if there is one, else of its class.
pub(super) fn stats(root: &Path, class: &Path, monitor: Option<&Path>) -> Stats {
    let (cache, memory) = (root.join("info/L3"), root.join("info/MB"));
    let all = |dir: &Path, prefix: &str| {
        let text = fs::read_to_string(dir.join("schemata")).unwrap_or_default();
        text.lines().map(str::trim).find(|line| line.starts_with(prefix)).map(str::to_owned)
    };
    let places = counted(monitor.unwrap_or(class));
    let both = |place: &PathBuf| {
        let (total, local) = (place.join("mbm_total_bytes"), place.join("mbm_local_bytes"));
        (total.exists() || local.exists())
            .then(|| Bandwidth { mbm_total_bytes: number(&total), mbm_local_bytes: number(&local) })
    };
    let occupied = |place: &PathBuf| {
        let path = place.join("llc_occupancy");
        path.exists().then(|| Occupancy { llc_occupancy: number(&path) })
    };
    Stats {
        l3_cache_info: cache.is_dir().then(|| CacheInfo {
            cbm_mask: word(&cache.join("cbm_mask")),
            min_cbm_bits: number(&cache.join("min_cbm_bits")),
            num_closids: number(&cache.join("num_closids")),
        }),
        l3_cache_schema_root: all(root, "L3"),
        l3_cache_schema: all(class, "L3"),
        mem_bw_info: memory.is_dir().then(|| MemoryInfo {
            bandwidth_gran: number(&memory.join("bandwidth_gran")),
            delay_linear: number(&memory.join("delay_linear")),
            min_bandwidth: number(&memory.join("min_bandwidth")),
            num_closids: number(&memory.join("num_closids")),
        }),
        mem_bw_schema_root: all(root, "MB"),
        mem_bw_schema: all(class, "MB"),
        mbm_stats: filled(places.iter().filter_map(both).collect()),
        cmt_stats: filled(places.iter().filter_map(occupied).collect()),
    }
}

fn filled<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

/// The folders of the counters of each cache, in order.
fn counted(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group.join("mon_data")).into_iter().flatten().flatten();
    let mut places: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("mon_L3_"))
        .map(|entry| entry.path())
        .collect();
    places.sort_unstable();
    places
}

fn word(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// A counter that cannot be read just now (`Unavailable`) counts as 0.
fn number(path: &Path) -> u64 {
    word(path).parse().unwrap_or(0)
}
