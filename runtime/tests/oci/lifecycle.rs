//! create, start, state, kill, delete, run, list.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;

use serde_json::json;

use crate::common::cli::{Cli, wait};
use crate::common::eventually;

#[test]
fn a_container_is_created_and_then_started() {
    let cli = Cli::new();
    let pid_file = cli.dir.path().join("pid");
    let spec = cli.spec("one", &["sh", "-c", "echo started; exec sleep 1000"]);
    let done = cli.create_with("one", &spec, &["--pid-file", pid_file.to_str().unwrap()]);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    let state = cli.state("one");
    let bundle = cli.dir.path().join("bundle-one");
    assert_eq!((&state["id"], &state["status"]), (&json!("one"), &json!("created")));
    assert_eq!((&state["ociVersion"], &state["bundle"]), (&json!("1.0.2"), &json!(bundle)));
    assert_eq!((&state["rootfs"], &state["owner"]), (&json!(cli.rootfs()), &json!("")));
    let list: Vec<serde_json::Value> = serde_json::from_str(&cli.ok(&["list", "--format", "json"])).unwrap();
    assert_eq!((&list[0]["id"], &list[0]["owner"]), (&json!("one"), &json!("root")));
    assert_eq!(state["annotations"]["test"], json!("yes"));
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), state["pid"].to_string());
    assert_eq!(fs::read_to_string(cli.output("one")).unwrap(), "", "it waits");
    cli.ok(&["start", "one"]);
    eventually("it runs", || fs::read_to_string(cli.output("one")).unwrap() == "started\n");
    assert_eq!(cli.status("one"), "running");
    assert_eq!(cli.state("one")["pid"], state["pid"], "the process that was created is the one that runs");
    cli.run(&["start", "one"]).fails(1, "cannot start an already running container");
    cli.run(&["delete", "one"]).fails(1, "cannot delete container one that is not stopped: running");
    cli.ok(&["kill", "one", "KILL"]);
    eventually("it has ended", || cli.status("one") == "stopped");
    assert_eq!(cli.state("one")["pid"], json!(0));
    cli.run(&["kill", "one"]).fails(1, "container not running");
    cli.run(&["start", "one"]).fails(1, "cannot start a container that has stopped");
    cli.ok(&["delete", "one"]);
    assert_eq!(cli.leftovers("one"), Vec::<String>::new());
}

#[test]
fn what_is_not_there_is_told_in_the_words_that_callers_look_for() {
    let cli = Cli::new();
    for command in ["state", "start", "kill", "delete", "ps", "pause", "resume", "update", "events"] {
        cli.run(&[command, "nobody"]).fails(1, "container does not exist");
    }
    cli.run(&["exec", "nobody", "true"]).fails(255, "exec failed: container does not exist");
    cli.ok(&["delete", "--force", "nobody"]);
    cli.create("twice", &cli.spec("twice", &["sleep", "1000"]));
    let again = cli.create("twice", &cli.spec("twice", &["sleep", "1000"]));
    again.fails(1, "container with given ID already exists");
    assert_eq!(cli.status("twice"), "created", "the second one does not harm the first");
    let absent = cli.create("absent", &cli.spec("absent", &["no-such-program"]));
    absent.fails(1, "exec: \\\"no-such-program\\\": executable file not found in $PATH");
    let absent = cli.create("absent", &cli.spec("absent", &["/bin/no-such-program"]));
    absent.fails(1, "no such file or directory");
    cli.create("absent", &cli.spec("absent", &["/bin"])).fails(1, "permission denied");
    cli.run(&["run", "--bundle", "/no/such/bundle", "x"]).fails(1, "no such file or directory");
    cli.run(&["run", "--bundle", "/var", "x"]).fails(1, "JSON specification file config.json not found");
    cli.run(&["run", "a/b"]).fails(1, "invalid container ID format");
    assert_eq!(cli.leftovers("absent"), Vec::<String>::new());
}

#[test]
fn a_created_container_can_be_deleted_and_killed() {
    let cli = Cli::new();
    for force in [false, true] {
        cli.create("waits", &cli.spec("waits", &["sleep", "1000"]));
        let pid = cli.state("waits")["pid"].to_string();
        cli.ok(if force { &["delete", "-f", "waits"] } else { &["delete", "waits"] });
        eventually("its process is gone", || {
            fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
        });
        assert_eq!(cli.leftovers("waits"), Vec::<String>::new());
    }
    cli.create("dies", &cli.spec("dies", &["sleep", "1000"]));
    cli.ok(&["kill", "dies", "9"]);
    eventually("it has ended", || cli.status("dies") == "stopped");
    cli.run(&["start", "dies"]).fails(1, "cannot start a container that has stopped");
}

