//! The numbers of a specification in the kernel's words.

use std::collections::{BTreeMap, HashMap};

use super::super::{Result, invalid};

/// 0 means "not set", as other runtimes have it, too: Docker and Kubernetes write it for what nobody has asked for.
pub(crate) fn set<T: PartialEq + Default>(number: Option<T>) -> Option<T> {
    number.filter(|number| *number != T::default())
}

/// v2's word for a number without limit.
pub(crate) fn max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// In the order of names, so that equal specifications make equal plans.
pub(crate) fn sorted<T>(map: &Option<HashMap<String, T>>) -> BTreeMap<&String, &T> {
    map.iter().flatten().collect()
}

/// v1's shares (2 to 262,144) as v2's weight (1 to 10,000). A curve through both ends on which the defaults, 1,024 and
/// 100, meet: what runc and crun have since 2025. The straight line of before gave 1,024 shares a weight of 39.
pub(crate) fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

/// v1's block I/O weight (10 to 1,000) as v2's (1 to 10,000).
pub(crate) fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990
}

/// v2 counts swap for itself, a specification together with memory. `None`: nothing to write.
pub(crate) fn swap_alone(swap: Option<i64>, limit: Option<i64>) -> Result<Option<i64>> {
    const FIELD: &str = "linux.resources.memory.swap";
    match (set(swap), set(limit)) {
        // v1 does not take memory without limit beside swap with one.
        (None, Some(limit)) if limit < 0 => Ok(Some(-1)),
        (None, _) => Ok(None),
        (Some(swap), _) if swap < 0 => Ok(Some(-1)),
        (Some(_), None) => {
            Err(invalid(FIELD, "needs a memory limit beside it: set linux.resources.memory.limit"))
        }
        (Some(_), Some(limit)) if limit < 0 => {
            Err(invalid(FIELD, "is limited and linux.resources.memory.limit is not: limit both"))
        }
        (Some(swap), Some(limit)) if swap < limit => {
            Err(invalid(FIELD, "is memory and swap together, so it cannot be less than the memory limit"))
        }
        (Some(swap), Some(limit)) => Ok(Some(swap - limit)),
    }
}

/// The kernel's list format: `0-3,6`.
pub(crate) fn check_list(list: &str, field: &str) -> Result<()> {
    let number = |text: &str| text.trim().parse::<u32>().is_ok();
    let part = |part: &str| match part.split_once('-') {
        // With a step behind the range: 0-31:2/8
        Some((first, rest)) => number(first) && number(rest.split(':').next().unwrap_or(rest)),
        None => number(part),
    };
    if list.trim().split(',').all(part) {
        Ok(())
    } else {
        Err(invalid(field, &format!("{list:?} is no list of numbers and ranges: use such as 0-3,6")))
    }
}
