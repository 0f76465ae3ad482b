//! The command line in a process of its own, for tests of what only this build has: places that fail, and a folder in
//! place of resctrl. The test program is run again, with one test that is nothing by itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::{fault, rdt, sys};

/// The arguments of the command line, one a line; and the file for its exit.
const ARGUMENTS: &str = "RQT_FAULT_ARGUMENTS";
const OUTCOME: &str = "RQT_FAULT_OUTCOME";
const COMMAND_LINE: &str = "oci::victim::command_line";

/// Nothing by itself.
#[test]
fn command_line() {
    let (Ok(arguments), Ok(outcome)) = (std::env::var(ARGUMENTS), std::env::var(OUTCOME)) else { return };
    let arguments: Vec<String> = arguments.lines().map(str::to_owned).collect();
    let code = super::main(&arguments);
    fs::write(outcome, code.to_string()).unwrap();
}

/// How a command ended.
#[derive(Debug)]
pub(super) struct Victim {
    outcome: String,
    /// What it wrote, the test program's own words among it.
    pub(super) text: String,
}

impl Victim {
    pub(super) fn worked(&self) -> bool {
        self.outcome == "0"
    }

    /// Ended by itself, and not well.
    pub(super) fn failed(&self) -> bool {
        !self.outcome.is_empty() && !self.worked()
    }
}

/// Runs a command, with these variables.
fn run(base: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Victim {
    let outcome = base.join("outcome");
    let _ = fs::remove_file(&outcome);
    // Not pipes: a container that was created keeps them open.
    let errors = base.join("errors");
    let file = fs::File::create(&errors).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", COMMAND_LINE, "--nocapture", "--test-threads=1"])
        .env(ARGUMENTS, arguments.join("\n"))
        .env(OUTCOME, &outcome)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .status();
    assert!(status.unwrap().success());
    let text = fs::read_to_string(errors).unwrap();
    Victim { outcome: fs::read_to_string(outcome).unwrap_or_default(), text }
}

fn bundle(base: &Path, name: &str, args: &[&str], rdt: Value) {
    let rootfs = base.join("rootfs");
    for dir in ["bin", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(rootfs.join(dir)).unwrap();
    }
    for program in ["true", "sleep"] {
        fs::copy("/bin/busybox", rootfs.join("bin").join(program)).unwrap();
    }
    let hook = json!([{ "path": "/bin/true" }]);
    let spec = json!({
        "ociVersion": "1.2.0",
        "process": { "user": { "uid": 0, "gid": 0 }, "args": args, "cwd": "/", "noNewPrivileges": true },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "box",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"] },
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
            "intelRdt": rdt,
        },
    });
    fs::write(base.join("config.json"), spec.to_string()).unwrap();
}

/// The container's groups, by hierarchy.
pub(super) fn groups(name: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let cgroups = mounts.lines().filter(|line| line.split(' ').nth(2).unwrap().starts_with("cgroup"));
    let dirs = cgroups.map(|line| Path::new(line.split(' ').nth(1).unwrap()).join(name));
    dirs.filter(|dir| dir.exists()).collect()
}

/// The folder that is kept for the next container: what was in it is gone.
fn is_spare(path: &Path) -> bool {
    let mut files = fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().metadata().unwrap());
    path.ends_with("~spare") && files.all(|file| file.is_file() && file.len() == 0)
}

/// Mounts, groups, classes of service and state of the container that are there.
pub(super) fn leftovers(base: &Path, name: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let base_text = base.to_str().unwrap();
    let mut found: Vec<String> =
        mounts.lines().filter(|line| line.contains(base_text)).map(str::to_owned).collect();
    found.extend(groups(name).iter().map(|dir| dir.display().to_string()));
    for dir in ["state", "resctrl"] {
        let entries = fs::read_dir(base.join(dir)).into_iter().flatten();
        let entries = entries.map(|entry| entry.unwrap());
        let left = entries.filter(|entry| entry.file_name() != "info" && !is_spare(&entry.path()));
        found.extend(left.map(|entry| format!("{:?}", entry.path())));
    }
    found
}

/// A place for the tests of one function, and the arguments that are the same for all commands.
pub(super) struct Place {
    dir: tempfile::TempDir,
    pub(super) name: String,
    root: String,
}

impl Place {
    pub(super) fn new(args: &[&str], rdt: Value) -> Place {
        let dir = tempfile::Builder::new().prefix("rqt-fault-").tempdir_in("/var/tmp").unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        bundle(dir.path(), &name, args, rdt);
        let features = dir.path().join("resctrl/info/L3_MON");
        fs::create_dir_all(&features).unwrap();
        fs::write(features.join("mon_features"), "llc_occupancy\n").unwrap();
        // Else nobody may be there to reap what is left to itself: see [`Place::end`].
        super::run::become_subreaper().unwrap();
        let root = dir.path().join("state").to_str().unwrap().to_owned();
        Place { dir, name, root }
    }

    pub(super) fn base(&self) -> &Path {
        self.dir.path()
    }

    /// Kills a process that a command has left to itself, whose pid is in a file, and reaps it: before that its container
    /// does not end.
    pub(super) fn end(&self, pid_file: &Path) {
        let pid = fs::read_to_string(pid_file).unwrap().parse().unwrap();
        sys::kill(pid, libc::SIGKILL).unwrap();
        sys::wait_for(pid).unwrap();
    }

    /// Runs a command; `fail_at` names the place where it fails.
    pub(super) fn run(&self, fail_at: &str, command: &[&str]) -> Victim {
        let resctrl = self.base().join("resctrl");
        let variables = [(fault::VARIABLE, fail_at), (rdt::TEST_ROOT, resctrl.to_str().unwrap())];
        run(self.base(), &variables, &[&["--root", &self.root], command].concat())
    }
}
