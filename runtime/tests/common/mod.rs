//! The world of a test: a runtime of its own, with directories, control group and root file system that go when the
//! test ends, however it ends.
#![allow(dead_code)]

pub(crate) mod cli;

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rorqual_runtime::log::LogReader;
use rorqual_runtime::spec::{ContainerSettings, default_spec};
use rorqual_runtime::{
    ContainerState, ExitStatus, Launch, LaunchError, LogPolicy, Rootfs, Runtime, RuntimeOptions, Started,
};

/// Longer than anything here takes, even on a busy machine: `RORQUAL_TEST_SLOWNESS` times 30 s, for machines that are slow
/// throughout, as an emulated one is.
pub(crate) static DEADLINE: LazyLock<Duration> = LazyLock::new(|| {
    let slowness = std::env::var("RORQUAL_TEST_SLOWNESS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(30) * slowness.unwrap_or(1)
});

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) options: RuntimeOptions,
    pub(crate) dir: Place,
}

/// A folder, and what takes it away if it is ours.
pub(crate) struct Place(PathBuf, Option<tempfile::TempDir>);

impl Place {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl World {
    pub(crate) fn new() -> World {
        let dir = tempfile::Builder::new().prefix("rqt-runtime-").tempdir_in("/var/tmp").unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let options = RuntimeOptions {
            runtime_dir: dir.path().join("run"),
            cgroup_parent: format!("rqt-runtime-{}-{number}", std::process::id()),
            binary: PathBuf::from(env!("CARGO_BIN_EXE_rorqual-runtime")),
        };
        let runtime = Runtime::new(options.clone()).unwrap();
        busybox(&dir.path().join("image"));
        World { runtime, options, dir: Place(dir.path().to_owned(), Some(dir)) }
    }

    /// The same world in another process, which does not take it away.
    pub(crate) fn at(base: &Path, cgroup_parent: &str) -> World {
        let options = RuntimeOptions {
            runtime_dir: base.join("run"),
            cgroup_parent: cgroup_parent.to_owned(),
            binary: PathBuf::from(env!("CARGO_BIN_EXE_rorqual-runtime")),
        };
        let runtime = Runtime::new(options.clone()).unwrap();
        World { runtime, options, dir: Place(base.to_owned(), None) }
    }

    /// The layer that all containers start from.
    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// An overlay of the image for a container; made anew.
    pub(crate) fn overlay(&self, id: &str) -> Rootfs {
        let base = self.dir.path().join("overlay").join(id);
        let (upper, work) = (base.join("upper"), base.join("work"));
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir_all(&work).unwrap();
        Rootfs::Overlay { lowers: vec![self.image()], upper, work }
    }

    pub(crate) fn container_dir(&self, id: &str) -> PathBuf {
        let dir = self.dir.path().join("containers").join(id);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    pub(crate) fn launch_of(&self, id: &str, settings: &ContainerSettings) -> Launch {
        Launch {
            id: id.to_owned(),
            dir: self.container_dir(id),
            spec: default_spec(settings).unwrap(),
            rootfs: self.overlay(id),
            user: None,
            log: LogPolicy::default(),
            stdin: false,
        }
    }

    pub(crate) fn launch(&self, id: &str, settings: &ContainerSettings) -> Result<Started, LaunchError> {
        self.runtime.launch(self.launch_of(id, settings))
    }

    /// Starts a shell script.
    pub(crate) fn start(&self, id: &str, script: &str) -> Started {
        self.launch(id, &shell(script)).unwrap()
    }

    /// Runs a shell script to its end: (status, everything it wrote).
    pub(crate) fn run(&self, settings: &ContainerSettings) -> (ExitStatus, String) {
        let id = format!("run-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.run_launch(self.launch_of(&id, settings))
    }

    pub(crate) fn run_launch(&self, launch: Launch) -> (ExitStatus, String) {
        let (id, dir) = (launch.id.clone(), launch.dir.clone());
        self.runtime.launch(launch).unwrap();
        let status = self.wait(&id);
        let text = text(&dir);
        self.runtime.delete(&id).unwrap();
        (status, text)
    }

    /// Waits for the end of a container, as the agent does.
    pub(crate) fn wait(&self, id: &str) -> ExitStatus {
        wait(&self.runtime, id)
    }

    pub(crate) fn cgroup_dirs(&self, group: &str) -> Vec<PathBuf> {
        let relative = Path::new(&self.options.cgroup_parent).join(group);
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let groups = mounts
            .lines()
            .filter(|line| line.split(' ').nth(2).is_some_and(|kind| kind.starts_with("cgroup")));
        groups
            .map(|line| Path::new(line.split(' ').nth(1).unwrap()).join(&relative))
            .filter(|dir| dir.exists())
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.dir.1.is_none() {
            return;
        }
        for (id, _) in self.runtime.list().unwrap_or_default() {
            let _ = self.runtime.kill(&id, libc::SIGKILL);
            let deadline = Instant::now() + *DEADLINE;
            while self.runtime.delete(&id).is_err() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let removed = self.runtime.remove_node();
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}

pub(crate) fn wait(runtime: &Runtime, id: &str) -> ExitStatus {
    let mut stream = runtime.watch(id).unwrap();
    stream.set_read_timeout(Some(*DEADLINE)).unwrap();
    let mut line = String::new();
    stream.read_to_string(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
}

pub(crate) fn args(args: &[&str]) -> ContainerSettings {
    ContainerSettings {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        ..ContainerSettings::default()
    }
}

pub(crate) fn shell(script: &str) -> ContainerSettings {
    args(&["sh", "-c", script])
}

/// Everything in a container's log, streams mixed.
pub(crate) fn text(dir: &Path) -> String {
    let mut reader = LogReader::open(dir, None).unwrap();
    let mut text = String::new();
    while let Some(record) = reader.next_record().unwrap() {
        text.push_str(&String::from_utf8_lossy(&record.bytes));
        text.push_str(if record.partial { "" } else { "\n" });
    }
    text
}

/// Waits until a condition holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + *DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {:?}", *DEADLINE);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many session keyrings there are in /proc/keys that are for their possessors alone: the reader's own can be seen.
pub(crate) fn own_keyrings(keys: &str) -> usize {
    keys.lines().filter(|line| line.contains(" _ses: ") && line.contains(" 3f000000 ")).count()
}

pub(crate) fn is_running(runtime: &Runtime, id: &str) -> bool {
    matches!(runtime.state(id).unwrap(), ContainerState::Running(_))
}

/// Copies a program, in another process: while ours has it open for writing another test may fork, and until that child has
/// executed something the kernel executes nothing that is open for writing (ETXTBSY).
pub(crate) fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status();
    assert!(copied.unwrap().success(), "{} to {}", from.display(), to.display());
}

/// A root file system of busybox.
fn busybox(root: &Path) {
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    copy_program(Path::new("/bin/busybox"), &root.join("bin/busybox"));
    let applets = "sh cat id ls echo sleep true false mount umount grep ps kill dd head hostname touch chmod stat \
                   readlink unshare wc seq env pwd mknod test printf yes tail nproc trap mkdir ln rm sysctl cut uname \
                   ionice ip tty stty diff tr";
    for applet in applets.split_ascii_whitespace() {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1001:worker:/home/worker:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nworker:x:1001:\nextra:x:2000:worker\n").unwrap();
}
