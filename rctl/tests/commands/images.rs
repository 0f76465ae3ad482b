//! Images: loading, pulling, removing.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;

use super::daemon::{Daemon, Script};
use super::{command, rctl};

#[tokio::test]
async fn a_file_is_sent_whole() {
    let daemon = Daemon::with(Script::default()).await;
    let file = daemon.folder().join("image.tar");
    std::fs::write(&file, vec![7; 5_000_001]).unwrap();
    let ended = rctl(&daemon.socket(), &["image", "load", "-i", file.to_str().unwrap()]).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), "Loaded image: nginx:demo\n"), "{}", ended.err);
    assert_eq!(daemon.script(|script| script.loaded_bytes), 5_000_001);
    let words = ["image", "load", "--quiet", "--format", "json", "-i", file.to_str().unwrap()];
    let ended = rctl(&daemon.socket(), &words).await;
    let expected = "{\"Reference\":\"docker.io/library/nginx:demo\",\"Digest\":\"sha256:00\"}\n";
    assert_eq!((ended.out.as_str(), ended.err.as_str()), (expected, ""));
}

#[tokio::test]
async fn the_standard_input_is_read() {
    let daemon = Daemon::with(Script::default()).await;
    let mut command = command(&daemon.socket(), &["image", "load", "-q"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&vec![1; 1_000_000]).await.unwrap();
    drop(stdin);
    let output = tokio::time::timeout(super::DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
    assert!(output.status.success());
    assert_eq!(daemon.script(|script| script.loaded_bytes), 1_000_000);
}

#[tokio::test]
async fn what_can_not_be_loaded_is_named() {
    let daemon = Daemon::with(Script { load_fails_after_bytes: Some(1), ..Script::default() }).await;
    let missing = rctl(&daemon.socket(), &["image", "load", "-i", "/nonexistent/image.tar"]).await;
    assert_eq!(missing.code, Some(1));
    assert!(
        missing.err.starts_with("rctl: cannot load /nonexistent/image.tar: No such file"),
        "{}",
        missing.err
    );
    let folder = rctl(&daemon.socket(), &["image", "load", "-i", "/tmp"]).await;
    assert_eq!(
        (folder.code, folder.err.as_str()),
        (Some(1), "rctl: cannot load /tmp: it is a folder, not an archive\n")
    );
    let file = daemon.folder().join("image.tar");
    std::fs::write(&file, vec![7; 20_000_000]).unwrap();
    let corrupted = rctl(&daemon.socket(), &["image", "load", "-q", "-i", file.to_str().unwrap()]).await;
    assert_eq!(corrupted.code, Some(1));
    assert!(corrupted.err.contains("image.tar: layer 2 is corrupted"), "{}", corrupted.err);
}

#[tokio::test]
async fn pulling_shows_progress_and_the_digest() {
    let daemon = Daemon::with(Script::default()).await;
    let ended = rctl(&daemon.socket(), &["image", "pull", "nginx"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), "Pulled nginx: sha256:00\n"));
    assert!(ended.err.contains("aa: fetching 1B/2B\n"), "{}", ended.err);
    let ended = rctl(&daemon.socket(), &["image", "pull", "-q", "nginx"]).await;
    assert_eq!((ended.out.as_str(), ended.err.as_str()), ("sha256:00\n", ""));
}

#[tokio::test]
async fn one_that_stays_does_not_keep_the_others() {
    let daemon = Daemon::with(Script::default()).await;
    let ended = rctl(&daemon.socket(), &["image", "rm", "used", "docker.io/library/a:1"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), "Untagged: a:1\nDeleted: sha256:00\n"));
    assert!(ended.err.starts_with("rctl: cannot remove image used: container a uses it"), "{}", ended.err);
}

#[tokio::test]
async fn an_archive_appears_when_it_is_whole() {
    let daemon = Daemon::with(Script::default()).await;
    let file = daemon.folder().join("saved.tar");
    let path = file.to_str().unwrap();
    let ended = rctl(&daemon.socket(), &["save", "-o", path, "a", "b"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), ""), "{}", ended.err);
    assert_eq!(std::fs::read(&file).unwrap(), b"archive");
    let ended = rctl(&daemon.socket(), &["image", "save", "a"]).await;
    assert_eq!(ended.out, "archive");
    std::fs::remove_file(&file).unwrap();
    let ended = rctl(&daemon.socket(), &["save", "-o", path, "broken"]).await;
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.err, "rctl: cannot save broken: blob sha256:00 is missing\n");
    let left: Vec<_> =
        std::fs::read_dir(daemon.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("saved")), "{left:?}");
}

#[tokio::test]
async fn importing_sends_the_settings_first() {
    let daemon = Daemon::with(Script::default()).await;
    let file = daemon.folder().join("files.tar");
    std::fs::write(&file, vec![7; 1_000_001]).unwrap();
    let ended = rctl(&daemon.socket(), &["import", "-c", "CMD x", file.to_str().unwrap(), "made:1"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), "sha256:00\n"), "{}", ended.err);
    assert_eq!(daemon.script(|script| script.asked.clone()), ["import made:1 [\"CMD x\"]"]);
    assert_eq!(daemon.script(|script| script.loaded_bytes), 1_000_001);
    // The daemon fetches what is on the web.
    let ended = rctl(&daemon.socket(), &["import", "http://x/y.tar"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(daemon.asked("fetch http://x/y.tar"));
}

#[tokio::test]
async fn nothing_is_pruned_without_a_yes() {
    let daemon = Daemon::with(Script::default()).await;
    for answer in ["n\n", "\n", ""] {
        let ended = answered(&daemon, &["system", "prune", "-a"], answer).await;
        assert_eq!(ended.0, Some(1), "{answer:?}");
        assert!(ended.1.contains("all images that no container uses"), "{}", ended.1);
    }
    assert_eq!(daemon.script(|script| script.asked.len()), 0);
    let ended = answered(&daemon, &["system", "prune", "-a"], "y\n").await;
    assert_eq!(ended.0, Some(0));
    assert!(ended.1.ends_with("Total reclaimed space: 7kB\n"), "{}", ended.1);
    assert_eq!(
        daemon.script(|script| script.asked.clone()),
        ["prune containers", "prune images true 0", "prune the build cache 0"]
    );
    let ended = rctl(&daemon.socket(), &["image", "prune", "-f", "--filter", "label=a"]).await;
    let expected = "Deleted Images:\nuntagged: a:1\ndeleted: sha256:00\n\nTotal reclaimed space: 2kB\n";
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), expected));
}

async fn answered(daemon: &Daemon, words: &[&str], answer: &str) -> (Option<i32>, String) {
    let mut command = command(&daemon.socket(), words);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(answer.as_bytes()).await.unwrap();
    drop(stdin);
    let output = tokio::time::timeout(super::DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn changes_and_commits_are_told_in_dockers_way() {
    let daemon = Daemon::with(Script::default()).await;
    let ended = rctl(&daemon.socket(), &["diff", "web"]).await;
    assert_eq!(ended.out, "C /etc\nA /etc/a\\n\n");
    let ended = rctl(&daemon.socket(), &["commit", "web", "made:1"]).await;
    assert_eq!(ended.out, "sha256:00\n");
    rctl(&daemon.socket(), &["container", "commit", "--pause=false", "web"]).await;
    rctl(&daemon.socket(), &["tag", "a", "b:2"]).await;
    let asked = daemon.script(|script| script.asked.clone());
    assert_eq!(asked, ["commit web made:1 true", "commit web  false", "tag a b:2"]);
}
