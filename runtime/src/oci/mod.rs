//! The OCI command line: `rorqual-runtime` as the `--runtime` of Podman, containerd and Docker, with runc's commands,
//! options, output and exit codes.
//!
//! Start reading at [`main`]; `commands` is the table of what there is. Each command is a process of its own that ends;
//! what is known between two of them lies on disk (`place`). A container waits for its start on a socket of its own:
//!
//! ```text
//! create ── spawn::first_process ──> init: steps … Step::Created ──> waits on start.sock
//!   writes state.json, ends             ^                                │
//! start  ── connects to start.sock ─────┴── failure, or the end ─────────┴──> exec
//! ```

mod args;
mod commands;
mod config;
mod console;
mod context;
mod create;
mod delete;
mod error;
mod events;
mod exec;
#[cfg(test)]
mod fault_tests;
mod features;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod kill;
mod list;
mod log;
mod notify;
mod pause;
mod place;
mod ps;
#[cfg(test)]
mod rdt_tests;
mod relay;
mod run;
mod sealed;
mod spec;
mod start;
mod state;
mod update;
#[cfg(test)]
mod victim;

use std::io::Write as _;

use args::Words;
use commands::{Command, Enters, GLOBAL};
use context::Context;
use error::{Error, Result};

use crate::sys;

/// Runs one command: `args` are those behind the program's name. Returns the exit code.
#[must_use]
pub fn main(args: &[String]) -> u8 {
    let global = match args::parse(args, &GLOBAL, true) {
        Ok(global) => global,
        Err(error) => return wrong(None, &log::Log::default(), &error),
    };
    if global.is_set("version") {
        return print(&version());
    }
    let Some((name, rest)) = global.words.split_first() else { return print(&commands::help()) };
    if global.is_set("help") || name == "help" {
        return print(
            &rest.first().and_then(|name| commands::find(name)).map_or_else(commands::help, Command::help),
        );
    }
    let context = match Context::new(&global) {
        Ok(context) => context,
        Err(error) => return wrong(None, &log::Log::default(), &error),
    };
    let Some(command) = commands::find(name) else {
        context.log.error(&format!("No help topic for '{name}'"));
        return 3;
    };
    let matches = match args::parse(rest, command.flags, command.words == Words::Command) {
        Ok(matches) => matches,
        Err(error) => return wrong(Some(command), &context.log, &error),
    };
    if matches.is_set("help") {
        return print(&command.help());
    }
    if let Err(error) = count(command, matches.words.len()) {
        return wrong(Some(command), &context.log, &error);
    }
    let sealed = match command.enters {
        Enters::Nothing => Ok(None),
        Enters::New => {
            let preserved = sealed::preserved(&matches);
            let sealed = sealed::seal(preserved, matches.value("config"), false);
            // Those that are to be passed on are looked at first: the thread's would be taken for one that is missing.
            if preserved == 0 && sealed.is_ok() {
                sys::begin_ahead();
            }
            sealed
        }
        Enters::Running => sealed::seal(sealed::preserved(&matches), matches.value("process"), true),
    };
    context.log.debug(|| format!("{name} {rest:?} with root {}", context.root.display()));
    let run = |program| {
        context.program.replace(program);
        (command.run)(&context, &matches)
    };
    match sealed.and_then(run) {
        Ok(code) => code,
        Err(error) => {
            let prefix = command.prefix;
            context.log.error(&format!("{prefix}{error}"));
            command.failure
        }
    }
}

fn count(command: &Command, words: usize) -> Result<()> {
    let name = command.name;
    match command.words {
        Words::Count(least, most) if least == most && words != least => {
            Err(Error::Usage(format!("{PROGRAM}: \"{name}\" requires exactly {least} argument(s)")))
        }
        Words::Count(least, most) if words < least || words > most => Err(Error::Usage(format!(
            "{PROGRAM}: \"{name}\" requires {least} to {most} arguments, and got {words}"
        ))),
        Words::Command if words == 0 => {
            Err(Error::Usage(format!("{PROGRAM}: \"{name}\" requires a minimum of 1 argument(s)")))
        }
        _ => Ok(()),
    }
}

/// Wrong usage: says how it goes, and what was wrong.
fn wrong(command: Option<&Command>, log: &log::Log, error: &Error) -> u8 {
    let help = command.map_or_else(commands::help, Command::help);
    // To standard error, where a person sees it who typed it.
    let _ = std::io::stderr().write_all(format!("Incorrect Usage.\n\n{help}").as_bytes());
    log.error(&error.to_string());
    1
}

const PROGRAM: &str = "rorqual-runtime";

fn version() -> String {
    format!("{PROGRAM} version {}\nspec: {SPECIFICATION}\n", env!("CARGO_PKG_VERSION"))
}

/// The newest version of the specification that is known in full.
const SPECIFICATION: &str = "1.3.0";

/// Standard output, whole or with an exit code that says that it is not.
fn print(text: &str) -> u8 {
    match write_out(text) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn write_out(text: &str) -> Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(Error::system("writing to standard output"))
}
