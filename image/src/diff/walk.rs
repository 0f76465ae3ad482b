//! An upper folder of overlayfs becomes a layer: its files, and whiteouts for what it hides (image-spec, layer.md).
//!
//! The one walk for containers that are committed and for steps of builds; what goes into the layer, and what is to
//! become of the folder, its [`Pick`] says.

use std::io::Write;

use nix::sys::stat::SFlag;

use super::DEPTH_MAX;
use super::archive::Archive;
use super::changes::too_deep;
use super::merged::{Merged, Seen, shown};
use crate::error::Result;

/// In front of the name of what is deleted.
const WHITEOUT: &[u8] = b".wh.";
/// In a folder that hides what lies below it.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What goes into a layer.
pub(crate) trait Pick {
    /// Whether a name of the folder does: a whiteout as the deletion that it is, a folder with what is in it.
    fn wants(&self, folder: &Merged, name: &[u8], seen: &Seen) -> Result<bool>;

    /// No archive can hold it.
    fn left_out(&self, folder: &Merged, name: &[u8]) -> Result<()>;

    /// The layer has it, with everything in it, and says that it was changed at `time_s`.
    fn written(&self, folder: &Merged, name: &[u8], seen: &Seen, time_s: i64) -> Result<()>;
}

/// Writes the layer of `folder`; whiteouts are of no time, so that they are the same each time.
pub(crate) fn write(
    archive: &mut Archive<impl Write>,
    folder: &Merged,
    pick: &impl Pick,
    depth: usize,
) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(too_deep(folder));
    }
    for (name, seen) in folder.list()? {
        if !pick.wants(folder, &name, &seen)? {
            continue;
        }
        if seen.is_whiteout() {
            archive.mark(&folder.child(&[WHITEOUT, name.as_slice()].concat()))?;
            continue;
        }
        if name.starts_with(WHITEOUT) || seen.kind() == SFlag::S_IFSOCK {
            let path = shown(&folder.child(&name));
            tracing::warn!(path, "a socket, or a name that means a deletion, can't be in a layer; left out");
            pick.left_out(folder, &name)?;
            continue;
        }
        archive.entry(folder, &name, &seen)?;
        if seen.is_folder()
            && let Some(inner) = folder.enter(&name)?
        {
            if folder.hides_below(&name, &seen)? {
                archive.mark(&inner.child(OPAQUE))?;
            }
            write(archive, &inner, pick, depth + 1)?;
        }
        pick.written(folder, &name, &seen, archive.time(seen.stat.st_mtime))?;
    }
    Ok(())
}
