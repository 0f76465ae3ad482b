//! An image of one layer, from an archive of a whole file system.

use std::io::{BufReader, Read};

use serde_json::{Map, json};

use super::layer::{Compression, NewLayer};
use super::{Instruction, change};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::manifest::Descriptor;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::Store;
use crate::unpack::decoder;

/// What an imported image says beside its files.
#[derive(Clone, Debug, Default)]
pub struct Import {
    /// Its name; without one it is found by its digest.
    pub reference: Option<Reference>,
    /// For the history.
    pub message: String,
    /// When, RFC 3339.
    pub created: String,
    /// What it runs on; the node's own where it is not given.
    pub platform: Option<Platform>,
    /// What the configuration is to say.
    pub changes: Vec<Instruction>,
}

impl Store {
    /// Makes an image of a tar archive, which may be compressed with gzip or zstd and stays so. `name` is for
    /// messages. The archive is unpacked before the image is listed, so one that can't be is refused.
    pub fn import(&self, archive: impl Read, name: &str, import: Import) -> Result<Digest> {
        let layer = self.import_layer(archive, name)?;
        let platform = import.platform.clone().unwrap_or_else(|| self.platform().clone());
        self.platform().check(&layer.descriptor.digest, &platform)?;
        let mut config = Map::new();
        change::apply(&import.changes, &mut config)
            .map_err(|error| Error::document(format!("import of {name}"), error.to_string()))?;
        let mut root = json!({
            "created": import.created,
            "architecture": platform.architecture,
            "os": platform.os,
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": [layer.diff_id] },
            "history": [{
                "created": import.created,
                "created_by": format!("import of {name}"),
                "comment": import.message,
            }],
        });
        if let Some(variant) = &platform.variant {
            root["variant"] = json!(variant);
        }
        let digest = self.make_image(&[], std::slice::from_ref(&layer), &root, None)?;
        if let Err(error) = self.prepare(&digest) {
            // It must not stay in the list; that it can't be unpacked is what the user has to know.
            if let Err(left) = self.remove(&digest, &std::collections::HashSet::new()) {
                tracing::warn!(%digest, error = %crate::error::one_line(&left), "an import that failed can't be removed");
            }
            return Err(error);
        }
        if let Some(reference) = import.reference {
            self.tag(&digest, reference)?;
        }
        Ok(digest)
    }

    /// The archive as a layer's blob: compressed as it came, or by us.
    fn import_layer(&self, archive: impl Read, name: &str) -> Result<NewLayer> {
        let broken = |source| Error::ArchiveRead { name: name.to_owned(), source };
        let mut archive = BufReader::with_capacity(128 << 10, archive);
        let magic = std::io::BufRead::fill_buf(&mut archive).map_err(broken)?;
        let is_gzip = magic.starts_with(&[0x1f, 0x8b]);
        let is_zstd = magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
        if magic.is_empty() {
            return Err(Error::Archive { name: name.to_owned(), reason: "it is empty".to_owned() });
        }
        if !is_gzip && !is_zstd {
            let copied = self.make_layer(Compression::Gzip, |out| {
                copy(&mut archive, name, |bytes| out.write_all(bytes).map_err(|error| taken(self, error)))
            });
            return copied.map(|(layer, ())| layer);
        }
        let mut writer = self.ingest_unnamed()?;
        copy(&mut archive, name, |bytes| writer.write(bytes))?;
        let size = writer.written_bytes();
        let (digest, pin) = writer.commit_pinned()?;
        let blob = self.blob(&digest)?;
        let blob = blob.ok_or_else(|| Error::BlobMissing { digest: digest.clone(), role: "layer" })?;
        let (mut hasher, mut size_bytes) = (Hasher::new(Algorithm::Sha256), 0);
        let content = decoder(BufReader::with_capacity(128 << 10, blob.file)).map_err(broken)?;
        copy(content, name, |bytes| {
            hasher.update(bytes);
            size_bytes += bytes.len() as u64;
            Ok(())
        })?;
        let media_type =
            format!("application/vnd.oci.image.layer.v1.tar+{}", if is_gzip { "gzip" } else { "zstd" });
        let descriptor = Descriptor { media_type, digest, size, platform: None, annotations: None };
        Ok(NewLayer { descriptor, diff_id: hasher.finish(), size_bytes, pin })
    }
}

fn copy(mut from: impl Read, name: &str, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0u8; 128 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => take(&buffer[..length])?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::ArchiveRead { name: name.to_owned(), source }),
        }
    }
}

fn taken(store: &Store, error: std::io::Error) -> Error {
    crate::error::own(error).unwrap_or_else(|error| Error::io("write a layer to", store.root(), error))
}
