//! OCI image layouts (image-spec, image-layout.md): `oci-layout`, `index.json`, `blobs/<algorithm>/<hex>`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;

use super::{DOCUMENT_MAX_BYTES, Found, archive, docker};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Descriptor, Document, Index};
use crate::reference::Reference;
use crate::store::{BlobWriter, Store};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

/// The images that `index.json` lists, with their names.
pub(super) fn images(store: &Store, found: &Found) -> Result<Vec<(Digest, Option<Reference>)>> {
    check_marker(found)?;
    let index = index(found)?;
    let mut images = Vec::new();
    for entry in &index.manifests {
        let reference = name_of(entry)
            .map(|name| name.parse())
            .transpose()
            .map_err(|error| found.refuse(format!("it names an image wrongly: {error}")))?;
        images.push((entry.digest.clone(), reference));
    }
    // Several platforms side by side without an index of their own: the one for this node is meant.
    let is_per_platform = images.len() > 1
        && images.iter().all(|(_, name)| *name == images[0].1)
        && index.manifests.iter().all(|entry| entry.platform.is_some());
    if is_per_platform {
        let chosen = store.platform().choose(&found.name, &index)?;
        images.retain(|(digest, _)| *digest == chosen.digest);
    }
    // Newer `docker save` writes both kinds into one archive; the tags of the other one count as well.
    for (config, reference) in docker::extra_names(found)? {
        if images.iter().any(|(_, name)| name.as_ref() == Some(&reference)) {
            continue;
        }
        let has_config = |(top, _): &&(Digest, _)| {
            store.manifest(top).is_ok_and(|manifest| manifest.config.digest == config)
        };
        if let Some((top, _)) = images.iter().find(has_config) {
            images.push((top.clone(), Some(reference)));
        }
    }
    Ok(images)
}

fn check_marker(found: &Found) -> Result<()> {
    let Some(bytes) = found.documents.get("oci-layout") else {
        return Err(found.refuse("it has `index.json` but no `oci-layout` file"));
    };
    let marker: Marker = serde_json::from_slice(bytes)
        .map_err(|source| Error::Json { what: format!("`oci-layout` of {}", found.name), source })?;
    if !marker.image_layout_version.starts_with("1.") {
        return Err(found.refuse(format!(
            "its layout version `{}` is unknown: expected 1.x",
            marker.image_layout_version
        )));
    }
    Ok(())
}

fn index(found: &Found) -> Result<Index> {
    let what = format!("`index.json` of {}", found.name);
    let bytes = found.documents.get("index.json").map(Vec::as_slice).unwrap_or_default();
    match Document::parse(&what, bytes, None)? {
        Document::Index(index) => Ok(index),
        Document::Manifest(_) => Err(Error::document(what, "it is a manifest: expected an index")),
    }
}

/// containerd and Docker give the whole name, others a name or only a tag, which names nothing by itself.
fn name_of(entry: &Descriptor) -> Option<&str> {
    let annotations = entry.annotations.as_ref()?;
    let whole = annotations.get("io.containerd.image.name");
    let short = annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']));
    whole.or(short).map(String::as_str)
}

/// Reads a layout's folder: of its blobs only those that its images need.
pub(super) fn read_folder(store: &Store, folder: &Path, name: &str) -> Result<Found> {
    let mut found = Found::new(store, name);
    for document in ["oci-layout", "index.json"] {
        let path = folder.join(document);
        match File::open(&path) {
            Ok(file) => {
                let mut bytes = Vec::new();
                file.take(DOCUMENT_MAX_BYTES)
                    .read_to_end(&mut bytes)
                    .map_err(|error| Error::io("read", &path, error))?;
                found.documents.insert(document.to_owned(), bytes);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(
                    found.refuse(format!("the folder has no `{document}`: expected an OCI image layout"))
                );
            }
            Err(error) => return Err(Error::io("open", &path, error)),
        }
    }
    let mut wanted: VecDeque<(Descriptor, bool, usize)> =
        index(&found)?.manifests.into_iter().map(|entry| (entry, true, 0)).collect();
    while let Some((entry, is_document, depth)) = wanted.pop_front() {
        // The same bound that choosing from the index has later; it also ends every loop.
        if depth > 4 {
            return Err(crate::store::index_too_deep(&entry.digest));
        }
        if !copy(store, folder, &entry, &mut found)? || !is_document {
            continue;
        }
        match store.document(&entry.digest, Some(&entry.media_type))? {
            // A layout may lack other platforms' content; what is needed is checked when it is listed.
            Document::Index(index) => {
                wanted.extend(index.manifests.into_iter().map(|entry| (entry, true, depth + 1)));
            }
            Document::Manifest(manifest) => {
                wanted.extend(
                    std::iter::once(manifest.config).chain(manifest.layers).map(|blob| (blob, false, depth)),
                );
            }
        }
    }
    Ok(found)
}

/// Copies one blob; `false` when the folder doesn't have it, or it was copied before.
fn copy(store: &Store, folder: &Path, entry: &Descriptor, found: &mut Found) -> Result<bool> {
    let digest = &entry.digest;
    let name = format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex());
    if found.blobs.contains_key(&name) {
        return Ok(false);
    }
    let path = folder.join(&name);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("open", &path, error)),
    };
    found.keep(store.pin([digest.clone()]));
    if !store.has(digest) {
        let writer = store.ingest(digest, Some(entry.size))?;
        archive::fill(writer, &mut file, &found.name).and_then(BlobWriter::commit)?;
    }
    found.blobs.insert(name, (digest.clone(), entry.size));
    Ok(true)
}
