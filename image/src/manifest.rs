//! Manifests and indexes: read, and checked before anything in them is believed.
//!
//! What a document is gets decided by its content; the `mediaType` that it, its descriptor or the
//! registry gives must agree (CVE-2021-41190). Start at [`Document::parse`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::platform::Platform;

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker image manifest, version 2 schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The largest manifest or index that is read, as registries have it.
pub const MANIFEST_MAX_BYTES: u64 = 4 << 20;
/// The largest image configuration that is read.
pub const CONFIG_MAX_BYTES: u64 = 8 << 20;
/// Overlayfs stacks 500 layers (`OVL_MAX_STACK`). One may be added for folders without entries, and one by a build for
/// what it mounts.
const LAYERS_MAX: usize = 498;
/// More entries than any real index has.
const INDEX_ENTRIES_MAX: usize = 1024;

/// Points to a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// In an index: what the manifest is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free text; in an image layout it names the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// An image manifest: the configuration and the layers, lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`OCI_MANIFEST`], [`DOCKER_MANIFEST`] or absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Manifest {
    /// The media type to serve it as.
    pub fn media_type(&self) -> &str {
        self.media_type.as_deref().unwrap_or(OCI_MANIFEST)
    }
}

/// An index: manifests for several platforms, or the entry point of an image layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// [`OCI_INDEX`], [`DOCKER_LIST`] or absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
}

/// What stands at the top of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several, one per platform.
    Index(Index),
}

/// The fields that tell the kinds of documents apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a manifest or an index. `what` names it in errors; `announced` is the media type that the
    /// descriptor or the registry gave.
    pub fn parse(what: &str, bytes: &[u8], announced: Option<&str>) -> Result<Document> {
        let json = |source| Error::Json { what: what.to_owned(), source };
        let shape: Shape = serde_json::from_slice(bytes).map_err(json)?;
        if shape.fs_layers.is_some() || shape.schema_version == Some(1) {
            return Err(Error::document(
                what,
                "it is a Docker schema 1 manifest, which is obsolete: push the image again",
            ));
        }
        if shape.schema_version != Some(2) {
            return Err(Error::document(what, "`schemaVersion` must be 2"));
        }
        let is_index = match (shape.manifests.is_some(), shape.layers.is_some() || shape.config.is_some()) {
            (true, false) => true,
            (false, true) => false,
            (true, true) => {
                return Err(Error::document(
                    what,
                    "it has both `manifests` and `layers`: it must be one or the other",
                ));
            }
            (false, false) => return Err(Error::document(what, "it has neither `manifests` nor `layers`")),
        };
        for (media_type, whose) in
            [(shape.media_type.as_deref(), "its `mediaType`"), (announced, "the type announced for it")]
        {
            check_kind(what, media_type, whose, is_index)?;
        }
        if is_index {
            let index: Index = serde_json::from_slice(bytes).map_err(json)?;
            if index.manifests.len() > INDEX_ENTRIES_MAX {
                return Err(Error::document(
                    what,
                    format!("it lists more than {INDEX_ENTRIES_MAX} manifests"),
                ));
            }
            return Ok(Document::Index(index));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(json)?;
        check_manifest(what, &manifest)?;
        Ok(Document::Manifest(manifest))
    }
}

fn check_kind(what: &str, media_type: Option<&str>, whose: &str, is_index: bool) -> Result<()> {
    let Some(media_type) = media_type else { return Ok(()) };
    let fits = match media_type {
        OCI_INDEX | DOCKER_LIST => is_index,
        OCI_MANIFEST | DOCKER_MANIFEST => !is_index,
        // Registries and static file servers that don't know better.
        "application/json" | "application/octet-stream" | "text/plain" | "" => true,
        _ => {
            return Err(Error::document(
                what,
                format!(
                    "{whose} `{media_type}` is unknown: expected an OCI or Docker image manifest or index"
                ),
            ));
        }
    };
    if fits {
        return Ok(());
    }
    let kind = if is_index { "an index" } else { "a manifest" };
    Err(Error::document(what, format!("its content is {kind}, but {whose} is `{media_type}`")))
}

fn check_manifest(what: &str, manifest: &Manifest) -> Result<()> {
    if !matches!(manifest.config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
        return Err(Error::document(
            what,
            format!(
                "its `config` is of type `{}`, so it is not a container image",
                manifest.config.media_type
            ),
        ));
    }
    if manifest.config.size > CONFIG_MAX_BYTES {
        return Err(Error::document(
            what,
            format!("its configuration is larger than {CONFIG_MAX_BYTES} bytes"),
        ));
    }
    if manifest.layers.len() > LAYERS_MAX {
        return Err(Error::document(
            what,
            format!("it has {} layers, at most {LAYERS_MAX} can be stacked", manifest.layers.len()),
        ));
    }
    for layer in &manifest.layers {
        layer_kind(what, &layer.media_type)?;
    }
    Ok(())
}

/// Refuses what is not a tar layer. The compression is told by the content, not by the name, as every
/// other engine does.
fn layer_kind(what: &str, media_type: &str) -> Result<()> {
    let known = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let base = media_type.strip_suffix("+gzip").or_else(|| media_type.strip_suffix("+zstd"));
    let base = base.or_else(|| media_type.strip_suffix(".gzip")).or_else(|| media_type.strip_suffix(".zstd"));
    if known.contains(&base.unwrap_or(media_type)) {
        return Ok(());
    }
    Err(Error::document(
        what,
        format!("a layer is of type `{media_type}`: expected a tar, tar+gzip or tar+zstd layer"),
    ))
}
