//! Tests of the control group part of a plan: resources in, writes out, for v2, v1 and a hybrid machine.

use serde_json::{Value, json};

use super::*;
use crate::cgroup::{Hierarchy, Reach};

fn v2() -> Layout {
    let controllers = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb", "rdma", "misc"];
    Layout {
        unified: Some("/sys/fs/cgroup".into()),
        unified_controllers: controllers.map(str::to_owned).to_vec(),
        ..Layout::default()
    }
}

fn v1() -> Layout {
    let hierarchy = |name: &str| Hierarchy {
        mount: Path::new("/sys/fs/cgroup").join(name),
        root: PathBuf::new(),
        controllers: name.split(',').map(str::to_owned).collect(),
    };
    let names = [
        "cpu,cpuacct",
        "cpuset",
        "memory",
        "pids",
        "devices",
        "freezer",
        "blkio",
        "hugetlb",
        "net_cls",
        "net_prio",
        "rdma",
    ];
    Layout { v1: names.map(hierarchy).to_vec(), ..Layout::default() }
}

/// v1, and a cgroup2 with the controllers that v1 does not have.
fn hybrid() -> Layout {
    let mut layout = v1();
    layout.v1.retain(|hierarchy| hierarchy.controllers[0] != "hugetlb");
    layout.unified = Some("/sys/fs/cgroup/unified".into());
    layout.unified_controllers = vec!["hugetlb".to_owned()];
    layout
}

fn resources(json: Value) -> LinuxResources {
    serde_json::from_value(json).unwrap()
}

fn lines(writes: &[Write]) -> Vec<String> {
    let limits = writes.iter().filter(|write| !write.path.to_string_lossy().contains("devices"));
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    limits
        .map(|write| {
            let or = write.or.as_ref().map(|(path, value)| format!(" or {} {value}", name(path)));
            format!("{} {}{}", name(&write.path), write.value, or.unwrap_or_default())
        })
        .collect()
}

fn planned(layout: &Layout, json: Value) -> Result<CgroupPlan> {
    plan(layout, &Group::below(layout, "node/web", Reach::All), Some(&resources(json)), Options::default())
}

fn written(layout: &Layout, json: Value) -> Vec<String> {
    lines(&planned(layout, json).unwrap().writes)
}

fn refused(layout: &Layout, json: Value) -> (String, String) {
    let wrong = planned(layout, json).unwrap_err();
    (wrong.field, wrong.reason)
}

fn updated(layout: &Layout, json: Value, now: Now) -> Vec<String> {
    let group = Group::below(layout, "node/web", Reach::All);
    lines(&update(layout, &group, &resources(json), now).unwrap().writes)
}

