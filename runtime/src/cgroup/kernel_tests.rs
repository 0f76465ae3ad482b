//! Groups in the kernel: made, changed, frozen, killed, removed. They need root, and run on v2, v1 and hybrid machines;
//! what only one of them has is tested where it is.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use super::make::make;
use super::systemd::Placeholder;
use super::*;
use crate::plan::cgroup::{Options, plan};

static NEXT: AtomicU32 = AtomicU32::new(0);

const DEADLINE: Duration = Duration::from_secs(20);

/// A group of a test, with processes in it; gone with the test.
struct World {
    layout: Layout,
    group: Group,
    /// Keeps a scope of systemd's.
    placeholder: Option<Placeholder>,
    children: Vec<Child>,
}

fn resources(json: Value) -> LinuxResources {
    serde_json::from_value(json).unwrap()
}

impl World {
    fn new(json: Value) -> World {
        let layout = Layout::discover().unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let group = Group::below(&layout, &format!("rqt-group-{}-{number}", std::process::id()), Reach::All);
        World::of(layout, group, json)
    }

    fn of(layout: Layout, group: Group, json: Value) -> World {
        let mut world = World { layout, group, placeholder: None, children: Vec::new() };
        world.placeholder = world.make(json, None).unwrap();
        world
    }

    fn make(&self, json: Value, owner: Option<u32>) -> Result<Option<Placeholder>, Error> {
        let options = Options { owner, ..Options::default() };
        make(&plan(&self.layout, &self.group, Some(&resources(json)), options).unwrap())
    }

    fn update(&self, json: Value) -> Result<(), Error> {
        self.group.update(&self.layout, &resources(json))
    }

