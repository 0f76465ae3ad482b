//! Whether a container is well: what its image and its user say of that ([`check`]), what follows from the answers
//! ([`state`], pure), and the asking ([`probe`]).
//!
//! [`Prober::run`] is one task a container that runs. It tells changes alone; the container's machine decides what
//! follows from them.

mod check;
mod probe;
mod state;

pub(crate) use check::{Asked, Check, CheckError, Times, resolve};
pub(crate) use probe::Prober;
