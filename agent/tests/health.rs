//! Health checks of plain containers, each kind against a real container.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::path::Path;

use rorqual_proto::model::{ContainerSpec, HealthCheck, Mount, MountKind, OnUnhealthy, Probe};
use rorqual_proto::wire::{ContainerState, Health};
use support::{Node, eventually, inside, look, run, shell};

/// A web server whose folder is the test's.
const SERVER: &str = "exec httpd -f -p 80 -h /shared";

fn check(probe: Probe) -> Option<HealthCheck> {
    // Ten minutes to become well, and one failure makes it unhealthy then.
    Some(HealthCheck {
        probe: Some(probe),
        interval_ms: 50,
        start_period_ms: 600_000,
        retries: 1,
        ..Default::default()
    })
}

fn command(args: &[&str], shell: bool) -> Probe {
    Probe::Command { args: args.iter().map(|text| (*text).to_owned()).collect(), shell }
}

async fn becomes(node: &mut Node, name: &str, health: Health) -> String {
    let engine = node.engine.clone();
    eventually(&format!("{name} is {health:?}"), || {
        let mut engine = engine.clone();
        async move {
            let seen = look(&mut engine, name).await?;
            assert_eq!(seen.state(), ContainerState::Running, "{seen:?}");
            (seen.health() == health).then_some(seen.message)
        }
    })
    .await
}

/// With a folder of the test at `/shared`.
fn with_folder(folder: &Path, script: &str, health: Option<HealthCheck>) -> ContainerSpec {
    let mount = Mount {
        kind: MountKind::Bind,
        source: folder.to_str().unwrap().to_owned(),
        target: "/shared".to_owned(),
        read_only: false,
        tmpfs_size_bytes: 0,
    };
    ContainerSpec { mounts: vec![mount], health, ..shell(script) }
}

fn sleepers() -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.starts_with(b"sleep\x004711")).count()
}

#[test]
fn a_container_is_asked_by_command_http_and_connection() {
    inside("a_container_is_asked_by_command_http_and_connection", |world| async move {
        let mut node = world.with_image().await;
        let shared = world.folder.join("shared");
        fs::create_dir(&shared).unwrap();
        let with = |script: &str, health| with_folder(&shared, script, health);
        let http = Probe::Http { port: 80, path: "/well".into() };
        let waits = format!("while ! ls /shared/go; do sleep 0.05; done; {SERVER}");
        for (name, script, probe) in [
            ("http", SERVER, http),
            ("command", "sleep 1000", command(&["ls /shared/well"], true)),
            ("program", "sleep 1000", command(&["ls", "/shared/well"], false)),
            ("tcp", &waits, Probe::Tcp { port: 80 }),
        ] {
            run(&mut node.engine, name, &with(script, check(probe)), None).await;
            becomes(&mut node, name, Health::Starting).await;
        }
        for name in ["well", "go"] {
            fs::write(shared.join(name), "").unwrap();
        }
        for name in ["http", "command", "program", "tcp"] {
            becomes(&mut node, name, Health::Healthy).await;
        }
        fs::remove_file(shared.join("well")).unwrap();
        let said = becomes(&mut node, "http", Health::Unhealthy).await;
        assert_eq!(said, "unhealthy: GET /well from port 80: status 404");
        for name in ["command", "program"] {
            let said = becomes(&mut node, name, Health::Unhealthy).await;
            assert!(said.starts_with("unhealthy: exit code 1: ls: /shared/well: No such file"), "{said}");
        }
        // A plain container goes on, and may be well again.
        fs::write(shared.join("well"), "").unwrap();
        becomes(&mut node, "command", Health::Healthy).await;

        // What an earlier daemon knew, the next one knows.
        node.end().await;
        let mut node = world.start().await;
        becomes(&mut node, "tcp", Health::Healthy).await;
        fs::remove_file(shared.join("well")).unwrap();
        becomes(&mut node, "program", Health::Unhealthy).await;
    });
}

#[test]
fn a_question_that_is_not_answered_in_time_is_ended() {
    inside("a_question_that_is_not_answered_in_time_is_ended", |world| async move {
        let mut node = world.with_image().await;
        let check = HealthCheck {
            probe: Some(command(&["sleep", "4711"], false)),
            interval_ms: 10,
            timeout_ms: 300,
            retries: 1,
            ..HealthCheck::default()
        };
        let spec = ContainerSpec { health: Some(check), ..shell("sleep 1000") };
        run(&mut node.engine, "slow", &spec, None).await;
        let said = becomes(&mut node, "slow", Health::Unhealthy).await;
        assert_eq!(said, "unhealthy: no answer within 300ms");
        // A few more of them, of which none stays.
        for _ in 0..3 {
            eventually("one is asked", || async { (sleepers() == 1).then_some(()) }).await;
            eventually("and is ended", || async { (sleepers() == 0).then_some(()) }).await;
        }
    });
}

#[test]
fn an_unhealthy_container_is_restarted_where_that_is_asked_for() {
    inside("an_unhealthy_container_is_restarted_where_that_is_asked_for", |world| async move {
        let mut node = world.with_image().await;
        let shared = world.folder.join("shared");
        fs::create_dir(&shared).unwrap();
        // Well from its second start on. Nothing else would restart it.
        let check = HealthCheck {
            probe: Some(command(&["test $(wc -l < /shared/starts) -gt 1"], true)),
            interval_ms: 50,
            retries: 1,
            on_unhealthy: Some(OnUnhealthy::Restart),
            ..HealthCheck::default()
        };
        let spec = with_folder(&shared, "echo >> /shared/starts; exec sleep 1000", Some(check));
        run(&mut node.engine, "phoenix", &ContainerSpec { stop_grace_ms: 1, ..spec }, None).await;
        let engine = node.engine.clone();
        eventually("it is well", || {
            let mut engine = engine.clone();
            async move {
                let seen = look(&mut engine, "phoenix").await?;
                (seen.health() == Health::Healthy).then_some(())
            }
        })
        .await;
        assert_eq!(fs::read_to_string(shared.join("starts")).unwrap(), "\n\n");
    });
}
