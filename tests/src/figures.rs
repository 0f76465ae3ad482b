//! What was measured. Times are told, not asserted: machines differ, and a deadline guards the rest.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Instant;

/// Tells a measured value: on the test's output, and in the file that `RORQUAL_FIGURES` names, which
/// `tests/run` prints at its end.
pub fn tell(what: &str, value: impl std::fmt::Display, unit: &str) {
    let line = format!("{what}: {value} {unit}");
    println!("{line}");
    if let Some(path) = std::env::var_os("RORQUAL_FIGURES") {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        // One write, so that lines of programs that run at once don't mix.
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// Tells how long ago that was, in milliseconds.
pub fn tell_since(what: &str, started: Instant) {
    tell(what, started.elapsed().as_millis(), "ms");
}