#[test]
fn run_passes_output_exit_codes_and_signals_on() {
    let cli = Cli::new();
    let done = cli.run_spec("codes", &cli.spec("codes", &["sh", "-c", "echo out; echo err >&2; exit 7"]));
    assert_eq!((done.code, done.out.as_str(), done.err.as_str()), (7, "out\n", "err\n"));
    assert_eq!(cli.leftovers("codes"), Vec::<String>::new());
    let bundle = cli.bundle(
        "stop",
        &cli.spec("stop", &["sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done"]),
    );
    let mut command = cli.command(&["run", "-b", bundle.to_str().unwrap(), "stop"]);
    let out = fs::File::create(cli.output("stop")).unwrap();
    let child = command.stdout(out).stderr(Stdio::piped()).spawn().unwrap();
    eventually("it listens", || fs::read_to_string(cli.output("stop")).unwrap() == "ready\n");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGTERM).unwrap();
    assert_eq!(wait(child).code, 5);
    assert_eq!(cli.leftovers("stop"), Vec::<String>::new());
    // A program that is killed by a signal.
    let bundle = cli.bundle("killed", &cli.spec("killed", &["sleep", "1000"]));
    let child = cli.command(&["run", "-b", bundle.to_str().unwrap(), "killed"]).spawn().unwrap();
    eventually("it runs", || cli.run(&["kill", "killed", "KILL"]).code == 0);
    assert_eq!(wait(child).code, 137);
}

/// Whoever waits for a container keeps nobody else from it.
#[test]
fn a_container_that_is_waited_for_can_be_changed_and_deleted() {
    let cli = Cli::new();
    let bundle = cli.bundle("web", &cli.spec("web", &["sleep", "1000"]));
    let waiting = cli.command(&["run", "-b", bundle.to_str().unwrap(), "web"]).spawn().unwrap();
    eventually("it runs", || cli.run(&["exec", "web", "true"]).code == 0);
    for args in [&["pause", "web"][..], &["resume", "web"], &["update", "--pids-limit", "50", "web"]] {
        let done = wait(cli.command(args).spawn().unwrap());
        assert_eq!(done.code, 0, "{args:?}");
    }
    let delete = cli.command(&["delete", "--force", "web"]).stderr(Stdio::piped()).spawn().unwrap();
    let deleted = wait(delete);
    assert_eq!(deleted.code, 0, "{deleted:?}");
    assert_eq!(wait(waiting).code, 137);
    assert_eq!(cli.leftovers("web"), Vec::<String>::new());
}

#[test]
fn run_can_detach_and_keep() {
    let cli = Cli::new();
    let bundle = cli.bundle("detached", &cli.spec("detached", &["sleep", "1000"]));
    let bundle = bundle.to_str().unwrap();
    let status = cli.command(&["run", "--detach", "-b", bundle, "detached"]).status().unwrap();
    assert!(status.success() && status.signal().is_none());
    assert_eq!(cli.status("detached"), "running");
    cli.ok(&["delete", "--force", "detached"]);
    let bundle = cli.bundle("kept", &cli.spec("kept", &["true"]));
    cli.ok(&["run", "--keep", "-b", bundle.to_str().unwrap(), "kept"]);
    assert_eq!(cli.status("kept"), "stopped");
    cli.ok(&["delete", "kept"]);
}

#[test]
fn containers_are_listed() {
    let cli = Cli::new();
    assert_eq!(cli.ok(&["list", "--format", "json"]), "null\n");
    cli.create("a", &cli.spec("a", &["sleep", "1000"]));
    cli.create("b", &cli.spec("b", &["sleep", "1000"]));
    cli.ok(&["start", "b"]);
    assert_eq!(cli.ok(&["list", "-q"]), "a\nb\n");
    let list: serde_json::Value = serde_json::from_str(&cli.ok(&["list", "-f", "json"])).unwrap();
    assert_eq!((&list[0]["status"], &list[1]["status"]), (&json!("created"), &json!("running")));
    let table = cli.ok(&["list"]);
    let words: Vec<&str> = table.lines().nth(1).unwrap().split_ascii_whitespace().collect();
    assert_eq!((words[0], words[2], words[5]), ("a", "created", "root"));
    cli.run(&["list", "-f", "xml"]).fails(1, "invalid format option");
}

#[test]
fn kill_all_reaches_processes_without_a_pid_namespace() {
    let cli = Cli::new();
    let mut spec = cli.spec("shared", &["sh", "-c", "sleep 1000 & sleep 1000 & exec sleep 1000"]);
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    cli.create("shared", &spec);
    cli.ok(&["start", "shared"]);
    let pids = || serde_json::from_str::<Vec<i32>>(&cli.ok(&["ps", "-f", "json", "shared"])).unwrap();
    eventually("all run", || pids().len() == 3);
    let all = pids();
    cli.ok(&["kill", "shared", "KILL"]);
    eventually("the first has ended", || cli.status("shared") == "stopped");
    assert_eq!(pids().len(), 2, "the others live on without a pid namespace");
    cli.ok(&["delete", "shared"]);
    for pid in all {
        eventually("it is gone", || {
            fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
        });
    }
    assert_eq!(cli.leftovers("shared"), Vec::<String>::new());
    cli.create("all", &cli.spec("all", &["sh", "-c", "sleep 1000 & exec sleep 1000"]));
    cli.ok(&["start", "all"]);
    cli.ok(&["kill", "--all", "all", "SIGKILL"]);
    eventually("all have ended", || cli.status("all") == "stopped");
}

