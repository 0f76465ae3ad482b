//! Labels of security modules, which count from the execution of the program on. Written while /proc is still the host's,
//! and only if it is a proc file system: one that a container has made could take the write and do nothing
//! (CVE-2019-16884, CVE-2025-52881).

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::files::{NO_XDEV, PROC_MAGIC};
use crate::sys;

pub(super) fn apparmor(text: &str) -> io::Result<()> {
    let proc = proc()?;
    match write(proc.as_fd(), c"thread-self/attr/apparmor/exec", text) {
        // Before Linux 5.8 there is one place for all modules.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write(proc.as_fd(), c"thread-self/attr/exec", text)
        }
        other => other,
    }
}

pub(super) fn selinux(label: &str, keyring: bool) -> io::Result<()> {
    selinux_below(proc()?.as_fd(), label, keyring)
}

fn selinux_below(proc: BorrowedFd<'_>, label: &str, keyring: bool) -> io::Result<()> {
    if keyring {
        write(proc, c"thread-self/attr/keycreate", label)?;
    }
    write(proc, c"thread-self/attr/exec", label)
}

/// Labels the root of a mount that takes no `context` option.
pub(super) fn selinux_file(mount: BorrowedFd<'_>, label: &CStr) -> io::Result<()> {
    sys::setxattr(mount, c"security.selinux", label.to_bytes())
}

fn proc() -> io::Result<OwnedFd> {
    let root = sys::openat2(sys::CWD, c"/proc", libc::O_PATH | libc::O_DIRECTORY, 0, 0)?;
    if sys::filesystem_magic(root.as_fd())? != PROC_MAGIC {
        return Err(io::Error::other("/proc is not a proc file system"));
    }
    Ok(root)
}

fn write(proc: BorrowedFd<'_>, path: &CStr, text: &str) -> io::Result<()> {
    let file = sys::openat2(proc.as_raw_fd(), path, libc::O_WRONLY, 0, NO_XDEV)?;
    File::from(file).write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LABEL: &str = "system_u:system_r:container_t:s0:c1,c2";

    /// None of our machines has SELinux, so in a folder with its files.
    #[test]
    fn selinux_is_told_in_its_own_files() {
        for keyring in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let files = dir.path().join("thread-self/attr");
            fs::create_dir_all(&files).unwrap();
            for name in ["current", "exec", "fscreate", "keycreate", "prev", "sockcreate"] {
                fs::write(files.join(name), "").unwrap();
            }
            let proc = File::open(dir.path()).unwrap();
            selinux_below(proc.as_fd(), LABEL, keyring).unwrap();
            let mut written = Vec::new();
            for entry in fs::read_dir(&files).unwrap() {
                let entry = entry.unwrap();
                let text = fs::read_to_string(entry.path()).unwrap();
                if !text.is_empty() {
                    written.push((entry.file_name().into_string().unwrap(), text));
                }
            }
            written.sort();
            let expected =
                [("exec", LABEL), ("keycreate", LABEL)].map(|(name, text)| (name.into(), text.into()));
            assert_eq!(written, if keyring { &expected[..] } else { &expected[..1] });
        }
    }

    #[test]
    fn a_file_that_is_missing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let proc = File::open(dir.path()).unwrap();
        assert_eq!(selinux_below(proc.as_fd(), LABEL, false).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