    /// A shell script in the group, or in one below it.
    fn spawn(&mut self, script: &str, below: &str) -> u32 {
        // It waits until it is where it belongs.
        let child = Command::new("sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        self.children.push(child);
        for dir in self.group.dirs() {
            let dir = dir.join(below);
            if !dir.exists() {
                fs::create_dir(&dir).unwrap();
                if dir.join("cpuset.cpus").exists()
                    && fs::read_to_string(dir.join("cpuset.cpus")).unwrap().trim().is_empty()
                {
                    for name in ["cpuset.cpus", "cpuset.mems"] {
                        let value = fs::read_to_string(dir.parent().unwrap().join(name)).unwrap();
                        let _ = fs::write(dir.join(name), value.trim());
                    }
                }
            }
            fs::write(dir.join("cgroup.procs"), pid.to_string())
                .unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        }
        use std::io::Write as _;
        self.children.last_mut().unwrap().stdin.take().unwrap().write_all(b"go\n").unwrap();
        pid
    }

    /// Runs a script to its end in the group: whether it succeeded.
    fn run(&mut self, script: &str) -> bool {
        self.spawn(script, "");
        self.children.pop().unwrap().wait().unwrap().success()
    }

    fn reap(&mut self) -> bool {
        self.children.retain_mut(|child| child.try_wait().unwrap().is_none());
        self.children.is_empty()
    }

    /// The content of a setting, by its names on v1 (controller/file) and on v2.
    fn read(&self, controller: &str, v1: &str, v2: &str) -> String {
        let path = match self.group.v1_of(controller) {
            Some(dir) => dir.join(v1),
            None => self.group.unified.as_ref().unwrap().join(v2),
        };
        fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .trim()
            .to_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.placeholder = None;
        let _ = self.group.kill();
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let errors = self.group.remove("test", DEADLINE);
        if !thread::panicking() {
            assert!(errors.is_empty(), "{errors:?}");
            assert!(!self.group.exists());
        }
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn ticks(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    text.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(11).unwrap().parse().unwrap()
}

const MIB: i64 = 1 << 20;

#[test]
fn limits_arrive_in_the_kernel_and_change() {
    let world = World::new(json!({
        "memory": {"limit": 64 * MIB, "swap": 128 * MIB, "reservation": 32 * MIB},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 50},
    }));
    let v2 = world.group.is_v2();
    let memory = |world: &World| world.read("memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(memory(&world), (64 * MIB).to_string());
    assert_eq!(world.read("memory", "memory.soft_limit_in_bytes", "memory.low"), (32 * MIB).to_string());
    assert_eq!(world.read("pids", "pids.max", "pids.max"), "50");
    assert_eq!(world.read("cpu", "cpu.shares", "cpu.weight"), if v2 { "59" } else { "512" });
    assert_eq!(world.read("cpu", "cpu.cfs_quota_us", "cpu.max"), if v2 { "50000 100000" } else { "50000" });
    assert_eq!(world.read("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");

    // Up and down again: memory is never above memory and swap together.
    world.update(json!({"memory": {"limit": 256 * MIB, "swap": 300 * MIB}})).unwrap();
    assert_eq!(memory(&world), (256 * MIB).to_string());
    world.update(json!({"memory": {"limit": 32 * MIB, "swap": 40 * MIB}, "pids": {"limit": -1}})).unwrap();
    assert_eq!(memory(&world), (32 * MIB).to_string());
    assert_eq!(world.read("pids", "pids.max", "pids.max"), "max");
    assert_eq!(
        world.read("cpu", "cpu.cfs_quota_us", "cpu.max"),
        if v2 { "50000 100000" } else { "50000" },
        "untouched"
    );
    // Half of it changes, the other half stays; each order is right for one of the two.
    world.update(json!({"cpu": {"period": 200_000, "quota": 300_000, "burst": 200_000}})).unwrap();
    world.update(json!({"cpu": {"period": 50_000, "quota": 10_000, "burst": 5000}})).unwrap();
    world.update(json!({"cpu": {"period": 20_000}})).unwrap();
    assert_eq!(world.read("cpu", "cpu.cfs_quota_us", "cpu.max"), if v2 { "10000 20000" } else { "10000" });
    world.update(json!({"cpu": {"quota": -1}})).unwrap();
    assert_eq!(world.read("cpu", "cpu.cfs_quota_us", "cpu.max"), if v2 { "max 20000" } else { "-1" });
    world.update(json!({"cpu": {"idle": 1, "shares": 100}})).unwrap();
    assert_eq!(world.read("cpu", "cpu.idle", "cpu.idle"), "1");
    world.update(json!({"cpu": {"idle": 0, "shares": 1024}})).unwrap();
    assert_eq!(world.read("cpu", "cpu.shares", "cpu.weight"), if v2 { "100" } else { "1024" });
    world.update(json!({"memory": {"limit": -1}})).unwrap();
}

#[test]
fn what_the_kernel_refuses_is_named() {
    let world = World::new(json!({}));
    let error = world.update(json!({"cpu": {"cpus": "4095"}})).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("linux.resources.cpu.cpus: writing \"4095\" to /sys/fs/cgroup/"), "{text}");
    assert!(matches!(error, Error::Limit { .. }));
    let error = world.update(json!({"cpu": {"period": 1}})).unwrap_err();
    assert!(error.to_string().starts_with("linux.resources.cpu."), "{error}");
    if world.group.is_v2() {
        let error = world.update(json!({"unified": {"memory.nosuch": "1"}})).unwrap_err();
        assert!(error.to_string().contains("the kernel has no such setting here"), "{error}");
        world.update(json!({"unified": {"memory.high": "10485760", "pids.max": "7"}})).unwrap();
        assert_eq!(world.read("memory", "", "memory.high"), "10485760");
        world.update(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MIB}]})).unwrap();
        assert_eq!(world.read("hugetlb", "", "hugetlb.2MB.max"), (4 * MIB).to_string());
        let error = world.update(json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 0}]})).unwrap_err();
        assert!(error.to_string().starts_with("linux.resources.hugepageLimits[0]: "), "{error}");
    }
}

