//! Dockerfiles: from text to instructions. Nothing in here touches a file or the network.
//!
//! ```text
//! text ─ lines.rs ─► lines ─ parse.rs, flags.rs ─► instructions ─ words.rs, mount.rs ─► values, when they are run
//! ```
//!
//! Start at [`Dockerfile::parse`]. Errors are [`SyntaxError`]s: the file, the line, and the text that is wrong.

mod flags;
mod instruction;
mod lines;
mod mount;
mod parse;
mod source;
pub(crate) mod words;

pub use instruction::{Command, Copy, From, Healthcheck, Instruction, Kind, Run};
pub(crate) use lines::heredoc_word;
pub use lines::{Directives, Heredoc};
pub use mount::{Mount, MountKind, Sharing};
pub(crate) use parse::trigger;
pub use parse::{Dockerfile, Stage};
pub use source::{Place, SyntaxError};

#[cfg(test)]
mod tests;
