//! A container's whole file system as an archive, as its processes see it without what is mounted into it.

use std::io::Write;

use super::archive::Archive;
use super::changes::too_deep;
use super::merged::Merged;
use super::{DEPTH_MAX, Folders};
use crate::error::Result;

/// Writes everything that shows as an uncompressed tar archive; says how many entries it has.
pub fn export(folders: &Folders, out: impl Write) -> Result<u64> {
    let all = std::iter::once(&folders.upper).chain(&folders.lowers);
    let root = Merged::root(all.map(std::path::PathBuf::as_path))?;
    let mut archive = Archive::new(out, None);
    archive.root(&root.own_stat()?)?;
    folder(&mut archive, &root, 0)?;
    let entries = archive.entries;
    archive.finish()?;
    Ok(entries)
}

fn folder(archive: &mut Archive<impl Write>, merged: &Merged, depth: usize) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(too_deep(merged));
    }
    for (name, seen) in merged.list()? {
        if seen.is_whiteout() {
            continue;
        }
        archive.entry(merged, &name, &seen)?;
        if seen.is_folder()
            && let Some(inner) = merged.enter(&name)?
        {
            folder(archive, &inner, depth + 1)?;
        }
    }
    Ok(())
}
