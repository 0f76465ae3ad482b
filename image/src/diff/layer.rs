//! A container's changes as a layer: its own files, and whiteouts for what it deleted (image-spec, layer.md).

use std::collections::HashSet;
use std::io::Write;

use super::archive::Archive;
use super::changes::{ChangeKind, changes, too_deep};
use super::merged::Merged;
use super::{DEPTH_MAX, Folders};
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
    let wanted = changes(folders)?;
    let wanted = wanted.into_iter().map(|change| (change.path, change.kind));
    let (deleted, kept): (Vec<_>, Vec<_>) = wanted.partition(|(_, kind)| *kind == ChangeKind::Deleted);
    let upper = Merged::root([folders.upper.as_path()])?;
    let mut layer = Layer {
        archive: Archive::new(out, options.newest),
        kept: kept.into_iter().map(|(path, _)| path).collect(),
        deleted: deleted.into_iter().map(|(path, _)| path).collect(),
        without: &options.without,
    };
    layer.folder(&upper, 0)?;
    let entries = layer.archive.entries;
    layer.archive.finish()?;
    Ok(entries)
}

struct Layer<'a, W> {
    archive: Archive<W>,
    kept: HashSet<Vec<u8>>,
    deleted: HashSet<Vec<u8>>,
    without: &'a HashSet<Vec<u8>>,
}

impl<W: Write> Layer<'_, W> {
    fn folder(&mut self, folder: &Merged, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(too_deep(folder));
        }
        for (name, seen) in folder.list()? {
            let path = folder.child(&name);
            if self.without.contains(&path) {
                continue;
            }
            let full = [b"/", path.as_slice()].concat();
            if seen.is_whiteout() {
                if self.deleted.contains(&full) {
                    self.archive
                        .mark(&folder.child(&[b".wh.", name.as_slice()].concat()), seen.stat.st_mtime)?;
                }
                continue;
            }
            if !self.kept.contains(&full) {
                continue;
            }
            if name.starts_with(b".wh.") {
                tracing::warn!(
                    path = super::merged::shown(&path),
                    "a name that begins with `.wh.` can't be in a layer; left out"
                );
                continue;
            }
            self.archive.entry(folder, &name, &seen)?;
            if seen.is_folder()
                && let Some(inner) = folder.enter(&name)?
            {
                if folder.hides_below(&name, &seen)? {
                    self.archive.mark(&inner.child(b".wh..wh..opq"), seen.stat.st_mtime)?;
                }
                self.folder(&inner, depth + 1)?;
            }
        }
        Ok(())
    }
}
