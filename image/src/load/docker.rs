//! `docker save` archives: `manifest.json` lists configuration, layers and tags of every image.
//!
//! Such an archive has no OCI manifest, so one is made from what it lists: always the same for the same
//! image, so that an image has one digest on every node that loads it.

use serde::Deserialize;

use super::Found;
use crate::config;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{CONFIG_MAX_BYTES, Descriptor, Manifest, OCI_CONFIG, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::Store;

/// One image in `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// The images that `manifest.json` lists, once for every tag.
pub(super) fn images(store: &Store, found: &Found) -> Result<Vec<(Digest, Option<Reference>)>> {
    let mut images = Vec::new();
    for item in items(found)? {
        let digest = put_manifest(store, found, &item)?;
        let tags = tags(found, &item)?;
        if tags.is_empty() {
            images.push((digest, None));
        } else {
            images.extend(tags.into_iter().map(|tag| (digest.clone(), Some(tag))));
        }
    }
    Ok(images)
}

/// For an archive of both kinds: the tags, each with the digest of its image's configuration.
pub(super) fn extra_names(found: &Found) -> Result<Vec<(Digest, Reference)>> {
    if !found.documents.contains_key("manifest.json") {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for item in items(found)? {
        let Some((config, _)) = found.blob(&item.config) else { continue };
        for tag in tags(found, &item)? {
            names.push((config.clone(), tag));
        }
    }
    Ok(names)
}

fn items(found: &Found) -> Result<Vec<Item>> {
    let bytes = found.documents.get("manifest.json").map(Vec::as_slice).unwrap_or_default();
    serde_json::from_slice(bytes)
        .map_err(|source| Error::Json { what: format!("`manifest.json` of {}", found.name), source })
}

fn tags(found: &Found, item: &Item) -> Result<Vec<Reference>> {
    let parse = |tag: &String| {
        tag.parse().map_err(|error| found.refuse(format!("it names an image wrongly: {error}")))
    };
    item.repo_tags.iter().flatten().map(parse).collect()
}

/// Makes and keeps the manifest of `item`.
fn put_manifest(store: &Store, found: &Found, item: &Item) -> Result<Digest> {
    let missing = |name: &str| found.refuse(format!("`{name}`, which its `manifest.json` lists, is missing"));
    let (config_digest, config_size) = found.blob(&item.config).ok_or_else(|| missing(&item.config))?;
    check_name(found, &item.config, config_digest)?;
    if *config_size > CONFIG_MAX_BYTES {
        return Err(found
            .refuse(format!("its configuration `{}` is larger than {CONFIG_MAX_BYTES} bytes", item.config)));
    }
    let bytes = store.read(config_digest, CONFIG_MAX_BYTES)?;
    let config = config::parse(config_digest, &bytes)?;
    let diff_ids = config::diff_ids(config_digest, &config)?;
    let names: Vec<&String> = item.layers.iter().flatten().collect();
    if names.len() != diff_ids.len() {
        return Err(found.refuse(format!(
            "its `manifest.json` lists {} layers, the configuration {}",
            names.len(),
            diff_ids.len()
        )));
    }
    let mut layers = Vec::with_capacity(names.len());
    for (name, diff_id) in names.into_iter().zip(&diff_ids) {
        let (digest, size) = found.blob(name).ok_or_else(|| missing(name))?;
        layers.push(layer(store, name, digest, *size, diff_id)?);
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        config: Descriptor {
            media_type: OCI_CONFIG.to_owned(),
            digest: config_digest.clone(),
            size: *config_size,
            platform: None,
            annotations: None,
        },
        layers,
        annotations: None,
    };
    let bytes = serde_json::to_vec(&manifest)
        .map_err(|source| Error::Json { what: format!("the manifest for {}", found.name), source })?;
    let digest = Digest::of(&bytes);
    found.keep(store.pin([digest.clone()]));
    let mut writer = store.ingest(&digest, Some(bytes.len() as u64))?;
    writer.write(&bytes)?;
    writer.commit()
}

/// Names that are digests must be right: `<hex>.json`, `sha256:<hex>`, `blobs/sha256/<hex>`.
fn check_name(found: &Found, name: &str, actual: &Digest) -> Result<()> {
    let file = name.rsplit('/').next().unwrap_or(name);
    let hex = file.strip_suffix(".json").unwrap_or(file);
    let hex = hex.strip_prefix("sha256:").unwrap_or(hex);
    match format!("sha256:{hex}").parse::<Digest>() {
        Ok(expected) if expected != *actual => Err(Error::DigestMismatch {
            what: format!("file `{name}` of {}", found.name),
            expected,
            actual: actual.clone(),
        }),
        _ => Ok(()),
    }
}

/// A layer of such an archive is nearly always a plain tar, and then its digest is its diff-id.
fn layer(store: &Store, name: &str, digest: &Digest, size: u64, diff_id: &Digest) -> Result<Descriptor> {
    let magic = store.head(digest, 4)?;
    let media_type = match magic.as_slice() {
        [0x1f, 0x8b, ..] => "application/vnd.oci.image.layer.v1.tar+gzip",
        [0x28, 0xb5, 0x2f, 0xfd] => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => "application/vnd.oci.image.layer.v1.tar",
    };
    if media_type.ends_with(".tar") && diff_id.algorithm() == digest.algorithm() && digest != diff_id {
        return Err(Error::DigestMismatch {
            what: format!("layer `{name}`"),
            expected: diff_id.clone(),
            actual: digest.clone(),
        });
    }
    Ok(Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.clone(),
        size,
        platform: None,
        annotations: None,
    })
}
