//! What builds can use again: steps by their keys, and the folders of cache mounts.
//!
//! ```text
//! <root>/build/steps/<hex of the key>.json   which layer the step made; its time is that of the last use
//! <root>/build/mounts/<hex of the name>/     a cache mount's files
//! ```
//!
//! A record is a hint: one that can't be read, or whose layer is gone, is none. Layers that a record names are
//! kept from being swept until the record is pruned.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::build::dockerfile::Sharing;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::Store;

/// What a step has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// When, RFC 3339.
    pub(crate) created: String,
    /// Nothing where it changed no file.
    pub(crate) layer: Option<LayerRecord>,
}

/// A layer in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    pub(crate) media_type: String,
    pub(crate) diff_id: Digest,
}

/// What the build cache takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUsage {
    /// Steps that could be used again.
    pub steps: u64,
    /// Bytes of their layers' archives.
    pub steps_bytes: u64,
    /// Folders of cache mounts.
    pub mounts: u64,
    /// Bytes in those.
    pub mounts_bytes: u64,
}

/// The records of a store.
#[derive(Debug)]
pub(crate) struct Steps {
    folder: PathBuf,
    known: Mutex<BTreeMap<Digest, Record>>,
    /// Held by whoever does that step.
    doing: Mutex<HashMap<Digest, Weak<Mutex<()>>>>,
    /// Cache mounts by folder: how many use it, and whether one has it for itself.
    mounts: Mutex<HashMap<PathBuf, (usize, bool)>>,
    freed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Steps {
    pub(crate) fn open(folder: &Path) -> Result<Steps> {
        let steps = folder.join("steps");
        for path in [&steps, &folder.join("mounts")] {
            fs::create_dir_all(path).map_err(|error| Error::io("create", path, error))?;
        }
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(&steps).map_err(|error| Error::io("list", &steps, error))? {
            let path = entry.map_err(|error| Error::io("list", &steps, error))?.path();
            let key = path.file_stem().and_then(|name| format!("sha256:{}", name.to_str()?).parse().ok());
            let record = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            match (key, record) {
                (Some(key), Some(record)) if path.extension().is_some_and(|kind| kind == "json") => {
                    known.insert(key, record);
                }
                // Cut off by a crash.
                _ => drop(fs::remove_file(&path)),
            }
        }
        Ok(Steps {
            folder: folder.to_owned(),
            known: Mutex::new(known),
            doing: Mutex::default(),
            mounts: Mutex::default(),
            freed: Condvar::new(),
        })
    }

    fn path(&self, key: &Digest) -> PathBuf {
        self.folder.join("steps").join(format!("{}.json", key.hex()))
    }

    /// Every blob and layer that a record names.
    pub(crate) fn digests(&self) -> HashSet<Digest> {
        let known = lock(&self.known);
        let layers = known.values().filter_map(|record| record.layer.as_ref());
        layers.flat_map(|layer| [layer.digest.clone(), layer.diff_id.clone()]).collect()
    }

    /// Every step that has made one of these layers.
    pub(crate) fn making(&self, diff_ids: &HashSet<&Digest>) -> Vec<(Digest, Record)> {
        let known = lock(&self.known);
        let made = known.iter().filter(|(_, record)| {
            record.layer.as_ref().is_some_and(|layer| diff_ids.contains(&layer.diff_id))
        });
        made.map(|(key, record)| (key.clone(), record.clone())).collect()
    }

    pub(crate) fn get(&self, key: &Digest) -> Option<Record> {
        let found = lock(&self.known).get(key).cloned();
        if found.is_some() {
            // Tells pruning that it was of use; a record without that is still one.
            let _ = File::options()
                .append(true)
                .open(self.path(key))
                .and_then(|file| file.set_modified(SystemTime::now()));
        }
        found
    }

    /// Written without waiting for the disk: what a crash cuts off is done again.
    pub(crate) fn put(&self, key: &Digest, record: Record) -> Result<()> {
        let path = self.path(key);
        let temporary = path.with_extension("tmp");
        let json = serde_json::to_vec(&record)
            .map_err(|source| Error::Json { what: path.display().to_string(), source })?;
        fs::write(&temporary, json)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|error| Error::io("write", &path, error))?;
        lock(&self.known).insert(key.clone(), record);
        Ok(())
    }

    pub(crate) fn forget(&self, key: &Digest) {
        lock(&self.known).remove(key);
        // Found again after a restart at worst, and forgotten again then.
        let _ = fs::remove_file(self.path(key));
    }

    /// The lock to hold while the step is done, so that it is done once.
    pub(crate) fn turn(&self, key: &Digest) -> Arc<Mutex<()>> {
        let mut doing = lock(&self.doing);
        if let Some(turn) = doing.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        doing.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        doing.insert(key.clone(), Arc::downgrade(&turn));
        turn
    }

