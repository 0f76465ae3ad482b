//! What this machine and this process offer: the facts that plans are made from.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use crate::cgroup::Layout;
use crate::error::{Error, Result};
use crate::plan::Facts;
use crate::sys;

const CAP_SYS_ADMIN: u32 = 21;

/// CAP_CHECKPOINT_RESTORE, since Linux 5.9.
const NEWEST_CAPABILITY: u32 = 40;

/// The machine's first user namespace, by its number (PROC_USER_INIT_INO; include/uapi/linux/nsfs.h).
const FIRST_USER_NAMESPACE: &str = "user:[4026531837]";

/// More than any file that is read here has.
const LIMIT_BYTES: u64 = 64 << 20;

/// Looks at the machine.
pub(crate) fn facts(layout: Layout) -> Result<Facts> {
    let last_capability = match sys::is_last_capability(NEWEST_CAPABILITY) {
        true => NEWEST_CAPABILITY,
        false => file("/proc/sys/kernel/cap_last_cap")?.trim().parse().unwrap_or(NEWEST_CAPABILITY),
    };
    let user_namespace = !is_first_user_namespace() && {
        let map = file("/proc/self/uid_map")?;
        map.split_ascii_whitespace().collect::<Vec<_>>().join(" ") != "0 0 4294967295"
    };
    let setgroups = !user_namespace || file("/proc/self/setgroups")?.trim() != "deny";
    let privileged = sys::effective_capabilities().map(|set| set & 1 << CAP_SYS_ADMIN != 0).unwrap_or(false);
    Ok(Facts { layout, last_capability, privileged, user_namespace, setgroups })
}

fn is_first_user_namespace() -> bool {
    std::fs::read_link("/proc/self/ns/user").is_ok_and(|name| name.as_os_str() == FIRST_USER_NAMESPACE)
}

fn file(path: &str) -> Result<String> {
    let path = Path::new(path);
    read(path).map_err(|source| Error::File { operation: "read", path: path.to_owned(), source })
}

/// What is mounted: /proc/self/mountinfo, which may have been read already.
pub(crate) fn mounts() -> io::Result<Cow<'static, str>> {
    match sys::mounts() {
        Some(read) => {
            std::str::from_utf8(read).map(Cow::Borrowed).map_err(|_| io::ErrorKind::InvalidData.into())
        }
        None => read(Path::new("/proc/self/mountinfo")).map(Cow::Owned),
    }
}

/// Reads a file of the kernel's. Such a file does not tell its size, and its text is made anew for each read: so a large
/// read is cheaper than the growing ones of [`std::fs::read_to_string`].
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut first = [0; 8 * 1024];
    let mut file = File::open(path)?.take(LIMIT_BYTES);
    let length = file.read(&mut first)?;
    let mut bytes = first[..length].to_vec();
    // Through `take`, since a file by itself would be asked for its size first.
    file.read_to_end(&mut bytes)?;
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}
