//! Plain containers: output, exit codes and signals.

use std::process::Stdio;
use std::time::Duration;

use rorqual_proto::wire::{ContainerInfo, LogLine};
use tokio::io::AsyncWriteExt;
use tonic::Status;

use super::daemon::{Daemon, Script};
use super::{command, rctl};

fn line(stream: &str, text: &str) -> LogLine {
    LogLine { stream: stream.into(), data: text.to_owned().into(), ..LogLine::default() }
}

async fn ending_with(exit_code: i32, lines: Vec<LogLine>) -> Daemon {
    let exit = Some(ContainerInfo { exit_code: Some(exit_code), ..ContainerInfo::default() });
    Daemon::with(Script { exit, lines, ..Script::default() }).await
}

#[tokio::test]
async fn the_foreground_shows_the_output_and_ends_with_the_exit_code() {
    let lines = vec![line("stdout", "out\n"), line("stderr", "err\n")];
    let daemon = ending_with(3, lines).await;
    let ended = rctl(&daemon.socket(), &["run", "--rm", "busybox", "sh", "-c", "exit 3"]).await;
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (Some(3), "out\n", "err\n"));
    let request = daemon.script(|script| script.created_container.clone()).unwrap();
    assert!(request.auto_remove);
    assert_eq!(request.spec.unwrap().args, ["sh", "-c", "exit 3"]);
}

#[tokio::test]
async fn detached_it_prints_the_id() {
    let daemon = ending_with(3, vec![]).await;
    let ended = rctl(&daemon.socket(), &["run", "-d", "--name", "a", "busybox"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), "c1\n"));
    assert!(daemon.asked("start") && !daemon.asked("wait"));
}

#[tokio::test]
async fn a_command_that_is_not_there_is_127() {
    let daemon = ending_with(0, vec![]).await;
    let mut status = Status::failed_precondition("`nope` is not in the image");
    status.metadata_mut().insert("rorqual-exit-code", "127".parse().unwrap());
    daemon.script(|script| script.start = Some(status));
    let ended = rctl(&daemon.socket(), &["run", "--rm", "busybox", "nope"]).await;
    assert_eq!(ended.code, Some(127));
    assert_eq!(ended.err, "rctl: cannot run busybox: `nope` is not in the image\n");
    assert!(daemon.asked("remove"));
}

#[tokio::test]
async fn an_engine_that_fails_is_125() {
    let daemon = ending_with(0, vec![]).await;
    daemon.script(|script| {
        script.start = Some(Status::resource_exhausted("no space left on /var/lib/rorqual"))
    });
    let ended = rctl(&daemon.socket(), &["run", "busybox"]).await;
    assert_eq!(ended.code, Some(125));
    assert!(!daemon.asked("remove"));
    let ended = rctl(&daemon.socket(), &["run", "nope"]).await;
    assert_eq!(ended.code, Some(125));
}

#[tokio::test]
async fn signals_ask_it_to_end() {
    for signal in ["-TERM", "-INT"] {
        let exit = Some(ContainerInfo { exit_code: Some(143), ..ContainerInfo::default() });
        let lines = vec![line("stdout", "ready\n")];
        let daemon =
            Daemon::with(Script { exit, lines, runs_until_stopped: true, ..Script::default() }).await;
        let mut command = command(&daemon.socket(), &["run", "busybox"]);
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        // rctl listens to signals before it starts the container.
        daemon.until_asked("start").await;
        let pid = child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
        let output = tokio::time::timeout(super::DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
        assert_eq!(output.status.code(), Some(143), "{signal}");
        assert!(daemon.asked("stop c1 None"));
    }
}

#[tokio::test]
async fn several_are_stopped_and_the_one_that_is_not_there_is_told() {
    let daemon = ending_with(0, vec![]).await;
    let ended = rctl(&daemon.socket(), &["stop", "-t", "3", "a", "gone", "b"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), "a\nb\n"));
    assert_eq!(ended.err, "rctl: cannot stop container gone: there is no container gone\n");
    assert!(daemon.asked("stop a Some(3000)"));
}

