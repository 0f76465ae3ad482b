//! update, events, pause, ps on a container's groups.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::common::cli::{Cli, feed, wait};
use crate::common::eventually;

/// A file of the container's group on whatever hierarchy has it.
fn group_file(cli: &Cli, id: &str, names: &[&str]) -> String {
    let paths = cli.groups(id).into_iter().flat_map(|dir| names.iter().map(move |name| dir.join(name)));
    let found = paths.into_iter().find_map(|path| fs::read_to_string(path).ok());
    found.unwrap_or_default().trim().to_owned()
}

#[test]
fn limits_are_changed_by_options_and_by_file() {
    let cli = Cli::new();
    let mut spec = cli.spec("web", &["sleep", "1000"]);
    spec["linux"]["resources"] = json!({ "memory": { "limit": 100 << 20 }, "pids": { "limit": 100 } });
    cli.create("web", &spec);
    cli.ok(&["start", "web"]);
    let memory = || group_file(&cli, "web", &["memory.limit_in_bytes", "memory.max"]);
    let pids = || group_file(&cli, "web", &["pids.max"]);
    assert_eq!((memory(), pids()), ((100 << 20).to_string(), "100".to_owned()));
    cli.ok(&["update", "--memory", "64m", "--pids-limit=50", "web"]);
    assert_eq!((memory(), pids()), ((64 << 20).to_string(), "50".to_owned()));
    let mut child = cli
        .command(&["update", "--resources", "-", "web"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    feed(&mut child, r#"{"memory":{"limit":83886080,"swap":0},"cpu":{"shares":0,"cpus":""}}"#);
    let done = wait(child);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    assert_eq!((memory(), pids()), ((80 << 20).to_string(), "50".to_owned()), "0 changes nothing");
    cli.run(&["update", "--memory", "lots", "web"]).fails(1, "lots");
    cli.ok(&["kill", "web", "9"]);
    eventually("it has ended", || cli.status("web") == "stopped");
    cli.run(&["update", "--memory", "64m", "web"]).fails(1, "container not running");
    cli.run(&["events", "--stats", "web"]).fails(1, "container with id web is not running");
}

/// Whoever makes a container may be kept to a processor, which is nothing that the container asked for.
#[test]
fn a_container_may_use_all_processors_that_its_groups_have() {
    let cli = Cli::new();
    let list = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().to_owned()
    };
    let mut spec = cli.spec("web", &["cat", "/proc/self/status"]);
    let ours = list(&fs::read_to_string("/proc/self/status").unwrap());
    let first = ours.split([',', '-']).next().unwrap();
    let run = |spec: &Value, kept: bool| {
        let command = cli.command(&["run", "--bundle", cli.bundle("web", spec).to_str().unwrap(), "web"]);
        let mut taskset = Command::new("taskset");
        taskset
            .args(["-c", if kept { first } else { &ours }])
            .arg(command.get_program())
            .args(command.get_args());
        let output = taskset.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        list(&String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(run(&spec, true), run(&spec, false));
    spec["linux"]["resources"] = json!({ "cpu": { "cpus": first } });
    assert_eq!(run(&spec, true), first);
}

#[test]
fn figures_are_told_once_and_again() {
    let cli = Cli::new();
    cli.create("web", &cli.spec("web", &["sleep", "1000"]));
    cli.ok(&["start", "web"]);
    let event: Value = serde_json::from_str(&cli.ok(&["events", "--stats", "web"])).unwrap();
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!("web")));
    assert_eq!(event["data"]["pids"]["current"], json!(1));
    assert!(event["data"]["memory"]["usage"]["usage"].as_u64().unwrap() > 0, "{event}");
    let mut child =
        cli.command(&["events", "--interval", "20ms", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(event["type"], json!("stats"));
    }
    cli.ok(&["kill", "web", "9"]);
    assert!(lines.all(|line| line.is_ok()), "it ends with the container");
    assert_eq!(wait(child).code, 0);
    cli.run(&["events", "--interval", "0s", "web"]).fails(1, "greater than 0");
}

#[test]
fn a_paused_container_stands_still_and_can_be_killed() {
    let cli = Cli::new();
    cli.create(
        "web",
        &cli.spec("web", &["sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done"]),
    );
    cli.ok(&["start", "web"]);
    let lines = || fs::read_to_string(cli.output("web")).unwrap().lines().count();
    eventually("it counts", || lines() > 3);
    cli.ok(&["pause", "web"]);
    assert_eq!(cli.status("web"), "paused");
    let before = lines();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(lines(), before);
    cli.ok(&["resume", "web"]);
    eventually("it goes on", || lines() > before);
    cli.ok(&["pause", "web"]);
    cli.ok(&["kill", "web", "KILL"]);
    eventually("it has ended", || cli.status("web") == "stopped");
    cli.ok(&["delete", "web"]);
    cli.create("web", &cli.spec("web", &["sleep", "1000"]));
    cli.ok(&["start", "web"]);
    cli.ok(&["pause", "web"]);
    cli.ok(&["delete", "-f", "web"]);
    assert_eq!(cli.leftovers("web"), Vec::<String>::new());
}
