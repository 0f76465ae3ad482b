//! Writes images into an archive: an OCI image layout, and `docker save`'s `manifest.json` beside it, as Docker
//! writes both since version 25.
//!
//! ```text
//! blobs/sha256/<hex>    configuration, layers, manifests: as they are in the store, nothing compressed anew
//! index.json            the images, with their names as annotations
//! manifest.json         the same for `docker load`            (not in an archive of kind OCI)
//! oci-layout
//! ```
//!
//! Start at [`Store::save`]. The same images give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use serde_json::json;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Descriptor, Index, Manifest, OCI_INDEX};
use crate::reference::Reference;
use crate::store::{Pin, Store};

/// What an archive is to hold beside the layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SaveFormat {
    /// An OCI layout and `docker save`'s `manifest.json`.
    #[default]
    Docker,
    /// An OCI layout and nothing else.
    Oci,
}

/// One image to be saved, with the names that it is to have in the archive.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Its manifest.
    pub digest: Digest,
    /// Its names; none for one that was named by its digest.
    pub names: Vec<Reference>,
}

struct Image {
    descriptor: Descriptor,
    manifest: Manifest,
    names: Vec<Reference>,
}

impl Store {
    /// Writes the images as one archive; what several of them have is in it once. They stay here while they
    /// are written, whoever removes them meanwhile.
    pub fn save(&self, images: &[Saved], format: SaveFormat, out: impl Write) -> Result<()> {
        let mut pin = self.pin([]);
        let images = images.iter().map(|image| self.gather(image, &mut pin)).collect::<Result<Vec<_>>>()?;
        let mut blobs = BTreeSet::new();
        for image in &images {
            blobs.insert(&image.descriptor.digest);
            blobs.insert(&image.manifest.config.digest);
            blobs.extend(image.manifest.layers.iter().map(|layer| &layer.digest));
        }
        let mut archive = Archive { out };
        archive.folder("blobs/")?;
        let algorithms: BTreeSet<&str> = blobs.iter().map(|digest| digest.algorithm().as_str()).collect();
        for algorithm in algorithms {
            archive.folder(&format!("blobs/{algorithm}/"))?;
        }
        for digest in blobs {
            let blob = self.blob(digest)?;
            let blob = blob.ok_or_else(|| Error::BlobMissing { digest: digest.clone(), role: "blob" })?;
            archive.file(&blob_name(digest), blob.file, blob.size_bytes)?;
        }
        archive.document("index.json", &index(&images))?;
        if format == SaveFormat::Docker {
            archive.document("manifest.json", &docker_manifest(&images))?;
        }
        archive.document("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }))?;
        archive.finish()
    }

    fn gather(&self, image: &Saved, pin: &mut Pin) -> Result<Image> {
        pin.join(self.pin([image.digest.clone()]));
        let manifest = self.manifest(&image.digest)?;
        let needed = std::iter::once(&manifest.config).chain(&manifest.layers);
        pin.join(self.pin(needed.map(|blob| blob.digest.clone())));
        // Refused here if something is missing, before the archive is begun.
        self.examine(&image.digest)?;
        let blob = self.blob(&image.digest)?;
        let blob =
            blob.ok_or_else(|| Error::BlobMissing { digest: image.digest.clone(), role: "manifest" })?;
        let descriptor = Descriptor {
            media_type: manifest.media_type().to_owned(),
            digest: image.digest.clone(),
            size: blob.size_bytes,
            platform: None,
            annotations: None,
        };
        Ok(Image { descriptor, manifest, names: image.names.clone() })
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// An entry for each name: tools that look for one look at the annotation of its entry.
fn index(images: &[Image]) -> Index {
    let mut manifests = Vec::new();
    for Image { descriptor, names, .. } in images {
        for name in names {
            let mut annotations = BTreeMap::from([("io.containerd.image.name".to_owned(), name.to_string())]);
            if let Some(tag) = name.tag() {
                annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag.to_owned());
            }
            manifests.push(Descriptor { annotations: Some(annotations), ..descriptor.clone() });
        }
        if names.is_empty() {
            manifests.push(descriptor.clone());
        }
    }
    Index { schema_version: 2, media_type: Some(OCI_INDEX.to_owned()), manifests }
}

fn docker_manifest(images: &[Image]) -> serde_json::Value {
    let item = |image: &Image| {
        let tags: Vec<String> =
            image.names.iter().filter(|name| name.tag().is_some()).map(Reference::familiar).collect();
        let layers: Vec<String> =
            image.manifest.layers.iter().map(|layer| blob_name(&layer.digest)).collect();
        json!({
            "Config": blob_name(&image.manifest.config.digest),
            "RepoTags": if tags.is_empty() { json!(null) } else { json!(tags) },
            "Layers": layers,
        })
    };
    images.iter().map(item).collect()
}

struct Archive<W> {
    out: W,
}

impl<W: Write> Archive<W> {
    fn folder(&mut self, name: &str) -> Result<()> {
        self.header(name, b'5', 0)
    }

    fn document(&mut self, name: &str, value: &impl serde::Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(value)
            .map_err(|source| Error::Json { what: format!("`{name}` of the archive"), source })?;
        self.file(name, bytes.as_slice(), bytes.len() as u64)
    }

    fn file(&mut self, name: &str, content: impl Read, size: u64) -> Result<()> {
        self.header(name, b'0', size)?;
        let copied = io::copy(&mut content.take(size), &mut self.out).map_err(gone)?;
        if copied != size {
            let what = format!("`{name}`");
            return Err(Error::SizeMismatch { what, expected_bytes: size, actual_bytes: copied });
        }
        let padding = usize::try_from(size.wrapping_neg() % 512).unwrap_or(0);
        self.out.write_all(&[0u8; 512][..padding]).map_err(gone)
    }

    /// Names of blobs are at most 140 characters (SHA-512), which ustar splits at a slash.
    fn header(&mut self, name: &str, kind: u8, size: u64) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).map_err(gone)?;
        header.as_old_mut().linkflag[0] = kind;
        header.set_mode(if kind == b'5' { 0o755 } else { 0o444 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.out.write_all(header.as_bytes()).map_err(gone)
    }

    fn finish(mut self) -> Result<()> {
        self.out.write_all(&[0; 1024]).and_then(|()| self.out.flush()).map_err(gone)
    }
}

/// Blobs are plain files in the store: what fails is whoever takes the archive.
fn gone(source: io::Error) -> Error {
    Error::Taken { source }
}
