//! The end of a build: configuration and manifest, and the names.

use std::collections::BTreeMap;

use super::Build;
use super::stage::Outcome;
use super::step::Key;
use crate::build::cache::Record;
use crate::build::error::BuildError;
use crate::build::exchange;
use crate::build::host::{Built, Event};
use crate::build::image_config::ImageConfig;
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_MANIFEST};
use crate::store::Layer;

impl Build<'_> {
    /// Puts the image together and gives it its names.
    pub(super) fn finish(&self, outcome: &Outcome) -> Result<Built, BuildError> {
        let step = self.number();
        self.tell(Event::Started { step, name: "exporting to image".to_owned() });
        let built = self.export(outcome);
        self.tell(if built.is_ok() { Event::Done { step, cached: false } } else { Event::Failed { step } });
        Ok(built?)
    }

    fn export(&self, outcome: &Outcome) -> Result<Built, Error> {
        let mut config = outcome.state.config.clone();
        config.config.labels.extend(self.options.labels.clone());
        config.rootfs.diff_ids = outcome.state.layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        self.date(&mut config)?;
        if self.options.steps_inline {
            exchange::list(&mut config, &self.steps_for(false, outcome))?;
        }
        self.have(&outcome.state.layers)?;
        self.adopt_steps()?;
        let (digest, config_digest) = self.keep_image(&config, &outcome.state.layers)?;
        if self.options.tags.is_empty() {
            self.store.enlist_any(&digest, None)?;
        }
        for tag in &self.options.tags {
            self.store.enlist_any(&digest, Some(tag.clone()))?;
        }
        Ok(Built { digest, config: config_digest })
    }

    /// Stores configuration and manifest, and answers with their digests: the manifest's first.
    pub(super) fn keep_image(
        &self,
        config: &ImageConfig,
        layers: &[Layer],
    ) -> Result<(Digest, Digest), Error> {
        let json = |source| Error::Json { what: "the image's configuration".to_owned(), source };
        let bytes = serde_json::to_vec(config).map_err(json)?;
        let (config_digest, pin) = self.store.keep_document(&bytes)?;
        self.keep(pin);
        let manifest = manifest(&config_digest, bytes.len() as u64, layers);
        let bytes = serde_json::to_vec(&manifest).map_err(json)?;
        let (digest, pin) = self.store.keep_document(&bytes)?;
        self.keep(pin);
        Ok((digest, config_digest))
    }

    /// The image has the time at which just this image was first built: built again it is the same, bit for bit.
    fn date(&self, config: &mut ImageConfig) -> Result<(), Error> {
        config.created = None;
        let mut key = Key::new("image");
        key.add_value(config).add_value(&self.latest_s);
        let key = key.finish();
        let known = self.store.steps().get(&key).or_else(|| self.offered(&key));
        let record = match known.filter(|_| !self.options.no_cache || self.latest_s.is_some()) {
            Some(record) => record,
            None => {
                let record = Record { created: self.now(), layer: None };
                self.store.steps().put(&key, record.clone())?;
                record
            }
        };
        self.exchange.note(&key, &record);
        let created = record.created;
        for entry in config.history.iter_mut().filter(|entry| entry.created.is_none()) {
            entry.created = Some(created.clone());
        }
        config.created = Some(created);
        Ok(())
    }
}

fn manifest(config: &Digest, config_bytes: u64, layers: &[Layer]) -> Manifest {
    let config = Descriptor {
        media_type: OCI_CONFIG.to_owned(),
        digest: config.clone(),
        size: config_bytes,
        platform: None,
        annotations: None,
    };
    let layers = layers.iter().map(|layer| Descriptor {
        media_type: oci_type(&layer.blob.media_type),
        platform: None,
        annotations: None,
        ..layer.blob.clone()
    });
    Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        config,
        layers: layers.collect(),
        annotations: None::<BTreeMap<String, String>>,
    }
}

/// One manifest speaks of one kind of layers: Docker's names become OCI's.
fn oci_type(media_type: &str) -> String {
    match media_type {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar" => "application/vnd.oci.image.layer.v1.tar",
        other => other,
    }
    .to_owned()
}
