//! What a container may see and do, and what it may use. Real containers; needs root and busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Instant;

use common::{World, args, eventually, is_running, shell, text};
use rorqual_runtime::LaunchError;
use rorqual_runtime::spec::{ContainerSettings, Limits, bind_mount, tmpfs_mount};

#[test]
fn a_container_has_its_own_names_processes_and_network() {
    let world = World::new();
    let settings = ContainerSettings {
        hostname: "inside".to_owned(),
        ..shell(
            "hostname; echo $HOSTNAME; echo pid $$; ps -o pid | wc -l; ls /proc/sys/net/ipv4/conf; cat /proc/self/cgroup",
        )
    };
    let (_, text) = world.run(&settings);
    assert!(text.starts_with("inside\ninside\npid 1\n"), "{text}");
    assert!(text.contains("\nall\ndefault\nlo\n"), "no device but the loopback: {text}");
    assert!(!text.contains("rqt-runtime"), "the host's groups are not visible: {text}");
    assert_ne!(nix::unistd::gethostname().unwrap(), "inside");
}

#[test]
fn capabilities_are_dockers_and_nothing_is_inheritable() {
    let world = World::new();
    let (_, text) = world.run(&shell("grep -E '^(Cap|NoNewPrivs|Seccomp):?' /proc/self/status"));
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(field("CapInh:"), "0000000000000000");
    assert_eq!(field("CapAmb:"), "0000000000000000");
    for name in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(field(name), "00000000a80425fb");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".to_owned(), "2".to_owned()));
    let settings =
        ContainerSettings { cap_drop: vec!["ALL".to_owned()], ..shell("grep CapBnd /proc/self/status") };
    assert!(world.run(&settings).1.contains("0000000000000000"));
}

#[test]
fn the_filter_refuses_what_the_capabilities_would_allow() {
    let world = World::new();
    let (_, text) = world.run(&shell("exec 2>&1; unshare -U true; echo $?; unshare -m true; echo $?"));
    assert!(text.contains("Operation not permitted") && text.ends_with("1\n"), "{text}");
    let settings = ContainerSettings {
        cap_add: vec!["SYS_ADMIN".to_owned()],
        ..shell("unshare -m true && mount -t tmpfs none /tmp && echo mounted")
    };
    assert!(world.run(&settings).1.contains("mounted"), "with the capability the calls are open");
}

#[test]
fn masked_and_read_only_paths_hold() {
    let world = World::new();
    let script = "exec 2>&1; wc -c < /proc/keys; wc -c < /proc/timer_list; ls /sys/firmware | wc -l; \
                  touch /proc/sys/kernel/panic; touch /sys/x; mkdir /sys/fs/cgroup/x; echo after";
    let (_, text) = world.run(&shell(script));
    assert!(text.ends_with("after\n"), "{text}");
    assert_eq!(text.lines().filter(|line| line.trim() == "0").count(), 3, "{text}");
    assert_eq!(text.matches("Read-only file system").count(), 3, "{text}");
}

#[test]
fn a_read_only_root_keeps_its_writable_mounts() {
    let world = World::new();
    let settings = ContainerSettings {
        read_only_rootfs: true,
        cwd: "/made/on/the/way".to_owned(),
        mounts: vec![tmpfs_mount("/scratch", Some(1 << 20))],
        ..shell(
            "exec 2>&1; touch /file; echo $?; echo x > /scratch/file && cat /scratch/file; echo y > /dev/shm/z && pwd",
        )
    };
    let (_, text) = world.run(&settings);
    assert!(text.contains("Read-only file system"), "{text}");
    assert!(text.ends_with("x\n/made/on/the/way\n"), "{text}");
}

#[test]
fn devices_are_the_listed_ones() {
    let world = World::new();
    let script = "exec 2>&1; ls /dev; echo > /dev/null && head -c 3 /dev/zero | wc -c; head -c 1 /dev/urandom | wc -c; \
                  mknod /dev/mem0 c 1 1 && cat /dev/mem0; mknod /dev/disk b 7 0 && cat /dev/disk; echo done";
    let (_, text) = world.run(&shell(script));
    for name in
        ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "fd", "stdout"]
    {
        assert!(text.lines().any(|line| line == name), "{name}: {text}");
    }
    assert!(text.contains("\n3\n1\n"), "{text}");
    assert_eq!(text.matches("Operation not permitted").count(), 2, "{text}");
}

