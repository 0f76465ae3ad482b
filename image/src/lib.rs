//! OCI images on one node: names, content, layers, and how they get here.
//!
//! - [`Reference`] and [`Digest`] name images and content.
//! - [`Store`] keeps blobs by digest, unpacks layers for overlayfs, and knows which names stand for what.
//! - [`Store::save`] writes image archives, and [`Store::load`] takes them: image layouts and `docker save`'s.
//! - [`diff`] tells what a container changed; [`Store::commit`] and [`Store::import`] make images of it.
//! - [`serve`] is a registry on top of a store.
//! - [`pull`] brings an image from peers ([`BlobSource`]) or from a registry ([`RegistryClient`]).
//!
//! Nothing that comes from outside is believed: blobs are verified by size and digest before they get
//! a name, layers by diff-id while they are unpacked, and unpacking stays inside the layer's own folder.
//! A crash at any point leaves the store as it was before or after, never in between.
//!
//! [`Store`]'s methods wait for the disk: call them from `spawn_blocking`. [`pull`] does that itself.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod build;
mod config;
pub mod diff;
mod digest;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod load;
mod make;
pub mod manifest;
mod platform;
mod pull;
mod push;
mod reference;
mod registry;
mod save;
pub mod serve;
mod store;
mod sys;
mod unpack;

pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use error::{Error, Result};
pub use load::Loaded;
pub use make::{Commit, Compression, Import, Instruction, InstructionError, NewLayer};
pub use manifest::Manifest;
pub use platform::Platform;
pub use pull::{
    BlobRole, BlobSource, ForeignImage, NobodyHasIt, Progress, SourceError, pull, pull_documents,
    pull_foreign, pull_layer,
};
pub use push::{PushProgress, Pushed, push, push_unlisted};
pub use reference::{Reference, ReferenceError};
pub use registry::{
    Credentials, RegistryClient, RegistryError, RegistryOptions, RegistrySettings, SearchHit,
};
pub use save::{SaveFormat, Saved};
pub use store::{
    Along, Arrived, Blob, BlobWriter, ImageRecord, ImageUsage, Options, Prepared, Removed, Store, Target,
    Usage,
};
pub use unpack::{Limits, UnpackError};
