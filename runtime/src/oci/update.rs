//! `update`: other limits for a container that runs, from options or from a file.

use std::io::{self, Read as _};
use std::path::Path;

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value};

use super::args::Matches;
use super::config;
use super::context::Context;
use super::error::{Error, Result};
use super::state::{Place, Record};
use crate::cgroup::Layout;
use crate::plan::{self, rdt::RdtPlan};
use crate::rdt;

/// Options that are numbers: their names and the field's.
const NUMBERS: [(&str, &str, &str); 9] = [
    ("blkio-weight", "blockIO", "weight"),
    ("cpu-period", "cpu", "period"),
    ("cpu-quota", "cpu", "quota"),
    ("cpu-burst", "cpu", "burst"),
    ("cpu-share", "cpu", "shares"),
    ("cpu-rt-period", "cpu", "realtimePeriod"),
    ("cpu-rt-runtime", "cpu", "realtimeRuntime"),
    ("cpu-idle", "cpu", "idle"),
    ("pids-limit", "pids", "limit"),
];
const TEXTS: [(&str, &str, &str); 2] = [("cpuset-cpus", "cpu", "cpus"), ("cpuset-mems", "cpu", "mems")];
const SIZES: [(&str, &str, &str); 3] = [
    ("memory", "memory", "limit"),
    ("memory-reservation", "memory", "reservation"),
    ("memory-swap", "memory", "swap"),
];

/// `update`.
pub(super) fn update(context: &Context, matches: &Matches) -> Result<u8> {
    let place = context.place(matches.word(0))?;
    let _lock = place.lock()?;
    let mut record = place.read()?;
    if !place.status_now(&record).is_alive() {
        return Err(Error::NotRunning);
    }
    let class = plan::rdt::rdt_update(matches.value("l3-cache-schema"), matches.value("mem-bw-schema"));
    let class = class.map_err(|wrong| Error::Usage(format!("{}: {}", wrong.field, wrong.reason)))?;
    let resources = match matches.value("resources") {
        Some(path) => from_file(path)?,
        None => from_options(matches)?,
    };
    record.group.update(&Layout::discover()?, &resources)?;
    if let Some(lines) = class {
        update_class(&place, &mut record, lines)?;
    }
    Ok(0)
}

/// Other limits for its class of service; a container that has none gets one of its own, as with runc.
fn update_class(place: &Place, record: &mut Record, lines: Vec<String>) -> Result<()> {
    if let Some(groups) = &record.rdt {
        return Ok(groups.update(&lines)?);
    }
    let making = rdt::Making::begin(RdtPlan::own(&record.id, lines))?;
    let groups = making.groups().clone();
    record.rdt = Some(groups.clone());
    place.rewrite(record)?;
    let entered = making.make().map_err(Error::from).and_then(|entry| {
        let entered = entry.enter_all(|| record.group.pids());
        // With the lock, which removing takes as well.
        drop(entry);
        entered.map_err(|error| {
            // The failure that counts is the one that is returned.
            let _ = groups.remove();
            Error::system("entering the class of linux.intelRdt")(error)
        })
    });
    if entered.is_err() {
        record.rdt = None;
        place.rewrite(record)?;
    }
    entered
}

fn from_file(path: &str) -> Result<LinuxResources> {
    let name = Path::new(path);
    let text = if path == "-" {
        let mut text = Vec::new();
        io::stdin().read_to_end(&mut text).map_err(Error::system("reading standard input"))?;
        text
    } else {
        config::read_limited(name)?
    };
    parse(&text, name)
}

/// Resources as a caller writes them.
pub(super) fn parse(text: &[u8], name: &Path) -> Result<LinuxResources> {
    let mut value: Value = config::from_json(text, name)?;
    strip(&mut value);
    config::from_json(value.to_string().as_bytes(), name)
}

/// As runc's template has it, 0 and an empty text stand for what is not to be changed.
fn strip(value: &mut Value) {
    let Value::Object(fields) = value else { return };
    fields.retain(|name, value| match value {
        Value::Number(number) => number.as_f64() != Some(0.0) || name == "idle" || name == "burst",
        Value::String(text) => !text.is_empty(),
        Value::Null => false,
        _ => true,
    });
    // Not those of devices, where 0 is a number as any other.
    for (_, value) in fields.iter_mut().filter(|(name, _)| *name != "devices") {
        strip(value);
    }
}

fn from_options(matches: &Matches) -> Result<LinuxResources> {
    let mut resources = Map::new();
    let mut set = |group: &str, field: &str, value: Value| {
        let fields = resources.entry(group).or_insert_with(|| Value::Object(Map::new()));
        fields[field] = value;
    };
    for (option, group, field) in NUMBERS {
        if let Some(number) = matches.number::<i64>(option)? {
            set(group, field, number.into());
        }
    }
    for (option, group, field) in TEXTS {
        if let Some(text) = matches.value(option) {
            set(group, field, text.into());
        }
    }
    for (option, group, field) in SIZES {
        if let Some(text) = matches.value(option) {
            let wrong =
                || Error::Usage(format!("invalid value for {option}: {text:?} is not a size such as 64m"));
            set(group, field, size(text).ok_or_else(wrong)?.into());
        }
    }
    let mut value = Value::Object(resources);
    strip(&mut value);
    config::from_json(value.to_string().as_bytes(), Path::new("options"))
}

/// Bytes, as in `64m`, `1.5GiB`, `1000`; -1 for no limit.
fn size(text: &str) -> Option<i64> {
    let lower = text.trim().to_ascii_lowercase();
    if lower == "-1" {
        return Some(-1);
    }
    let bare = lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
    let (number, shift) = match bare.chars().last()? {
        'k' => (&bare[..bare.len() - 1], 10),
        'm' => (&bare[..bare.len() - 1], 20),
        'g' => (&bare[..bare.len() - 1], 30),
        't' => (&bare[..bare.len() - 1], 40),
        _ => (bare, 0),
    };
    if let Ok(whole) = number.trim().parse::<u32>() {
        return Some(i64::from(whole) << shift);
    }
    let number: f64 = number.trim().parse().ok()?;
    let bytes = number * (1u64 << shift) as f64;
    (bytes.is_finite() && (0.0..9e18).contains(&bytes)).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("64m", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("1000", 1000),
            ("10kb", 10 << 10),
            ("-1", -1),
            ("5000000000", 5_000_000_000),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "m", "x", "-2", "1q", "inf", "nan"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn zeros_of_a_template_change_nothing() {
        let text = r#"{"memory":{"limit":0,"swap":7},"cpu":{"cpus":"","idle":0},
            "devices":[{"allow":false,"type":"c","major":0}]}"#;
        let mut value: Value = serde_json::from_str(text).unwrap();
        strip(&mut value);
        let expected =
            r#"{"memory":{"swap":7},"cpu":{"idle":0},"devices":[{"allow":false,"type":"c","major":0}]}"#;
        assert_eq!(value, serde_json::from_str::<Value>(expected).unwrap());
        assert!(serde_json::from_value::<LinuxResources>(value).is_ok());
    }
}
