//! Input and output of running containers through the engine API, with the real runtime.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use rorqual_proto::wire::{self, stream_request, stream_response};
use support::{Node, World, inside, lives, log, look, run, shell, wait};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// A call of attach or exec under way.
struct Call {
    say: mpsc::Sender<wire::StreamRequest>,
    answers: Streaming<wire::StreamResponse>,
}

impl Call {
    async fn begin(node: &mut Node, first: stream_request::Kind) -> Result<Call, Status> {
        let (say, requests) = mpsc::channel(16);
        let attach = matches!(first, stream_request::Kind::Attach(_));
        say.send(wire::StreamRequest { kind: Some(first) }).await.unwrap();
        let requests = ReceiverStream::new(requests);
        let answers = match attach {
            true => node.engine.attach(requests).await?,
            false => node.engine.exec(requests).await?,
        };
        let mut call = Call { say, answers: answers.into_inner() };
        let Some(stream_response::Kind::Started(_)) = call.next().await? else { panic!("not started") };
        Ok(call)
    }

    async fn attach(node: &mut Node, name: &str) -> Result<Call, Status> {
        Call::begin(node, stream_request::Kind::Attach(wire::AttachStart { name: name.to_owned() })).await
    }

    async fn say(&self, kind: stream_request::Kind) {
        self.say.send(wire::StreamRequest { kind: Some(kind) }).await.unwrap();
    }

    async fn next(&mut self) -> Result<Option<stream_response::Kind>, Status> {
        Ok(self.answers.message().await?.and_then(|response| response.kind))
    }

    /// (standard output, standard error, exit code)
    async fn finish(mut self) -> (String, String, i32) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match self.next().await.unwrap().unwrap() {
                stream_response::Kind::Output(bytes) => out.extend(bytes),
                stream_response::Kind::ErrorOutput(bytes) => err.extend(bytes),
                stream_response::Kind::ExitCode(code) => {
                    let text = |bytes| String::from_utf8(bytes).unwrap();
                    return (text(out), text(err), code);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn attached_the_client_types_and_reads() {
    inside("attached_the_client_types_and_reads", |world: World| async move {
        let mut node = world.with_image().await;
        let spec = rorqual_proto::model::ContainerSpec {
            open_stdin: true,
            ..shell("echo ready; cat; echo bad >&2; exit 4")
        };
        let id = run(&mut node.engine, "typed", &spec, None).await;
        let call = Call::attach(&mut node, "typed").await.unwrap();
        call.say(stream_request::Kind::Input(b"hello ".to_vec())).await;
        call.say(stream_request::Kind::Input(b"whale\n".to_vec())).await;
        call.say(stream_request::Kind::EndOfInput(wire::EndOfInput {})).await;
        let (out, err, code) = call.finish().await;
        assert_eq!((out.as_str(), err.as_str(), code), ("ready\nhello whale\n", "bad\n", 4));
        assert_eq!(wait(&mut node.engine, &id).await.exit_code, Some(4));
        assert!(log(&mut node.engine, "typed", false).await.contains("hello whale\n"));
        let status = Call::attach(&mut node, "typed").await.map(drop).unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("rctl logs typed"), "{status}");
        assert_eq!(Call::attach(&mut node, "nobody").await.map(drop).unwrap_err().code(), Code::NotFound);
    });
}

#[test]
fn a_client_that_leaves_leaves_the_container_alone() {
    inside("a_client_that_leaves_leaves_the_container_alone", |world: World| async move {
        let mut node = world.with_image().await;
        let id = run(&mut node.engine, "left", &shell("sleep 1000"), None).await;
        for _ in 0..100 {
            drop(Call::attach(&mut node, "left").await.unwrap());
        }
        let pid = look(&mut node.engine, &id).await.unwrap().pid;
        assert!(lives(pid));
        // Nor does the monitor keep what they left: there is room for 64.
        drop(Call::attach(&mut node, "left").await.unwrap());
    });
}

fn exec(name: &str, script: &str) -> wire::ExecStart {
    wire::ExecStart {
        name: name.to_owned(),
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..wire::ExecStart::default()
    }
}

#[test]
fn a_program_is_executed_in_a_container() {
    inside("a_program_is_executed_in_a_container", |world: World| async move {
        let mut node = world.with_image().await;
        let id = run(&mut node.engine, "web", &shell("sleep 1000"), None).await;
        let start = wire::ExecStart {
            env: vec!["WHO=whale".into()],
            stdin: true,
            ..exec("web", "cat; echo $GREETING $WHO; echo bad >&2; exit 5")
        };
        let call = Call::begin(&mut node, stream_request::Kind::Exec(start)).await.unwrap();
        call.say(stream_request::Kind::Input(b"typed\n".to_vec())).await;
        call.say(stream_request::Kind::EndOfInput(wire::EndOfInput {})).await;
        let ended = call.finish().await;
        assert_eq!(ended, ("typed\nhello whale\n".to_owned(), "bad\n".to_owned(), 5));

        // By the first characters of its id, with a terminal.
        let start = wire::ExecStart {
            tty: true,
            size: Some(wire::TerminalSize { columns: 90, rows: 30 }),
            ..exec(&id[..8], "test -t 0 && test -t 1 && echo a terminal")
        };
        let call = Call::begin(&mut node, stream_request::Kind::Exec(start)).await.unwrap();
        assert_eq!(call.finish().await.0, "a terminal\r\n");

        // Detached it goes on without anybody.
        let start = wire::ExecStart { detach: true, ..exec("web", "sleep 0.1; touch /tmp/done") };
        drop(Call::begin(&mut node, stream_request::Kind::Exec(start)).await.unwrap());
        let pid = look(&mut node.engine, &id).await.unwrap().pid;
        let done = std::path::PathBuf::from(format!("/proc/{pid}/root/tmp/done"));
        support::eventually("the detached program", async || done.exists().then_some(())).await;

        for (command, code) in [("/no/such", "127"), ("/etc/broken", "126")] {
            let start = wire::ExecStart { args: vec![command.into()], ..exec("web", "") };
            let status =
                Call::begin(&mut node, stream_request::Kind::Exec(start)).await.map(drop).unwrap_err();
            assert!(status.message().contains(command), "{status}");
            assert_eq!(status.metadata().get(rorqual_agent::EXIT_CODE_METADATA).unwrap(), code);
        }
        let start = wire::ExecStart { args: Vec::new(), ..exec("web", "") };
        let status = Call::begin(&mut node, stream_request::Kind::Exec(start)).await.map(drop).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    });
}