#[test]
fn block_devices_are_throttled() {
    let world = World::new(json!({}));
    // A disk, whatever it is called; a partition would be refused.
    let disk = fs::read_dir("/sys/block").unwrap().flatten().find_map(|entry| {
        let numbers = fs::read_to_string(entry.path().join("dev")).ok()?;
        let (major, minor) = numbers.trim().split_once(':')?;
        Some((major.parse::<i64>().ok()?, minor.parse::<i64>().ok()?))
    });
    let Some((major, minor)) = disk else { return };
    world
        .update(json!({"blockIO": {
            "throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 1_048_576}],
            "throttleWriteIOPSDevice": [{"major": major, "minor": minor, "rate": 50}],
        }}))
        .unwrap();
    let read = world.read("blkio", "blkio.throttle.read_bps_device", "io.max");
    assert!(read.starts_with(&format!("{major}:{minor}")) && read.contains("1048576"), "{read}");
    let write = world.read("blkio", "blkio.throttle.write_iops_device", "io.max");
    assert!(write.contains("50"), "{write}");
    let error =
        world.update(json!({"blockIO": {"throttleReadBpsDevice": [{"major": 4000, "minor": 1, "rate": 1}]}}));
    let text = error.unwrap_err().to_string();
    assert!(text.starts_with("linux.resources.blockIO.throttleReadBpsDevice[0]: "), "{text}");
    assert!(text.ends_with("there is no such device"), "{text}");
}

#[test]
fn frozen_processes_stand_still_and_can_be_killed() {
    let mut world = World::new(json!({}));
    let pid = world.spawn("while :; do :; done", "");
    eventually("it runs", || ticks(pid) > 0);
    assert!(!world.group.is_frozen());
    world.group.freeze().unwrap();
    assert!(world.group.is_frozen());
    let before = ticks(pid);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(ticks(pid), before, "stands still");
    world.group.thaw().unwrap();
    assert!(!world.group.is_frozen());
    eventually("it runs again", || ticks(pid) > before);
    world.group.freeze().unwrap();
    world.group.kill().unwrap();
    eventually("killed, frozen as it was", || world.reap());
    // Systemd takes a unit's group away at that moment.
    assert!(world.group.remove("gone", DEADLINE).is_empty());
    world.group.thaw().unwrap();
}

#[test]
fn v1s_freezer_does_it_alone() {
    let mut world = World::new(json!({}));
    if world.group.v1_of("freezer").is_none() {
        return;
    }
    let pid = world.spawn("while :; do :; done", "");
    world.spawn("while :; do sh -c :; done", "");
    let v1 = Group { unified: None, ..world.group.clone() };
    for _ in 0..20 {
        v1.freeze().unwrap();
        assert!(v1.is_frozen());
        v1.thaw().unwrap();
    }
    v1.freeze().unwrap();
    let before = ticks(pid);
    thread::sleep(Duration::from_millis(100));
    assert_eq!(ticks(pid), before);
    v1.kill().unwrap();
    eventually("both are killed", || world.reap());
    // Also where the killing is the cgroup2's, whose kill a v1 freezer holds up.
    world.spawn("exec sleep 1000", "");
    v1.freeze().unwrap();
    world.group.kill().unwrap();
    eventually("and this one, too", || world.reap());
}

#[test]
fn signals_reach_everybody_in_groups_below_too() {
    let mut world = World::new(json!({"pids": {"limit": 100}}));
    let here = world.spawn("exec sleep 1000", "");
    let there = world.spawn("exec sleep 1000", "inner");
    let mut pids = world.group.pids();
    pids.sort_unstable();
    let mut expected = [here as i32, there as i32];
    expected.sort_unstable();
    assert_eq!(pids, expected);
    world.group.signal_all(libc::SIGTERM).unwrap();
    eventually("both have ended", || world.reap());
    assert!(!world.group.is_frozen());
    world.spawn("while :; do sh -c 'sleep 1000 & sleep 1000 &'; done", "inner");
    thread::sleep(Duration::from_millis(50));
    world.group.kill().unwrap();
    eventually("a fork bomb is killed", || world.reap() && world.group.pids().is_empty());
}

