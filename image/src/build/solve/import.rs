//! Steps of other nodes (`--cache-from`), and those that go to them (`--cache-to`).
//!
//! What a source offers is read before the first stage begins; a layer is fetched when something looks into it, or the
//! image is put together. Every step that was used or done is noted, since that is what goes out.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use super::Build;
use super::stage::Outcome;
use crate::build::cache::Record;
use crate::build::error::BuildError;
use crate::build::exchange::{image_of, steps_of};
use crate::build::host::{BuildOptions, Event};
use crate::digest::Digest;
use crate::error::{Error, Result, one_line};
use crate::store::Layer;

/// Steps in both directions.
#[derive(Default)]
pub(super) struct Exchange {
    /// What others have made, by key.
    offered: HashMap<Digest, Record>,
    /// Which source has a layer, by its blob.
    sources: HashMap<Digest, usize>,
    /// Used or done by this build, in that order.
    noted: Mutex<Vec<(Digest, Record)>>,
}

impl Exchange {
    /// Asks every source; one that can't be read is told of, and left out.
    pub(super) fn open(options: &BuildOptions, number: &dyn Fn() -> u32, tell: &dyn Fn(Event)) -> Exchange {
        let mut exchange = Exchange::default();
        if options.no_cache {
            return exchange;
        }
        for (at, source) in options.steps_from.iter().enumerate() {
            let (step, name) = (number(), source.name());
            tell(Event::Started { step, name: format!("importing cache from {name}") });
            let found = source.documents().and_then(|found| match found {
                Some(documents) => steps_of(&name, &documents).map(Some),
                None => Ok(None),
            });
            tell(if found.is_ok() { Event::Done { step, cached: false } } else { Event::Failed { step } });
            let problem = match found {
                Ok(Some(steps)) if !steps.is_empty() => {
                    exchange.take(at, steps);
                    continue;
                }
                Ok(Some(_)) => {
                    "no steps are listed there; an image lists its own with --cache-to type=inline".to_owned()
                }
                Ok(None) => "nothing is there yet".to_owned(),
                Err(error) => one_line(&error),
            };
            tell(Event::Warning(format!("--cache-from {name}: {problem}; building without it")));
        }
        exchange
    }

    fn take(&mut self, source: usize, steps: Vec<(Digest, Record)>) {
        for (key, record) in steps {
            if let Some(layer) = &record.layer {
                self.sources.entry(layer.digest.clone()).or_insert(source);
            }
            self.offered.entry(key).or_insert(record);
        }
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, Vec<(Digest, Record)>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step that this build has used or done.
    pub(super) fn note(&self, key: &Digest, record: &Record) {
        self.noted().push((key.clone(), record.clone()));
    }
}

impl Build<'_> {
    /// What others have made for the key.
    pub(super) fn offered(&self, key: &Digest) -> Option<Record> {
        let record = self.exchange.offered.get(key)?.clone();
        if let Some(layer) = &record.layer {
            self.keep(self.store.pin([layer.digest.clone(), layer.diff_id.clone()]));
        }
        Some(record)
    }

    /// Has every layer here; one that comes from elsewhere is unpacked, which shows that it is what it is said to be.
    pub(super) fn have(&self, layers: &[Layer]) -> Result<()> {
        for layer in layers.iter().filter(|layer| !self.store.has(&layer.blob.digest)) {
            let Some(number) = self.exchange.sources.get(&layer.blob.digest) else {
                return Err(Error::BlobMissing { digest: layer.blob.digest.clone(), role: "layer" });
            };
            let source = &self.options.steps_from[*number];
            let fetched = source.layer(&layer.blob).and_then(|()| {
                let (_, pin) = self.store.stack(std::slice::from_ref(layer))?;
                self.keep(pin);
                Ok(())
            });
            fetched.map_err(|error| Error::Source {
                what: format!("a layer of the cache {}", source.name()),
                reason: format!("{}; build without this --cache-from", one_line(&error)),
            })?;
        }
        Ok(())
    }

    /// What came from elsewhere and is here now can be used without that next time.
    pub(super) fn adopt_steps(&self) -> Result<()> {
        for (key, record) in &self.exchange.offered {
            let is_here = record.layer.as_ref().is_none_or(|layer| self.store.has(&layer.digest));
            if is_here && self.store.steps().get(key).is_none() {
                self.store.steps().put(key, record.clone())?;
            }
        }
        Ok(())
    }

    /// The steps of the image, or with `all` those of every stage that was built, by key.
    pub(super) fn steps_for(&self, all: bool, outcome: &Outcome) -> Vec<(Digest, Record)> {
        let noted = self.exchange.noted().clone();
        let own: HashSet<&Digest> = outcome.state.layers.iter().map(|layer| &layer.diff_id).collect();
        let made: HashSet<&Digest> = noted
            .iter()
            .filter_map(|(_, record)| record.layer.as_ref().map(|layer| &layer.diff_id))
            .filter(|diff_id| all || own.contains(diff_id))
            .collect();
        // A step has a second key where the quick one did: whoever builds the stage below anew needs that.
        let mut steps = self.store.steps().making(&made);
        steps.extend(self.exchange.offered.iter().map(|(key, record)| (key.clone(), record.clone())));
        steps.extend(noted.iter().cloned());
        steps.retain(|(_, record)| record.layer.as_ref().is_none_or(|layer| made.contains(&layer.diff_id)));
        // Stages run side by side: the same build gives the same list.
        steps.sort_by(|(one, _), (other, _)| one.cmp(other));
        steps.dedup_by(|(one, _), (other, _)| one == other);
        steps
    }

    /// Sends the steps to where they are wanted.
    pub(super) fn export_steps(&self, outcome: &Outcome) -> Result<(), BuildError> {
        for to in &self.options.steps_to {
            let (step, name) = (self.number(), to.target.name());
            self.tell(Event::Started { step, name: format!("exporting cache to {name}") });
            let put = self.image_of_steps(to.all, outcome).and_then(|digest| to.target.put(&digest));
            self.tell(if put.is_ok() { Event::Done { step, cached: false } } else { Event::Failed { step } });
            match put {
                Ok(()) => {}
                Err(error) if to.may_fail => {
                    self.tell(Event::Warning(format!("--cache-to {name}: {}", one_line(&error))));
                }
                Err(source) => return Err(BuildError::Export { name, source: Box::new(source) }),
            }
        }
        Ok(())
    }

    fn image_of_steps(&self, all: bool, outcome: &Outcome) -> Result<Digest> {
        let (config, layers) = image_of(self.store.platform(), &self.steps_for(all, outcome))?;
        self.have(&layers)?;
        let (digest, _) = self.keep_image(&config, &layers)?;
        Ok(digest)
    }
}
