//! Where in a file something stands, and errors that show it.

use std::fmt;
use std::sync::Arc;

/// Longer lines are cut in messages.
const SHOWN_CHARS: usize = 160;
/// More lines than this are not shown of one instruction.
const SHOWN_LINES: usize = 6;

/// Lines of a Dockerfile: the file, which lines, and what stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name as the user gave it.
    pub file: Arc<str>,
    /// The first line, counted from 1.
    pub first: usize,
    /// The last line.
    pub last: usize,
    /// The lines as they stand in the file.
    pub text: Arc<str>,
}

impl Place {
    /// An error about what stands here.
    pub fn refuse(&self, reason: impl Into<String>) -> SyntaxError {
        SyntaxError { place: self.clone(), reason: reason.into() }
    }

    /// The lines with their numbers, for messages.
    pub fn excerpt(&self) -> String {
        let mut shown = String::new();
        for (index, line) in self.text.lines().enumerate() {
            if index == SHOWN_LINES {
                shown.push_str("\n     | …");
                break;
            }
            let cut: String = line
                .chars()
                .take(SHOWN_CHARS)
                .map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c })
                .collect();
            let more = if line.chars().count() > SHOWN_CHARS { "…" } else { "" };
            shown.push_str(&format!("\n{:>4} | {cut}{more}", self.first + index));
        }
        shown
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.first)
    }
}

/// A Dockerfile says something that can't be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}{}", place.excerpt())]
pub struct SyntaxError {
    /// Where.
    pub place: Place,
    /// What is wrong, and what was expected.
    pub reason: String,
}