#[test]
fn a_group_that_is_busy_is_named_and_removed_later() {
    let mut world = World::new(json!({}));
    world.spawn("exec sleep 1000", "inner");
    let errors = world.group.remove("web", Duration::from_millis(50));
    assert!(!errors.is_empty());
    for error in &errors {
        assert!(matches!(error, Error::CgroupBusy { id, .. } if id == "web"), "{error:?}");
    }
    world.group.kill().unwrap();
    assert!(world.group.remove("web", DEADLINE).is_empty(), "with the groups below");
    assert!(world.group.remove("web", DEADLINE).is_empty(), "nothing to do is no error");
}

#[test]
fn figures_are_the_kernels() {
    // Little enough to be used up where others leave the loop only a small part of a CPU, too.
    let mut world =
        World::new(json!({"memory": {"limit": 64 * MIB}, "cpu": {"quota": 5_000, "period": 100_000}}));
    world.spawn("exec dd if=/dev/zero of=/dev/null bs=3M", "");
    eventually("it has used its quota", || {
        let stats = world.group.stats();
        stats.cpu.throttling.throttled_time > 0
            && stats.memory.usage.usage > 2_000_000
            && stats.pids.current == 1
    });
    let stats = world.group.stats();
    assert!(stats.cpu.usage.total > 1_000_000, "{:?}", stats.cpu);
    assert_eq!(stats.pids.current, 1);
    assert_eq!(stats.memory.usage.limit, 64 << 20);
    assert!(!stats.memory.raw.is_empty());
    let usage = world.group.usage();
    assert_eq!((usage.pids, usage.memory_limit_bytes), (1, Some(64 << 20)));
    assert!(usage.cpu_ns >= stats.cpu.usage.total);
    if world.group.is_v2() {
        assert!(stats.cpu.psi.is_some(), "pressure is told");
    } else {
        assert!(!stats.cpu.usage.percpu.is_empty() && !stats.cpuset.cpus.is_empty());
    }
}

#[test]
fn want_of_memory_is_told_as_it_happens() {
    let mut world = World::new(json!({"memory": {"limit": 16 * MIB, "swap": 16 * MIB}}));
    let mut watch = world.group.oom_watch().unwrap();
    assert_eq!(watch.look(), Oom::Quiet);
    world.spawn("exec sleep 1000", "");
    world.spawn("exec tail /dev/zero", "");
    let deadline = Instant::now() + DEADLINE;
    let mut fds = watch.poll_fds();
    while watch.look() != Oom::Killed {
        assert!(Instant::now() < deadline, "no kill is told");
        crate::sys::poll(&mut fds, 1000).unwrap();
    }
    // v1 tells before it kills.
    eventually("it is counted", || world.group.usage().oom_kills > 0);
    world.group.kill().unwrap();
    eventually("all have ended", || world.reap());
    assert!(world.group.remove("x", DEADLINE).is_empty());
    eventually("the end is told", || watch.look() == Oom::Gone);
}

#[test]
fn devices_are_restricted_and_the_restriction_changes() {
    let mut world = World::new(json!({}));
    let dir = tempfile::tempdir().unwrap();
    // /dev/kmsg, which nobody has by default.
    let node = dir.path().join("kmsg");
    let made = Command::new("mknod").arg(&node).args(["c", "1", "11"]).status().unwrap();
    assert!(made.success());
    let open = format!(": > {}", node.display());
    assert!(Command::new("sh").args(["-c", &open]).status().unwrap().success(), "outside it may be opened");
    assert!(!world.run(&open));
    assert!(world.run(": > /dev/null"));
    assert!(world.run(&format!("mknod {}2 c 1 11", node.display())), "making nodes is allowed");
    world.update(json!({"pids": {"limit": 50}})).unwrap();
    assert!(!world.run(&open), "an update without devices leaves them");
    world.update(json!({"devices": [{"allow": false}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "w"}]})).unwrap();
    assert!(world.run(&open));
    assert!(!world.run(&format!(": < {}", node.display())), "only writing");
    world.update(json!({"devices": [{"allow": true}]})).unwrap();
    assert!(world.run(&format!(": < {}", node.display())));
    world.update(json!({"devices": []})).unwrap();
    assert!(!world.run(&open));
    assert!(world.run(": > /dev/null"));
}

