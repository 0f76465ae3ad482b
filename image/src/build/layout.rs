//! Steps in a folder of the client: an OCI image layout, as `--cache-to type=local` writes it.

use std::sync::Arc;

use super::exchange::{StepDocuments, StepSource};
use super::tree::files::Files;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{CONFIG_MAX_BYTES, Descriptor, Document, Index, MANIFEST_MAX_BYTES};
use crate::store::Store;

/// A layout whose last image is one of steps.
pub struct LayoutSteps {
    name: String,
    files: Arc<dyn Files>,
    store: Store,
}

impl LayoutSteps {
    /// Reads `files`, which messages call `name`; layers go into `store`.
    pub fn new(name: String, files: Arc<dyn Files>, store: Store) -> Self {
        LayoutSteps { name, files, store }
    }

    fn read(&self, path: &str, limit_bytes: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.files.read(&[path.to_owned()], &mut |_, piece| {
            if (bytes.len() + piece.len()) as u64 > limit_bytes {
                let reason = format!("it has more than {limit_bytes} bytes");
                return Err(Error::document(format!("`{path}` of {}", self.name), reason));
            }
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    fn document(&self, digest: &Digest, limit_bytes: u64) -> Result<Vec<u8>> {
        let path = path_of(digest);
        let bytes = self.read(&path, limit_bytes)?;
        let actual = Digest::of_with(digest.algorithm(), &bytes);
        if actual != *digest {
            let what = format!("`{path}` of {}", self.name);
            return Err(Error::DigestMismatch { what, expected: digest.clone(), actual });
        }
        Ok(bytes)
    }
}

fn path_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

impl StepSource for LayoutSteps {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn documents(&self) -> Result<Option<StepDocuments>> {
        let top = self.files.list(&[String::new()])?;
        if top.iter().flatten().all(|entry| entry.name != "index.json") {
            return Ok(None);
        }
        let json = |source| Error::Json { what: format!("`index.json` of {}", self.name), source };
        let index: Index =
            serde_json::from_slice(&self.read("index.json", MANIFEST_MAX_BYTES)?).map_err(json)?;
        let Some(entry) = index.manifests.last() else { return Ok(None) };
        let bytes = self.document(&entry.digest, MANIFEST_MAX_BYTES)?;
        let what = format!("manifest {} of {}", entry.digest, self.name);
        match Document::parse(&what, &bytes, Some(&entry.media_type))? {
            Document::Manifest(manifest) => {
                let config = self.document(&manifest.config.digest, CONFIG_MAX_BYTES)?;
                Ok(Some(StepDocuments { manifest, config }))
            }
            Document::Index(_) => Err(Error::document(what, "it is an index, expected an image".to_owned())),
        }
    }

    fn layer(&self, blob: &Descriptor) -> Result<()> {
        let mut writer = self.store.ingest(&blob.digest, Some(blob.size))?;
        self.files.read(&[path_of(&blob.digest)], &mut |_, piece| writer.write(piece))?;
        writer.commit().map(drop)
    }
}
