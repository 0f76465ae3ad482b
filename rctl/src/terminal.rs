//! The user's terminal: its size, and raw mode while a container has it.

use std::io::{self, IsTerminal};

use rorqual_proto::wire::TerminalSize;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::failure::{Failure, Result};

/// Whether input and output are both a terminal.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The size of the terminal that standard output is; `None` if it is none.
pub(crate) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    Some(TerminalSize { columns: size.ws_col.into(), rows: size.ws_row.into() })
}

/// Asks the user for a line; what is typed is not shown where it is a secret.
pub(crate) fn ask(question: &str, shown: bool) -> Result<String> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(
            "there is no terminal to ask on: give --username, and pipe the password in with --password-stdin",
        ));
    }
    let failed = |error: io::Error| Failure::operation(format!("cannot use the terminal: {error}"));
    let before = tcgetattr(io::stdin()).map_err(|error| failed(error.into()))?;
    let _restored = Raw { before: before.clone() };
    if !shown {
        let mut quiet = before;
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Now, &quiet).map_err(|error| failed(error.into()))?;
    }
    crate::output::prompt(question);
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(failed)?;
    if !shown {
        crate::output::note("");
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// The terminal in raw mode: every key goes to the container, which echoes what it wants. Given back when dropped.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    pub(crate) fn enter() -> Result<Self> {
        let failed = |error| Failure::operation(format!("cannot use the terminal: {error}"));
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone by now.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
