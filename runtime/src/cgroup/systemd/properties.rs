//! Resources as properties of a unit (systemd.resource-control(5)).
//!
//! The runtime writes the group's files itself as well. systemd is told what it would otherwise set to its own defaults
//! whenever it looks at the unit again (`systemctl daemon-reload`).

use std::collections::{BTreeMap, HashMap};
use std::fs;

use oci_spec::runtime::{LinuxCpu, LinuxResources};

use super::wire::Value;
use super::{Property, Unit, variant};
use crate::plan::cgroup::{List, numbers};

/// systemd's "infinity".
const INFINITY: u64 = u64::MAX;

/// The properties of a new scope.
pub(crate) fn properties(
    unit: &Unit,
    v2: bool,
    resources: &LinuxResources,
    devices: Option<&List>,
) -> Vec<Property> {
    let mut list = vec![
        (
            "Description".to_owned(),
            Value::Str(format!("rorqual container {}", unit.name.trim_end_matches(".scope"))),
        ),
        ("Slice".to_owned(), Value::str(&unit.slice)),
        ("Delegate".to_owned(), Value::Bool(true)),
        ("DefaultDependencies".to_owned(), Value::Bool(false)),
    ];
    let io = if v2 { "IOAccounting" } else { "BlockIOAccounting" };
    for name in ["CPUAccounting", "MemoryAccounting", "TasksAccounting", io] {
        list.push((name.to_owned(), Value::Bool(true)));
    }
    list.extend(changes(v2, resources, devices));
    list
}

/// Those that `resources` sets.
pub(crate) fn changes(v2: bool, resources: &LinuxResources, devices: Option<&List>) -> Vec<Property> {
    let mut list: Vec<Property> = Vec::new();
    let mut put = |name: &str, value| list.push((name.to_owned(), value));
    let limit = |limit: i64| Value::U64(u64::try_from(limit).unwrap_or(INFINITY));
    if let Some(memory) = resources.memory() {
        if let Some(max) = numbers::set(memory.limit()) {
            put(if v2 { "MemoryMax" } else { "MemoryLimit" }, limit(max));
        }
        if v2 {
            if let Some(low) = numbers::set(memory.reservation()) {
                put("MemoryLow", limit(low));
            }
            if let Ok(Some(swap)) = numbers::swap_alone(memory.swap(), memory.limit()) {
                put("MemorySwapMax", limit(swap));
            }
        }
    }
    if let Some(pids) = resources.pids().as_ref().and_then(|pids| numbers::set(Some(pids.limit()))) {
        put("TasksMax", limit(pids));
    }
    if !v2 && let Some(weight) = resources.block_io().as_ref().and_then(|io| numbers::set(io.weight())) {
        put("BlockIOWeight", Value::U64(weight.into()));
    }
    if let Some(cpu) = resources.cpu() {
        list.extend(of_cpu(v2, cpu));
    }
    for (file, value) in resources.unified().iter().flatten().collect::<BTreeMap<_, _>>() {
        list.extend(of_file(file, value));
    }
    if let Some(devices) = devices {
        list.extend(of_devices(devices));
    }
    list
}

fn of_cpu(v2: bool, cpu: &LinuxCpu) -> Vec<Property> {
    let mut list: Vec<Property> = Vec::new();
    let mut put = |name: &str, value| list.push((name.to_owned(), value));
    if let Some(shares) = numbers::set(cpu.shares()).filter(|_| cpu.idle() != Some(1)) {
        match v2 {
            true => put("CPUWeight", Value::U64(numbers::weight(shares))),
            false => put("CPUShares", Value::U64(shares)),
        }
    }
    let period = numbers::set(cpu.period());
    if let Some(period) = period {
        put("CPUQuotaPeriodUSec", Value::U64(period));
    }
    if let Some(quota) = numbers::set(cpu.quota()) {
        put("CPUQuotaPerSecUSec", Value::U64(per_second(quota, period.unwrap_or(100_000))));
    }
    if v2 {
        for (set, name) in [(cpu.cpus(), "AllowedCPUs"), (cpu.mems(), "AllowedMemoryNodes")] {
            if let Some(set) = set.as_ref().filter(|set| !set.is_empty()) {
                put(name, Value::bytes(&bits(set)));
            }
        }
    }
    list
}

/// systemd keeps whole percents, and a quota that it rounded down would be below that of a group inside.
fn per_second(quota: i64, period: u64) -> u64 {
    const PERCENT_US: u64 = 10_000;
    match u64::try_from(quota) {
        Ok(quota) => quota.saturating_mul(1_000_000).div_ceil(period.max(1)).next_multiple_of(PERCENT_US),
        Err(_) => INFINITY,
    }
}