#[test]
fn a_group_is_given_to_the_containers_root() {
    use std::os::unix::fs::MetadataExt as _;
    let world = World::new(json!({}));
    let Some(dir) = world.group.unified.clone() else { return };
    drop(world.make(json!({}), Some(12_345)).unwrap());
    let owner = |name: &str| fs::metadata(dir.join(name)).unwrap().uid();
    for name in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
        assert_eq!(owner(name), 12_345, "{name:?}");
    }
    for name in ["cgroup.type", "cgroup.max.depth"] {
        assert_eq!(owner(name), 0, "{name}: limits stay the host's");
    }
}

#[test]
fn a_group_with_processes_hands_nothing_down_and_that_is_said() {
    let mut parent = World::new(json!({}));
    if !parent.group.is_v2() {
        return;
    }
    parent.spawn("exec sleep 1000", "");
    let dir = parent.group.unified.clone().unwrap().join("below");
    let group = Group { unified: Some(dir.clone()), ..Group::default() };
    let plan = |json| plan(&parent.layout, &group, Some(&resources(json)), Options::default()).unwrap();
    let error = make(&plan(json!({"memory": {"limit": 4096}}))).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("linux.resources.memory.limit: no memory controller by "), "{text}");
    assert!(text.contains("processes of its own"), "{text}");
    // Without a limit it goes, without the controller.
    make(&plan(json!({}))).map(drop).unwrap();
    fs::remove_dir(dir).unwrap();
}

#[test]
fn below_a_threaded_group_a_new_one_is_threaded() {
    let parent = World::new(json!({}));
    if !parent.group.is_v2() {
        return;
    }
    let top = parent.group.unified.clone().unwrap();
    let inner = top.join("threads");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("cgroup.type"), "threaded").unwrap();
    let group = |name: &str| Group { unified: Some(top.join(name)), ..Group::default() };
    let plan = |group: &Group, json| {
        plan(&parent.layout, group, Some(&resources(json)), Options::default()).unwrap()
    };
    make(&plan(&group("two"), json!({}))).map(drop).unwrap();
    assert_eq!(fs::read_to_string(top.join("two/cgroup.type")).unwrap().trim(), "threaded");
    let error = make(&plan(&group("three"), json!({"memory": {"limit": 4096}}))).unwrap_err();
    assert!(error.to_string().contains("threaded"), "{error}");
}

#[test]
fn a_group_of_somebody_else_is_not_taken() {
    let mut world = World::new(json!({}));
    world.make(json!({}), None).map(drop).expect("an empty one may be used");
    world.group.freeze().unwrap();
    let error = world.make(json!({}), None).unwrap_err().to_string();
    assert!(error.starts_with("linux.cgroupsPath: container's cgroup unexpectedly frozen"), "{error}");
    world.group.thaw().unwrap();
    world.spawn("exec sleep 1000", "");
    let error = world.make(json!({}), None).unwrap_err().to_string();
    assert!(
        error.starts_with("linux.cgroupsPath: container's cgroup is not empty: 1 process(es)"),
        "{error}"
    );
}

