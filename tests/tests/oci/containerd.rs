//! containerd, which runs the runtime through runc's shim.

use rorqual_tests::wait::hold;
use rorqual_tests::{Output, images, wait_until};

use crate::world::{DEADLINE, World};

const IMAGE: &str = "docker.io/library/busybox:latest";

struct Containerd {
    world: World,
}

impl Containerd {
    #[track_caller]
    fn new() -> Containerd {
        let world = World::new();
        world.run(&["mkdir", "-p", "/run/containerd"]).ok();
        let daemon = ["containerd", "--log-level", "warn", "--root", "/var/lib/containerd"];
        let log = world.start(&[&daemon[..], &["--state", "/run/containerd/state"]].concat());
        let containerd = Containerd { world };
        wait_until("containerd answers", DEADLINE, || {
            let output = containerd.ctr(&["version"]);
            hold(output.code == 0, || std::fs::read_to_string(&log).unwrap())
        });
        let archive = containerd.world.archive(&images::archive("busybox"));
        containerd.ctr(&["image", "import", "--base-name", "docker.io/library/busybox", &archive]).ok();
        containerd
    }

    #[track_caller]
    fn ctr(&self, words: &[&str]) -> Output {
        self.world.run(&[&["ctr"], words].concat())
    }

    #[track_caller]
    fn run(&self, options: &[&str], words: &[&str]) -> Output {
        let runtime = ["run", "--runtime", "io.containerd.runc.v2", "--runc-binary", self.world.runtime()];
        self.ctr(&[&runtime, options, &[IMAGE], words].concat())
    }

    #[track_caller]
    fn status(&self, name: &str) -> String {
        let list = self.ctr(&["task", "ls"]).ok();
        let line = list.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(2).unwrap_or_default().to_owned()
    }
}

#[test]
fn ctr_runs_containers() {
    let containerd = Containerd::new();
    let output = containerd.run(&["--rm"], &["one", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (7, "out\n", "err\n"));
    containerd
        .run(&["--rm"], &["two", "no-such-command"])
        .fails(1, &["no-such-command", "executable file not found"]);
    let told =
        containerd.run(&["--rm", "--env", "A=b", "--cwd", "/tmp"], &["three", "sh", "-c", "echo $A; pwd"]);
    assert_eq!(told.ok(), "b\n/tmp\n");
    let command = format!(
        "ctr run --rm --tty --runtime io.containerd.runc.v2 --runc-binary {} {IMAGE} four sh -c 'tty; exit 6'",
        containerd.world.runtime()
    );
    let output = containerd.world.run(&["script", "--quiet", "--return", "--command", &command, "/dev/null"]);
    assert_eq!(output.code, 6, "{}", output.tell());
    assert!(output.stdout.contains("/dev/pts/0"), "{}", output.tell());
    assert_eq!(containerd.ctr(&["container", "ls", "--quiet"]).ok(), "");
}

#[test]
fn ctr_looks_after_tasks() {
    let containerd = Containerd::new();
    let limits = ["--detach", "--memory-limit", "67108864"];
    containerd.run(&limits, &["box", "sleep", "1000"]).ok();
    assert_eq!(containerd.status("box"), "RUNNING");
    let exec = |id: &str, words: &[&str]| {
        containerd.ctr(&[&["task", "exec", "--exec-id", id, "box"], words].concat())
    };
    let output = exec("first", &["sh", "-c", "cat /proc/1/comm; exit 3"]);
    assert_eq!((output.code, output.stdout.as_str()), (3, "sleep\n"), "{}", output.tell());
    let output = exec("second", &["no-such-command"]);
    assert_ne!(output.code, 0);
    assert!(output.stderr.contains("executable file not found"), "{}", output.tell());
    containerd.ctr(&["task", "pause", "box"]).ok();
    assert_eq!(containerd.status("box"), "PAUSED");
    containerd.ctr(&["task", "resume", "box"]).ok();
    assert_eq!(containerd.status("box"), "RUNNING");
    let processes = containerd.ctr(&["task", "ps", "box"]).ok();
    assert_eq!(processes.lines().count(), 2, "{processes}");
    let metrics = containerd.ctr(&["task", "metrics", "box"]).ok();
    assert!(metrics.contains("memory"), "{metrics}");
    containerd.ctr(&["task", "kill", "--signal", "KILL", "box"]).ok();
    wait_until("the task has ended", DEADLINE, || {
        let status = containerd.status("box");
        hold(status == "STOPPED", || status)
    });
    containerd.ctr(&["task", "rm", "box"]).ok();
    containerd.ctr(&["container", "rm", "box"]).ok();
}
