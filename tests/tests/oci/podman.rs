//! Podman as root: what its users do every day.

use std::path::Path;
use std::time::Duration;

use rorqual_tests::wait::hold;
use rorqual_tests::{Output, images, wait_until};

use crate::world::{DEADLINE, IMAGE, World};

/// A world with Podman and an image in it.
pub(crate) struct Podman {
    pub(crate) world: World,
}

impl Podman {
    #[track_caller]
    pub(crate) fn new() -> Podman {
        Podman::in_world(World::new())
    }

    #[track_caller]
    pub(crate) fn in_world(world: World) -> Podman {
        let podman = Podman { world };
        let archive = podman.world.archive(&images::archive("busybox"));
        podman.call(&["load", "--quiet", "--input", &archive]).ok();
        podman
    }

    #[track_caller]
    pub(crate) fn call(&self, words: &[&str]) -> Output {
        self.world.run(&[&["podman", "--runtime", self.world.runtime()], words].concat())
    }

    /// `podman run --rm OPTIONS IMAGE COMMAND`, without a network unless the options name one.
    #[track_caller]
    pub(crate) fn run(&self, options: &[&str], command: &[&str]) -> Output {
        self.call(&[&["run", "--rm", "--network", "none"], options, &[IMAGE], command].concat())
    }

    /// The same, in the background.
    #[track_caller]
    pub(crate) fn start(&self, name: &str, options: &[&str], command: &[&str]) {
        let detached = ["run", "--detach", "--network", "none", "--name", name];
        self.call(&[&detached, options, &[IMAGE], command].concat()).ok();
    }

    #[track_caller]
    pub(crate) fn shell(&self, name: &str, script: &str) -> Output {
        self.call(&["exec", name, "sh", "-c", script])
    }

    #[track_caller]
    pub(crate) fn inspect(&self, name: &str, field: &str) -> String {
        let format = format!("{{{{{field}}}}}");
        self.call(&["inspect", "--format", &format, name]).ok().trim().to_owned()
    }
}

#[test]
fn run_passes_output_and_exit_codes_on() {
    let podman = Podman::new();
    let output = podman.run(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (7, "out\n", "err\n"));
    podman.run(&[], &["no-such-command"]).fails(127, &["no-such-command"]);
    podman.run(&[], &["/etc/passwd"]).fails(126, &["/etc/passwd", "permission denied"]);
    podman.run(&["--workdir", "/nowhere"], &["true"]).fails(126, &["/nowhere"]);
    let left = podman.call(&["ps", "--all", "--quiet"]).ok();
    assert!(left.is_empty(), "containers are left: {left}");
}

#[test]
fn exec_has_its_own_user_environment_folder_and_exit_code() {
    let podman = Podman::new();
    podman.start("box", &["--env", "FROM=container"], &["sleep", "1000"]);
    let own = ["exec", "--user", "33:33", "--env", "MORE=exec", "--workdir", "/tmp", "box", "sh", "-c"];
    let told = podman.call(&[&own[..], &["id -u; id -g; echo $FROM $MORE; pwd; exit 3"]].concat());
    assert_eq!((told.code, told.stdout.as_str()), (3, "33\n33\ncontainer exec\n/tmp\n"), "{}", told.tell());
    // It is in the container's namespaces and control groups.
    let same = "for ns in ipc mnt net pid uts; do
                  [ $(readlink /proc/1/ns/$ns) = $(readlink /proc/self/ns/$ns) ] || echo $ns
                done
                cmp /proc/1/cgroup /proc/self/cgroup && cat /proc/1/comm";
    assert_eq!(podman.shell("box", same).ok(), "sleep\n");
    podman.call(&["exec", "box", "no-such-command"]).fails(127, &["no-such-command"]);
    podman.call(&["exec", "box", "/etc/passwd"]).fails(126, &["permission denied"]);
    podman.call(&["exec", "--detach", "box", "touch", "/tmp/detached"]).ok();
    wait_until("what the detached exec makes", DEADLINE, || {
        let output = podman.call(&["exec", "box", "test", "-e", "/tmp/detached"]);
        hold(output.code == 0, || output.tell())
    });
    podman.call(&["rm", "--force", "--time", "0", "box"]).ok();
}

#[test]
fn stop_asks_first_and_kills_then() {
    let podman = Podman::new();
    let polite = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    podman.start("polite", &[], &["sh", "-c", polite]);
    wait_until("it waits for its signal", DEADLINE, || {
        let output = podman.call(&["logs", "polite"]);
        hold(output.stdout == "ready\n", || output.tell())
    });
    podman.call(&["stop", "--time", "20", "polite"]).ok();
    assert_eq!(podman.inspect("polite", ".State.ExitCode"), "0");
    assert_eq!(podman.call(&["logs", "polite"]).ok(), "ready\nbye\n");
    // The first process of a namespace ignores what it does not handle.
    podman.start("deaf", &[], &["sleep", "1000"]);
    podman.call(&["stop", "--time", "1", "deaf"]).ok();
    assert_eq!(podman.inspect("deaf", ".State.ExitCode"), "137");
    podman.call(&["start", "deaf"]).ok();
    assert_eq!(podman.inspect("deaf", ".State.Status"), "running");
    podman.call(&["restart", "--time", "0", "deaf"]).ok();
    podman.call(&["kill", "--signal", "KILL", "deaf"]).ok();
    assert_eq!(podman.call(&["wait", "deaf"]).ok(), "137\n");
    for name in ["polite", "deaf"] {
        podman.call(&["rm", name]).ok();
    }
}

