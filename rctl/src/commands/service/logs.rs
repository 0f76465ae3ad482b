//! `rctl service logs`.

use clap::Args;
use rorqual_proto::wire::{LogLine, ServiceLogsRequest};

use crate::commands::container::FollowArgs;
use crate::connect::Daemon;
use crate::failure::{Failure, Result};
use crate::human;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    follow: FollowArgs,
    /// Show lines as they were written, without the task in front
    #[arg(long)]
    raw: bool,
    /// Id, unique beginning of an id, or name
    service: String,
}

pub(crate) async fn run(args: LogsArgs, daemon: &Daemon) -> Result<()> {
    let attempt = format!("cannot show the logs of service {}", args.service);
    let request = ServiceLogsRequest {
        name: args.service,
        follow: args.follow.follow,
        tail: args.follow.tail(),
        since_ms: args.follow.since_ms()?,
    };
    let doing = |status| Failure::from(status).doing(&attempt);
    let mut lines = daemon.control().service_logs(request).await.map_err(doing)?.into_inner();
    let mut width = 0;
    while let Some(line) = lines.message().await.map_err(doing)? {
        if line.stream == "rorqual" {
            output::note(&format!("rctl: {}", String::from_utf8_lossy(&line.data).trim_end()));
            continue;
        }
        let text = if args.raw { raw(&line) } else { prefixed(&line, &mut width, args.follow.timestamps) };
        output::container(&line.stream, &text)?;
    }
    Ok(())
}

fn raw(line: &LogLine) -> Vec<u8> {
    with_end(line.data.to_vec())
}

/// `web.3@n1 | text`, the bar in one column as far as it is known.
fn prefixed(line: &LogLine, width: &mut usize, timestamps: bool) -> Vec<u8> {
    let who = format!("{}@{}", line.task_name, line.node_hostname);
    *width = (*width).max(who.chars().count());
    let time = if timestamps { format!("{} ", human::rfc3339_ns(line.at_ns)) } else { String::new() };
    let mut text = format!("{time}{who:<width$} | ", width = *width).into_bytes();
    text.extend_from_slice(&line.data);
    with_end(text)
}

/// The text with a newline at its end.
pub(crate) fn with_end(mut text: Vec<u8>) -> Vec<u8> {
    if text.last() != Some(&b'\n') {
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_who_wrote_them() {
        let line = |task: &str, text: &str| LogLine {
            at_ns: 1_767_323_045_000_000_001,
            stream: "stdout".into(),
            data: text.to_owned().into(),
            task_name: task.into(),
            node_hostname: "n1".into(),
            ..LogLine::default()
        };
        let mut width = 0;
        let mut text =
            |line: &LogLine, timestamps| String::from_utf8(prefixed(line, &mut width, timestamps)).unwrap();
        assert_eq!(text(&line("web.10", "a\n"), false), "web.10@n1 | a\n");
        assert_eq!(text(&line("web.1", "b"), false), "web.1@n1  | b\n");
        assert_eq!(text(&line("web.1", "c"), true), "2026-01-02T03:04:05.000000001Z web.1@n1  | c\n");
        assert_eq!(raw(&line("web.1", "c")), b"c\n");
    }
}
