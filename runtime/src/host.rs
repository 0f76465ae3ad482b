//! What this machine and this process offer: the facts that plans are made from.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use crate::cgroup::Layout;
use crate::error::{Error, Result};
use crate::plan::Facts;
use crate::sys;

const CAP_SYS_ADMIN: u32 = 21;

/// More than any file that is read here has.
const LIMIT_BYTES: u64 = 64 << 20;

/// Looks at the machine.
pub(crate) fn facts(layout: Layout) -> Result<Facts> {
    let last_capability = file("/proc/sys/kernel/cap_last_cap")?.trim().parse().unwrap_or(40);
    let whole = "0 0 4294967295";
    let user_namespace =
        file("/proc/self/uid_map")?.split_ascii_whitespace().collect::<Vec<_>>().join(" ") != whole;
    let setgroups = !user_namespace || file("/proc/self/setgroups")?.trim() != "deny";
    let privileged = sys::effective_capabilities().map(|set| set & 1 << CAP_SYS_ADMIN != 0).unwrap_or(false);
    Ok(Facts { layout, last_capability, privileged, user_namespace, setgroups })
}

fn file(path: &str) -> Result<String> {
    let path = Path::new(path);
    read(path).map_err(|source| Error::File { operation: "read", path: path.to_owned(), source })
}

/// Reads a file of the kernel's. Such a file does not tell its size, and its text is made anew for each read: so a large
/// read is cheaper than the growing ones of [`std::fs::read_to_string`].
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::with_capacity(8 * 1024);
    // Through `take`, since a file by itself would be asked for its size first.
    File::open(path)?.take(LIMIT_BYTES).read_to_end(&mut bytes)?;
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}
