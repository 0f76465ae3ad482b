//! The `rctl` binary against a made-up daemon on a Unix socket: what it sends, prints and exits with.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod build;
mod containers;
mod daemon;
mod images;
mod registries;
mod services;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Nothing here takes long; a test that hangs has found a bug.
const DEADLINE: Duration = Duration::from_secs(30);

/// How a command ended.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

fn command(socket: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rctl"));
    command.args(words).env("RORQUAL_SOCKET", socket).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs rctl to its end.
async fn rctl(socket: &Path, words: &[&str]) -> Ended {
    let output = tokio::time::timeout(DEADLINE, command(socket, words).output()).await;
    let output = output.expect("rctl ends in time").unwrap();
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[tokio::test]
async fn without_a_daemon_the_socket_and_the_remedy_are_named() {
    let socket = Path::new("/nonexistent/r.sock");
    for (words, code) in [(&["ps"][..], 1), (&["service", "ls"], 1), (&["run", "busybox"], 125)] {
        let ended = rctl(socket, words).await;
        assert_eq!(ended.code, Some(code), "{words:?}");
        assert!(ended.err.contains("/nonexistent/r.sock"), "{}", ended.err);
        assert!(ended.err.contains("systemctl start rorquald"), "{}", ended.err);
        assert_eq!(ended.out, "");
    }
}

#[tokio::test]
async fn wrong_usage_is_2_and_help_is_0() {
    let socket = Path::new("/nonexistent/r.sock");
    for words in [&[][..], &["service", "scale", "web"], &["run", "--memory", "1k", "x"], &["nope"]] {
        assert_eq!(rctl(socket, words).await.code, Some(2), "{words:?}");
    }
    assert_eq!(rctl(socket, &["--help"]).await.code, Some(0));
    assert_eq!(rctl(socket, &["completion", "bash"]).await.code, Some(0));
}
