//! Services and the cluster: what is sent, and how waiting ends.

use std::time::{Duration, Instant};

use rorqual_proto::wire::service_spec::Mode;
use rorqual_proto::wire::{
    ContainerSpec, DesiredState, LogLine, Meta, Replicated, Service, ServiceSpec, ServiceView, Task,
    TaskState, TaskStatus,
};
use tonic::Status;

use super::daemon::{Daemon, Script};
use super::{command, rctl};

fn service() -> Service {
    Service {
        id: "s".into(),
        meta: Some(Meta { version: 10, ..Meta::default() }),
        spec: Some(ServiceSpec {
            name: "web".into(),
            container: Some(ContainerSpec {
                image: "docker.io/library/nginx:1".into(),
                ..ContainerSpec::default()
            }),
            mode: Some(Mode::Replicated(Replicated { replicas: 1 })),
            ..ServiceSpec::default()
        }),
        spec_version: 1,
        ..Service::default()
    }
}

fn view(state: TaskState, message: &str) -> ServiceView {
    let running = u32::from(state == TaskState::Running);
    let task = Task {
        id: "t".into(),
        meta: Some(Meta { version: 11, ..Meta::default() }),
        service_name: "web".into(),
        slot: 1,
        spec_version: 1,
        desired_state: DesiredState::Running.into(),
        status: Some(TaskStatus { state: state.into(), message: message.into(), ..TaskStatus::default() }),
        ..Task::default()
    };
    ServiceView {
        service: Some(service()),
        desired: 1,
        running,
        updated: running,
        tasks: vec![task],
        ..Default::default()
    }
}

async fn daemon(watches: Vec<Vec<Result<ServiceView, Status>>>) -> Daemon {
    let services = vec![ServiceView { service: Some(service()), ..ServiceView::default() }];
    Daemon::with(Script { watches: watches.into(), services, ..Script::default() }).await
}

#[tokio::test]
async fn create_sends_the_resolved_image_and_waits() {
    let daemon =
        daemon(vec![vec![Ok(view(TaskState::Preparing, "")), Ok(view(TaskState::Running, ""))]]).await;
    let words = ["service", "create", "--name", "web", "-p", "8080:80", "nginx", "-g", "x"];
    let ended = rctl(&daemon.socket(), &words).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), "s\n"), "{}", ended.err);
    assert_eq!(ended.err, "web: 0/1 running, 1 preparing\nweb: 1/1 running\n");
    let spec = daemon.script(|script| script.created_service.clone()).unwrap();
    let container = spec.container.unwrap();
    assert_eq!(container.image, "docker.io/library/nginx");
    assert!(container.image_digest.starts_with("sha256:0"));
    assert_eq!(container.args, ["-g", "x"]);
}

#[tokio::test]
async fn detached_and_quiet_say_only_the_id() {
    let daemon = daemon(vec![]).await;
    let words = ["service", "create", "--detach", "--quiet", "--name", "web", "nginx"];
    let ended = rctl(&daemon.socket(), &words).await;
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (Some(0), "s\n", ""));
    assert!(!daemon.asked("watch"));
    let words = ["service", "create", "--detach", "--format", "json", "--name", "web", "nginx"];
    let ended = rctl(&daemon.socket(), &words).await;
    assert_eq!(ended.out, "{\"ID\":\"s\",\"Name\":\"web\"}\n");
}

#[tokio::test]
async fn an_image_that_is_not_there_is_told() {
    let daemon = daemon(vec![]).await;
    let ended = rctl(&daemon.socket(), &["service", "create", "--name", "web", "nope"]).await;
    assert_eq!(ended.code, Some(1));
    let expected = "rctl: cannot create service web: there is no image docker.io/library/nope:latest\n";
    assert_eq!(ended.err, expected);
    assert!(daemon.script(|script| script.created_service.is_none()));
}

