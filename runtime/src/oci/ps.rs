//! `ps`: the processes of a container.

use std::process::Command;

use super::args::Matches;
use super::context::Context;
use super::error::{Error, Result};
use super::write_out;

/// `ps`.
pub(super) fn ps(context: &Context, matches: &Matches) -> Result<u8> {
    let place = context.place(matches.word(0))?;
    let record = place.read()?;
    let pids = record.group.pids();
    match matches.value("format") {
        Some("json") => write_out(&format!("{}\n", serde_json::to_string(&pids).unwrap_or_default()))?,
        None | Some("table") => write_out(&table(&matches.words[1..], &pids)?)?,
        Some(_) => return Err(Error::Format),
    }
    Ok(0)
}

/// The machine's own `ps`, with the options given, as far as it speaks of these processes.
fn table(options: &[String], pids: &[i32]) -> Result<String> {
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() { &default[..] } else { options };
    let output = Command::new("ps").args(options).output().map_err(Error::system("executing ps"))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::WrongState(format!("ps: {}: {told}", output.status)));
    }
    filter(&String::from_utf8_lossy(&output.stdout), pids)
}

fn filter(text: &str, pids: &[i32]) -> Result<String> {
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let column = header.split_ascii_whitespace().position(|title| title == "PID").ok_or_else(|| {
        Error::WrongState("couldn't find PID field in ps output: use options that show it".to_owned())
    })?;
    let ours = lines.filter(|line| {
        let pid = line.split_ascii_whitespace().nth(column).and_then(|text| text.parse::<i32>().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    });
    let mut table = format!("{header}\n");
    for line in ours {
        table.push_str(line);
        table.push('\n');
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_processes_are_told() {
        let text = "UID   PID PPID CMD\nroot    7    1 one\nroot   17    7 two\nroot    8    1 7\n";
        assert_eq!(filter(text, &[7, 9]).unwrap(), "UID   PID PPID CMD\nroot    7    1 one\n");
        assert!(filter("CMD\nx\n", &[7]).is_err());
    }
}
