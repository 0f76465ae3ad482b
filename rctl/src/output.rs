//! The only place that writes to stdout and stderr. A reader that has gone away (`rctl ps | head -1`) ends
//! the command quietly; stderr is written on a best effort, as there is nowhere to complain about it.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::failure::{Failure, Result};

/// How results are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    // Aligned columns, for people.
    #[default]
    Table,
    // One JSON object a line, for programs.
    Json,
}

/// Writes text as it is.
pub(crate) fn print(text: &str) -> Result<()> {
    bytes(text.as_bytes())
}

/// Writes one line.
pub(crate) fn line(text: &str) -> Result<()> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes one JSON object on one line.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(&to_json(serde_json::to_string(value))?)
}

/// Writes JSON for people to read.
pub(crate) fn json_pretty(value: &impl Serialize) -> Result<()> {
    line(&to_json(serde_json::to_string_pretty(value))?)
}

fn to_json(result: serde_json::Result<String>) -> Result<String> {
    result.map_err(|error| Failure::operation(format!("cannot write JSON: {error}")))
}

/// Writes a container's output to where it belongs.
pub(crate) fn container(stream: &str, data: &[u8]) -> Result<()> {
    if stream == "stderr" {
        // A container's errors that nobody can see are no reason to stop it.
        let _ = io::stderr().write_all(data);
        return Ok(());
    }
    bytes(data)
}

/// Writes bytes as they are.
pub(crate) fn bytes(data: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(data).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::silent(0)),
        Err(error) => Err(Failure::operation(format!("cannot write to the standard output: {error}"))),
    }
}

/// Says something beside the result: progress, a hint, a warning.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Asks for something, on the line that the answer is typed on.
pub(crate) fn prompt(question: &str) {
    let mut err = io::stderr();
    let _ = write!(err, "{question}").and_then(|()| err.flush());
}

/// Says why the command failed.
pub(crate) fn complain(text: &str) {
    note(&format!("rctl: {text}"));
}

/// Whether a person watches the notes.
pub(crate) fn notes_are_seen() -> bool {
    io::stderr().is_terminal()
}