#[test]
fn users_come_from_the_containers_own_files() {
    let world = World::new();
    let run = |user: &str| {
        let mut launch = world.launch_of(
            &format!("u{}", user.replace(':', "-")),
            &shell("id; echo $HOME; echo x > /dev/stdout"),
        );
        launch.user = Some(user.to_owned());
        world.run_launch(launch).1
    };
    let text = run("worker");
    assert!(text.contains("uid=1000(worker) gid=1001(worker)") && text.contains("2000(extra)"), "{text}");
    assert!(text.ends_with("/home/worker\nx\n"), "{text}");
    assert!(run("4242:77").contains("uid=4242 gid=77"));
    assert!(run("root").contains("/root\n"));
    // A file that is not one.
    let image = world.image();
    fs::remove_file(image.join("etc/passwd")).unwrap();
    nix::unistd::mkfifo(&image.join("etc/passwd"), nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    let mut launch = world.launch_of("fifo", &args(&["true"]));
    launch.user = Some("worker".to_owned());
    let error = world.runtime.launch(launch).unwrap_err();
    assert!(error.to_string().contains("not a plain file"), "{error}");
    fs::remove_file(image.join("etc/passwd")).unwrap();
    let huge = fs::File::create(image.join("etc/passwd")).unwrap();
    huge.set_len(4 << 30).unwrap();
    let mut launch = world.launch_of("huge", &args(&["true"]));
    launch.user = Some("worker".to_owned());
    let error = world.runtime.launch(launch).unwrap_err();
    assert!(
        matches!(&error, LaunchError::UnknownUser { reason, .. } if reason.contains("larger")),
        "{error}"
    );
}

#[test]
fn linked_system_folders_are_refused() {
    let world = World::new();
    for name in ["dev", "proc", "sys"] {
        let canary = world.dir.path().join("canary");
        fs::create_dir_all(&canary).unwrap();
        for target in [canary.clone(), "../../../../canary".into()] {
            let image = world.image();
            fs::remove_dir(image.join(name)).unwrap();
            symlink(target, image.join(name)).unwrap();
            let error = world.launch("linked", &args(&["true"])).unwrap_err();
            assert!(matches!(&error, LaunchError::Step { .. }), "{error:?}");
            let full = format!("{error}: {}", std::error::Error::source(&error).unwrap());
            assert!(full.contains(name) && full.contains("link"), "{full}");
            assert_eq!(fs::read_dir(&canary).unwrap().count(), 0);
            fs::remove_file(image.join(name)).unwrap();
            fs::create_dir(image.join(name)).unwrap();
            fs::remove_dir_all(world.dir.path().join("overlay")).unwrap();
        }
    }
}

#[test]
fn a_false_null_device_is_refused() {
    let world = World::new();
    let dev = world.dir.path().join("dev");
    fs::create_dir_all(dev.join("pts")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", dev.join("null")).unwrap();
    let settings = ContainerSettings { mounts: vec![bind_mount(&dev, "/dev", false)], ..args(&["true"]) };
    let mut launch = world.launch_of("fake", &settings);
    // Only the bind mount and /proc, as an attacker's specification could have it.
    let mut mounts = launch.spec.mounts().clone().unwrap();
    mounts.retain(|mount| ["/proc", "/dev"].iter().any(|place| mount.destination().as_os_str() == *place));
    launch.spec.set_mounts(Some(mounts));
    let error = world.runtime.launch(launch).unwrap_err();
    assert!(matches!(&error, LaunchError::Step { .. }), "{error:?}");
}

#[test]
fn mounts_of_files_and_folders_stay_inside() {
    let world = World::new();
    let host = world.dir.path().join("host");
    fs::create_dir_all(host.join("folder")).unwrap();
    fs::write(host.join("file"), "from the host\n").unwrap();
    fs::write(host.join("folder/inner"), "inner\n").unwrap();
    // The image points out of itself: the target has to be resolved inside the root.
    symlink("/var/escape", world.image().join("link")).unwrap();
    let settings = ContainerSettings {
        mounts: vec![
            bind_mount(host.join("file"), "/etc/deep/conf.txt", true),
            bind_mount(host.join("folder"), "/link/target", false),
            bind_mount(host.join("folder"), "/read", true),
        ],
        ..shell(
            "cat /etc/deep/conf.txt /var/escape/target/inner; echo x > /link/target/new; echo x > /read/no; echo x >> /etc/deep/conf.txt",
        )
    };
    let id = "mounts";
    fs::create_dir_all(world.image().join("var/escape")).unwrap();
    let (_, text) = world.run_launch(world.launch_of(id, &settings));
    assert!(text.starts_with("from the host\ninner\n"), "{text}");
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
    assert_eq!(fs::read_to_string(host.join("folder/new")).unwrap(), "x\n");
    assert!(!std::path::Path::new("/var/escape").exists());
}

#[test]
fn a_working_directory_cannot_be_a_descriptor() {
    let world = World::new();
    for fd in 3..16 {
        let settings = ContainerSettings { cwd: format!("/proc/self/fd/{fd}"), ..shell("ls") };
        let error = world.launch("leak", &settings).unwrap_err();
        assert!(matches!(error, LaunchError::WorkingDirectory { .. }), "{error:?}");
    }
}

#[test]
fn no_descriptor_of_the_host_comes_along() {
    let world = World::new();
    let (_, text) = world.run(&shell("ls -l /proc/self/fd"));
    // 3 is the folder that ls reads.
    let descriptors = text.lines().filter(|line| line.starts_with("l") && line.contains("root")).count();
    assert_eq!(descriptors, 4, "{text}");
}

#[test]
fn memory_limits_kill_the_container_alone() {
    let world = World::new();
    let settings = ContainerSettings {
        limits: Limits {
            memory_bytes: Some(64 << 20),
            memory_swap_bytes: Some(64 << 20),
            ..Limits::default()
        },
        ..args(&["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"])
    };
    world.start("beside", "sleep 1000");
    let (status, _) = world.run(&settings);
    assert!(status.oom_killed, "{status:?}");
    assert_eq!((status.code, status.signal), (137, Some(9)));
    assert!(is_running(&world.runtime, "beside"));
    let stats = world.runtime.stats("beside").unwrap();
    assert_eq!((stats.oom_kills, stats.memory_limit_bytes), (0, None));
    assert!(stats.pids >= 1 && stats.memory_bytes > 0, "{stats:?}");
}

#[test]
fn half_a_cpu_is_half_a_cpu() {
    let world = World::new();
    let limits = Limits { nano_cpus: Some(500_000_000), ..Limits::default() };
    world.launch("busy", &ContainerSettings { limits, ..shell("while :; do :; done") }).unwrap();
    let used = || world.runtime.stats("busy").unwrap().cpu_ns as f64 / 1e9;
    let (start, before) = (Instant::now(), used());
    eventually("some time has been used", || start.elapsed().as_secs_f64() > 2.0);
    let share = (used() - before) / start.elapsed().as_secs_f64();
    // On a machine that is busy otherwise it may be less.
    assert!(share < 0.65, "{share}");
    assert!(share > 0.05, "{share}");
    world.runtime.kill("busy", libc::SIGKILL).unwrap();
    world.wait("busy");
}

#[test]
fn a_fork_bomb_stays_in_its_limit() {
    let world = World::new();
    let limits = Limits { pids: Some(20), ..Limits::default() };
    let script = "i=0; while [ $i -lt 60 ]; do sleep 1000 & i=$((i+1)); done; echo all; sleep 1000";
    world.launch("bomb", &ContainerSettings { limits, ..shell(script) }).unwrap();
    let dir = world.container_dir("bomb");
    eventually("it has hit the limit", || {
        text(&dir).contains("fork") || world.runtime.stats("bomb").is_ok_and(|stats| stats.pids == 20)
    });
    if let Ok(stats) = world.runtime.stats("bomb") {
        assert!(stats.pids <= 20);
    }
    // Others start as ever.
    assert_eq!(world.run(&args(&["true"])).0.code, 0);
    let _ = world.runtime.kill("bomb", libc::SIGKILL);
    world.wait("bomb");
}

#[test]
fn limits_of_processes_scores_and_sysctls_are_set() {
    let world = World::new();
    let settings = ContainerSettings {
        rlimits: vec![("nofile".to_owned(), 123, 456), ("core".to_owned(), 0, 0)],
        sysctls: vec![("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned())],
        oom_score_adj: Some(500),
        ..shell(
            "ulimit -n; ulimit -Hn; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/self/oom_score_adj",
        )
    };
    assert_eq!(world.run(&settings).1, "123\n456\n80\n500\n");
    let raised =
        ContainerSettings { rlimits: vec![("nofile".to_owned(), 1 << 20, 1 << 20)], ..args(&["true"]) };
    if let Err(error) = world.launch("raised", &raised) {
        assert!(error.to_string().contains("nofile"), "{error}");
    }
}
