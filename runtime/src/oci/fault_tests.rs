//! Fails every step of a launch in turn: of the first process, and of its parent. Whatever failed, nothing may be left.
//!
//! The test runs its own program again as the command line, since only this build has the places where it fails.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::fault::VARIABLE;

/// For the child: the arguments of the command line, one a line; and the file for its exit.
const ARGUMENTS: &str = "RQT_FAULT_ARGUMENTS";
const OUTCOME: &str = "RQT_FAULT_OUTCOME";
const VICTIM: &str = "oci::fault_tests::victim";

/// The command line, in a process of its own; nothing by itself.
#[test]
fn victim() {
    let (Ok(arguments), Ok(outcome)) = (std::env::var(ARGUMENTS), std::env::var(OUTCOME)) else { return };
    let arguments: Vec<String> = arguments.lines().map(str::to_owned).collect();
    let code = super::main(&arguments);
    fs::write(outcome, format!("{code:?}")).unwrap();
}

fn run(base: &Path, fail_at: &str, arguments: &[&str]) -> (String, String) {
    let outcome = base.join("outcome");
    let _ = fs::remove_file(&outcome);
    // Not pipes: a container that was created keeps them open.
    let errors = base.join("errors");
    let file = fs::File::create(&errors).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", VICTIM, "--nocapture", "--test-threads=1"])
        .env(VARIABLE, fail_at)
        .env(ARGUMENTS, arguments.join("\n"))
        .env(OUTCOME, &outcome)
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .status();
    assert!(status.unwrap().success());
    let text = fs::read_to_string(errors).unwrap();
    (fs::read_to_string(outcome).unwrap_or_default(), text)
}

fn bundle(base: &Path, name: &str) {
    let rootfs = base.join("rootfs");
    for dir in ["bin", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(rootfs.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/true")).unwrap();
    let hook = json!([{ "path": "/bin/true" }]);
    let spec = json!({
        "ociVersion": "1.2.0",
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["/bin/true"], "cwd": "/", "noNewPrivileges": true },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "box",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] },
            { "destination": "/tmp", "type": "bind", "source": "/tmp", "options": ["rbind", "ro"] },
        ],
        "hooks": {
            "createRuntime": hook, "createContainer": hook, "startContainer": hook,
            "poststart": hook, "poststop": hook,
        },
        "linux": {
            "cgroupsPath": format!("/{name}"),
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "uts" }, { "type": "ipc" },
                { "type": "network" }, { "type": "cgroup" },
            ],
            "resources": { "pids": { "limit": 100 } },
            "sysctl": { "net.ipv4.ip_forward": "0" },
            "maskedPaths": ["/proc/kcore", "/proc/acpi"],
            "readonlyPaths": ["/proc/sys"],
            "seccomp": { "defaultAction": "SCMP_ACT_ALLOW" },
        },
    });
    fs::write(base.join("config.json"), spec.to_string()).unwrap();
}

/// Mounts, groups and state of the container that are there.
fn leftovers(base: &Path, name: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let base_text = base.to_str().unwrap();
    let mut found: Vec<String> =
        mounts.lines().filter(|line| line.contains(base_text)).map(str::to_owned).collect();
    for line in fs::read_to_string("/proc/self/mounts").unwrap().lines() {
        let mut words = line.split(' ');
        let (place, kind) = (words.nth(1).unwrap(), words.next().unwrap());
        if kind.starts_with("cgroup") && Path::new(place).join(name).exists() {
            found.push(format!("{place}/{name}"));
        }
    }
    found.extend(
        fs::read_dir(base.join("state"))
            .into_iter()
            .flatten()
            .map(|entry| format!("{:?}", entry.unwrap().path())),
    );
    found
}

#[test]
fn whatever_step_fails_nothing_is_left() {
    let dir = tempfile::Builder::new().prefix("rqt-fault-").tempdir_in("/var/tmp").unwrap();
    let base = dir.path();
    let name = base.file_name().unwrap().to_str().unwrap().to_owned();
    bundle(base, &name);
    let root = base.join("state").to_str().unwrap().to_owned();
    // Detached: waiting for signals takes a process of one thread, which a test is not.
    for command in [&["run", "--detach"][..], &["create"]] {
        let options = ["--bundle", base.to_str().unwrap(), "one"];
        let arguments = [&["--root", &root], command, &options].concat();
        let mut failed = 0;
        for place in ["init", "parent"] {
            for index in 0.. {
                let fail_at = format!("{place}:{index}");
                let (outcome, text) = run(base, &fail_at, &arguments);
                if !text.contains(&format!("failed for a test at {fail_at}")) {
                    // Behind the last one: it went through.
                    assert!(
                        outcome.contains("(0)") || outcome.contains("unix_exit_status(0"),
                        "{outcome}: {text}"
                    );
                    run(base, "", &["--root", &root, "delete", "--force", "one"]);
                    assert_eq!(leftovers(base, &name), Vec::<String>::new(), "{command:?} whole");
                    break;
                }
                assert!(outcome.contains("(1"), "{fail_at}: {outcome}");
                assert_eq!(
                    leftovers(base, &name),
                    Vec::<String>::new(),
                    "{command:?} failed at {fail_at}: {text}"
                );
                failed += 1;
            }
        }
        assert!(failed > 20, "{command:?}: only {failed} places");
    }
}
