//! New images on this node: of a container's changes ([`Store::commit`]), of a file system in an archive
//! ([`Store::import`]), or of any layers and configuration ([`Store::make_image`]).
//!
//! A layer is written once, to its blob, and measured on the way; nothing is listed before all of an image
//! is on disk, and what belongs to no image goes with the next sweep.

mod change;
mod commit;
mod gzip;
mod import;
mod layer;

pub use self::change::{Instruction, InstructionError};
pub use self::commit::Commit;
pub use self::import::Import;
pub use self::layer::{Compression, NewLayer};

use serde_json::Value;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::Store;

/// Docker's names of layers, and the OCI ones that mean the same. An OCI manifest has the latter only.
const LAYER_TYPES: [(&str, &str); 3] = [
    ("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
    ("application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
    ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar"),
];

impl Store {
    /// Lists an image of `below` (layers that are here, lowest first), then `new` ones, with `config`, whose
    /// `rootfs.diff_ids` have to be of the same layers. Answers with the manifest's digest.
    pub fn make_image(
        &self,
        below: &[Descriptor],
        new: &[NewLayer],
        config: &Value,
        reference: Option<Reference>,
    ) -> Result<Digest> {
        let json = |source| Error::Json { what: "a new image's configuration".to_owned(), source };
        let mut pin = self.pin(below.iter().map(|layer| layer.digest.clone()));
        let config_bytes = serde_json::to_vec(config).map_err(json)?;
        let (config, config_pin) = self.put(&config_bytes, OCI_CONFIG)?;
        pin.join(config_pin);
        let layers = below.iter().map(as_oci).chain(new.iter().map(|layer| layer.descriptor.clone()));
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.to_owned()),
            config,
            layers: layers.collect(),
            annotations: None,
        };
        let manifest = serde_json::to_vec(&manifest).map_err(json)?;
        let (manifest, manifest_pin) = self.put(&manifest, OCI_MANIFEST)?;
        pin.join(manifest_pin);
        let digest = self.enlist(&manifest.digest, reference)?;
        drop(pin);
        Ok(digest)
    }
}

fn as_oci(layer: &Descriptor) -> Descriptor {
    let known = LAYER_TYPES.iter().find(|(docker, _)| *docker == layer.media_type);
    let media_type = known.map_or_else(|| layer.media_type.clone(), |(_, oci)| (*oci).to_owned());
    Descriptor { media_type, ..layer.clone() }
}
