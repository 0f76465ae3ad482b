//! The monitor: one small single-threaded process per container, which outlives the daemon.
//!
//! ```text
//! monitor ──> setup: plan, control groups, pipes, clone; waits until the program runs; reports to the launcher
//!    │            leaves the daemon's groups, and executes itself anew:
//!    └──> serve: logs, input, clients, exit status. The memory of the set-up is gone with the old program.
//!           └──> session: a further program for a client, started by helper, a short-lived process
//! ```

mod clients;
mod helper;
mod input;
mod serve;
mod session;
mod setup;
mod stdio;

use std::path::Path;

/// Runs `rorqual-runtime monitor`: `args` are the arguments behind that word. Standard output carries the report to
/// the launcher. Returns the exit code.
#[must_use]
pub fn main(args: &[String]) -> u8 {
    match args {
        [dir] => setup::run(Path::new(dir)),
        [word, rest @ ..] if word == SERVE => serve::run(rest),
        [word, rest @ ..] if word == HELPER => helper::run(rest),
        _ => 2,
    }
}

/// The word by which the monitor executes itself anew.
const SERVE: &str = "--serve";

/// The word by which it executes itself as the helper of a session.
const HELPER: &str = "--execute";

/// How a process ended, as wait(2) tells it: the exit code as shells have it, and the signal if there was one.
fn wait_code(status: i32) -> (i32, Option<i32>) {
    if libc::WIFSIGNALED(status) {
        (128 + libc::WTERMSIG(status), Some(libc::WTERMSIG(status)))
    } else {
        (libc::WEXITSTATUS(status), None)
    }
}
