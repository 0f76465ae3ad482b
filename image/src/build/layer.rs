//! From what a step has changed to a layer: the upper folder of an overlay becomes a tar archive, in the order
//! of its names, and then, where it is, an unpacked layer of the store.
//!
//! The archive says of each entry what unpacking it elsewhere will make of it; whatever it doesn't say (times
//! finer than a second, attributes of this machine) is taken from the folder too, so that both are the same.

use std::io::Write;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::diff::archive::Archive;
use crate::diff::merged::{Merged, Seen, is_kept};
use crate::diff::walk::{self, Pick};
use crate::error::{Error, Result};
use crate::sys;

/// How an archive is written.
pub(crate) struct Archiving<'a> {
    /// No time is later than this.
    pub(crate) latest_s: Option<i64>,
    /// Whether an entry for `/` is written.
    pub(crate) root: bool,
    /// Asked now and then whether to go on.
    pub(crate) go_on: &'a dyn Fn() -> bool,
}

/// Writes the archive of the folder `upper` to `sink`; says how many entries it has.
pub(crate) fn archive(upper: &Path, sink: &mut dyn Write, how: &Archiving<'_>) -> Result<u64> {
    let upper = Merged::root([upper])?;
    let mut archive = Archive::new(sink, how.latest_s);
    if how.root {
        archive.root(&upper.own_stat()?)?;
    }
    walk::write(&mut archive, &upper, how, 0)?;
    let entries = archive.entries;
    archive.finish()?;
    Ok(entries)
}

/// All of it; the folder becomes what the archive says.
impl Pick for Archiving<'_> {
    fn wants(&self, _: &Merged, _: &[u8], _: &Seen) -> Result<bool> {
        if (self.go_on)() { Ok(true) } else { Err(Error::Interrupted("a layer".to_owned())) }
    }

    fn left_out(&self, folder: &Merged, name: &[u8]) -> Result<()> {
        let removed = match unlinkat(folder.upper(), name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => sys::remove_tree(folder.upper(), name),
            removed => removed.map_err(Into::into),
        };
        removed.map_err(|error| folder.fail(name, "remove", error))
    }

    fn written(&self, folder: &Merged, name: &[u8], seen: &Seen, time_s: i64) -> Result<()> {
        let fd = folder.upper();
        let names = sys::list_xattrs(fd, name);
        for attribute in names.map_err(|error| folder.fail(name, "read the attributes of", error))? {
            if is_kept(attribute.to_bytes()) || attribute.as_c_str() == sys::OVERLAY_OPAQUE {
                continue;
            }
            match sys::remove_xattr(fd, name, &attribute) {
                // The machine's own labels can't always be taken away, and mean nothing elsewhere.
                Ok(()) | Err(Errno::ENODATA | Errno::EPERM | Errno::EACCES | Errno::ENOTSUP) => {}
                Err(error) => return Err(folder.fail(name, "take an attribute from", error)),
            }
        }
        if (seen.stat.st_mtime, seen.stat.st_mtime_nsec) == (time_s, 0) {
            return Ok(());
        }
        let time = TimeSpec::new(time_s, 0);
        utimensat(fd, name, &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(|error| folder.fail(name, "set the time of", error))
    }
}
