//! What Rust's own start does for a program, for one that begins without it (`entry.rs`).

use std::ffi::{OsString, c_char, c_int};
use std::sync::OnceLock;

use crate::sys;

/// What the program was called with, where Rust does not know.
static ARGS: OnceLock<Vec<OsString>> = OnceLock::new();

/// Runs the program: with three standard descriptors, so that no file that it opens is taken for one, and such that
/// writing to who is gone is an error and not its end. Standard output is flushed by who writes to it.
///
/// # Safety
///
/// `argv` are `argc` strings, as `main` gets them.
#[must_use]
pub unsafe fn begin(argc: c_int, argv: *const *const c_char, run: fn() -> u8) -> u8 {
    if sys::open_standard().is_err() {
        return 1;
    }
    sys::ignore_signal(libc::SIGPIPE);
    // SAFETY: the caller's promise.
    let _ = ARGS.set(unsafe { sys::strings(argc, argv) });
    run()
}

/// The program's arguments, with the name by which it was called.
#[must_use]
pub fn args() -> Vec<OsString> {
    ARGS.get().cloned().unwrap_or_else(|| std::env::args_os().collect())
}
