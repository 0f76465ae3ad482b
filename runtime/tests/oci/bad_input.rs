//! What a user reads who got a specification wrong: the field by its JSON path, and what it should be. Nothing stays.

use std::fs;

use serde_json::{Value, json};

use crate::common::cli::Cli;

/// A field by its JSON pointer, what it is set to (null: it is left out), and what has to be said.
type Case = (&'static str, Value, &'static [&'static str]);

fn cases() -> Vec<Case> {
    vec![
        ("/ociVersion", json!("2.0.0"), &["ociVersion", "1.0.0 to 1.3.x"]),
        ("/root", Value::Null, &["root is missing"]),
        ("/root", json!({}), &["root.path is missing"]),
        ("/root/path", json!(5), &["root.path: invalid type"]),
        ("/process", Value::Null, &["process: is missing"]),
        ("/process/args", json!([]), &["process.args: no command"]),
        ("/process/args", json!(["true", 1]), &["process.args[1]: invalid type"]),
        ("/process/cwd", json!("tmp"), &["process.cwd", "not absolute"]),
        ("/process/env", json!(["A"]), &["process.env", "NAME=value"]),
        ("/process/env", json!(["A=\0"]), &["process.env", "NUL"]),
        ("/process/user/uid", json!(-1), &["process.user.uid", "-1"]),
        ("/process/user/umask", json!(1000), &["process.user.umask", "0777"]),
        ("/process/oomScoreAdj", json!(5000), &["process.oomScoreAdj", "-1000 and 1000"]),
        ("/process/rlimits", json!([{"type": "RLIMIT_X"}]), &["process.rlimits[0].type", "RLIMIT_NOFILE"]),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_OTHER", "nice": 50}),
            &["process.scheduler.nice", "19"],
        ),
        ("/process/capabilities/bounding", json!("CAP_KILL"), &["process.capabilities.bounding", "sequence"]),
        ("/process/apparmorProfile", json!("no-such"), &["AppArmor"]),
        ("/process/selinuxLabel", json!("no-such"), &["SELinux"]),
        ("/hostname", json!("a\0b"), &["hostname", "NUL"]),
        ("/hostname", json!("x".repeat(65)), &["hostname", "64 bytes"]),
        ("/annotations", json!({"": "x"}), &["annotations", "empty name"]),
        ("/mounts/0", json!({"type": "tmpfs"}), &["mounts[0]", "destination"]),
        ("/mounts/0/options", json!("ro"), &["mounts[0].options", "sequence"]),
        ("/mounts/0/destination", json!("/proc/self"), &["mounts[0].destination", "/proc/self"]),
        ("/mounts/4/type", json!("nosuchfs"), &["/tmp", "no file system nosuchfs"]),
        ("/mounts/4/options", json!(["size=zz"]), &["/tmp", "size=zz"]),
        ("/linux", Value::Null, &["linux: is missing"]),
        ("/linux/namespaces/0/type", json!("pids"), &["linux.namespaces[0].type", "`pid`"]),
        ("/linux/namespaces/1/type", json!("pid"), &["linux.namespaces", "twice"]),
        (
            "/linux/namespaces/4",
            json!({"type": "network", "path": "/no/such"}),
            &["/no/such", "no such file"],
        ),
        (
            "/linux/namespaces/4",
            json!({"type": "network", "path": "/proc/self/ns/uts"}),
            &["/proc/self/ns/uts"],
        ),
        (
            "/linux/uidMappings",
            json!([{"containerID": 0, "hostID": 0, "size": 1}]),
            &["linux.uidMappings", "user"],
        ),
        ("/linux/timeOffsets", json!({"monotonic": {"secs": 1}}), &["linux.timeOffsets", "time namespace"]),
        ("/linux/sysctl", json!({"vm.swappiness": "1"}), &["linux.sysctl.vm.swappiness", "net.*"]),
        ("/linux/sysctl", json!({"net.nosuch": "1"}), &["net/nosuch", "no such file"]),
        (
            "/linux/devices",
            json!([{"path": "/dev/x", "type": "c"}]),
            &["linux.devices[0]", "major and minor"],
        ),
        (
            "/linux/resources",
            json!({"devices": [{"allow": true, "access": "x"}]}),
            &["devices[0].access", "'x'"],
        ),
        ("/linux/resources", json!({"memory": {"limit": -5}}), &["linux.resources.memory.limit", "-5"]),
        ("/linux/resources", json!({"memory": {"limit": "64m"}}), &["linux.resources.memory.limit", "64m"]),
        ("/linux/resources", json!({"cpu": {"cpus": "a-b"}}), &["linux.resources.cpu.cpus", "0-3,6"]),
        ("/linux/rootfsPropagation", json!("x"), &["linux.rootfsPropagation", "private"]),
        ("/linux/mountLabel", json!("x"), &["linux.mountLabel", "SELinux"]),
        ("/windows", json!({}), &["windows", "not supported"]),
        ("/linux/intelRdt", json!({"closID": "a/b"}), &["linux.intelRdt.closID", "a/b"]),
        ("/linux/intelRdt", json!({"memBwSchema": "L3:0=f"}), &["linux.intelRdt.memBwSchema", "MB:"]),
        ("/linux/intelRdt", json!({"enableCMT": 1}), &["linux.intelRdt.enableCMT"]),
        (
            "/linux/seccomp",
            json!({"defaultAction": "ALLOW"}),
            &["linux.seccomp.defaultAction", "SCMP_ACT_ALLOW"],
        ),
        ("/hooks", json!({"prestart": [{"path": "x"}]}), &["hooks.prestart[0].path", "not absolute"]),
        ("/hooks", json!({"poststop": [{"path": "/x", "timeout": 0}]}), &["hooks.poststop[0].timeout", "0"]),
    ]
}

/// Sets a field, or takes it out.
fn change(spec: &mut Value, pointer: &str, to: Value) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match spec.pointer_mut(parent).unwrap() {
        Value::Object(fields) if to.is_null() => drop(fields.remove(name)),
        Value::Object(fields) => drop(fields.insert(name.to_owned(), to)),
        list => list[name.parse::<usize>().unwrap()] = to,
    }
}