#[test]
fn each_resource_becomes_writes() {
    type Row = (Value, &'static [&'static str], &'static [&'static str]);
    let table: [Row; 14] = [
        // Nothing asked for, nothing written: 0 is "not set".
        (
            json!({"memory": {"limit": 0, "swap": 0}, "cpu": {"shares": 0, "quota": 0, "period": 0}, "pids": {"limit": 0}}),
            &[],
            &[],
        ),
        (
            json!({"memory": {"limit": 67108864, "swap": 134217728, "reservation": 33554432}}),
            &["memory.swap.max 67108864", "memory.max 67108864", "memory.low 33554432"],
            &[
                "memory.limit_in_bytes 67108864",
                "memory.memsw.limit_in_bytes 134217728",
                "memory.soft_limit_in_bytes 33554432",
            ],
        ),
        (
            json!({"memory": {"limit": 67108864, "swap": 67108864}}),
            &["memory.swap.max 0", "memory.max 67108864"],
            &["memory.limit_in_bytes 67108864", "memory.memsw.limit_in_bytes 67108864"],
        ),
        (
            json!({"memory": {"limit": -1, "kernel": 5, "useHierarchy": true, "disableOOMKiller": false}}),
            &["memory.swap.max max", "memory.max max"],
            &["memory.limit_in_bytes -1", "memory.memsw.limit_in_bytes -1"],
        ),
        (
            json!({"cpu": {"shares": 1024, "quota": 50000, "period": 100000, "burst": 1000}}),
            &["cpu.weight 100", "cpu.max.burst 1000", "cpu.max 50000 100000"],
            &[
                "cpu.shares 1024",
                "cpu.cfs_period_us 100000",
                "cpu.cfs_burst_us 1000",
                "cpu.cfs_quota_us 50000",
            ],
        ),
        (json!({"cpu": {"quota": -1}}), &["cpu.max max"], &["cpu.cfs_quota_us -1"]),
        (json!({"cpu": {"period": 50000}}), &["cpu.max max 50000"], &["cpu.cfs_period_us 50000"]),
        (json!({"cpu": {"idle": 1, "shares": 512}}), &["cpu.idle 1"], &["cpu.idle 1"]),
        (
            json!({"cpu": {"cpus": "0-1", "mems": "0"}}),
            &["cpuset.cpus 0-1", "cpuset.mems 0"],
            &["cpuset.cpus 0-1", "cpuset.mems 0"],
        ),
        (json!({"pids": {"limit": -1}}), &["pids.max max"], &["pids.max max"]),
        (
            json!({"blockIO": {"weight": 500, "weightDevice": [{"major": 8, "minor": 0, "weight": 100}]}}),
            &["io.bfq.weight 500 or io.weight 4950", "io.bfq.weight 8:0 100 or io.weight 8:0 910"],
            &[
                "blkio.bfq.weight 500 or blkio.weight 500",
                "blkio.bfq.weight_device 8:0 100 or blkio.weight_device 8:0 100",
            ],
        ),
        (
            json!({"blockIO": {
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}],
                "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 0}],
                "throttleReadIOPSDevice": [{"major": 8, "minor": 16, "rate": 10}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 20}],
            }}),
            &["io.max 8:0 rbps=1024", "io.max 8:0 wbps=max", "io.max 8:16 riops=10", "io.max 8:0 wiops=20"],
            &[
                "blkio.throttle.read_bps_device 8:0 1024",
                "blkio.throttle.write_bps_device 8:0 0",
                "blkio.throttle.read_iops_device 8:16 10",
                "blkio.throttle.write_iops_device 8:0 20",
            ],
        ),
        (
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}),
            &["hugetlb.2MB.max 4194304", "hugetlb.2MB.rsvd.max 4194304"],
            &["hugetlb.2MB.limit_in_bytes 4194304", "hugetlb.2MB.rsvd.limit_in_bytes 4194304"],
        ),
        (
            json!({"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}, "mlx4_0": {"hcaObjects": 5}}}),
            &["rdma.max mlx4_0 hca_object=5", "rdma.max mlx5_1 hca_handle=3 hca_object=10000"],
            &["rdma.max mlx4_0 hca_object=5", "rdma.max mlx5_1 hca_handle=3 hca_object=10000"],
        ),
    ];
    for (json, on_v2, on_v1) in table {
        assert_eq!(written(&v2(), json.clone()), on_v2, "v2: {json}");
        assert_eq!(written(&v1(), json.clone()), on_v1, "v1: {json}");
    }
}

#[test]
fn what_only_one_version_has_is_refused_by_the_other() {
    let only_v1 = [
        (json!({"memory": {"swappiness": 60}}), "linux.resources.memory.swappiness", "memory.swappiness 60"),
        (
            json!({"memory": {"disableOOMKiller": true}}),
            "linux.resources.memory.disableOOMKiller",
            "memory.oom_control 1",
        ),
        (
            json!({"memory": {"kernelTCP": 4096}}),
            "linux.resources.memory.kernelTCP",
            "memory.kmem.tcp.limit_in_bytes 4096",
        ),
        (
            json!({"cpu": {"realtimeRuntime": 5000}}),
            "linux.resources.cpu.realtimeRuntime",
            "cpu.rt_runtime_us 5000",
        ),
        (
            json!({"network": {"classID": 1048577}}),
            "linux.resources.network.classID",
            "net_cls.classid 1048577",
        ),
        (
            json!({"network": {"priorities": [{"name": "lo", "priority": 2}]}}),
            "linux.resources.network.priorities",
            "net_prio.ifpriomap lo 2",
        ),
    ];
    for (json, field, write) in only_v1 {
        assert_eq!(written(&v1(), json.clone()), [write]);
        assert_eq!(refused(&v2(), json).0, field);
    }
    let unified = json!({"unified": {"memory.high": "1000000", "cgroup.max.depth": "3"}});
    assert_eq!(written(&v2(), unified.clone()), ["cgroup.max.depth 3", "memory.high 1000000"]);
    let (field, reason) = refused(&v1(), unified.clone());
    assert!(field.starts_with("linux.resources.unified[") && reason.contains("no cgroup v2"), "{reason}");
    let (field, reason) = refused(&hybrid(), json!({"unified": {"memory.high": "1"}}));
    assert_eq!(field, "linux.resources.unified[memory.high]");
    assert!(reason.ends_with("which has: hugetlb"), "{reason}");
    for file in ["../memory.high", "memory", "cgroup.procs", "cgroup.kill", ".x", "nosuch.max"] {
        let (field, _) = refused(&v2(), json!({"unified": {file: "1"}}));
        assert_eq!(field, format!("linux.resources.unified[{file}]"));
    }
}