    /// The folder of the cache mount `id`, and whether it is new. It is given back when the lease is dropped.
    pub(crate) fn lease(
        self: &Steps,
        id: &str,
        sharing: Sharing,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<Lease<'_>>> {
        let base = self.folder.join("mounts").join(Digest::of(id.as_bytes()).hex());
        let mut mounts = lock(&self.mounts);
        let mut number = 0;
        let path = loop {
            let path = if number == 0 { base.clone() } else { base.with_extension(number.to_string()) };
            let (users, alone) = mounts.get(&path).copied().unwrap_or_default();
            let is_free = users == 0 || (sharing == Sharing::Shared && !alone);
            match sharing {
                _ if is_free => break path,
                Sharing::Private => number += 1,
                Sharing::Shared | Sharing::Locked => {
                    let waited = self.freed.wait_timeout(mounts, std::time::Duration::from_millis(200));
                    mounts = waited.unwrap_or_else(PoisonError::into_inner).0;
                    if !go_on() {
                        return Ok(None);
                    }
                }
            }
        };
        let use_of = mounts.entry(path.clone()).or_default();
        use_of.0 += 1;
        use_of.1 = sharing != Sharing::Shared;
        drop(mounts);
        let lease = Lease { steps: self, is_new: !path.exists(), path };
        fs::create_dir_all(&lease.path).map_err(|error| Error::io("create", &lease.path, error))?;
        // When it was used last, for pruning.
        let touched = File::open(&lease.path).and_then(|folder| folder.set_modified(SystemTime::now()));
        touched.map_err(|error| Error::io("set the time of", &lease.path, error))?;
        Ok(Some(lease))
    }
}

/// A cache mount's folder while a command uses it.
#[derive(Debug)]
pub(crate) struct Lease<'a> {
    steps: &'a Steps,
    pub(crate) path: PathBuf,
    pub(crate) is_new: bool,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut mounts = lock(&self.steps.mounts);
        if let Some(use_of) = mounts.get_mut(&self.path) {
            use_of.0 -= 1;
            if use_of.0 == 0 {
                mounts.remove(&self.path);
            }
        }
        self.steps.freed.notify_all();
    }
}

impl Store {
    /// What the build cache takes. Layers that images have too are counted.
    pub fn build_cache_usage(&self) -> Result<CacheUsage> {
        let steps = self.steps();
        let mut usage = CacheUsage::default();
        let mut seen = HashSet::new();
        for record in lock(&steps.known).values() {
            usage.steps += 1;
            if let Some(layer) = &record.layer
                && seen.insert(layer.digest.clone())
            {
                usage.steps_bytes += layer.size_bytes;
            }
        }
        let folder = steps.folder.join("mounts");
        for entry in fs::read_dir(&folder).map_err(|error| Error::io("list", &folder, error))? {
            let path = entry.map_err(|error| Error::io("list", &folder, error))?.path();
            usage.mounts += 1;
            usage.mounts_bytes += size_of(&path);
        }
        Ok(usage)
    }

    /// Forgets steps and cache mounts that were not used since `before` (`None`: all of them that no build uses
    /// just now), and sweeps the layers that nobody else needs.
    pub fn prune_build_cache(&self, before: Option<SystemTime>) -> Result<CacheUsage> {
        let earlier = self.build_cache_usage()?;
        let steps = self.steps();
        let is_old = |path: &Path| {
            let used = fs::metadata(path).and_then(|metadata| metadata.modified());
            before.is_none_or(|before| used.is_ok_and(|used| used < before))
        };
        let old: Vec<Digest> =
            lock(&steps.known).keys().filter(|key| is_old(&steps.path(key))).cloned().collect();
        for key in &old {
            steps.forget(key);
        }
        let folder = steps.folder.join("mounts");
        for entry in fs::read_dir(&folder).map_err(|error| Error::io("list", &folder, error))? {
            let path = entry.map_err(|error| Error::io("list", &folder, error))?.path();
            // Nobody can take the lease meanwhile.
            let mounts = lock(&steps.mounts);
            if !mounts.contains_key(&path) && is_old(&path) {
                fs::remove_dir_all(&path).map_err(|error| Error::io("remove", &path, error))?;
            }
        }
        self.sweep()?;
        let left = self.build_cache_usage()?;
        Ok(CacheUsage {
            steps: earlier.steps.saturating_sub(left.steps),
            steps_bytes: earlier.steps_bytes.saturating_sub(left.steps_bytes),
            mounts: earlier.mounts.saturating_sub(left.mounts),
            mounts_bytes: earlier.mounts_bytes.saturating_sub(left.mounts_bytes),
        })
    }
}

/// Bytes of the files in a folder. What can't be looked at counts for nothing.
fn size_of(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let mut total = 0;
    let mut ahead = vec![path.to_owned()];
    while let Some(folder) = ahead.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => ahead.push(entry.path()),
                Ok(metadata) => total += metadata.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    total
}
