//! Reads an image archive (tar, tar.gz, tar.zst) into the store.

use std::io::{self, BufRead, BufReader, Read};

use super::{DOCUMENT_MAX_BYTES, FILES_MAX, Found};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::store::{BlobWriter, Store};
use crate::unpack::{Archive, Kind, Limits, UnpackError, decoder};

const DOCUMENTS: [&str; 3] = ["index.json", "manifest.json", "oci-layout"];

pub(super) fn read(store: &Store, archive: impl Read, name: &str) -> Result<Found> {
    let mut found = Found::new(store, name);
    let decoded = decoder(BufReader::with_capacity(128 << 10, archive))
        .map_err(|source| Error::ArchiveRead { name: name.to_owned(), source })?;
    // The reader for layers: strict, and bounded in what it holds.
    let limits = Limits { layer_bytes: store.blob_max_bytes(), ..Limits::default() };
    let mut archive = Archive::new(BufReader::with_capacity(128 << 10, decoded), &limits);
    for count in 0.. {
        let Some(entry) = archive.next_entry().map_err(|source| broken(name, source))? else { break };
        if count >= FILES_MAX {
            return Err(found.refuse(format!("it holds more than {FILES_MAX} files")));
        }
        let Some(path) = clean(&entry.path) else { continue };
        let size = archive.remaining();
        match entry.kind {
            Kind::File if DOCUMENTS.contains(&path.as_str()) => {
                if size > DOCUMENT_MAX_BYTES {
                    return Err(
                        found.refuse(format!("its `{path}` is larger than {DOCUMENT_MAX_BYTES} bytes"))
                    );
                }
                let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
                archive.read_exact(&mut bytes).map_err(|source| broken(name, source))?;
                found.documents.insert(path, bytes);
            }
            Kind::File if !is_leftover(&path) => keep(store, &mut found, path, size, &mut archive)?,
            Kind::Symlink | Kind::Link => {
                if let Some(target) = resolve(&path, &entry.target, entry.kind == Kind::Symlink) {
                    found.links.insert(path, target);
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Trouble with the archive itself. A first entry that can't be read means that it isn't one at all.
fn broken(name: &str, source: UnpackError) -> Error {
    match source {
        UnpackError::Tar { offset: 0, reason } => {
            Error::Archive { name: name.to_owned(), reason: format!("it is not a tar archive ({reason})") }
        }
        UnpackError::Read(source) => Error::ArchiveRead { name: name.to_owned(), source },
        source => Error::ArchiveRead { name: name.to_owned(), source: io::Error::other(source) },
    }
}

/// Puts one file into the store.
fn keep(
    store: &Store,
    found: &mut Found,
    path: String,
    size: u64,
    archive: &mut Archive<impl BufRead>,
) -> Result<()> {
    let writer = match blob_name(&path) {
        Some(digest) => {
            if store.has(&digest) {
                // Verified when it came; not read again. It must stay until the images are listed.
                found.keep(store.pin([digest.clone()]));
                if store.blob(&digest)?.is_some_and(|blob| blob.size_bytes == size) {
                    found.blobs.insert(path, (digest, size));
                    return Ok(());
                }
            }
            store.ingest(&digest, Some(size))?
        }
        None => store.ingest_unnamed()?,
    };
    let (digest, pin) = fill(writer, archive, &found.name).and_then(BlobWriter::commit_pinned).map_err(
        |error| match error {
            Error::DigestMismatch { expected, actual, .. } => {
                Error::DigestMismatch { what: format!("file `{path}` of {}", found.name), expected, actual }
            }
            other => other,
        },
    )?;
    found.keep(pin);
    found.blobs.insert(path, (digest, size));
    Ok(())
}

/// Copies, and tells trouble with the archive from trouble with the store.
pub(super) fn fill(mut writer: BlobWriter, content: &mut impl Read, name: &str) -> Result<BlobWriter> {
    let mut buffer = vec![0u8; 128 << 10];
    loop {
        match content.read(&mut buffer) {
            Ok(0) => return Ok(writer),
            Ok(length) => writer.write(&buffer[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::ArchiveRead { name: name.to_owned(), source }),
        }
    }
}

/// The digest that a layout's file name claims.
fn blob_name(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// What old `docker save` archives hold per layer besides the layer.
fn is_leftover(path: &str) -> bool {
    path == "repositories" || path.ends_with("/VERSION") || path.ends_with("/json")
}

/// A name without `./`, `/` and doubled slashes; `None` when it can't be one of ours.
fn clean(path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| parts.join("/"))
}

/// What a link in the archive points to, as a name in the archive. Old `docker save` links equal layers
/// as `../<id>/layer.tar`.
fn resolve(path: &str, target: &[u8], is_symbolic: bool) -> Option<String> {
    let target = std::str::from_utf8(target).ok()?;
    let mut parts: Vec<&str> = if is_symbolic { path.split('/').collect() } else { Vec::new() };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_archive() {
        assert_eq!(clean(b"./blobs//sha256/x").as_deref(), Some("blobs/sha256/x"));
        assert_eq!(clean(b"../x"), None);
        assert_eq!(clean(b"./"), None);
        assert_eq!(resolve("a/layer.tar", b"../b/layer.tar", true).as_deref(), Some("b/layer.tar"));
        assert_eq!(resolve("a/layer.tar", b"../../../etc/passwd", true), None);
        assert_eq!(resolve("a/layer.tar", b"b/layer.tar", false).as_deref(), Some("b/layer.tar"));
    }
}
