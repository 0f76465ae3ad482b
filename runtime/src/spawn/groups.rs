//! The container's control groups, made before its first process and beside it, and how that gets into them.

use std::error::Error as _;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::cgroup::systemd::{self, Unit};
use crate::cgroup::{self, Made};
use crate::error::Error;
use crate::fault;
use crate::init::Failure;
use crate::plan::Step;
use crate::plan::cgroup::CgroupPlan;
use crate::sys;

/// Makes what the process is born in.
pub(super) fn begin(plan: &CgroupPlan) -> Result<Made<'_>, Failure> {
    cgroup::begin(plan).map_err(failure)
}

/// Makes the other groups, and sets the limits.
pub(super) fn finish(made: &mut Made<'_>) -> Result<(), Failure> {
    made.finish().map_err(failure)?;
    fault::at("parent", 7).map_err(|error| Failure::step("making groups", &error))
}

/// Opens the files by which a process joins the groups.
pub(super) fn open(step: &Step, files: &[CString]) -> Result<Vec<OwnedFd>, Failure> {
    let flags = libc::O_WRONLY | libc::O_NOFOLLOW;
    let open = |file: &CString| sys::openat2(sys::CWD, file, flags, 0, 0);
    files.iter().map(open).collect::<io::Result<_>>().map_err(|error| Failure::step(step, &error))
}

fn failure(error: Error) -> Failure {
    let errno = error.source().and_then(|source| source.downcast_ref()).and_then(io::Error::raw_os_error);
    Failure::step(&error, &errno.map_or_else(|| io::Error::other(""), io::Error::from_raw_os_error))
}

/// Makes a process in a group of the cgroup2; as [`sys::clone3`].
///
/// A user may not put a process from outside of what is delegated to the user's systemd into it: a session is such an
/// outside. That systemd has its own ways, so the process is born here, waits, and is moved by it.
pub(crate) fn born(
    namespaces: u64,
    group: Option<BorrowedFd<'_>>,
    unit: Option<&Unit>,
) -> io::Result<Option<i32>> {
    let unit = match (sys::clone3(namespaces, group), unit) {
        (Err(error), Some(unit)) if unit.user && error.raw_os_error() == Some(libc::EACCES) => unit,
        (other, _) => return other,
    };
    let (waits, opens) = sys::pipe()?;
    match sys::clone3(namespaces, None)? {
        None => {
            drop(opens);
            // The end of the pipe without a word: it could not be moved, and the parent says why.
            match File::from(waits).read(&mut [0]) {
                Ok(1) => Ok(None),
                _ => sys::exit_now(1),
            }
        }
        Some(pid) => {
            let moved = systemd::attach(unit, pid).map_err(|error| {
                let why = error.source().map(|source| format!(": {source}")).unwrap_or_default();
                io::Error::other(format!("{error}{why}"))
            });
            if let Err(error) = moved.and_then(|()| File::from(opens).write_all(b"1")) {
                let _ = sys::kill(pid, libc::SIGKILL);
                let _ = sys::wait_for(pid);
                return Err(error);
            }
            Ok(Some(pid))
        }
    }
}
