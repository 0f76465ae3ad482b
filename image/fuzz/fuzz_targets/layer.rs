//! Feeds [`rorqual_image::fuzz::layer`] with what libFuzzer makes up, on a file system in memory.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

static FOLDER: LazyLock<PathBuf> =
    LazyLock::new(|| PathBuf::from(format!("/dev/shm/rorqual-fuzz-{}", std::process::id())));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    rorqual_image::fuzz::layer(bytes, &FOLDER);
});
