//! Goes on in a program that nobody can write to.
//!
//! A process of a container can get hold of the program that makes it, through /proc/<pid>/exe or by being executed from
//! it, and write to it once it is not running any more (CVE-2019-5736). So commands that get into a container execute
//! this program anew, before they do anything else: from a private read-only mount of its file, which is part of no mount
//! namespace, or, where that may not be made (rootless), from a sealed copy in memory.
//!
//! What the program finds in its hands then is what it was given: its standard descriptors and those that are to be
//! passed on. All others are closed.

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

/// The name by which this program executes itself anew: it stands in `ps` for a first process that waits.
const NAME: &str = "rorqual-runtime: init";

/// What of the environment a program needs that goes into a container where others are already: they may be able to look
/// into its memory, and what else the caller's environment has is not for them.
const NEEDED: [&str; 3] = ["LISTEN_FDS", "XDG_RUNTIME_DIR", "RUST_BACKTRACE"];

/// Executes this program anew, unless that is what has been done. `preserved`: how many descriptors from 3 on are to
/// stay open. `named`: a file that is going to be read. `seen`: whether others will see it.
pub(super) fn seal(preserved: u32, named: Option<&str>, seen: bool) -> Result<()> {
    let failed = |what: &'static str| Error::system(format!("protecting the runtime's program: {what}"));
    if std::env::args_os().next().is_some_and(|name| name == NAME) {
        let first = 3u32.saturating_add(preserved);
        return close(first, named).map_err(failed("closing what was inherited"));
    }
    let program = clone().or_else(|_| copy()).map_err(failed("making a private copy"))?;
    let mut args = vec![CString::new(NAME).map_err(io::Error::other).map_err(failed("its name"))?];
    for arg in std::env::args_os().skip(1) {
        args.push(CString::new(arg.into_vec()).map_err(io::Error::other).map_err(failed("its arguments"))?);
    }
    let mut env = Vec::new();
    for (name, value) in std::env::vars_os() {
        if seen && !NEEDED.iter().any(|needed| name == *needed) {
            continue;
        }
        let entry = [name.into_vec(), value.into_vec()].join(&b'=');
        env.push(CString::new(entry).map_err(io::Error::other).map_err(failed("its environment"))?);
    }
    Err(failed("executing it")(sys::execute_file(program.as_fd(), &args, &env)))
}

/// Closes all descriptors from `first` on, but for one by which a shell names a file that it has made up (`-p <(…)`). That
/// one is closed with our own before anybody of the container sees this process.
fn close(first: u32, named: Option<&str>) -> io::Result<()> {
    let number =
        |path: &str| path.strip_prefix("/dev/fd/").or(path.strip_prefix("/proc/self/fd/"))?.parse().ok();
    match named.and_then(number).filter(|fd| *fd >= first) {
        Some(fd) => {
            sys::close_range(fd, fd, true)?;
            if fd > first {
                sys::close_range(first, fd - 1, false)?;
            }
            sys::close_range(fd.saturating_add(1), u32::MAX, false)
        }
        None => sys::close_range(first, u32::MAX, false),
    }
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