#[test]
fn a_hybrid_machine_has_each_controller_in_its_place() {
    let plan = planned(
        &hybrid(),
        json!({"memory": {"limit": 4096}, "hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}),
    )
    .unwrap();
    let paths: Vec<_> = plan
        .writes
        .iter()
        .filter(|write| !write.field.ends_with("devices"))
        .map(|write| &write.path)
        .collect();
    assert_eq!(paths[0], Path::new("/sys/fs/cgroup/memory/node/web/memory.limit_in_bytes"));
    assert_eq!(paths[1], Path::new("/sys/fs/cgroup/unified/node/web/hugetlb.2MB.max"));
    assert_eq!(
        plan.unified_required,
        [("hugetlb".to_owned(), "linux.resources.hugepageLimits[0]".to_owned())]
    );
    assert_eq!(plan.device_program, None, "v1's list does it");
    assert!(
        plan.writes
            .iter()
            .any(|write| write.path.ends_with("devices/node/web/devices.deny") && write.value == "a")
    );
    let v2 = planned(&v2(), json!({})).unwrap();
    assert!(v2.device_program.is_some());
    assert!(!v2.group.dirs().any(|dir| dir.ends_with("devices/node/web")));
}

#[test]
fn only_what_is_needed_is_joined() {
    let joined = |json| {
        let group = Group::below(&hybrid(), "a", Reach::Needed(Some(&resources(json))));
        group.v1.iter().map(|member| member.controllers.join(",")).collect::<Vec<_>>()
    };
    let always = ["cpu,cpuacct", "memory", "pids", "devices"];
    assert_eq!(joined(json!({})), always);
    assert_eq!(joined(json!({"cpu": {"cpus": "0"}}))[1], "cpuset");
    assert!(joined(json!({"blockIO": {"weight": 10}})).contains(&"blkio".to_owned()));
    // One that is not joined cannot be limited, and that is said.
    let group = Group::below(&hybrid(), "a", Reach::Needed(None));
    let wrong = update(&hybrid(), &group, &resources(json!({"blockIO": {"weight": 10}})), Now::default())
        .unwrap_err();
    assert_eq!(wrong.field, "linux.resources.blockIO");
    assert!(wrong.reason.contains("in no group of the blkio controller"), "{}", wrong.reason);
}

#[test]
fn a_limit_without_its_controller_is_refused() {
    let mut layout = v2();
    layout.unified_controllers.retain(|name| name != "memory" && name != "hugetlb");
    let (field, reason) = refused(&layout, json!({"memory": {"limit": 4096}}));
    assert_eq!(field, "linux.resources.memory.limit");
    assert!(reason.contains("no memory controller") && reason.contains("cgroup_enable=memory"), "{reason}");
    let (_, reason) = refused(&layout, json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}));
    assert!(reason.contains("no hugetlb controller"), "{reason}");
    let mut layout = v1();
    layout.v1.retain(|hierarchy| hierarchy.controllers[0] != "pids");
    let (_, reason) = refused(&layout, json!({"pids": {"limit": 4}}));
    assert!(reason.contains("mount -t cgroup -o pids"), "{reason}");
}

