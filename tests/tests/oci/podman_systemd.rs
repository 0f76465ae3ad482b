//! Podman with systemd as the manager of control groups, as it is set up on most machines. Needs systemd as the first
//! process and cgroup v2 alone; elsewhere there is nothing to be shown.

use crate::podman::{Podman, play_a_pod};
use crate::podman_limits::{LIMITS, UPDATED, check};
use crate::world::World;

/// Takes away what a test has left, since nothing else does.
struct Beside(Podman);

impl Beside {
    #[track_caller]
    fn new() -> Option<Beside> {
        World::with_systemd().map(|world| Beside(Podman::in_world(world)))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.0.call(&["pod", "rm", "--all", "--force", "--time", "0"]);
        self.0.call(&["rm", "--all", "--force", "--time", "0"]);
    }
}

#[test]
fn systemd_makes_the_groups_of_containers() {
    let Some(beside) = Beside::new() else { return };
    let podman = &beside.0;
    let limits = ["--memory", "64m", "--cpus", "0.5", "--pids-limit", "40", "--cpuset-cpus", "0"];
    podman.start("box", &limits, &["sleep", "1000"]);
    let unit = format!("libpod-{}.scope", podman.inspect("box", ".Id"));
    let state = || podman.world.run(&["systemctl", "is-active", &unit]).stdout;
    assert_eq!(state(), "active\n");
    check(podman, "box", LIMITS);
    podman.call(&["update", "--memory", "48m", "--cpus", "1.5", "box"]).ok();
    check(podman, "box", UPDATED);
    let property = podman.world.run(&["systemctl", "show", "--property", "MemoryMax", &unit]).ok();
    assert_eq!(property, "MemoryMax=50331648\n");
    assert_eq!(podman.shell("box", "cmp /proc/1/cgroup /proc/self/cgroup && echo same").ok(), "same\n");
    podman.call(&["pause", "box"]).ok();
    assert_eq!(podman.inspect("box", ".State.Status"), "paused");
    podman.call(&["unpause", "box"]).ok();
    podman.call(&["stop", "--time", "0", "box"]).ok();
    assert_eq!(podman.inspect("box", ".State.ExitCode"), "137");
    podman.call(&["rm", "box"]).ok();
    assert_ne!(state(), "active\n");
    let disk = ["--cap-add", "mknod"];
    podman.run(&disk, &["sh", "-c", "mknod /disk b 7 0 && cat /disk"]).fails(1, &["not permitted"]);
}

#[test]
fn a_pod_has_a_slice_of_its_own() {
    if let Some(beside) = Beside::new() {
        play_a_pod(&beside.0);
    }
}
