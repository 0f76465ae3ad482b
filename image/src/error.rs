//! The crate's one error type.
//!
//! A variant names the path, image or digest that it is about, and the remedy where the user has one.
//! What went wrong below is the `source`; `Display` doesn't repeat it.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::reference::ReferenceError;
use crate::registry::RegistryError;
use crate::unpack::UnpackError;

/// What an operation on images ends with when it fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error("can't {action} {}", path.display())]
    Io {
        /// What was tried: a verb, such as `open`.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The disk (or the quota on it) is full.
    #[error(
        "no space left for {}: remove images that are not needed (`rctl image rm`) or give the node's data folder \
         a larger disk",
        path.display()
    )]
    DiskFull {
        /// What was being written.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A string is not an image reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The list of images can't be read.
    #[error(
        "the list of images {} is damaged: move the file away and start again, then load or pull the images anew \
         (blobs and layers that are intact are used again)",
        path.display()
    )]
    Index {
        /// The list.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The list of images was written by a newer version.
    #[error("the list of images {} has format {version}, this program knows up to {known}: upgrade it", path.display())]
    IndexVersion {
        /// The list.
        path: PathBuf,
        /// The version it has.
        version: u32,
        /// The newest version that is understood.
        known: u32,
    },
    /// Another process has the store open.
    #[error("the image store {} is in use by another process: is a second rorquald running on it?", path.display())]
    StoreBusy {
        /// The store's root.
        path: PathBuf,
    },
    /// No such image here.
    #[error(
        "image `{0}` is not on this node: load it with `rctl image load` or pull it with `rctl image pull`"
    )]
    NoSuchImage(String),
    /// The image has containers.
    #[error("image `{image}` is in use ({digest}): remove the containers that use it first")]
    InUse {
        /// As the caller named it.
        image: String,
        /// Its manifest.
        digest: Digest,
    },
    /// The image has more than one name, and was named by digest.
    #[error("image {digest} has several names ({names}): remove it by name")]
    SeveralNames {
        /// Its manifest.
        digest: Digest,
        /// All its names.
        names: String,
    },
    /// A blob that an image needs is not in the store.
    #[error("blob {digest} ({role}) is missing: load or pull the image again")]
    BlobMissing {
        /// Which blob.
        digest: Digest,
        /// What it is needed for.
        role: &'static str,
    },
    /// Content is not what its digest says.
    #[error("{what} is corrupt: expected {expected}, its content is {actual}; load or pull the image again")]
    DigestMismatch {
        /// The blob or the file in an archive.
        what: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// Content is longer or shorter than announced.
    #[error("{what} has the wrong size: expected {expected_bytes} bytes, got {actual_bytes}")]
    SizeMismatch {
        /// The blob.
        what: String,
        /// As announced.
        expected_bytes: u64,
        /// As counted.
        actual_bytes: u64,
    },
    /// A manifest, index or configuration is not JSON of the right shape.
    #[error("{what} can't be read")]
    Json {
        /// Which document.
        what: String,
        /// Where it is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A manifest, index or configuration says something that can't be accepted.
    #[error("{what} is not acceptable: {reason}")]
    Document {
        /// Which document.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image is not for this machine.
    #[error("{what} is not for this node: it needs {wanted}, the image has {}", found.join(", "))]
    Platform {
        /// Which image.
        what: String,
        /// The node's platform.
        wanted: String,
        /// What the image offers.
        found: Vec<String>,
    },
    /// An image archive can't be loaded.
    #[error("{name} is not an image archive that can be loaded: {reason}")]
    Archive {
        /// The archive's path, or a word for a stream.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Reading an image archive failed half-way.
    #[error("reading the archive {name} failed: it may be truncated or damaged")]
    ArchiveRead {
        /// The archive's path, or a word for a stream.
        name: String,
        /// Where it broke off.
        #[source]
        source: io::Error,
    },
    /// A layer can't be unpacked.
    #[error("layer {layer} can't be unpacked")]
    Unpack {
        /// Digest of the layer's blob.
        layer: Digest,
        /// Which entry, and why.
        #[source]
        source: UnpackError,
    },
    /// The registry refused or failed.
    #[error("registry {registry} failed for {what}")]
    Registry {
        /// Its host.
        registry: String,
        /// The manifest or blob that was wanted.
        what: String,
        /// Why.
        #[source]
        source: RegistryError,
    },
    /// Nobody had the blob.
    #[error("{digest} ({role}) could not be fetched: {}", tried.join("; "))]
    Fetch {
        /// Which blob.
        digest: Digest,
        /// What it is needed for.
        role: &'static str,
        /// One line per source: its name and what it answered.
        tried: Vec<String>,
    },
    /// A tag can only be resolved by a registry, and there is none.
    #[error("`{0}` has no digest and there is no registry to resolve its tag: load it, or name it by digest")]
    NeedsRegistry(String),
    /// Whoever takes an archive does not.
    #[error("the archive can't be written")]
    Taken {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A container's files can't be read.
    #[error("can't {action} `{path}` of the container")]
    Changes {
        /// In the container.
        path: String,
        /// A verb.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Whoever has something that a build needs does not give it.
    #[error("{what}: {reason}")]
    Source {
        /// The file or folder.
        what: String,
        /// Why.
        reason: String,
    },
    /// A task of this crate was cancelled or panicked.
    #[error("the work on {0} was interrupted: the node is shutting down")]
    Interrupted(String),
}

/// Shorthand of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The error of a file operation; a full disk gets its own variant.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Error {
        let path = path.to_owned();
        if is_disk_full(&source) {
            Error::DiskFull { path, source }
        } else {
            Error::Io { action, path, source }
        }
    }

    pub(crate) fn document(what: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Document { what: what.into(), reason: reason.into() }
    }
}

/// Whether `error` says that the disk or the quota on it is full.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// An error of ours that came up through `io` (a writer of the store beneath an encoder), taken out again.
pub(crate) fn own(error: io::Error) -> Result<Error, io::Error> {
    if !error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
        return Err(error);
    }
    match error.into_inner().map(|inner| inner.downcast::<Error>()) {
        Some(Ok(ours)) => Ok(*ours),
        Some(Err(other)) => Err(io::Error::other(other)),
        None => Err(io::ErrorKind::Other.into()),
    }
}

/// An error and everything below it on one line, for lists of failed attempts.
pub(crate) fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        line.push_str(": ");
        line.push_str(&source.to_string());
        next = source.source();
    }
    line
}
