//! The monitor: one small single-threaded process per container, which outlives the daemon.
//!
//! ```text
//! monitor ──> setup: plan, control groups, pipes, clone; waits until the program runs; reports to the launcher
//!    │            leaves the daemon's groups, and executes itself anew:
//!    └──> serve: logs, watchers, exit status. The memory of the set-up is gone with the old program.
//! ```

mod serve;
mod setup;

use std::path::Path;
use std::process::ExitCode;

/// Runs `rorqual-runtime monitor`: `args` are the arguments behind that word. Standard output carries the report to
/// the launcher.
#[must_use]
pub fn main(args: &[String]) -> ExitCode {
    match args {
        [dir] => setup::run(Path::new(dir)),
        [word, rest @ ..] if word == SERVE => serve::run(rest),
        _ => ExitCode::from(2),
    }
}

/// The word by which the monitor executes itself anew.
const SERVE: &str = "--serve";
