//! Control groups of real containers: what the library and the command line do with them. On v2, v1 and hybrid machines.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{World, eventually, shell, text};
use rorqual_runtime::oci_spec::runtime::LinuxResources;
use rorqual_runtime::spec::{ContainerSettings, Limits};
use rorqual_runtime::{Error, Rootfs};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn resources(json: Value) -> LinuxResources {
    serde_json::from_value(json).unwrap()
}

/// A setting of a container, by its names on v1 and on v2.
fn setting(dirs: &[PathBuf], v1: &str, v2: &str) -> String {
    let found = [v1, v2].into_iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name)));
    let path = found
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{v1} and {v2} are not in {dirs:?}"));
    fs::read_to_string(path).unwrap().trim().to_owned()
}

fn limited(script: &str) -> ContainerSettings {
    let limits = Limits { memory_bytes: Some(64 * MIB), pids: Some(50), ..Limits::default() };
    ContainerSettings { limits, ..shell(script) }
}

#[test]
fn limits_of_a_running_container_change() {
    let world = World::new();
    let started = world.launch("web", &limited("sleep 1000")).unwrap();
    let dirs = world.cgroup_dirs("web");
    let memory = || setting(&dirs, "memory.limit_in_bytes", "memory.max");
    assert_eq!(memory(), (64 * MIB).to_string());
    let bigger = json!({"memory": {"limit": 256 * MIB, "swap": 256 * MIB}, "cpu": {"quota": 30_000, "period": 100_000}});
    world.runtime.update("web", &resources(bigger)).unwrap();
    assert_eq!(memory(), (256 * MIB).to_string());
    assert!(setting(&dirs, "cpu.cfs_quota_us", "cpu.max").starts_with("30000"));
    assert_eq!(setting(&dirs, "pids.max", "pids.max"), "50", "not named, not changed");
    assert_eq!(world.runtime.stats("web").unwrap().memory_limit_bytes, Some(256 * MIB));
    let wrong = world.runtime.update("web", &resources(json!({"memory": {"limit": 64 * MIB, "swap": MIB}})));
    assert!(
        matches!(wrong, Err(Error::InvalidLimit { field, .. }) if field == "linux.resources.memory.swap")
    );
    assert_eq!(memory(), (256 * MIB).to_string(), "checked before anything is written");
    assert!(matches!(world.runtime.update("no", &resources(json!({}))), Err(Error::NotFound { .. })));
    assert!(Path::new(&format!("/proc/{}", started.pid)).exists());
}

#[test]
fn a_paused_container_stands_still() {
    let world = World::new();
    world.start("clock", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done");
    let dir = world.container_dir("clock");
    let lines = || text(&dir).lines().count();
    eventually("it counts", || lines() > 3);
    world.runtime.pause("clock").unwrap();
    // What it had written before is still on its way to the log.
    let mut before = lines();
    eventually("the log stands still", || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        std::mem::replace(&mut before, lines()) == before
    });
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(lines(), before);
    world.runtime.resume("clock").unwrap();
    eventually("it counts on", || lines() > before);
    world.runtime.pause("clock").unwrap();
    world.runtime.kill("clock", libc::SIGKILL).unwrap();
    assert_eq!(world.wait("clock").code, 137, "also who is paused can be killed");
    world.runtime.delete("clock").unwrap();
}

#[test]
fn groups_below_a_containers_go_with_it() {
    let world = World::new();
    world.start("nest", "sleep 1000");
    let dirs = world.cgroup_dirs("nest");
    for dir in &dirs {
        fs::create_dir_all(dir.join("one/two")).unwrap();
    }
    world.runtime.kill("nest", libc::SIGKILL).unwrap();
    world.wait("nest");
    world.runtime.delete("nest").unwrap();
    assert!(!dirs.is_empty() && dirs.iter().all(|dir| !dir.exists()));
}

#[test]
fn cpus_are_given_by_number() {
    let world = World::new();
    let mut launch = world.launch_of("pin", &shell("grep Cpus_allowed_list /proc/self/status"));
    launch
        .spec
        .linux_mut()
        .as_mut()
        .unwrap()
        .set_resources(Some(resources(json!({"cpu": {"cpus": "0", "mems": "0"}}))));
    let (status, text) = world.run_launch(launch);
    assert_eq!(status.code, 0);
    assert_eq!(text.split_ascii_whitespace().last(), Some("0"), "{text}");
}

/// A bundle, and the command line on it.
struct Bundle {
    world: World,
    id: String,
    group: String,
    /// Options before the command.
    options: Vec<String>,
}

impl Bundle {
    fn new(name: &str, script: &str, resources: Value) -> Bundle {
        Bundle::with(name, script, resources, None, json!({}))
    }

