//! Builds images from Dockerfiles.
//!
//! ```text
//! dockerfile/  text to instructions         graph.rs  which stages, in which order
//! tree/        files on their way in        solve/    stage after stage, step after step
//! layer.rs           changes to layers      cache.rs  what can be used again
//! exchange.rs, layout.rs  steps from and for other nodes
//! host.rs      what the node has to provide: images, containers, URLs
//! ```
//!
//! Start at [`build`]. This crate knows nothing of containers: commands of RUN are run by the [`Host`].

pub(crate) mod cache;
mod chmod;
pub mod dockerfile;
mod error;
mod exchange;
mod graph;
mod host;
pub mod ignore;
mod image_config;
pub(crate) mod layer;
mod layout;
pub mod pattern;
mod solve;
mod tree;
mod vars;

pub use cache::CacheUsage;
pub use error::BuildError;
pub use exchange::{StepDocuments, StepSource, StepTarget};
pub use host::{
    BuildOptions, Built, Cancel, CommandMount, CommandMountKind, Event, Fetched, Host, NamedContext, Network,
    OutputStream, RunCommand, StepsTo,
};
pub use layout::LayoutSteps;
pub use solve::{Report, build};
pub use tree::files::{Attributes, Entry, EntryKind, Files, Take};
pub use tree::view::folder_files;
