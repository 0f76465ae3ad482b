//! Holds: blobs that stay although no image in the list needs them — what the registry was given.
//!
//! `<root>/holds/<name>.json` is one hold: the blobs it keeps, for whom, and since when. A hold is on disk
//! before it counts, and counts until its file is gone; sweeping keeps whatever a hold names.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Store, lock};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::sys;

/// Blobs that are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hold {
    /// What is kept.
    pub digests: Vec<Digest>,
    /// For whom; the store makes nothing of it.
    pub label: String,
    /// Since when, milliseconds since the Unix epoch.
    pub since_ms: i64,
}

/// All holds, by name.
pub(super) type Holds = BTreeMap<String, Hold>;

/// Reads the holds in `folder`, which is made if it isn't there. One that can't be read is an error: what
/// it kept would be swept.
pub(super) fn open(folder: &Path) -> Result<Holds> {
    fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    let mut holds = Holds::new();
    for entry in fs::read_dir(folder).map_err(|error| Error::io("list", folder, error))? {
        let path = entry.map_err(|error| Error::io("list", folder, error))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let Some(name) = name.strip_suffix(".json") else {
            // The rest of a write that a crash cut off.
            fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
            continue;
        };
        let bytes = fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        let hold = serde_json::from_slice(&bytes)
            .map_err(|source| Error::Json { what: path.display().to_string(), source })?;
        holds.insert(name.to_owned(), hold);
    }
    Ok(holds)
}

impl Store {
    /// Keeps blobs under a name of letters, digits and `-`, in place of what was kept under it. The blobs
    /// have to be pinned, or held already. Waits for the disk.
    pub(crate) fn hold(&self, name: &str, hold: Hold) -> Result<()> {
        let path = self.hold_path(name);
        let temporary = path.with_extension(format!("{}.new", self.inner.next_number()));
        let bytes = serde_json::to_vec(&hold)
            .map_err(|source| Error::Json { what: path.display().to_string(), source })?;
        let written = fs::File::create(&temporary)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&temporary, &path));
        if let Err(error) = written {
            // Best effort: the next open removes it.
            let _ = fs::remove_file(&temporary);
            return Err(Error::io("write", &path, error));
        }
        sys::sync_folder_of(&path)?;
        lock(&self.inner.holds).insert(name.to_owned(), hold);
        Ok(())
    }

    /// Gives a hold up; says whether there was one. The blobs go with the next sweep.
    pub(crate) fn release(&self, name: &str) -> Result<bool> {
        let path = self.hold_path(name);
        let mut holds = lock(&self.inner.holds);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("remove", &path, error)),
        }
        Ok(holds.remove(name).is_some())
    }

    /// Whether there is a hold of that name.
    pub(crate) fn is_held(&self, name: &str) -> bool {
        lock(&self.inner.holds).contains_key(name)
    }

    /// Every hold whose name begins with `prefix`.
    pub(crate) fn holds(&self, prefix: &str) -> Vec<(String, Hold)> {
        let holds = lock(&self.inner.holds);
        let from = holds.range(prefix.to_owned()..);
        from.take_while(|(name, _)| name.starts_with(prefix))
            .map(|(name, hold)| (name.clone(), hold.clone()))
            .collect()
    }

    fn hold_path(&self, name: &str) -> PathBuf {
        self.inner.root.join("holds").join(format!("{name}.json"))
    }
}
