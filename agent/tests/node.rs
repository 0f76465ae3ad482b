//! Plain containers on a node without a cluster, with the real runtime, images and network.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::{Duration, Instant};

use rorqual_agent::EXIT_CODE_METADATA;
use rorqual_proto::{model, wire};
use support::{eventually, inside, lives, log, look, named, run, shell, wait};

fn restart(condition: model::RestartCondition, max_attempts: u32) -> model::RestartPolicy {
    model::RestartPolicy { condition, delay_ms: 10, max_attempts, ..model::RestartPolicy::default() }
}

#[test]
fn a_container_runs_and_tells_its_end() {
    inside("a_container_runs_and_tells_its_end", |world| async move {
        let mut node = world.with_image().await;
        let engine = &mut node.engine;
        let spec = model::ContainerSpec {
            env: vec!["NAME=whale".into()],
            hostname: Some("boat".into()),
            mounts: vec![model::Mount {
                kind: model::MountKind::Volume,
                source: "kept".into(),
                target: "/kept".into(),
                read_only: false,
                tmpfs_size_bytes: 0,
            }],
            ..shell(
                "echo $GREETING $NAME; hostname; cat /etc/resolv.conf; touch /kept/x; echo bad >&2; exit 3",
            )
        };
        let id = run(engine, "", &spec, None).await;
        let ended = wait(engine, &id).await;
        assert_eq!((ended.exit_code, ended.state()), (Some(3), wire::ContainerState::Exited));
        assert!(ended.name.contains('_'), "{}", ended.name);
        let text = log(engine, &ended.name, false).await;
        assert!(text.starts_with("hello whale\nboat\nnameserver 169.254.53.53\n"), "{text}");
        assert!(text.ends_with("bad\n"), "{text}");
        assert!(world.data().join("volumes/kept/x").exists());

        // By the first characters of its id; its folder goes, the volume stays.
        engine
            .remove_container(wire::RemoveContainerRequest { name: id[..8].to_owned(), force: false })
            .await
            .unwrap();
        assert!(look(engine, &id).await.is_none());
        assert!(!world.data().join("containers").join(&id).exists());
        assert!(world.data().join("volumes/kept/x").exists());
    });
}

#[test]
fn what_can_not_start_says_why_with_the_shells_exit_code() {
    inside("what_can_not_start_says_why_with_the_shells_exit_code", |world| async move {
        let mut node = world.with_image().await;
        let engine = &mut node.engine;
        for (command, code, words) in
            [("/no/such", "127", "not found"), ("/etc/broken", "126", "cannot be executed")]
        {
            let spec = model::ContainerSpec { args: vec![command.into()], ..shell("") };
            let request = wire::CreateContainerRequest { spec: Some((&spec).into()), ..Default::default() };
            let id = engine.create_container(request).await.unwrap().into_inner().id;
            let status = engine.start_container(named(&id)).await.unwrap_err();
            assert!(status.message().contains(command) && status.message().contains(words), "{status}");
            assert_eq!(status.metadata().get(EXIT_CODE_METADATA).unwrap(), code);
            let seen = look(engine, &id).await.unwrap();
            assert_eq!((seen.exit_code.unwrap().to_string().as_str(), seen.pid), (code, 0));
        }
        let spec = model::ContainerSpec { image: "localhost:1/nope:1".into(), ..shell("true") };
        let request = wire::CreateContainerRequest { spec: Some((&spec).into()), ..Default::default() };
        let status = engine.create_container(request.clone()).await.unwrap_err();
        assert!(status.message().contains("localhost:1/nope:1"), "{status}");
        assert!(status.message().contains("rctl image load"), "{status}");

        run(engine, "taken", &shell("sleep 1000"), None).await;
        let again = wire::CreateContainerRequest {
            name: "taken".into(),
            spec: Some((&shell("true")).into()),
            ..Default::default()
        };
        let status = engine.create_container(again).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status}");
        let remove = wire::RemoveContainerRequest { name: "taken".into(), force: false };
        let status = engine.remove_container(remove).await.unwrap_err();
        assert!(status.message().contains("--force"), "{status}");
        let in_use = wire::RemoveImageRequest { name: "box".into(), force: false };
        let status = engine.remove_image(in_use).await.unwrap_err();
        assert!(status.message().contains("in use"), "{status}");
    });
}

