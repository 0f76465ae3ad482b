//! Starting, ending, finding again, taking away. Real containers; needs root and busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use common::{DEADLINE, World, args, eventually, is_running, shell, text};
use rorqual_runtime::log::{LogReader, files};
use rorqual_runtime::spec::ContainerSettings;
use rorqual_runtime::{ContainerState, Error, LaunchError, LogPolicy, Rootfs, Runtime};

#[test]
fn exit_codes_and_output_are_recorded() {
    let world = World::new();
    let (status, text) = world.run(&shell("echo out; echo err >&2; exit 7"));
    assert_eq!((status.code, status.signal, status.oom_killed), (7, None, false));
    assert!(text.contains("out\n") && text.contains("err\n"), "{text}");
    let (status, _) = world.run(&shell("kill -9 1; exit 3"));
    assert_eq!(status.code, 3, "the first process of a pid namespace cannot kill itself");
    let (status, _) = world.run(&args(&["true"]));
    assert_eq!(status.code, 0);
}

#[test]
fn a_command_that_cannot_run_is_named() {
    let world = World::new();
    let error = world.launch("absent", &args(&["no-such-command"])).unwrap_err();
    assert_eq!(error.exit_code(), 127);
    assert!(
        matches!(&error, LaunchError::CommandNotFound { command } if command == "no-such-command"),
        "{error:?}"
    );
    let image = world.image();
    fs::write(image.join("bin/text"), "just text").unwrap();
    fs::write(image.join("bin/orphan"), "#!/no/interpreter\n").unwrap();
    for name in ["text", "orphan"] {
        fs::set_permissions(image.join("bin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for command in ["/etc/passwd", "/bin", "text", "orphan"] {
        let error = world.launch("broken", &args(&[command])).unwrap_err();
        assert_eq!(error.exit_code(), 126, "{command}: {error:?}");
        assert!(error.to_string().contains(command), "{error}");
    }
    assert_eq!(world.launch("wrong", &args(&[])).unwrap_err().exit_code(), 125);
    assert_eq!(world.runtime.list().unwrap(), [], "nothing is left of a failed launch");
    assert_eq!(world.cgroup_dirs("broken"), Vec::<std::path::PathBuf>::new());
    // The name is free.
    world.start("broken", "exit 0");
    assert_eq!(world.wait("broken").code, 0);
}

#[test]
fn signals_end_a_container_and_are_reported() {
    let world = World::new();
    world.start("stop", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done");
    let dir = world.container_dir("stop");
    eventually("the trap is set", || text(&dir).contains("ready"));
    world.runtime.kill("stop", libc::SIGTERM).unwrap();
    assert_eq!(world.wait("stop").code, 5);
    world.start("kill", "sleep 1000 & sleep 1000");
    world.runtime.kill("kill", libc::SIGKILL).unwrap();
    let status = world.wait("kill");
    assert_eq!((status.code, status.signal), (137, Some(9)));
    assert!(matches!(world.runtime.kill("kill", 15), Err(Error::NotRunning { .. })));
    assert!(matches!(world.runtime.kill("kill", 0), Err(Error::InvalidSignal { .. })));
    assert!(matches!(world.runtime.kill("never", 15), Err(Error::NotFound { .. })));
}

#[test]
fn states_follow_the_container() {
    let world = World::new();
    assert_eq!(world.runtime.state("one").unwrap(), ContainerState::Unknown);
    let started = world.start("one", "sleep 1000");
    assert_eq!(world.runtime.state("one").unwrap(), ContainerState::Running(started));
    let again = world.launch("one", &args(&["true"])).unwrap_err();
    assert!(matches!(again, LaunchError::AlreadyExists { .. }), "{again:?}");
    assert!(is_running(&world.runtime, "one"), "a second launch does not harm the first");
    assert!(matches!(world.runtime.delete("one"), Err(Error::StillRunning { .. })));
    world.runtime.kill("one", libc::SIGKILL).unwrap();
    let status = world.wait("one");
    assert_eq!(world.runtime.state("one").unwrap(), ContainerState::Exited(status.clone()));
    assert_eq!(world.wait("one"), status, "who comes late is told, too");
    world.runtime.delete("one").unwrap();
    world.runtime.delete("one").unwrap();
    assert_eq!(world.runtime.state("one").unwrap(), ContainerState::Unknown);
    assert!(
        world.container_dir("one").join("exit.json").exists(),
        "the container's directory is the caller's"
    );
}

#[test]
fn nothing_is_left_behind() {
    let world = World::new();
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let started = world.start("gone", "echo hello; sleep 1000 & sleep 1000");
    let overlay = world.overlay("gone");
    let Rootfs::Overlay { upper, .. } = overlay else { unreachable!() };
    let groups = world.cgroup_dirs("gone");
    assert!(!groups.is_empty());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = |text: &str| text.lines().filter(|line| line.contains("rqt-runtime-")).count();
    assert_eq!(ours(&mounts), ours(&before), "the host's mount table does not see the root file system");
    let monitor = monitor_of(&world, "gone");
    world.runtime.kill("gone", libc::SIGKILL).unwrap();
    world.wait("gone");
    world.runtime.delete("gone").unwrap();
    assert!(!Path::new(&format!("/proc/{}", started.pid)).exists());
    eventually("the monitor is gone", || !Path::new(&format!("/proc/{monitor}")).exists());
    assert!(groups.iter().all(|dir| !dir.exists()));
    assert_eq!(fs::read_dir(&world.options.runtime_dir).unwrap().count(), 0);
    assert!(upper.exists());
}

fn monitor_of(world: &World, id: &str) -> i32 {
    let text = fs::read_to_string(world.options.runtime_dir.join(id).join("state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&text).unwrap();
    i32::try_from(state["monitor_pid"].as_i64().unwrap()).unwrap()
}

#[test]
fn another_runtime_takes_over_what_runs() {
    let world = World::new();
    let script =
        "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); [ $i = 100 ] && sleep 0.3; done; sleep 1000";
    let started = world.start("long", script);
    world.start("short", "exit 4");
    world.wait("short");
    let other = Runtime::new(world.options.clone()).unwrap();
    let list = other.list().unwrap();
    assert_eq!(list[0], ("long".to_owned(), ContainerState::Running(started)));
    assert!(matches!(&list[1].1, ContainerState::Exited(status) if status.code == 4));
    let dir = world.container_dir("long");
    eventually("all lines are there", || text(&dir).contains("line 299\n"));
    let expected: String = (0..300).map(|index| format!("line {index}\n")).collect();
    assert_eq!(text(&dir), expected, "no line lost, none doubled");
    let mut watcher = other.watch("long").unwrap();
    watcher.set_read_timeout(Some(*DEADLINE)).unwrap();
    other.kill("long", libc::SIGKILL).unwrap();
    let mut line = String::new();
    watcher.read_to_string(&mut line).unwrap();
    // That it has ended is told before how, which has to be on disk first.
    assert!(line.starts_with('\n') && line.contains("\"code\":137"), "{line:?}");
    other.delete("long").unwrap();
}

#[test]
fn a_monitor_belongs_to_no_daemon() {
    let world = World::new();
    world.start("own", "sleep 1000");
    let monitor = monitor_of(&world, "own");
    let groups = || fs::read_to_string(format!("/proc/{monitor}/cgroup")).unwrap();
    let ours = format!("/{}/.monitors", world.options.cgroup_parent);
    let counts = |line: &&str| line.contains("memory") || line.contains("systemd") || line.starts_with("0:");
    let groups = groups();
    assert!(
        groups.lines().filter(counts).count() > 0
            && groups.lines().filter(counts).all(|line| line.ends_with(&ours)),
        "{groups}"
    );
    let stat = fs::read_to_string(format!("/proc/{monitor}/stat")).unwrap();
    let session: i32 =
        stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(3).unwrap().parse().unwrap();
    assert_eq!(session, monitor);
}

#[test]
fn a_container_dies_with_its_monitor() {
    let world = World::new();
    for user in [None, Some("worker".to_owned())] {
        let mut launch = world.launch_of("orphan", &shell("sleep 1000 & sleep 1000"));
        launch.user = user;
        let started = world.runtime.launch(launch).unwrap();
        let mut watcher = world.runtime.watch("orphan").unwrap();
        watcher.set_read_timeout(Some(*DEADLINE)).unwrap();
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(monitor_of(&world, "orphan")),
            nix::sys::signal::SIGKILL,
        )
        .unwrap();
        let mut line = String::new();
        watcher.read_to_string(&mut line).unwrap();
        assert_eq!(line, "", "no line: nobody knows how it ended");
        eventually("the container is gone", || {
            fs::read_to_string(format!("/proc/{}/stat", started.pid))
                .map_or(true, |stat| stat.contains(") Z "))
        });
        eventually("it is lost", || world.runtime.state("orphan").unwrap() == ContainerState::Lost);
        world.runtime.delete("orphan").unwrap();
        assert_eq!(world.cgroup_dirs("orphan"), Vec::<std::path::PathBuf>::new());
    }
}

#[test]
fn logs_rotate_and_what_is_kept_is_complete() {
    let world = World::new();
    let mut launch = world.launch_of("noisy", &shell("seq 1 20000"));
    launch.log = LogPolicy { max_bytes: 100_000, max_files: 4 };
    let dir = launch.dir.clone();
    world.runtime.launch(launch).unwrap();
    world.wait("noisy");
    let files = files(&dir);
    assert_eq!(files.len(), 4);
    assert!(files.iter().all(|file| fs::metadata(file).unwrap().len() <= 100_000));
    let mut reader = LogReader::open(&dir, None).unwrap();
    let mut numbers = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        numbers.push(String::from_utf8(record.bytes).unwrap().parse::<u32>().unwrap());
    }
    let first = numbers[0];
    assert_eq!(numbers, (first..=20_000).collect::<Vec<_>>());
    let mut reader = LogReader::open(&dir, Some(3)).unwrap();
    assert_eq!(reader.next_record().unwrap().unwrap().bytes, b"19998");
    assert!(first > 1, "old records are gone");
}

#[test]
fn a_flood_of_output_arrives_whole() {
    let world = World::new();
    let mut launch = world.launch_of("flood", &shell("head -c 20000000 /dev/zero; echo; echo end"));
    launch.log = LogPolicy { max_bytes: 100 << 20, max_files: 2 };
    let (status, text) = world.run_launch(launch);
    assert_eq!(status.code, 0);
    assert_eq!(text.bytes().filter(|byte| *byte == 0).count(), 20_000_000);
    assert!(text.ends_with("\nend\n"));
}

#[test]
fn many_layers_are_mounted_and_the_upper_gets_the_writes() {
    let world = World::new();
    let mut launch = world.launch_of("layers", &shell("cat /f1 /f60 /over; echo new > /made; rm /f2"));
    let base = world.dir.path().join("layers");
    let mut layers = vec![world.image()];
    for index in 1..=60 {
        let layer = base.join(format!("{index:0>64}"));
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join(format!("f{index}")), format!("from {index}\n")).unwrap();
        fs::write(layer.join("over"), format!("layer {index}\n")).unwrap();
        layers.insert(0, layer);
    }
    let Rootfs::Overlay { upper, work, .. } = launch.rootfs else { unreachable!() };
    launch.rootfs = Rootfs::Overlay { lowers: layers.clone(), upper: upper.clone(), work };
    let (status, text) = world.run_launch(launch);
    assert_eq!((status.code, text.as_str()), (0, "from 1\nfrom 60\nlayer 60\n"));
    assert_eq!(fs::read_to_string(upper.join("made")).unwrap(), "new\n");
    assert!(layers[59].join("f2").exists() || layers.iter().any(|layer| layer.join("f2").exists()));
}

#[test]
fn impossible_requests_name_the_field() {
    let world = World::new();
    let mut launch = world.launch_of("bad", &args(&["true"]));
    launch.rootfs = Rootfs::Directory("/no/such/folder".into());
    let error = world.runtime.launch(launch).unwrap_err();
    assert!(error.to_string().contains("/no/such/folder"), "{error}");
    let settings = ContainerSettings { cwd: "relative".to_owned(), ..args(&["true"]) };
    let error = world.launch("bad", &settings).unwrap_err();
    assert!(matches!(&error, LaunchError::InvalidSpec { field, .. } if field == "process.cwd"), "{error}");
    let settings = ContainerSettings { netns_path: Some("/etc/passwd".into()), ..args(&["true"]) };
    assert!(world.launch("bad", &settings).unwrap_err().to_string().contains("/etc/passwd"));
    let sysctls = vec![("kernel.panic".to_owned(), "1".to_owned())];
    let error = world.launch("bad", &ContainerSettings { sysctls, ..args(&["true"]) }).unwrap_err();
    assert!(error.to_string().contains("kernel.panic"), "{error}");
    let mut launch = world.launch_of("bad", &args(&["true"]));
    launch.user = Some("nobody-here".to_owned());
    let error = world.runtime.launch(launch).unwrap_err();
    assert!(matches!(&error, LaunchError::UnknownUser { user, .. } if user == "nobody-here"), "{error}");
    assert!(world.launch("../up", &args(&["true"])).is_err());
    assert_eq!(world.runtime.list().unwrap(), []);
}

/// A daemon of its own process, killed without warning: the test runs itself again as that daemon.
#[test]
fn containers_outlive_a_killed_daemon() {
    const DAEMON: &str = "RQT_RUNTIME_DAEMON";
    if let Ok(place) = std::env::var(DAEMON) {
        let (base, parent) = place.split_once('|').unwrap();
        let world = World::at(Path::new(base), parent);
        world.start("stays", "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done");
        fs::write(Path::new(base).join("started"), "").unwrap();
        // Until we are killed; bounded, should nobody do it.
        std::thread::sleep(*DEADLINE);
        std::process::exit(1);
    }
    let world = World::new();
    let place = format!("{}|{}", world.dir.path().display(), world.options.cgroup_parent);
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "containers_outlive_a_killed_daemon"])
        .env(DAEMON, place)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("the daemon has started it", || world.dir.path().join("started").exists());
    let before = world.runtime.state("stays").unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let dir = world.container_dir("stays");
    let lines = || text(&dir).lines().count();
    let at_kill = lines();
    eventually("its log goes on", || lines() > at_kill + 20);
    assert!(matches!(before, ContainerState::Running(_)));
    assert_eq!(world.runtime.state("stays").unwrap(), before, "the same process, not restarted");
    world.runtime.kill("stays", libc::SIGKILL).unwrap();
    world.wait("stays");
    let text = text(&dir);
    let expected: String = (0..text.lines().count()).map(|index| format!("line {index}\n")).collect();
    assert_eq!(text, expected, "no line lost");
}
