//! Steps for other nodes, in the form of an image: its layers are what steps have made, and its configuration says for
//! which keys. Registries, mirrors and tools for images carry it like any other; nobody can run it.
//!
//! An image that was built may list its own steps the same way (`--cache-to type=inline`).

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cache::{LayerRecord, Record};
use super::image_config::ImageConfig;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Descriptor, Manifest};
use crate::platform::Platform;
use crate::store::Layer;

/// Where the configuration has the list.
const FIELD: &str = "rorqual.steps.v1";
/// A time as image configurations have it is shorter.
const TIME_MAX_BYTES: usize = 40;

/// Where other nodes' steps may be. Its methods wait, and are called from threads of the build.
pub trait StepSource: Send + Sync {
    /// What messages call it.
    fn name(&self) -> String;

    /// What is there; `None` where nothing is.
    fn documents(&self) -> Result<Option<StepDocuments>>;

    /// Has the store have a layer of it.
    fn layer(&self, blob: &Descriptor) -> Result<()>;
}

/// Where steps go to, for other nodes. Its methods wait, and are called from threads of the build.
pub trait StepTarget: Send + Sync {
    /// What messages call it.
    fn name(&self) -> String;

    /// Takes the image of steps with that manifest, which is in the store meanwhile.
    fn put(&self, manifest: &Digest) -> Result<()>;
}

/// What says which steps there are.
#[derive(Clone, Debug)]
pub struct StepDocuments {
    /// The image's manifest.
    pub manifest: Manifest,
    /// Its configuration, as it is.
    pub config: Vec<u8>,
}

/// One step in the configuration.
#[derive(Debug, Serialize, Deserialize)]
struct Listed {
    key: Digest,
    created: String,
    /// Of its layer; nothing where it changed no file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    diff_id: Option<Digest>,
}

/// Lists steps in a configuration.
pub(super) fn list(config: &mut ImageConfig, steps: &[(Digest, Record)]) -> Result<()> {
    let listed: Vec<Listed> = steps
        .iter()
        .map(|(key, record)| Listed {
            key: key.clone(),
            created: record.created.clone(),
            diff_id: record.layer.as_ref().map(|layer| layer.diff_id.clone()),
        })
        .collect();
    let json = serde_json::to_value(listed)
        .map_err(|source| Error::Json { what: "the list of steps".to_owned(), source })?;
    config.other.insert(FIELD.to_owned(), json);
    Ok(())
}

/// Takes the list out of the configuration of an image that is built on: it is about that image.
pub(super) fn forget(config: &mut ImageConfig) {
    config.other.remove(FIELD);
}

/// The configuration of an image of steps, and its layers, each once.
pub(super) fn image_of(platform: &Platform, steps: &[(Digest, Record)]) -> Result<(ImageConfig, Vec<Layer>)> {
    let mut layers: Vec<Layer> = Vec::new();
    for layer in steps.iter().filter_map(|(_, record)| record.layer.as_ref()) {
        if layers.iter().all(|known| known.diff_id != layer.diff_id) {
            layers.push(layer.clone().into());
        }
    }
    let mut config = ImageConfig::scratch(platform);
    config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    list(&mut config, steps)?;
    Ok((config, layers))
}

/// The steps that an image lists; none where it is an image like others.
pub(super) fn steps_of(name: &str, documents: &StepDocuments) -> Result<Vec<(Digest, Record)>> {
    let json = |source| Error::Json { what: format!("the configuration of `{name}`"), source };
    let config: Value = serde_json::from_slice(&documents.config).map_err(json)?;
    let Some(listed) = config.get(FIELD) else { return Ok(Vec::new()) };
    let listed = Vec::<Listed>::deserialize(listed).map_err(json)?;
    let diff_ids = Vec::<Digest>::deserialize(&config["rootfs"]["diff_ids"]).map_err(json)?;
    if diff_ids.len() != documents.manifest.layers.len() {
        return Err(Error::document(
            format!("`{name}`"),
            format!("{} diff-ids are for {} layers", diff_ids.len(), documents.manifest.layers.len()),
        ));
    }
    let layers: HashMap<&Digest, &Descriptor> = diff_ids.iter().zip(&documents.manifest.layers).collect();
    let mut steps = Vec::with_capacity(listed.len());
    for Listed { key, created, diff_id } in listed {
        if created.len() > TIME_MAX_BYTES || !created.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::document(format!("`{name}`"), "a step's time is no time".to_owned()));
        }
        let layer = match diff_id {
            None => None,
            // A step whose layer is not part of the image is of no use.
            Some(diff_id) => match layers.get(&diff_id) {
                None => continue,
                Some(blob) => Some(LayerRecord {
                    digest: blob.digest.clone(),
                    size_bytes: blob.size,
                    media_type: blob.media_type.clone(),
                    diff_id,
                }),
            },
        };
        steps.push((key, Record { created, layer }));
    }
    Ok(steps)
}

impl From<LayerRecord> for Layer {
    fn from(record: LayerRecord) -> Layer {
        Layer {
            blob: Descriptor {
                media_type: record.media_type,
                digest: record.digest,
                size: record.size_bytes,
                platform: None,
                annotations: None,
            },
            diff_id: record.diff_id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(layer: Option<&str>) -> Record {
        let layer = layer.map(|name| LayerRecord {
            digest: Digest::of(format!("packed {name}").as_bytes()),
            size_bytes: 7,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            diff_id: Digest::of(name.as_bytes()),
        });
        Record { created: "2025-01-01T00:00:00Z".into(), layer }
    }

    fn documents(config: &ImageConfig, layers: Vec<Layer>) -> StepDocuments {
        let blob = Descriptor {
            media_type: String::new(),
            digest: Digest::of(b""),
            size: 0,
            platform: None,
            annotations: None,
        };
        let layers = layers.into_iter().map(|layer| layer.blob).collect();
        let manifest =
            Manifest { schema_version: 2, media_type: None, config: blob, layers, annotations: None };
        StepDocuments { manifest, config: serde_json::to_vec(config).unwrap() }
    }

    #[test]
    fn steps_come_out_as_they_went_in() {
        let key = |name: &str| Digest::of(name.as_bytes());
        let steps = [
            (key("one"), record(Some("a"))),
            (key("two"), record(None)),
            (key("three"), record(Some("a"))),
            (key("four"), record(Some("b"))),
        ];
        let (mut config, layers) = image_of(&Platform::host(), &steps).unwrap();
        assert_eq!(layers.len(), 2, "a layer is there once");
        assert_eq!(steps_of("x", &documents(&config, layers.clone())).unwrap(), steps);
        // One layer less than the configuration says.
        assert!(steps_of("x", &documents(&config, layers[..1].to_vec())).is_err());
        forget(&mut config);
        assert_eq!(steps_of("x", &documents(&config, layers)).unwrap(), []);
    }

    #[test]
    fn a_list_that_says_nonsense_is_refused() {
        let (mut config, layers) = image_of(&Platform::host(), &[(Digest::of(b"k"), record(None))]).unwrap();
        config.other.insert(FIELD.into(), serde_json::json!([{ "key": "x", "created": "now" }]));
        assert!(steps_of("x", &documents(&config, layers.clone())).is_err());
        let time = "9".repeat(100);
        let key = Digest::of(b"k").to_string();
        config.other.insert(FIELD.into(), serde_json::json!([{ "key": key, "created": time }]));
        assert!(steps_of("x", &documents(&config, layers)).is_err());
    }
}