/// `0-1,9` as a bit each, the lowest first.
fn bits(list: &str) -> Vec<u8> {
    let mut bits = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.trim().parse::<u16>(), last.trim().parse::<u16>()) else {
            continue;
        };
        for number in first..=last {
            let byte = usize::from(number / 8);
            if bits.len() <= byte {
                bits.resize(byte + 1, 0);
            }
            bits[byte] |= 1u8 << (number % 8);
        }
    }
    bits
}

/// A file of the cgroup2, if systemd has a property for it.
fn of_file(file: &str, value: &str) -> Vec<Property> {
    let value = value.trim();
    let number = || match value {
        "max" => Some(Value::U64(INFINITY)),
        other => other.parse().ok().map(Value::U64),
    };
    let one =
        |name: &str, value: Option<Value>| value.map(|value| (name.to_owned(), value)).into_iter().collect();
    match file {
        "memory.max" => one("MemoryMax", number()),
        "memory.high" => one("MemoryHigh", number()),
        "memory.low" => one("MemoryLow", number()),
        "memory.min" => one("MemoryMin", number()),
        "memory.swap.max" => one("MemorySwapMax", number()),
        "pids.max" => one("TasksMax", number()),
        "cpu.weight" => one("CPUWeight", number()),
        "cpuset.cpus" => one("AllowedCPUs", Some(Value::bytes(&bits(value)))),
        "cpuset.mems" => one("AllowedMemoryNodes", Some(Value::bytes(&bits(value)))),
        "cpu.max" => {
            let (quota, period) = value.split_once(' ').unwrap_or((value, "100000"));
            let period = period.parse().unwrap_or(100_000);
            let quota = if quota == "max" { -1 } else { quota.parse().unwrap_or(-1) };
            vec![
                ("CPUQuotaPeriodUSec".to_owned(), Value::U64(period)),
                ("CPUQuotaPerSecUSec".to_owned(), Value::U64(per_second(quota, period))),
            ]
        }
        _ => Vec::new(),
    }
}

fn of_devices(devices: &List) -> Vec<Property> {
    let policy = if devices.allow_by_default { "auto" } else { "strict" };
    let mut entries = Vec::new();
    if !devices.allow_by_default {
        let groups = fs::read_to_string("/proc/devices").unwrap_or_default();
        for (device, access) in &devices.exceptions {
            let access = crate::plan::cgroup::letters(*access);
            for name in device_names(device.kind, device.major, device.minor, &groups) {
                entries.push(Value::Struct(vec![Value::Str(name), Value::str(&access)]));
            }
        }
    }
    // An empty list first takes back what was set before; a list is added to.
    vec![
        ("DevicePolicy".to_owned(), Value::str(policy)),
        ("DeviceAllow".to_owned(), Value::Array("(ss)".to_owned(), Vec::new())),
        ("DeviceAllow".to_owned(), Value::Array("(ss)".to_owned(), entries)),
    ]
}

/// systemd knows devices by a node's name, or all of a driver by the name in /proc/devices.
fn device_names(kind: Option<char>, major: Option<u32>, minor: Option<u32>, groups: &str) -> Vec<String> {
    let word = if kind == Some('b') { "block" } else { "char" };
    match (major, minor) {
        (None, _) => vec![format!("{word}-*")],
        (Some(major), Some(minor)) => vec![format!("/dev/{word}/{major}:{minor}")],
        (Some(major), None) => {
            let section = if word == "block" { "Block devices:" } else { "Character devices:" };
            let lines = groups
                .lines()
                .skip_while(|line| *line != section)
                .skip(1)
                .take_while(|line| !line.is_empty());
            let named = lines.filter_map(|line| line.trim().split_once(' '));
            // One without a driver cannot be opened either.
            named
                .filter(|(number, _)| number.parse() == Ok(major))
                .map(|(_, name)| format!("{word}-{name}"))
                .collect()
        }
    }
}

/// Properties that the caller sets by annotations: `org.systemd.property.NAME`, with a value in GVariant's text form.
/// Times may be given in seconds, as in unit files.
pub(crate) fn annotated(annotations: &HashMap<String, String>) -> Result<Vec<Property>, (String, String)> {
    let mut list = Vec::new();
    for (key, text) in annotations.iter().collect::<BTreeMap<_, _>>() {
        let Some(name) = key.strip_prefix("org.systemd.property.") else { continue };
        let field = format!("annotations[{key}]");
        if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err((field, format!("{name:?} is no name of a property of systemd's")));
        }
        let value = variant::parse(text).map_err(|reason| (field.clone(), reason))?;
        list.push(match name.strip_suffix("Sec").filter(|stem| !stem.ends_with('U')) {
            Some(stem) => (format!("{stem}USec"), microseconds(&value).map_err(|reason| (field, reason))?),
            None => (name.to_owned(), value),
        });
    }
    Ok(list)
}

