//! Runs `nft`: one script, one transaction.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::Error;

/// A transaction takes milliseconds, also a large one less than a second.
const TIMEOUT: Duration = Duration::from_secs(30);
/// More of what `nft` has to say is not kept.
const REASON_BYTES: usize = 4096;

/// Runs a script. Either all of it takes effect or nothing.
pub(crate) fn run(script: &str) -> Result<(), Error> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| Error::NftMissing { source })?;
    // If it ends early it says why on stderr, so a broken pipe is not the message to show.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    let mut reason = Vec::new();
    let heard = child.stderr.take().map_or(Ok(()), |mut stderr| read_until_end(&mut stderr, &mut reason));
    if let Err(error) = heard {
        let killed = child.kill();
        tracing::error!(%error, ?killed, "nft does not end");
    }
    let status = child.wait().map_err(|source| Error::NftMissing { source })?;
    if status.success() && written.is_ok() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&reason);
    let mut lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).take(4).collect();
    let ended = status.to_string();
    if lines.is_empty() {
        lines.push(&ended);
    }
    Err(Error::Nft { reason: lines.join(" | ") })
}

/// Whether the table is there.
pub(crate) fn has_table(table: &str) -> Result<bool, Error> {
    match run(&format!("list chain inet {table} balance\n")) {
        Ok(()) => Ok(true),
        Err(Error::Nft { .. }) => Ok(false),
        Err(other) => Err(other),
    }
}

fn read_until_end(pipe: &mut (impl Read + AsFd), text: &mut Vec<u8>) -> io::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    let mut buffer = [0; 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
            continue;
        }
        match pipe.read(&mut buffer)? {
            0 => return Ok(()),
            length if text.len() < REASON_BYTES => text.extend_from_slice(&buffer[..length]),
            _ => {}
        }
    }
}