#[test]
fn pause_stops_every_process() {
    let podman = Podman::new();
    let count = "while :; do echo x >>/tmp/count; sleep 0.01; done";
    podman.start(
        "box",
        &["--volume", &format!("{}:/tmp", podman.world.dir().display())],
        &["sh", "-c", count],
    );
    let file = podman.world.dir().join("count");
    let size = || std::fs::metadata(&file).map_or(0, |file| file.len());
    wait_until("it counts", DEADLINE, || hold(size() > 4, || size().to_string()));
    podman.call(&["pause", "box"]).ok();
    assert_eq!(podman.inspect("box", ".State.Status"), "paused");
    let paused = size();
    // Fifty times what it takes to count on.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(size(), paused, "it goes on while it is paused");
    podman.call(&["exec", "box", "true"]).fails(255, &["container state improper"]);
    podman.call(&["unpause", "box"]).ok();
    wait_until("it counts on", DEADLINE, || hold(size() > paused, || size().to_string()));
    podman.call(&["rm", "--force", "--time", "0", "box"]).ok();
}

#[test]
fn logs_hold_both_streams() {
    let podman = Podman::new();
    podman.start("box", &[], &["sh", "-c", "echo one; echo two >&2; seq 3 1000"]);
    podman.call(&["wait", "box"]).ok();
    let logs = podman.call(&["logs", "box"]);
    assert_eq!(logs.stderr, "two\n");
    let lines: Vec<&str> = logs.stdout.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[998]), (999, "one", "1000"));
}

#[test]
fn health_is_checked_by_exec() {
    let podman = Podman::new();
    let check =
        ["--health-cmd", "test -e /tmp/well", "--health-interval", "disable", "--health-retries", "1"];
    podman.start("box", &check, &["sleep", "1000"]);
    let output = podman.call(&["healthcheck", "run", "box"]);
    assert_eq!(output.code, 1, "{}", output.tell());
    podman.shell("box", "touch /tmp/well").ok();
    podman.call(&["healthcheck", "run", "box"]).ok();
    assert_eq!(podman.inspect("box", ".State.Health.Status"), "healthy");
    podman.call(&["rm", "--force", "--time", "0", "box"]).ok();
}

#[test]
fn terminals_are_terminals() {
    let podman = Podman::new();
    let tell = "test -t 0 && test -t 1 && test -t 2 && tty && test /dev/console -ef /dev/pts/0 && echo same";
    assert_eq!(podman.run(&["--tty"], &["sh", "-c", tell]).ok(), "/dev/pts/0\r\nsame\r\n");
    podman.start("box", &["--tty"], &["sleep", "1000"]);
    assert_eq!(podman.call(&["exec", "--tty", "box", "sh", "-c", "tty; exit 4"]).stdout, "/dev/pts/1\r\n");
    // The caller's terminal gives the size, and what is typed arrives. `script` is the caller's terminal.
    let runtime = podman.world.runtime();
    let typed = format!(
        "stty rows 33 cols 99; echo 'stty size; exit 5' | podman --runtime {runtime} run --rm -i -t --network none \
         {IMAGE} sh"
    );
    let output = podman.world.run(&["script", "--quiet", "--return", "--command", &typed, "/dev/null"]);
    assert_eq!(output.code, 5, "{}", output.tell());
    podman.call(&["rm", "--force", "--time", "0", "box"]).ok();
}

/// Two containers in one network, IPC and UTS namespace.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: pair}
spec:
  containers:
  - name: web
    image: docker.io/library/busybox:latest
    command: [/bin/sh, -c, "hostname >/tmp/index.html; exec httpd -f -p 8080 -h /tmp"]
    securityContext: {runAsUser: 33}
  - name: client
    image: docker.io/library/busybox:latest
    command: [/bin/sh, -c, "until wget -qO- http://127.0.0.1:8080/; do sleep 0.05; done; exec sleep 1000"]
    resources: {limits: {memory: 64Mi}}
"#;

#[test]
fn a_pod_of_two_shares_its_network() {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        // There Podman 4.3 keeps a pod whose control group it has made itself from every device, whatever the runtime:
        // `podman_systemd` has the pod.
        return;
    }
    play_a_pod(&Podman::new());
}

pub(crate) fn play_a_pod(podman: &Podman) {
    let file = podman.world.file("pod.yaml", POD);
    podman.call(&["play", "kube", &file]).ok();
    wait_until("one container has reached the other", DEADLINE, || {
        let output = podman.call(&["logs", "pair-client"]);
        hold(output.stdout == "pair\n", || output.tell())
    });
    // The pod's own, that of the pause container, and the two.
    let containers = podman.call(&["ps", "--pod", "--format", "{{.PodName}}"]).ok();
    assert_eq!(containers, "pair\npair\npair\n");
    podman.call(&["pod", "pause", "pair"]).ok();
    assert_eq!(podman.inspect("pair-web", ".State.Status"), "paused");
    podman.call(&["pod", "unpause", "pair"]).ok();
    podman.call(&["play", "kube", "--down", &file]).ok();
    let left = podman.call(&["ps", "--all", "--quiet"]).ok();
    assert!(left.is_empty(), "containers are left: {left}");
}
