//! `rctl build` on real nodes: what comes out beside what buildah makes of the same, and what it refuses.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cases;
mod compare;
mod content;
mod options;
mod refusals;
mod steps;
mod textbook;
mod world;
