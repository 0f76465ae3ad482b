//! The command line, driven as Podman and containerd drive it: bundles of busybox, and a root for the state that goes
//! with the test.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use super::{DEADLINE, busybox};

/// A place for bundles and state.
pub(crate) struct Cli {
    pub(crate) dir: tempfile::TempDir,
    /// Below each hierarchy.
    pub(crate) parent: String,
}

impl Cli {
    pub(crate) fn new() -> Cli {
        let dir = tempfile::Builder::new().prefix("rqt-oci-").tempdir_in("/var/tmp").unwrap();
        busybox(&dir.path().join("rootfs"));
        let unique = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        Cli { dir, parent: unique }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// A specification that runs these arguments; its group is named after the container.
    pub(crate) fn spec(&self, id: &str, args: &[&str]) -> Value {
        let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let caps = strings(&["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"]);
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": { "uid": 0, "gid": 0 },
                "args": args,
                "env": ["PATH=/bin", "TERM=xterm"],
                "cwd": "/",
                "capabilities": { "bounding": caps, "effective": caps, "permitted": caps },
                "noNewPrivileges": true,
            },
            "root": { "path": self.rootfs(), "readonly": true },
            "hostname": "box",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
                {
                    "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
                },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"] },
                { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
            ],
            "linux": {
                "cgroupsPath": format!("/{}/{id}", self.parent),
                "namespaces": [
                    { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                    { "type": "network" }, { "type": "cgroup" },
                ],
                "maskedPaths": ["/proc/kcore"],
                "readonlyPaths": ["/proc/sys"],
            },
            "annotations": { "test": "yes" },
        })
    }

    /// A bundle with a specification; returns its folder.
    pub(crate) fn bundle(&self, id: &str, spec: &Value) -> PathBuf {
        let dir = self.dir.path().join(format!("bundle-{id}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.json"), serde_json::to_vec_pretty(spec).unwrap()).unwrap();
        dir
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rorqual-runtime"));
        command.arg("--root").arg(self.root()).args(args).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Done {
        Done::of(&self.command(args).output().unwrap())
    }

    /// Runs a command that has to work, and to say nothing.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!((done.code, done.err.as_str()), (0, ""), "{args:?}: {}", done.out);
        done.out
    }

    /// `create` as conmon does it: with descriptors that stay with the container. Its output goes to `out-<id>`.
    pub(crate) fn create(&self, id: &str, spec: &Value) -> Done {
        self.create_with(id, spec, &[])
    }

    pub(crate) fn create_with(&self, id: &str, spec: &Value, options: &[&str]) -> Done {
        let bundle = self.bundle(id, spec);
        let out = fs::File::create(self.output(id)).unwrap();
        let err = self.dir.path().join(format!("err-{id}"));
        let status = self
            .command(&["create", "--bundle", bundle.to_str().unwrap()])
            .args(options)
            .arg(id)
            .stdout(out)
            .stderr(fs::File::create(&err).unwrap())
            .status()
            .unwrap();
        let err = fs::read_to_string(err).unwrap();
        Done { code: status.code().unwrap(), out: String::new(), err }
    }

    /// `run` to its end.
    pub(crate) fn run_spec(&self, id: &str, spec: &Value) -> Done {
        let bundle = self.bundle(id, spec);
        self.run(&["run", "-b", bundle.to_str().unwrap(), id])
    }

    pub(crate) fn output(&self, id: &str) -> PathBuf {
        self.dir.path().join(format!("out-{id}"))
    }

    pub(crate) fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.ok(&["state", id])).unwrap()
    }

    pub(crate) fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap().to_owned()
    }

    /// Every group that is there for a container, on every hierarchy.
    pub(crate) fn groups(&self, id: &str) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let cgroups = mounts.lines().filter(|line| line.contains(" cgroup"));
        let dirs = cgroups.map(|line| Path::new(line.split(' ').nth(1).unwrap()).join(&self.parent).join(id));
        dirs.filter(|dir| dir.exists()).collect()
    }

    /// What there is of containers: state, groups, mounts.
    pub(crate) fn leftovers(&self, id: &str) -> Vec<String> {
        let mut found: Vec<String> = self.groups(id).iter().map(|dir| dir.display().to_string()).collect();
        if self.root().join(id).exists() {
            found.push(self.root().join(id).display().to_string());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        found.extend(mounts.lines().filter(|line| line.contains(&self.parent)).map(str::to_owned));
        found
    }
}

impl Drop for Cli {
    fn drop(&mut self) {
        let ids = self.run(&["list", "-q"]).out;
        for id in ids.lines() {
            self.run(&["delete", "--force", id]);
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for line in mounts.lines().filter(|line| line.contains(" cgroup")) {
            let _ = fs::remove_dir(Path::new(line.split(' ').nth(1).unwrap()).join(&self.parent));
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    fn of(output: &Output) -> Done {
        Done {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts how it failed.
    pub(crate) fn fails(&self, code: i32, text: &str) {
        assert!(self.code == code && self.err.contains(text), "expected {code} with {text:?}: {self:?}");
    }
}

/// A child that is waited for, but not for ever.
pub(crate) fn wait(mut child: Child) -> Done {
    let deadline = Instant::now() + *DEADLINE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("it has not ended");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Done::of(&child.wait_with_output().unwrap())
}

/// Feeds a child's standard input.
pub(crate) fn feed(child: &mut Child, text: &str) {
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
}
