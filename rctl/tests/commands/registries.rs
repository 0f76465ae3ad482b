//! Registries: logging in and out, pushing, searching, tags.

use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;

use super::daemon::{Daemon, Script};
use super::{DEADLINE, Ended, command};

/// Runs rctl with credentials of its own, and `input` at its standard input.
async fn rctl(daemon: &Daemon, config: &Path, words: &[&str], input: &str) -> Ended {
    let mut child = command(&daemon.socket(), words)
        .env("DOCKER_CONFIG", config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that ends early does not read it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
    let output =
        tokio::time::timeout(DEADLINE, child.wait_with_output()).await.expect("rctl ends in time").unwrap();
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[tokio::test]
async fn what_login_keeps_is_sent_with_a_push_to_that_registry_alone() {
    let (daemon, folder) = (Daemon::with(Script::default()).await, tempfile::tempdir().unwrap());
    let config = folder.path().join("docker");
    let login = ["login", "-u", "me", "--password-stdin", "https://r.example:5000/v2/"];
    let ended = rctl(&daemon, &config, &login, "wrong\n").await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""));
    assert!(ended.err.contains("cannot log in to r.example:5000: it denies access"), "{}", ended.err);
    assert!(!config.exists(), "a password that is wrong was kept");

    let ended = rctl(&daemon, &config, &login, "right\n").await;
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (Some(0), "Logged in to r.example:5000 as me\n"),
        "{}",
        ended.err
    );
    assert!(daemon.asked("login r.example:5000"));
    let ended = rctl(&daemon, &config, &["push", "r.example:5000/app:1"], "").await;
    assert_eq!(ended.out, "Pushed r.example:5000/app:1: sha256:00\n");
    assert!(
        ended.err.contains("aa: mounted from other") && ended.err.contains("pushed alone"),
        "{}",
        ended.err
    );
    assert!(daemon.asked("push r.example:5000/app:1 as me:right"));
    rctl(&daemon, &config, &["image", "push", "-q", "other.example/app:1"], "").await;
    assert!(daemon.asked("push other.example/app:1 as "));

    let logout = ["logout", "r.example:5000"];
    assert_eq!(rctl(&daemon, &config, &logout, "").await.out, "Logged out of r.example:5000\n");
    assert_eq!(rctl(&daemon, &config, &logout, "").await.out, "Not logged in to r.example:5000\n");
    rctl(&daemon, &config, &["push", "r.example:5000/app:2"], "").await;
    assert!(daemon.asked("push r.example:5000/app:2 as "));
}

#[tokio::test]
async fn a_refresh_token_is_kept_in_place_of_the_password() {
    let (daemon, folder) = (Daemon::with(Script::default()).await, tempfile::tempdir().unwrap());
    let ended = rctl(&daemon, folder.path(), &["login", "-u", "me", "--password-stdin"], "offline").await;
    assert_eq!(ended.out, "Logged in to docker.io as me\n", "{}", ended.err);
    let kept = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    let entry = &kept["auths"]["https://index.docker.io/v1/"];
    // `me:` in base64: no password.
    assert_eq!((entry["identitytoken"].as_str(), entry["auth"].as_str()), (Some("t0ken"), Some("bWU6")));
}

#[tokio::test]
async fn without_a_terminal_nothing_is_asked() {
    let (daemon, folder) = (Daemon::with(Script::default()).await, tempfile::tempdir().unwrap());
    let ended = rctl(&daemon, folder.path(), &["login"], "me\nright\n").await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("--password-stdin"), "{}", ended.err);
}

#[tokio::test]
async fn search_and_tags_ask_the_registry_that_is_named() {
    let (daemon, folder) = (Daemon::with(Script::default()).await, tempfile::tempdir().unwrap());
    let ended = rctl(&daemon, folder.path(), &["search", "--limit", "5", "nginx"], "").await;
    assert!(ended.out.starts_with("NAME"), "{}", ended.out);
    assert!(ended.out.contains('…') && ended.out.contains("[OK]"), "{}", ended.out);
    rctl(&daemon, folder.path(), &["search", "r.example/team/app"], "").await;
    assert!(daemon.asked("search docker.io nginx 5") && daemon.asked("search r.example team/app 25"));
    let json = rctl(&daemon, folder.path(), &["search", "--format", "json", "x"], "").await.out;
    let hit: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((hit["StarCount"].as_u64(), hit["IsOfficial"].as_bool()), (Some(7), Some(true)));
    let ended = rctl(&daemon, folder.path(), &["image", "tags", "r.example/app"], "").await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), "1\n2\n"));
}
