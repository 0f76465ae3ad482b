//! What Rust's own start does for a program, for one that begins without it (`entry.rs`).

use crate::sys;

/// Runs the program: with three standard descriptors, so that no file that it opens is taken for one, and such that
/// writing to who is gone is an error and not its end. Standard output is flushed by who writes to it.
#[must_use]
pub fn begin(run: fn() -> u8) -> u8 {
    if sys::open_standard().is_err() {
        return 1;
    }
    sys::ignore_signal(libc::SIGPIPE);
    run()
}
