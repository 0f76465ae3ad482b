//! Asks before something is taken away that nobody can bring back.

use std::io::{self, BufRead, Write};

use crate::failure::{Failure, Result};

/// Shows what will happen and waits for a `y`. Anything else, and the end of the input, is a no.
pub(crate) fn confirm(warning: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let asked = write!(out, "WARNING! {warning}\nAre you sure you want to continue? [y/N] ");
    asked.and_then(|()| out.flush()).map_err(|error| Failure::operation(format!("cannot ask: {error}")))?;
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::operation(format!("cannot read the answer: {error}; use --force")))?;
    if is_yes(&answer) {
        return Ok(());
    }
    Err(Failure::operation("nothing was removed: answer y, or use --force"))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::is_yes;

    #[test]
    fn only_a_yes_is_one() {
        assert!(is_yes("y\n") && is_yes(" YES ") && is_yes("Y"));
        assert!(!is_yes("") && !is_yes("no") && !is_yes("yeah, sure"));
    }
}
