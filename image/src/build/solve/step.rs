//! A step that changes files: used again where it was done before, else done and remembered.

use std::time::SystemTime;

use serde::Serialize;

use super::Build;
use super::stage::State;
use crate::build::cache::{LayerRecord, Record};
use crate::build::error::StepError;
use crate::build::layer::Archiving;
use crate::build::tree::root::Root;
use crate::build::tree::view::{self, Changes};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::store::{Layer, Scratch};

/// Changes with what keys or layers are made of, so that nothing of an older version is used again.
const KEY_VERSION: &str = "rorqual step 1";

/// Collects what a step depends on.
pub(super) struct Key {
    hasher: Hasher,
}

impl Key {
    pub(super) fn new(kind: &str) -> Key {
        let mut key = Key { hasher: Hasher::new(Algorithm::Sha256) };
        key.add(KEY_VERSION);
        key.add(kind);
        key
    }

    pub(super) fn add(&mut self, text: impl AsRef<str>) -> &mut Key {
        let text = text.as_ref();
        self.hasher.update(&(text.len() as u64).to_le_bytes());
        self.hasher.update(text.as_bytes());
        self
    }

    pub(super) fn add_all<T: AsRef<str>>(&mut self, list: impl IntoIterator<Item = T>) -> &mut Key {
        let mut count = 0u64;
        for text in list {
            self.add(text);
            count += 1;
        }
        self.add(count.to_string())
    }

    /// Something that can be written as JSON, in the order of its fields.
    pub(super) fn add_value(&mut self, value: &impl Serialize) -> &mut Key {
        let text = serde_json::to_string(value).unwrap_or_default();
        self.add(text)
    }

    pub(super) fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

/// A stack of layers as one name.
pub(super) fn chain(layers: &[Layer]) -> Digest {
    let mut key = Key::new("chain");
    key.add_all(layers.iter().map(|layer| layer.diff_id.to_string()));
    key.finish()
}

/// How a step has come to its result.
pub(super) struct Done {
    pub(super) layer: Option<Layer>,
    pub(super) created: String,
    pub(super) cached: bool,
}

impl Build<'_> {
    /// The record for `key`, if what it names is still there.
    pub(super) fn recorded(&self, key: &Digest) -> Option<Done> {
        if self.options.no_cache {
            return None;
        }
        let record = self.own_record(key).or_else(|| self.offered(key))?;
        self.exchange.note(key, &record);
        Some(Done { layer: record.layer.map(Layer::from), created: record.created, cached: true })
    }

    fn own_record(&self, key: &Digest) -> Option<Record> {
        let record = self.store.steps().get(key)?;
        if let Some(layer) = &record.layer {
            let pin = self.store.pin([layer.digest.clone(), layer.diff_id.clone()]);
            if !self.store.has(&layer.digest) {
                self.store.steps().forget(key);
                return None;
            }
            self.keep(pin);
        }
        Some(record)
    }

    pub(super) fn remember(&self, key: &Digest, done: &Done) -> Result<(), StepError> {
        let layer = done.layer.as_ref().map(|layer| LayerRecord {
            digest: layer.blob.digest.clone(),
            size_bytes: layer.blob.size,
            media_type: layer.blob.media_type.clone(),
            diff_id: layer.diff_id.clone(),
        });
        let record = Record { created: done.created.clone(), layer };
        self.exchange.note(key, &record);
        Ok(self.store.steps().put(key, record)?)
    }

    /// Does what `work` does to a scratch on top of `below`, unless it was done before.
    pub(super) fn step(
        &self,
        key: &Digest,
        work: impl FnOnce(&Scratch) -> Result<bool, StepError>,
    ) -> Result<Done, StepError> {
        // Two stages, or two builds, may come to the same step at the same time.
        let turn = self.store.steps().turn(key);
        let _turn = turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(done) = self.recorded(key) {
            return Ok(done);
        }
        if self.cancel.is_cancelled() {
            return Err(StepError::Cancelled);
        }
        let scratch = self.store.scratch()?;
        let root_changed = work(&scratch)?;
        let go_on = || !self.cancel.is_cancelled();
        let how = Archiving { latest_s: self.latest_s, root: root_changed, go_on: &go_on };
        let kept = self.store.keep_changes(&scratch, &how);
        let kept = kept.map_err(|error| if go_on() { error.into() } else { StepError::Cancelled })?;
        let layer = kept.map(|(layer, pin)| {
            self.keep(pin);
            layer
        });
        let done = Done { layer, created: self.now(), cached: false };
        self.remember(key, &done)?;
        Ok(done)
    }

    /// The time that goes into images.
    pub(super) fn now(&self) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        rfc3339(self.latest_s.unwrap_or(seconds))
    }

    /// The files below a step, to be changed: changes go to the scratch. Also says mode and owner of `/`.
    pub(super) fn open_for_changes(&self, state: &State, scratch: &Scratch) -> Result<Root, StepError> {
        let lowers = self.lowers(state)?;
        adopt_root(&lowers, scratch)?;
        let changes = Changes { upper: scratch.upper(), work: scratch.work() };
        Ok(view::open(&lowers, Some(&changes))?)
    }

    pub(super) fn lowers(&self, state: &State) -> Result<Vec<std::path::PathBuf>, StepError> {
        self.have(&state.layers)?;
        let (lowers, pin) = self.store.stack(&state.layers)?;
        self.keep(pin);
        Ok(lowers)
    }
}

/// Overlayfs shows the upper folder's mode and owner for `/`: they have to be those of the layers below.
pub(super) fn adopt_root(lowers: &[std::path::PathBuf], scratch: &Scratch) -> Result<(), StepError> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
    let Some(top) = lowers.first() else { return Ok(()) };
    let stat = std::fs::metadata(top).map_err(|error| StepError::io("look at", top, error))?;
    let upper = scratch.upper();
    chown(&upper, Some(stat.uid()), Some(stat.gid()))
        .and_then(|()| {
            std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(stat.mode() & 0o7777))
        })
        .map_err(|error| StepError::io("change the mode of", &upper, error))
}

/// Whether a command has changed mode or owner of `/`.
pub(super) fn root_changed(lowers: &[std::path::PathBuf], scratch: &Scratch) -> Result<bool, StepError> {
    use std::os::unix::fs::MetadataExt as _;
    let Some(top) = lowers.first() else { return Ok(false) };
    let look = |path: &std::path::Path| {
        let stat = std::fs::metadata(path).map_err(|error| StepError::io("look at", path, error))?;
        Ok::<_, StepError>((stat.mode(), stat.uid(), stat.gid()))
    };
    Ok(look(top)? != look(&scratch.upper())?)
}

/// Seconds since 1970 as image configurations have times (days to dates after Howard Hinnant's algorithm).
pub(super) fn rfc3339(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_become_dates() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), expected);
        }
    }

    #[test]
    fn a_key_tells_lists_apart() {
        let key = |list: &[&str]| {
            let mut key = Key::new("x");
            key.add_all(list);
            key.finish()
        };
        assert_ne!(key(&["a", "b"]), key(&["ab"]));
        assert_ne!(key(&["a"]), key(&["a", ""]));
        assert_eq!(key(&["a"]), key(&["a"]));
    }
}
