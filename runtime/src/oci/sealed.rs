//! Goes on in a program that nobody can write to.
//!
//! A process of a container can get hold of the program that makes it, through /proc/<pid>/exe or by being executed from
//! it, and write to it once it is not running any more (CVE-2019-5736). So commands that get into a container execute
//! this program anew, before they do anything else: from a private read-only mount of its file, which is part of no mount
//! namespace, or, where that may not be made (rootless), from a sealed copy in memory.
//!
//! What the program finds in its hands then is what it was given: its standard descriptors and those that are to be
//! passed on. All others are closed, but for that of the mount: closing the last one takes the mount away, which the
//! kernel waits for (a grace period). It is kept until there is nothing else to do.
//!
//! The usual case is done by `entry.rs` before this program is really started; what is here does it for who is not root,
//! and on other machines.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;

use nix::fcntl::{FcntlArg, SealFlag};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::args::Matches;
use super::error::{Error, Result};
use crate::plan::ATTR_RDONLY;
use crate::sys;

/// The name by which this program executes itself anew: it stands in `ps` for a first process that waits. `entry.rs` has
/// it, too.
const NAME: &str = "rorqual-runtime: init";

/// What of the environment a program needs that goes into a container where others are already: they may be able to look
/// into its memory, and what else the caller's environment has is not for them.
const NEEDED: [&str; 3] = ["LISTEN_FDS", "XDG_RUNTIME_DIR", "RUST_BACKTRACE"];

/// What tests need beside that.
#[cfg(test)]
const TEST: &str = "RQT_";

/// Executes this program anew, unless that is what has been done. `preserved`: how many descriptors from 3 on are to
/// stay open; `named`: a file that is going to be read; `seen`: whether others will see it. Returns what the program is
/// executed from.
pub(super) fn seal(preserved: u32, named: Option<&str>, seen: bool) -> Result<Option<OwnedFd>> {
    let failed = |what: &'static str| Error::system(format!("protecting the runtime's program: {what}"));
    if std::env::args_os().next().is_some_and(|name| name == NAME) {
        let first = 3u32.saturating_add(preserved);
        return close_others(first, named).map_err(failed("closing what was inherited"));
    }
    let program = clone().or_else(|_| copy()).map_err(failed("making a private copy"))?;
    let mut args = vec![CString::new(NAME).map_err(io::Error::other).map_err(failed("its name"))?];
    for arg in std::env::args_os().skip(1) {
        args.push(CString::new(arg.into_vec()).map_err(io::Error::other).map_err(failed("its arguments"))?);
    }
    let mut env = Vec::new();
    for (name, value) in std::env::vars_os() {
        #[cfg(test)]
        let seen = seen && !name.to_string_lossy().starts_with(TEST);
        if seen && !NEEDED.iter().any(|needed| name == *needed) {
            continue;
        }
        let entry = [name.into_vec(), value.into_vec()].join(&b'=');
        env.push(CString::new(entry).map_err(io::Error::other).map_err(failed("its environment"))?);
    }
    // Kept open, for the reason above.
    sys::set_cloexec(program.as_fd(), false).map_err(failed("keeping it"))?;
    Err(failed("executing it")(sys::execute_file(program.as_fd(), &args, &env)))
}

/// Closes all descriptors from `first` on, but for the one that this program was executed from, and one by which a shell
/// names a file that it has made up (`-p <(…)`). Those are closed with our own before anybody of the container sees this
/// process.
fn close_others(first: u32, named: Option<&str>) -> io::Result<Option<OwnedFd>> {
    let number = |path: &str| -> Option<u32> {
        path.strip_prefix("/dev/fd/").or(path.strip_prefix("/proc/self/fd/"))?.parse().ok()
    };
    let program = sys::executed_as().and_then(number).filter(|fd| sys::is_open(*fd as i32));
    if let Some(fd) = program.filter(|fd| *fd < first) {
        // One of those that are to be passed on has this number, but was not there.
        sys::close_range(fd, fd, false)?;
    }
    let program = program.filter(|fd| *fd >= first);
    let mut kept: Vec<u32> = program.into_iter().chain(named.and_then(number)).collect();
    kept.sort_unstable();
    let mut from = first;
    for fd in kept.into_iter().filter(|fd| *fd >= first) {
        sys::close_range(fd, fd, true)?;
        if fd > from {
            sys::close_range(from, fd - 1, false)?;
        }
        from = fd.saturating_add(1);
    }
    sys::close_range(from, u32::MAX, false)?;
    program.map(|fd| sys::adopt_fd(fd as i32)).transpose()
}

/// A read-only mount of our own file, attached nowhere.
fn clone() -> io::Result<OwnedFd> {
    let file = sys::open_tree(sys::CWD, c"/proc/self/exe", false)?;
    sys::mount_setattr(file.as_fd(), ATTR_RDONLY, 0, 0, false)?;
    Ok(file)
}

/// A copy in memory that cannot be changed any more.
fn copy() -> io::Result<OwnedFd> {
    let mut source = File::open("/proc/self/exe")?;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut copy = File::from(memfd_create(c"rorqual-runtime", flags)?);
    io::copy(&mut source, &mut copy)?;
    let seals =
        SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    nix::fcntl::fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
    // A descriptor that is open for writing cannot be executed.
    File::open(format!("/proc/self/fd/{}", copy.as_raw_fd())).map(OwnedFd::from)
}

/// As [`super::create::preserved`] counts them, before anything is looked at.
pub(super) fn preserved(matches: &Matches) -> u32 {
    let number = |text: Option<&str>| text.and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or(0);
    let listening = std::env::var("LISTEN_FDS").ok();
    number(matches.value("preserve-fds")).saturating_add(number(listening.as_deref()))
}
