//! What a container changed: as a list, as a layer, and its whole file system as an archive.
//!
//! ```text
//! layer folders ─► Merged (one folder at a time, as overlayfs shows it) ─► changes.rs  A, C, D
//!                  merged.rs                                               walk.rs     whiteouts, tar (layer.rs; builds: build/layer.rs)
//!                                                                          export.rs   everything, tar
//! ```
//!
//! A container may run while its folders are read here, and may try to lead the reader astray: every step is
//! by descriptor and one name at a time, no link is followed, and what is not a regular file is never opened
//! for its content. Start at [`changes`], [`write_layer`] and [`export`].

pub(crate) mod archive;
mod changes;
mod export;
mod layer;
pub(crate) mod merged;
pub(crate) mod walk;

pub use self::changes::{Change, ChangeKind, changes};
pub use self::export::export;
pub use self::layer::{LayerOptions, write_layer};

use std::path::PathBuf;

/// Folders within folders, as for unpacking: what lies deeper could not be unpacked again.
const DEPTH_MAX: usize = 256;

/// The folders of a container's file system.
#[derive(Clone, Debug)]
pub struct Folders {
    /// What the container wrote: overlayfs' upper folder.
    pub upper: PathBuf,
    /// What lies beneath, topmost first, as [`Prepared::layers`](crate::Prepared::layers) has it.
    pub lowers: Vec<PathBuf>,
    /// Paths (without a leading slash) that whoever starts containers makes as mount points. Where they are
    /// empty, and the image does not have them, they are no change.
    pub mount_points: Vec<PathBuf>,
}