#[test]
fn groups_above_are_made_and_can_be_used() {
    let layout = Layout::discover().unwrap();
    let name = format!("rqt-group-{}-above", std::process::id());
    let above = Group::below(&layout, &name, Reach::All);
    let group = Group::below(&layout, &format!("{name}/inner/leaf"), Reach::All);
    let mut world = World::of(layout, group, json!({"memory": {"limit": 64 * MIB}, "cpu": {"mems": "0"}}));
    assert_ne!(
        world.read("cpuset", "cpuset.cpus", "cpuset.cpus.effective"),
        "",
        "v1 takes no process without"
    );
    assert!(world.run(":"));
    drop(world);
    assert!(above.remove("above", DEADLINE).is_empty());
}

/// With a systemd as PID 1 only; the group's whole life.
#[test]
fn systemd_makes_changes_and_removes_a_scope() {
    if !Path::new("/run/systemd/private").exists() {
        return;
    }
    let layout = Layout::discover().unwrap();
    let id = format!("rqt{}", std::process::id());
    let path = format!("rqt-test.slice:rqt:{id}");
    let wanted = Wanted { cgroups_path: Some(&path), id: &id, systemd: true, rootless: false };
    let group = locate(&layout, &wanted).unwrap();
    let json = json!({
        "memory": {"limit": 64 * MIB, "swap": 64 * MIB},
        "cpu": {"shares": 1024, "quota": 50_000, "period": 100_000, "cpus": "0"},
        "pids": {"limit": 50},
    });
    let mut world = World::of(layout, group, json);
    let show = |name: &str| {
        let unit = format!("rqt-{id}.scope");
        let output = Command::new("systemctl").args(["show", "--value", "-p", name, &unit]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let dir = world.group.unified.clone().unwrap();
    assert!(dir.ends_with(format!("rqt.slice/rqt-test.slice/rqt-{id}.scope")), "{}", dir.display());
    assert_eq!(show("ControlGroup"), format!("/rqt.slice/rqt-test.slice/rqt-{id}.scope"));
    assert_eq!((show("MemoryMax"), show("TasksMax")), ((64 * MIB).to_string(), "50".to_owned()));
    assert_eq!((show("CPUWeight"), show("CPUQuotaPerSecUSec")), ("100".to_owned(), "500ms".to_owned()));
    assert_eq!((show("Delegate"), show("DevicePolicy")), ("yes".to_owned(), "strict".to_owned()));
    assert_eq!(world.read("memory", "", "memory.max"), (64 * MIB).to_string());
    world.spawn("exec sleep 1000", "");
    // The placeholder may go: the container is there.
    world.placeholder = None;
    world.update(json!({"memory": {"limit": 32 * MIB, "swap": 32 * MIB}, "cpu": {"quota": 25_000, "period": 100_000}})).unwrap();
    assert_eq!((show("MemoryMax"), show("CPUQuotaPerSecUSec")), ((32 * MIB).to_string(), "250ms".to_owned()));
    assert!(Command::new("systemctl").arg("daemon-reload").status().unwrap().success());
    assert_eq!(world.read("memory", "", "memory.max"), (32 * MIB).to_string());
    assert_eq!(world.read("cpu", "", "cpu.max"), "25000 100000");
    assert!(!world.run(": > /dev/kmsg"), "devices are restricted");
    // Over the message bus it goes as well as over systemd's own socket.
    let bus = [(PathBuf::from("/run/dbus/system_bus_socket"), true)];
    let path = systemd::manager_group_at(&bus).unwrap();
    assert_eq!(path, systemd::manager_group(false).unwrap());
    world.group.kill().unwrap();
    eventually("it has ended", || world.reap());
    assert!(world.group.remove(&id, DEADLINE).is_empty());
    assert_eq!(show("LoadState"), "not-found");
    assert!(!dir.exists());
    // The same name is free again, and a second one at a time is refused.
    world.placeholder = world.make(json!({}), None).unwrap();
    let error = world.make(json!({}), None).unwrap_err();
    assert!(error.to_string().contains(&format!("cannot start the unit rqt-{id}.scope")), "{error}");
}