#[tokio::test]
async fn what_can_not_run_ends_the_wait_with_the_reason() {
    let reason = "`nope` is not in the image";
    let daemon = daemon(vec![vec![Ok(view(TaskState::Rejected, reason))]]).await;
    let start = Instant::now();
    let ended = rctl(&daemon.socket(), &["service", "create", "--name", "web", "nginx", "nope"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.err.contains("service web does not get to run: 0 of 1 replicas run\n  `nope` is not"),
        "{}",
        ended.err
    );
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn the_timeout_is_kept() {
    let daemon = daemon(vec![vec![Ok(view(TaskState::Preparing, ""))]]).await;
    let words = ["service", "create", "--name", "web", "--timeout", "300ms", "nginx"];
    let start = Instant::now();
    let ended = rctl(&daemon.socket(), &words).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("--timeout"), "{}", ended.err);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_lost_leader_is_waited_for() {
    let lost = || Err(Status::unavailable("the cluster has no leader at the moment"));
    let watches = vec![
        vec![Ok(view(TaskState::Preparing, "")), lost()],
        vec![lost()],
        vec![Ok(view(TaskState::Running, ""))],
    ];
    let daemon = daemon(watches).await;
    let ended = rctl(&daemon.socket(), &["service", "scale", "web=1"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), "web scaled to 1\n"), "{}", ended.err);
}

#[tokio::test]
async fn an_interrupt_ends_the_wait_and_not_the_work() {
    let daemon = daemon(vec![vec![Ok(view(TaskState::Preparing, ""))]]).await;
    let mut command = command(&daemon.socket(), &["service", "scale", "web=1"]);
    let child =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    daemon.until_asked("watch").await;
    // rctl listens to signals before it asks.
    let pid = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = tokio::time::timeout(super::DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8_lossy(&output.stderr).contains("The cluster goes on"));
}

#[tokio::test]
async fn scaling_is_all_or_nothing() {
    let daemon = daemon(vec![]).await;
    let ended = rctl(&daemon.socket(), &["service", "scale", "-d", "web=10", "api=3"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(daemon.asked("scale web=10") && daemon.asked("scale api=3"));
    let ended = rctl(&daemon.socket(), &["service", "scale", "nope=1"]).await;
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.err, "rctl: cannot scale nope=1: there is no service nope; nothing was scaled\n");
}

#[tokio::test]
async fn an_update_is_made_anew_when_somebody_was_faster() {
    let daemon = daemon(vec![]).await;
    daemon.script(|script| script.conflicts = 3);
    let words = ["service", "update", "--detach", "--env-add", "A=1", "--image", "nginx:2", "web"];
    let ended = rctl(&daemon.socket(), &words).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), "web\n"), "{}", ended.err);
    let (updates, spec) = daemon.script(|script| {
        (script.asked.iter().filter(|asked| *asked == "update at 10").count(), script.updated_service.clone())
    });
    assert_eq!(updates, 3);
    let container = spec.unwrap().container.unwrap();
    assert_eq!(
        (container.env, container.image.as_str()),
        (vec!["A=1".to_owned()], "docker.io/library/nginx:2")
    );
}

#[tokio::test]
async fn removal_is_over_when_the_service_is_gone() {
    let gone = ServiceView { removed: true, ..ServiceView::default() };
    let daemon = daemon(vec![vec![Ok(view(TaskState::Running, "")), Ok(gone)]]).await;
    let ended = rctl(&daemon.socket(), &["service", "rm", "web"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), "web\n"), "{}", ended.err);
    assert_eq!(ended.err, "web: removing\nweb: removed\n");
}

#[tokio::test]
async fn logs_go_to_where_they_were_written() {
    let daemon = daemon(vec![]).await;
    let line = |stream: &str, text: &str| LogLine {
        stream: stream.into(),
        data: text.to_owned().into(),
        task_name: "web.1".into(),
        node_hostname: "n1".into(),
        ..LogLine::default()
    };
    daemon.script(|script| {
        script.lines =
            vec![line("stdout", "a\n"), line("stderr", "b\n"), line("rorqual", "lines of n2 are missing")];
    });
    let ended = rctl(&daemon.socket(), &["service", "logs", "--tail", "5", "web"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), "web.1@n1 | a\n"));
    assert_eq!(ended.err, "web.1@n1 | b\nrctl: lines of n2 are missing\n");
    assert!(daemon.asked("logs web Some(5)"));
}