#[test]
fn a_container_that_fails_is_restarted_by_its_policy() {
    inside("a_container_that_fails_is_restarted_by_its_policy", |world| async move {
        let mut node = world.with_image().await;
        let engine = &mut node.engine;
        let policy = restart(model::RestartCondition::OnFailure, 2);
        run(engine, "loop", &shell("echo run; exit 7"), Some(policy)).await;
        let ended = wait(engine, "loop").await;
        assert_eq!((ended.restarts, ended.exit_code), (2, Some(7)));
        assert!(ended.message.contains("exited with code 7"), "{}", ended.message);
        assert_eq!(log(engine, "loop", true).await, "run\nrun\nrun\n");

        // What it wrote into its file system is there after a restart.
        let script = "if [ -e /seen ]; then echo again; else touch /seen; exit 1; fi";
        let policy = restart(model::RestartCondition::OnFailure, 0);
        run(engine, "twice", &shell(script), Some(policy)).await;
        let ended = wait(engine, "twice").await;
        assert_eq!((ended.restarts, ended.exit_code), (1, Some(0)));
    });
}

#[test]
fn a_stop_asks_first_and_kills_after_the_grace() {
    inside("a_stop_asks_first_and_kills_after_the_grace", |world| async move {
        let mut node = world.with_image().await;
        let engine = &mut node.engine;
        let always = restart(model::RestartCondition::Any, 0);
        let polite = shell("trap 'exit 5' TERM; echo up; while true; do sleep 0.05; done");
        run(engine, "polite", &polite, Some(always)).await;
        eventually("up", || {
            let mut engine = engine.clone();
            async move { (log(&mut engine, "polite", false).await == "up\n").then_some(()) }
        })
        .await;
        let stop = |name: &str, grace_ms| wire::StopContainerRequest { name: name.into(), grace_ms };
        let stopped = engine.stop_container(stop("polite", None)).await.unwrap();
        let stopped = stopped.into_inner().container.unwrap();
        assert_eq!((stopped.exit_code, stopped.restarts), (Some(5), 0));

        run(engine, "deaf", &shell("trap '' TERM; sleep 1000"), None).await;
        let began = Instant::now();
        let stopped = engine.stop_container(stop("deaf", Some(300))).await.unwrap();
        assert_eq!(stopped.into_inner().container.unwrap().exit_code, Some(137));
        assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());

        // It starts again, with the files that it had.
        engine.start_container(named("deaf")).await.unwrap();
        let kill = wire::KillContainerRequest { name: "deaf".into(), signal: "KILL".into() };
        engine.kill_container(kill).await.unwrap();
        assert_eq!(wait(engine, "deaf").await.exit_code, Some(137));
    });
}

#[test]
fn a_container_can_remove_itself_without_losing_its_output() {
    inside("a_container_can_remove_itself_without_losing_its_output", |world| async move {
        let mut node = world.with_image().await;
        let engine = &mut node.engine;
        let request = wire::CreateContainerRequest {
            name: "brief".into(),
            spec: Some((&shell("seq 3; exit 4")).into()),
            auto_remove: true,
            ..Default::default()
        };
        let id = engine.create_container(request).await.unwrap().into_inner().id;
        let follower = tokio::spawn({
            let mut engine = engine.clone();
            async move { log(&mut engine, "brief", true).await }
        });
        engine.start_container(named("brief")).await.unwrap();
        assert_eq!(wait(engine, "brief").await.exit_code, Some(4));
        assert_eq!(follower.await.unwrap(), "1\n2\n3\n");
        eventually("gone", || {
            let mut engine = engine.clone();
            async move { look(&mut engine, "brief").await.is_none().then_some(()) }
        })
        .await;
        // Who asks late still learns how it ended.
        assert_eq!(wait(engine, &id).await.exit_code, Some(4));
        assert!(!world.data().join("containers").join(&id).exists());
    });
}

