//! Hooks: when they run, what they are told, what their failure does.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::common::cli::Cli;
use crate::common::eventually;

/// A hook of the host that appends its point, the state it got, and what it sees to a file.
fn telling(log: &Path, point: &str) -> Value {
    let script = format!("echo \"{point} $(cat)\" >> {}", log.display());
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })
}

/// One that runs in the container: the file is on a tmpfs of it.
fn inside(point: &str) -> Value {
    let script = format!("echo \"{point} $(cat)\" >> /tmp/log");
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"] })
}

fn lines(path: &Path) -> Vec<(String, Value)> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = |line: &str| {
        let (point, state) = line.split_once(' ').unwrap();
        (point.to_owned(), serde_json::from_str(state).unwrap())
    };
    text.lines().map(line).collect()
}

#[test]
fn hooks_run_at_their_points_with_the_state() {
    let cli = Cli::new();
    let log = cli.dir.path().join("log");
    let mut spec = cli.spec("web", &["sh", "-c", "cat /tmp/log; exec sleep 1000"]);
    // The host's shell runs on the host's files, before the container's root is entered.
    let created = format!("cat > {}; test -x bin/busybox", cli.dir.path().join("container").display());
    spec["hooks"] = json!({
        "prestart": [telling(&log, "prestart")],
        "createRuntime": [telling(&log, "createRuntime")],
        "createContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", created], "env": ["PATH=/usr/bin:/bin"] }],
        "startContainer": [inside("startContainer")],
        "poststart": [telling(&log, "poststart")],
        "poststop": [telling(&log, "poststop")],
    });
    assert_eq!(cli.create("web", &spec).err, "");
    let pid = cli.state("web")["pid"].clone();
    let told = lines(&log);
    assert_eq!(
        told.iter().map(|(point, _)| point.as_str()).collect::<Vec<_>>(),
        ["prestart", "createRuntime"]
    );
    for (_, state) in &told {
        assert_eq!(
            (&state["status"], &state["pid"], &state["id"]),
            (&json!("creating"), &pid, &json!("web"))
        );
        assert_eq!(state["annotations"]["test"], json!("yes"));
    }
    let container = fs::read_to_string(cli.dir.path().join("container")).unwrap();
    let container: Value = serde_json::from_str(&container).unwrap();
    assert_eq!((&container["pid"], &container["status"]), (&json!(1), &json!("creating")));
    cli.ok(&["start", "web"]);
    eventually("the hook inside has run", || !fs::read_to_string(cli.output("web")).unwrap().is_empty());
    let told = lines(&cli.output("web"));
    assert_eq!((told[0].0.as_str(), &told[0].1["status"]), ("startContainer", &json!("created")));
    let told = lines(&log);
    assert_eq!((told[2].0.as_str(), &told[2].1["status"]), ("poststart", &json!("running")));
    cli.ok(&["delete", "--force", "web"]);
    let told = lines(&log);
    assert_eq!((told[3].0.as_str(), &told[3].1["status"], told.len()), ("poststop", &json!("stopped"), 4));
}

#[test]
fn a_hook_that_fails_before_the_start_ends_the_container() {
    let cli = Cli::new();
    let failing =
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", "cat >/dev/null; echo why >&2; exit 9"] }]);
    for point in ["prestart", "createRuntime", "createContainer"] {
        let mut spec = cli.spec("web", &["sleep", "1000"]);
        spec["hooks"] = json!({ point: failing });
        let done = cli.create("web", &spec);
        done.fails(1, &format!("error running {point} hook #0"));
        assert!(done.err.contains("exit status 9: why"), "{}", done.err);
        assert_eq!(cli.leftovers("web"), Vec::<String>::new());
    }
    let mut spec = cli.spec("web", &["sleep", "1000"]);
    spec["hooks"] = json!({ "startContainer": failing });
    assert_eq!(cli.create("web", &spec).code, 0);
    cli.run(&["start", "web"]).fails(1, "error running startContainer hook #0");
    eventually("it has ended", || cli.status("web") == "stopped");
    cli.ok(&["delete", "web"]);
    cli.run_spec("web", &spec).fails(1, "error running startContainer hook #0");
    assert_eq!(cli.leftovers("web"), Vec::<String>::new());
    let mut spec = cli.spec("web", &["sleep", "1000"]);
    spec["hooks"] =
        json!({ "createRuntime": [{ "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1 }] });
    cli.create("web", &spec).fails(1, "timeout of 1 s");
}

/// Its program may come with the image. Seen to fail with the hooks run while the container waits.
#[test]
fn a_hook_inside_has_the_containers_privileges() {
    let cli = Cli::new();
    for no_new_privileges in [true, false] {
        let mut spec =
            cli.spec("web", &["sh", "-c", "cat /tmp/log; grep -E 'CapEff|Uid|Seccomp:' /proc/self/status"]);
        spec["process"]["noNewPrivileges"] = no_new_privileges.into();
        spec["process"]["user"] = json!({ "uid": 1000, "gid": 1001 });
        spec["process"]["capabilities"]["inheritable"] = json!(["CAP_KILL"]);
        spec["process"]["capabilities"]["ambient"] = json!(["CAP_KILL"]);
        let mut hook = inside("startContainer");
        hook["args"][2] =
            json!("cat > /dev/null; grep -E 'CapEff|Uid|Seccomp:' /proc/self/status > /tmp/log");
        spec["hooks"] = json!({ "startContainer": [hook] });
        let refused = |name: &str, action: &str| json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": [name], "action": action }] });
        spec["linux"]["seccomp"] = refused("mount", "SCMP_ACT_ERRNO");
        let done = cli.run_spec("web", &spec);
        let lines: Vec<&str> = done.out.lines().collect();
        assert!(lines.len() == 6 && lines[..3] == lines[3..] && lines[0].contains("1000"), "{done:?}");
        spec["hooks"]["startContainer"][0]["args"][2] = json!("cat > /dev/null; mkdir /tmp/made");
        spec["linux"]["seccomp"] = refused("mkdir", "SCMP_ACT_KILL_PROCESS");
        cli.run_spec("web", &spec).fails(1, "startContainer hook #0");
    }
}

#[test]
fn hooks_after_the_start_and_the_stop_only_warn() {
    let cli = Cli::new();
    let failing = json!([{ "path": "/bin/false" }]);
    let mut spec = cli.spec("web", &["sleep", "1000"]);
    spec["hooks"] = json!({ "poststart": failing, "poststop": failing });
    assert_eq!(cli.create("web", &spec).code, 0);
    let started = cli.run(&["start", "web"]);
    assert!(started.code == 0 && started.err.contains("level=warning"), "{started:?}");
    assert!(started.err.contains("poststart hook #0"), "{started:?}");
    assert_eq!(cli.status("web"), "running");
    let log = cli.dir.path().join("runtime.log");
    let args = ["--log", log.to_str().unwrap(), "--log-format", "json", "delete", "-f", "web"];
    assert_eq!(cli.run(&args).code, 0);
    let line: Value = serde_json::from_str(fs::read_to_string(log).unwrap().lines().next().unwrap()).unwrap();
    assert!(line["msg"].as_str().unwrap().contains("poststop hook #0"), "{line}");
    assert_eq!(cli.leftovers("web"), Vec::<String>::new());
}
