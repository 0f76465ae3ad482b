//! Feeds [`rorqual_image::fuzz::dockerfile`] with what libFuzzer makes up.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    rorqual_image::fuzz::dockerfile(bytes);
});
