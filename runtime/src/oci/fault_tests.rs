//! Fails every step of a launch and of an exec in turn: of the process, and of its parent. Whatever failed, nothing may be
//! left.

use std::fs;
use std::io::Read as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::victim::{Place, groups, leftovers};

/// How many places there are where a parent fails.
const PARENT: std::ops::Range<usize> = 0..8;
const EXEC: std::ops::Range<usize> = 0..6;
const RDT: std::ops::Range<usize> = 0..6;

/// Fails a command at every place, and looks after each time. Ends with the first one that is not passed, or with
/// the last of `places`.
fn fail(
    place: &Place,
    command: &[&str],
    kind: &str,
    places: impl Iterator<Item = usize>,
    look: &dyn Fn(&str),
) -> usize {
    let mut failed = 0;
    for index in places {
        let fail_at = format!("{kind}:{index}");
        let victim = place.run(&fail_at, command);
        if !victim.text.contains(&format!("failed for a test at {fail_at}")) {
            assert!(victim.worked(), "{fail_at}: {victim:?}");
            break;
        }
        assert!(victim.failed(), "{fail_at}: {victim:?}");
        look(&fail_at);
        failed += 1;
    }
    failed
}

#[test]
fn whatever_step_fails_nothing_is_left() {
    let rdt = json!({ "schemata": ["L3:0=f"], "enableMonitoring": true });
    let place = Place::new(&["/bin/true"], rdt);
    // Detached: waiting for signals takes a process of one thread, which a test is not.
    for command in [&["run", "--detach"][..], &["create"]] {
        let command = [command, &["--bundle", place.base().to_str().unwrap(), "one"]].concat();
        let nothing = |fail_at: &str| {
            let left = leftovers(place.base(), &place.name);
            assert_eq!(left, Vec::<String>::new(), "{command:?} failed at {fail_at}");
        };
        for (kind, places) in [("parent", PARENT), ("rdt", RDT)] {
            let count = places.len();
            assert_eq!(
                fail(&place, &command, kind, places, &nothing),
                count,
                "{command:?}: places of {kind}"
            );
        }
        let failed = fail(&place, &command, "init", 0.., &nothing);
        assert!(failed > 20, "{command:?}: only {failed} steps");
        assert!(!leftovers(place.base(), &place.name).is_empty(), "{command:?} went through");
        let gone = place.run("", &["delete", "--force", "one"]);
        assert!(gone.worked(), "{gone:?}");
        nothing("no place");
    }
}

/// Set up outside of the pid namespace that it joins: by one process more, and others inside.
#[test]
fn whatever_step_fails_outside_of_a_joined_pid_namespace_nothing_is_left() {
    let place = Place::new(&["/bin/true"], Value::Null);
    let config = place.base().join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    // Its own is as good as any.
    spec["linux"]["namespaces"][0]["path"] = "/proc/self/ns/pid".into();
    spec["hooks"].as_object_mut().unwrap().remove("createContainer");
    fs::write(&config, spec.to_string()).unwrap();
    let command = ["create", "--bundle", place.base().to_str().unwrap(), "one"];
    let nothing = |fail_at: &str| {
        assert_eq!(leftovers(place.base(), &place.name), Vec::<String>::new(), "{fail_at}");
    };
    let failed = fail(&place, &command, "init", 0.., &nothing);
    assert!(failed > 20, "only {failed} steps");
    // The last one was made, and would fail only behind its start.
    place.run("", &["delete", "--force", "one"]);
    for command in [&command[..], &["start", "one"], &["delete", "--force", "one"]] {
        let done = place.run("", command);
        assert!(done.worked(), "{command:?}: {done:?}");
    }
    nothing("no place");
}

/// Makes a group below each of the container's.
fn sub_groups(name: &str) -> Vec<PathBuf> {
    let make = |group: &PathBuf| {
        let dir = group.join("sub");
        fs::create_dir(&dir).unwrap();
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // Of v1, where a group has none of its parent's by itself.
            if dir.join(file).exists() && group.join("tasks").exists() {
                fs::write(dir.join(file), fs::read_to_string(group.join(file)).unwrap()).unwrap();
            }
        }
        dir
    };
    groups(name).iter().map(make).collect()
}

fn processes(group: &Path) -> Vec<String> {
    fs::read_to_string(group.join("cgroup.procs")).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn whatever_step_of_exec_fails_the_container_runs_on_and_nothing_else() {
    let place = Place::new(&["/bin/sleep", "1000"], json!({}));
    let (base, name) = (place.base(), place.name.as_str());
    let started = place.run("", &["run", "--detach", "--bundle", base.to_str().unwrap(), "one"]);
    assert!(started.worked(), "{started:?}");
    let (groups, below) = (groups(name), sub_groups(name));
    let first: Vec<Vec<String>> = groups.iter().map(|group| processes(group)).collect();
    assert!(first.iter().any(|pids| pids.len() == 1), "{first:?}");
    let (socket, pid_file) = (base.join("console.sock"), base.join("pid"));
    let consoles = UnixListener::bind(&socket).unwrap();
    consoles.set_nonblocking(true).unwrap();
    let command = [
        "exec",
        "--detach",
        "--tty",
        "--cgroup",
        "sub",
        "--console-socket",
        socket.to_str().unwrap(),
        "--pid-file",
        pid_file.to_str().unwrap(),
        "one",
        "/bin/sleep",
        "1000",
    ];
    let runs_on = |fail_at: &str| {
        for (group, first) in groups.iter().zip(&first) {
            assert_eq!(&processes(group), first, "{fail_at}: {}", group.display());
        }
        for group in &below {
            assert_eq!(processes(group), Vec::<String>::new(), "{fail_at}: {}", group.display());
        }
        assert!(!pid_file.exists(), "{fail_at}");
        // The connection comes to its end: nobody holds it, nor a terminal that would keep somebody.
        if let Ok((mut console, _)) = consoles.accept() {
            console.set_nonblocking(false).unwrap();
            console.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
            let mut text = Vec::new();
            console.read_to_end(&mut text).unwrap();
        }
        let state = place.run("", &["state", "one"]);
        assert!(state.text.contains("\"status\": \"running\""), "{fail_at}: {state:?}");
    };
    // Making the groups (parent 2, 3) is what an exec has in common with a launch.
    for (kind, places) in [("exec", EXEC), ("parent", 2..4), ("rdt", 4..6)] {
        let count = places.len();
        assert_eq!(fail(&place, &command, kind, places, &runs_on), count, "places of {kind}");
    }
    let failed = fail(&place, &command, "init", 0.., &runs_on);
    assert!(failed > 15, "only {failed} steps");
    assert!(below.iter().any(|group| processes(group).len() == 1), "it went through");
    place.end(&pid_file);
    let gone = place.run("", &["delete", "--force", "one"]);
    assert!(gone.worked() && leftovers(base, name).is_empty(), "{gone:?}: {:?}", leftovers(base, name));
}
