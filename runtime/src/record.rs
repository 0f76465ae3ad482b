//! What is kept on disk about a container, and where. All of it is written whole or not at all.
//!
//! ```text
//! <runtime_dir>/<id>/   record.json   what was asked for; makes the container known
//!                       state.json    the running process; written once it has been executed
//!                       lock          held by the monitor as long as it lives
//!                       monitor.sock  for those who wait for the end
//!                       rootfs/       where the root file system is mounted, seen only from inside
//! <dir>/                config.json, container.log…, exit.json
//! ```

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::{ExitStatus, LogPolicy, Rootfs};
use crate::cgroup::Group;
use crate::error::{Error, Result};
use crate::host;
use crate::init::Failure;
use crate::plan::Facts;

/// What was asked for, beside the specification.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    pub(crate) rootfs: Rootfs,
    pub(crate) user: Option<String>,
    pub(crate) log: LogPolicy,
    pub(crate) stdin: bool,
    pub(crate) cgroup_parent: String,
    pub(crate) group: Group,
    pub(crate) facts: Facts,
}

/// The running process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) pid: i32,
    /// When the kernel started it, in clock ticks since boot: tells it from a later process of the same number.
    pub(crate) start_ticks: u64,
    pub(crate) started_at_ms: i64,
    pub(crate) monitor_pid: i32,
}

/// The monitor's one line to whoever launched it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    Started(State),
    Failed(Failure),
}

/// The files of one container in the runtime directory.
#[derive(Clone, Debug)]
pub(crate) struct Files(pub(crate) PathBuf);

impl Files {
    pub(crate) fn record(&self) -> PathBuf {
        self.0.join("record.json")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    pub(crate) fn mountpoint(&self) -> PathBuf {
        self.0.join("rootfs")
    }
}

/// The socket's name in the container's runtime directory.
pub(crate) const SOCKET: &str = "monitor.sock";

pub(crate) fn config_path(dir: &Path) -> PathBuf {
    dir.join("config.json")
}

pub(crate) fn exit_path(dir: &Path) -> PathBuf {
    dir.join("exit.json")
}

/// Reads a JSON file; `None` if it is not there.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::File { operation: "read", path: path.to_owned(), source }),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| Error::Damaged { path: path.to_owned(), source })
}

/// Writes a file under another name and then gives it its own; only its owner may read it, since environments hold
/// secrets. `durable`: it survives a power cut from here on.
pub(crate) fn write(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if durable && let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// An exit status as it is written and sent. By hand, so that the monitor needs no JSON library while it serves.
pub(crate) fn exit_line(status: &ExitStatus) -> String {
    let signal = status.signal.map_or("null".to_owned(), |signal| signal.to_string());
    format!(
        "{{\"code\":{},\"signal\":{signal},\"oom_killed\":{},\"finished_at_ms\":{}}}\n",
        status.code, status.oom_killed, status.finished_at_ms
    )
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// When the kernel started a process (proc_pid_stat(5), field 22); `None` if it is gone.
pub(crate) fn start_ticks(pid: i32) -> Option<u64> {
    field(pid, 22)?.parse().ok()
}

/// Whether a child has executed a program since it was made; also once it has ended, as long as it is not reaped.
pub(crate) fn has_executed(pid: i32) -> bool {
    /// The kernel's flag of a process that has not (include/linux/sched.h).
    const PF_FORKNOEXEC: u32 = 0x40;
    field(pid, 9).and_then(|flags| flags.parse::<u32>().ok()).is_some_and(|flags| flags & PF_FORKNOEXEC == 0)
}

/// A field of /proc/<pid>/stat, by its number in proc_pid_stat(5): from 3 on.
fn field(pid: i32, number: usize) -> Option<String> {
    let text = host::read(Path::new(&format!("/proc/{pid}/stat"))).ok()?;
    // The second field, the command, is in brackets and may hold anything.
    text.rsplit_once(')')?.1.split_ascii_whitespace().nth(number - 3).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_lines_are_json() {
        for signal in [None, Some(9)] {
            let status = ExitStatus { code: 137, signal, oom_killed: true, finished_at_ms: 5 };
            assert_eq!(serde_json::from_str::<ExitStatus>(&exit_line(&status)).unwrap(), status);
        }
    }
}
