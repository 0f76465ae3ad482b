//! `state` and `list`.

use super::args::Matches;
use super::context::Context;
use super::error::{Error, Result};
use super::state::{self, State};
use super::write_out;

/// `state`.
pub(super) fn state(context: &Context, matches: &Matches) -> Result<u8> {
    let place = context.place(matches.word(0))?;
    let record = place.read()?;
    // The owner is told by `list` alone, as with runc.
    let state = State { owner: String::new(), ..State::new(&record, place.status(&record)) };
    let text = serde_json::to_string_pretty(&state).unwrap_or_default();
    write_out(&format!("{text}\n"))?;
    Ok(0)
}

/// `list`.
pub(super) fn list(context: &Context, matches: &Matches) -> Result<u8> {
    let containers = state::all(&context.root)?;
    let states: Vec<State<'_>> =
        containers.iter().map(|(place, record)| State::new(record, place.status(record))).collect();
    let text = if matches.is_set("quiet") {
        states.iter().map(|state| format!("{}\n", state.id)).collect()
    } else {
        match matches.value("format") {
            None | Some("table") => table(&states),
            Some("json") if states.is_empty() => "null\n".to_owned(),
            Some("json") => format!("{}\n", serde_json::to_string(&states).unwrap_or_default()),
            Some(_) => return Err(Error::Format),
        }
    };
    write_out(&text)?;
    Ok(0)
}

fn table(states: &[State<'_>]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    for state in states {
        rows.push([
            state.id.to_owned(),
            state.pid.to_string(),
            state.status.to_owned(),
            state.bundle.display().to_string(),
            state.created.to_owned(),
            state.owner.clone(),
        ]);
    }
    aligned(&rows)
}

/// Columns as wide as their widest entry and three blanks, at least twelve.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len() + 3).max().unwrap_or(0).max(12);
    let mut text = String::new();
    for row in rows {
        for (column, entry) in row.iter().enumerate() {
            let width = if column + 1 == N { 0 } else { width(column) };
            text.push_str(&format!("{entry:<width$}"));
        }
        text.push('\n');
    }
    text
}
