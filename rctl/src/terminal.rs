//! The user's terminal: its size, and raw mode while a container has it.

use std::io::{self, IsTerminal};

use rorqual_proto::wire::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

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
