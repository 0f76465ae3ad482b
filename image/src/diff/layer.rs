//! A container's changes as a layer.

use std::collections::HashSet;
use std::io::Write;

use super::Folders;
use super::archive::Archive;
use super::changes::{ChangeKind, changes};
use super::merged::{Merged, Seen};
use super::walk::{self, Pick};
use crate::error::Result;

/// How a layer is written.
#[derive(Clone, Debug, Default)]
pub struct LayerOptions {
    /// Times after this one are set to it (`SOURCE_DATE_EPOCH`); Unix seconds.
    pub newest: Option<i64>,
    /// Paths that are left out, with everything in them; without a leading slash.
    pub without: HashSet<Vec<u8>>,
}

/// Writes the uncompressed tar archive of what is added, changed and deleted; says how many entries it has.
/// The same changes give the same bytes. Hard links, extended attributes (`user.*` and capabilities), devices
/// and opaque folders are kept.
pub fn write_layer(folders: &Folders, options: &LayerOptions, out: impl Write) -> Result<u64> {
    let wanted = changes(folders)?.into_iter().map(|change| (change.path, change.kind));
    let (deleted, kept): (Vec<_>, Vec<_>) = wanted.partition(|(_, kind)| *kind == ChangeKind::Deleted);
    let upper = Merged::root([folders.upper.as_path()])?;
    let changed = Changed {
        kept: kept.into_iter().map(|(path, _)| path).collect(),
        deleted: deleted.into_iter().map(|(path, _)| path).collect(),
        without: &options.without,
    };
    let mut archive = Archive::new(out, options.newest);
    walk::write(&mut archive, &upper, &changed, 0)?;
    let entries = archive.entries;
    archive.finish()?;
    Ok(entries)
}

/// What is not as the image has it; the container's folder stays as it is.
struct Changed<'a> {
    kept: HashSet<Vec<u8>>,
    deleted: HashSet<Vec<u8>>,
    without: &'a HashSet<Vec<u8>>,
}

impl Pick for Changed<'_> {
    fn wants(&self, folder: &Merged, name: &[u8], seen: &Seen) -> Result<bool> {
        let path = folder.child(name);
        let full = [b"/", path.as_slice()].concat();
        let changed = if seen.is_whiteout() { &self.deleted } else { &self.kept };
        Ok(changed.contains(&full) && !self.without.contains(&path))
    }

    fn left_out(&self, _: &Merged, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn written(&self, _: &Merged, _: &[u8], _: &Seen, _: i64) -> Result<()> {
        Ok(())
    }
}