    fn with(name: &str, script: &str, resources: Value, slice: Option<&str>, annotations: Value) -> Bundle {
        let world = World::new();
        let id = format!("{name}-{}", std::process::id());
        let group = format!("{}/{id}", world.options.cgroup_parent);
        let mut launch = world.launch_of(&id, &limited(script));
        let Rootfs::Overlay { lowers, .. } = &launch.rootfs else { unreachable!() };
        let linux = launch.spec.linux_mut().as_mut().unwrap();
        let path = slice.map_or_else(|| format!("/{group}"), |slice| format!("{slice}:rqt:{id}"));
        linux.set_cgroups_path(Some(PathBuf::from(path)));
        linux.set_resources(Some(self::resources(resources)));
        let mut config = serde_json::to_value(&launch.spec).unwrap();
        config["root"]["path"] = json!(lowers[0]);
        config["annotations"] = annotations;
        let dir = world.dir.path().join("bundle");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let options = slice.map(|_| "--systemd-cgroup".to_owned()).into_iter().collect();
        Bundle { world, id, group, options }
    }

    fn dirs(&self) -> Vec<PathBuf> {
        self.world.cgroup_dirs(&self.id)
    }

    fn call(&self, args: &[&str]) -> Output {
        let root = self.world.dir.path().join("oci");
        let bundle = self.world.dir.path().join("bundle");
        // Not a pipe: the container keeps what it inherits.
        let log = fs::File::create(self.world.dir.path().join("output")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_rorqual-runtime"));
        command.current_dir(bundle).arg("--root").arg(root).args(&self.options).args(args).arg(&self.id);
        if args[0] == "create" {
            command.stdout(log.try_clone().unwrap()).stderr(log);
        }
        command.output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.call(args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let log = fs::read_to_string(self.world.dir.path().join("output")).unwrap_or_default();
        assert!(output.status.success(), "{args:?}: {error} {log}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn status(&self) -> String {
        let state: Value = serde_json::from_str(&self.ok(&["state"])).unwrap();
        state["status"].as_str().unwrap().to_owned()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.call(&["delete", "--force"]);
    }
}

#[test]
fn the_command_line_makes_pauses_and_removes_groups() {
    let bundle =
        Bundle::new("oci", "sleep 1000", json!({"memory": {"limit": 32 * MIB}, "pids": {"limit": 20}}));
    bundle.ok(&["create"]);
    let dirs = bundle.dirs();
    assert!(!dirs.is_empty(), "{} is below each hierarchy", bundle.group);
    assert_eq!(setting(&dirs, "memory.limit_in_bytes", "memory.max"), (32 * MIB).to_string());
    bundle.ok(&["start"]);
    assert_eq!(bundle.status(), "running");
    bundle.ok(&["pause"]);
    assert_eq!(bundle.status(), "paused");
    bundle.ok(&["resume"]);
    assert_eq!(bundle.status(), "running");
    fs::create_dir(dirs[0].join("inner")).unwrap();
    bundle.ok(&["delete", "--force"]);
    assert!(dirs.iter().all(|dir| !dir.exists()));
}

#[test]
fn a_container_in_somebody_elses_group_is_refused() {
    let bundle = Bundle::new("other", "sleep 1000", json!({}));
    bundle.world.start(&bundle.id, "sleep 1000");
    let output = bundle.call(&["create"]);
    assert!(!output.status.success());
    let said = fs::read_to_string(bundle.world.dir.path().join("output")).unwrap();
    assert!(said.contains("cgroup is not empty"), "{said}");
    assert!(common::is_running(&bundle.world.runtime, &bundle.id), "and left alone");
}

/// With a systemd as PID 1 only.
#[test]
fn systemd_makes_and_removes_the_group_of_a_container() {
    if !Path::new("/run/systemd/private").exists() {
        return;
    }
    let annotations = json!({"org.systemd.property.RuntimeMaxSec": "1000", "org.systemd.property.CollectMode": "'inactive-or-failed'"});
    let resources = json!({"memory": {"limit": 32 * MIB}, "pids": {"limit": 20}});
    let bundle = Bundle::with("unit", "sleep 1000", resources, Some("rqt-oci.slice"), annotations);
    let unit = format!("rqt-{}.scope", bundle.id);
    let show = |name: &str| {
        let output = Command::new("systemctl").args(["show", "--value", "-p", name, &unit]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    bundle.ok(&["create"]);
    let group = format!("/rqt.slice/rqt-oci.slice/{unit}");
    assert_eq!(show("ControlGroup"), group);
    assert_eq!(
        (show("RuntimeMaxUSec"), show("CollectMode")),
        ("16min 40s".to_owned(), "inactive-or-failed".to_owned())
    );
    let state: Value = serde_json::from_str(&bundle.ok(&["state"])).unwrap();
    let of_first = fs::read_to_string(format!("/proc/{}/cgroup", state["pid"])).unwrap();
    assert!(of_first.contains(&group), "{of_first}");
    let dir = PathBuf::from(format!("/sys/fs/cgroup{group}"));
    let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap();
    assert_eq!(pids.lines().count(), 1, "the container alone is in it: {pids}");
    bundle.ok(&["start"]);
    bundle.ok(&["pause"]);
    assert_eq!(bundle.status(), "paused");
    bundle.ok(&["delete", "--force"]);
    assert_eq!(show("LoadState"), "not-found");
    assert!(!dir.exists());
    let wrong = Bundle::with("wrong", "true", json!({}), Some("not-a-slice"), json!({}));
    assert!(!wrong.call(&["create"]).status.success());
    let said = fs::read_to_string(wrong.world.dir.path().join("output")).unwrap();
    assert!(said.contains("linux.cgroupsPath") && said.contains("is no slice"), "{said}");
}
