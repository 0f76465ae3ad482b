//! Podman's limits, as the kernel has them and as they act.

use crate::podman::Podman;

/// The files of a container's groups by both versions of the interface: (file, value) of v1, then of v2.
pub(crate) type Files = (&'static [(&'static str, &'static str)], &'static [(&'static str, &'static str)]);

pub(crate) const LIMITS: Files = (
    &[
        ("memory/memory.limit_in_bytes", "67108864"),
        ("cpu/cpu.cfs_quota_us", "50000"),
        ("cpu/cpu.cfs_period_us", "100000"),
        ("pids/pids.max", "40"),
        ("cpuset/cpuset.cpus", "0"),
    ],
    &[("memory.max", "67108864"), ("cpu.max", "50000 100000"), ("pids.max", "40"), ("cpuset.cpus", "0")],
);

pub(crate) const UPDATED: Files = (
    &[
        ("memory/memory.limit_in_bytes", "50331648"),
        ("cpu/cpu.cfs_quota_us", "150000"),
        ("pids/pids.max", "40"),
    ],
    &[("memory.max", "50331648"), ("cpu.max", "150000 100000"), ("pids.max", "40")],
);

/// As the container sees them.
#[track_caller]
pub(crate) fn check(podman: &Podman, name: &str, (v1, v2): Files) {
    let is_v2 = podman.shell(name, "test -e /sys/fs/cgroup/cgroup.controllers").code == 0;
    for (file, value) in if is_v2 { v2 } else { v1 } {
        let told = podman.shell(name, &format!("cat /sys/fs/cgroup/{file}")).ok();
        assert_eq!(told.trim(), *value, "{file}");
    }
}

#[test]
fn limits_are_set_and_updated() {
    let podman = Podman::new();
    let limits = ["--memory", "64m", "--cpus", "0.5", "--pids-limit", "40", "--cpuset-cpus", "0"];
    podman.start("box", &limits, &["sleep", "1000"]);
    check(&podman, "box", LIMITS);
    podman.call(&["update", "--memory", "48m", "--cpus", "1.5", "box"]).ok();
    check(&podman, "box", UPDATED);
    podman.call(&["rm", "--force", "--time", "0", "box"]).ok();
}

#[test]
fn limits_act() {
    let podman = Podman::new();
    let eat = "x=; while :; do x=$x$(head -c 100000 /dev/zero | tr '\\0' x); done";
    podman.start("hungry", &["--memory", "16m", "--memory-swap", "16m"], &["sh", "-c", eat]);
    assert_eq!(podman.call(&["wait", "hungry"]).ok(), "137\n");
    let fork = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done";
    let output = podman.run(&["--pids-limit", "10"], &["sh", "-c", fork]);
    assert!(output.stderr.contains("can't fork"), "{}", output.tell());
    podman.call(&["rm", "hungry"]).ok();
}
