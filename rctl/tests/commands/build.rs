//! Building: what is sent at once, what is answered when the daemon asks, and what is shown.

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use rorqual_proto::wire::*;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::daemon::{Daemon, Script, Sent};
use super::{command, rctl};

/// A build that looks at the root of the context, then at its file `a.txt`, and is done.
pub(crate) async fn conversation(
    script: Arc<Mutex<Script>>,
    mut requests: Streaming<BuildRequest>,
) -> Sent<BuildResponse> {
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        let first = requests.message().await.unwrap().unwrap().kind;
        let Some(build_request::Kind::Start(start)) = first else { panic!("no start") };
        let output = start.output();
        script.lock().unwrap().build = Some(start);
        let send = |kind| sender.send(Ok(BuildResponse { kind: Some(kind) }));
        let event = |kind: build_event::Kind, text: &str| {
            let data = text.as_bytes().to_vec().into();
            let event = BuildEvent { kind: kind.into(), step: 1, text: text.into(), data, is_stderr: false };
            build_response::Kind::Event(event)
        };
        send(event(build_event::Kind::Started, "[1/2] RUN make")).await.unwrap();
        send(event(build_event::Kind::Output, "one\ntw")).await.unwrap();
        send(event(build_event::Kind::Output, "o\n")).await.unwrap();
        let questions = [
            (context_query::Kind::List, ""),
            (context_query::Kind::Digest, "a.txt"),
            (context_query::Kind::Read, "a.txt"),
            (context_query::Kind::Read, "../secret"),
        ];
        for (id, (kind, path)) in questions.into_iter().enumerate() {
            let query = ContextQuery {
                id: id as u64,
                context: String::new(),
                kind: kind.into(),
                paths: vec![path.into()],
            };
            send(build_response::Kind::Query(query)).await.unwrap();
            loop {
                let answer = requests.message().await.unwrap().unwrap().kind;
                let Some(build_request::Kind::Answer(answer)) = answer else { panic!("no answer") };
                let is_last = answer.last || !answer.error.is_empty();
                script.lock().unwrap().build_answers.push(answer);
                if is_last {
                    break;
                }
            }
        }
        let failure = script.lock().unwrap().build_fails.take();
        if let Some(status) = failure {
            send(event(build_event::Kind::Failed, "")).await.unwrap();
            sender.send(Err(status)).await.unwrap();
            return;
        }
        send(event(build_event::Kind::Done, "")).await.unwrap();
        if output != BuildOutput::Unspecified {
            send(build_response::Kind::Output(b"archive".to_vec().into())).await.unwrap();
        }
        let result = BuildResult { digest: "sha256:00".into(), config_digest: "sha256:11".into() };
        send(build_response::Kind::Result(result)).await.unwrap();
    });
    Box::pin(ReceiverStream::new(receiver))
}

fn context() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("Dockerfile"), "FROM scratch\n").unwrap();
    std::fs::write(folder.path().join(".dockerignore"), "*.md\n").unwrap();
    std::fs::write(folder.path().join("a.txt"), "abc").unwrap();
    std::os::unix::fs::symlink("a.txt", folder.path().join("link")).unwrap();
    folder
}