fn microseconds(value: &Value) -> Result<Value, String> {
    const SECOND_US: u64 = 1_000_000;
    let whole = |seconds: u64| Value::U64(seconds.saturating_mul(SECOND_US));
    match value {
        Value::F64(seconds) if *seconds >= 0.0 => Ok(Value::U64((seconds * SECOND_US as f64) as u64)),
        Value::U64(seconds) => Ok(whole(*seconds)),
        Value::U32(seconds) => Ok(whole((*seconds).into())),
        Value::U16(seconds) => Ok(whole((*seconds).into())),
        Value::Byte(seconds) => Ok(whole((*seconds).into())),
        Value::I64(seconds) if *seconds >= 0 => Ok(whole(*seconds as u64)),
        Value::I32(seconds) if *seconds >= 0 => Ok(whole(*seconds as u64)),
        Value::I16(seconds) if *seconds >= 0 => Ok(whole(*seconds as u64)),
        _ => Err("is no number of seconds".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(v2: bool, resources: serde_json::Value) -> Vec<String> {
        let resources = serde_json::from_value(resources).unwrap();
        changes(v2, &resources, None).into_iter().map(|(name, value)| format!("{name} {value:?}")).collect()
    }

    #[test]
    fn resources_become_properties() {
        let resources = json!({
            "memory": {"limit": 1000, "swap": 3000, "reservation": 500},
            "cpu": {"shares": 1024, "quota": 12345, "period": 100_000, "cpus": "0-1,9", "mems": "0"},
            "pids": {"limit": -1},
        });
        assert_eq!(
            told(true, resources.clone()),
            [
                "MemoryMax U64(1000)",
                "MemoryLow U64(500)",
                "MemorySwapMax U64(2000)",
                "TasksMax U64(18446744073709551615)",
                "CPUWeight U64(100)",
                "CPUQuotaPeriodUSec U64(100000)",
                "CPUQuotaPerSecUSec U64(130000)",
                "AllowedCPUs Array(\"y\", [Byte(3), Byte(2)])",
                "AllowedMemoryNodes Array(\"y\", [Byte(1)])",
            ]
        );
        assert_eq!(
            told(false, resources),
            [
                "MemoryLimit U64(1000)",
                "TasksMax U64(18446744073709551615)",
                "CPUShares U64(1024)",
                "CPUQuotaPeriodUSec U64(100000)",
                "CPUQuotaPerSecUSec U64(130000)",
            ]
        );
        assert_eq!(
            told(true, json!({"unified": {"memory.high": "max", "cpu.max": "max 50000", "io.max": "x"}})),
            [
                "CPUQuotaPeriodUSec U64(50000)",
                "CPUQuotaPerSecUSec U64(18446744073709551615)",
                "MemoryHigh U64(18446744073709551615)"
            ]
        );
        assert_eq!(told(true, json!({"cpu": {"quota": 0, "shares": 0}, "memory": {"limit": 0}})), [""; 0]);
    }

    #[test]
    fn devices_have_the_names_that_systemd_knows() {
        let groups =
            "Character devices:\n  1 mem\n  4 tty\n  4 ttyS\n136 pts\n\nBlock devices:\n  1 ramdisk\n";
        let names = |kind, major, minor| device_names(Some(kind), major, minor, groups);
        assert_eq!(names('c', Some(1), Some(3)), ["/dev/char/1:3"]);
        assert_eq!(names('c', Some(4), None), ["char-tty", "char-ttyS"]);
        assert_eq!(names('b', Some(1), None), ["block-ramdisk"]);
        assert_eq!(names('b', None, None), ["block-*"]);
        assert_eq!(names('b', Some(200), None), [""; 0]);
    }

    #[test]
    fn annotations_become_properties() {
        let of = |key: &str, value: &str| {
            annotated(&HashMap::from([(format!("org.systemd.property.{key}"), value.to_owned())]))
        };
        assert_eq!(
            of("TimeoutStopSec", "90").unwrap(),
            [("TimeoutStopUSec".to_owned(), Value::U64(90_000_000))]
        );
        assert_eq!(
            of("TimeoutStopUSec", "uint64 90").unwrap(),
            [("TimeoutStopUSec".to_owned(), Value::U64(90))]
        );
        assert_eq!(of("CollectMode", "'inactive-or-failed'").unwrap()[0].1, Value::str("inactive-or-failed"));
        assert_eq!(of("X1", "1").unwrap_err().0, "annotations[org.systemd.property.X1]");
        assert!(of("TimeoutStopSec", "'x'").is_err());
        assert_eq!(annotated(&HashMap::from([("other".to_owned(), "x".to_owned())])).unwrap(), []);
    }
}
