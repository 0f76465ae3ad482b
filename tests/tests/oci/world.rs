//! A place for container engines that ends with the test: see the script `world` beside this file.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rorqual_tests::wait::hold;
use rorqual_tests::{Output, command, root, wait_until};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The image that the engines load.
pub(crate) const IMAGE: &str = "busybox:latest";

/// What Podman needs to be told here: without CAP_SYS_RESOURCE no limit can be raised to its defaults.
const CONTAINERS_CONF: &str = r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"

[engine]
cgroup_manager = "MANAGER"
events_logger = "file"
runtime_supports_json = ["rorqual-runtime", "crun", "runc"]

[network]
network_backend = "netavark"
"#;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Namespaces, control groups and a folder.
pub(crate) struct World {
    name: String,
    dir: tempfile::TempDir,
    runtime: PathBuf,
    keeper: Child,
    /// Its first process.
    pid: u32,
    /// Whether it shares processes and control groups with this machine.
    beside: bool,
}

impl World {
    #[track_caller]
    pub(crate) fn new() -> World {
        World::made(false)
    }

    /// A world beside this machine's systemd, which takes process ids and control groups as they are here: what is
    /// started in it has to be ended. `None` where no systemd is the first process, or control groups are not all v2.
    #[track_caller]
    pub(crate) fn with_systemd() -> Option<World> {
        let needed = ["/run/systemd/private", "/sys/fs/cgroup/cgroup.controllers"];
        needed.iter().all(|path| Path::new(path).exists()).then(|| World::made(true))
    }

    #[track_caller]
    fn made(beside: bool) -> World {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("rqoci-{}-{number}", std::process::id());
        let dir = tempfile::Builder::new().prefix(&name).tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let runtime = install_runtime(dir.path());
        let manager = if beside { "systemd" } else { "cgroupfs" };
        fs::write(dir.path().join("containers.conf"), CONTAINERS_CONF.replace("MANAGER", manager)).unwrap();
        let mut keeper = script();
        if beside {
            keeper.arg("up-beside").arg(dir.path());
        } else {
            keeper.args(["up", &name]).args([dir.path(), &runtime]);
        }
        let mut keeper = keeper.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        wait_until("a world of its own", DEADLINE, || {
            if let Some(status) = keeper.try_wait().unwrap() {
                panic!("the world ended at once: {status}");
            }
            hold(dir.path().join("ready").exists(), || "it is not ready".to_owned())
        });
        let children = format!("/proc/{0}/task/{0}/children", keeper.id());
        let pid = fs::read_to_string(children).unwrap().trim().parse().unwrap();
        World { name, dir, runtime, keeper, pid, beside }
    }

    /// The runtime under test, as everybody in the world can run it.
    pub(crate) fn runtime(&self) -> &str {
        self.runtime.to_str().unwrap()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file in the world's folder.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// An image's archive where everybody in the world can read it.
    #[track_caller]
    pub(crate) fn archive(&self, archive: &Path) -> String {
        let path = self.dir.path().join("image.tar");
        fs::copy(archive, &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn enter(&self) -> Command {
        let mut command = script();
        if self.beside {
            command.arg("enter-beside");
        } else {
            command.args(["enter", &self.name]);
        }
        command.arg(self.pid.to_string());
        command.env("CONTAINERS_CONF", self.dir.path().join("containers.conf")).current_dir("/");
        command
    }

    #[track_caller]
    pub(crate) fn run(&self, words: &[&str]) -> Output {
        command::run(self.enter().args(words), DEADLINE)
    }

    /// As the ordinary user.
    #[track_caller]
    pub(crate) fn run_as_user(&self, words: &[&str]) -> Output {
        let mut command = self.enter();
        command.args(["setpriv", "--reuid", "engine", "--regid", "engine", "--clear-groups", "--"]);
        command.env("HOME", self.dir.path().join("home")).env("USER", "engine");
        command.env("XDG_RUNTIME_DIR", "/run/user/4242");
        command::run(command.args(words), DEADLINE)
    }

    /// Starts a program that ends with the world; returns its log.
    #[track_caller]
    pub(crate) fn start(&self, words: &[&str]) -> PathBuf {
        let log = self.dir.path().join(format!("{}.log", words[0]));
        let file = fs::File::create(&log).unwrap();
        let mut command = self.enter();
        command.args(["setsid", "--fork"]).args(words).stdin(Stdio::null());
        let status = command.stdout(file.try_clone().unwrap()).stderr(file).status().unwrap();
        assert!(status.success(), "cannot start {words:?}");
        log
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Its first process ends with it, and with that one everything in the namespace.
        self.keeper.kill().unwrap();
        self.keeper.wait().unwrap();
        if self.beside {
            return;
        }
        let status = script().args(["down", &self.name]).status().unwrap();
        assert!(status.success() || std::thread::panicking(), "control groups of {} are left", self.name);
    }
}

fn script() -> Command {
    Command::new(root().join("tests/tests/oci/world"))
}

/// Under its own name, by which engines know what a runtime can do.
fn install_runtime(dir: &Path) -> PathBuf {
    let runtime = std::env::var_os("RORQUAL_RUNTIME").map(PathBuf::from);
    let runtime = runtime.expect("RORQUAL_RUNTIME has to name the runtime (tests/run does)");
    let place = dir.join(runtime.file_name().unwrap());
    // By another process: a test beside this one may fork while ours has it open for writing, and until that child has
    // executed something nobody can execute it (ETXTBSY).
    assert!(Command::new("cp").arg(&runtime).arg(&place).status().unwrap().success());
    place
}