#[tokio::test]
async fn the_daemon_asks_for_what_it_needs() {
    let daemon = Daemon::with(Script::default()).await;
    let folder = context();
    let path = folder.path().to_str().unwrap();
    let iid = daemon.folder().join("iid");
    let secret = daemon.folder().join("secret");
    std::fs::write(&secret, "hush").unwrap();
    let secret = format!("id=s,src={}", secret.display());
    let archive = daemon.folder().join("out.tar");
    let output = format!("type=oci,dest={}", archive.display());
    let words = [
        "build",
        "-t",
        "app:1",
        "--build-arg",
        "A=1",
        "--label",
        "l=x",
        "--secret",
        &secret,
        "--iidfile",
        iid.to_str().unwrap(),
        "-o",
        &output,
        path,
    ];
    let ended = rctl(&daemon.socket(), &words).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), ""), "{}", ended.err);
    for line in ["#1 [1/2] RUN make\n", " one\n", " two\n", "#1 DONE ", "built sha256:00 as app:1\n"] {
        assert!(ended.err.contains(line), "{line:?} in {}", ended.err);
    }
    assert_eq!(std::fs::read_to_string(&iid).unwrap(), "sha256:00");
    assert_eq!(std::fs::read(&archive).unwrap(), b"archive");
    let start = daemon.script(|script| script.build.clone().unwrap());
    assert_eq!((start.file.as_str(), start.ignore.as_deref()), ("FROM scratch\n", Some("*.md\n")));
    assert_eq!((start.args["A"].as_str(), start.labels["l"].as_str()), ("1", "x"));
    assert_eq!(start.secrets["s"], b"hush");
    let answers = daemon.script(|script| script.build_answers.clone());
    let mut names: Vec<_> =
        answers[0].entries.iter().map(|entry| (entry.name.as_str(), entry.kind())).collect();
    names.sort();
    let file = context_entry::Kind::File;
    let expected = [
        (".dockerignore", file),
        ("Dockerfile", file),
        ("a.txt", file),
        ("link", context_entry::Kind::Symlink),
    ];
    assert_eq!(names, expected);
    let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert!(answers.iter().any(|answer| answer.id == 1 && answer.digest == abc));
    assert!(answers.iter().any(|answer| answer.id == 2 && answer.data == b"abc"[..]));
    // Nothing outside of the context is ever given away.
    let outside: Vec<_> = answers.iter().filter(|answer| answer.id == 3).collect();
    assert!(outside.iter().all(|answer| answer.data.is_empty()) && outside[0].error.contains("leads out"));
}

#[tokio::test]
async fn a_failed_build_shows_what_the_step_wrote_and_why() {
    let status = tonic::Status::failed_precondition(
        "Dockerfile:2: the command ended with exit code 3\n   2 | RUN make",
    );
    let daemon = Daemon::with(Script { build_fails: Some(status), ..Script::default() }).await;
    let folder = context();
    let ended = rctl(&daemon.socket(), &["build", "-q", folder.path().to_str().unwrap()]).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""));
    let expected =
        "one\ntwo\nrctl: cannot build: Dockerfile:2: the command ended with exit code 3\n   2 | RUN make\n";
    assert_eq!(ended.err, expected);
}

#[tokio::test]
async fn a_dockerfile_on_the_standard_input_has_no_context() {
    let daemon = Daemon::with(Script::default()).await;
    let mut child = command(&daemon.socket(), &["build", "-q", "-"]);
    let mut child =
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"FROM x\n").await.unwrap();
    let output = tokio::time::timeout(super::DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
    // The made-up daemon asks for a file that is not there, and goes on all the same.
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "sha256:00\n");
    assert_eq!(daemon.script(|script| script.build.clone().unwrap().file), "FROM x\n");
    assert!(daemon.script(|script| script.build_answers[0].entries.is_empty()));
}

#[tokio::test]
async fn what_can_not_be_built_is_named() {
    let daemon = Daemon::with(Script::default()).await;
    let empty = tempfile::tempdir().unwrap();
    let path = empty.path().to_str().unwrap();
    for (words, part) in [
        (vec!["build", path], "Dockerfile is not there; -f names"),
        (vec!["build", "/nonexistent"], "cannot build from /nonexistent"),
        (vec!["build", "--secret", "id=x,src=/no/such", path], "is not there"),
        (vec!["build", "https://example.org/x.git"], "a context is a folder"),
        (vec!["build", "-o", "type=image", path], "the types are local"),
    ] {
        let ended = rctl(&daemon.socket(), &words).await;
        assert!(ended.code.is_some_and(|code| code == 1 || code == 2), "{words:?}");
        assert!(ended.err.contains(part), "{words:?}: {}", ended.err);
    }
}
