//! Docker with the runtime added to its daemon.

use rorqual_tests::wait::hold;
use rorqual_tests::{Output, images, wait_until};

use crate::world::{DEADLINE, IMAGE, World};

const SOCKET: &str = "unix:///run/docker.sock";

struct Docker {
    world: World,
}

impl Docker {
    #[track_caller]
    fn new() -> Docker {
        let world = World::new();
        let runtime = format!("tested={}", world.runtime());
        let daemon = ["dockerd", "--host", SOCKET, "--add-runtime", &runtime, "--storage-driver", "overlay2"];
        let paths =
            ["--data-root", "/var/lib/docker", "--exec-root", "/run/docker", "--pidfile", "/run/dockerd.pid"];
        let network = ["--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"];
        let log = world.start(&[&daemon[..], &paths, &network].concat());
        let docker = Docker { world };
        wait_until("dockerd answers", DEADLINE, || {
            let output = docker.call(&["version"]);
            hold(output.code == 0, || std::fs::read_to_string(&log).unwrap())
        });
        let archive = docker.world.archive(&images::docker_archive("busybox"));
        docker.call(&["load", "--quiet", "--input", &archive]).ok();
        docker
    }

    #[track_caller]
    fn call(&self, words: &[&str]) -> Output {
        // The client of the same package: a newer one may want a newer daemon.
        self.world.run(&[&["/usr/bin/docker", "--host", SOCKET], words].concat())
    }

    #[track_caller]
    fn run(&self, options: &[&str], command: &[&str]) -> Output {
        let run = ["run", "--runtime", "tested", "--network", "none"];
        self.call(&[&run, options, &[IMAGE], command].concat())
    }
}

#[test]
fn docker_runs_containers() {
    let docker = Docker::new();
    let output = docker.run(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (7, "out\n", "err\n"));
    docker.run(&["--rm"], &["no-such-command"]).fails(127, &["no-such-command", "executable file not found"]);
    docker.run(&["--rm"], &["/etc/passwd"]).fails(126, &["permission denied"]);
    assert_eq!(docker.run(&["--rm", "--tty"], &["tty"]).ok(), "/dev/pts/0\r\n");
    assert_eq!(docker.run(&["--rm", "--init", "--user", "33"], &["id", "-u"]).ok(), "33\n");
}

#[test]
fn docker_looks_after_containers() {
    let docker = Docker::new();
    let limits = ["--detach", "--name", "box", "--memory", "64m", "--cpus", "0.5", "--pids-limit", "50"];
    docker.run(&limits, &["sleep", "1000"]).ok();
    let output =
        docker.call(&["exec", "--user", "33", "--env", "A=b", "box", "sh", "-c", "id -u; echo $A; exit 3"]);
    assert_eq!((output.code, output.stdout.as_str()), (3, "33\nb\n"), "{}", output.tell());
    // Docker 20.10 says it on standard output, and with 126 of whatever runtime.
    let output = docker.call(&["exec", "box", "no-such-command"]);
    assert!(output.code >= 126 && output.stdout.contains("executable file not found"), "{}", output.tell());
    docker.call(&["pause", "box"]).ok();
    let status = docker.call(&["inspect", "--format", "{{.State.Status}}", "box"]).ok();
    assert_eq!(status, "paused\n");
    docker.call(&["unpause", "box"]).ok();
    docker.call(&["update", "--memory", "48m", "--memory-swap", "96m", "box"]).ok();
    let read = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max";
    assert_eq!(docker.call(&["exec", "box", "sh", "-c", read]).ok(), "50331648\n");
    let processes = docker.call(&["top", "box"]).ok();
    assert!(processes.contains("sleep 1000"), "{processes}");
    docker.call(&["stop", "--time", "0", "box"]).ok();
    assert_eq!(docker.call(&["wait", "box"]).ok(), "137\n");
    docker.call(&["rm", "box"]).ok();
}
