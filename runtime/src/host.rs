//! What this machine and this process offer: the facts that plans are made from.

use std::fs;
use std::path::Path;

use crate::cgroup::Layout;
use crate::error::{Error, Result};
use crate::plan::Facts;
use crate::sys;

const CAP_SYS_ADMIN: u32 = 21;

/// Looks at the machine.
pub(crate) fn facts(layout: Layout) -> Result<Facts> {
    let last_capability = read("/proc/sys/kernel/cap_last_cap")?.trim().parse().unwrap_or(40);
    let whole = "0 0 4294967295";
    let user_namespace =
        read("/proc/self/uid_map")?.split_ascii_whitespace().collect::<Vec<_>>().join(" ") != whole;
    let setgroups = !user_namespace || read("/proc/self/setgroups")?.trim() != "deny";
    let privileged = sys::effective_capabilities().map(|set| set & 1 << CAP_SYS_ADMIN != 0).unwrap_or(false);
    Ok(Facts { layout, last_capability, privileged, user_namespace, setgroups })
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).map_err(|source| Error::File {
        operation: "read",
        path: Path::new(path).to_owned(),
        source,
    })
}