#[test]
fn whatever_happens_to_create_nothing_is_in_the_way() {
    let cli = Cli::new();
    // One that was killed before it had written anything, and one that has lost its process.
    fs::create_dir_all(cli.root().join("empty")).unwrap();
    cli.run(&["state", "empty"]).fails(1, "container does not exist");
    cli.ok(&["delete", "--force", "empty"]);
    assert!(!cli.root().join("empty").exists());
    cli.create("lost", &cli.spec("lost", &["sleep", "1000"]));
    let path = cli.root().join("lost/state.json");
    let text = fs::read_to_string(&path).unwrap();
    let process = |text: &str| text.find(']').map(|end| text[..end].to_owned()).unwrap();
    let pid = cli.state("lost")["pid"].to_string();
    assert!(process(&text).contains(&pid), "{text}");
    fs::write(&path, text.replacen(&pid, &format!("{:>1$}", 0, pid.len()), 1)).unwrap();
    assert_eq!(cli.status("lost"), "stopped");
    cli.ok(&["delete", "lost"]);
    eventually("its process is gone", || {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
    });
    assert_eq!(cli.leftovers("lost"), Vec::<String>::new());
    fs::create_dir_all(cli.root().join("torn")).unwrap();
    fs::write(cli.root().join("torn/state.json"), "{\"id\":").unwrap();
    cli.run(&["state", "torn"]).fails(1, "state.json");
    cli.create("odd", &cli.spec("odd", &["true"]));
    let path = cli.root().join("odd/state.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen(&process(&text), "{\"process\":[\"else\",\"where\"", 1)).unwrap();
    cli.run(&["state", "odd"]).fails(1, "odd/state.json");
    fs::write(&path, text).unwrap();
    cli.ok(&["delete", "odd"]);
    assert!(Path::new(&cli.root().join("torn")).exists());
}

#[test]
fn descriptors_are_passed_on_and_no_others() {
    let cli = Cli::new();
    let script = "cat <&3; cat <&4; ls /proc/self/fd | tr '\\n' ' '; echo $LISTEN_FDS $LISTEN_PID";
    let spec = cli.spec("fds", &["sh", "-c", script]);
    let bundle = cli.bundle("fds", &spec);
    let files = ["three", "four", "five"].map(|name| {
        let path = cli.dir.path().join(name);
        fs::write(&path, format!("{name}\n")).unwrap();
        path
    });
    let shell = format!(
        "exec 3<{} 4<{} 5<{}; LISTEN_FDS=1 exec {} --root {} run --preserve-fds 1 -b {} fds",
        files[0].display(),
        files[1].display(),
        files[2].display(),
        env!("CARGO_BIN_EXE_rorqual-runtime"),
        cli.root().display(),
        bundle.display()
    );
    let output = std::process::Command::new("bash").args(["-c", &shell]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // The fifth is the folder that ls itself reads.
    assert_eq!(text, "three\nfour\n0 1 2 3 4 5 1 1\n", "{}", String::from_utf8_lossy(&output.stderr));
    let done = cli.run(&["run", "--preserve-fds", "7", "-b", bundle.to_str().unwrap(), "fds"]);
    done.fails(1, "is not open");
}

/// It is set up outside of that namespace (`plan/unseen.rs`), and is no other container for that.
#[test]
fn a_container_joins_the_processes_of_another() {
    let cli = Cli::new();
    assert_eq!(cli.create("first", &cli.spec("first", &["sleep", "1000"])).err, "");
    cli.ok(&["start", "first"]);
    let pid = cli.state("first")["pid"].as_i64().unwrap();
    // The program is found in /proc, which shows the namespace that is joined.
    let script = "tr '\\0' ' ' </proc/1/cmdline; echo; echo $$; readlink /proc/self/ns/pid; sleep 1000";
    let mut spec = cli.spec("second", &["/proc/1/root/bin/sh", "-c", script]);
    spec["linux"]["namespaces"][0] = json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") });
    // So that it may look at what is the first one's.
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set].as_array_mut().unwrap().push("CAP_SYS_PTRACE".into());
    }
    assert_eq!(cli.create("second", &spec).err, "");
    assert_eq!(cli.status("second"), "created");
    let made = cli.state("second")["pid"].as_i64().unwrap();
    let namespace = |pid: i64| fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    assert_eq!(namespace(made), namespace(pid), "what waits is in there");
    cli.ok(&["start", "second"]);
    let said = || fs::read_to_string(cli.output("second")).unwrap();
    eventually("it has said all", || said().contains("pid:["));
    let said = said();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((lines[0], lines[2]), ("sleep 1000 ", namespace(pid).to_str().unwrap()), "{said}");
    assert_eq!(cli.state("second")["pid"], made, "the process that was told is the container's");
    assert_eq!(cli.ok(&["exec", "second", "cat", "/proc/1/comm"]), "sleep\n");
    cli.ok(&["delete", "--force", "second"]);
    assert_eq!(cli.leftovers("second"), Vec::<String>::new());
    assert_eq!(cli.status("first"), "running");
}