#[test]
fn what_is_wrong_is_named_by_its_json_path() {
    let cli = Cli::new();
    let mut wrong = Vec::new();
    for (pointer, to, words) in cases() {
        let mut spec = cli.spec("bad", &["true"]);
        change(&mut spec, pointer, to.clone());
        let done = cli.create("bad", &spec);
        if done.code != 1 || words.iter().any(|word| !done.err.contains(word)) {
            wrong.push(format!("{pointer} = {to}: expected {words:?}, got {}: {}", done.code, done.err));
            cli.run(&["delete", "--force", "bad"]);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(cli.ok(&["list", "--quiet"]), "");
    assert_eq!(cli.leftovers("bad"), Vec::<String>::new());
}

/// Neither of our machines has it. What is done where there is one, `oci/rdt_tests.rs` shows.
#[test]
fn a_machine_without_resctrl_is_told_as_such() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    if mounts.lines().any(|line| line.split(' ').nth(2) == Some("resctrl")) {
        return;
    }
    let cli = Cli::new();
    let mut spec = cli.spec("rdt", &["sleep", "1000"]);
    change(&mut spec, "/linux/intelRdt", json!({"closID": "x"}));
    let done = cli.create("rdt", &spec);
    done.fails(1, "the resctrl file system that linux.intelRdt needs is missing on this machine");
    done.fails(1, "CONFIG_X86_CPU_RESCTRL");
    assert_eq!(cli.leftovers("rdt"), Vec::<String>::new());
    change(&mut spec, "/linux/intelRdt", Value::Null);
    assert_eq!(cli.create("rdt", &spec).err, "");
    cli.run(&["update", "--l3-cache-schema", "L3:0=f", "rdt"]).fails(1, "resctrl");
    cli.run(&["update", "--mem-bw-schema", "20", "rdt"]).fails(1, "linux.intelRdt.memBwSchema");
}

#[test]
fn a_device_may_be_there_already_but_nothing_else() {
    let cli = Cli::new();
    let mut spec = cli.spec("dev", &["stat", "-c", "%t:%T", "/opt/more"]);
    change(&mut spec, "/linux/devices", json!([{"path": "/opt/more", "type": "c", "major": 1, "minor": 5}]));
    for round in ["made", "there already"] {
        let done = cli.run_spec("dev", &spec);
        assert_eq!((done.code, done.out.as_str()), (0, "1:5\n"), "{round}: {}", done.err);
    }
    fs::remove_file(cli.rootfs().join("opt/more")).unwrap();
    fs::write(cli.rootfs().join("opt/more"), "").unwrap();
    cli.run_spec("dev", &spec).fails(1, "opt/more: is there already, and is something else");
}

#[test]
fn what_is_not_known_is_passed_over() {
    let cli = Cli::new();
    let mut spec = cli.spec("new", &["echo", "runs"]);
    for pointer in ["/fromTheFuture", "/process/fromTheFuture", "/linux/fromTheFuture"] {
        change(&mut spec, pointer, json!({"a": [1]}));
    }
    let done = cli.run_spec("new", &spec);
    assert_eq!((done.code, done.out.as_str(), done.err.as_str()), (0, "runs\n", ""));
}

#[test]
fn a_memory_limit_that_is_too_low_is_told_as_such() {
    let cli = Cli::new();
    let mut spec = cli.spec("low", &["true"]);
    change(&mut spec, "/linux/resources", json!({"memory": {"limit": 4096}}));
    cli.create("low", &spec).fails(1, "is its memory limit too low?");
}