#[test]
fn the_limit_of_memory_kills_only_the_container() {
    inside("the_limit_of_memory_kills_only_the_container", |world| async move {
        let mut node = world.with_image().await;
        let engine = &mut node.engine;
        let hungry = model::ContainerSpec {
            limits: model::Resources { memory_bytes: 16 << 20, ..Default::default() },
            ..shell("x=0123456789; while true; do x=$x$x; done")
        };
        run(engine, "hungry", &hungry, None).await;
        let ended = wait(engine, "hungry").await;
        assert!(ended.oom_killed, "{ended:?}");
        assert_eq!(ended.message, "killed: out of memory (limit 16 MiB)");
    });
}

/// Hosts an agent for [`a_killed_daemon_leaves_its_containers`], until it is killed.
#[test]
#[ignore = "started by another test"]
fn host() {
    if std::env::var_os("RQT_HOST").is_none() {
        return;
    }
    inside("host", |world| async move {
        let mut node = world.with_image().await;
        let engine = &mut node.engine;
        let always = restart(model::RestartCondition::Any, 0);
        run(engine, "kept", &shell("seq 2; sleep 1000"), Some(always)).await;
        run(engine, "dies", &shell("echo run; sleep 1000"), Some(always)).await;
        run(engine, "ends", &shell("sleep 1000"), None).await;
        std::fs::write(world.folder.join("ready"), "").unwrap();
        std::future::pending::<()>().await;
    });
}

#[test]
fn a_killed_daemon_leaves_its_containers() {
    inside("a_killed_daemon_leaves_its_containers", |world| async move {
        let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "host", "--ignored", "--nocapture"])
            .env("RQT_HOST", "1")
            .spawn()
            .unwrap();
        eventually("the daemon is up", || {
            let ready = world.folder.join("ready").exists().then_some(());
            async move { ready }
        })
        .await;
        daemon.kill().unwrap();
        daemon.wait().unwrap();

        // The next one takes over what runs.
        let mut node = world.start().await;
        let mut before = Vec::new();
        for name in ["kept", "dies", "ends"] {
            let seen = look(&mut node.engine, name).await.unwrap();
            assert_eq!((seen.state(), seen.restarts), (wire::ContainerState::Running, 0), "{name}");
            assert!(lives(seen.pid), "{name}");
            before.push(seen);
        }
        assert_eq!(log(&mut node.engine, "kept", false).await, "1\n2\n");
        node.end().await;
        assert!(before.iter().all(|container| lives(container.pid)));

        // Two die while no daemon runs; the policy of each decides.
        for container in &before[1..] {
            let pid = nix::unistd::Pid::from_raw(container.pid.try_into().unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
            eventually("it is dead", || {
                let dead = !lives(container.pid);
                async move { dead.then_some(()) }
            })
            .await;
        }
        let mut node = world.start().await;
        assert_eq!(wait(&mut node.engine, "ends").await.exit_code, Some(137));
        let back = eventually("it is restarted", || {
            let mut engine = node.engine.clone();
            async move {
                let seen = look(&mut engine, "dies").await.unwrap();
                (seen.state() == wire::ContainerState::Running && seen.restarts == 1).then_some(seen)
            }
        })
        .await;
        assert_eq!(back.address, before[1].address);
        assert_eq!(log(&mut node.engine, "dies", false).await, "run\nrun\n");
        assert_eq!(look(&mut node.engine, "kept").await.unwrap().pid, before[0].pid);
    });
}
