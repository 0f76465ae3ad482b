//! The classes of the published escapes, tried against containers of the library (with a monitor) and of the OCI command
//! line. Real containers; needs root, busybox-static and a C compiler (with which `probe.c`, the attacker, is built).
//!
//! A comment at each test says how it was seen to fail: a peer that does not defend itself, or the line of ours that was
//! taken out.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod binary;
mod descriptors;
mod filters;
mod labels;
mod links;
mod notify;
mod privileges;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The attacker's program, built once.
fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/security/probe.c");
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("probe-{}", std::process::id()));
        let built =
            Command::new("cc").args(["-O1", "-w", "-static", "-no-pie", source, "-o"]).arg(&program).status();
        assert!(built.expect("a C compiler (package gcc)").success());
        program
    })
}

/// Puts it into a root file system.
fn install(rootfs: &Path) {
    common::copy_program(probe(), &rootfs.join("bin/probe"));
}