#[test]
fn without_groups_there_are_no_limits() {
    let plan = |json| plan(&hybrid(), &Group::default(), Some(&resources(json)), Options::default());
    let nothing = plan(json!({"devices": [{"allow": false}]})).unwrap();
    assert_eq!((nothing.writes, nothing.device_program), (Vec::new(), None));
    assert_eq!(plan(json!({"pids": {"limit": 5}})).unwrap_err().field, "linux.resources.pids.limit");
    // Who may not restrict devices does without, and has limits all the same.
    let group = Group::below(&v2(), "a", Reach::All);
    let options = Options { rootless: true, ..Options::default() };
    let rootless =
        super::plan(&v2(), &group, Some(&resources(json!({"pids": {"limit": 5}}))), options).unwrap();
    assert_eq!((lines(&rootless.writes), rootless.device_program), (vec!["pids.max 5".to_owned()], None));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let table = [
        (json!({"memory": {"limit": 67108864, "swap": 1}}), "linux.resources.memory.swap"),
        (json!({"memory": {"limit": -1, "swap": 1}}), "linux.resources.memory.swap"),
        (json!({"memory": {"swappiness": 101}}), "linux.resources.memory.swappiness"),
        (json!({"memory": {"useHierarchy": false}}), "linux.resources.memory.useHierarchy"),
        (json!({"cpu": {"cpus": "0-x"}}), "linux.resources.cpu.cpus"),
        (
            json!({"hugepageLimits": [{"pageSize": "../2MB", "limit": 1}]}),
            "linux.resources.hugepageLimits[0].pageSize",
        ),
    ];
    for (json, field) in table {
        for layout in [v1(), v2()] {
            assert_eq!(refused(&layout, json.clone()).0, field, "{json}");
        }
    }
    assert_eq!(refused(&v2(), json!({"memory": {"swap": 5}})).0, "linux.resources.memory.swap");
}

#[test]
fn an_update_keeps_to_the_kernels_order() {
    let bigger = json!({"memory": {"limit": 200, "swap": 400}});
    let now = |limit| Now { memory_limit: Some(limit), ..Now::default() };
    let limit_first = ["memory.limit_in_bytes 200", "memory.memsw.limit_in_bytes 400"];
    let swap_first = ["memory.memsw.limit_in_bytes 400", "memory.limit_in_bytes 200"];
    assert_eq!(updated(&v1(), bigger.clone(), now(100)), swap_first, "raised");
    assert_eq!(updated(&v1(), bigger, now(1000)), limit_first, "lowered");
    assert_eq!(
        updated(&v1(), json!({"memory": {"limit": 200, "swap": -1}}), now(1000))[0],
        "memory.memsw.limit_in_bytes -1"
    );
    // On v2 the swap alone cannot be told without the memory.
    let checked = json!({"memory": {"limit": 100, "checkBeforeUpdate": true}});
    let used = Now { memory_usage: 101, ..Now::default() };
    for layout in [v1(), v2()] {
        let group = Group::below(&layout, "a", Reach::All);
        let wrong = update(&layout, &group, &resources(checked.clone()), used.clone()).unwrap_err();
        assert_eq!(wrong.field, "linux.resources.memory.limit");
    }
    // The period alone keeps the quota.
    let half = Now { cpu_quota: Some("50000".to_owned()), ..Now::default() };
    assert_eq!(updated(&v2(), json!({"cpu": {"period": 200_000}}), half.clone()), ["cpu.max 50000 200000"]);
    assert_eq!(updated(&v2(), json!({"cpu": {"quota": 1000}}), half), ["cpu.max 1000"]);
    // Devices are left alone unless they are named.
    let group = Group::below(&v2(), "a", Reach::All);
    assert_eq!(
        update(&v2(), &group, &resources(json!({"pids": {"limit": 5}})), Now::default())
            .unwrap()
            .device_program,
        None
    );
}

#[test]
fn weights_meet_at_the_defaults_and_the_ends() {
    let table = [(0, 1), (2, 1), (3, 2), (1024, 100), (2048, 174), (262_144, 10_000), (u64::MAX, 10_000)];
    for (shares, weight) in table {
        assert_eq!(numbers::weight(shares), weight, "{shares}");
    }
    assert_eq!([10, 500, 1000].map(numbers::io_weight), [1, 4950, 10_000]);
}
