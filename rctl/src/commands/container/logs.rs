//! `rctl logs`, and the flags that it shares with `rctl service logs`.

use clap::Args;
use rorqual_proto::wire::{ContainerLogsRequest, LogLine};

use crate::connect::Daemon;
use crate::failure::{Failure, Result};
use crate::{human, output, parse};

#[derive(Debug, Clone, Args)]
pub(crate) struct FollowArgs {
    /// Go on with what is written from now on
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Begin with the last lines: a number, or `all`
    #[arg(long, short = 'n', value_name = "COUNT", default_value = "all", value_parser = tail)]
    tail: Tail,
    /// Begin at a time, or so long ago: 2026-01-02T03:04:05Z, 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Show when each line was written
    #[arg(long, short)]
    pub(crate) timestamps: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    All,
    Last(u32),
}

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail::All),
        text => {
            text.parse().map(Tail::Last).map_err(|_| format!("`{text}` is not a number of lines, nor `all`"))
        }
    }
}

impl FollowArgs {
    pub(crate) fn tail(&self) -> Option<u32> {
        match self.tail {
            Tail::All => None,
            Tail::Last(count) => Some(count),
        }
    }

    pub(crate) fn since_ms(&self) -> Result<Option<i64>> {
        let since = |text: &String| parse::since(text, human::epoch_ms());
        self.since
            .as_ref()
            .map(since)
            .transpose()
            .map_err(|error| Failure::usage(format!("--since: {error}")))
    }
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    follow: FollowArgs,
    /// Id, unique beginning of an id, or name
    container: String,
}

pub(crate) async fn logs(args: LogsArgs, daemon: &Daemon) -> Result<()> {
    let attempt = format!("cannot show the logs of container {}", args.container);
    let request = ContainerLogsRequest {
        name: args.container,
        follow: args.follow.follow,
        tail: args.follow.tail(),
        since_ms: args.follow.since_ms()?,
        timestamps: args.follow.timestamps,
    };
    let doing = |status| Failure::from(status).doing(&attempt);
    let mut lines = daemon.engine().container_logs(request).await.map_err(doing)?.into_inner();
    while let Some(line) = lines.message().await.map_err(doing)? {
        show(&line, args.follow.timestamps)?;
    }
    Ok(())
}

/// Writes one line to where the container wrote it.
pub(super) fn show(line: &LogLine, timestamps: bool) -> Result<()> {
    if line.stream == "rorqual" {
        output::note(&format!("rctl: {}", String::from_utf8_lossy(&line.data).trim_end()));
        return Ok(());
    }
    let mut text = Vec::new();
    if timestamps {
        text.extend_from_slice(format!("{} ", human::rfc3339_ns(line.at_ns)).as_bytes());
    }
    text.extend_from_slice(&line.data);
    if text.last() != Some(&b'\n') {
        text.push(b'\n');
    }
    output::container(&line.stream, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails() {
        assert_eq!(tail("all"), Ok(Tail::All));
        assert_eq!(tail("0"), Ok(Tail::Last(0)));
        assert!(tail("-1").is_err());
        assert!(tail("few").unwrap_err().contains("few"));
    }
}
