//! Feeds [`rorqual_runtime::fuzz::users`] with what libFuzzer makes up.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    rorqual_runtime::fuzz::users(bytes);
});