#[tokio::test]
async fn a_container_comes_into_networks_and_leaves_them() {
    let daemon = ending_with(0, vec![]).await;
    let words = ["network", "connect", "--alias", "db", "--ip", "10.20.0.7", "back", "a"];
    assert_eq!(rctl(&daemon.socket(), &words).await.code, Some(0));
    assert!(daemon.asked("connect a to back as [\"db\"] at 10.20.0.7"));
    assert_eq!(rctl(&daemon.socket(), &["network", "disconnect", "bridge", "a"]).await.code, Some(0));
    assert!(daemon.asked("disconnect a from local"));
    let ended = rctl(&daemon.socket(), &["network", "disconnect", "other", "a"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("is not in network `other`"), "{}", ended.err);
    assert_eq!(rctl(&daemon.socket(), &["network", "disconnect", "-f", "other", "a"]).await.code, Some(0));
}

#[tokio::test]
async fn signals_to_send_are_checked() {
    let daemon = ending_with(0, vec![]).await;
    assert_eq!(rctl(&daemon.socket(), &["kill", "-s", "HUP", "a"]).await.code, Some(0));
    assert!(daemon.asked("kill HUP"));
    assert_eq!(rctl(&daemon.socket(), &["kill", "-s", "NOPE", "a"]).await.code, Some(2));
}

#[tokio::test]
async fn an_empty_list_is_a_header_or_nothing() {
    let daemon = ending_with(0, vec![]).await;
    let ended = rctl(&daemon.socket(), &["ps"]).await;
    assert_eq!(ended.out, "CONTAINER ID   IMAGE   COMMAND   CREATED   STATUS   PORTS   NAMES\n");
    assert_eq!(rctl(&daemon.socket(), &["ps", "--format", "json"]).await.out, "");
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_error() {
    let daemon = ending_with(0, vec![]).await;
    let mut child = command(&daemon.socket(), &["image", "ls"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Closed before anything is written.
    drop(child.stdout.take());
    let output =
        tokio::time::timeout(Duration::from_secs(20), child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// Runs rctl with something on its standard input.
async fn with_input(daemon: &Daemon, words: &[&str], input: &[u8]) -> std::process::Output {
    let mut command = command(&daemon.socket(), words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).await.unwrap();
    tokio::time::timeout(super::DEADLINE, child.wait_with_output()).await.unwrap().unwrap()
}

#[tokio::test]
async fn exec_passes_input_and_output_on_and_ends_with_the_exit_code() {
    let daemon = Daemon::with(Script::default()).await;
    let input = vec![b'x'; 300_000];
    let words = ["exec", "-i", "-u", "app", "-w", "/srv", "-e", "A=1", "web", "cat", "-"];
    let output = with_input(&daemon, &words, &input).await;
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(7), &b"ready\n"[..]));
    assert_eq!(output.stdout, input);
    let executed = daemon.script(|script| script.executed.clone()).unwrap();
    assert_eq!(
        (executed.name.as_str(), executed.args.as_slice()),
        ("web", &["cat".to_owned(), "-".to_owned()][..])
    );
    assert_eq!((executed.user.as_str(), executed.workdir.as_str()), ("app", "/srv"));
    assert_eq!(executed.env, ["A=1"]);
    assert!(executed.stdin && !executed.tty && !executed.detach);
}

#[tokio::test]
async fn exec_of_what_is_not_there_is_127() {
    let daemon = Daemon::with(Script::default()).await;
    let mut status = Status::failed_precondition("command \"nope\" not found in the container");
    status.metadata_mut().insert("rorqual-exit-code", "127".parse().unwrap());
    daemon.script(|script| script.start = Some(status));
    let ended = rctl(&daemon.socket(), &["exec", "web", "nope"]).await;
    assert_eq!(ended.code, Some(127));
    assert_eq!(ended.err, "rctl: cannot execute nope in web: command \"nope\" not found in the container\n");
}

#[tokio::test]
async fn with_input_the_foreground_is_attached() {
    let daemon = ending_with(7, vec![]).await;
    let output = with_input(&daemon, &["run", "-i", "--rm", "busybox", "cat"], b"hello\n").await;
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(7), &b"hello\n"[..]));
    assert!(daemon.asked("attach") && !daemon.asked("logs"));
    let request = daemon.script(|script| script.created_container.clone()).unwrap();
    assert!(request.spec.unwrap().open_stdin);
}

#[tokio::test]
async fn what_ended_before_anybody_was_attached_is_in_the_log() {
    let daemon = ending_with(3, vec![line("stdout", "soon gone\n")]).await;
    daemon.script(|script| script.attach = Some(Status::failed_precondition("container c1 is not running")));
    let output = with_input(&daemon, &["run", "-i", "busybox"], b"").await;
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"soon gone\n"[..]));
}