#[tokio::test]
async fn init_waits_for_the_session_and_shows_the_way_in() {
    let daemon = daemon(vec![]).await;
    let ended = rctl(&daemon.socket(), &["cluster", "init", "--advertise", "10.0.0.1"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(ended.out.contains("    rctl cluster join --token RQTKN-1-w 10.0.0.1:4780\n"), "{}", ended.out);
    let looks = daemon.script(|script| script.asked.iter().filter(|asked| *asked == "info").count());
    assert_eq!(looks, 3);
}

#[tokio::test]
async fn a_refused_token_is_told_with_the_remedy() {
    let daemon = daemon(vec![]).await;
    let token = format!("RQTKN-1-{}-{}", "0".repeat(50), "0".repeat(25));
    let ended = rctl(&daemon.socket(), &["cluster", "join", "--quiet", "--token", &token, "10.0.0.1"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.err.starts_with("rctl: cannot join the cluster of 10.0.0.1: the token was rotated"),
        "{}",
        ended.err
    );
    assert!(daemon.asked("join 10.0.0.1:4780"));
}

#[tokio::test]
async fn tokens_are_printed_alone() {
    let daemon = daemon(vec![]).await;
    let ended = rctl(&daemon.socket(), &["cluster", "token", "--quiet", "controller"]).await;
    assert_eq!(ended.out, "RQTKN-1-c\n");
    let ended = rctl(&daemon.socket(), &["cluster", "token", "--rotate", "-q", "worker"]).await;
    assert_eq!(ended.out, "RQTKN-1-new\n");
    assert!(daemon.asked("rotate Worker"));
}

#[tokio::test]
async fn self_is_the_node_that_is_asked() {
    let daemon = daemon(vec![]).await;
    let ended = rctl(&daemon.socket(), &["node", "update", "--availability", "drain", "self"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(daemon.asked("update n Drain"));
}

#[tokio::test]
async fn a_service_gets_what_login_keeps_for_its_registry() {
    let (daemon, folder) = (daemon(vec![]).await, tempfile::tempdir().unwrap());
    let socket = daemon.socket();
    let run = async |words: &[&str]| {
        let mut command = command(&socket, words);
        let output = command.env("DOCKER_CONFIG", folder.path()).output().await.unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{words:?}: {err}");
        err
    };
    let create = ["service", "create", "--detach", "--name", "web", "nginx"];
    let asking = ["service", "create", "--with-registry-auth", "--detach", "--name", "web", "nginx"];
    // The made-up daemon finds every image on Docker Hub.
    assert_eq!(run(&create).await, "");
    let note = run(&asking).await;
    assert!(note.contains("no credentials for docker.io"), "a registry that wants nothing is fine: {note}");
    // me:word
    let kept = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"bWU6d29yZA=="}}}"#;
    std::fs::write(folder.path().join("config.json"), kept).unwrap();
    run(&["service", "create", "--with-registry-auth=false", "--detach", "--name", "web", "nginx"]).await;
    run(&["service", "update", "--detach", "--replicas", "2", "web"]).await;
    assert!(!daemon.asked("auth me docker.io"), "it was not asked for");
    for words in [
        &create[..],
        &["service", "update", "--detach", "--image", "nginx:2", "web"],
        &["service", "update", "--detach", "--with-registry-auth", "web"],
    ] {
        daemon.script(|script| script.asked.clear());
        run(words).await;
        assert!(daemon.asked("auth me docker.io") && !daemon.asked("forget auths"), "{words:?}");
    }
    run(&["service", "update", "--detach", "--with-registry-auth=false", "web"]).await;
    assert!(daemon.asked("forget auths"));
    run(&["service", "rollback", "--detach", "web"]).await;
    assert!(daemon.asked("roll back web"));
}

#[tokio::test]
async fn routes_are_listed_with_what_is_wrong() {
    let daemon = daemon(Vec::new()).await;
    let listed = rctl(&daemon.socket(), &["route", "ls"]).await;
    assert!(listed.out.contains("Host(app.example)/   web"), "{}", listed.out);
    assert!(listed.err.contains("node n2: taken"), "{}", listed.err);
    assert!(listed.err.contains("the HTTP edge is off"), "{}", listed.err);
    rctl(&daemon.socket(), &["cluster", "update", "--edge-http", "off"]).await;
    assert!(daemon.asked("update_cluster Some(0)"));
    let refused = rctl(&daemon.socket(), &["cluster", "update", "--edge-http", "99999"]).await;
    assert_eq!(refused.code, Some(2));
    assert!(refused.err.contains("is not a port"), "{}", refused.err);
}

#[tokio::test]
async fn what_is_wrong_with_the_network_ends_with_one() {
    let daemon = daemon(Vec::new()).await;
    let told = rctl(&daemon.socket(), &["doctor"]).await;
    assert_eq!(told.code, Some(1), "{}", told.err);
    for part in ["n1     n2   mtu     too large", "mtu: make it smaller", "1 problem: 28 checks on 2 nodes."]
    {
        assert!(told.out.contains(part), "{}", told.out);
    }
    let told = rctl(&daemon.socket(), &["doctor", "--format", "json"]).await;
    let row = r#"{"Node":"n1","Peer":"n2","Check":"mtu","Problem":"too large","Remedy":"make it smaller"}"#;
    assert_eq!((told.code, told.out.trim(), told.err.as_str()), (Some(1), row, ""));
}
